//! `AdamW` (Loshchilov and Hutter, 2019), as `torch.optim.AdamW` computes it: `m = beta1 m + (1 - beta1) g`,
//! `v = beta2 v + (1 - beta2) g^2`, `p = p - lr weight_decay p - lr m' / (sqrt(v') + eps)`, where
//! `m' = m / (1 - beta1^t)` and `v' = v / (1 - beta2^t)`.

use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool::{Rows, for_each_chunk, for_each_rows};

/// The constants of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay: `p -= lr * weight_decay * p`.
    pub weight_decay: f32,
    /// Count of steps, from 1, for the bias correction.
    pub step: u64,
    /// The gradients are multiplied by this first (clipping).
    pub gradient_scale: f32,
}

impl AdamW {
    /// `lr / (1 - beta1^t)`, `1 / sqrt(1 - beta2^t)` and `1 - lr weight_decay`.
    pub(crate) fn factors(&self) -> (f32, f32, f32) {
        let correction1 = 1.0 - f64::from(self.beta1).powf(self.step as f64);
        let correction2 = 1.0 - f64::from(self.beta2).powf(self.step as f64);
        let size = f64::from(self.lr) / correction1;
        (size as f32, (1.0 / correction2.sqrt()) as f32, 1.0 - self.lr * self.weight_decay)
    }
}

/// Values of a job.
const JOB: usize = 64 * 1024;
/// Neighbours that are left out together when nothing would change them.
const SPAN: usize = 128;

/// Updates `parameters`, `first` and `second` moments in place. All slices have one length.
pub fn step(parameters: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32], adamw: &AdamW) {
    let parts = (Rows::new(parameters, 1), Rows::new(first, 1), Rows::new(second, 1));
    for_each_rows(gradients.len(), JOB, parts, |range, (parameters, first, second)| {
        dispatch(Step { parameters, gradients: &gradients[range], first, second, adamw });
    });
}

/// Sum of squares in f64, in a fixed order.
pub fn square_sum(values: &[f32]) -> f64 {
    let mut sums = vec![0.0; values.len().div_ceil(JOB)];
    for_each_chunk(&mut sums, 1, |i, sum| {
        sum[0] = dispatch(SquareSum(&values[i * JOB..values.len().min((i + 1) * JOB)]));
    });
    sums.iter().sum()
}

struct Step<'a> {
    parameters: &'a mut [f32],
    gradients: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    adamw: &'a AdamW,
}

impl Kernel for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { parameters, gradients, first, second, adamw } = self;
        let (size, root, keep) = adamw.factors();
        let (minus_size, root, keep) = (l.splat(-size), l.splat(root), l.splat(keep));
        let (beta1, rest1) = (l.splat(adamw.beta1), l.splat(1.0 - adamw.beta1));
        let (beta2, rest2) = (l.splat(adamw.beta2), l.splat(1.0 - adamw.beta2));
        let (eps, scale) = (l.splat(adamw.eps), l.splat(adamw.gradient_scale));
        let moments = first.chunks_mut(SPAN).zip(second.chunks_mut(SPAN));
        for ((p, g), (m, v)) in parameters.chunks_mut(SPAN).zip(gradients.chunks(SPAN)).zip(moments) {
            // Most rows of an embedding are of tokens that no text had so far: the formulas leave them as they are.
            if adamw.weight_decay == 0.0 && zero(g) && zero(m) && zero(v) {
                continue;
            }
            let moments = m.chunks_mut(L::N).zip(v.chunks_mut(L::N));
            for ((p, g), (m, v)) in p.chunks_mut(L::N).zip(g.chunks(L::N)).zip(moments) {
                let g = l.mul(l.read(g), scale);
                let first = l.fma(beta1, l.read(m), l.mul(rest1, g));
                let second = l.fma(beta2, l.read(v), l.mul(l.mul(rest2, g), g));
                let change = l.div(first, l.fma(l.sqrt(second), root, eps));
                l.write(p, l.fma(minus_size, change, l.mul(l.read(p), keep)));
                l.write(m, first);
                l.write(v, second);
            }
        }
    }
}

/// Whether all values are zero.
#[inline(always)]
fn zero(values: &[f32]) -> bool {
    values.iter().fold(0, |bits, value| bits | value.to_bits() << 1) == 0
}

/// Sums with as many accumulators on every instruction set, so that all of them return the same bits.
struct SquareSum<'a>(&'a [f32]);

impl Kernel for SquareSum<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> f64 {
        let mut sums = [0.0f64; 32];
        for values in self.0.chunks(sums.len()) {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        sums.iter().sum()
    }
}

/// The plain versions.
pub mod reference {
    use super::AdamW;

    /// See [`super::step`].
    pub fn step(
        parameters: &mut [f32],
        gradients: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        adamw: &AdamW,
    ) {
        let (size, root, keep) = adamw.factors();
        let AdamW { beta1, beta2, eps, gradient_scale, .. } = *adamw;
        let moments = first.iter_mut().zip(second.iter_mut());
        for ((p, g), (m, v)) in parameters.iter_mut().zip(gradients).zip(moments) {
            let g = g * gradient_scale;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *p = *p * keep - size * *m / (v.sqrt() * root + eps);
        }
    }

    /// See [`super::square_sum`].
    pub fn square_sum(values: &[f32]) -> f64 {
        values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADAMW: AdamW = AdamW {
        lr: 2e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 1,
        gradient_scale: 1.0,
    };

    /// `size` is that of terms which may cancel.
    fn close(found: &[f32], exact: &[f32], size: f32) -> Result<(), TestCaseError> {
        for (found, exact) in found.iter().zip(exact) {
            prop_assert!((found - exact).abs() <= 1e-6 * (exact.abs() + size), "{found}, expected {exact}");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn fast_is_the_reference_over_several_steps(
            start in prop::collection::vec(-1.0f32..1.0, 1..200),
            gradients in prop::collection::vec(-0.1f32..0.1, 200),
            gradient_scale in 0.1f32..1.0,
        ) {
            let gradients = &gradients[..start.len()];
            let zeros = vec![0.0; start.len()];
            let (mut p, mut m, mut v) = (start.clone(), zeros.clone(), zeros.clone());
            let (mut exact_p, mut exact_m, mut exact_v) = (start, zeros.clone(), zeros);
            for step_index in 1..6 {
                let adamw = AdamW { step: step_index, gradient_scale, ..ADAMW };
                step(&mut p, gradients, &mut m, &mut v, &adamw);
                reference::step(&mut exact_p, gradients, &mut exact_m, &mut exact_v, &adamw);
            }
            close(&p, &exact_p, 1e-3)?;
            close(&m, &exact_m, 1e-6)?;
            close(&v, &exact_v, 1e-6)?;
        }

        #[test]
        fn square_sum_is_the_reference(values in prop::collection::vec(-10.0f32..10.0, 0..500)) {
            let (found, exact) = (square_sum(&values), reference::square_sum(&values));
            prop_assert!((found - exact).abs() <= 1e-13 * exact, "{found}, expected {exact}");
        }
    }

    #[test]
    fn a_first_step_is_the_formula_in_f64() {
        let (mut p, mut m, mut v) = ([0.5f32], [0.0], [0.0]);
        step(&mut p, &[-0.25], &mut m, &mut v, &ADAMW);
        // With the bias corrections the first step is lr g / (|g| + eps).
        let expected = 0.5 - 2e-4 * 0.01 * 0.5 + 2e-4 * 0.25 / (0.25 + 1e-8);
        assert!((f64::from(p[0]) - expected).abs() < 1e-7, "{}, expected {expected}", p[0]);
        let (first, second) = (-0.25 * (1.0 - f64::from(0.9f32)), 0.0625 * (1.0 - f64::from(0.999f32)));
        assert!((f64::from(m[0]) - first).abs() < 1e-8, "{}, expected {first}", m[0]);
        assert!((f64::from(v[0]) - second).abs() < 1e-11, "{}, expected {second}", v[0]);
    }

    #[test]
    fn values_without_gradients_change_by_decay_alone() {
        let mut gradients = vec![0.0f32; 1000];
        gradients[300] = 0.5;
        for weight_decay in [0.0, 0.01] {
            let adamw = AdamW { weight_decay, ..ADAMW };
            let (mut p, mut m, mut v) = (vec![0.5f32; 1000], vec![0.0; 1000], vec![0.0; 1000]);
            let (mut exact, mut exact_m, mut exact_v) = (p.clone(), m.clone(), v.clone());
            // The first step's moments go on to act when the gradient has gone.
            for gradients in [&gradients, &vec![0.0; 1000]] {
                step(&mut p, gradients, &mut m, &mut v, &adamw);
                reference::step(&mut exact, gradients, &mut exact_m, &mut exact_v, &adamw);
            }
            close(&p, &exact, 1e-3).unwrap();
            assert_eq!(p[0].to_bits() == 0.5f32.to_bits(), weight_decay == 0.0);
            assert!((p[300] - p[0]).abs() > 3e-4, "{}", p[300]);
        }
    }

    #[test]
    fn many_values_are_shared_out_and_stay_the_same_bits() {
        let values: Vec<f32> = (0..300_001).map(|i| (i % 1013) as f32 * 0.01 - 5.0).collect();
        assert_eq!(square_sum(&values).to_bits(), crate::pool::alone(|| square_sum(&values)).to_bits());
        let exact = reference::square_sum(&values);
        assert!((square_sum(&values) - exact).abs() <= 1e-12 * exact);
        let run = || {
            let (mut p, mut m, mut v) = (values.clone(), values.clone(), vec![0.5; values.len()]);
            step(&mut p, &values, &mut m, &mut v, &ADAMW);
            (p, m, v)
        };
        let all = run();
        assert_eq!(all, crate::pool::alone(run));
        let (mut p, mut m, mut v) = (values.clone(), values.clone(), vec![0.5; values.len()]);
        reference::step(&mut p, &values, &mut m, &mut v, &ADAMW);
        close(&all.0, &p, 1e-3).unwrap();
    }
}
