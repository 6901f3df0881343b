//! Adapters against those that PEFT itself wrote, and adapters that are more than LoRA.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::fs;
use std::path::{Path, PathBuf};

use formats::{Adapter, Error};
use serde_json::{Value, json};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama").join(name)
}

fn read(folder: &Path, file: &str) -> Vec<u8> {
    fs::read(folder.join(file)).unwrap()
}

#[test]
fn what_peft_wrote_is_read_and_written_back_byte_for_byte() {
    for name in ["tied/adapter", "tied/rslora", "scaled/adapter"] {
        let theirs = fixture(name);
        let adapter = Adapter::read(&theirs).expect("run tools/parity/llama.py to make the fixture");
        let ours = tempfile::tempdir().unwrap();
        adapter.write(ours.path()).unwrap();
        assert_eq!(
            String::from_utf8(read(ours.path(), CONFIG)).unwrap(),
            String::from_utf8(read(&theirs, CONFIG)).unwrap(),
            "{name}"
        );
        assert_eq!(read(ours.path(), WEIGHTS), read(&theirs, WEIGHTS), "{name}");
        assert_eq!(Adapter::read(ours.path()).unwrap(), adapter);
    }
}

#[test]
fn settings_and_matrices_are_those_of_peft() {
    let adapter = Adapter::read(fixture("tied/adapter")).unwrap();
    assert_eq!((adapter.config.r, adapter.config.lora_alpha, adapter.config.use_rslora), (3, 5.0, false));
    assert!((adapter.config.scale() - 5.0 / 3.0).abs() < 1e-12);
    assert_eq!(adapter.config.target_modules.len(), 7);
    let (shape, values) = &adapter.tensors["base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"];
    assert_eq!((shape.as_slice(), values.len()), ([20, 3].as_slice(), 60));
    let stabilised = Adapter::read(fixture("tied/rslora")).unwrap();
    assert!((stabilised.config.scale() - 5.0 / 3f64.sqrt()).abs() < 1e-12);
}

/// The fixture with one key changed.
fn changed(key: &str, value: Value) -> formats::Result<Adapter> {
    let theirs = fixture("tied/adapter");
    let ours = tempfile::tempdir().unwrap();
    fs::copy(theirs.join(WEIGHTS), ours.path().join(WEIGHTS)).unwrap();
    let mut config: Value = serde_json::from_slice(&read(&theirs, CONFIG)).unwrap();
    config[key] = value;
    fs::write(ours.path().join(CONFIG), config.to_string()).unwrap();
    Adapter::read(ours.path())
}

#[test]
fn what_is_not_plain_lora_is_refused_by_name() {
    let changes = [
        ("peft_type", json!("IA3")),
        ("task_type", json!("SEQ_CLS")),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("layer_replication", json!([[0, 1]])),
        ("a_key_from_tomorrow", json!("on")),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!([1])),
        ("r", json!(0)),
        ("r", json!("3")),
        ("lora_alpha", json!("5")),
        ("lora_dropout", json!("0")),
        ("use_rslora", json!("yes")),
    ];
    for (key, value) in changes {
        let error = changed(key, value.clone()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{key} {value}: {error:?}");
        let error = error.to_string();
        assert!(error.contains(&format!("`{key}`")) && error.contains(&value.to_string()), "{error}");
    }
    changed("task_type", Value::Null).unwrap();
    changed("peft_version", json!("0.13.0")).unwrap();
    let error = changed("r", json!(4)).unwrap_err().to_string();
    assert!(error.contains("lora_A") && error.contains("shape [3, ") && error.contains("[4, "), "{error}");
}

#[test]
fn values_that_do_not_fit_their_shape_are_not_written() {
    let mut adapter = Adapter::read(fixture("tied/adapter")).unwrap();
    let (name, (_, values)) = adapter.tensors.first_key_value().map(|(n, t)| (n.clone(), t.clone())).unwrap();
    adapter.tensors.insert(name.clone(), (vec![3, 1_000_000], values));
    let folder = tempfile::tempdir().unwrap();
    let error = adapter.write(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&name), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
