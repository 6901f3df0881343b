//! Answers, what they mean, and what they add up to.

use serde::{Deserialize, Serialize};

use crate::chat::{Reply, Usage};
use crate::prices::Price;
use crate::reading::LabelReader;

/// The answer to one row, as it stands in a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Index of the row.
    pub row: usize,
    /// What the model said.
    pub reply: Reply,
    /// Tokens, as the endpoint reported them, else counted.
    pub usage: Usage,
    /// Whether the tokens were counted here.
    #[serde(default)]
    pub counted: bool,
    /// From sending the successful try to the end of its answer.
    pub seconds: f64,
    /// Tries that it took.
    pub tries: u32,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// One of the labels.
    Label {
        /// Its index.
        label: usize,
        /// Whether it was spelled exactly.
        exact: bool,
    },
    /// The model, or a filter before it, would not answer.
    Refused,
    /// Something that is none of the labels, or several of them.
    Outside,
    /// No text at all.
    Empty,
}

impl Outcome {
    /// The label, if it is one.
    pub fn label(self) -> Option<usize> {
        if let Self::Label { label, .. } = self { Some(label) } else { None }
    }

    /// The label's text, or a name in brackets for what is none: a column of its own in a confusion matrix.
    pub fn name(self, labels: &[String]) -> &str {
        match self {
            Self::Label { label, .. } => &labels[label],
            Self::Refused => "(refused)",
            Self::Outside => "(none of the labels)",
            Self::Empty => "(no answer)",
        }
    }
}

/// What the answers to all rows add up to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Answers.
    pub rows: usize,
    /// Labels that were not spelled exactly.
    pub spelled_otherwise: usize,
    /// Refusals.
    pub refused: usize,
    /// Answers that are none of the labels.
    pub outside: usize,
    /// Answers without text.
    pub empty: usize,
    /// Tokens of all.
    pub tokens: Usage,
    /// Answers whose tokens were counted here, because the endpoint did not report them.
    pub tokens_counted: usize,
    /// USD for all; `None` without a price.
    pub cost: Option<f64>,
    /// USD for 1,000 queries.
    pub cost_per_1000: Option<f64>,
    /// Seconds within which half of the answers came.
    pub p50_s: f64,
    /// Seconds within which 95% of the answers came.
    pub p95_s: f64,
    /// Requests that failed and were tried again.
    pub retries: u64,
    /// The exact models that answered, as they name themselves.
    pub models: Vec<String>,
}

impl Summary {
    /// Adds up the answers.
    pub fn new(answers: &[Answer], reader: &LabelReader<'_>, price: Option<&Price>) -> Self {
        let outcomes: Vec<Outcome> = answers.iter().map(|answer| reader.read(&answer.reply).0).collect();
        let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count();
        let mut tokens = Usage::default();
        for answer in answers {
            tokens.prompt += answer.usage.prompt;
            tokens.cached += answer.usage.cached;
            tokens.completion += answer.usage.completion;
        }
        let mut seconds: Vec<f64> = answers.iter().map(|answer| answer.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| routing::quantile(&seconds, share).unwrap_or(0.0);
        let mut models: Vec<String> =
            answers.iter().filter_map(|answer| answer.reply.model.clone()).collect();
        models.sort_unstable();
        models.dedup();
        let cost = price.map(|price| price.cost(&tokens));
        Self {
            rows: answers.len(),
            spelled_otherwise: count(|outcome| matches!(outcome, Outcome::Label { exact: false, .. })),
            refused: count(|outcome| *outcome == Outcome::Refused),
            outside: count(|outcome| *outcome == Outcome::Outside),
            empty: count(|outcome| *outcome == Outcome::Empty),
            tokens,
            tokens_counted: answers.iter().filter(|answer| answer.counted).count(),
            cost,
            cost_per_1000: cost.filter(|_| !answers.is_empty()).map(|cost| cost / answers.len() as f64 * 1e3),
            p50_s: at(0.5),
            p95_s: at(0.95),
            retries: answers.iter().map(|answer| u64::from(answer.tries.saturating_sub(1))).sum(),
            models,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_counted() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let texts = ["a", "B", "c", "", "I cannot say"];
        let answers: Vec<Answer> = (0..)
            .zip(texts)
            .map(|(row, text)| Answer {
                row,
                reply: Reply { content: Some(text.into()), model: Some("m-1".into()), ..Reply::default() },
                usage: Usage { prompt: 1000, cached: 400, completion: 10 },
                counted: row == 0,
                seconds: row as f64,
                tries: 2,
            })
            .collect();
        let price = Price { input: 2.5, cached_input: Some(1.25), output: 10.0, batch: None, training: None };
        let summary = Summary::new(&answers, &LabelReader::new(&labels), Some(&price));
        assert_eq!(
            (summary.spelled_otherwise, summary.refused, summary.outside, summary.empty),
            (1, 1, 1, 1)
        );
        assert_eq!((summary.tokens_counted, summary.retries, summary.models), (1, 5, vec!["m-1".to_owned()]));
        // (600 * 2.50 + 400 * 1.25 + 10 * 10.00) / 1e6 a row
        assert!((summary.cost.unwrap() - 5.0 * 0.0021).abs() < 1e-12);
        assert!((summary.cost_per_1000.unwrap() - 2.1).abs() < 1e-12);
        assert!((summary.p50_s - 2.0).abs() < 1e-12 && (summary.p95_s - 4.0).abs() < 1e-12);
    }
}
