use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::example::{Example, Origin};

fn dataset(name: &str, rows: &[(&str, &str)]) -> Dataset {
    let path: Arc<Path> = Path::new(name).into();
    let examples =
        (2..).zip(rows).map(|(line, (text, label))| Example::new(*text, *label, Origin::line(&path, line)));
    Dataset {
        examples: examples.collect(),
        path,
        format: Format::Csv,
        text_field: "text".into(),
        label_field: "label".into(),
        sha256: String::new(),
    }
}

/// Ten plain rows of each of two labels, and more.
fn training(more: &[(&'static str, &'static str)]) -> Dataset {
    const CARDS: [&str; 10] = [
        "where is my new card",
        "the cash machine swallowed it",
        "please send a replacement",
        "block it at once",
        "is contactless switched on",
        "my pin does not work",
        "can my daughter have one too",
        "it expires next month",
        "virtual or plastic?",
        "do you offer gold",
    ];
    const REFUNDS: [&str; 10] = [
        "I want my money back",
        "the shop returned the amount, when does it arrive",
        "dispute this payment",
        "chargeback for a broken phone",
        "refund status",
        "they billed me twice",
        "cancelled flight, who pays",
        "wrong sum was credited",
        "how long do returns take",
        "merchant refuses to reimburse",
    ];
    let mut rows: Vec<_> = CARDS.map(|text| (text, "cards")).to_vec();
    rows.extend(REFUNDS.map(|text| (text, "refunds")));
    rows.extend(more);
    dataset("train.csv", &rows)
}

fn find(diagnosis: &Diagnosis, kind: FindingKind) -> &Finding {
    let found: Vec<_> = diagnosis.findings.iter().filter(|finding| finding.kind == kind).collect();
    assert_eq!(found.len(), 1, "{kind:?} in {:#?}", diagnosis.findings);
    found[0]
}

fn check_one(more: &[(&'static str, &'static str)]) -> Diagnosis {
    check(&[training(more)], &CheckOptions::default(), None)
}

fn rows_of(case: &Case) -> Vec<&str> {
    match case {
        Case::Rows(rows) => rows.iter().map(|row| row.at.as_str()).collect(),
        Case::Labels(_) => panic!("labels"),
    }
}

#[test]
fn clean_data_has_no_findings() {
    let diagnosis = check_one(&[]);
    assert_eq!(diagnosis.findings, []);
    assert_eq!(diagnosis.worst(), None);
    assert!(diagnosis.render().contains("Nothing stands in the way"));
    assert_eq!(diagnosis.labels[0], LabelSummary { label: "cards".into(), rows: vec![10], share: 0.5 });
}

#[test]
fn empty_rows_are_errors() {
    let diagnosis = check_one(&[(" \n", "cards"), ("no label", "")]);
    assert_eq!(rows_of(&find(&diagnosis, FindingKind::EmptyText).cases[0]), ["train.csv:22"]);
    assert_eq!(rows_of(&find(&diagnosis, FindingKind::EmptyLabel).cases[0]), ["train.csv:23"]);
    assert_eq!(diagnosis.worst(), Some(Severity::Error));
    assert_eq!(diagnosis.findings.len(), 2, "{:#?}", diagnosis.findings);
}

#[test]
fn rare_and_single_labels() {
    let diagnosis =
        check_one(&[("lonely text", "lonely"), ("first of a pair", "pair"), ("second thing", "pair")]);
    assert_eq!(find(&diagnosis, FindingKind::SingleExample).cases, [Case::Labels(vec!["lonely (1)".into()])]);
    assert_eq!(find(&diagnosis, FindingKind::FewExamples).cases, [Case::Labels(vec!["pair (2)".into()])]);
    assert!(find(&diagnosis, FindingKind::Imbalance).summary.contains("(10:1)"));
    let one = dataset("one.csv", &[("a text", "x"), ("more of it", "x")]);
    assert_eq!(check(&[one], &CheckOptions::default(), None).worst(), Some(Severity::Error));
}

#[test]
fn duplicates_and_contradictions_inside_a_file() {
    let diagnosis = check_one(&[
        ("Where is my new card?!", "cards"),
        ("REFUND  status", "refunds"),
        ("refund-status", "cards"),
        ("the shop returned the amount, when does it arive", "refunds"),
    ]);
    let exact = find(&diagnosis, FindingKind::ExactDuplicates);
    assert_eq!(exact.severity, Severity::Warning);
    assert!(exact.summary.starts_with("3 exact duplicates inside train.csv"), "{}", exact.summary);
    assert_eq!(rows_of(&exact.cases[1]), ["train.csv:16", "train.csv:23", "train.csv:24"]);
    let near = find(&diagnosis, FindingKind::NearDuplicates);
    assert_eq!(rows_of(&near.cases[0]), ["train.csv:13", "train.csv:25"]);
    let contradiction = find(&diagnosis, FindingKind::Contradiction);
    assert_eq!(rows_of(&contradiction.cases[0]), ["train.csv:16", "train.csv:24"]);
    assert_eq!(contradiction.count, 1);
}

#[test]
fn leaks_between_files() {
    let test = dataset(
        "test.csv",
        &[
            ("Block it, at once!", "cards"),
            ("they  billed me twice", "refunds"),
            ("the cash machine swallowed it.", "cards"),
            ("chargeback for a broken  phones", "refunds"),
            ("something quite new", "cards"),
        ],
    );
    let diagnosis =
        check(&[training(&[]), test], &CheckOptions { shown: 2, ..CheckOptions::default() }, None);
    let exact = find(&diagnosis, FindingKind::ExactLeak);
    assert_eq!((exact.count, exact.severity), (3, Severity::Error));
    assert!(exact.summary.contains("3 rows of test.csv (60.0%)"), "{}", exact.summary);
    assert_eq!(exact.cases.len(), 2);
    assert_eq!(rows_of(&exact.cases[0]), ["test.csv:2", "train.csv:5"]);
    let near = find(&diagnosis, FindingKind::NearLeak);
    assert_eq!(rows_of(&near.cases[0]), ["test.csv:5", "train.csv:15"]);
    assert_eq!(near.count, 1);
    assert!(diagnosis.render().contains("and 1 more"));
}

#[test]
fn label_sets_and_spellings() {
    let test = dataset("test.csv", &[("quite new", "Cards"), ("another", "fraud"), ("a third one", "fraud")]);
    let diagnosis = check(&[training(&[]), test], &CheckOptions::default(), None);
    let unknown = find(&diagnosis, FindingKind::UnknownLabels);
    assert_eq!(unknown.cases, [Case::Labels(vec!["Cards".into()]), Case::Labels(vec!["fraud".into()])]);
    assert_eq!(find(&diagnosis, FindingKind::UntestedLabels).count, 2);
    let variants = find(&diagnosis, FindingKind::LabelVariants);
    assert_eq!(variants.cases, [Case::Labels(vec!["Cards".into(), "cards".into()])]);
}

#[test]
fn lengths_are_counted_in_tokens_when_there_is_a_counter() {
    let data = dataset("a.csv", &[("one", "x"), ("one two", "x"), ("a b c d", "y"), ("q", "y")]);
    let words: &dyn Fn(&str) -> usize = &|text| text.split(' ').count();
    let options = CheckOptions { max_tokens: 3, ..CheckOptions::default() };
    let diagnosis = check(std::slice::from_ref(&data), &options, Some(words));
    assert_eq!(diagnosis.files[0].lengths, Lengths { unit: Unit::Tokens, total: 8, p50: 1, p95: 4, max: 4 });
    assert_eq!(rows_of(&find(&diagnosis, FindingKind::OverLong).cases[0]), ["a.csv:4"]);
    let diagnosis = check(&[data], &options, None);
    assert_eq!(
        diagnosis.files[0].lengths,
        Lengths { unit: Unit::Characters, total: 18, p50: 3, p95: 7, max: 7 }
    );
    assert!(diagnosis.findings.iter().all(|finding| finding.kind != FindingKind::OverLong));
}

#[test]
fn nothing_and_empty_files_are_no_trouble() {
    assert_eq!(check(&[], &CheckOptions::default(), None).files, []);
    let empty = dataset("empty.csv", &[]);
    assert_eq!(check(&[empty.clone(), empty], &CheckOptions::default(), None).worst(), Some(Severity::Error));
}

#[test]
fn the_rendering_is_narrow_and_complete() {
    let long = "a very long text that goes on and on ".repeat(20).leak();
    let labels: Vec<(String, String)> =
        (0..60).map(|n| (format!("{n} {long}"), format!("label {n} {n}"))).collect();
    let rows: Vec<(&str, &str)> =
        labels.iter().map(|(text, label)| (text.as_str(), label.as_str())).collect();
    let diagnosis = check(&[training(&[]), dataset("many.csv", &rows)], &CheckOptions::default(), None);
    let text = diagnosis.render();
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= 110, "{widest}\n{text}");
    for part in
        ["train.csv: CSV, 20 rows, 2 labels", "cards", "more labels", "error: 60 labels in many.csv", "->"]
    {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let json = serde_json::to_value(&diagnosis).unwrap();
    assert_eq!(json["findings"][0]["severity"], "error");
    assert_eq!(json["files"][0]["lengths"]["unit"], "characters");
}
