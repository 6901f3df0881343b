//! Findings about single rows and rows that repeat each other.

use std::collections::BTreeSet;

use super::material::{Material, plural};
use super::{Finding, FindingKind, Severity, Unit};
use crate::duplicates::{NEAR, Shingles};

/// From this share of a file's rows on, duplicates change what is measured or learned.
const NOTABLE_SHARE: f64 = 0.01;
/// Characters that count as a token when there is no counter.
const CHARACTERS_PER_TOKEN: usize = 4;
/// A row is compared with at most this many rows of its group, which bounds the work on files of alike rows.
const TWINS: usize = 1000;

/// Rows without a text or a label.
pub(super) fn empty(material: &Material) -> Vec<Finding> {
    let blank = |part: fn(&crate::Example) -> &str| -> Vec<Vec<usize>> {
        let rows = material.rows.iter().enumerate();
        rows.filter(|(_, (_, example))| part(example).trim().is_empty()).map(|(row, _)| vec![row]).collect()
    };
    let (texts, labels) = (blank(|example| &example.text), blank(|example| &example.label));
    let advice = "Fill them in or remove them: training refuses such rows.";
    let found = |kind, part, rows: Vec<Vec<usize>>| {
        let summary = format!("{} with an empty {part}", plural(rows.len(), "row"));
        material.rows_found(kind, Severity::Error, summary, advice.into(), rows)
    };
    let texts = found(FindingKind::EmptyText, "text", texts);
    texts.into_iter().chain(found(FindingKind::EmptyLabel, "label", labels)).collect()
}

/// The same text under several labels, in one file or in several.
pub(super) fn contradictions(material: &Material) -> Option<Finding> {
    let mut cases = material.exact.members();
    for rows in &mut cases {
        // One row of each label is evidence enough.
        let mut seen = BTreeSet::new();
        rows.retain(|&row| seen.insert(&material.rows[row].1.label));
    }
    cases.retain(|rows| rows.len() > 1);
    material.rows_found(
        FindingKind::Contradiction,
        Severity::Warning,
        format!("{} under several labels", plural(cases.len(), "text")),
        "No model can get both right: decide on one label for each, or say more in the text.".into(),
        cases,
    )
}

/// Rows of a later file that stand in an earlier one, exactly or nearly.
pub(super) fn leaks(material: &Material) -> Vec<Finding> {
    let (exact, near) = (material.exact.members(), material.near.members());
    let file_of = |row: usize| material.rows[row].0;
    let mut findings = Vec::new();
    for (file, data) in material.datasets.iter().enumerate().skip(1) {
        // Pairs of a row of this file and its twin in an earlier one.
        let (mut same, mut alike) = (Vec::new(), Vec::new());
        let mut copied = BTreeSet::new();
        for members in &exact {
            if let Some(&twin) = members.iter().find(|&&row| file_of(row) < file) {
                let here = members.iter().copied().filter(|&row| file_of(row) == file);
                same.extend(here.map(|row| vec![row, twin]));
            }
        }
        copied.extend(same.iter().map(|pair| pair[0]));
        for members in &near {
            let here = members.iter().copied().filter(|row| file_of(*row) == file && !copied.contains(row));
            let twins = members.iter().copied().filter(|&row| file_of(row) < file);
            alike.extend(near_pairs(
                material,
                &here.collect::<Vec<_>>(),
                &twins.take(TWINS).collect::<Vec<_>>(),
            ));
        }
        same.sort();
        alike.sort();
        let name = &material.names[file];
        let share = |pairs: &[Vec<usize>]| pairs.len() as f64 / data.examples.len().max(1) as f64;
        let percent = 100.0 * share(&same);
        findings.extend(material.rows_found(
            FindingKind::ExactLeak,
            if share(&same) >= NOTABLE_SHARE { Severity::Error } else { Severity::Warning },
            format!("{} of {name} ({percent:.1}%) already in an earlier file", plural(same.len(), "row")),
            format!(
                "Remove them from one of the files: a model that remembers them scores up to {percent:.1} points \
                 too high."
            ),
            same,
        ));
        let percent = 100.0 * share(&alike);
        findings.extend(
            material.rows_found(
                FindingKind::NearLeak,
                Severity::Warning,
                format!("{} of {name} ({percent:.1}%) almost in an earlier file", plural(alike.len(), "row")),
                "Look at them: where only spelling or word order differs, remove them from one of the files."
                    .into(),
                alike,
            ),
        );
    }
    findings
}

/// Each row of `here` that has near duplicates among `twins`, with the nearest of them.
fn near_pairs(material: &Material, here: &[usize], twins: &[usize]) -> Vec<Vec<usize>> {
    if here.is_empty() || twins.is_empty() {
        return Vec::new();
    }
    let twins: Vec<_> = twins.iter().map(|&twin| (twin, Shingles::new(&material.texts[twin]))).collect();
    let nearest = |&row: &usize| {
        let shingles = Shingles::new(&material.texts[row]);
        let scored = twins.iter().map(|(twin, other)| (shingles.similarity(other), *twin));
        // The first of equals, so that the answer does not depend on how the maximum is taken.
        let (similarity, twin) =
            scored.fold((0.0, row), |best, next| if next.0 > best.0 { next } else { best });
        (similarity >= NEAR).then(|| vec![row, twin])
    };
    here.iter().filter_map(nearest).collect()
}

/// Duplicates inside each file.
pub(super) fn repetitions(material: &Material) -> Vec<Finding> {
    let (exact, near) = (material.exact.members(), material.near.members());
    let mut findings = Vec::new();
    for (file, data) in material.datasets.iter().enumerate() {
        let in_file = |groups: &[Vec<usize>]| -> Vec<Vec<usize>> {
            let here = |rows: &Vec<usize>| {
                rows.iter().copied().filter(|&row| material.rows[row].0 == file).collect()
            };
            groups.iter().map(here).collect()
        };
        let (mut same, mut alike) = (in_file(&exact), in_file(&near));
        for rows in &mut alike {
            let mut seen = BTreeSet::new();
            rows.retain(|&row| seen.insert(material.exact.of(row)));
        }
        let repeated = |groups: &mut Vec<Vec<usize>>| -> usize {
            groups.retain(|rows| rows.len() > 1);
            groups.iter().map(|rows| rows.len() - 1).sum()
        };
        let (copies, variants) = (repeated(&mut same), repeated(&mut alike));
        let notable = copies as f64 >= NOTABLE_SHARE * data.examples.len() as f64;
        let name = &material.names[file];
        findings.extend(material.rows_found(
            FindingKind::ExactDuplicates,
            if notable { Severity::Warning } else { Severity::Info },
            format!("{} inside {name}", plural(copies, "exact duplicate")),
            "Keep one of each: copies weigh their label and their wording more than the rest.".into(),
            same,
        ));
        findings.extend(material.rows_found(
            FindingKind::NearDuplicates,
            Severity::Info,
            format!("{} inside {name}", plural(variants, "near duplicate")),
            "Harmless as variety. A split made here keeps them on one side; make your own splits do so too.".into(),
            alike,
        ));
    }
    findings
}

/// Texts longer than the limit, the longest first.
pub(super) fn over_long(material: &Material) -> Option<Finding> {
    let (limit, unit) = match material.unit {
        Unit::Tokens => (material.options.max_tokens, "tokens"),
        Unit::Characters => (material.options.max_tokens.saturating_mul(CHARACTERS_PER_TOKEN), "characters"),
    };
    let mut rows: Vec<usize> =
        (0..material.rows.len()).filter(|&row| material.lengths[row] > limit).collect();
    rows.sort_by_key(|&row| std::cmp::Reverse(material.lengths[row]));
    let longest = rows.first().map_or(0, |&row| material.lengths[row]);
    material.rows_found(
        FindingKind::OverLong,
        Severity::Warning,
        format!("{} longer than {limit} {unit}, the longest {longest}", plural(rows.len(), "row")),
        "Shorten them to what decides the label: they slow down training and may be cut.".into(),
        rows.into_iter().map(|row| vec![row]).collect(),
    )
}
