//! A linear head on a frozen model's features: softmax regression with an L2 penalty.
//!
//! The penalised loss is `sum_i weight_i (-ln p_i) + |W|^2 / (2 C)`, on features scaled to unit length and
//! standardised, with `W` in those units and a free bias. It is convex; L-BFGS (Liu and Nocedal, 1989) finds its
//! minimum from any start.

use std::collections::VecDeque;

use kernels::linear::{self, Layer, PackedMatrix, Target};
use kernels::pool;

/// `logits = W f + b`, or `W f / |f| + b`.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// `(labels, width)`.
    pub weight: Vec<f32>,
    /// `(labels)`.
    pub bias: Vec<f32>,
    /// Whether features are scaled to unit length: those of a frozen model are; where the body trained too, it has
    /// learnt their length.
    pub unit: bool,
}

/// Features with their labels, ready to fit heads on.
pub struct HeadProblem {
    /// Standardised `(rows, width)`.
    features: Vec<f32>,
    labels: Vec<usize>,
    weights: Vec<f32>,
    classes: usize,
    mean: Vec<f32>,
    scale: Vec<f32>,
}

/// A head in the units of its problem, from which another fit may start.
#[derive(Debug, Clone)]
pub struct HeadFit {
    /// `(classes, width + 1)`: weights, then the bias, of each class.
    values: Vec<f32>,
}

/// Iterations at most.
const MOST_STEPS: usize = 300;
/// The minimum is found when a step gains less than this share of the loss.
const TOLERANCE: f64 = 1e-4;
/// Pairs of steps and gradient changes that stand for the curvature.
const MEMORY: usize = 10;

impl Head {
    /// A head that has learnt nothing, for features as they come.
    pub fn zero(classes: usize, width: usize) -> Self {
        Self { weight: vec![0.0; classes * width], bias: vec![0.0; classes], unit: false }
    }

    /// The same for features as they come, when they are about as long as `features` are on average.
    #[must_use]
    pub fn for_length_of(self, features: &[f32]) -> Self {
        let Self { mut weight, bias, unit } = self;
        if unit {
            let rows = features.chunks_exact(weight.len() / bias.len());
            let length = rows.clone().map(norm).sum::<f32>() / rows.len() as f32;
            for weight in &mut weight {
                *weight /= length;
            }
        }
        Self { weight, bias, unit: false }
    }

    /// Values in all.
    pub fn values(&self) -> usize {
        self.weight.len() + self.bias.len()
    }

    /// `ln P(label | features)` of every label.
    pub fn log_probs(&self, features: &[f32]) -> Vec<f32> {
        if !self.unit {
            return Self::log_softmax(&self.weight, &self.bias, features);
        }
        let length = norm(features);
        let unit: Vec<f32> = features.iter().map(|value| value / length).collect();
        Self::log_softmax(&self.weight, &self.bias, &unit)
    }

    /// `ln softmax(W f + b)`.
    pub(crate) fn log_softmax(weight: &[f32], bias: &[f32], features: &[f32]) -> Vec<f32> {
        let row = |(weight, bias): (&[f32], &f32)| dot(weight, features) + bias;
        let logits: Vec<f32> = weight.chunks_exact(features.len()).zip(bias).map(row).collect();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
        logits.iter().map(|logit| logit - max - sum.ln()).collect()
    }
}

impl HeadProblem {
    /// `features` are `(rows, width)`, one row for each label; `weights` are factors of the rows' losses.
    ///
    /// # Panics
    /// When the lengths do not fit together.
    pub fn new(features: &[f32], labels: &[usize], weights: &[f32], classes: usize) -> Self {
        let width = features.len() / labels.len();
        assert!(labels.len() == weights.len() && labels.iter().all(|&label| label < classes));
        let unit: Vec<f32> = features
            .chunks_exact(width)
            .flat_map(|row| {
                let length = norm(row);
                row.iter().map(move |value| value / length)
            })
            .collect();
        let rows = labels.len() as f64;
        let moments = (0..width).map(|c| {
            let column = || unit.iter().skip(c).step_by(width).map(|&value| f64::from(value));
            let mean = column().sum::<f64>() / rows;
            let variance = column().map(|value| (value - mean).powi(2)).sum::<f64>() / rows;
            // A column that never changes says nothing, and must not be divided by zero.
            (mean as f32, if variance > 1e-12 { 1.0 / variance.sqrt() as f32 } else { 0.0 })
        });
        let (mean, scale): (Vec<f32>, Vec<f32>) = moments.unzip();
        let mut features = unit;
        for row in features.chunks_exact_mut(width) {
            for ((value, mean), scale) in row.iter_mut().zip(&mean).zip(&scale) {
                *value = (*value - mean) * scale;
            }
        }
        Self { features, labels: labels.to_vec(), weights: weights.to_vec(), classes, mean, scale }
    }

    /// The head with the smallest penalised loss, searched from `start` on; `None` when `goes_on`, asked before each
    /// step, says no.
    pub fn fit(&self, c: f64, start: Option<&HeadFit>, goes_on: &mut dyn FnMut() -> bool) -> Option<HeadFit> {
        let zero = || HeadFit { values: vec![0.0; self.classes * (self.width() + 1)] };
        let mut at = start.cloned().unwrap_or_else(zero).values;
        let mut products = Products::new(self);
        let (mut loss, mut gradient) = self.loss(&mut products, &at, c);
        let mut memory: VecDeque<(Vec<f32>, Vec<f32>, f64)> = VecDeque::new();
        for _ in 0..MOST_STEPS {
            if !goes_on() {
                return None;
            }
            let direction = descent(&gradient, &memory);
            let slope = dot64(&direction, &gradient);
            let mut length =
                if memory.is_empty() { 1.0 / dot64(&gradient, &gradient).sqrt().max(1.0) } else { 1.0 };
            let (next, next_loss, next_gradient) = loop {
                let next: Vec<f32> =
                    at.iter().zip(&direction).map(|(at, d)| at + length as f32 * d).collect();
                let (next_loss, next_gradient) = self.loss(&mut products, &next, c);
                if next_loss <= loss + 1e-4 * length * slope {
                    break (next, next_loss, next_gradient);
                }
                length *= 0.5;
                if length < 1e-6 {
                    return Some(HeadFit { values: at });
                }
            };
            let step = difference(&next, &at);
            let change = difference(&next_gradient, &gradient);
            let curvature = dot64(&step, &change);
            if curvature > 0.0 {
                memory.truncate(MEMORY - 1);
                memory.push_front((step, change, 1.0 / curvature));
            }
            let gain = loss - next_loss;
            (at, loss, gradient) = (next, next_loss, next_gradient);
            if gain <= TOLERANCE * loss.abs() {
                break;
            }
        }
        Some(HeadFit { values: at })
    }

    /// The fit in the units of features as they come.
    pub fn head(&self, fit: &HeadFit) -> Head {
        let mut head = Head { weight: Vec::new(), bias: Vec::new(), unit: true };
        for row in fit.values.chunks_exact(self.width() + 1) {
            let weight: Vec<f32> = row.iter().zip(&self.scale).map(|(w, scale)| w * scale).collect();
            head.bias.push(row[self.width()] - dot(&weight, &self.mean));
            head.weight.extend(weight);
        }
        head
    }

    fn width(&self) -> usize {
        self.mean.len()
    }

    /// The penalised loss and its gradient.
    fn loss(&self, products: &mut Products, values: &[f32], c: f64) -> (f64, Vec<f32>) {
        let (width, classes) = (self.width(), self.classes);
        let logits = products.logits(self, values);
        let mut losses = vec![0.0; self.labels.len()];
        let parts = (pool::Rows::new(logits, classes), pool::Rows::new(&mut losses, 1));
        pool::for_each_rows(self.labels.len(), 64, parts, |rows, (logits, losses)| {
            let rows = self.labels[rows.clone()].iter().zip(&self.weights[rows]);
            for ((row, loss), (&label, &weight)) in logits.chunks_exact_mut(classes).zip(losses).zip(rows) {
                let (max, right) = (row.iter().copied().fold(f32::NEG_INFINITY, f32::max), row[label]);
                let mut sum = 0.0;
                for logit in row.iter_mut() {
                    *logit = (*logit - max).exp();
                    sum += *logit;
                }
                *loss = weight * (max + sum.ln() - right);
                for p in row.iter_mut() {
                    *p *= weight / sum;
                }
                row[label] -= weight;
            }
        });
        let mut loss: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        let mut gradient = products.gradient(self);
        let penalty = (1.0 / c) as f32;
        for (gradient, values) in gradient.chunks_exact_mut(width + 1).zip(values.chunks_exact(width + 1)) {
            loss += dot64(&values[..width], &values[..width]) / (2.0 * c);
            gradient[..width].iter_mut().zip(values).for_each(|(g, value)| *g += penalty * value);
        }
        (loss, gradient)
    }
}

/// The two products of a step, with their buffers.
struct Products {
    logits: Vec<f32>,
}

impl Products {
    fn new(problem: &HeadProblem) -> Self {
        Self { logits: vec![0.0; problem.labels.len() * problem.classes] }
    }

    /// `F W^T + b`, `(rows, classes)`.
    fn logits(&mut self, problem: &HeadProblem, values: &[f32]) -> &mut [f32] {
        let (width, classes) = (problem.width(), problem.classes);
        let rows: Vec<&[f32]> = values.chunks_exact(width + 1).collect();
        let matrix =
            PackedMatrix::new(classes, width, &mut |row, out| out.copy_from_slice(&rows[row][..width]));
        let bias: Vec<f32> = rows.iter().map(|row| row[width]).collect();
        let layer = Layer { matrix: &matrix, bias: Some(&bias), slots: &[], adapter: None };
        let target = Target::Wide(&mut self.logits);
        linear::forward::<f32>(target, &mut [], &problem.features, &layer, problem.labels.len());
        &mut self.logits
    }

    /// `(classes, width + 1)` from the gradients of the logits, which stand in their place.
    fn gradient(&self, problem: &HeadProblem) -> Vec<f32> {
        let (width, classes) = (problem.width(), problem.classes);
        let mut weights = vec![0.0; classes * width];
        linear::weight_backward::<f32>(&mut weights, &problem.features, &self.logits, width, classes);
        let mut gradient = Vec::with_capacity(classes * (width + 1));
        let mut biases = vec![0.0; classes];
        for row in self.logits.chunks_exact(classes) {
            biases.iter_mut().zip(row).for_each(|(sum, d)| *sum += d);
        }
        for (weights, bias) in weights.chunks_exact(width).zip(biases) {
            gradient.extend_from_slice(weights);
            gradient.push(bias);
        }
        gradient
    }
}

/// The direction of descent: the gradient times the inverse curvature that the memory stands for, newest pair first
/// (Nocedal and Wright, algorithm 7.4).
fn descent(gradient: &[f32], memory: &VecDeque<(Vec<f32>, Vec<f32>, f64)>) -> Vec<f32> {
    let mut direction: Vec<f32> = gradient.iter().map(|g| -g).collect();
    let mut shares = Vec::with_capacity(memory.len());
    for (step, change, inverse) in memory {
        let share = inverse * dot64(step, &direction);
        direction.iter_mut().zip(change).for_each(|(d, change)| *d -= share as f32 * change);
        shares.push(share);
    }
    if let Some((_, change, inverse)) = memory.front() {
        let scale = (1.0 / (inverse * dot64(change, change))) as f32;
        for d in &mut direction {
            *d *= scale;
        }
    }
    for ((step, change, inverse), share) in memory.iter().zip(shares).rev() {
        let share = (share - inverse * dot64(change, &direction)) as f32;
        direction.iter_mut().zip(step).for_each(|(d, step)| *d += share * step);
    }
    direction
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn dot64(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Of eight running sums, so that one addition need not wait for the one before.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f32>()
}

fn norm(values: &[f32]) -> f32 {
    dot(values, values).sqrt().max(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points around three corners, with a column that says nothing and one that never changes.
    fn points() -> (Vec<f32>, Vec<usize>) {
        let corners = [[2.0, 0.1, 0.2], [0.1, 2.0, 0.3], [-1.0, -1.2, 0.2]];
        let mut state = 7u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let (mut features, mut labels) = (Vec::new(), Vec::new());
        for i in 0..150 {
            let label = i % 3;
            features.extend(corners[label].map(|corner| corner + 2.2 * noise()));
            labels.push(label);
        }
        (features, labels)
    }

    #[test]
    fn the_gradient_is_the_slope_and_the_minimum_is_flat() {
        let (features, labels) = points();
        let weights: Vec<f32> = (0..labels.len()).map(|i| 0.5 + (i % 4) as f32 * 0.4).collect();
        let problem = HeadProblem::new(&features, &labels, &weights, 3);
        let mut products = Products::new(&problem);
        let values: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin()).collect();
        let (_, gradient) = problem.loss(&mut products, &values, 0.5);
        for i in 0..values.len() {
            let mut moved = |by: f32| {
                let mut values = values.clone();
                values[i] += by;
                problem.loss(&mut products, &values, 0.5).0
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((f64::from(gradient[i]) - slope).abs() < 2e-3 * (1.0 + slope.abs()), "{i}: {slope}");
        }
        let fit = problem.fit(0.5, None, &mut || true).unwrap();
        let (loss, flat) = problem.loss(&mut products, &fit.values, 0.5);
        let largest = |g: &[f32]| g.iter().fold(0.0f32, |a, g| a.max(g.abs()));
        assert!(largest(&flat) < 0.02 * largest(&gradient), "{flat:?}");
        // From another start the same minimum.
        let again = problem.fit(0.5, Some(&HeadFit { values }), &mut || true).unwrap();
        let (loss_again, _) = problem.loss(&mut products, &again.values, 0.5);
        assert!((loss - loss_again).abs() < 1e-4 * loss, "{loss} {loss_again}");
    }

    #[test]
    fn a_head_says_what_its_problem_found() {
        let (features, labels) = points();
        let problem = HeadProblem::new(&features, &labels, &vec![1.0; labels.len()], 3);
        let fit = problem.fit(1.0, None, &mut || true).unwrap();
        let head = problem.head(&fit);
        let mut products = Products::new(&problem);
        let logits = products.logits(&problem, &fit.values).to_vec();
        let mut right = 0;
        for ((row, logits), &label) in features.chunks_exact(3).zip(logits.chunks_exact(3)).zip(&labels) {
            let found = head.log_probs(row);
            let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
            for (found, logit) in found.iter().zip(logits) {
                assert!((found - (logit - sum.ln())).abs() < 1e-4, "{found} {logit}");
            }
            right += usize::from(found[label] >= found.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        assert!(right > 130, "{right} of 150");
        // Read as they come, features of one length are told apart alike.
        let same: Vec<f32> =
            features.chunks_exact(3).flat_map(|row| row.iter().map(|v| 2.5 * v / norm(row))).collect();
        let plain = head.clone().for_length_of(&same);
        for row in same.chunks_exact(3) {
            let pairs = head.log_probs(row).into_iter().zip(plain.log_probs(row));
            assert!(!plain.unit && pairs.into_iter().all(|(unit, plain)| (unit - plain).abs() < 1e-4));
        }
    }
}
