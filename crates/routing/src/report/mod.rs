//! The report of an evaluation: one value, rendered as a self-contained HTML page, as Markdown, or as JSON.

mod charts;
mod confusion_chart;
mod coverage;
mod format;
mod html;
mod markdown;
mod prediction;
mod section;

use crate::calibration::{Calibration, Decision, Reliability, Thresholds};
use crate::compare::{Comparison, Interval, wilson};
use crate::metrics::Metrics;
pub use coverage::{CoveragePoint, coverage_curve};
pub use prediction::{Alternative, Prediction};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Mistakes listed in a report, the most confident first.
pub const MISTAKES: usize = 20;

/// Everything a report says, in the order it says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was judged, e.g. "Insurance queries to departments".
    pub title: String,
    /// The models, the judged one first, baselines after it.
    pub models: Vec<ModelSection>,
    /// The first model against each of the others, on the same rows.
    pub comparisons: Vec<Comparison>,
    /// How the numbers came about.
    pub made: Provenance,
}

/// One model's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSection {
    /// The model's name.
    pub name: String,
    /// Wall time.
    pub seconds: Seconds,
    /// Further facts in the order to show them: parameters, device, cost per 1,000 queries.
    pub facts: Vec<Fact>,
    /// Its scores.
    pub metrics: Metrics,
    /// Wilson's interval of the accuracy.
    pub accuracy_interval: Interval,
    /// Confidence against accuracy on the evaluated rows; `None` for a model that gives no probabilities.
    pub reliability: Option<Reliability>,
    /// Accuracy of the most confident rows, by how many they are; empty without probabilities.
    pub coverage: Vec<CoveragePoint>,
    /// The temperature that was fitted on validation rows.
    pub calibration: Option<Calibration>,
    /// The thresholds that were chosen on validation rows.
    pub thresholds: Option<Thresholds>,
    /// What those thresholds do on the evaluated rows.
    pub routed: Option<Routed>,
    /// Wrong rows, the most confident first, at most [`MISTAKES`].
    pub mistakes: Vec<Prediction>,
}

/// The part of the evaluated rows that the thresholds let through.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Routed {
    /// Share of all rows that is routed without a person.
    pub coverage: f64,
    /// Share of the routed rows that is right; 0 when none is routed.
    pub precision: f64,
}

/// Wall times of one model, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Training; `None` where nothing was trained.
    pub train: Option<f64>,
    /// Answering all evaluated rows.
    pub evaluate: Option<f64>,
}

/// A named value, already formatted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// What it is worth.
    pub value: String,
}

/// What is needed to make the report again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The command line.
    pub command: String,
    /// The seed of everything random.
    pub seed: u64,
    /// The data files and models read.
    pub inputs: Vec<Input>,
    /// Programs and libraries with their versions, and the machine.
    pub versions: Vec<Fact>,
}

/// A file or folder that the report was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its part: "training data", "test data", "base model".
    pub role: String,
    /// Its path or name.
    pub name: String,
    /// Its size in words: "2,000 rows".
    pub size: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

impl ModelSection {
    /// Judges a model's predictions; `known` orders the labels. Facts and calibration are left empty for
    /// the caller to fill, thresholds for [`ModelSection::with_thresholds`].
    pub fn new(name: &str, known: &[String], predictions: &[Prediction], seconds: Seconds) -> Self {
        let rows: Vec<(&str, &str)> =
            predictions.iter().map(|row| (row.label.as_str(), row.predicted.as_str())).collect();
        let metrics = Metrics::from_names(known, &rows);
        let scored: Option<Vec<(f64, bool)>> =
            predictions.iter().map(|row| Some((row.probability?, row.is_right()))).collect();
        let mut mistakes: Vec<Prediction> =
            predictions.iter().filter(|row| !row.is_right()).cloned().collect();
        // stable, so rows of equal probability keep the order of the data
        mistakes.sort_by(|a, b| b.probability.unwrap_or(0.0).total_cmp(&a.probability.unwrap_or(0.0)));
        mistakes.truncate(MISTAKES);
        Self {
            name: name.to_owned(),
            seconds,
            facts: Vec::new(),
            accuracy_interval: wilson(
                rows.iter().filter(|(truth, predicted)| truth == predicted).count(),
                rows.len(),
            ),
            metrics,
            reliability: scored.as_ref().map(|rows| Reliability::measure(rows.iter().copied())),
            coverage: scored.map(coverage_curve).unwrap_or_default(),
            calibration: None,
            thresholds: None,
            routed: None,
            mistakes,
        }
    }

    /// Adds thresholds, and what they do on the same predictions.
    #[must_use]
    pub fn with_thresholds(mut self, thresholds: Thresholds, predictions: &[Prediction]) -> Self {
        self.routed = Some(Routed::measure(&thresholds, predictions));
        self.thresholds = Some(thresholds);
        self
    }
}

impl Routed {
    /// Applies thresholds to judged rows; a row without probability, or whose predicted label has no
    /// threshold, is not routed.
    pub fn measure(thresholds: &Thresholds, predictions: &[Prediction]) -> Self {
        let index: HashMap<&str, usize> = thresholds
            .per_label
            .iter()
            .enumerate()
            .map(|(index, label)| (label.label.as_str(), index))
            .collect();
        let passes = |row: &&Prediction| {
            let known = index.get(row.predicted.as_str()).zip(row.probability);
            known
                .is_some_and(|(&label, probability)| thresholds.decide(label, probability) == Decision::Route)
        };
        let (mut routed, mut right) = (0usize, 0usize);
        for row in predictions.iter().filter(passes) {
            routed += 1;
            right += usize::from(row.is_right());
        }
        let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Self { coverage: share(routed, predictions.len()), precision: share(right, routed) }
    }
}

impl Fact {
    /// A named value.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}
