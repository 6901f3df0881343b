//! The data doctor: what is wrong with labelled files before a model learns from them.

mod labels;
mod material;
mod render;
mod rows;

use std::collections::BTreeMap;

use serde::Serialize;

use self::material::Material;
use crate::example::{Dataset, Format};

/// How strictly and how verbosely to check.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckOptions {
    /// The most tokens a text should have. Without a token counter, four characters count as a token.
    pub max_tokens: usize,
    /// Cases listed for each finding, and labels listed when rendering.
    pub shown: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { max_tokens: 512, shown: 5 }
    }
}

/// What the doctor found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The files, in the order given; the first is the one to train on.
    pub files: Vec<FileSummary>,
    /// All labels, the most frequent first.
    pub labels: Vec<LabelSummary>,
    /// What should be looked at, the most severe first.
    pub findings: Vec<Finding>,
    /// Labels listed when rendering.
    #[serde(skip)]
    shown: usize,
}

impl Diagnosis {
    /// The worst severity found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

/// One file in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileSummary {
    /// The file as it was named.
    pub path: String,
    /// What findings call it: its name without folders, unless two files share it.
    pub name: String,
    /// How it is written.
    pub format: Format,
    /// The field of the text.
    pub text_field: String,
    /// The field of the label.
    pub label_field: String,
    /// Rows in it.
    pub rows: usize,
    /// Different labels in it.
    pub labels: usize,
    /// How long its texts are.
    pub lengths: Lengths,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// How long texts are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// What is counted.
    pub unit: Unit,
    /// The sum over all texts.
    pub total: usize,
    /// Half of the texts are at most this long.
    pub p50: usize,
    /// 95% of the texts are at most this long.
    pub p95: usize,
    /// The longest text.
    pub max: usize,
}

/// What a length counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Tokens of the base model.
    Tokens,
    /// Unicode characters.
    Characters,
}

/// One label in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelSummary {
    /// The label.
    pub label: String,
    /// Its rows in each file.
    pub rows: Vec<usize>,
    /// Its share of the first file's rows, from 0 to 1.
    pub share: f64,
}

/// One kind of thing that should be looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// How bad it is.
    pub severity: Severity,
    /// What was found and where, in a sentence.
    pub summary: String,
    /// What to do about it.
    pub advice: String,
    /// How many cases there are; of duplicates, how many groups.
    pub count: usize,
    /// The first cases.
    pub cases: Vec<Case>,
}

/// One case of a finding: the rows or labels that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    /// Rows, with their places.
    Rows(Vec<RowCase>),
    /// Labels.
    Labels(Vec<String>),
}

/// A row as evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowCase {
    /// File name and line or row.
    pub at: String,
    /// Its label.
    pub label: String,
    /// The beginning of its text.
    pub text: String,
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Rows without a text.
    EmptyText,
    /// Rows without a label.
    EmptyLabel,
    /// Fewer than two labels.
    OneLabel,
    /// Labels with a single example to train on.
    SingleExample,
    /// Labels with few examples to train on.
    FewExamples,
    /// Some labels are much more frequent than others.
    Imbalance,
    /// Labels that differ only in case, spaces or punctuation.
    LabelVariants,
    /// Labels in a later file that the first file lacks.
    UnknownLabels,
    /// Labels of the first file that a later file lacks.
    UntestedLabels,
    /// The same text under several labels.
    Contradiction,
    /// Rows of a later file that stand in an earlier one too.
    ExactLeak,
    /// Rows of a later file that nearly stand in an earlier one too.
    NearLeak,
    /// The same text several times in a file.
    ExactDuplicates,
    /// Nearly the same text several times in a file.
    NearDuplicates,
    /// Texts that are too long.
    OverLong,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Costs quality or trust in the numbers.
    Warning,
    /// Training or its measurement would fail or mislead.
    Error,
}

/// Examines the files together; the first is the one to train on, the others measure.
///
/// `token_counter` counts the tokens of a text in the base model.
pub fn check(
    datasets: &[Dataset],
    options: &CheckOptions,
    token_counter: Option<&dyn Fn(&str) -> usize>,
) -> Diagnosis {
    let material = Material::new(datasets, options, token_counter);
    let mut findings = rows::empty(&material);
    findings.extend(labels::counts(&material));
    findings.extend(labels::sets(&material));
    findings.extend(labels::variants(&material));
    findings.extend(rows::contradictions(&material));
    findings.extend(rows::leaks(&material));
    findings.extend(rows::repetitions(&material));
    findings.extend(rows::over_long(&material));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Diagnosis {
        files: (0..datasets.len()).map(|file| material.summarise(file)).collect(),
        labels: summarise_labels(datasets),
        findings,
        shown: options.shown,
    }
}

fn summarise_labels(datasets: &[Dataset]) -> Vec<LabelSummary> {
    let mut rows: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (file, data) in datasets.iter().enumerate() {
        for (label, count) in data.label_counts() {
            rows.entry(label).or_insert_with(|| vec![0; datasets.len()])[file] = count;
        }
    }
    let all = datasets.first().map_or(0, |data| data.examples.len()).max(1) as f64;
    let summary = |(label, rows): (&str, Vec<usize>)| LabelSummary {
        label: label.to_owned(),
        share: rows[0] as f64 / all,
        rows,
    };
    let mut labels: Vec<LabelSummary> = rows.into_iter().map(summary).collect();
    labels.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.label.cmp(&b.label)));
    labels
}

#[cfg(test)]
mod tests;
