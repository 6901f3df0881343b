//! The factor of the loss that keeps gradients within f16 (Micikevicius et al., 2018).

use kernels::Backend;
use serde::{Deserialize, Serialize};

/// Where the factor begins.
const FIRST: f32 = 32_768.0;
/// Steps without overflow after which it doubles.
const PATIENCE: u32 = 500;
/// Beyond this f32 sums might overflow.
const MOST: f32 = 16_777_216.0;

/// A power of two that every gradient of a step is multiplied by, until the optimizer divides by it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor.
    pub factor: f32,
    /// Steps without overflow since it last changed.
    pub steps: u32,
}

impl LossScale {
    /// 1 for good where the device's activations have the exponents of f32.
    pub(crate) fn new<B: Backend>(backend: &B) -> Self {
        Self { factor: if backend.scales_loss() { FIRST } else { 1.0 }, steps: 0 }
    }

    /// The step overflowed and is taken again with half the factor, unless that is 1.
    pub(crate) fn halve(&mut self) -> bool {
        let can = self.factor > 1.0;
        if can {
            *self = Self { factor: self.factor / 2.0, steps: 0 };
        }
        can
    }

    /// A step did not overflow.
    pub(crate) fn went_well<B: Backend>(&mut self, backend: &B) {
        self.steps += 1;
        if backend.scales_loss() && self.steps >= PATIENCE {
            *self = Self { factor: (2.0 * self.factor).min(MOST), steps: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)] // Powers of two.

    use kernels::Cpu;

    use super::*;

    #[test]
    fn it_halves_down_to_one_and_stays_one_where_nothing_is_scaled() {
        let mut scale = LossScale { factor: 4.0, steps: 9 };
        assert!(scale.halve() && scale == LossScale { factor: 2.0, steps: 0 });
        assert!(scale.halve() && !scale.halve());
        let backend = Cpu::<f32>::new();
        let mut plain = LossScale::new(&backend);
        (0..2 * PATIENCE).for_each(|_| plain.went_well(&backend));
        assert_eq!(plain.factor, 1.0);
    }
}
