//! Arrays that the compiler may or may not turn into vectors: the plain path.

use half::bf16;

use super::{Kernel, Lanes};

const N: usize = 8;
/// Adding it leaves a float's nearest integer in the low bits of the mantissa.
const MAGIC: f32 = 12_582_912.0;

/// Needs nothing of the processor.
#[derive(Clone, Copy)]
pub(super) struct Portable;

type V = [f32; N];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn low(word: f32) -> f32 {
    f32::from_bits(word.to_bits() << 16)
}

#[inline(always)]
fn high(word: f32) -> f32 {
    f32::from_bits(word.to_bits() & 0xffff_0000)
}

impl Lanes for Portable {
    type V = V;
    const N: usize = N;
    const ACROSS: usize = 1;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        fn go<K: Kernel>(kernel: K) -> K::Output {
            kernel.run(Portable)
        }
        go(kernel)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: V) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> V {
        // SAFETY: the caller's promise.
        let values = unsafe { from.cast::<[bf16; N]>().read_unaligned() };
        values.map(bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, v: V) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[bf16; N]>().write_unaligned(v.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn transpose(self, to: *mut f32, to_stride: usize, from: *const f32, from_stride: usize) {
        for i in 0..N {
            for j in 0..N {
                // SAFETY: the caller's promise.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self, a: V) -> V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn round(self, a: V) -> V {
        a.map(|a| (a + MAGIC) - MAGIC)
    }
    #[inline(always)]
    fn scale2(self, a: V, n: V) -> V {
        zip(a, n, |a, n| a * f32::from_bits((n + MAGIC).to_bits().wrapping_add(127) << 23))
    }
    #[inline(always)]
    fn first(self, n: usize, a: V, b: V) -> V {
        std::array::from_fn(|i| if i < n { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sum(self, v: V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    fn peak(self, v: V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn dot_pairs(self, acc: V, a: V, b: V) -> V {
        std::array::from_fn(|i| acc[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i]))
    }
    #[inline(always)]
    fn pair(self, low: V, high: V) -> V {
        zip(low, high, |low, high| {
            let bits = |v: f32| u32::from(bf16::from_f32(v).to_bits());
            f32::from_bits(bits(low) | bits(high) << 16)
        })
    }
}
