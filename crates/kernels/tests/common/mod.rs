//! What the tests share.

#![allow(unreachable_pub)] // a module of each test

use kernels::Element;

/// A small generator of values in -0.5..0.5.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5
    }
    pub fn vec<E: Element>(&mut self, len: usize) -> Vec<E> {
        (0..len).map(|_| E::from_f32(self.next())).collect()
    }
}

/// Each value within its own tolerance.
pub fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (at, ((found, expected), tolerance)) in found.iter().zip(expected).zip(tolerance).enumerate() {
        let near = (found - expected).abs() <= tolerance + 1e-30;
        assert!(near, "{name}[{at}] differs: {found}, expected {expected} within {tolerance}");
    }
}
