//! A wrong row, and the training rows that are most like it: they often say why.

use super::Prediction;
use crate::Example;
use crate::linear::Neighbours;
use serde::{Deserialize, Serialize};

/// Training rows shown with a mistake.
const SHOWN: usize = 2;
/// Rows less alike than this explain nothing.
const ALIKE: f32 = 0.15;

/// A wrong row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    /// The row.
    #[serde(flatten)]
    pub row: Prediction,
    /// The training rows that are most like it, best first.
    #[serde(default)]
    pub nearest: Vec<Nearest>,
}

/// A training row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nearest {
    /// Its query.
    pub text: String,
    /// Its label.
    pub label: String,
    /// How alike the two are: the cosine of their TF-IDF features, from 0 to 1.
    pub similarity: f64,
}

/// The training rows, indexed.
#[derive(Debug)]
pub struct Training<'a> {
    rows: &'a [Example],
    index: Neighbours,
}

impl<'a> Training<'a> {
    /// Indexes the rows.
    pub fn new(rows: &'a [Example]) -> Self {
        let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
        Self { rows, index: Neighbours::new(&texts) }
    }

    /// Adds the nearest rows to each mistake.
    pub fn explain(&self, mistakes: &mut [Mistake]) {
        for mistake in mistakes {
            let similarities = self.index.similarities(&mistake.row.text);
            let mut order: Vec<usize> =
                (0..self.rows.len()).filter(|&row| similarities[row] >= ALIKE).collect();
            order.sort_by(|&a, &b| similarities[b].total_cmp(&similarities[a]).then(a.cmp(&b)));
            let nearest = |&row: &usize| Nearest {
                text: self.rows[row].text.clone(),
                label: self.rows[row].label.clone(),
                similarity: f64::from(similarities[row]),
            };
            mistake.nearest = order.iter().take(SHOWN).map(nearest).collect();
        }
    }
}

impl Mistake {
    /// A wrong row without explanation.
    pub fn new(row: Prediction) -> Self {
        Self { row, nearest: Vec::new() }
    }
}
