//! Exports of a tiny run: what is in them, and the gate before them.
#![allow(clippy::unwrap_used)] // A test may fail loudly anywhere.

mod common;

use std::path::Path;

use common::{frontdesk, queries, stderr, tiny_model};
use serde_json::Value;

fn train(folder: &Path, out: &str, flags: &[&str]) {
    queries(&folder.join("data.csv"), 20);
    let mut command = frontdesk(folder);
    command.args(["train", "--data", "data.csv", "--out", out, "--precision", "f32", "--batch", "8"]);
    let output = command.arg("--base").arg(tiny_model()).args(flags).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

fn export(folder: &Path, model: &str, flags: &str) -> std::process::Output {
    let mut command = frontdesk(folder);
    command.args(["export", "--precision", "f32", "--json", "--out", "out/it", "--model", model]);
    command.args(flags.split_whitespace()).output().unwrap()
}

#[test]
fn every_form_answers_as_the_run_does() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), "run", &["--epochs", "8", "--lr", "0.01", "--rank", "4"]);
    let place = folder.path().join("out/it");
    let hugging_face = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let peft = ["adapter_config.json", "adapter_model.safetensors", "frontdesk.json"];
    // With how far a probability may move: some steps of the weights' precision.
    let forms: [(&str, &[&str], f64); 8] = [
        ("merged", &hugging_face, 0.005),
        ("merged --quant bf16", &hugging_face, 0.05),
        ("peft", &peft, 0.0),
        ("gguf --quant f16", &["model.gguf"], 0.005),
        ("gguf", &["model.gguf"], 0.1),
        ("ollama", &["model.gguf", "Modelfile"], 0.1),
        ("gguf-lora", &["adapter.gguf"], 1e-6),
        ("gguf --quant q4_k_m --data data.csv --limit 30 --max-flips 20%", &["model.gguf"], 0.6),
    ];
    for (form, files, most) in forms {
        let output = export(folder.path(), "run", &format!("--to {form}"));
        assert!(output.status.success(), "{form}: {}", stderr(&output));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["passed"], true, "{form}: {said}");
        let rows = said["gate"]["rows"].as_u64().unwrap();
        assert_eq!(rows, if form.contains("--limit") { 30 } else { 6 }, "{form}");
        assert!(said["gate"]["original"]["accuracy"].as_f64().unwrap() > 0.9, "{form}: {said}");
        let change = said["gate"]["largest_change"].as_f64().unwrap();
        assert!(change <= most, "{form}: {change}");
        for file in files.iter().chain(&["routing.json", "README.md"]) {
            assert!(place.join(file).is_file(), "{form}: {file} is missing");
        }
        let card = std::fs::read_to_string(place.join("README.md")).unwrap();
        assert!(card.contains("| card_lost | 18 |") && card.contains("95% interval"), "{form}: {card}");
        let left = std::fs::read_dir(folder.path().join("out")).unwrap().count();
        assert_eq!(left, 1, "{form}: nothing else is left");
        std::fs::remove_dir_all(&place).unwrap();
    }
}

#[test]
fn a_model_whose_every_weight_trained_is_exported_whole() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), "run", &["--method", "full", "--epochs", "2"]);
    for form in ["merged", "gguf --quant f16"] {
        let output = export(folder.path(), "run", &format!("--to {form} --data data.csv --max-flips 0"));
        assert!(output.status.success(), "{form}: {}", stderr(&output));
        std::fs::remove_dir_all(folder.path().join("out/it")).unwrap();
    }
    let output = export(folder.path(), "run", "--to peft");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--to merged"), "{}", stderr(&output));
}

#[test]
fn a_gate_that_is_missed_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // So small a model has no room for errors: few bits move some of its labels.
    train(folder.path(), "run", &["--epochs", "8", "--lr", "0.01", "--rank", "4"]);
    let strict = "--to gguf --quant q4_k_m --data data.csv --max-flips 0";
    let output = export(folder.path(), "run", strict);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["passed"], &said["out"]), (&false.into(), &Value::Null));
    let flips = said["gate"]["flips"].as_array().unwrap();
    assert!(!flips.is_empty() && flips[0]["original"] != flips[0]["export"], "{said}");
    assert_eq!(std::fs::read_dir(folder.path().join("out")).unwrap().count(), 0, "{}", stderr(&output));
    let output = export(folder.path(), "run", &format!("{strict} --max-flips 100%"));
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn what_cannot_be_exported_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), "run", &["--max-steps", "1", "--rank", "1"]);
    train(folder.path(), "head", &["--method", "head"]);
    std::fs::create_dir_all(folder.path().join("out/it")).unwrap();
    let refused = |model: &str, flags: &str, expected: &str| {
        let output = export(folder.path(), model, flags);
        assert_eq!(output.status.code(), Some(2), "{flags}");
        assert!(stderr(&output).contains(expected), "{flags}: {}", stderr(&output));
    };
    refused("head", "--to gguf", "--method lora");
    refused("run", "--to merged --quant q8_0", "--to gguf");
    refused("run", "--to peft --quant f16", "leave --quant out");
    refused("run", "--to merged --max-flips few", "neither a number of rows");
    std::fs::write(folder.path().join("out/it/kept"), "mine").unwrap();
    refused("run", "--to merged", "is there already");
    std::fs::remove_file(folder.path().join("out/it/kept")).unwrap();
    std::fs::write(folder.path().join("data.csv"), "text,label\nhi,greeting\n").unwrap();
    refused("run", "--to merged", "--data");
}
