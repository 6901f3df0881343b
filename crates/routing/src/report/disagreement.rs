//! Where two models say different things about the same rows, and which of them is right.

use super::Judged;
use crate::metrics::index_names;
use serde::{Deserialize, Serialize};

/// Two models row by row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disagreement {
    /// The first model's name.
    pub first: String,
    /// The second model's name.
    pub second: String,
    /// Rows that both have right.
    pub both_right: usize,
    /// Rows that only the first has right.
    pub only_first: usize,
    /// Rows that only the second has right.
    pub only_second: usize,
    /// Rows that both have wrong.
    pub both_wrong: usize,
    /// The labels that differing answers name, in the first model's order.
    pub labels: Vec<String>,
    /// Rows by the first's answer and the second's, both indices into `labels`; equal answers are not counted.
    pub matrix: Vec<Vec<usize>>,
    /// How many of them the first has right.
    pub first_right: Vec<Vec<usize>>,
    /// How many of them the second has right.
    pub second_right: Vec<Vec<usize>>,
}

impl Disagreement {
    /// Compares the answers row by row.
    ///
    /// # Panics
    /// When the two have different numbers of rows.
    pub(super) fn new(first: &Judged, second: &Judged) -> Self {
        assert_eq!(first.rows.len(), second.rows.len(), "both models must have answered the same rows");
        let pairs = || first.rows.iter().zip(&second.rows);
        let count = |a: bool, b: bool| {
            pairs().filter(|(first, second)| (first.is_right(), second.is_right()) == (a, b)).count()
        };
        let differing: Vec<_> =
            pairs().filter(|(first, second)| first.predicted != second.predicted).collect();
        let said: Vec<(&str, &str)> = differing
            .iter()
            .map(|(first, second)| (first.predicted.as_str(), second.predicted.as_str()))
            .collect();
        let (labels, rows, columns) = index_names(&first.section.metrics.confusion.labels, &said);
        let empty = vec![vec![0; labels.len()]; labels.len()];
        let [mut matrix, mut first_right, mut second_right] = [empty.clone(), empty.clone(), empty];
        for ((row, column), (first, second)) in rows.into_iter().zip(columns).zip(&differing) {
            matrix[row][column] += 1;
            first_right[row][column] += usize::from(first.is_right());
            second_right[row][column] += usize::from(second.is_right());
        }
        Self {
            first: first.section.name.clone(),
            second: second.section.name.clone(),
            both_right: count(true, true),
            only_first: count(true, false),
            only_second: count(false, true),
            both_wrong: count(false, false),
            labels,
            matrix,
            first_right,
            second_right,
        }
    }

    /// Rows about which they say different things.
    pub fn rows(&self) -> usize {
        self.matrix.iter().flatten().sum()
    }
}
