//! One judged row, as it stands in the predictions file (JSON lines) and among a report's mistakes.

use serde::{Deserialize, Serialize};

/// A text, its true label, and what a model said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The query.
    pub text: String,
    /// The true label.
    pub label: String,
    /// What the model says in the end: its top label, or the label for "out of scope".
    pub predicted: String,
    /// The probability of the top label; `None` for a model that gives none.
    pub probability: Option<f64>,
    /// The next most probable labels, best first; the top label itself where a rule set it aside.
    #[serde(default)]
    pub alternatives: Vec<Alternative>,
    /// Whether a rule set the top label aside, because the query is out of scope.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_scope: bool,
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

    /// The label that [`Prediction::probability`] is about.
    pub fn top_label(&self) -> &str {
        match self.alternatives.first() {
            Some(top) if self.out_of_scope => &top.label,
            _ => &self.predicted,
        }
    }

    /// Sets the top label aside: the query is out of scope, which data files call `name`.
    pub fn set_aside(&mut self, name: &str) {
        let top = std::mem::replace(&mut self.predicted, name.to_owned());
        let probability = self.probability.unwrap_or(0.0);
        self.alternatives.insert(0, Alternative { label: top, probability });
        self.out_of_scope = true;
    }
}
