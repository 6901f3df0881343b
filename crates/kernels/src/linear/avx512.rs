//! The kernels with AVX-512: 12 x 32 values of C in 24 registers, bf16 by `vdpbf16ps`.
//!
//! `vdpbf16ps` and the conversions to bf16 take denormals as zero, unlike the other instruction sets.

#![allow(clippy::wildcard_imports)] // intrinsics name themselves
#![allow(clippy::cast_ptr_alignment)] // every load and store through a cast pointer is an unaligned one

mod pack;

use std::arch::x86_64::*;

use self::pack::{expand_block, lanes32, pack_rows, turn_block, weave_rows};
use super::blocks::BlockFormat;
use super::exp::{HIGHEST, LN_2_HIGH, LN_2_LOW, LOG2_E, LOWEST, POLYNOMIAL};
use super::kernel::{COLUMNS, Compute, Multiply, ROWS, Segment, widened};

macro_rules! checked {
    ($($(#[$doc:meta])* fn $name:ident<E>($($arg:ident: $type:ty),*) $(-> $out:ty)? { $($check:expr;)* } $to:path;)*) => {
        $($(#[$doc])* pub(super) fn $name<E: Compute>($($arg: $type),*) $(-> $out)? {
            $(assert!($check);)*
            // SAFETY: this table is only in use on processors with these instructions ([`crate::isa`]), and the
            // slices are as long as the function needs, as just checked.
            unsafe { $to($($arg),*) }
        })*
    };
}

checked! {
    fn pack<E>(out: &mut [u32], stride: usize, rows: &[&[E]]) {
        (1..=16).contains(&rows.len()) && rows.len() <= stride;
        rows.iter().all(|row| row.len() == rows[0].len());
        rows[0].is_empty() || (rows[0].len().div_ceil(E::PAIR) - 1) * stride + rows.len() <= out.len();
    } pack_rows::<E>;
    fn weave<E>(out: &mut [u32], stride: usize, from: &[E], from_stride: usize, rows: usize, cols: usize) {
        cols <= COLUMNS && cols <= stride;
        rows == 0 || (rows - 1) * from_stride + cols <= from.len();
        rows == 0 || (rows.div_ceil(E::PAIR) - 1) * stride + cols <= out.len();
    } weave_rows::<E>;
    fn turn<E>(out: &mut [u32], block: &[u32]) {
        out.len() >= COLUMNS * COLUMNS / E::PAIR && block.len() >= COLUMNS * COLUMNS / E::PAIR;
    } turn_block::<E>;
    fn expand<E>(out: &mut [u32], block: &[u8], format: BlockFormat) {
        out.len() >= COLUMNS * COLUMNS / E::PAIR && block.len() == 4 * format.words();
    } expand_block::<E>;
    fn narrow<E>(out: &mut [E], values: &[f32]) { out.len() == values.len(); } narrow_values::<E>;
    fn spin<E>(rounds: usize) -> usize {} spin_registers::<E>;
}

pub(super) fn tile<M: Multiply>(
    c: &mut [M::Sum],
    add: bool,
    segments: &[Segment<'_>],
    rows: usize,
    width: usize,
) {
    assert!(c.len() >= rows * COLUMNS);
    assert!(segments.iter().all(|s| s.a.len() >= s.words * rows && s.b.len() >= s.words * width));
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match (rows, width) {
                // SAFETY: this table is only in use on processors with these instructions, and the slices are as
                // long as the tile needs, as just checked.
                $(($rows, COLUMNS) => unsafe { tile_registers::<M, $rows, 2>(c, add, segments) },)*
                // SAFETY: as above.
                $(($rows, 16) => unsafe { tile_registers::<M, $rows, 1>(c, add, segments) },)*
                _ => panic!("no tile of {rows} x {width}"),
            }
        };
    }
    const { assert!(ROWS == 12) };
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

widened! {
    "avx512f,avx512bw,avx512vl,avx512bf16":
    fn widen<E>(out: &mut [f32], values: &[E]);
    fn add(out: &mut [f32], values: &[f32]);
    fn scale(values: &mut [f32], factor: f32);
    fn max(values: &[f32]) -> f32;
    fn to_bytes<E>(out: &mut [i8], values: &[E]) -> (f32, i32);
    fn from_sums(out: &mut [f32], sums: &[i32], start: i32, factor: f32, scales: &[f32]);
    fn peaks(peaks: &mut [f32; COLUMNS], values: &[f32]);
    fn weave_bytes(out: &mut [u32], values: &[f32], factors: &[f32; COLUMNS]);
}

pub(super) fn exp(values: &mut [f32], shift: f32) -> f32 {
    // SAFETY: this table is only in use on processors with these instructions.
    unsafe { exp_values(values, shift) }
}

/// The sums of bytes are integers, in the bits of `sum`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")]
fn multiply_add<M: Multiply>(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    match M::PAIR {
        4 => _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(sum), b, a)),
        2 => {
            // SAFETY: three types of the same 64 bytes.
            let (a, b) = unsafe {
                (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
            };
            _mm512_dpbf16_ps(sum, a, b)
        }
        _ => _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum),
    }
}

/// # Safety
/// `c` holds `R * COLUMNS` values; each segment `words * R` words of `a` and `words * V * 16` of `b`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")]
unsafe fn tile_registers<M: Multiply, const R: usize, const V: usize>(
    c: &mut [M::Sum],
    add: bool,
    segments: &[Segment<'_>],
) {
    const { assert!(size_of::<M::Sum>() == size_of::<f32>()) };
    let c = c.as_mut_ptr().cast::<f32>();
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    // SAFETY: the pointers stay within the lengths that the caller promised.
    unsafe {
        if add {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(c.add(r * COLUMNS + v * 16));
                }
            }
        }
        for segment in segments {
            let (mut a, mut b) = (segment.a.as_ptr(), segment.b.as_ptr());
            for _ in 0..segment.words {
                let mut columns = [_mm512_setzero_si512(); V];
                for (v, columns) in columns.iter_mut().enumerate() {
                    *columns = _mm512_loadu_si512(b.add(v * 16).cast());
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let row = _mm512_set1_epi32(a.add(r).read() as i32);
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = multiply_add::<M>(*sum, row, column);
                    }
                }
                (a, b) = (a.add(R), b.add(V * 16));
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(r * COLUMNS + v * 16), *sum);
            }
        }
    }
}

/// # Safety
/// Both slices have one length.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn narrow_values<E: Compute>(out: &mut [E], values: &[f32]) {
    if E::PAIR == 1 {
        super::portable::narrow(out, values);
        return;
    }
    for at in (0..values.len()).step_by(32) {
        let lanes = lanes32(values.len() - at);
        // SAFETY: the masks end at the slices' end.
        unsafe {
            let from = values.as_ptr().add(at);
            let low = _mm512_maskz_loadu_ps(lanes as u16, from);
            let high = _mm512_maskz_loadu_ps((lanes >> 16) as u16, from.wrapping_add(16));
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi16(out.as_mut_ptr().add(at).cast(), lanes, both);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn exp_values(values: &mut [f32], shift: f32) -> f32 {
    let mut sum = _mm512_setzero_ps();
    for chunk in values.chunks_mut(16) {
        let lanes = lanes32(chunk.len()) as u16;
        // SAFETY: the mask ends at the chunk's end.
        let x = unsafe { _mm512_maskz_loadu_ps(lanes, chunk.as_ptr()) };
        let x = _mm512_sub_ps(x, _mm512_set1_ps(shift));
        let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)));
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_HIGH), x);
        let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_LOW), r);
        let mut poly = _mm512_set1_ps(POLYNOMIAL[0]);
        for c in &POLYNOMIAL[1..] {
            poly = _mm512_fmadd_ps(poly, r, _mm512_set1_ps(*c));
        }
        let fraction = _mm512_fmadd_ps(poly, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0)));
        let value = _mm512_scalef_ps(fraction, n);
        let low = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(LOWEST));
        let high = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(HIGHEST));
        let value = _mm512_mask_blend_ps(low, value, _mm512_setzero_ps());
        let value = _mm512_mask_blend_ps(high, value, _mm512_set1_ps(f32::INFINITY));
        let value = _mm512_maskz_mov_ps(lanes, value);
        sum = _mm512_add_ps(sum, value);
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(chunk.as_mut_ptr(), lanes, value) };
    }
    _mm512_reduce_add_ps(sum)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")]
fn spin_registers<E: Compute>(rounds: usize) -> usize {
    let one = _mm512_set1_epi32(std::hint::black_box(0x3f80_3f80));
    let mut sums = [_mm512_setzero_ps(); 24];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = multiply_add::<E>(*sum, one, one);
        }
    }
    std::hint::black_box(sums);
    rounds * sums.len() * 16 * E::PAIR * 2
}
