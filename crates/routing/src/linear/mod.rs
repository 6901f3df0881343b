//! The linear baseline: TF-IDF features and one linear support vector machine per label.

mod neighbours;
mod ngrams;
mod stored;
mod svm;
mod tfidf;

pub use neighbours::Neighbours;
pub use stored::StoredLinear;
use tfidf::Tfidf;

use crate::Error;

/// How the linear model is trained; the defaults are what the reports use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearConfig {
    /// Weight of the errors against the size of the weights, LIBLINEAR's `C`.
    pub c: f64,
    /// The solver stops when no row's projected gradient differs more than this from another's.
    pub tolerance: f32,
    /// Passes over the rows at most.
    pub max_passes: usize,
    /// Threads at most; the result does not depend on it.
    pub threads: usize,
    /// Seed of the order in which rows are visited.
    pub seed: u64,
}

impl Default for LinearConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { c: 1.0, tolerance: 0.01, max_passes: 1000, threads, seed: 0 }
    }
}

/// Weights that a model may have: 4 GB while it is trained, 2 GB afterwards.
const MOST_WEIGHTS: usize = 1 << 29;

/// A trained linear model.
#[derive(Debug, Clone)]
pub struct LinearModel {
    features: Tfidf,
    n_labels: usize,
    /// `(features + 1, labels)`, row-major, the last row being the bias: one text touches few features, and
    /// then all labels of each.
    weights: Vec<f32>,
}

impl LinearModel {
    /// Trains on texts with label indices below `n_labels`; a label without rows is never predicted as long
    /// as another one has some.
    ///
    /// # Errors
    /// [`Error::LinearSize`] when the weights would take more memory than such a model is worth.
    ///
    /// # Panics
    /// When `texts` and `labels` differ in length, `n_labels` is 0, or a label is not below it.
    pub fn train(
        texts: &[&str],
        labels: &[usize],
        n_labels: usize,
        config: &LinearConfig,
    ) -> Result<Self, Error> {
        assert_eq!(texts.len(), labels.len(), "one label for each text");
        assert!(n_labels > 0, "there must be at least one label");
        assert!(labels.iter().all(|&label| label < n_labels), "labels must be below {n_labels}");
        let (features, rows) = Tfidf::fit(texts);
        if (features.len() + 1).saturating_mul(n_labels) > MOST_WEIGHTS {
            return Err(Error::LinearSize {
                features: features.len(),
                labels: n_labels,
                limit: MOST_WEIGHTS,
            });
        }
        let per_label = svm::train_one_vs_rest(&rows, features.len(), labels, n_labels, config);
        let mut weights = vec![0.0; (features.len() + 1) * n_labels];
        for (label, column) in per_label.iter().enumerate() {
            for (row, &weight) in column.iter().enumerate() {
                weights[row * n_labels + label] = weight;
            }
        }
        Ok(Self { features, n_labels, weights })
    }

    /// The best label and the score of every label: its distance from the margin, above 0 for "yes".
    ///
    /// Scores are no probabilities; as logits they can be calibrated like any other model's.
    pub fn predict(&self, text: &str) -> (usize, Vec<f32>) {
        let row = |index: usize| &self.weights[index * self.n_labels..][..self.n_labels];
        let mut scores = row(self.features.len()).to_vec();
        for (feature, value) in self.features.transform(text) {
            for (score, weight) in scores.iter_mut().zip(row(feature as usize)) {
                *score += value * weight;
            }
        }
        let best =
            (1..self.n_labels).fold(0, |best, next| if scores[next] > scores[best] { next } else { best });
        (best, scores)
    }

    /// `ln P(label | text)` of every label, from its scores as logits: to be calibrated.
    pub fn log_probs(&self, text: &str) -> Vec<f32> {
        let (best, scores) = self.predict(text);
        let sum: f32 = scores.iter().map(|score| (score - scores[best]).exp()).sum();
        scores.iter().map(|score| score - scores[best] - sum.ln()).collect()
    }

    /// Weights in all.
    pub fn n_weights(&self) -> usize {
        self.weights.len()
    }

    /// Features in the vocabulary.
    pub fn n_features(&self) -> usize {
        self.features.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 6] = [
        "my card was stolen",
        "I lost my card yesterday",
        "block the stolen card",
        "open a savings account",
        "I would like a new account",
        "which accounts can I open",
    ];
    const LABELS: [usize; 6] = [0, 0, 0, 1, 1, 1];

    fn config(threads: usize) -> LinearConfig {
        LinearConfig { threads, ..LinearConfig::default() }
    }

    #[test]
    fn learns_and_generalises_to_inflected_words() {
        let model = LinearModel::train(&TEXTS, &LABELS, 3, &config(2)).unwrap();
        for (text, label) in TEXTS.iter().zip(LABELS) {
            assert_eq!(model.predict(text).0, label, "{text}");
        }
        assert_eq!(model.predict("both of my cards are gone").0, 0);
        let (_, scores) = model.predict("opening accounts");
        assert_eq!(scores.len(), 3);
        assert!(
            scores[1] > scores[0] && scores[2] < scores[0],
            "a label without rows comes last: {scores:?}"
        );
    }

    #[test]
    fn threads_do_not_change_the_weights() {
        let one = LinearModel::train(&TEXTS, &LABELS, 2, &config(1)).unwrap();
        let many = LinearModel::train(&TEXTS, &LABELS, 2, &config(5)).unwrap();
        assert_eq!(one.weights, many.weights);
    }

    #[test]
    fn odd_inputs_are_answered() {
        let model = LinearModel::train(&["", "  \n", "é"], &[0, 0, 0], 1, &config(1)).unwrap();
        assert_eq!(model.predict("").0, 0);
        assert_eq!(LinearModel::train(&[], &[], 2, &config(1)).unwrap().predict("hello").1, [0.0, 0.0]);
    }

    #[test]
    fn a_model_that_would_fill_the_memory_is_refused() {
        let error = LinearModel::train(&TEXTS, &LABELS, 1 << 24, &config(1)).unwrap_err();
        assert!(error.to_string().contains("16777216 labels") && error.hint().contains("--method head"));
    }
}
