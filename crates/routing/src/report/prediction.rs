//! One judged row, as it stands in the predictions file (JSON lines) and among a report's mistakes.

use serde::{Deserialize, Serialize};

/// A text, its true label, and what a model said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The query.
    pub text: String,
    /// The true label.
    pub label: String,
    /// The model's label.
    pub predicted: String,
    /// The probability of `predicted`; `None` for a model that gives none.
    pub probability: Option<f64>,
    /// The next most probable labels, best first.
    #[serde(default)]
    pub alternatives: Vec<Alternative>,
}

/// Another label and its probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// The label.
    pub label: String,
    /// Its probability.
    pub probability: f64,
}

impl Prediction {
    /// Whether the predicted label is the true one.
    pub fn is_right(&self) -> bool {
        self.label == self.predicted
    }
}
