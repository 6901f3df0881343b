//! The metrics as a table for the terminal.

use super::{Metrics, Scores};
use std::fmt::Write;

impl Metrics {
    /// The layout of scikit-learn's `classification_report`, two decimals.
    pub fn render_table(&self) -> String {
        let names = self.per_label.iter().map(|l| l.label.as_str()).chain(["weighted avg"]);
        // formatting pads by characters, so the widths are counted in characters as well
        let width = names.map(|name| name.chars().count()).max().unwrap_or(0);
        let mut out = format!(
            "{:>width$}  {:>9} {:>9} {:>9} {:>9}\n\n",
            "", "precision", "recall", "f1-score", "support"
        );
        let mut row = |name: &str, scores: &Scores, support: usize| {
            let Scores { precision, recall, f1 } = scores;
            // writing to a `String` cannot fail
            let _ = writeln!(out, "{name:>width$}  {precision:>9.2} {recall:>9.2} {f1:>9.2} {support:>9}");
        };
        for label in &self.per_label {
            row(&label.label, &label.scores, label.support);
        }
        let _ = writeln!(
            out,
            "\n{:>width$}  {:>9} {:>9} {:>9.2} {:>9}",
            "accuracy", "", "", self.accuracy, self.n
        );
        for (name, scores) in [("macro avg", &self.macro_avg), ("weighted avg", &self.weighted)] {
            let Scores { precision, recall, f1 } = scores;
            let _ = writeln!(out, "{name:>width$}  {precision:>9.2} {recall:>9.2} {f1:>9.2} {:>9}", self.n);
        }
        out
    }
}
