//! The metrics as a table for the terminal.

use super::{Metrics, Scores};
use std::fmt::Write;

impl Metrics {
    /// The layout of scikit-learn's `classification_report`, two decimals; long labels lose their middle.
    pub fn render_table(&self) -> String {
        let labels: Vec<String> = self.per_label.iter().map(|l| shortened(&l.label)).collect();
        let names = labels.iter().map(String::as_str).chain(["weighted avg"]);
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
        for (name, label) in labels.iter().zip(&self.per_label) {
            row(name, &label.scores, label.support);
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

/// Characters of a label that are shown.
const NAME: usize = 60;

/// A name without its middle, where it is too long for a table: what tells long labels apart mostly stands at an end.
fn shortened(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= NAME {
        return name.to_owned();
    }
    let end = NAME / 3;
    letters[..NAME - end - 1].iter().chain(['…'].iter()).chain(&letters[letters.len() - end..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_labels_are_told_apart_in_a_table_of_bounded_width() {
        let label = |end: char| "x".repeat(300) + &end.to_string();
        let [a, b] = ['a', 'b'].map(label);
        let table = Metrics::from_names(&[], &[(&a, &a), (&b, &a), ("short", "short")]).render_table();
        assert!(table.lines().all(|line| line.chars().count() <= NAME + 42), "{table}");
        assert!(table.contains("…xxxxxxxxxxxxxxxxxxxa ") && table.contains("xb "), "{table}");
    }
}
