//! What findings are drawn from, and how they are put together.

use super::{Case, CheckOptions, FileSummary, Finding, FindingKind, Lengths, RowCase, Severity, Unit};
use crate::duplicates::Groups;
use crate::example::{Dataset, Example, Place};
use crate::quantile;

/// Characters of a text that are kept as evidence.
const EVIDENCE: usize = 200;

/// All rows of all files, with what is known about them together.
pub(super) struct Material<'a> {
    pub(super) datasets: &'a [Dataset],
    /// What each file is called: its name without folders, unless two files share it.
    pub(super) names: Vec<String>,
    /// Each row with its file's number.
    pub(super) rows: Vec<(usize, &'a Example)>,
    pub(super) texts: Vec<std::borrow::Cow<'a, str>>,
    pub(super) lengths: Vec<usize>,
    pub(super) unit: Unit,
    pub(super) exact: Groups,
    pub(super) near: Groups,
    pub(super) options: &'a CheckOptions,
}

impl<'a> Material<'a> {
    pub(super) fn new(
        datasets: &'a [Dataset],
        options: &'a CheckOptions,
        token_counter: Option<&dyn Fn(&str) -> usize>,
    ) -> Self {
        let files = datasets.iter().enumerate();
        let rows: Vec<(usize, &Example)> =
            files.flat_map(|(file, data)| data.examples.iter().map(move |example| (file, example))).collect();
        let texts: Vec<_> = rows.iter().map(|(_, example)| example.full_text()).collect();
        // Tokens and likeness take about as long as each other.
        let (lengths, exact, near) = std::thread::scope(|scope| {
            let groups = scope.spawn(|| (Groups::exact(&texts), Groups::near(&texts)));
            let lengths = texts.iter().map(|text| match token_counter {
                Some(count) => count(text),
                None => text.chars().count(),
            });
            let lengths = lengths.collect();
            let (exact, near) = groups.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (lengths, exact, near)
        });
        Self {
            datasets,
            names: short_names(datasets),
            lengths,
            unit: if token_counter.is_some() { Unit::Tokens } else { Unit::Characters },
            exact,
            near,
            rows,
            texts,
            options,
        }
    }

    pub(super) fn summarise(&self, file: usize) -> FileSummary {
        let data = &self.datasets[file];
        let pairs = self.rows.iter().zip(&self.lengths);
        let mut lengths: Vec<usize> =
            pairs.filter(|((of, _), _)| *of == file).map(|(_, &length)| length).collect();
        lengths.sort_unstable();
        let quantile = |share: f64| quantile(&lengths, share).unwrap_or(0);
        FileSummary {
            path: data.path.display().to_string(),
            name: self.names[file].clone(),
            format: data.format,
            text_field: data.text_field.clone(),
            label_field: data.label_field.clone(),
            rows: data.examples.len(),
            labels: data.label_counts().len(),
            lengths: Lengths {
                unit: self.unit,
                total: lengths.iter().sum(),
                p50: quantile(0.5),
                p95: quantile(0.95),
                max: lengths.last().copied().unwrap_or(0),
            },
            sha256: data.sha256.clone(),
        }
    }

    /// A finding about rows; none without cases. Each case lists rows that belong together.
    pub(super) fn rows_found(
        &self,
        kind: FindingKind,
        severity: Severity,
        summary: String,
        advice: String,
        cases: Vec<Vec<usize>>,
    ) -> Option<Finding> {
        let count = cases.len();
        let shown = cases.into_iter().take(self.options.shown);
        let cases =
            shown.map(|rows| Case::Rows(rows.into_iter().map(|row| self.evidence(row)).collect())).collect();
        (count > 0).then_some(Finding { kind, severity, summary, advice, count, cases })
    }

    /// A finding about labels; none without cases. Each case lists labels that belong together.
    pub(super) fn labels_found(
        &self,
        kind: FindingKind,
        severity: Severity,
        summary: String,
        advice: String,
        cases: Vec<Vec<String>>,
    ) -> Option<Finding> {
        let count = cases.len();
        let cases = cases.into_iter().take(self.options.shown).map(Case::Labels).collect();
        (count > 0).then_some(Finding { kind, severity, summary, advice, count, cases })
    }

    fn evidence(&self, row: usize) -> RowCase {
        let (file, example) = self.rows[row];
        let name = &self.names[file];
        RowCase {
            at: match example.origin.place {
                Place::Line(line) => format!("{name}:{line}"),
                Place::Row(row) => format!("{name} row {row}"),
            },
            label: example.label.clone(),
            text: example.text.chars().take(EVIDENCE).collect(),
        }
    }
}

fn short_names(datasets: &[Dataset]) -> Vec<String> {
    let short = |data: &Dataset| data.path.file_name().map(|name| name.to_string_lossy().into_owned());
    let names = datasets.iter().map(|data| match short(data) {
        Some(name) if datasets.iter().filter(|other| short(other).as_ref() == Some(&name)).count() == 1 => {
            name
        }
        _ => data.path.display().to_string(),
    });
    names.collect()
}

/// A number with its noun.
pub(super) fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
