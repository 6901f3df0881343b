//! 256-bit vectors with fused multiply-add.

#![allow(clippy::wildcard_imports)] // intrinsics say what they are

use std::arch::x86_64::*;

use half::bf16;

use super::{Kernel, Lanes};

/// Proof of AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2 and FMA.
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// An intrinsic on values.
macro_rules! op {
    ($op:expr) => {
        // SAFETY: `Avx2` is only made where the processor has the feature; a call on values has no other demand.
        unsafe { $op }
    };
}

#[target_feature(enable = "avx2,fma")]
#[inline(never)]
fn go<K: Kernel>(lanes: Avx2, kernel: K) -> K::Output {
    kernel.run(lanes)
}

/// The bits of each lane rounded to bf16, in the upper halves; the lower halves are rubbish.
#[inline(always)]
fn rounded(v: __m256) -> __m256i {
    op!({
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        _mm256_blendv_epi8(up, _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000)), nan)
    })
}

/// Folds the upper half onto the lower, twice.
macro_rules! fold {
    ($v:expr, $op:ident, $op1:ident) => {
        op!({
            let half = $op(_mm256_castps256_ps128($v), _mm256_extractf128_ps::<1>($v));
            let pair = $op(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32($op1(pair, _mm_movehdup_ps(pair)))
        })
    };
}

impl Lanes for Avx2 {
    type V = __m256;
    const N: usize = 8;
    const ACROSS: usize = 2;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        op!(go(self, kernel))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        op!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: the caller's promise, and `self`.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m256) {
        // SAFETY: the caller's promise, and `self`.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        // SAFETY: the caller's promise, and `self`.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, v: __m256) {
        // SAFETY: the caller's promise, and `self`.
        unsafe {
            let bits = _mm256_srli_epi32::<16>(rounded(v));
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256::<1>(bits));
            _mm_storeu_si128(to.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, to: *mut f32, to_stride: usize, from: *const f32, from_stride: usize) {
        // SAFETY: the caller's promise, and `self`.
        unsafe {
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(from.add(i * from_stride));
            }
            // Within each 128-bit half: 4 by 4 transposes of rows 4i..4i+4.
            let mut quads = rows;
            for i in [0, 4] {
                let (a, b) =
                    (_mm256_unpacklo_ps(rows[i], rows[i + 1]), _mm256_unpackhi_ps(rows[i], rows[i + 1]));
                let (c, d) = (
                    _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]),
                    _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]),
                );
                quads[i] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
                quads[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
                quads[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
                quads[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
            }
            for j in 0..4 {
                let (upper, lower) = (quads[j], quads[4 + j]);
                _mm256_storeu_ps(to.add(j * to_stride), _mm256_permute2f128_ps::<0x20>(upper, lower));
                _mm256_storeu_ps(to.add((4 + j) * to_stride), _mm256_permute2f128_ps::<0x31>(upper, lower));
            }
        }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        op!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        op!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn scale2(self, a: __m256, n: __m256) -> __m256 {
        op!({
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        })
    }
    #[inline(always)]
    fn first(self, n: usize, a: __m256, b: __m256) -> __m256 {
        op!({
            let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), index);
            _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask))
        })
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        fold!(v, _mm_add_ps, _mm_add_ss)
    }
    #[inline(always)]
    fn peak(self, v: __m256) -> f32 {
        fold!(v, _mm_max_ps, _mm_max_ss)
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m256, a: __m256, b: __m256) -> __m256 {
        op!({
            let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let acc = _mm256_fmadd_ps(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
                acc,
            );
            let (a, b) = (_mm256_and_si256(a, high), _mm256_and_si256(b, high));
            _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), acc)
        })
    }
    #[inline(always)]
    fn pair(self, low: __m256, high: __m256) -> __m256 {
        op!({
            let low = _mm256_srli_epi32::<16>(rounded(low));
            _mm256_castsi256_ps(_mm256_blend_epi16::<0b1010_1010>(low, rounded(high)))
        })
    }
}
