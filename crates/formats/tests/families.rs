//! The other families' tiny models, as `tools/parity/families.py` saved them with transformers.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::fs;
use std::path::{Path, PathBuf};

use formats::{Activation, BaseModel, Family, Part, Pooling, RopeScaling};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families").join(name)
}

/// A copy of a fixture with a changed configuration.
fn changed(name: &str, change: impl Fn(&mut Value)) -> formats::Result<BaseModel> {
    let folder = tempfile::tempdir().unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(fixture(name).join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(fixture(name).join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    BaseModel::open(folder.path())
}

#[test]
fn every_family_is_opened_as_it_is() {
    for (name, family, activation, parameters) in [
        (
            "phi3",
            Family::Phi3,
            Activation::Silu,
            2 * (120 * 60 + 60 * 60 + 3 * 44 * 60 + 120) + 2 * 97 * 60 + 60,
        ),
        (
            "gpt-neo",
            Family::GptNeo,
            Activation::GeluTanh,
            2 * (4 * 36 * 36 + 2 * 36 * 52 + 6 * 36 + 52) + 145 * 36 + 72,
        ),
        (
            "bert",
            Family::Bert,
            Activation::Gelu,
            2 * (4 * 36 * 36 + 2 * 36 * 58 + 9 * 36 + 58) + 131 * 36 + 72,
        ),
        (
            "distilbert",
            Family::DistilBert,
            Activation::Gelu,
            2 * (4 * 36 * 36 + 2 * 36 * 50 + 9 * 36 + 50) + 129 * 36 + 72,
        ),
    ] {
        let model = BaseModel::open(fixture(name)).unwrap();
        assert_eq!((model.config.family, model.config.activation), (family, activation));
        assert_eq!(model.config.parameters(), parameters, "{name}");
        assert!(model.config_json().unwrap().contains("model_type"));
        for slot in formats::slots(&model.config) {
            assert_eq!(model.tensor(&slot.name).unwrap().shape, slot.shape);
        }
    }
}

#[test]
fn what_a_configuration_says_of_positions_and_windows() {
    let neo = BaseModel::open(fixture("gpt-neo")).unwrap().config;
    assert_eq!((neo.windows.clone(), neo.rope.is_none()), (vec![None, Some(5)], true));
    assert_eq!((neo.window(0), neo.window(1), neo.head_dim), (None, Some(5), 12));
    // Folders on the hub leave the layers out and give the pattern alone.
    let hub = changed("gpt-neo", |config| {
        config.as_object_mut().unwrap().remove("attention_layers");
    });
    assert_eq!(hub.unwrap().config, neo);

    let phi = BaseModel::open(fixture("phi3")).unwrap().config;
    let rope = phi.rope.clone().unwrap();
    let Some(RopeScaling::Long { short, original_max_positions, .. }) = &rope.scaling else {
        panic!("{rope:?}")
    };
    assert_eq!((short.len(), *original_max_positions, rope.most_positions()), (5, 64, Some(64)));
    assert!((rope.attention_factor() - (1.0f32 + 4f32.ln() / 64f32.ln()).sqrt()).abs() < 1e-6);
    let hub = changed("phi3", |config| {
        let mut rope = config.as_object_mut().unwrap().remove("rope_parameters").unwrap();
        let rope_map = rope.as_object_mut().unwrap();
        config["rope_theta"] = rope_map.remove("rope_theta").unwrap();
        rope_map.remove("original_max_position_embeddings");
        rope_map.remove("partial_rotary_factor");
        rope_map.insert("type".into(), rope_map["rope_type"].clone());
        rope_map.remove("rope_type");
        config["rope_scaling"] = rope;
    });
    assert_eq!(hub.unwrap().config, phi);
}

#[test]
fn longrope_turns_by_other_divisors_beyond_its_window() {
    let mut phi = BaseModel::open(fixture("phi3")).unwrap().config;
    let within = phi.rope.clone().unwrap().inv_freq(10);
    phi.set_context(64);
    assert_eq!(phi.rope.clone().unwrap().inv_freq(10), within);
    phi.set_context(65);
    let rope = phi.rope.unwrap();
    assert_eq!(rope.most_positions(), None);
    let (short, long) = ([1.0f32, 1.3, 2.0, 1.7, 1.1], [1.2f32, 4.0, 6.5, 3.0, 5.0]);
    for (i, (within, beyond)) in within.iter().zip(rope.inv_freq(10)).enumerate() {
        assert!((beyond / within - short[i] / long[i]).abs() < 1e-6, "{i}");
    }
}

#[test]
fn an_encoder_is_read_as_its_folder_says() {
    assert_eq!(BaseModel::open(fixture("bert")).unwrap().config.pooling, Pooling::Mean);
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture("bert").join(file), folder.path().join(file)).unwrap();
    }
    let place = folder.path().join(Pooling::FILE);
    fs::create_dir(place.parent().unwrap()).unwrap();
    fs::write(&place, r#"{"word_embedding_dimension": 36, "pooling_mode_cls_token": true}"#).unwrap();
    let config = BaseModel::open(folder.path()).unwrap().config;
    assert_eq!(config.pooling, Pooling::First);
    fs::write(&place, config.pooling_json().unwrap()).unwrap();
    assert_eq!(BaseModel::open(folder.path()).unwrap().config, config);
    fs::write(&place, r#"{"pooling_mode_weightedmean_tokens": true}"#).unwrap();
    let error = BaseModel::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("pooling_mode_weightedmean_tokens") && error.contains("1_Pooling"), "{error}");
}

#[test]
fn a_model_that_was_saved_with_a_head_is_read_without_it() {
    let plain = BaseModel::open(fixture("bert")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture("bert").join("config.json"), folder.path().join("config.json")).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for slot in formats::slots(&plain.config) {
        let older = slot.name.replace("LayerNorm.weight", "LayerNorm.gamma");
        let bytes = plain.tensor(&slot.name).unwrap().bytes.to_vec();
        tensors.push((
            format!("bert.{}", older.replace("LayerNorm.bias", "LayerNorm.beta")),
            slot.shape,
            bytes,
        ));
    }
    tensors.push(("cls.predictions.bias".into(), vec![1], vec![0; 4]));
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let headed = BaseModel::open(folder.path()).unwrap();
    for slot in formats::slots(&plain.config) {
        assert_eq!(headed.tensor(&slot.name).unwrap().bytes, plain.tensor(&slot.name).unwrap().bytes);
    }
    assert_eq!(headed.config.name_of(Part::Query, 1), "encoder.layer.1.attention.self.query");
}

#[test]
fn an_unknown_key_or_value_is_named() {
    let cases: [(&str, &str, Value); 9] = [
        ("bert", "position_embedding_type", json!("relative_key")),
        ("bert", "hidden_act", json!("swish")),
        ("bert", "is_decoder", json!(true)),
        ("bert", "embedding_size", json!(128)),
        ("distilbert", "activation", json!("relu")),
        ("gpt-neo", "attention_layers", json!(["global", "sideways"])),
        ("gpt-neo", "attention_layers", json!(["global"])),
        ("phi3", "sliding_window", json!(100)),
        ("phi3", "model_type", json!("phi4")),
    ];
    for (name, key, value) in cases {
        let error = changed(name, |config| config[key] = value.clone()).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    let error = changed("phi3", |config| config["rope_parameters"]["short_factor"] = json!([1.0, 2.0]));
    assert!(error.unwrap_err().to_string().contains("short_factor"));
    let error =
        changed("phi3", |config| config["rope_parameters"]["long_factor"] = json!([1.0, 2.0, 3.0, 4.0, 0.0]));
    assert!(error.unwrap_err().to_string().contains("long_factor"));
}
