//! One model in each of its forms: a folder, shards and GGUF files, all the same model.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::fs;
use std::path::{Path, PathBuf};

use formats::{BaseModel, DType, Error, GgufWriter, Rope, RopeScaling, Tensor, quant, store};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama").join(name)
}

fn open(name: &str) -> BaseModel {
    BaseModel::open(fixture(name)).expect("run tools/parity/llama.py to make the fixture")
}

/// llama.cpp's order of a query or key projection's rows: the two of one rotation side by side.
fn interleave(rows: &[f32], row_len: usize, heads: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = rows.chunks(row_len).collect();
    let half = rows.len() / heads / 2;
    let mut out = Vec::new();
    for head in 0..heads {
        for pair in 0..half {
            out.extend(rows[head * 2 * half + pair]);
            out.extend(rows[head * 2 * half + half + pair]);
        }
    }
    out
}

/// The model as llama.cpp's converter would write it.
fn to_gguf(model: &BaseModel, change: impl Fn(&mut GgufWriter<'static>)) -> (tempfile::TempDir, PathBuf) {
    let config = &model.config;
    let mut writer = GgufWriter::new();
    writer.set("general.name", "Tiny Llama");
    config.to_gguf(&mut writer).unwrap();
    let ids = [("bos", config.bos_token_id), ("padding", config.pad_token_id)];
    for (name, id) in ids.into_iter().chain([("eos", config.eos_token_ids.first().copied())]) {
        if let Some(id) = id {
            writer.set(format!("tokenizer.ggml.{name}_token_id"), id);
        }
    }
    for slot in formats::slots(config) {
        let tensor = model.tensor(&slot.name).unwrap();
        let values = match slot.interleaved_heads {
            Some(heads) => interleave(&tensor.to_f32(), tensor.row_len(), heads),
            None => tensor.to_f32(),
        };
        writer.add(Tensor::from_f32(slot.gguf_name, slot.shape, &values).unwrap());
    }
    change(&mut writer);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    fs::write(&path, writer.to_bytes()).unwrap();
    (folder, path)
}

fn assert_same_tensors(found: &BaseModel, expected: &BaseModel) {
    assert_eq!(found.tensor_names(), expected.tensor_names());
    for name in expected.tensor_names() {
        let (found, expected) = (found.tensor(name).unwrap(), expected.tensor(name).unwrap());
        assert_eq!((&found.name, &found.shape), (&expected.name, &expected.shape));
        assert_eq!(found.to_f32(), expected.to_f32(), "{name}");
    }
}

#[test]
fn a_gguf_file_is_the_same_model_as_its_folder() {
    for name in ["tied", "scaled"] {
        let folder = open(name);
        let (_kept, path) = to_gguf(&folder, |_| {});
        let gguf = BaseModel::open(path).unwrap();
        assert_same_tensors(&gguf, &folder);
        let frequencies =
            |model: &BaseModel| model.config.rope.as_ref().unwrap().inv_freq(model.config.head_dim);
        for (found, expected) in frequencies(&gguf).iter().zip(frequencies(&folder)) {
            assert!((found - expected).abs() <= 1e-6 * expected);
        }
        let mut config = gguf.config.clone();
        // The fixture's scaling is not that of a published Llama, so the file's divisors stand for
        // themselves.
        config.rope = folder.config.rope.clone();
        assert_eq!(config, folder.config);
        assert_eq!((gguf.name(), folder.name()), ("Tiny Llama", name));
    }
    let scaling = open("scaled").config.rope.unwrap().scaling;
    assert!(matches!(scaling, Some(RopeScaling::Llama3 { factor: 8.0, original_max_positions: 64, .. })));
}

#[test]
fn the_hub_and_the_library_spell_one_configuration() {
    for name in ["tied", "scaled"] {
        let path = fixture(name).join("config.hub.json");
        let hub = formats::ModelConfig::from_hf_json(&fs::read_to_string(&path).unwrap(), &path).unwrap();
        assert_eq!(hub, open(name).config);
        let written = hub.to_hf_json().unwrap();
        assert_eq!(formats::ModelConfig::from_hf_json(&written, Path::new("config.json")).unwrap(), hub);
    }
}

#[test]
fn the_frequencies_of_llama_32_are_those_of_transformers() {
    let path = fixture("llama32_rope.json");
    let case: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let rule = &case["rope_parameters"];
    let number = |key: &str| rule[key].as_f64().unwrap();
    let rope = Rope {
        theta: number("rope_theta"),
        scaling: Some(RopeScaling::Llama3 {
            factor: number("factor") as f32,
            low_freq_factor: number("low_freq_factor") as f32,
            high_freq_factor: number("high_freq_factor") as f32,
            original_max_positions: number("original_max_position_embeddings") as usize,
        }),
    };
    let found = rope.inv_freq(case["head_dim"].as_u64().unwrap() as usize);
    let expected: Vec<f64> = serde_json::from_value(case["inverse_frequencies"].clone()).unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.into_iter().zip(expected) {
        // Two units in the last place: the libraries' powers may round apart.
        assert!((f64::from(found) - expected).abs() <= 2.4e-7 * expected, "{found} {expected}");
    }
}

#[test]
fn quantised_rows_move_whole() {
    // Heads of 2 rows of 32 values, quantised before the rows are put in llama.cpp's order.
    let rows = |count: usize| (0..count * 32).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
    let shapes = [("token_embd", 8, false), ("attn_q", 16, true), ("attn_k", 8, true), ("attn_v", 8, false)];
    let quantised = |count: usize, dtype: DType| quant::quantize(dtype, &rows(count)).unwrap();
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama");
    let sizes = [
        ("vocab_size", 8u32),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("block_count", 1),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 4),
        ("context_length", 16),
    ];
    for (key, value) in sizes {
        writer.set(format!("llama.{key}"), value);
    }
    writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
    for (name, count, interleaved) in shapes {
        let bytes = quantised(count, DType::Q4_1);
        let mut stored: Vec<&[u8]> = bytes.chunks(20).collect();
        if interleaved {
            let plain = stored.clone();
            for head in 0..count / 4 {
                for (to, from) in [0, 2, 1, 3].into_iter().enumerate() {
                    stored[4 * head + to] = plain[4 * head + from];
                }
            }
        }
        let name =
            if name == "token_embd" { "token_embd.weight".into() } else { format!("blk.0.{name}.weight") };
        writer.add(Tensor::new(name, DType::Q4_1, vec![count, 32], stored.concat()).unwrap());
    }
    for name in ["attn_norm", "ffn_norm"] {
        writer.add(Tensor::from_f32(format!("blk.0.{name}.weight"), vec![32], &[1.0; 32]).unwrap());
    }
    writer.add(Tensor::from_f32("output_norm.weight", vec![32], &[1.0; 32]).unwrap());
    let q8 = |name: &str, out: usize, inner: usize| {
        let bytes = quant::quantize(DType::F16, &vec![0.0; out * inner]).unwrap();
        Tensor::new(format!("blk.0.{name}.weight"), DType::F16, vec![out, inner], bytes).unwrap()
    };
    writer.add(q8("attn_output", 32, 16));
    for name in ["ffn_gate", "ffn_up", "ffn_down"] {
        writer.add(q8(name, 32, 32));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.gguf");
    fs::write(&path, writer.to_bytes()).unwrap();
    let model = BaseModel::open(&path).unwrap();
    for (name, count) in [("q_proj", 16), ("k_proj", 8), ("v_proj", 8)] {
        let tensor = model.tensor(&format!("model.layers.0.self_attn.{name}.weight")).unwrap();
        assert_eq!((tensor.dtype, &*tensor.bytes), (DType::Q4_1, &*quantised(count, DType::Q4_1)), "{name}");
    }
    let head = model.tensor("lm_head.weight").unwrap();
    assert_eq!((head.name.as_str(), &*head.bytes), ("lm_head.weight", &*quantised(8, DType::Q4_1)));
    assert!(!model.tensor_names().contains(&"lm_head.weight"));
    assert_eq!(model.name(), "q");
    assert_eq!(model.sha256(), store::sha256_file(&path).unwrap());
    assert_eq!(model.chat_template(), None);
}

/// The `scaled` fixture in two shards.
fn sharded() -> tempfile::TempDir {
    let (from, folder) = (fixture("scaled"), tempfile::tempdir().unwrap());
    fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
    let model = open("scaled");
    let names = model.tensor_names();
    let mut weight_map = serde_json::Map::new();
    for (shard, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-{}-of-2.safetensors", shard + 1);
        let tensors: Vec<_> = names.iter().map(|name| (*name, model.tensor(name).unwrap())).collect();
        let views = tensors.iter().map(|(name, tensor)| {
            (*name, TensorView::new(Dtype::F32, tensor.shape.clone(), &tensor.bytes).unwrap())
        });
        fs::write(folder.path().join(&file), safetensors::serialize(views, None).unwrap()).unwrap();
        weight_map.extend(names.iter().map(|name| ((*name).to_owned(), json!(file))));
    }
    let index = json!({"metadata": {}, "weight_map": weight_map}).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    folder
}

#[test]
fn shards_are_the_same_model_under_one_hash() {
    let folder = sharded();
    let model = BaseModel::open(folder.path()).unwrap();
    assert_same_tensors(&model, &open("scaled"));
    let line = |file: &str| format!("{}  {file}\n", store::sha256_file(folder.path().join(file)).unwrap());
    let listing = line("model-1-of-2.safetensors") + &line("model-2-of-2.safetensors");
    assert_eq!(model.sha256(), store::sha256_hex(listing.as_bytes()));
    let single = open("tied");
    assert_eq!(single.sha256(), store::sha256_file(fixture("tied").join("model.safetensors")).unwrap());
}

#[test]
fn a_folder_says_its_name_and_template() {
    let folder = sharded();
    let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
    let template = || BaseModel::open(folder.path()).unwrap().chat_template().map(str::to_owned);
    assert_eq!(template(), None);
    write("tokenizer_config.json", &json!({"chat_template": "one"}).to_string());
    assert_eq!(template().as_deref(), Some("one"));
    let named = json!([{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]);
    write("tokenizer_config.json", &json!({"chat_template": named}).to_string());
    assert_eq!(template().as_deref(), Some("two"));
    write("chat_template.jinja", "three");
    assert_eq!(template().as_deref(), Some("three"));
    let mut config: Value =
        serde_json::from_slice(&fs::read(fixture("scaled").join("config.json")).unwrap()).unwrap();
    config["_name_or_path"] = json!("someone/tiny");
    write("config.json", &config.to_string());
    assert_eq!(BaseModel::open(folder.path()).unwrap().name(), "someone/tiny");
}

#[test]
fn a_tensor_that_does_not_fit_the_configuration_is_named() {
    let folder = sharded();
    let change = |key: &str, value: Value| {
        let mut config: Value =
            serde_json::from_slice(&fs::read(fixture("scaled").join("config.json")).unwrap()).unwrap();
        config[key] = value;
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        BaseModel::open(folder.path()).unwrap_err()
    };
    let error = change("vocab_size", json!(104));
    assert!(matches!(error, Error::Shape { .. }));
    let text = error.to_string();
    assert!(text.contains("[103, 42]") && text.contains("[104, 42]"), "{text}");
    let error = change("num_hidden_layers", json!(3));
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor.contains("layers.2.")), "{error}");
    let error = change("num_hidden_layers", json!(1)).to_string();
    assert!(error.contains("model.layers.1."), "{error}");
    assert!(matches!(BaseModel::open(fixture("")), Err(Error::NotAModel { .. })));
    assert!(matches!(BaseModel::open(fixture("nothing.gguf")), Err(Error::Read { .. })));
    let (_kept, path) = to_gguf(&open("tied"), |writer| {
        writer.add(Tensor::from_f32("blk.0.attn_q.bias", vec![40], &[0.0; 40]).unwrap());
    });
    let error = BaseModel::open(path).unwrap_err().to_string();
    assert!(error.contains("`blk.0.attn_q.bias`"), "{error}");
    let model = open("tied");
    assert!(matches!(model.tensor("model.layers.9.mlp.up_proj.weight"), Err(Error::MissingTensor { .. })));
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_refused() {
    let tokens: Vec<String> = (0..98).map(|id| format!("t{id}")).collect();
    let with = |count: usize| {
        let (kept, path) = to_gguf(&open("tied"), |writer| {
            writer.set("tokenizer.ggml.model", "gpt2");
            writer.set("tokenizer.ggml.pre", "gpt-2");
            writer.set("tokenizer.ggml.tokens", tokens[..count].to_vec());
            writer.set("tokenizer.ggml.token_type", vec![1i32; count]);
            writer.set("tokenizer.ggml.merges", Vec::<String>::new());
        });
        let tokenizer = BaseModel::open(path).unwrap().tokenizer();
        drop(kept);
        tokenizer
    };
    assert_eq!(with(97).unwrap().vocab_size(), 97);
    let error = with(98).unwrap_err().to_string();
    assert!(error.contains("largest token id") && error.contains("97"), "{error}");
}
