//! The diagnosis as plain text for the terminal.

use std::fmt::Write;

use super::material::plural;
use super::{Case, Diagnosis, FileSummary, Finding, LabelSummary, Severity, Unit};

/// The widest line.
const WIDTH: usize = 110;
/// The longest bar.
const BAR: usize = 30;
/// Rows shown of one case.
const MEMBERS: usize = 3;

impl Diagnosis {
    /// The diagnosis in lines of at most 110 columns, as long as no single word is longer.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for file in &self.files {
            render_file(&mut out, file);
        }
        render_labels(&mut out, &self.labels, self.files.len(), self.shown);
        for finding in &self.findings {
            render_finding(&mut out, finding);
        }
        let count = |severity| self.findings.iter().filter(|finding| finding.severity == severity).count();
        let [errors, warnings, notes] = [Severity::Error, Severity::Warning, Severity::Info].map(count);
        let verdict = match (errors, warnings) {
            (0, 0) => "Nothing stands in the way of training.",
            (0, _) => "Training can start; the warnings are worth a look.",
            _ => "Correct the errors before training on this data or trusting its numbers.",
        };
        let counts = [plural(errors, "error"), plural(warnings, "warning"), plural(notes, "note")].join(", ");
        line(&mut out, "", "", &format!("{counts}. {verdict}"));
        // A data file must not be able to steer the terminal.
        out.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
    }
}

fn render_file(out: &mut String, file: &FileSummary) {
    let FileSummary { path, format, rows, labels, text_field, label_field, lengths, .. } = file;
    let (rows, labels) = (grouped(*rows), plural(*labels, "label"));
    line(out, "", "  ", &format!("{path}: {format}, {rows} rows, {labels}"));
    let unit = match lengths.unit {
        Unit::Tokens => "tokens",
        Unit::Characters => "characters",
    };
    let (total, p50, p95, max) = (grouped(lengths.total), lengths.p50, lengths.p95, lengths.max);
    let fields = format!("text from {text_field:?}, label from {label_field:?}");
    let sizes =
        format!("{total} {unit}: half the texts have up to {p50}, 95% up to {p95}, the longest {max}");
    line(out, "  ", "    ", &format!("{fields}; {sizes}"));
}

fn render_labels(out: &mut String, labels: &[LabelSummary], files: usize, shown: usize) {
    if labels.is_empty() {
        return;
    }
    let columns = if files > 1 { "rows of each file, share of the first" } else { "rows, share" };
    let _ = writeln!(out, "\nlabels ({columns})");
    // The ends of the list matter most: what is frequent and what is rare.
    let shown = shown.max(1);
    let head = if labels.len() <= 2 * shown + 1 { labels.len() } else { shown };
    let tail = if head == labels.len() { labels.len() } else { labels.len() - shown };
    let width = labels.iter().map(|label| label.label.chars().count()).max().unwrap_or(0).min(40);
    let most = labels.iter().map(|label| label.share).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    for (position, label) in labels.iter().enumerate() {
        if position == head && head < tail {
            let _ = writeln!(out, "  … {} more labels …", tail - head);
        }
        if position < head || position >= tail {
            let counts: String =
                label.rows.iter().fold(String::new(), |text, rows| format!("{text}{rows:>8}"));
            let bar = "#".repeat((label.share / most * BAR as f64).round() as usize);
            let text = format!(
                "  {:width$}{counts}  {:>5.1}%  {bar}",
                clip(&label.label, width),
                100.0 * label.share
            );
            let _ = writeln!(out, "{}", clip(text.trim_end(), WIDTH));
        }
    }
    out.push('\n');
}

fn render_finding(out: &mut String, finding: &Finding) {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    };
    line(out, "", "  ", &format!("{severity}: {}", finding.summary));
    for case in &finding.cases {
        match case {
            Case::Labels(labels) => line(out, "  - ", "    ", &labels.join(", ")),
            Case::Rows(rows) => {
                for (position, row) in rows.iter().take(MEMBERS).enumerate() {
                    let bullet = if position == 0 { "  - " } else { "    = " };
                    let text: Vec<&str> = row.text.split_whitespace().collect();
                    let text = format!("{bullet}{} [{}] {}", row.at, row.label, text.join(" "));
                    let _ = writeln!(out, "{}", clip(&text, WIDTH));
                }
                if rows.len() > MEMBERS {
                    let _ = writeln!(out, "    = and {} more", plural(rows.len() - MEMBERS, "row"));
                }
            }
        }
    }
    let more = finding.count.saturating_sub(finding.cases.len());
    if more > 0 && !finding.cases.is_empty() {
        let _ = writeln!(out, "    and {more} more");
    }
    line(out, "  ", "  ", &format!("-> {}", finding.advice));
    out.push('\n');
}

/// Writes text as lines of at most [`WIDTH`] columns, broken between words.
fn line(out: &mut String, first: &str, rest: &str, text: &str) {
    let mut column = first.chars().count();
    out.push_str(first);
    for (position, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if position > 0 && column + 1 + length > WIDTH {
            let _ = write!(out, "\n{rest}");
            column = rest.chars().count();
        } else if position > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}

/// A text of at most `width` characters, its end cut off if need be.
fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A number with its thousands set apart.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
