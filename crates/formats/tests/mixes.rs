//! Models in llama.cpp's quantised mixes, against what its own quantiser wrote.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::collections::BTreeMap;

use formats::gguf::FileType;
use formats::{DType, Gguf, GgufWriter, ModelConfig, Slot, quant, slots, store};
use serde::Deserialize;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/quant/mixes.json");

#[derive(Deserialize)]
struct Model {
    vocab: u32,
    width: u32,
    feed_forward: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    tied: bool,
    /// Name, type and the beginning of the bytes' SHA-256 of each tensor.
    mixes: BTreeMap<String, Vec<(String, String, Option<String>)>>,
}

impl Model {
    fn config(&self) -> ModelConfig {
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", "llama");
        let sizes = [
            ("vocab_size", self.vocab),
            ("context_length", 64),
            ("embedding_length", self.width),
            ("feed_forward_length", self.feed_forward),
            ("block_count", self.layers),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
        ];
        for (key, size) in sizes {
            writer.set(format!("llama.{key}"), size);
        }
        writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        let gguf = Gguf::from_bytes(writer.to_bytes(), "mixes.gguf").unwrap();
        ModelConfig { tied_embeddings: self.tied, ..ModelConfig::from_gguf(&gguf).unwrap() }
    }
}

/// The values that tools/parity/mixes.py gives a tensor.
fn values(slot: &Slot) -> Vec<f32> {
    let seed =
        slot.gguf_name.bytes().fold(0u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let cols = slot.shape.last().copied().unwrap();
    let value = |i: usize| {
        let mut x = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed);
        x ^= x >> 15;
        x = x.wrapping_mul(2_246_822_519);
        x ^= x >> 13;
        let half = (x >> 8) as f32 / 16_777_216.0 - 0.5;
        let value = half * half * half * 8.0;
        match (i / cols) % 11 {
            5 => 0.0,
            7 => value.abs() + 0.5,
            _ => value,
        }
    };
    (0..slot.shape.iter().product()).map(value).collect()
}

fn named(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::Q8_0 => "Q8_0",
        DType::Q5_0 => "Q5_0",
        DType::Q5_1 => "Q5_1",
        DType::Q4K => "Q4_K",
        DType::Q5K => "Q5_K",
        DType::Q6K => "Q6_K",
        other => panic!("no mix has {other:?}"),
    }
}

#[test]
fn types_and_bytes_equal_llama_cpp() {
    let text = std::fs::read(FIXTURE).expect("run tools/parity/mixes.py to make the fixture");
    let models: BTreeMap<String, Model> = serde_json::from_slice(&text).unwrap();
    let mut seen = BTreeMap::<&str, usize>::new();
    for (model, fixture) in &models {
        let config = fixture.config();
        for mix in [FileType::Q8_0, FileType::Q4KM, FileType::Q5KM] {
            let expected = &fixture.mixes[mix.name()];
            let slots = slots(&config);
            assert_eq!(slots.len(), expected.len(), "{model}");
            for slot in &slots {
                let place = format!("{model}, {}, {}", mix.name(), slot.gguf_name);
                let (_, kind, hash) =
                    expected.iter().find(|(name, ..)| *name == slot.gguf_name).expect(&place);
                let dtype = mix.dtype(slot, &config);
                assert_eq!(named(dtype), kind, "{place}");
                if let Some(hash) = hash {
                    let bytes = quant::quantize(dtype, &values(slot)).unwrap();
                    assert_eq!(store::sha256_hex(&bytes)[..16], *hash, "{place}: bytes of {kind}");
                    *seen.entry(named(dtype)).or_default() += 1;
                }
            }
        }
    }
    for kind in ["F16", "Q8_0", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"] {
        assert!(seen.get(kind).is_some_and(|&tensors| tensors >= 5), "{kind}: {seen:?}");
    }
}
