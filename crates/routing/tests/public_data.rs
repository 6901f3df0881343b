//! Public data sets, read from the folder that `FRONTDESK_DATA` names; skipped without it.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "this is a test")]

use std::path::PathBuf;

use routing::doctor::{CheckOptions, Diagnosis, FindingKind, check};
use routing::{Dataset, ReadOptions, read, split};

fn load(names: &[&str]) -> Option<Vec<Dataset>> {
    let Some(folder) = std::env::var_os("FRONTDESK_DATA").map(PathBuf::from) else {
        println!("skipped: FRONTDESK_DATA is not set");
        return None;
    };
    Some(names.iter().map(|name| read(folder.join(name), &ReadOptions::default()).unwrap()).collect())
}

fn sizes(data: &[Dataset]) -> Vec<(usize, usize)> {
    data.iter().map(|data| (data.examples.len(), data.labels().len())).collect()
}

fn count(diagnosis: &Diagnosis, kind: FindingKind) -> usize {
    diagnosis.findings.iter().filter(|finding| finding.kind == kind).map(|finding| finding.count).sum()
}

#[test]
fn banking77() {
    let Some(data) = load(&["banking77/train.csv", "banking77/test.csv"]) else { return };
    assert_eq!(sizes(&data), [(10003, 77), (3080, 77)]);
    let diagnosis = check(&data, &CheckOptions::default(), None);
    println!("{}", diagnosis.render());
    assert_eq!(count(&diagnosis, FindingKind::ExactLeak), 26);
    assert!(count(&diagnosis, FindingKind::NearLeak) > 0);
}

#[test]
fn insurance() {
    let names = ["insurance/train.json", "insurance/valid.json", "insurance/test.json"];
    let Some(data) = load(&names) else { return };
    assert_eq!(sizes(&data), [(12889, 12), (2000, 12), (2000, 12)]);
    let diagnosis = check(&data, &CheckOptions::default(), None);
    println!("{}", diagnosis.render());
    assert_eq!(count(&diagnosis, FindingKind::ExactLeak), 3 + 9);
    assert_eq!(count(&diagnosis, FindingKind::Imbalance), 1);
}

#[test]
fn clinc150() {
    let Some(data) = load(&["clinc150/train.jsonl", "clinc150/val.jsonl", "clinc150/test.jsonl"]) else {
        return;
    };
    assert_eq!(sizes(&data), [(15100, 151), (3100, 151), (5500, 151)]);
    println!("{}", check(&data, &CheckOptions::default(), None).render());
    let (train, valid) = split(&data[0].examples, 0.1, 1);
    let labels = |rows: &[usize]| {
        rows.iter()
            .map(|&row| data[0].examples[row].label.as_str())
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    assert_eq!((labels(&train), labels(&valid)), (151, 151));
    assert!((1450..=1550).contains(&valid.len()), "{}", valid.len());
}
