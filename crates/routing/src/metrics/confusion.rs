//! The confusion matrix: how often each true label was predicted as each label.

use serde::{Deserialize, Serialize};

/// Counts of every (true, predicted) pair of labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// The labels, naming rows and columns alike.
    pub labels: Vec<String>,
    /// `matrix[true][predicted]`, square, one row per label.
    pub matrix: Vec<Vec<usize>>,
}

impl Confusion {
    /// Counts the pairs of two columns of label indices.
    ///
    /// # Panics
    /// When the columns differ in length, or an index is not below `labels.len()`.
    pub fn count(labels: &[String], truth: &[usize], predicted: &[usize]) -> Self {
        assert_eq!(
            truth.len(),
            predicted.len(),
            "{} true labels, {} predictions",
            truth.len(),
            predicted.len()
        );
        let mut matrix = vec![vec![0; labels.len()]; labels.len()];
        for (&truth, &predicted) in truth.iter().zip(predicted) {
            matrix[truth][predicted] += 1;
        }
        Self { labels: labels.to_vec(), matrix }
    }

    /// Rows that truly have the label.
    pub fn support(&self, label: usize) -> usize {
        self.matrix[label].iter().sum()
    }

    /// Rows that were predicted as the label.
    pub fn predicted(&self, label: usize) -> usize {
        self.matrix.iter().map(|row| row[label]).sum()
    }

    /// The label that rows of `label` are most often mistaken for, with its count; `None` when all are right.
    pub fn most_confused(&self, label: usize) -> Option<(&str, usize)> {
        let wrong = self.matrix[label].iter().enumerate().filter(|&(predicted, _)| predicted != label);
        // `max_by_key` takes the last of equals; reversed, ties go to the first label of the list
        let (predicted, &count) = wrong.rev().max_by_key(|&(_, count)| count)?;
        (count > 0).then(|| (self.labels[predicted].as_str(), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_true_and_columns_predicted() {
        let labels = ["a", "b", "c"].map(String::from);
        let confusion = Confusion::count(&labels, &[0, 0, 0, 1, 0], &[0, 2, 1, 1, 2]);
        assert_eq!(confusion.matrix, [[1, 1, 2], [0, 1, 0], [0, 0, 0]]);
        assert_eq!((confusion.support(0), confusion.predicted(2)), (4, 2));
        assert_eq!(confusion.most_confused(0), Some(("c", 2)));
        assert_eq!(confusion.most_confused(1), None);
    }
}
