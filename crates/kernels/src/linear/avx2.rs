//! The kernels with AVX2 and FMA: operands of bf16 are f32 words, widened when they are packed.

#![allow(clippy::wildcard_imports)] // intrinsics name themselves

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use bytemuck::Zeroable;

use super::blocks::BlockFormat;
use super::kernel::{COLUMNS, Compute, Multiply, ROWS, Segment, widened};
use super::nf4::LEVELS;
use super::portable;

/// Words of `a` whose bytes are split at a time: with the words of `b` that they meet, they stay in the first-level cache.
const STEP: usize = 64;

pub(super) fn tile<M: Multiply>(
    c: &mut [M::Sum],
    add: bool,
    segments: &[Segment<'_>],
    rows: usize,
    width: usize,
) {
    const { assert!(size_of::<M::Sum>() == size_of::<f32>()) };
    assert!((1..=ROWS).contains(&rows) && (width == 16 || width == COLUMNS));
    assert!(c.len() >= rows * COLUMNS);
    assert!(segments.iter().all(|s| s.a.len() >= s.words * rows && s.b.len() >= s.words * width));
    if !add {
        c[..rows * COLUMNS].fill(M::Sum::zeroed());
    }
    let c = c.as_mut_ptr().cast::<f32>();
    for segment in segments {
        // SAFETY: this table is only in use on processors with these instructions; the slices are as long as the tile
        // needs, as just checked.
        unsafe { add_segment::<M>(c, segment, rows, width) };
    }
}

/// # Safety
/// `c` holds `rows * COLUMNS` values, the segment `words * rows` words of `a` and `words * width` of `b`;
/// `rows <= ROWS`.
#[target_feature(enable = "avx2,fma")]
unsafe fn add_segment<M: Multiply>(c: *mut f32, segment: &Segment<'_>, rows: usize, width: usize) {
    // Six rows of sixteen columns fill the registers; the halves of the columns need two more. Parts as even as can be:
    // fewer than four rows do not keep the multipliers busy.
    let most: usize = if M::PAIR > 1 { 4 } else { 6 };
    let most = rows.div_ceil(rows.div_ceil(most));
    let step = if M::PAIR > 1 { STEP } else { segment.words.max(1) };
    let mut halves = MaybeUninit::<[[u32; STEP * ROWS]; 2]>::uninit();
    let lower = halves.as_mut_ptr().cast::<u32>();
    // SAFETY: parts lie within the tile, steps within the segment, and what is split fits `halves`, as `step * rows` is
    // at most `STEP * ROWS`.
    unsafe {
        let upper = lower.add(STEP * ROWS);
        for first in (0..segment.words).step_by(step) {
            let words = step.min(segment.words - first);
            let (a, b) = (segment.a.as_ptr().add(first * rows), segment.b.as_ptr().add(first * width));
            let a = if M::PAIR > 1 {
                split_words::<M>(lower, upper, a, words * rows);
                [lower.cast_const(), upper.cast_const()]
            } else {
                [a, a]
            };
            for half in (0..width).step_by(16) {
                for row in (0..rows).step_by(most) {
                    let (c, a, b) = (c.add(row * COLUMNS + half), a.map(|a| a.add(row)), b.add(half));
                    match (rows - row).min(most) {
                        1 => part::<M, 1>(c, a, b, words, rows, width),
                        2 => part::<M, 2>(c, a, b, words, rows, width),
                        3 => part::<M, 3>(c, a, b, words, rows, width),
                        4 => part::<M, 4>(c, a, b, words, rows, width),
                        5 => part::<M, 5>(c, a, b, words, rows, width),
                        _ => part::<M, 6>(c, a, b, words, rows, width),
                    }
                }
            }
        }
    }
}

/// Splits words of `a` once for all columns that they meet.
///
/// # Safety
/// All three hold `len` words.
#[target_feature(enable = "avx2,fma")]
unsafe fn split_words<M: Multiply>(lower: *mut u32, upper: *mut u32, a: *const u32, len: usize) {
    // SAFETY: whole vectors end at `len` at most, and so does the mask of the last one.
    unsafe {
        let split = |words: __m256i| [left_half::<M>(words, 0), left_half::<M>(words, 1)];
        let whole = len / 8 * 8;
        for at in (0..whole).step_by(8) {
            let [low, high] = split(_mm256_loadu_si256(a.add(at).cast()));
            _mm256_storeu_si256(lower.add(at).cast(), low);
            _mm256_storeu_si256(upper.add(at).cast(), high);
        }
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((len - whole) as i32), lanes);
        let [low, high] = split(_mm256_maskload_epi32(a.add(whole).cast(), mask));
        _mm256_maskstore_epi32(lower.add(whole).cast(), mask, low);
        _mm256_maskstore_epi32(upper.add(whole).cast(), mask, high);
    }
}

/// Adds the product of `R` rows and sixteen columns.
///
/// # Safety
/// `c` holds `R` rows of sixteen values, [`COLUMNS`] apart; each half of `a` `R` words for each of `words` steps, `rows`
/// apart; `b` sixteen words for each, `width` apart.
#[inline(never)] // its sums then stay in registers
#[target_feature(enable = "avx2,fma")]
unsafe fn part<M: Multiply, const R: usize>(
    c: *mut f32,
    mut a: [*const u32; 2],
    mut b: *const u32,
    words: usize,
    rows: usize,
    width: usize,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    // SAFETY: the pointers stay within what the caller promised.
    unsafe {
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = [_mm256_loadu_ps(c.add(r * COLUMNS)), _mm256_loadu_ps(c.add(r * COLUMNS + 8))];
        }
        for _ in 0..words {
            let columns = [_mm256_loadu_si256(b.cast()), _mm256_loadu_si256(b.add(8).cast())];
            for (half, a) in a.iter().enumerate().take(M::PAIR.min(2)) {
                let columns = columns.map(|columns| right_half::<M>(columns, half));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let row = _mm256_set1_epi32(a.add(r).read() as i32);
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = multiply_add::<M>(*sum, row, column);
                    }
                }
            }
            (a, b) = (a.map(|a| a.add(rows)), b.add(width));
        }
        for (r, sums) in sums.iter().enumerate() {
            _mm256_storeu_ps(c.add(r * COLUMNS), sums[0]);
            _mm256_storeu_ps(c.add(r * COLUMNS + 8), sums[1]);
        }
    }
}

/// Words of f32 as they are; of four signed bytes the even (0) or odd (1) ones, widened to 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn left_half<M: Multiply>(words: __m256i, half: usize) -> __m256i {
    match (M::PAIR, half) {
        (1, _) => words,
        (_, 0) => _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(words)),
        _ => _mm256_srai_epi16::<8>(words),
    }
}

/// The same of words of `b`, whose bytes have no sign.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn right_half<M: Multiply>(words: __m256i, half: usize) -> __m256i {
    match (M::PAIR, half) {
        (1, _) => words,
        (_, 0) => _mm256_and_si256(words, _mm256_set1_epi16(0xff)),
        _ => _mm256_srli_epi16::<8>(words),
    }
}

/// Multiplies halves. The sums of bytes are integers, in the bits of `sum`; sixteen bits hold every byte and, unlike
/// `vpmaddubsw`, no sum of two products overflows.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn multiply_add<M: Multiply>(sum: __m256, a: __m256i, b: __m256i) -> __m256 {
    if M::PAIR == 4 {
        let products = _mm256_madd_epi16(a, b);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), products));
    }
    _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum)
}

widened! {
    "avx2,fma":
    fn turn<E>(out: &mut [u32], block: &[u32]);
    fn narrow<E>(out: &mut [E], values: &[f32]);
    fn widen<E>(out: &mut [f32], values: &[E]);
    fn add(out: &mut [f32], values: &[f32]);
    fn scale(values: &mut [f32], factor: f32);
    fn max(values: &[f32]) -> f32;
    fn exp(values: &mut [f32], shift: f32) -> f32;
    fn to_bytes<E>(out: &mut [i8], values: &[E]) -> (f32, i32);
    fn from_sums(out: &mut [f32], sums: &[i32], start: i32, factor: f32, scales: &[f32]);
    fn peaks(peaks: &mut [f32; COLUMNS], values: &[f32]);
    fn weave_bytes(out: &mut [u32], values: &[f32], factors: &[f32; COLUMNS]);
}

pub(super) fn expand<E: Compute>(out: &mut [u32], block: &[u8], format: BlockFormat) {
    assert!(out.len() >= COLUMNS * COLUMNS && block.len() == 4 * format.words());
    // SAFETY: this table is only in use on processors with these instructions; both slices hold a block, as just checked.
    unsafe { expand_block::<E>(out.as_mut_ptr().cast(), block.as_ptr(), format) };
}

/// # Safety
/// `block` holds a stored block, `out` has room for its values.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn expand_block<E: Compute>(out: *mut f32, block: *const u8, format: BlockFormat) {
    // SAFETY: all offsets lie within the blocks.
    unsafe {
        let quants = block.add(format.head());
        let levels = [_mm256_loadu_ps(LEVELS.as_ptr()), _mm256_loadu_ps(LEVELS.as_ptr().add(8))];
        for first in (0..COLUMNS).step_by(8) {
            let halves = |at: usize| _mm256_cvtph_ps(_mm_loadu_si128(block.add(2 * at).cast()));
            let d = match format {
                BlockFormat::Nf4 => _mm256_loadu_ps(block.add(4 * first).cast()),
                _ => halves(first),
            };
            let m = match format {
                BlockFormat::Q4_0 => _mm256_mul_ps(d, _mm256_set1_ps(-8.0)),
                BlockFormat::Q4_1 => halves(COLUMNS + first),
                BlockFormat::Q8_0 | BlockFormat::Nf4 => _mm256_setzero_ps(),
            };
            for pair in 0..COLUMNS / 2 {
                let bytes = |row: usize| _mm_loadl_epi64(quants.add(row * COLUMNS + first).cast());
                let both = if format == BlockFormat::Q8_0 {
                    [0, 1].map(|i| _mm256_cvtepi8_epi32(bytes(2 * pair + i)))
                } else {
                    let both = _mm256_cvtepu8_epi32(bytes(pair));
                    [_mm256_and_si256(both, _mm256_set1_epi32(15)), _mm256_srli_epi32::<4>(both)]
                };
                for (i, quants) in both.into_iter().enumerate() {
                    let quants = if format == BlockFormat::Nf4 {
                        let [low, high] = levels.map(|levels| _mm256_permutevar8x32_ps(levels, quants));
                        _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(quants)))
                    } else {
                        _mm256_cvtepi32_ps(quants)
                    };
                    // The product is exact, or nothing is added: fused or not, the bits are the same.
                    let values = _mm256_fmadd_ps(quants, d, m);
                    _mm256_storeu_ps(out.add((2 * pair + i) * COLUMNS + first), rounded::<E>(values));
                }
            }
        }
    }
}

/// Rounded to `E`, ties to even.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn rounded<E: Compute>(values: __m256) -> __m256 {
    if E::PAIR == 1 {
        return values;
    }
    let bits = _mm256_castps_si256(values);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(values, values);
    let chosen = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan);
    _mm256_and_ps(chosen, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32)))
}

pub(super) fn weave<E: Compute>(
    out: &mut [u32],
    stride: usize,
    from: &[E],
    from_stride: usize,
    rows: usize,
    cols: usize,
) {
    for t in 0..rows {
        widen(bytemuck::cast_slice_mut(&mut out[t * stride..][..cols]), &from[t * from_stride..][..cols]);
    }
}

pub(super) fn pack<E: Compute>(out: &mut [u32], stride: usize, rows: &[&[E]]) {
    let k = rows.first().map_or(0, |row| row.len());
    assert!(rows.iter().all(|row| row.len() == k) && rows.len() <= stride);
    assert!(k == 0 || (k - 1) * stride + rows.len() <= out.len());
    // SAFETY: this table is only in use on processors with these instructions; `out` holds `rows.len()` words for each
    // of `k` places, `stride` apart, as just checked.
    unsafe { pack_rows(out.as_mut_ptr().cast(), stride, rows, k) };
}

/// # Safety
/// All rows hold `k` values; `out` holds `rows.len()` of them for each, `stride` apart.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_rows<E: Compute>(out: *mut f32, stride: usize, rows: &[&[E]], k: usize) {
    let mut first = 0;
    while first < rows.len() {
        // Four rows at a time; the last four begin earlier, and fewer are written one value at a time.
        let (count, from) = (rows.len().min(4), first.min(rows.len().saturating_sub(4)));
        let whole = if count == 4 { k / 8 * 8 } else { 0 };
        // SAFETY: eight values from `at` on lie in each row, and four words at each of their places in `out`.
        unsafe {
            for at in (0..whole).step_by(8) {
                let [a, b, c, d] = std::array::from_fn(|r| load::<E>(rows[from + r].as_ptr().add(at)));
                let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (low2, high2) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                // Places 0 and 4, 1 and 5, and so on.
                let places = [
                    _mm256_shuffle_ps::<0x44>(low, low2),
                    _mm256_shuffle_ps::<0xee>(low, low2),
                    _mm256_shuffle_ps::<0x44>(high, high2),
                    _mm256_shuffle_ps::<0xee>(high, high2),
                ];
                for (i, both) in places.into_iter().enumerate() {
                    let to = out.add((at + i) * stride + from);
                    _mm_storeu_ps(to, _mm256_castps256_ps128(both));
                    _mm_storeu_ps(to.add(4 * stride), _mm256_extractf128_ps::<1>(both));
                }
            }
        }
        for (r, row) in rows.iter().enumerate().skip(from).take(count) {
            for (at, value) in row.iter().enumerate().skip(whole) {
                // SAFETY: the place is in range.
                unsafe { out.add(at * stride + r).write(portable::wide(*value)) };
            }
        }
        first += 4;
    }
}

/// Eight values, widened.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load<E: Compute>(from: *const E) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        if E::PAIR == 2 {
            let values = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(values))
        } else {
            _mm256_loadu_ps(from.cast())
        }
    }
}

pub(super) fn spin<E: Compute>(rounds: usize) -> usize {
    #[target_feature(enable = "avx2,fma")]
    fn wide(rounds: usize) -> usize {
        let one = _mm256_set1_ps(std::hint::black_box(1.0));
        let mut sums = [_mm256_setzero_ps(); 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(one, one, *sum);
            }
        }
        std::hint::black_box(sums);
        rounds * sums.len() * 8 * 2
    }
    // SAFETY: this table is only in use on processors with these instructions.
    unsafe { wide(rounds) }
}
