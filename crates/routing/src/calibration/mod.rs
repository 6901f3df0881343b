//! From raw log-probabilities to probabilities that mean what they say, and to decisions.

mod goal;
mod reliability;
mod scope;
mod temperature;
mod thresholds;

pub use goal::{Costs, Goal};
pub use reliability::{BINS, Reliability, ReliabilityBin};
pub use scope::{Scope, ScopeRow, ScopeScores, scope_curve};
pub use temperature::{Calibration, probabilities};
pub use thresholds::{Decision, LabelThreshold, Scored, ThresholdSource, Thresholds};

/// The most probable label and its probability, the first of equals.
///
/// # Panics
/// When there are no probabilities.
pub fn top(probabilities: &[f64]) -> (usize, f64) {
    assert!(!probabilities.is_empty(), "there must be at least one label");
    probabilities
        .iter()
        .copied()
        .enumerate()
        .fold((0, probabilities[0]), |best, next| if next.1 > best.1 { next } else { best })
}
