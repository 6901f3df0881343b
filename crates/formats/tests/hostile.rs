//! Model files made to harm: each must end as a clear error or a harmless answer, in bounded memory and time.
//!
//! Every case is opened by a process of its own, which the system stops at a gigabyte of addresses and some seconds of
//! processor time; no such stop, panic or crash may happen.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test that cannot go on should stop; the child prints its answer

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use formats::{Adapter, BaseModel, ChatTemplate, GgufWriter, Message, Tensor, Tokenizer};
use serde_json::{Value, json};

/// Limits of a child: kilobytes of addresses, and seconds.
const LIMITS: &str = "ulimit -v 1048576; ulimit -t 20; exec \"$0\" --exact child --ignored --nocapture";
const CASE: &str = "FRONTDESK_HOSTILE_CASE";

/// What opening, tokenizing, decoding and rendering a case comes to.
fn answer(case: &Path) -> formats::Result<String> {
    if case.join("adapter_config.json").exists() {
        return Adapter::read(case).map(|adapter| format!("{} tensors", adapter.tensors.len()));
    }
    if case.extension().is_some_and(|extension| extension == "jinja") {
        let source = fs::read_to_string(case).unwrap();
        let messages = [Message::new("system", "Route."), Message::new("user", "Where is my card?")];
        return Ok(ChatTemplate::new(&source, "<s>", "</s>")?.render(&messages, true)?.len().to_string());
    }
    if case.join("config.json").symlink_metadata().is_err() && case.is_dir() {
        let tokenizer = Tokenizer::from_folder(case)?;
        let ids = tokenizer.encode(&"a b".repeat(500))?;
        return Ok(format!("{} tokens, {} bytes", ids.len(), tokenizer.decode(&ids, false)?.len()));
    }
    let model = BaseModel::open(case)?;
    let values: usize =
        model.tensor_names().iter().map(|name| model.tensor(name).unwrap().to_f32().len()).sum();
    Ok(format!("{values} values, {} bytes of configuration", model.config_json()?.len()))
}

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn child() {
    match answer(Path::new(&std::env::var_os(CASE).unwrap())) {
        Ok(answer) => println!("harmless: {answer}"),
        Err(error) => {
            let mut source = std::error::Error::source(&error);
            print!("error: {error}");
            while let Some(cause) = source {
                print!(": {cause}");
                source = cause.source();
            }
            println!();
        }
    }
}

/// The child's answer to a case.
fn opened(case: &Path) -> String {
    let child = Command::new("sh")
        .args(["-c", LIMITS])
        .arg(std::env::current_exe().unwrap())
        .env(CASE, case)
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{}: {out}{}", case.display(), String::from_utf8_lossy(&child.stderr));
    let line = out.lines().find(|line| line.contains("error: ") || line.contains("harmless: "));
    line.unwrap_or_else(|| panic!("{}: {out}", case.display())).to_owned()
}

#[track_caller]
fn refused(case: &Path, expected: &str) {
    let answer = opened(case);
    assert!(answer.contains("error: ") && answer.contains(expected), "expected `{expected}`: {answer}");
    assert!(answer.len() < 4000, "an error is no place for the file itself: {} bytes", answer.len());
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// A copy of a small sound model, to be spoilt.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("tiny-chat")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn change_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// A safetensors file with this header and so many bytes of values.
fn safetensors(header: &str, values: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + values, 0);
    bytes
}

#[test]
fn the_model_that_is_spoilt_below_is_sound() {
    assert!(opened(model().path()).contains("harmless: "), "{}", opened(model().path()));
}

#[test]
fn configurations_of_absurd_sizes() {
    let huge = json!(1_000_000_000_000_000_000u64);
    let cases = [
        ("num_hidden_layers", huge.clone(), "number of layers"),
        ("num_hidden_layers", json!(4096), "has no tensor"),
        ("vocab_size", huge.clone(), "vocabulary size"),
        ("vocab_size", json!(1 << 28), "has shape"),
        ("hidden_size", huge.clone(), "hidden size"),
        ("num_attention_heads", json!(0), "number of heads"),
        ("num_key_value_heads", json!(3), "a divisor of"),
        ("head_dim", json!(1 << 28), "has shape"),
        ("head_dim", json!(-8), "head_dim"),
        ("rms_norm_eps", json!(-1.0), "norm epsilon"),
        ("rms_norm_eps", json!("1e-6"), "rms_norm_eps"),
        ("rope_theta", json!(0), "unsupported"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 8}), "yarn"),
        ("model_type", json!("x".repeat(100_000)), "model_type"),
        ("eos_token_id", json!(vec![1; 100_000]), ""),
    ];
    for (key, value, expected) in cases {
        let folder = model();
        change_json(&folder.path().join("config.json"), |json| {
            json.as_object_mut().unwrap().remove("rope_parameters");
            json[key] = value;
        });
        let answer = opened(folder.path());
        assert!(answer.len() < 4000, "{key}: {} bytes", answer.len());
        match expected {
            "" => {}
            "unsupported" => assert!(answer.contains("error: "), "{key}: {answer}"),
            _ => assert!(answer.contains("error: ") && answer.contains(expected), "{key}: {answer}"),
        }
    }
}

#[test]
fn json_without_a_bottom() {
    for (name, text) in [
        ("config.json", "[".repeat(5_000_000)),
        ("config.json", "{\"a\":".repeat(500_000)),
        ("tokenizer_config.json", "[".repeat(5_000_000)),
        ("config.json", "\u{feff}".repeat(10)),
        ("config.json", format!("{{\"model_type\": \"{}\"", "a".repeat(1 << 20))),
    ] {
        let folder = model();
        // Which would stand in for the template of tokenizer_config.json.
        fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
        fs::write(folder.path().join(name), text).unwrap();
        refused(folder.path(), name);
    }
}

#[test]
fn safetensors_headers_that_lie() {
    let tensor = |shape: &str, from: u64, to: u64| {
        format!("{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let two = |a: String, b: String| format!("{{\"a\":{a},\"b\":{b}}}");
    let mut cases = vec![
        vec![],
        vec![0; 7],
        u64::MAX.to_le_bytes().to_vec(),
        (1u64 << 40).to_le_bytes().to_vec(),
        safetensors(&two(tensor("[4]", 0, 16), tensor("[4]", 0, 16)), 16),
        safetensors(&two(tensor("[4]", 0, 16), tensor("[4]", 8, 24)), 24),
        safetensors(&two(tensor("[4]", 0, 16), tensor("[4]", 32, 48)), 48),
        safetensors(&format!("{{\"a\":{}}}", tensor("[4]", 0, 16)), 1 << 16),
        safetensors(&format!("{{\"a\":{}}}", tensor("[4]", 16, 0)), 16),
        safetensors(&format!("{{\"a\":{}}}", tensor("[4]", 0, 1 << 50)), 16),
        safetensors(&format!("{{\"a\":{}}}", tensor("[1099511627776,1099511627776]", 0, 16)), 16),
        safetensors(&"[".repeat(1 << 20), 0),
        safetensors("{\"a\":1}", 0),
    ];
    // A header that is one key after the other, as many as fit.
    let many: Vec<String> = (0..200_000).map(|i| format!("\"t{i}\":{}", tensor("[0]", 0, 0))).collect();
    cases.push(safetensors(&format!("{{{}}}", many.join(",")), 0));
    for (index, bytes) in cases.into_iter().enumerate() {
        let folder = model();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let answer = opened(folder.path());
        assert!(answer.contains("error: "), "case {index}: {answer}");
        assert!(answer.contains("safetensors") || answer.contains("tensor"), "case {index}: {answer}");
    }
}

#[test]
fn indices_that_reach_elsewhere() {
    for shard in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "\0", "C:\\x", ""] {
        let folder = model();
        fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        let index = json!({"metadata": {}, "weight_map": {"model.norm.weight": shard}});
        fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let answer = opened(folder.path());
        assert!(answer.contains("error: ") && !answer.contains("root:"), "{shard}: {answer}");
    }
    let folder = model();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let names: serde_json::Map<String, Value> =
        (0..100_000).map(|i| (format!("t{i}"), format!("{i}.safetensors").into())).collect();
    let index = json!({"weight_map": names});
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    refused(folder.path(), "could not read");
    // A folder in the place of a file, and a file that links to itself.
    let path = folder.path().join("model.safetensors.index.json");
    fs::remove_file(&path).unwrap();
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    refused(folder.path(), "could not read");
    let config = folder.path().join("config.json");
    fs::remove_file(&config).unwrap();
    symlink(&config, &config).unwrap();
    assert!(opened(folder.path()).contains("error: "));
}

#[test]
fn gguf_files_that_promise_more_than_they_hold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let sound = |change: &dyn Fn(&mut GgufWriter<'static>)| {
        let base = BaseModel::open(fixture("tiny-chat")).unwrap();
        let mut writer = GgufWriter::new();
        base.config.to_gguf(&mut writer).unwrap();
        change(&mut writer);
        for slot in formats::slots(&base.config) {
            let tensor = base.tensor(&slot.name).unwrap().to_f32();
            writer.add(Tensor::from_f32(slot.gguf_name, slot.shape, &tensor).unwrap());
        }
        fs::write(&path, writer.to_bytes()).unwrap();
    };
    sound(&|_| {});
    assert!(opened(&path).contains("harmless: "), "{}", opened(&path));
    // Sparse: a terabyte that takes no room on disk.
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(opened(&path).contains("could not read"), "{}", opened(&path));
    for (key, size, expected) in [
        ("llama.block_count", u32::MAX, "number of layers"),
        ("llama.block_count", 4096, "has no tensor"),
        ("llama.embedding_length", 1 << 28, "has shape"),
        ("llama.attention.head_count", 0, "heads"),
        ("llama.vocab_size", u32::MAX, "vocabulary size"),
        ("llama.context_length", 0, "positions"),
    ] {
        sound(&|writer| writer.set(key, size));
        refused(&path, expected);
    }
    // Small items: the most memory for each byte of the file.
    sound(&|writer| writer.set("many", vec![String::new(); 2_000_000]));
    assert!(opened(&path).contains("harmless: "));
    sound(&|writer| (0..3_000).for_each(|i| writer.set(format!("key {i}"), 1u8)));
    assert!(opened(&path).contains("harmless: "));
}

#[test]
fn headers_with_bits_flipped_never_crash() {
    let folder = model();
    let path = folder.path().join("model.safetensors");
    let sound = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
    let mut state = 1u64;
    for _ in 0..24 {
        let mut bytes = sound.clone();
        for _ in 0..4 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes[(state >> 33) as usize % header] ^= 1 << (state >> 61);
        }
        fs::write(&path, bytes).unwrap();
        opened(folder.path());
    }
}

#[test]
fn adapters_that_do_not_fit_themselves() {
    let spoilt = |change: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(fixture("llama/tied/adapter").join(name), folder.path().join(name)).unwrap();
        }
        change(folder.path());
        opened(folder.path())
    };
    assert!(spoilt(&|_| {}).contains("harmless: "));
    let rank = |rank: Value| {
        move |path: &Path| change_json(&path.join("adapter_config.json"), |json| json["r"] = rank.clone())
    };
    for value in [json!(0), json!(-1), json!(u64::MAX), json!(1e300), json!("8")] {
        let answer = spoilt(&rank(value.clone()));
        assert!(answer.contains("error: "), "{value}: {answer}");
    }
    let answer = spoilt(&|path| fs::write(path.join("adapter_model.safetensors"), [255; 64]).unwrap());
    assert!(answer.contains("error: ") && answer.contains("safetensors"), "{answer}");
}

#[test]
fn tokenizers_that_grow_or_run_for_ever() {
    let sound: Value =
        serde_json::from_slice(&fs::read(fixture("tiny-chat").join("tokenizer.json")).unwrap()).unwrap();
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let inserted = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "b".repeat(1 << 20)});
    let sequence = |key: &str, items: Vec<Value>| json!({"type": "Sequence", key: items});
    let catastrophe = json!({
        "type": "Split", "pattern": {"Regex": "(?:a|b| )+(?:a|b| )+(?:a|b| )+(?=c)"}, "behavior": "Isolated", "invert": false
    });
    let cases = [
        ("normalizer", sequence("normalizers", vec![double.clone(); 60]), "grow"),
        ("normalizer", inserted.clone(), "grow"),
        ("decoder", sequence("decoders", vec![double; 60]), "grow"),
        ("decoder", inserted, "grow"),
        ("pre_tokenizer", catastrophe, ""),
        (
            "padding",
            json!({"strategy": {"Fixed": 4_000_000_000u64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>"}),
            "",
        ),
        (
            "truncation",
            json!({"max_length": 0, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
            "",
        ),
        ("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}), "tokenizer"),
        ("model", json!({"type": "BPE", "vocab": {"a": u64::MAX}, "merges": []}), "tokenizer"),
        (
            "added_tokens",
            json!([{"id": 4_000_000_000u32, "content": "", "single_word": false, "lstrip": true, "rstrip": true, "normalized": false, "special": true}]),
            "",
        ),
    ];
    for (key, value, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut json = sound.clone();
        json[key] = value;
        fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let answer = opened(folder.path());
        if !expected.is_empty() {
            assert!(answer.contains("error: ") && answer.contains(expected), "{key}: {answer}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), "[".repeat(1 << 20)).unwrap();
    refused(folder.path(), "tokenizer");
}

#[test]
fn templates_that_grow_or_run_for_ever() {
    let endless = [
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set n = namespace(s='ab') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s|length }}",
        "{% set n = namespace(s=['ab']) %}{% for i in range(64) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s|length }}",
        "{% set n = namespace(s='aa') %}{% for i in range(9) %}{% set n.s = n.s.replace('a', n.s) %}{% endfor %}{{ n.s|length }}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(9) %}{% set n.s = n.s|replace('a', n.s) %}{% endfor %}{{ n.s|length }}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(9) %}{% set n.s = n.s.join(n.s) %}{% endfor %}{{ n.s|length }}",
        "{% for i in range(90000) %}{% set x = 'a' * 99000000 %}{% endfor %}",
        "{% set n = namespace(s=[]) %}{% for i in range(900) %}{% set n.s = n.s + ['a' * 99000000] %}{% endfor %}",
        "{{ messages|tojson(indent=4000000000) }}",
        "{% for i in range(90000) %}{{ messages|tojson(indent=4000000) }}{% endfor %}",
        "{{ 'a\\nb'|indent(4000000000) }}",
        "{% for i in range(90000) %}{{ 'a\\nb'|indent(40000000) }}{% endfor %}",
        "{{ '%4000000000d'|format(1) }}",
        "{{ 'a'.center(4000000000) }}",
        "{{ 'a'.ljust(4000000000) }}{{ 'a'.zfill(4000000000) }}",
        "{{ ('(' * 100000) }}{{ strftime_now('%Y' * 50000000) }}",
        "{{ [1] * 4000000000 }}",
        "{{ 2 ** 4000000000 }}{{ 10 ** 400 }}",
    ];
    let folder = tempfile::tempdir().unwrap();
    for (index, source) in endless.iter().enumerate() {
        let path = folder.path().join(format!("{index}.jinja"));
        fs::write(&path, source).unwrap();
        let answer = opened(&path);
        assert!(answer.contains("error: ") && answer.contains("template"), "{source}: {answer}");
    }
    for source in [
        "{{ '((((' ".repeat(100_000),
        "{% if a %}".repeat(200_000),
        "{{ ".to_owned() + &"(".repeat(1_000_000),
    ] {
        let path = folder.path().join("deep.jinja");
        fs::write(&path, source).unwrap();
        refused(&path, "template");
    }
}
