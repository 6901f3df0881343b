//! A head on an encoder reads in routing the features that it was fitted on, to the last bit.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use formats::BaseModel;
use kernels::{Cpu, Encoding, bf16};
use router::{Method, Plan, Recipe, Router, RunFolder, TrainData};
use routing::ReadOptions;
use routing::calibration::Calibration;
use serde_json::{Value, json};

/// The tiny encoder of the fixtures with a tokenizer of single words.
fn encoder(folder: &Path) -> PathBuf {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families/bert");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(name), folder.join(name)).expect("the fixture is committed");
    }
    let special = ["[UNK]", "[CLS]", "[SEP]"];
    let words = special.iter().map(|word| (*word).to_owned()).chain((0..60).map(|i| format!("w{i}")));
    let vocab: serde_json::Map<String, Value> = words.zip(0u32..).map(|(w, id)| (w, json!(id))).collect();
    let added = special.iter().zip(0..).map(|(content, id)| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("it can be written");
    folder.to_path_buf()
}

/// Rows of two labels whose words overlap.
fn rows(path: &Path, salt: usize) {
    let mut text = "text,label\n".to_owned();
    for i in 0..40 {
        let label = i % 2;
        let words = (0..5).map(|j| format!("w{}", (i * (7 + salt) + j * 11 + label * 17) % 40));
        writeln!(text, "{},label {label}", words.collect::<Vec<_>>().join(" ")).expect("a string");
    }
    std::fs::write(path, text).expect("it can be written");
}

#[test]
fn a_head_reads_what_it_was_fitted_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, valid) = (folder.path().join("data.csv"), folder.path().join("valid.csv"));
    rows(&data, 0);
    rows(&valid, 1);
    let base = encoder(folder.path());
    let fields = ReadOptions::default();
    let read = |path: &Path| routing::read(path, &fields).expect("it is a table");
    let recipe = Recipe { method: Some(Method::Head), ..Recipe::default() };
    let examples = TrainData::new(read(&data), Some(read(&valid)), &fields, &recipe).expect("two labels");
    for (int8, encoding) in [(true, Encoding::Int8), (false, Encoding::Compute)] {
        let plan = Plan {
            data: data.clone(),
            valid: Some(valid.clone()),
            text_field: None,
            label_field: None,
            base: base.display().to_string(),
            recipe: recipe.clone(),
            precision: (!int8).then(|| "bf16".to_owned()),
            checkpoint_seconds: 0.0,
        };
        let open = || BaseModel::open(&base).expect("the fixture is whole");
        let out = folder.path().join(format!("run-{int8}"));
        let backends = vec![Cpu::<bf16>::new()];
        let outcome = router::train(backends, open(), &examples, &plan, &out, false, &mut ());
        let manifest = outcome.expect("it trains").run.manifest;
        assert_eq!(manifest.device.ends_with("int8"), int8, "{}", manifest.device);

        let nll = |encoding| {
            let run = RunFolder::open(&out).expect("a finished run");
            let mut router = Router::open(Cpu::<bf16>::new(), run, &open(), encoding).expect("it opens");
            let examples = read(&valid).examples;
            let truth: Vec<usize> = examples.iter().map(|row| usize::from(row.label != "label 0")).collect();
            let answers = router.route_all(&examples, &mut |_, _| {}).expect("it routes");
            let log_probs: Vec<Vec<f32>> = answers.into_iter().map(|answer| answer.log_probs).collect();
            Calibration::fit(&log_probs, &truth).nll_before
        };
        let judged = manifest.calibration.nll_before;
        assert_eq!(nll(encoding).to_bits(), judged.to_bits(), "{encoding:?}");
        let other = if int8 { Encoding::Compute } else { Encoding::Int8 };
        assert_ne!(nll(other).to_bits(), judged.to_bits(), "what reads otherwise says otherwise");
    }
}
