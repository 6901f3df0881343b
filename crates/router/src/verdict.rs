//! How a run did on its validation examples, and what follows for routing.

use std::collections::BTreeMap;

use routing::calibration::{Calibration, Goal, Scored, Thresholds, probabilities, top};
use routing::metrics::Metrics;

use crate::examples::TrainData;
use crate::manifest::{BaseRecord, FORMAT, LabelRecord, Manifest, ValidationRecord};
use crate::plan::{Method, Recipe};
use crate::prompt::Prompt;

/// What every run says of itself, whatever its method: how it did on the validation examples, and what follows.
pub(crate) fn judged(
    labels: Vec<LabelRecord>,
    log_probs: &[Vec<f32>],
    valid_labels: &[usize],
    data: &TrainData,
    recipe: &Recipe,
) -> Manifest {
    let names: Vec<String> = labels.iter().map(|label| label.text.clone()).collect();
    let rows: Vec<usize> = (0..valid_labels.len()).collect();
    let (accuracy, macro_f1) = judge(log_probs, &rows, &names, valid_labels);
    let calibration = Calibration::fit(log_probs, valid_labels);
    let thresholds = choose_thresholds(&names, &calibration, log_probs, valid_labels, recipe);
    Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        method: Method::Linear,
        base: BaseRecord { source: "none".to_owned(), name: "none".to_owned(), sha256: String::new() },
        labels,
        prompt: Prompt::default(),
        data: data.data.clone(),
        valid: data.valid_file.clone(),
        recipe: recipe.clone(),
        device: String::new(),
        trainable: 0,
        parameters: 0,
        steps: 0,
        best_step: 0,
        validation: ValidationRecord { rows: rows.len(), accuracy, macro_f1 },
        calibration,
        thresholds,
        scope: None,
        calibrated_on: None,
        cascade: None,
        files: BTreeMap::new(),
    }
}

/// Accuracy and macro-F1 on these validation rows, over the labels that they have.
pub(crate) fn judge(
    log_probs: &[Vec<f32>],
    rows: &[usize],
    names: &[String],
    valid_labels: &[usize],
) -> (f64, f64) {
    let name =
        |label: usize| names.get(label).map_or("(a label that training does not have)", String::as_str);
    let answers: Vec<(&str, &str)> = rows
        .iter()
        .zip(log_probs)
        .map(|(&row, log_probs)| (name(valid_labels[row]), name(top(&probabilities(log_probs, 1.0)).0)))
        .collect();
    let metrics = Metrics::from_names(names, &answers);
    (metrics.accuracy, metrics.macro_avg.f1)
}

fn choose_thresholds(
    names: &[String],
    calibration: &Calibration,
    log_probs: &[Vec<f32>],
    truth: &[usize],
    recipe: &Recipe,
) -> Thresholds {
    let scored = |(row, &truth): (&Vec<f32>, &usize)| {
        let (predicted, probability) = top(&calibration.probabilities(row));
        Scored { predicted, probability, right: predicted == truth, in_scope: true }
    };
    let rows: Vec<Scored> = log_probs.iter().zip(truth).map(scored).collect();
    let goal = Goal::Precision { target: recipe.target_precision };
    Thresholds::choose(names, &rows, &goal, None)
}
