//! AdamW with a learning-rate schedule and clipping over one arena of parameters.

use std::ops::Range;

use kernels::{AdamW, Backend};
use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It does not.
    Constant,
    /// In a straight line to zero.
    Linear,
    /// Half a cosine to zero.
    Cosine,
}

/// The optimizer's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimizerOptions {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay.
    pub weight_decay: f32,
    /// The gradient is scaled down to this norm when it is larger.
    pub clip: f32,
    /// Share of all steps in which the learning rate rises from zero.
    pub warm_up: f32,
    /// What follows.
    pub schedule: Schedule,
}

impl OptimizerOptions {
    /// The learning rate's factor of step `step` (from 0) of `total`.
    pub fn factor(&self, step: u64, total: u64) -> f32 {
        let (step, total) = (step as f32, total.max(1) as f32);
        let warm = (self.warm_up * total).floor();
        if step < warm {
            return (step + 1.0) / (warm + 1.0);
        }
        let done = ((step - warm) / (total - warm).max(1.0)).min(1.0);
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f32::consts::PI * done).cos()),
        }
    }
}

/// Parameters, their gradients and moments on the device.
pub(crate) struct Optimizer<B: Backend> {
    pub(crate) parameters: B::Wide,
    pub(crate) gradients: B::Wide,
    pub(crate) first: B::Wide,
    pub(crate) second: B::Wide,
    pub(crate) steps: u64,
    len: usize,
    /// Stretches of the parameters, and what their learning rate is in that of the step.
    rates: Vec<(Range<usize>, f32)>,
}

impl<B: Backend> Optimizer<B> {
    pub(crate) fn new(backend: &B, values: &[f32]) -> Self {
        let mut parameters = backend.wide(values.len());
        backend.upload(&mut parameters, 0, values);
        let zeros = || backend.wide(values.len());
        let (len, rates) = (values.len(), vec![(0..values.len(), 1.0)]);
        Self { parameters, gradients: zeros(), first: zeros(), second: zeros(), steps: 0, len, rates }
    }

    /// Gives stretches of the parameters, which together are all of them, learning rates of their own.
    pub(crate) fn set_rates(&mut self, rates: impl Iterator<Item = (Range<usize>, f32)>) {
        self.rates.clear();
        for (range, rate) in rates.filter(|(range, _)| !range.is_empty()) {
            match self.rates.last_mut() {
                // One call where one is enough.
                Some((last, same)) if same.to_bits() == rate.to_bits() && last.end == range.start => {
                    last.end = range.end;
                }
                _ => self.rates.push((range, rate)),
            }
        }
    }

    pub(crate) fn clear_gradients(&mut self, backend: &B) {
        backend.clear(&mut self.gradients, self.len);
    }

    /// The norm of the gradients, which are `scale` times too large; not finite where one has overflowed.
    pub(crate) fn norm(&self, backend: &B, scale: f32) -> f32 {
        (backend.square_sum(&self.gradients).sqrt() / f64::from(scale)) as f32
    }

    /// Clips gradients that are `scale` times too large to their `norm`, steps, and returns the learning rate.
    pub(crate) fn step(
        &mut self,
        backend: &B,
        options: &OptimizerOptions,
        (norm, scale): (f32, f32),
        highest_lr: f32,
        total: u64,
    ) -> f32 {
        let lr = highest_lr * options.factor(self.steps, total);
        self.steps += 1;
        let step = AdamW {
            lr,
            beta1: options.beta1,
            beta2: options.beta2,
            eps: options.eps,
            weight_decay: options.weight_decay,
            step: self.steps,
            // As torch.nn.utils.clip_grad_norm_ does it.
            gradient_scale: (options.clip / (norm + 1e-6)).min(1.0) / scale,
        };
        let Self { parameters, gradients, first, second, .. } = self;
        for (range, rate) in &self.rates {
            let step = AdamW { lr: rate * lr, ..step };
            backend.adamw(parameters, gradients, first, second, range.clone(), &step);
        }
        lr
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)]

    use super::*;

    fn options(schedule: Schedule, warm_up: f32) -> OptimizerOptions {
        OptimizerOptions {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            warm_up,
            schedule,
        }
    }

    #[test]
    fn stretches_have_rates_of_their_own() {
        let backend = kernels::Cpu::<f32>::new();
        let mut optimizer = Optimizer::new(&backend, &[0.0; 6]);
        backend.upload(&mut optimizer.gradients, 0, &[1.0; 6]);
        optimizer.set_rates([(0..2, 0.5), (2..3, 0.5), (3..3, 9.0), (3..6, 3.0)].into_iter());
        assert_eq!(optimizer.rates, [(0..3, 0.5), (3..6, 3.0)]);
        optimizer.step(&backend, &options(Schedule::Constant, 0.0), (1.0, 1.0), 0.01, 10);
        let mut values = [0.0; 6];
        backend.download(&mut values, &optimizer.parameters, 0);
        for (value, rate) in values.into_iter().zip([0.5, 0.5, 0.5, 3.0, 3.0, 3.0]) {
            assert!((value + 0.01 * rate).abs() < 1e-6, "the first step of AdamW is the rate: {values:?}");
        }
    }

    #[test]
    fn schedules_start_rise_and_end_where_they_should() {
        let linear = options(Schedule::Linear, 0.0);
        assert_eq!(linear.factor(0, 10), 1.0);
        assert!((linear.factor(9, 10) - 0.1).abs() < 1e-6);
        let cosine = options(Schedule::Cosine, 0.1);
        assert!(cosine.factor(0, 100) < 0.1);
        assert_eq!(cosine.factor(10, 100), 1.0);
        assert!((cosine.factor(55, 100) - 0.5).abs() < 1e-6);
        assert!(cosine.factor(100, 100) < 1e-6);
        assert_eq!(options(Schedule::Constant, 0.0).factor(7, 10), 1.0);
    }
}
