//! The linear model on real data: `FRONTDESK_DATA` names a folder with `banking77/` and `clinc150/`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper of tests may fail and print as they may"
)]

use routing::linear::{LinearConfig, LinearModel};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Rows = Vec<(String, String)>;

fn data_folder(set: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FRONTDESK_DATA").map(|root| PathBuf::from(root).join(set));
    let found = folder.filter(|folder| folder.is_dir());
    if found.is_none() {
        println!("skipped: FRONTDESK_DATA has no folder {set}");
    }
    found
}

fn read_csv(path: &Path) -> Rows {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.records().map(|row| row.unwrap()).map(|row| (row[0].to_owned(), row[1].to_owned())).collect()
}

fn read_jsonl(path: &Path) -> Rows {
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<BTreeMap<String, String>>(line).unwrap());
    rows.map(|row| (row["text"].clone(), row["label"].clone())).filter(|(_, label)| label != "oos").collect()
}

/// Test accuracy of a model trained on `train`.
fn accuracy(train: &Rows, test: &Rows) -> f64 {
    let names: BTreeMap<&str, usize> = train.iter().map(|(_, label)| (label.as_str(), 0)).collect();
    let index: BTreeMap<&str, usize> =
        names.into_keys().enumerate().map(|(index, name)| (name, index)).collect();
    let texts: Vec<&str> = train.iter().map(|(text, _)| text.as_str()).collect();
    let labels: Vec<usize> = train.iter().map(|(_, label)| index[label.as_str()]).collect();
    let start = std::time::Instant::now();
    let model = LinearModel::train(&texts, &labels, index.len(), &LinearConfig::default()).unwrap();
    let trained = start.elapsed();
    let right = test.iter().filter(|(text, label)| model.predict(text).0 == index[label.as_str()]).count();
    let accuracy = right as f64 / test.len() as f64;
    println!("{accuracy:.4} on {} rows; {trained:?} to train, {:?} in all", test.len(), start.elapsed());
    accuracy
}

#[test]
fn banking77() {
    let Some(folder) = data_folder("banking77") else { return };
    let found = accuracy(&read_csv(&folder.join("train.csv")), &read_csv(&folder.join("test.csv")));
    assert!((0.909..0.917).contains(&found), "scikit-learn reaches 0.912, this {found}");
}

#[test]
fn clinc150_in_scope() {
    let Some(folder) = data_folder("clinc150") else { return };
    let found = accuracy(&read_jsonl(&folder.join("train.jsonl")), &read_jsonl(&folder.join("test.jsonl")));
    assert!((0.923..0.932).contains(&found), "scikit-learn reaches 0.927, this {found}");
}
