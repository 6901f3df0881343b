//! 128-bit vectors of Arm. The targets of this module have them always, so nothing needs to be asked.

#![allow(clippy::wildcard_imports)] // intrinsics say what they are

use std::arch::aarch64::*;

use half::bf16;

use super::{Kernel, Lanes};

/// An intrinsic on values.
macro_rules! op {
    ($op:expr) => {
        // SAFETY: every processor of these targets has NEON; a call on values has no other demand.
        unsafe { $op }
    };
}

/// Four lanes.
#[derive(Clone, Copy)]
pub(super) struct Neon;

/// The upper halves of words.
const HIGH: u32 = 0xffff_0000;

#[inline(always)]
fn bits(v: float32x4_t) -> uint32x4_t {
    op!(vreinterpretq_u32_f32(v))
}

#[inline(always)]
fn values(v: uint32x4_t) -> float32x4_t {
    op!(vreinterpretq_f32_u32(v))
}

/// The bits of each lane rounded to bf16, in the upper halves; the lower halves are rubbish.
#[inline(always)]
fn rounded(v: float32x4_t) -> uint32x4_t {
    op!({
        let odd = vandq_u32(vshrq_n_u32::<16>(bits(v)), vdupq_n_u32(1));
        let up = vaddq_u32(bits(v), vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        vbslq_u32(vceqq_f32(v, v), up, vorrq_u32(bits(v), vdupq_n_u32(0x0040_0000)))
    })
}

impl Lanes for Neon {
    type V = float32x4_t;
    const N: usize = 4;
    const ACROSS: usize = 4;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        fn go<K: Kernel>(kernel: K) -> K::Output {
            kernel.run(Neon)
        }
        go(kernel)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        op!(vdupq_n_f32(x))
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: float32x4_t) {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { values(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, v: float32x4_t) {
        // SAFETY: the caller's promise.
        unsafe { vst1_u16(to.cast(), vshrn_n_u32::<16>(rounded(v))) }
    }
    #[inline(always)]
    unsafe fn transpose(self, to: *mut f32, to_stride: usize, from: *const f32, from_stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let row = |i: usize| vld1q_f32(from.add(i * from_stride));
            let even = |a, b| vreinterpretq_f64_f32(vtrn1q_f32(a, b));
            let odd = |a, b| vreinterpretq_f64_f32(vtrn2q_f32(a, b));
            let (above, below) = ([row(0), row(1)], [row(2), row(3)]);
            let columns = [
                vtrn1q_f64(even(above[0], above[1]), even(below[0], below[1])),
                vtrn1q_f64(odd(above[0], above[1]), odd(below[0], below[1])),
                vtrn2q_f64(even(above[0], above[1]), even(below[0], below[1])),
                vtrn2q_f64(odd(above[0], above[1]), odd(below[0], below[1])),
            ];
            for (j, column) in columns.into_iter().enumerate() {
                vst1q_f32(to.add(j * to_stride), vreinterpretq_f32_f64(column));
            }
        }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        op!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: float32x4_t) -> float32x4_t {
        op!(vsqrtq_f32(a))
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        op!(vrndnq_f32(a))
    }
    #[inline(always)]
    fn scale2(self, a: float32x4_t, n: float32x4_t) -> float32x4_t {
        op!({
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        })
    }
    #[inline(always)]
    fn first(self, n: usize, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: four values are there to read.
        unsafe {
            let index = vld1q_u32([0, 1, 2, 3].as_ptr());
            vbslq_f32(vcltq_u32(index, vdupq_n_u32(n as u32)), a, b)
        }
    }
    #[inline(always)]
    fn sum(self, v: float32x4_t) -> f32 {
        op!({
            let pairs = vpaddq_f32(v, v);
            vgetq_lane_f32::<0>(pairs) + vgetq_lane_f32::<1>(pairs)
        })
    }
    #[inline(always)]
    fn peak(self, v: float32x4_t) -> f32 {
        op!(vmaxnmvq_f32(v))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!({
            let (a, b, high) = (bits(a), bits(b), vdupq_n_u32(HIGH));
            let acc = vfmaq_f32(acc, values(vshlq_n_u32::<16>(a)), values(vshlq_n_u32::<16>(b)));
            vfmaq_f32(acc, values(vandq_u32(a, high)), values(vandq_u32(b, high)))
        })
    }
    #[inline(always)]
    fn pair(self, low: float32x4_t, high: float32x4_t) -> float32x4_t {
        op!({
            let low = vshrq_n_u32::<16>(rounded(low));
            values(vbslq_u32(vdupq_n_u32(HIGH), rounded(high), low))
        })
    }
}
