//! Findings about the set of labels and how often each occurs.

use std::collections::{BTreeMap, BTreeSet};

use super::material::{Material, plural};
use super::{Finding, FindingKind, Severity};

/// Fewer examples than this leave a label mostly to chance.
const FEW_EXAMPLES: usize = 8;
/// A label this many times as frequent as another is what a model guesses in doubt.
const IMBALANCE: usize = 10;

/// Labels of the first file that are alone, rare or far apart in number.
pub(super) fn counts(material: &Material) -> Vec<Finding> {
    let Some(first) = material.datasets.first() else { return Vec::new() };
    let (name, counts) = (&material.names[0], first.label_counts());
    let mut findings = Vec::new();
    if counts.len() < 2 {
        findings.push(Finding {
            kind: FindingKind::OneLabel,
            severity: Severity::Error,
            summary: format!("{} in {name}, a router needs two or more", plural(counts.len(), "label")),
            advice: "Add examples of the other labels, or name another field: --label-field NAME.".into(),
            count: 1,
            cases: Vec::new(),
        });
    }
    let rare = |least: usize, most: usize| -> Vec<Vec<String>> {
        let mut rare: Vec<_> = counts.iter().filter(|(_, count)| (least..=most).contains(*count)).collect();
        rare.sort_by_key(|(_, count)| **count);
        rare.into_iter().map(|(label, count)| vec![format!("{label} ({count})")]).collect()
    };
    let (single, few) = (rare(1, 1), rare(2, FEW_EXAMPLES - 1));
    findings.extend(material.labels_found(
        FindingKind::SingleExample,
        Severity::Error,
        format!("{} in {name} with one example only", plural(single.len(), "label")),
        "One example cannot be both learned from and tested on: add more, merge the label into another, or \
         remove it."
            .into(),
        single,
    ));
    findings.extend(material.labels_found(
        FindingKind::FewExamples,
        Severity::Warning,
        format!("{} in {name} with fewer than {FEW_EXAMPLES} examples", plural(few.len(), "label")),
        "Collect more of them, at best 30 or more each, or merge the labels into related ones.".into(),
        few,
    ));
    let most = counts.iter().max_by_key(|(_, count)| **count);
    let least = counts.iter().min_by_key(|(_, count)| **count);
    if let (Some((most, high)), Some((least, low))) = (most, least)
        && *high >= IMBALANCE * *low
    {
        findings.push(Finding {
            kind: FindingKind::Imbalance,
            severity: Severity::Warning,
            summary: format!(
                "unbalanced labels in {name}: {most:?} has {high} examples, {least:?} has {low} ({}:1)",
                high / low
            ),
            advice:
                "Judge by macro-F1 beside accuracy, which rare labels hardly move, and collect more of the \
                     rare ones."
                    .into(),
            count: 1,
            cases: Vec::new(),
        });
    }
    findings
}

/// Labels that the first file has and a later one lacks, or the other way round.
pub(super) fn sets(material: &Material) -> Vec<Finding> {
    let sets: Vec<BTreeSet<&str>> =
        material.datasets.iter().map(|data| data.label_counts().into_keys().collect()).collect();
    let Some((trained, later)) = sets.split_first() else { return Vec::new() };
    let only = |here: &BTreeSet<&str>, there: &BTreeSet<&str>| -> Vec<Vec<String>> {
        here.difference(there).map(|label| vec![(*label).to_owned()]).collect()
    };
    let first = &material.names[0];
    let mut findings = Vec::new();
    for (tested, name) in later.iter().zip(&material.names[1..]) {
        let (unknown, untested) = (only(tested, trained), only(trained, tested));
        findings.extend(material.labels_found(
            FindingKind::UnknownLabels,
            Severity::Error,
            format!("{} in {name} but not in {first}", plural(unknown.len(), "label")),
            "A model cannot give a label it never saw: add examples to the training file, or correct the spelling."
                .into(),
            unknown,
        ));
        findings.extend(material.labels_found(
            FindingKind::UntestedLabels,
            Severity::Warning,
            format!("{} in {first} but not in {name}", plural(untested.len(), "label")),
            "Nothing will be known about how well these are routed: add examples of them.".into(),
            untested,
        ));
    }
    findings
}

/// What labels that mean the same have in common: letters and digits. The signs of a number are part of it.
fn spelling(label: &str) -> String {
    if label.parse::<f64>().is_ok() {
        return label.to_owned();
    }
    label.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Labels that differ only in case, spaces or punctuation.
pub(super) fn variants(material: &Material) -> Option<Finding> {
    let mut spellings: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (_, example) in &material.rows {
        spellings.entry(spelling(&example.label)).or_default().insert(&example.label);
    }
    let variants: Vec<Vec<String>> = spellings
        .into_iter()
        .filter(|(key, labels)| !key.is_empty() && labels.len() > 1)
        .map(|(_, labels)| labels.into_iter().map(str::to_owned).collect())
        .collect();
    material.labels_found(
        FindingKind::LabelVariants,
        Severity::Warning,
        format!("{} in several spellings", plural(variants.len(), "label")),
        "They count as different labels: choose one spelling of each, unless they do mean different things."
            .into(),
        variants,
    )
}

#[cfg(test)]
mod tests {
    use super::spelling;

    #[test]
    fn numbers_are_spelt_with_their_signs() {
        assert_eq!(spelling("Card-Arrival "), spelling("card arrival"));
        assert_ne!(spelling("-1"), spelling("1"));
        assert_ne!(spelling("1.5"), spelling("15"));
    }
}
