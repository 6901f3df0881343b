//! From labelled queries to a routed one, and through interruptions, on a tiny random model.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // A test may fail loudly anywhere, and says if it was skipped.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{frontdesk, queries, stderr, tiny_model};
use serde_json::Value;

const RECIPE: [&str; 12] = [
    "--batch",
    "8",
    "--lr",
    "0.01",
    "--rank",
    "4",
    "--precision",
    "f32",
    "--data",
    "data.csv",
    "--validate-every",
    "40",
];

fn train(folder: &Path, out: &str, epochs: &str) -> std::process::Output {
    let mut command = frontdesk(folder);
    command.args(["train", "--out", out, "--epochs", epochs, "--base"]).arg(tiny_model()).args(RECIPE);
    command.output().unwrap()
}

#[test]
fn check_train_eval_route() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 20);
    let output = train(folder.path(), "run", "12");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("⟦<|end|>⟧"), "the tokens that carry loss are shown: {said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "run\n", "stdout holds the result alone");

    let again = train(folder.path(), "run", "1");
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("--out"), "a finished run is not overwritten: {}", stderr(&again));

    let eval = |flags: &[&str]| {
        let mut command = frontdesk(folder.path());
        command.args(["eval", "--model", "run", "--data", "data.csv", "--json", "--report", "report"]);
        command.args(["--predictions", "rows.jsonl", "--precision", "f32"]).args(flags).output().unwrap()
    };
    let output = eval(&["--min-accuracy", "0.9"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let metrics: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(metrics["accuracy"].as_f64().unwrap() >= 0.9, "{metrics}");
    for key in ["macro", "weighted", "micro", "per_label", "confusion", "n", "seconds", "baseline"] {
        assert!(!metrics[key].is_null(), "{key} is missing");
    }
    let rows = std::fs::read_to_string(folder.path().join("rows.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 60);
    let page = std::fs::read_to_string(folder.path().join("report/report.html")).unwrap();
    assert!(page.contains("card_lost") && page.contains("TF-IDF"));
    std::fs::write(folder.path().join("wrong.csv"), "text,label\nlost my card c,greeting\n").unwrap();
    let missed = eval(&["--data", "wrong.csv", "--min-accuracy", "0.9"]);
    assert_eq!(missed.status.code(), Some(1), "a missed bar is exit code 1");
    assert_eq!(eval(&["--min-accuracy", "90"]).status.code(), Some(2), "a bar is a share");

    let mut command = frontdesk(folder.path());
    command.args(["route", "--model", "run", "--json", "--precision", "f32"]);
    let output = command.write_stdin("lost my card c\nhello good day d\n").output().unwrap();
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["label"], &lines[1]["label"]), (&"card_lost".into(), &"greeting".into()));
    assert_eq!(lines[0]["alternatives"].as_array().unwrap().len(), 2);
    let sum = |line: &Value| {
        let others =
            line["alternatives"].as_array().unwrap().iter().map(|a| a["probability"].as_f64().unwrap());
        line["probability"].as_f64().unwrap() + others.sum::<f64>()
    };
    assert!((sum(&lines[0]) - 1.0).abs() < 1e-6, "three labels share all probability");
}

#[test]
fn a_head_is_trained_judged_and_asked_like_any_run() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 20);
    let train = |out: &str| {
        let mut command = frontdesk(folder.path());
        command.args(["train", "--method", "head", "--data", "data.csv", "--precision", "f32", "--out", out]);
        command.arg("--base").arg(tiny_model()).output().unwrap()
    };
    let output = train("run");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!folder.path().join("run/checkpoint").exists(), "a finished run leaves no checkpoint");
    assert!(train("twin").status.success());
    for name in ["head.safetensors", "frontdesk.json"] {
        let read = |run: &str| std::fs::read(folder.path().join(run).join(name)).unwrap();
        assert_eq!(read("run"), read("twin"), "{name}: the same run gives the same bytes");
    }
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("run/frontdesk.json")).unwrap()).unwrap();
    assert_eq!(manifest["method"], "head");

    let mut command = frontdesk(folder.path());
    command.args(["eval", "--model", "run", "--data", "data.csv", "--json", "--precision", "f32"]);
    let output = command.args(["--min-accuracy", "0.9"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let mut command = frontdesk(folder.path());
    command.args(["route", "--model", "run", "--json", "--precision", "f32", "why this fee e"]);
    let output = command.output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["label"], "fee-question", "{answer}");

    let head = folder.path().join("run/head.safetensors");
    let mut bytes = std::fs::read(&head).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&head, bytes).unwrap();
    let output = frontdesk(folder.path()).args(["route", "--model", "run", "hello"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("head.safetensors"), "{}", stderr(&output));
}

#[test]
fn every_weight_trains_and_the_run_needs_no_base() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 20);
    let base = folder.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for file in std::fs::read_dir(tiny_model()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), base.join(file.file_name())).unwrap();
    }
    let mut command = frontdesk(folder.path());
    command
        .args(["train", "--method", "full", "--base", "base", "--out", "run", "--epochs", "12"])
        .args(RECIPE);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let read = |name: &str| std::fs::read(folder.path().join("run").join(name)).unwrap();
    let manifest: Value = serde_json::from_slice(&read("frontdesk.json")).unwrap();
    assert_eq!(manifest["method"], "full");
    assert_eq!(manifest["trainable"], manifest["parameters"]);
    std::fs::remove_dir_all(&base).unwrap();
    for precision in ["f32", "int8"] {
        let mut command = frontdesk(folder.path());
        command.args(["eval", "--model", "run", "--data", "data.csv", "--json", "--precision", precision]);
        let output = command.args(["--min-accuracy", "0.9"]).output().unwrap();
        assert!(output.status.success(), "{precision}: {}", stderr(&output));
    }
    let mut bytes = read("model.safetensors");
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(folder.path().join("run/model.safetensors"), bytes).unwrap();
    let output = frontdesk(folder.path()).args(["route", "--model", "run", "hello"]).output().unwrap();
    assert!(stderr(&output).contains("model.safetensors"), "{}", stderr(&output));
}

#[test]
fn a_base_in_16_bits_trains_and_routes_in_four() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 20);
    let mut command = frontdesk(folder.path());
    command.args(["train", "--method", "qlora", "--out", "run", "--epochs", "12", "--base"]);
    let output = command.arg(tiny_model()).args(RECIPE).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("run/frontdesk.json")).unwrap()).unwrap();
    assert_eq!(manifest["method"], "qlora");
    for precision in ["f32", "int8"] {
        let mut command = frontdesk(folder.path());
        command.args(["eval", "--model", "run", "--data", "data.csv", "--json", "--precision", precision]);
        let output = command.args(["--min-accuracy", "0.9"]).output().unwrap();
        assert!(output.status.success(), "{precision}: {}", stderr(&output));
    }
}

#[test]
fn an_encoder_learns_by_every_method() {
    let Some(encoder) = std::env::var_os("FRONTDESK_MINILM") else {
        eprintln!("skipped: set FRONTDESK_MINILM to the folder that `frontdesk pull minilm-l6` prints");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 20);
    for (out, flags) in [("head", &[][..]), ("lora", &["--method", "lora"]), ("full", &["--method", "full"])]
    {
        let mut command = frontdesk(folder.path());
        command.args(["train", "--data", "data.csv", "--epochs", "5", "--out", out, "--base"]);
        let output = command.arg(&encoder).args(flags).output().unwrap();
        assert!(output.status.success(), "{out}: {}", stderr(&output));
        let mut command = frontdesk(folder.path());
        let output = command.args(["route", "--model", out, "--json", "my card is lost"]).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["label"], "card_lost", "{out}: {answer}");
    }
}

#[test]
fn a_linear_run_needs_no_base_and_stands_beside_others() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 20);
    let run = |arguments: &[&str]| {
        let output = frontdesk(folder.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        output.stdout
    };
    run(&["train", "--method", "linear", "--data", "data.csv", "--out", "linear"]);
    let answer: Value =
        serde_json::from_slice(&run(&["route", "--model", "linear", "--json", "why this fee e"])).unwrap();
    assert_eq!(answer["label"], "fee-question", "{answer}");
    run(&["eval", "--model", "linear", "--data", "data.csv", "--min-accuracy", "0.9"]);
    let base = tiny_model();
    let base = base.to_str().unwrap();
    run(&["train", "--method", "head", "--data", "data.csv", "--out", "head", "--base", base]);

    let compared = |flags: &[&str]| -> Value {
        serde_json::from_slice(&run(&[&["compare", "linear", "head", "--json"], flags].concat())).unwrap()
    };
    let (own, judged) = (compared(&[]), compared(&["--data", "data.csv"]));
    for (line, method) in own.as_array().unwrap().iter().zip(["linear", "head"]) {
        assert_eq!(line["method"], method);
        assert!(line["minutes"].as_f64().unwrap() > 0.0 && line["ms_a_query"].is_null(), "{line}");
    }
    let rows: Vec<u64> =
        judged.as_array().unwrap().iter().map(|line| line["rows"].as_u64().unwrap()).collect();
    assert_eq!(rows, [60, 60]);
    let against: Vec<bool> =
        judged.as_array().unwrap().iter().map(|line| line["against_best"].is_null()).collect();
    assert_eq!(against.iter().filter(|best| **best).count(), 1, "all but the best are compared with it");
    let table = String::from_utf8(run(&["compare", "linear", "head", "--data", "data.csv"])).unwrap();
    assert!(table.lines().count() == 3 && table.contains("best"), "{table}");

    let weights = folder.path().join("linear/linear.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let output = frontdesk(folder.path()).args(["route", "--model", "linear", "hello"]).output().unwrap();
    assert!(stderr(&output).contains("linear.safetensors"), "{}", stderr(&output));
}

/// Without a network and with an empty cache only the linear model can be had.
#[test]
fn the_best_of_what_can_be_trained_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 20);
    let train = |out: &str, more: &[&str]| {
        let mut command = frontdesk(folder.path());
        command
            .args(["train", "--base", "auto", "--data", "data.csv", "--out", out])
            .args(more)
            .output()
            .unwrap()
    };
    let output = train("run", &["--budget", "30s"]);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "run\n", "stdout holds the result alone");
    assert!(said.contains("minilm-head: not tried") && said.contains("smollm2-lora: not tried"), "{said}");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(folder.path().join("run").join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("frontdesk.json")["method"], "linear");
    assert!(read("candidates.json")["candidates"][0]["ms_a_query"].as_f64().unwrap() > 0.0);
    let output =
        frontdesk(folder.path()).args(["route", "--model", "run", "lost my card c"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("card_lost"), "{}", stderr(&output));
    assert_eq!(train("other", &["--budget", "soon"]).status.code(), Some(2));
    let again = train("run", &["--budget", "30s"]);
    assert!(stderr(&again).contains("--out"), "a finished run is not overwritten: {}", stderr(&again));
}

#[test]
fn a_changed_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 8);
    assert!(train(folder.path(), "run", "1").status.success());
    let weights = folder.path().join("run/adapter_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let refused = |how: &str| {
        let output = frontdesk(folder.path()).args(["route", "--model", "run", "hello"]).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2));
        let named = said.contains("adapter_model.safetensors") && said.contains(how);
        assert!(named && said.contains("copy the whole run folder"), "{said}");
    };
    refused("its SHA-256 is");
    std::fs::remove_file(&weights).unwrap();
    refused("is missing");
}

/// Kills a run again and again, resumes it each time, and compares its bytes with a run that nobody disturbed.
#[test]
fn kill_and_resume_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 20);
    assert!(train(folder.path(), "unbroken", "60").status.success());

    let start = |resume: bool| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("frontdesk"));
        command.current_dir(folder.path()).stderr(Stdio::null()).stdout(Stdio::null());
        command.args(["train", "--out", "broken"]);
        if resume {
            command.arg("--resume");
        } else {
            command
                .args(["--epochs", "60", "--checkpoint-seconds", "0", "--base"])
                .arg(tiny_model())
                .args(RECIPE);
        }
        command.spawn().unwrap()
    };
    let started = || folder.path().join("broken/checkpoint/plan.json").exists();
    let mut kills = 0;
    for round in 0..10u64 {
        let mut child = start(started());
        // Moments spread over the run, the same in every test.
        std::thread::sleep(Duration::from_millis(15 + (round * 37) % 90));
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            kills += 1;
        }
        if folder.path().join("broken/frontdesk.json").exists() {
            break;
        }
    }
    let finished = start(started()).wait().unwrap();
    assert!(finished.success(), "the last resume must finish");
    assert!(kills >= 3, "the run ended after {kills} kills: too quick to show anything");
    for file in ["adapter_model.safetensors", "adapter_config.json", "frontdesk.json", "tokenizer.json"] {
        let read = |run: &str| std::fs::read(folder.path().join(run).join(file)).unwrap();
        assert!(read("broken") == read("unbroken"), "{file} differs");
    }
    assert!(!folder.path().join("broken/checkpoint").exists());
}
