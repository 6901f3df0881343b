//! Packing with AVX-512: rows to panels, blocks turned and expanded.

#![allow(clippy::wildcard_imports)] // intrinsics name themselves
#![allow(clippy::cast_ptr_alignment)] // every load and store through a cast pointer is an unaligned one
#![allow(clippy::large_types_passed_by_value)] // arrays of registers, inlined

use std::arch::x86_64::*;

use super::super::blocks::BlockFormat;
use super::super::kernel::{COLUMNS, Compute};
use super::super::nf4::LEVELS;

/// The first `len` lanes of 32.
pub(super) fn lanes32(len: usize) -> u32 {
    if len >= 32 { u32::MAX } else { (1 << len) - 1 }
}

/// Values `at..` of a row as 16 words; those behind its end are zero.
///
/// # Safety
/// `at <= row.len()`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn load_words<E: Compute>(row: &[E], at: usize) -> __m512i {
    let halves = (row.len() - at) * 2 / E::PAIR;
    // SAFETY: the mask ends at the row's end.
    unsafe { _mm512_maskz_loadu_epi16(lanes32(halves), row.as_ptr().add(at).cast()) }
}

/// # Safety
/// 1 to 16 rows of one length; `out` has room for the last word of the last row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_rows<E: Compute>(out: &mut [u32], stride: usize, rows: &[&[E]]) {
    let len = rows[0].len();
    let lanes = lanes32(rows.len()) as u16;
    for at in (0..len).step_by(16 * E::PAIR) {
        let mut words = [_mm512_setzero_si512(); 16];
        for (words, row) in words.iter_mut().zip(rows) {
            // SAFETY: `at` is below the length that all rows have.
            *words = unsafe { load_words(row, at) };
        }
        let (first, count) = (at / E::PAIR, (len - at).div_ceil(E::PAIR));
        for (k, words) in transpose(words).into_iter().enumerate().take(count) {
            // SAFETY: a word of the rows, for which `out` has room.
            unsafe {
                _mm512_mask_storeu_epi32(out.as_mut_ptr().add((first + k) * stride).cast(), lanes, words);
            };
        }
    }
}

/// 16 x 16 words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let (mut pairs, mut quads) = ([zero; 16], [zero; 16]);
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // quads[4 i + j]: word 4 lane + j of rows 4 i .. 4 i + 4, for each of the four lanes.
    for i in 0..4 {
        for j in 0..2 {
            quads[4 * i + 2 * j] = _mm512_unpacklo_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
            quads[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
        }
    }
    let mut out = [zero; 16];
    for j in 0..4 {
        let (a, b, c, d) = (quads[j], quads[4 + j], quads[8 + j], quads[12 + j]);
        let even_low = _mm512_shuffle_i32x4::<0x88>(a, b); // lanes 0 and 2 of rows 0..4 and of rows 4..8
        let odd_low = _mm512_shuffle_i32x4::<0xdd>(a, b);
        let even_high = _mm512_shuffle_i32x4::<0x88>(c, d);
        let odd_high = _mm512_shuffle_i32x4::<0xdd>(c, d);
        out[j] = _mm512_shuffle_i32x4::<0x88>(even_low, even_high);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even_low, even_high);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high);
    }
    out
}

/// 8 x 8 pairs of words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn transpose_pairs(rows: [__m512i; 8]) -> [__m512i; 8] {
    let zero = _mm512_setzero_si512();
    let (mut twos, mut out) = ([zero; 8], [zero; 8]);
    for i in 0..4 {
        twos[2 * i] = _mm512_unpacklo_epi64(rows[2 * i], rows[2 * i + 1]);
        twos[2 * i + 1] = _mm512_unpackhi_epi64(rows[2 * i], rows[2 * i + 1]);
    }
    // twos[2 i + j]: pair 2 lane + j of rows 2 i and 2 i + 1, for each of the four lanes.
    for j in 0..2 {
        let (a, b, c, d) = (twos[j], twos[2 + j], twos[4 + j], twos[6 + j]);
        let even_low = _mm512_shuffle_i64x2::<0x88>(a, b);
        let odd_low = _mm512_shuffle_i64x2::<0xdd>(a, b);
        let even_high = _mm512_shuffle_i64x2::<0x88>(c, d);
        let odd_high = _mm512_shuffle_i64x2::<0xdd>(c, d);
        out[j] = _mm512_shuffle_i64x2::<0x88>(even_low, even_high);
        out[2 + j] = _mm512_shuffle_i64x2::<0x88>(odd_low, odd_high);
        out[4 + j] = _mm512_shuffle_i64x2::<0xdd>(even_low, even_high);
        out[6 + j] = _mm512_shuffle_i64x2::<0xdd>(odd_low, odd_high);
    }
    out
}

/// # Safety
/// Both slices hold a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn turn_block<E: Compute>(out: &mut [u32], block: &[u32]) {
    let (out, block) = (out.as_mut_ptr(), block.as_ptr());
    // SAFETY: all offsets lie within the block.
    unsafe {
        if E::PAIR == 1 {
            for (row, column) in [(0, 0), (0, 16), (16, 0), (16, 16)] {
                let mut rows = [_mm512_setzero_si512(); 16];
                for (i, words) in rows.iter_mut().enumerate() {
                    *words = _mm512_loadu_si512(block.add((row + i) * COLUMNS + column).cast());
                }
                for (i, words) in transpose(rows).into_iter().enumerate() {
                    _mm512_storeu_si512(out.add((column + i) * COLUMNS + row).cast(), words);
                }
            }
        } else {
            // Two neighbouring words hold the 2 x 2 values a0 a1 b0 b1; transposed they are a0 b0 a1 b1.
            let swap =
                _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
            for (row, column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
                let mut rows = [_mm512_setzero_si512(); 8];
                for (i, pairs) in rows.iter_mut().enumerate() {
                    let pair = _mm512_loadu_si512(block.add((row + i) * COLUMNS + 2 * column).cast());
                    *pairs = _mm512_shuffle_epi8(pair, swap);
                }
                for (i, pairs) in transpose_pairs(rows).into_iter().enumerate() {
                    _mm512_storeu_si512(out.add((column + i) * COLUMNS + 2 * row).cast(), pairs);
                }
            }
        }
    }
}

/// # Safety
/// `block` is a stored block, `out` holds an expanded one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn expand_block<E: Compute>(out: &mut [u32], block: &[u8], format: BlockFormat) {
    let (out, block) = (out.as_mut_ptr(), block.as_ptr());
    let order = interleaved();
    // SAFETY: all offsets lie within the blocks.
    unsafe {
        let quants = block.add(format.head());
        let levels = _mm512_loadu_ps(LEVELS.as_ptr());
        for half in [0, 16] {
            let halves = |at: usize| _mm512_cvtph_ps(_mm256_loadu_si256(block.add(2 * at).cast()));
            let d = match format {
                BlockFormat::Nf4 => _mm512_loadu_ps(block.add(4 * half).cast()),
                _ => halves(half),
            };
            let m = match format {
                BlockFormat::Q4_0 => _mm512_mul_ps(d, _mm512_set1_ps(-8.0)),
                BlockFormat::Q4_1 => halves(COLUMNS + half),
                BlockFormat::Q8_0 | BlockFormat::Nf4 => _mm512_setzero_ps(),
            };
            for pair in 0..COLUMNS / 2 {
                let bytes = |row: usize| _mm_loadu_si128(quants.add(row * COLUMNS + half).cast());
                let (first, second) = if format == BlockFormat::Q8_0 {
                    (_mm512_cvtepi8_epi32(bytes(2 * pair)), _mm512_cvtepi8_epi32(bytes(2 * pair + 1)))
                } else {
                    let both = _mm512_cvtepu8_epi32(bytes(pair));
                    (_mm512_and_si512(both, _mm512_set1_epi32(15)), _mm512_srli_epi32::<4>(both))
                };
                let (first, second) = if format == BlockFormat::Nf4 {
                    (_mm512_permutexvar_ps(first, levels), _mm512_permutexvar_ps(second, levels))
                } else {
                    (_mm512_cvtepi32_ps(first), _mm512_cvtepi32_ps(second))
                };
                let (first, second) = (_mm512_fmadd_ps(first, d, m), _mm512_fmadd_ps(second, d, m));
                if E::PAIR == 2 {
                    let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
                    let both = _mm512_permutexvar_epi16(order, both);
                    _mm512_storeu_si512(out.add(pair * COLUMNS + half).cast(), both);
                } else {
                    _mm512_storeu_ps(out.add(2 * pair * COLUMNS + half).cast(), first);
                    _mm512_storeu_ps(out.add((2 * pair + 1) * COLUMNS + half).cast(), second);
                }
            }
        }
    }
}

/// 0, 16, 1, 17 and so on to 15, 31.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn interleaved() -> __m512i {
    let mut order = [0u16; 32];
    for (i, order) in order.iter_mut().enumerate() {
        *order = (i as u16 / 2) | (i as u16 % 2 * 16);
    }
    // SAFETY: the order is 64 bytes long.
    unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
}

/// # Safety
/// `cols` is at most 32; `from` holds the values of the rows, `out` has room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn weave_rows<E: Compute>(
    out: &mut [u32],
    stride: usize,
    from: &[E],
    from_stride: usize,
    rows: usize,
    cols: usize,
) {
    let masks = [lanes32(cols) as u16, (lanes32(cols) >> 16) as u16];
    let (out, from) = (out.as_mut_ptr(), from.as_ptr());
    // Word i of the lower half: value i of the first row, value i of the second.
    let mut order = [0u16; 64];
    for (i, order) in order.iter_mut().enumerate() {
        *order = (i as u16 / 2) | (i as u16 % 2 * 32);
    }
    // SAFETY: the masks end at the columns' end; the order is 64 values long.
    unsafe {
        let low = _mm512_loadu_si512(order.as_ptr().cast());
        let high = _mm512_loadu_si512(order.as_ptr().add(32).cast());
        for (k, t) in (0..rows).step_by(E::PAIR).enumerate() {
            let (out, row) = (out.add(k * stride), from.add(t * from_stride));
            let halves = if E::PAIR == 1 {
                [
                    _mm512_maskz_loadu_epi32(masks[0], row.cast()),
                    _mm512_maskz_loadu_epi32(masks[1], row.wrapping_add(16).cast()),
                ]
            } else {
                let first = _mm512_maskz_loadu_epi16(lanes32(cols), row.cast());
                let lanes = if t + 1 < rows { lanes32(cols) } else { 0 };
                let second = _mm512_maskz_loadu_epi16(lanes, row.wrapping_add(from_stride).cast());
                [
                    _mm512_permutex2var_epi16(first, low, second),
                    _mm512_permutex2var_epi16(first, high, second),
                ]
            };
            _mm512_mask_storeu_epi32(out.cast(), masks[0], halves[0]);
            if masks[1] != 0 {
                _mm512_mask_storeu_epi32(out.add(16).cast(), masks[1], halves[1]);
            }
        }
    }
}
