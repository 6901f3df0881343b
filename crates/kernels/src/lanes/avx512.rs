//! 512-bit vectors with bf16 dot products.

#![allow(clippy::wildcard_imports)] // intrinsics say what they are

use std::arch::x86_64::*;
use std::mem::transmute;

use half::bf16;

use super::{Kernel, Lanes};

/// Proof of AVX-512 F, BW, VL, DQ and BF16.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512 F, BW, VL, DQ and BF16.
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// An intrinsic on values.
macro_rules! op {
    ($op:expr) => {
        // SAFETY: `Avx512` is only made where the processor has the feature; a call on values has no other demand.
        unsafe { $op }
    };
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[inline(never)]
fn go<K: Kernel>(lanes: Avx512, kernel: K) -> K::Output {
    kernel.run(lanes)
}

impl Lanes for Avx512 {
    type V = __m512;
    const N: usize = 16;
    const ACROSS: usize = 4;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        op!(go(self, kernel))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: the caller's promise, and `self`.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m512) {
        // SAFETY: the caller's promise, and `self`.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        // SAFETY: the caller's promise, and `self`.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, v: __m512) {
        // SAFETY: the caller's promise, and `self`; both types are 256 plain bits.
        unsafe { _mm256_storeu_si256(to.cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))) }
    }
    #[inline(always)]
    unsafe fn transpose(self, to: *mut f32, to_stride: usize, from: *const f32, from_stride: usize) {
        // SAFETY: the caller's promise, and `self`.
        unsafe {
            let mut rows = [_mm512_setzero_ps(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.add(i * from_stride));
            }
            // Within each 128-bit quarter: 4 by 4 transposes of rows 4i..4i+4.
            let mut quads = rows;
            for i in (0..16).step_by(4) {
                let (a, b) =
                    (_mm512_unpacklo_ps(rows[i], rows[i + 1]), _mm512_unpackhi_ps(rows[i], rows[i + 1]));
                let (c, d) = (
                    _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]),
                    _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]),
                );
                quads[i] = _mm512_shuffle_ps::<0b01_00_01_00>(a, c);
                quads[i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(a, c);
                quads[i + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(b, d);
                quads[i + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(b, d);
            }
            // Then the quarters themselves: a 4 by 4 transpose of 128-bit pieces.
            for j in 0..4 {
                let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(quads[j], quads[4 + j]);
                let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(quads[j], quads[4 + j]);
                let low2 = _mm512_shuffle_f32x4::<0b10_00_10_00>(quads[8 + j], quads[12 + j]);
                let high2 = _mm512_shuffle_f32x4::<0b11_01_11_01>(quads[8 + j], quads[12 + j]);
                let out = [
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(low, low2),
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(high, high2),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(low, low2),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(high, high2),
                ];
                for (quarter, &row) in out.iter().enumerate() {
                    _mm512_storeu_ps(to.add((4 * quarter + j) * to_stride), row);
                }
            }
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        op!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        op!(_mm512_roundscale_ps::<0>(a))
    }
    #[inline(always)]
    fn scale2(self, a: __m512, n: __m512) -> __m512 {
        op!(_mm512_scalef_ps(a, n))
    }
    #[inline(always)]
    fn first(self, n: usize, a: __m512, b: __m512) -> __m512 {
        let mask = ((1u32 << n) - 1) as __mmask16;
        op!(_mm512_mask_blend_ps(mask, b, a))
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        op!(_mm512_reduce_add_ps(v))
    }
    #[inline(always)]
    fn peak(self, v: __m512) -> f32 {
        op!(_mm512_reduce_max_ps(v))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m512, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_dpbf16_ps(acc, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)))
    }
    #[inline(always)]
    fn pair(self, low: __m512, high: __m512) -> __m512 {
        op!({
            let low = _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(low)));
            let high = _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(high)));
            _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
        })
    }
}
