//! One model's results on the evaluated rows.

use std::collections::HashMap;

use super::coverage::thin;
use super::{CoveragePoint, Fact, MISTAKES, Mistake, Prediction, coverage_curve};
use crate::calibration::{
    Calibration, Decision, Reliability, Scope, ScopeRow, ScopeScores, Thresholds, scope_curve,
};
use crate::compare::{Interval, wilson};
use crate::metrics::Metrics;
use crate::quantile;
use serde::{Deserialize, Serialize};

/// One model's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSection {
    /// The model's name.
    pub name: String,
    /// Wall time.
    pub seconds: Seconds,
    /// Time for one query; `None` where it was not measured.
    pub latency: Option<Latency>,
    /// Price of a query; `None` where it is not known.
    pub cost: Option<Cost>,
    /// Further facts in the order to show them: parameters, device, break-even.
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
    /// How queries that no label covers were told apart; `None` where there are none.
    pub scope: Option<ScopeSection>,
    /// Wrong rows, the most confident first, at most [`MISTAKES`].
    pub mistakes: Vec<Mistake>,
}

/// How a model fared with rows that are out of scope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScopeSection {
    /// The label that means "out of scope".
    pub label: String,
    /// The rule that was chosen on validation rows.
    pub rule: Option<Scope>,
    /// What the model's answers come to on the evaluated rows.
    pub scores: ScopeScores,
    /// In-scope accuracy and recall by threshold; empty without probabilities.
    pub curve: Vec<(f64, ScopeScores)>,
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

/// How long one query takes that is asked alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the queries take at most so many seconds.
    pub p50_s: f64,
    /// 95% of the queries take at most so many seconds.
    pub p95_s: f64,
    /// Queries measured.
    pub queries: usize,
}

/// What queries cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// USD for 1,000 queries.
    pub per_1000: f64,
    /// Where that comes from, in words.
    pub basis: String,
}

impl Latency {
    /// From measured seconds; `None` when there are none.
    pub fn measure(mut seconds: Vec<f64>) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let at = |share| quantile(&seconds, share);
        Some(Self { p50_s: at(0.5)?, p95_s: at(0.95)?, queries: seconds.len() })
    }
}

impl ModelSection {
    /// Judges a model's predictions; `known` orders the labels. Latency, cost, facts and calibration are left empty
    /// for the caller to fill; thresholds and scope have methods of their own.
    pub fn new(name: &str, known: &[String], predictions: &[Prediction], seconds: Seconds) -> Self {
        let rows: Vec<(&str, &str)> =
            predictions.iter().map(|row| (row.label.as_str(), row.predicted.as_str())).collect();
        let metrics = Metrics::from_names(known, &rows);
        let scored: Option<Vec<(f64, bool)>> =
            predictions.iter().map(|row| Some((row.probability?, row.top_label() == row.label))).collect();
        let mut mistakes: Vec<Mistake> =
            predictions.iter().filter(|row| !row.is_right()).cloned().map(Mistake::new).collect();
        // stable, so rows of equal probability keep the order of the data
        let confidence = |mistake: &Mistake| mistake.row.probability.unwrap_or(0.0);
        mistakes.sort_by(|a, b| confidence(b).total_cmp(&confidence(a)));
        mistakes.truncate(MISTAKES);
        Self {
            name: name.to_owned(),
            seconds,
            latency: None,
            cost: None,
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
            scope: None,
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

    /// Adds how the same predictions tell rows apart that are truly `label`, out of scope; nothing where there are
    /// neither such rows nor a rule.
    #[must_use]
    pub fn with_scope(mut self, label: &str, rule: Option<&Scope>, predictions: &[Prediction]) -> Self {
        if rule.is_none() && predictions.iter().all(|row| row.label != label) {
            return self;
        }
        let answered = |row: &Prediction| ScopeRow {
            probability: 1.0,
            named: row.predicted == label,
            right: row.is_right(),
            out_of_scope: row.label == label,
        };
        let scored = |row: &Prediction| {
            Some(ScopeRow {
                probability: row.probability?,
                named: row.top_label() == label,
                right: row.top_label() == row.label,
                out_of_scope: row.label == label,
            })
        };
        let answers: Vec<ScopeRow> = predictions.iter().map(answered).collect();
        let rows: Option<Vec<ScopeRow>> = predictions.iter().map(scored).collect();
        self.scope = Some(ScopeSection {
            label: label.to_owned(),
            rule: rule.cloned(),
            scores: ScopeScores::measure(&answers, 0.0),
            curve: rows.map(|rows| thin(scope_curve(&rows))).unwrap_or_default(),
        });
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
            let known = index.get(row.predicted.as_str()).zip(row.probability).filter(|_| !row.out_of_scope);
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
