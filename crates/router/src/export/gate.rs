//! The parity gate: an export answers the rows that its run answered, and may differ on so many and no more.

use std::fmt;
use std::str::FromStr;

use routing::Example;
use routing::compare::{Interval, wilson};
use serde::Serialize;

use crate::router::Answer;

/// An export beside its run, on the same rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    /// Rows that both answered.
    pub rows: usize,
    /// Rows whose top label is another.
    pub flips: Vec<Flip>,
    /// Share of rows that the run gets right, with its 95% interval.
    pub original: Accuracy,
    /// The same of the export.
    pub export: Accuracy,
    /// The largest change of any label's calibrated probability.
    pub largest_change: f64,
}

/// A share of right rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// The share.
    pub accuracy: f64,
    /// Where the true share lies.
    pub interval: Interval,
}

impl fmt::Display for Accuracy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Interval { low, high } = self.interval;
        write!(f, "{:.1}% ({:.1} to {:.1})", 100.0 * self.accuracy, 100.0 * low, 100.0 * high)
    }
}

/// A row whose top label changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flip {
    /// Its index among the rows.
    pub row: usize,
    /// The query.
    pub text: String,
    /// The true label.
    pub label: String,
    /// What the run says.
    pub original: String,
    /// What the export says.
    pub export: String,
}

impl Gate {
    /// Compares the answers to `rows` of a run and of its export; `labels` are the run's in order.
    ///
    /// # Panics
    /// When the answers are not as many as the rows.
    pub fn judge(rows: &[Example], labels: &[String], original: &[Answer], export: &[Answer]) -> Self {
        assert_eq!((original.len(), export.len()), (rows.len(), rows.len()), "Gate: answers for every row");
        let accuracy = |answers: &[Answer]| {
            let right = rows.iter().zip(answers).filter(|(row, answer)| row.label == labels[answer.label]);
            let right = right.count();
            Accuracy {
                accuracy: right as f64 / rows.len().max(1) as f64,
                interval: wilson(right, rows.len()),
            }
        };
        let pairs = || rows.iter().zip(original.iter().zip(export)).enumerate();
        let flips = pairs().filter(|(_, (_, (before, after)))| before.label != after.label);
        let flips = flips.map(|(row, (example, (before, after)))| Flip {
            row,
            text: example.text.clone(),
            label: example.label.clone(),
            original: labels[before.label].clone(),
            export: labels[after.label].clone(),
        });
        let changes = pairs().flat_map(|(_, (_, (before, after)))| {
            before
                .probabilities
                .iter()
                .zip(&after.probabilities)
                .map(|(before, after)| (before - after).abs())
        });
        Self {
            rows: rows.len(),
            flips: flips.collect(),
            original: accuracy(original),
            export: accuracy(export),
            largest_change: changes.fold(0.0, f64::max),
        }
    }

    /// The export's accuracy less the run's.
    pub fn accuracy_change(&self) -> f64 {
        self.export.accuracy - self.original.accuracy
    }
}

/// How many flipped labels an export may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MostFlips {
    /// So many rows.
    Rows(usize),
    /// This share of the rows.
    Share(f64),
}

impl MostFlips {
    /// Whether the gate lets the export pass.
    pub fn allows(self, gate: &Gate) -> bool {
        match self {
            Self::Rows(most) => gate.flips.len() <= most,
            Self::Share(most) => gate.flips.len() as f64 <= most * gate.rows as f64,
        }
    }
}

impl FromStr for MostFlips {
    type Err = String;

    /// `3` is a number of rows; `0.01` and `1%` are shares.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("`{text}` is neither a number of rows such as 3 nor a share such as 0.01 or 1%");
        if let Ok(rows) = text.parse() {
            return Ok(Self::Rows(rows));
        }
        let share: f64 = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map_err(|_| expected())? / 100.0,
            None => text.parse().map_err(|_| expected())?,
        };
        if (0.0..=1.0).contains(&share) { Ok(Self::Share(share)) } else { Err(expected()) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use routing::Origin;
    use routing::calibration::Decision;

    use super::*;

    fn answers(labels: &[usize]) -> Vec<Answer> {
        let answer = |&label: &usize| Answer {
            label,
            probability: 0.75,
            decision: Decision::Route,
            probabilities: if label == 0 { vec![0.75, 0.25] } else { vec![0.25, 0.75] },
            log_probs: Vec::new(),
            error_bound: 0.0,
            cut: false,
            in_scope: true,
        };
        labels.iter().map(answer).collect()
    }

    fn gate(original: &[usize], export: &[usize]) -> Gate {
        let labels = ["a".to_owned(), "b".to_owned()];
        let file = Arc::from(Path::new("rows.csv"));
        let example = |row: usize| Example::new(format!("text {row}"), "a", Origin::line(&file, row as u64));
        let rows: Vec<Example> = (0..original.len()).map(example).collect();
        Gate::judge(&rows, &labels, &answers(original), &answers(export))
    }

    #[test]
    fn flips_and_accuracies_are_counted() {
        let gate = gate(&[0, 0, 1, 0], &[0, 1, 0, 0]);
        let rows: Vec<_> =
            gate.flips.iter().map(|flip| (flip.row, &flip.original[..], &flip.export[..])).collect();
        assert_eq!(rows, [(1, "a", "b"), (2, "b", "a")]);
        assert!((gate.original.accuracy - 0.75).abs() < 1e-12 && gate.accuracy_change().abs() < 1e-12);
        assert!((gate.largest_change - 0.5).abs() < 1e-12);
        assert!(gate.export.interval.contains(0.75));
    }

    #[test]
    fn a_bar_is_a_number_of_rows_or_a_share() {
        let two_of_four = gate(&[0; 4], &[1, 1, 0, 0]);
        for (text, passes) in
            [("2", true), ("1", false), ("0.5", true), ("50%", true), ("0.49", false), ("0", false)]
        {
            assert_eq!(text.parse::<MostFlips>().unwrap().allows(&two_of_four), passes, "{text}");
        }
        for text in ["-1", "1.5", "150%", "few", ""] {
            assert!(text.parse::<MostFlips>().is_err(), "{text}");
        }
    }
}
