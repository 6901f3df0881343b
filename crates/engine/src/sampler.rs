//! Which examples a step sees: a pure function of the seed and the step, so that a resumed run goes on unchanged.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// What is done about labels that are much rarer than others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Nothing: every example counts once an epoch.
    #[default]
    None,
    /// An example's loss is weighted by the inverse root of its label's share.
    Weight,
    /// Examples are drawn with that probability instead, with replacement.
    Sample,
}

impl Balance {
    /// The factor of each example, `1 / sqrt(share of its label)`, scaled to a mean of one.
    pub fn factors(labels: &[usize]) -> Vec<f32> {
        let mut counts = vec![0.0f64; labels.iter().max().map_or(0, |max| max + 1)];
        for &label in labels {
            counts[label] += 1.0;
        }
        let raw: Vec<f64> = labels.iter().map(|&label| 1.0 / counts[label].sqrt()).collect();
        let mean = raw.iter().sum::<f64>() / raw.len().max(1) as f64;
        raw.iter().map(|factor| (factor / mean) as f32).collect()
    }
}

/// Deals examples to steps.
#[derive(Debug, Clone)]
pub struct Sampler {
    examples: usize,
    batch: usize,
    seed: u64,
    /// Running sums of the drawing weights; empty: each example once an epoch.
    cumulative: Vec<f64>,
    order: Vec<u32>,
    epoch: Option<u64>,
}

impl Sampler {
    /// `draw` holds each example's drawing weight, or nothing for plain shuffling.
    pub fn new(examples: usize, batch: usize, seed: u64, draw: Option<&[f32]>) -> Self {
        let mut sum = 0.0;
        let running = |weight: &f32| {
            sum += f64::from(*weight);
            sum
        };
        let cumulative = draw.map_or_else(Vec::new, |weights| weights.iter().map(running).collect());
        Self { examples, batch: batch.max(1), seed, cumulative, order: Vec::new(), epoch: None }
    }

    /// Steps that an epoch takes; the last may be smaller.
    pub fn steps_per_epoch(&self) -> u64 {
        self.examples.div_ceil(self.batch) as u64
    }

    /// The examples of step `step` (from 0).
    pub fn batch(&mut self, step: u64) -> &[u32] {
        let per_epoch = self.steps_per_epoch().max(1);
        let (epoch, within) = (step / per_epoch, (step % per_epoch) as usize);
        if self.epoch != Some(epoch) {
            self.deal(epoch);
        }
        let start = within * self.batch;
        &self.order[start..(start + self.batch).min(self.examples)]
    }

    fn deal(&mut self, epoch: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch + 1);
        self.order.clear();
        if let Some(&total) = self.cumulative.last() {
            for _ in 0..self.examples {
                let at = rng.random_range(0.0..total);
                let index = self.cumulative.partition_point(|&sum| sum <= at);
                self.order.push(index.min(self.examples - 1) as u32);
            }
        } else {
            self.order.extend(0..self.examples as u32);
            self.order.shuffle(&mut rng);
        }
        self.epoch = Some(epoch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_deals_each_example_once_and_epochs_differ() {
        let mut sampler = Sampler::new(10, 4, 7, None);
        assert_eq!(sampler.steps_per_epoch(), 3);
        let mut epoch =
            |first: u64| (first..first + 3).flat_map(|s| sampler.batch(s).to_vec()).collect::<Vec<_>>();
        let (one, two) = (epoch(0), epoch(3));
        assert_ne!(one, two);
        assert_eq!(epoch(0), one, "going back deals the same again");
        let mut sorted = one;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn drawing_follows_the_weights() {
        let mut sampler = Sampler::new(1000, 1000, 1, Some(&[vec![1.0; 500], vec![3.0; 500]].concat()));
        let heavy = sampler.batch(0).iter().filter(|&&i| i >= 500).count();
        assert!((690..810).contains(&heavy), "{heavy} of 1000 drawn from the half that weighs 3 of 4");
    }

    #[test]
    fn factors_favour_rare_labels_and_average_to_one() {
        let factors = Balance::factors(&[0, 0, 0, 0, 1]);
        assert!((factors.iter().sum::<f32>() / 5.0 - 1.0).abs() < 1e-6);
        assert!((factors[4] / factors[0] - 2.0).abs() < 1e-6);
    }
}
