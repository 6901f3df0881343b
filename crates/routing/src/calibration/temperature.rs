//! Temperature scaling (Guo et al., 2017): one number that divides every log-probability.

use super::{Reliability, top};
use serde::{Deserialize, Serialize};

/// The search range of the temperature. Wide, since a linear model's margins need far less than 1.
const RANGE: (f64, f64) = (0.01, 100.0);
/// Log-probabilities below this count as this, so that one impossible label does not make a loss infinite.
const FLOOR: f64 = -1e4;

/// A fitted temperature and what it changed on the rows it was fitted on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Log-probabilities are divided by this, then normalised; above 1 flattens, below 1 sharpens.
    pub temperature: f64,
    /// Rows the temperature was fitted on.
    pub rows: usize,
    /// Mean negative log-likelihood (nats) at temperature 1.
    pub nll_before: f64,
    /// The same at the fitted temperature.
    pub nll_after: f64,
    /// Expected calibration error at temperature 1.
    pub ece_before: f64,
    /// The same at the fitted temperature.
    pub ece_after: f64,
}

impl Calibration {
    /// Fits on validation rows: one row of label log-probabilities (or any logits) and one true label each.
    ///
    /// A true label that is not below its row's length is one the model does not know: such a row counts as
    /// wrong in the calibration error and says nothing about the temperature. The temperature stays 1 where
    /// the rows cannot tell it: when none is left, or when all are right, as the likelihood then only grows
    /// with ever sharper probabilities.
    ///
    /// # Panics
    /// When `log_probs` and `truth` differ in length, or a row is empty.
    pub fn fit(log_probs: &[Vec<f32>], truth: &[usize]) -> Self {
        assert_eq!(log_probs.len(), truth.len(), "one true label for each row");
        let rows: Vec<(Vec<f64>, usize)> = log_probs
            .iter()
            .zip(truth)
            .filter(|(row, label)| **label < row.len())
            .map(|(row, &label)| (widen(row), label))
            .collect();
        let nll = |temperature: f64| {
            let sum: f64 = rows
                .iter()
                .map(|(row, label)| log_sum_exp(row, temperature) - row[*label] / temperature)
                .sum();
            sum / rows.len().max(1) as f64
        };
        let all_right = rows.iter().all(|(row, label)| top(row).0 == *label);
        let temperature = if all_right {
            1.0
        } else {
            golden_section(|log_t| nll(log_t.exp()), RANGE.0.ln(), RANGE.1.ln()).exp()
        };
        let ece = |temperature: f64| {
            let judged = log_probs.iter().zip(truth).map(|(row, &label)| {
                let (predicted, probability) = top(&probabilities(row, temperature));
                (probability, predicted == label)
            });
            Reliability::measure(judged).ece
        };
        Self {
            temperature,
            rows: log_probs.len(),
            nll_before: nll(1.0),
            nll_after: nll(temperature),
            ece_before: ece(1.0),
            ece_after: ece(temperature),
        }
    }

    /// Calibrated probabilities of one row of label log-probabilities.
    pub fn probabilities(&self, log_probs: &[f32]) -> Vec<f64> {
        probabilities(log_probs, self.temperature)
    }
}

/// `softmax(log_probs / temperature)`.
pub fn probabilities(log_probs: &[f32], temperature: f64) -> Vec<f64> {
    let row = widen(log_probs);
    let total = log_sum_exp(&row, temperature);
    row.iter().map(|value| (value / temperature - total).exp()).collect()
}

/// In f64, with the floor applied; a NaN becomes the floor as well (`max` returns the other side).
fn widen(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&value| f64::from(value).max(FLOOR)).collect()
}

fn log_sum_exp(row: &[f64], temperature: f64) -> f64 {
    let largest = row.iter().copied().fold(FLOOR, f64::max) / temperature;
    largest + row.iter().map(|value| (value / temperature - largest).exp()).sum::<f64>().ln()
}

/// The minimum of a function with a single one; here the loss is convex in `1 / T`, so single in `log T`.
fn golden_section(f: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    let share = (5f64.sqrt() - 1.0) / 2.0;
    let (mut a, mut b) = (high - share * (high - low), low + share * (high - low));
    let (mut f_a, mut f_b) = (f(a), f(b));
    while high - low > 1e-7 {
        if f_a <= f_b {
            (high, b, f_b) = (b, a, f_a);
            a = high - share * (high - low);
            f_a = f(a);
        } else {
            (low, a, f_a) = (a, b, f_b);
            b = low + share * (high - low);
            f_b = f(b);
        }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    /// Rows whose labels are drawn from their own probabilities, then sharpened by `sharpness`.
    fn drawn(sharpness: f32) -> (Vec<Vec<f32>>, Vec<usize>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        (0..4000)
            .map(|_| {
                let row: Vec<f32> = (0..5).map(|_| rng.random_range(-2.0..2.0)).collect();
                let mut rest: f64 = rng.random_range(0.0..1.0);
                let label = probabilities(&row, 1.0).iter().position(|p| {
                    rest -= p;
                    rest < 0.0
                });
                (row.iter().map(|value| value * sharpness).collect(), label.unwrap_or(4))
            })
            .unzip()
    }

    #[test]
    fn finds_the_temperature_that_was_put_in() {
        for sharpness in [0.3f32, 1.0, 3.0] {
            let (rows, truth) = drawn(sharpness);
            let fitted = Calibration::fit(&rows, &truth);
            let off = fitted.temperature / f64::from(sharpness);
            assert!((0.93..1.07).contains(&off), "{sharpness}: {fitted:?}");
            assert!(fitted.nll_after <= fitted.nll_before);
            assert!(fitted.ece_after < 0.03, "{fitted:?}");
        }
        let (rows, truth) = drawn(3.0);
        assert!(Calibration::fit(&rows, &truth).ece_before > 0.15, "sharpened rows are overconfident");
    }

    #[test]
    fn the_loss_is_smallest_at_the_fit() {
        let (rows, truth) = drawn(2.0);
        let best = Calibration::fit(&rows, &truth);
        for factor in [0.999f32, 1.001] {
            let scaled: Vec<Vec<f32>> = rows
                .iter()
                .map(|row| row.iter().map(|v| v / (best.temperature as f32) * factor).collect())
                .collect();
            assert!(Calibration::fit(&scaled, &truth).nll_before >= best.nll_after - 1e-9);
        }
    }

    #[test]
    fn rows_that_say_nothing_leave_it_at_one() {
        assert!((Calibration::fit(&[], &[]).temperature - 1.0).abs() < 1e-12);
        let all_right = Calibration::fit(&[vec![0.0, -1.0], vec![-2.0, 0.0]], &[0, 1]);
        assert!((all_right.temperature - 1.0).abs() < 1e-12);
        let unknown = Calibration::fit(&[vec![0.0, -1.0]], &[2]);
        assert!((unknown.temperature - 1.0).abs() < 1e-12);
        assert!(unknown.ece_before > 0.7, "a label the model does not know is never right: {unknown:?}");
    }

    #[test]
    fn impossible_labels_and_nan_stay_finite() {
        let rows = [vec![0.0, f32::NEG_INFINITY], vec![f32::NAN, 0.0], vec![0.0, -1.0]];
        let fitted = Calibration::fit(&rows, &[1, 1, 0]);
        assert!(fitted.temperature.is_finite() && fitted.nll_after.is_finite(), "{fitted:?}");
        let p = fitted.probabilities(&rows[1]);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
