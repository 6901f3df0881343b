//! Vectors of f32 lanes: an op is written once, generic over [`Lanes`], and compiled for each instruction set.
//!
//! An op is a [`Kernel`]; [`dispatch`] runs it with the lanes of [`isa::current`] inside a function that has the
//! instruction set switched on. For that to reach the intrinsics, `Kernel::run` and all it calls are
//! `#[inline(always)]` and use no closures.
//!
//! A *word* is what one multiply-add of a product consumes: one f32, or two bf16 that are neighbours along the
//! sum. Words travel as the bits of f32 lanes.

use std::any::TypeId;

use half::bf16;

use crate::{Element, Isa, isa};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// The most lanes that any vector has.
pub(crate) const MAX_LANES: usize = 16;

/// Values of `E` in a word.
pub(crate) const fn pack<E>() -> usize {
    size_of::<f32>() / size_of::<E>()
}

/// Rows of `width` values that make a job long enough to be worth a thread.
pub(crate) fn rows_per_job(width: usize) -> usize {
    (32 * 1024 / width.max(1)).max(1)
}

/// Code that runs once per instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Does the work. Mark implementations `#[inline(always)]`.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `kernel` with the widest lanes in use.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match isa::current() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this set is only reported when the processor has each of its features.
        Isa::Avx512Bf16 | Isa::Amx => unsafe { avx512::Avx512::new() }.outline(kernel),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2::Avx2::new() }.outline(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::Neon.outline(kernel),
        _ => portable::Portable.outline(kernel),
    }
}

/// A vector type and its arithmetic. A value of an implementing type is the proof that the processor has it.
pub(crate) trait Lanes: Copy {
    /// `N` lanes of f32.
    type V: Copy;
    /// Number of lanes, at most [`MAX_LANES`].
    const N: usize;
    /// Vectors across a block of accumulators of [`crate::attention`]'s products: what the registers hold.
    const ACROSS: usize;

    /// Runs `kernel` as a function of its own.
    fn outline<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `N` values are readable at `from`.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `N` values are writable at `to`.
    unsafe fn store(self, to: *mut f32, v: Self::V);
    /// # Safety
    /// `N` values are readable at `from`.
    unsafe fn load_bf16(self, from: *const bf16) -> Self::V;
    /// Rounds to nearest, ties to even.
    /// # Safety
    /// `N` values are writable at `to`.
    unsafe fn store_bf16(self, to: *mut bf16, v: Self::V);
    /// `to[j][i] = from[i][j]` for `N` by `N` words, with the strides of the rows.
    /// # Safety
    /// Those words are readable and writable, and do not overlap.
    unsafe fn transpose(self, to: *mut f32, to_stride: usize, from: *const f32, from_stride: usize);

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Nearest integers, for values below 2^22.
    fn round(self, a: Self::V) -> Self::V;
    /// `a 2^n` for integers `-126 <= n <= 127`.
    fn scale2(self, a: Self::V, n: Self::V) -> Self::V;
    /// The first `n` lanes of `a`, the others of `b`.
    fn first(self, n: usize, a: Self::V, b: Self::V) -> Self::V;
    /// Sum of the lanes, in a fixed order.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane.
    fn peak(self, v: Self::V) -> f32;
    /// Words of two: `acc + a.low b.low + a.high b.high`.
    fn dot_pairs(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Words of two from values, rounded: `low` and `high` of each lane.
    fn pair(self, low: Self::V, high: Self::V) -> Self::V;

    /// # Safety
    /// `N` values are readable at `from`.
    #[inline(always)]
    unsafe fn load_as<E: Element>(self, from: *const E) -> Self::V {
        if TypeId::of::<E>() == TypeId::of::<bf16>() {
            // SAFETY: the caller's promise; `E` is bf16.
            unsafe { self.load_bf16(from.cast()) }
        } else {
            assert!(TypeId::of::<E>() == TypeId::of::<f32>(), "elements are f32 or bf16");
            // SAFETY: the caller's promise; `E` is f32.
            unsafe { self.load(from.cast()) }
        }
    }

    /// # Safety
    /// `N` values are writable at `to`.
    #[inline(always)]
    unsafe fn store_as<E: Element>(self, to: *mut E, v: Self::V) {
        if TypeId::of::<E>() == TypeId::of::<bf16>() {
            // SAFETY: the caller's promise; `E` is bf16.
            unsafe { self.store_bf16(to.cast(), v) }
        } else {
            assert!(TypeId::of::<E>() == TypeId::of::<f32>(), "elements are f32 or bf16");
            // SAFETY: the caller's promise; `E` is f32.
            unsafe { self.store(to.cast(), v) }
        }
    }

    /// The first values of `from`; zero in the lanes past its end.
    #[inline(always)]
    fn read<E: Element>(self, from: &[E]) -> Self::V {
        if from.len() >= Self::N {
            // SAFETY: the length was just checked.
            return unsafe { self.load_as(from.as_ptr()) };
        }
        let mut full = [E::default(); MAX_LANES];
        full[..from.len()].copy_from_slice(from);
        // SAFETY: `full` holds at least `N` values.
        unsafe { self.load_as(full.as_ptr()) }
    }

    /// Writes the first values of `to`, as many as there are lanes or places.
    #[inline(always)]
    fn write<E: Element>(self, to: &mut [E], v: Self::V) {
        if to.len() >= Self::N {
            // SAFETY: the length was just checked.
            unsafe { self.store_as(to.as_mut_ptr(), v) };
            return;
        }
        let mut full = [E::default(); MAX_LANES];
        // SAFETY: `full` holds at least `N` values.
        unsafe { self.store_as(full.as_mut_ptr(), v) };
        let len = to.len();
        to.copy_from_slice(&full[..len]);
    }

    /// One step of a product over words of `E`.
    #[inline(always)]
    fn dot_words<E: Element>(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        if pack::<E>() == 2 { self.dot_pairs(acc, a, b) } else { self.fma(a, b, acc) }
    }

    /// `e^x` to about 1e-7; below -87.3 and above 88.3 it stays at the value there.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let x = self.min(self.splat(88.3), self.max(self.splat(-87.3), x));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts (Cody and Waite), so that n times the first is exact.
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        // The minimax polynomial of Cephes' expf.
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let p = self.fma(self.mul(r, r), p, self.add(r, self.splat(1.0)));
        self.scale2(p, n)
    }

    /// `1 / (1 + e^-x)`.
    #[inline(always)]
    fn sigmoid(self, x: Self::V) -> Self::V {
        let one = self.splat(1.0);
        self.div(one, self.add(one, self.exp(self.sub(self.splat(0.0), x))))
    }
}

#[cfg(test)]
mod tests;
