//! A forecast in words.

use std::fmt::Write;

use fewshot::Hardware;
use routing::report::usd;

use super::{Forecast, Remote};
use crate::verbs::against::break_even_line;

impl Forecast {
    /// A line for each thing to be expected, then the large models.
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<22} {value}");
        };
        line(
            "data",
            format!(
                "{} rows to train on, {} to validate on, {} labels",
                self.training_rows, self.validation_rows, self.labels
            ),
        );
        line("method", self.method.to_owned());
        line(
            "tokens",
            format!("{} in the training rows, seen {:.1} times", self.training_tokens, self.epochs),
        );
        let how = if self.measured {
            format!("measured in a few steps on {}", self.trains_on)
        } else {
            "as given".to_owned()
        };
        line(
            "time",
            format!("{} at {:.1} examples a second ({how})", minutes(self.minutes), self.examples_per_s),
        );
        if let Some(bytes) = self.peak_memory_bytes {
            line("peak memory", format!("{:.2} GB in these steps", bytes as f64 / 1e9));
        }
        line(
            "money",
            format!("{} on a machine at {} USD an hour", usd(self.training_cost), self.hardware_per_hour),
        );
        line(
            "1,000 queries",
            format!(
                "{} when it is never idle, at {:.1} a second in {}",
                usd(self.own_cost_per_1000),
                self.queries_per_s,
                self.routes_in
            ),
        );
        for model in &self.models {
            let _ = writeln!(out, "\n{}, {} (prices of {})", model.name, model.shots, self.prices_as_of);
            out.push_str(&model.render(Hardware { per_hour: self.hardware_per_hour }));
        }
        out
    }
}

/// `12 s`, `7 minutes`.
fn minutes(minutes: f64) -> String {
    if minutes < 1.5 {
        format!("{:.0} s", (60.0 * minutes).max(1.0))
    } else {
        format!("{minutes:.0} minutes")
    }
}

impl Remote {
    fn render(&self, hardware: Hardware) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "  {name:<20} {value}");
        };
        let (prompt, answer) = (self.prompt_tokens, self.answer_tokens);
        line("tokens a query", format!("{prompt:.0} in, {answer:.0} out, by the base model's tokenizer"));
        match self.cost_per_1000 {
            None => line("money", "its price is not known; add it to a file for --prices".to_owned()),
            Some(cost) => {
                let batch = self
                    .batch_cost_per_1000
                    .map_or_else(String::new, |batch| format!(", {} as a batch", usd(batch)));
                line("1,000 queries", format!("{}{batch}", usd(cost)));
            }
        }
        if let Some(cost) = self.test_rows_cost {
            line("the test rows", usd(cost));
        }
        if let Some(cost) = self.fine_tuning_cost {
            line("fine-tuning it", format!("{} for the same data and epochs", usd(cost)));
        }
        if let Some(it) = &self.break_even {
            line("break-even", break_even_line(it, hardware));
        }
        out
    }
}
