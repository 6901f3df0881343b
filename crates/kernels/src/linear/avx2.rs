//! The kernels with AVX2 and FMA: bf16 is widened in registers.

#![allow(clippy::wildcard_imports)] // intrinsics name themselves

use std::arch::x86_64::*;

use super::blocks::BlockFormat;
use super::kernel::{COLUMNS, Compute, Multiply, Segment, widened};

pub(super) fn tile<M: Multiply>(
    c: &mut [M::Sum],
    add: bool,
    segments: &[Segment<'_>],
    rows: usize,
    width: usize,
) {
    assert!(width == 16 || width == COLUMNS);
    assert!(c.len() >= rows * COLUMNS);
    assert!(segments.iter().all(|s| s.a.len() >= s.words * rows && s.b.len() >= s.words * width));
    // Six rows of sixteen columns fill the registers; what is widened needs four more.
    let most = if M::PAIR > 1 { 4 } else { 6 };
    for half in (0..width).step_by(16) {
        let mut row = 0;
        while row < rows {
            let place = Place { row, rows, half, width };
            let count = (rows - row).min(most);
            // SAFETY: this table is only in use on processors with these instructions; the slices are as long as
            // the whole tile needs, as just checked, and the part lies within it.
            unsafe {
                match count {
                    1 => part::<M, 1>(c, add, segments, place),
                    2 => part::<M, 2>(c, add, segments, place),
                    3 => part::<M, 3>(c, add, segments, place),
                    4 => part::<M, 4>(c, add, segments, place),
                    5 => part::<M, 5>(c, add, segments, place),
                    _ => part::<M, 6>(c, add, segments, place),
                }
            }
            row += count;
        }
    }
}

/// Where in the tile a part lies.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    rows: usize,
    half: usize,
    width: usize,
}

/// # Safety
/// `c` holds `rows * COLUMNS` values, each segment `words * rows` words of `a` and `words * width` of `b`;
/// `row + R <= rows`, `half + 16 <= width`.
#[target_feature(enable = "avx2,fma")]
unsafe fn part<M: Multiply, const R: usize>(
    c: &mut [M::Sum],
    add: bool,
    segments: &[Segment<'_>],
    at: Place,
) {
    const { assert!(size_of::<M::Sum>() == size_of::<f32>()) };
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    // SAFETY: the pointers stay within the lengths that the caller promised.
    unsafe {
        let c = c.as_mut_ptr().cast::<f32>().add(at.row * COLUMNS + at.half);
        if add {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm256_loadu_ps(c.add(r * COLUMNS)), _mm256_loadu_ps(c.add(r * COLUMNS + 8))];
            }
        }
        for segment in segments {
            let (mut a, mut b) = (segment.a.as_ptr().add(at.row), segment.b.as_ptr().add(at.half));
            for _ in 0..segment.words {
                let columns = [_mm256_loadu_si256(b.cast()), _mm256_loadu_si256(b.add(8).cast())];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let row = _mm256_set1_epi32(a.add(r).read() as i32);
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = multiply_add::<M>(*sum, row, column);
                    }
                }
                (a, b) = (a.add(at.rows), b.add(at.width));
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            _mm256_storeu_ps(c.add(r * COLUMNS), sums[0]);
            _mm256_storeu_ps(c.add(r * COLUMNS + 8), sums[1]);
        }
    }
}

/// The sums of bytes are integers, in the bits of `sum`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn multiply_add<M: Multiply>(sum: __m256, a: __m256i, b: __m256i) -> __m256 {
    match M::PAIR {
        // Sixteen bits hold every byte and, unlike `vpmaddubsw`, no sum of two products overflows them.
        4 => {
            let even = _mm256_madd_epi16(
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a)),
                _mm256_and_si256(b, _mm256_set1_epi16(0xff)),
            );
            let odd = _mm256_madd_epi16(_mm256_srai_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
            let sum = _mm256_add_epi32(_mm256_castps_si256(sum), _mm256_add_epi32(even, odd));
            _mm256_castsi256_ps(sum)
        }
        2 => _mm256_fmadd_ps(upper(a), upper(b), _mm256_fmadd_ps(lower(a), lower(b), sum)),
        _ => _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum),
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn lower(words: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn upper(words: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
}

widened! {
    "avx2,fma":
    fn pack<E>(out: &mut [u32], stride: usize, rows: &[&[E]]);
    fn weave<E>(out: &mut [u32], stride: usize, from: &[E], from_stride: usize, rows: usize, cols: usize);
    fn turn<E>(out: &mut [u32], block: &[u32]);
    fn expand<E>(out: &mut [u32], block: &[u8], format: BlockFormat);
    fn narrow<E>(out: &mut [E], values: &[f32]);
    fn add(out: &mut [f32], values: &[f32]);
    fn scale(values: &mut [f32], factor: f32);
    fn max(values: &[f32]) -> f32;
    fn exp(values: &mut [f32], shift: f32) -> f32;
    fn to_bytes<E>(out: &mut [i8], values: &[E]) -> (f32, i32);
    fn from_sums(out: &mut [f32], sums: &[i32], start: i32, factor: f32, scales: &[f32]);
    fn peaks(peaks: &mut [f32; COLUMNS], values: &[f32]);
    fn weave_bytes(out: &mut [u32], values: &[f32], factors: &[f32; COLUMNS]);
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
