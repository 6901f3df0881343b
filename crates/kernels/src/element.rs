//! The element types of stored activations and weights.

use half::bf16;

use crate::linear::kernel::Compute;
use crate::pool;

/// How activations are stored and multiplied: `f32` (exact) or [`bf16`] (half the memory, f32 accumulation).
pub trait Element: Compute + Send + Sync + PartialEq + std::fmt::Debug + 'static {
    /// The name used in reports.
    const NAME: &'static str;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
}

/// Copies with rounding.
/// # Panics
/// When the slices differ in length.
pub fn round<E: Element>(to: &mut [E], from: &[f32]) {
    assert_eq!(to.len(), from.len());
    pool::for_each_chunk(to, 1 << 16, |i, to| (E::kernels().narrow)(to, &from[i << 16..][..to.len()]));
}

/// Copies as f32.
/// # Panics
/// When the slices differ in length.
pub fn widen<E: Element>(to: &mut [f32], from: &[E]) {
    assert_eq!(to.len(), from.len());
    pool::for_each_chunk(to, 1 << 16, |i, to| {
        (E::kernels().widen)(to, &from[i << 16..][..to.len()]);
    });
}
