//! `calibrate` and what follows from it: thresholds, the out-of-scope rule, and corrections of suspected labels.
#![allow(clippy::unwrap_used)] // A test may fail loudly anywhere, also in its helpers.

mod common;

use std::fmt::Write;
use std::path::Path;
use std::process::Output;

use common::{frontdesk, queries, stderr, tiny_model};
use serde_json::Value;

/// A head on the tiny model, and rows of which a third are about nothing it knows.
fn prepare(folder: &Path) {
    queries(&folder.join("data.csv"), 20);
    queries(&folder.join("val.csv"), 40);
    let mut rows = std::fs::read_to_string(folder.join("val.csv")).unwrap();
    for number in 0..60 {
        let _ = writeln!(rows, "{number} zebras {} qqq,oos", "#%!".repeat(number % 7 + 1));
    }
    std::fs::write(folder.join("val.csv"), rows).unwrap();
    let mut command = frontdesk(folder);
    command.args(["train", "--method", "head", "--data", "data.csv", "--precision", "f32", "--out", "run"]);
    let output = command.arg("--base").arg(tiny_model()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

fn calibrate(folder: &Path, flags: &[&str]) -> Output {
    let mut command = frontdesk(folder);
    command.args(["calibrate", "--model", "run", "--data", "val.csv", "--precision", "f32", "--json"]);
    command.args(flags).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn manifest(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("run/frontdesk.json")).unwrap()).unwrap()
}

#[test]
fn what_is_out_of_scope_is_told_apart_and_goes_to_triage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare(path);
    let before = manifest(path);
    assert!(before["scope"].is_null());
    let dry = json(&calibrate(path, &["--oos-label", "oos", "--dry-run"]));
    assert_eq!((&dry["saved"], &manifest(path)), (&false.into(), &before));
    let found = json(&calibrate(path, &["--oos-label", "oos"]));
    assert_eq!(found["scope"], dry["scope"], "the same rows give the same rule");
    let scores = &found["scope"]["validation"];
    assert_eq!((&scores["in_scope_rows"], &scores["out_of_scope_rows"]), (&120.into(), &60.into()));
    let threshold = found["scope"]["threshold"].as_f64().unwrap();
    assert!(scores["recall"].as_f64().unwrap() > 0.5, "{scores}");
    let after = manifest(path);
    assert_eq!((&after["scope"], &after["calibrated_on"]["rows"]), (&found["scope"], &180.into()));
    assert_eq!((&after["files"], &after["labels"]), (&before["files"], &before["labels"]));

    // `eval` judges with the rule, on the rows that it was chosen on: the same numbers
    let mut command = frontdesk(path);
    command.args([
        "eval",
        "--model",
        "run",
        "--data",
        "val.csv",
        "--json",
        "--precision",
        "f32",
        "--predictions",
    ]);
    let evaluated = json(&command.arg("rows.jsonl").output().unwrap());
    assert_eq!(&evaluated["scope"], scores);
    assert!(evaluated["latency"]["p95_s"].as_f64() >= evaluated["latency"]["p50_s"].as_f64());
    assert!(evaluated["cost"]["per_1000"].as_f64().unwrap() > 0.0);
    let rows = std::fs::read_to_string(path.join("rows.jsonl")).unwrap();
    let aside: Vec<Value> = rows
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|row| row["out_of_scope"] == true)
        .collect();
    assert!(!aside.is_empty() && aside.iter().all(|row| row["predicted"] == "oos"));
    assert!(aside.iter().all(|row| row["probability"].as_f64().unwrap() < threshold));

    let text = aside[0]["text"].as_str().unwrap();
    let mut command = frontdesk(path);
    command.args(["route", "--model", "run", "--json", "--precision", "f32", text]);
    let answer = json(&command.output().unwrap());
    assert_eq!((&answer["in_scope"], &answer["decision"]), (&false.into(), &"triage".into()), "{answer}");
}

#[test]
fn costs_choose_thresholds_and_bars_that_cannot_be_kept_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare(path);
    std::fs::write(path.join("costs.toml"), "[card_lost]\nwrong = 40\ntriage = 2\n").unwrap();
    let found =
        json(&calibrate(path, &["--cost-wrong", "10", "--cost-triage", "1", "--costs", "costs.toml"]));
    let threshold = |label: &str| {
        let labels = found["thresholds"]["per_label"].as_array().unwrap();
        labels.iter().find(|it| it["label"] == label).unwrap()["threshold"].as_f64().unwrap()
    };
    assert!((threshold("greeting") - 0.9).abs() < 1e-9 && (threshold("card_lost") - 0.95).abs() < 1e-9);
    assert_eq!(manifest(path)["thresholds"], found["thresholds"]);

    // of 180 rows 60 are about nothing that the model knows: whatever is routed of them costs 10
    let found = json(&calibrate(path, &["--cost-wrong", "10", "--cost-triage", "1"]))["thresholds"].clone();
    let number = |name: &str| found[name].as_f64().unwrap();
    let (routed, right) = (number("coverage"), number("precision"));
    let expected = 10.0 * routed * (1.0 - right) + (1.0 - routed);
    assert!((number("cost_per_query") - expected).abs() < 1e-9, "{found}");

    let kept = manifest(path)["thresholds"].clone();
    let below = calibrate(path, &["--oos-label", "oos", "--min-in-scope", "1"]);
    let scope = serde_json::from_slice::<Value>(&below.stdout).unwrap()["scope"].clone();
    assert_eq!(below.status.code(), Some(i32::from(scope.is_null())), "{}", stderr(&below));
    assert_ne!(manifest(path)["thresholds"], kept, "without costs the goal is a share again");

    for (flags, said) in [
        (vec!["--target-precision", "97"], "a share from 0 to 1"),
        (vec!["--cost-wrong", "1"], "--cost-triage"),
        (vec!["--cost-wrong=-1", "--cost-triage", "1"], "from 0 on"),
        (vec!["--oos-label", "nowhere"], "`nowhere`"),
    ] {
        let refused = calibrate(path, &flags);
        assert_eq!(refused.status.code(), Some(2), "{flags:?}");
        assert!(stderr(&refused).contains(said), "{flags:?}: {}", stderr(&refused));
    }
}

#[test]
fn suspects_are_written_corrected_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    queries(&path.join("data.csv"), 40);
    let rows = std::fs::read_to_string(path.join("data.csv")).unwrap();
    std::fs::write(
        path.join("data.csv"),
        rows.replace("lost my card ff,card_lost", "lost my card ff,greeting"),
    )
    .unwrap();
    let check = |flags: &[&str]| frontdesk(path).args(["check", "data.csv"]).args(flags).output().unwrap();
    let output = check(&["--suspects", "suspects.jsonl"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let written = std::fs::read_to_string(path.join("suspects.jsonl")).unwrap();
    let suspects: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wrong = suspects.iter().find(|it| it["text"] == "lost my card ff").unwrap();
    assert_eq!((&wrong["label"], &wrong["suggested"]), (&"greeting".into(), &"card_lost".into()));

    let corrected = written.replacen("\"corrected\":null", "\"corrected\":\"card_lost\"", 1);
    std::fs::write(path.join("suspects.jsonl"), corrected).unwrap();
    let output = check(&["--corrections", "suspects.jsonl", "--out", "fixed.jsonl", "--json"]);
    assert_eq!(json(&output)["relabelled"], 1, "{written}");
    let fixed = std::fs::read_to_string(path.join("fixed.jsonl")).unwrap();
    assert_eq!((fixed.lines().count(), fixed.matches("card_lost").count()), (120, 40));

    let other = frontdesk(path)
        .args(["check", "fixed.jsonl", "--corrections", "suspects.jsonl", "--out", "again.jsonl"])
        .output()
        .unwrap();
    assert_eq!(other.status.code(), Some(2));
    assert!(stderr(&other).contains("suspects.jsonl: line 1"), "{}", stderr(&other));
    assert!(!path.join("again.jsonl").exists());
}
