//! Classification metrics, equal to scikit-learn's to 1e-9 with `zero_division=0.0`.

mod confusion;
mod table;

pub use confusion::Confusion;
use serde::{Deserialize, Serialize};

/// What a precision, recall or F1 is when its denominator is zero (a label never predicted, or never true).
pub const ZERO_DIVISION: f64 = 0.0;

/// How good a model's answers are on one set of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Rows judged.
    pub n: usize,
    /// Share of rows whose predicted label is the true one.
    pub accuracy: f64,
    /// Plain mean over labels: every label counts the same.
    #[serde(rename = "macro")]
    pub macro_avg: Scores,
    /// Mean over labels weighted by their support.
    pub weighted: Scores,
    /// Over all decisions pooled; equals `accuracy`, since a row has exactly one label and one prediction.
    pub micro: Scores,
    /// One entry per label, in the order of `confusion.labels`, where what is no label stands behind them.
    pub per_label: Vec<LabelScores>,
    /// Counts of every (true, predicted) pair.
    pub confusion: Confusion,
    /// The value of a score whose denominator is zero.
    pub zero_division: f64,
}

/// Precision, recall and their harmonic mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Of what was predicted as the label, the share that is right.
    pub precision: f64,
    /// Of what truly has the label, the share that was found.
    pub recall: f64,
    /// `2 tp / (2 tp + fp + fn)`.
    pub f1: f64,
}

/// The scores of one label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelScores {
    /// The label's name.
    pub label: String,
    /// Its precision, recall and F1.
    #[serde(flatten)]
    pub scores: Scores,
    /// Rows that truly have the label.
    pub support: usize,
}

impl Metrics {
    /// Judges predictions given as indices into `labels`; all of `labels` count in the macro average,
    /// as with scikit-learn's `labels=` argument. With no rows every value is [`ZERO_DIVISION`].
    ///
    /// # Panics
    /// When `truth` and `predicted` differ in length, or an index is not below `labels.len()`.
    pub fn from_indices(labels: &[String], truth: &[usize], predicted: &[usize]) -> Self {
        Self::from_confusion(Confusion::count(labels, truth, predicted))
    }

    /// Judges predictions given as `(true, predicted)` label names.
    ///
    /// The labels are those that occur in either, as scikit-learn takes them by default: first the ones in
    /// `known` in that order, then the other true ones in order of appearance. A true label that the model does not
    /// know thus stands in the matrix, and each of its rows is an error. A name that is neither known nor ever true,
    /// as that of a refusal, is an error where it was given and has its column, but is no label of its own: it counts
    /// in no average, as with scikit-learn's `labels=` argument.
    pub fn from_names(known: &[String], rows: &[(&str, &str)]) -> Self {
        let (labels, truth, predicted) = index_names(known, rows);
        let mut metrics = Self::from_indices(&labels, &truth, &predicted);
        metrics.per_label.retain(|it| it.support > 0 || known.contains(&it.label));
        metrics.macro_avg = Scores::mean(metrics.per_label.iter().map(|l| (l.scores, 1.0)));
        metrics
    }

    /// Judges counts that were made elsewhere.
    pub fn from_confusion(confusion: Confusion) -> Self {
        let n: usize = confusion.matrix.iter().flatten().sum();
        let right: usize = (0..confusion.labels.len()).map(|label| confusion.matrix[label][label]).sum();
        let per_label: Vec<LabelScores> = (0..confusion.labels.len())
            .map(|label| {
                let support = confusion.support(label);
                LabelScores {
                    label: confusion.labels[label].clone(),
                    scores: Scores::from_counts(
                        confusion.matrix[label][label],
                        confusion.predicted(label),
                        support,
                    ),
                    support,
                }
            })
            .collect();
        Self {
            n,
            accuracy: ratio(right, n),
            macro_avg: Scores::mean(per_label.iter().map(|l| (l.scores, 1.0))),
            weighted: Scores::mean(per_label.iter().map(|l| (l.scores, l.support as f64))),
            micro: Scores::from_counts(right, n, n),
            per_label,
            confusion,
            zero_division: ZERO_DIVISION,
        }
    }
}

impl Scores {
    /// From the rows that are right, those predicted as the label, and those that truly have it.
    fn from_counts(right: usize, predicted: usize, support: usize) -> Self {
        Self {
            precision: ratio(right, predicted),
            recall: ratio(right, support),
            f1: ratio(2 * right, predicted + support),
        }
    }

    fn mean(weighted: impl Iterator<Item = (Self, f64)>) -> Self {
        let (mut sum, mut weights) = (Self::default(), 0.0);
        for (scores, weight) in weighted {
            sum.precision += scores.precision * weight;
            sum.recall += scores.recall * weight;
            sum.f1 += scores.f1 * weight;
            weights += weight;
        }
        if weights == 0.0 {
            return Self { precision: ZERO_DIVISION, recall: ZERO_DIVISION, f1: ZERO_DIVISION };
        }
        Self { precision: sum.precision / weights, recall: sum.recall / weights, f1: sum.f1 / weights }
    }
}

/// `part / whole`, or [`ZERO_DIVISION`].
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { ZERO_DIVISION } else { part as f64 / whole as f64 }
}

/// The names that occur in `(true, predicted)` rows, known ones first, then true ones, and both columns as indices
/// into them.
pub(crate) fn index_names(known: &[String], rows: &[(&str, &str)]) -> (Vec<String>, Vec<usize>, Vec<usize>) {
    use std::collections::{HashMap, HashSet};
    let occurring: HashSet<&str> = rows.iter().flat_map(|&(truth, predicted)| [truth, predicted]).collect();
    let in_order = known.iter().map(String::as_str).filter(|label| occurring.contains(label));
    let mut index: HashMap<&str, usize> = HashMap::new();
    let mut labels = Vec::new();
    let others = rows.iter().map(|row| row.0).chain(rows.iter().map(|row| row.1));
    for label in in_order.chain(others) {
        index.entry(label).or_insert_with(|| {
            labels.push(label.to_owned());
            labels.len() - 1
        });
    }
    let (truth, predicted) = rows.iter().map(|(truth, predicted)| (index[truth], index[predicted])).unzip();
    (labels, truth, predicted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_the_model_does_not_know_is_an_error_in_the_matrix() {
        let known = ["cards", "loans", "unused"].map(String::from);
        let metrics =
            Metrics::from_names(&known, &[("cards", "cards"), ("travel", "loans"), ("loans", "loans")]);
        assert_eq!(metrics.confusion.labels, ["cards", "loans", "travel"]);
        assert_eq!(metrics.confusion.matrix, [[1, 0, 0], [0, 1, 0], [0, 1, 0]]);
        assert!((metrics.accuracy - 2.0 / 3.0).abs() < 1e-12);
        assert!((metrics.per_label[1].scores.precision - 0.5).abs() < 1e-12);
        assert_eq!(metrics.per_label[2].scores, Scores::default());
    }

    #[test]
    fn a_refusal_is_an_error_and_no_label() {
        let known = ["cards", "loans"].map(String::from);
        let rows = [("cards", "cards"), ("cards", "(refused)"), ("loans", "loans"), ("travel", "loans")];
        let metrics = Metrics::from_names(&known, &rows);
        assert_eq!(metrics.confusion.labels, ["cards", "loans", "travel", "(refused)"]);
        assert_eq!(metrics.confusion.matrix[0], [1, 0, 0, 1]);
        assert_eq!(metrics.per_label.len(), 3);
        // 2 1 / (2 1 + 1) for both known labels, and a label that the model does not have.
        assert!((metrics.macro_avg.f1 - (2.0 / 3.0 + 2.0 / 3.0 + 0.0) / 3.0).abs() < 1e-12);
        assert!((metrics.accuracy - 0.5).abs() < 1e-12);
    }

    #[test]
    fn no_rows_give_zeros() {
        let metrics = Metrics::from_names(&[], &[]);
        assert_eq!((metrics.n, metrics.accuracy, metrics.macro_avg), (0, 0.0, Scores::default()));
    }

    #[test]
    fn json_has_the_documented_shape_and_round_trips() {
        let metrics = Metrics::from_names(&[], &[("a", "a"), ("b", "a")]);
        let json = serde_json::to_value(&metrics).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = "n accuracy macro weighted micro per_label confusion zero_division";
        assert_eq!(keys.join(" "), expected);
        assert_eq!(json["per_label"][0]["label"], "a");
        assert_eq!(json["per_label"][0]["support"], 1);
        assert_eq!(json["confusion"]["matrix"], serde_json::json!([[1, 0], [1, 0]]));
        assert_eq!(serde_json::from_value::<Metrics>(json).unwrap(), metrics);
    }
}
