//! The keys of a GGUF file.

use crate::gguf::{Gguf, GgufWriter, Value};
use crate::{Activation, DType, Error, Family, ModelConfig, Pooling, Result, Rope, Tensor};

const ARCHITECTURE: &str = "general.architecture";
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// The keys under the architecture's name that are read below, or say nothing about the mathematics.
const KNOWN: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "tensor_data_layout",
    "vocab_size",
];

impl ModelConfig {
    /// The configuration in the keys of a GGUF file.
    ///
    /// # Errors
    /// [`Error::MissingKey`], or [`Error::Unsupported`] naming a key that might change what the model
    /// computes.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let path = gguf.path();
        let architecture = gguf.required(ARCHITECTURE, Value::as_str)?;
        if architecture != "llama" {
            return Err(Error::unsupported(path, ARCHITECTURE, format!("`{architecture}`"), "`llama`"));
        }
        refuse_unknown(gguf, architecture)?;
        let key = |name: &str| format!("{architecture}.{name}");
        let required = |name: &str| gguf.required(&key(name), Value::as_usize);
        let optional = |name: &str| gguf.optional(&key(name), Value::as_usize);
        let id = |name: &str| gguf.optional(&format!("tokenizer.ggml.{name}_token_id"), Value::as_id);

        let (hidden_size, heads) = (required("embedding_length")?, required("attention.head_count")?);
        let head_dim = optional("attention.key_length")?
            .unwrap_or_else(|| hidden_size.checked_div(heads).unwrap_or_default());
        for name in ["rope.dimension_count", "attention.value_length"] {
            if let Some(found) = optional(name)?.filter(|&found| found != head_dim) {
                return Err(Error::unsupported(path, key(name), found.to_string(), format!("{head_dim}")));
            }
        }
        let embedding = gguf.shape("token_embd.weight");
        let vocab_size = match optional("vocab_size")? {
            Some(size) => size,
            None => embedding.map_or(0, |shape| shape[0]),
        };
        let theta = gguf.optional(&key("rope.freq_base"), Value::as_f64)?.unwrap_or(10_000.0);
        let mut eos_token_ids = Vec::new();
        for end in [id("eos")?, id("eot")?].into_iter().flatten() {
            if !eos_token_ids.contains(&end) {
                eos_token_ids.push(end);
            }
        }
        Self {
            family: Family::Llama,
            vocab_size,
            hidden_size,
            intermediate_size: required("feed_forward_length")?,
            layers: required("block_count")?,
            heads,
            kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            max_positions: required("context_length")?,
            norm_eps: gguf.required(&key("attention.layer_norm_rms_epsilon"), Value::as_f64)? as f32,
            activation: Activation::Silu,
            rope: Some(rope(gguf, theta, head_dim)?),
            windows: Vec::new(),
            pooling: Pooling::default(),
            token_types: 0,
            tied_embeddings: gguf.shape("output.weight").is_none(),
            bos_token_id: id("bos")?,
            eos_token_ids,
            pad_token_id: id("padding")?,
        }
        .check(path)
    }
}

impl ModelConfig {
    /// Sets the keys of a GGUF file from which [`ModelConfig::from_gguf`] and llama.cpp build the same model, and adds
    /// the tensor of rotary divisors where there is one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another family than Llama.
    pub fn to_gguf(&self, writer: &mut GgufWriter<'_>) -> Result<()> {
        let rope = self.gguf_rope()?;
        writer.set(ARCHITECTURE, "llama");
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("context_length", self.max_positions),
            ("embedding_length", self.hidden_size),
            ("feed_forward_length", self.intermediate_size),
            ("block_count", self.layers),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
        ];
        for (key, size) in sizes {
            writer.set(format!("llama.{key}"), size as u32);
        }
        writer.set("llama.attention.layer_norm_rms_epsilon", self.norm_eps);
        writer.set("llama.rope.freq_base", rope.theta as f32);
        if rope.scaling.is_some() {
            let plain = Rope { theta: rope.theta, scaling: None }.inv_freq(self.head_dim);
            let divisors: Vec<f32> = plain
                .iter()
                .zip(rope.inv_freq(self.head_dim))
                .map(|(plain, scaled)| plain / scaled)
                .collect();
            writer.add(Tensor::from_f32(ROPE_DIVISORS, vec![divisors.len()], &divisors)?);
        }
        Ok(())
    }

    /// The rotary settings of a model that has a GGUF form here.
    pub(crate) fn gguf_rope(&self) -> Result<&Rope> {
        match (self.family, &self.rope) {
            (Family::Llama, Some(rope)) => Ok(rope),
            (family, _) => {
                let (found, supported) =
                    (format!("{family:?}"), "Llama; export as `merged` or `peft` instead");
                Err(Error::unsupported("model.gguf", ARCHITECTURE, found, supported))
            }
        }
    }
}

fn rope(gguf: &Gguf, theta: f64, head_dim: usize) -> Result<Rope> {
    let Some(found) = gguf.shape(ROPE_DIVISORS) else { return Ok(Rope { theta, scaling: None }) };
    let expected = vec![head_dim / 2];
    if found != expected {
        let (path, tensor, found) = (gguf.path().to_owned(), ROPE_DIVISORS.to_owned(), found.to_vec());
        return Err(Error::Shape { path, tensor, expected, found });
    }
    let tensor = gguf.tensor(ROPE_DIVISORS)?;
    let divisors = tensor.to_f32();
    if tensor.dtype != DType::F32 || !divisors.iter().all(|divisor| divisor.is_finite() && *divisor > 0.0) {
        let found = format!("{:?} {divisors:?}", tensor.dtype);
        return Err(Error::unsupported(gguf.path(), ROPE_DIVISORS, found, "positive F32 divisors"));
    }
    Ok(Rope::from_divisors(theta, divisors))
}

fn refuse_unknown(gguf: &Gguf, architecture: &str) -> Result<()> {
    for (key, value) in gguf.metadata() {
        let Some(name) = key.strip_prefix(architecture).and_then(|rest| rest.strip_prefix('.')) else {
            continue;
        };
        let off = matches!(value, Value::Bool(false))
            || value.as_usize() == Some(0)
            || (name == "rope.scaling.type" && value.as_str() == Some("none"));
        if !off && !KNOWN.contains(&name) {
            return Err(Error::unsupported(
                gguf.path(),
                key,
                format!("{value:?}"),
                "the key left out; it may change what the model computes",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values pass through unchanged
mod tests {
    use super::*;
    use crate::RopeScaling;

    fn file(change: impl Fn(&mut GgufWriter)) -> Result<ModelConfig> {
        let mut writer = GgufWriter::new();
        writer.set(ARCHITECTURE, "llama");
        writer.set("llama.block_count", 2u32);
        writer.set("llama.context_length", 64u32);
        writer.set("llama.embedding_length", 16u32);
        writer.set("llama.feed_forward_length", 24u32);
        writer.set("llama.attention.head_count", 4u32);
        writer.set("llama.attention.head_count_kv", 2u32);
        writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        writer.set("llama.rope.freq_base", 500_000f32);
        writer.set("llama.vocab_size", 32u32);
        writer.set("tokenizer.ggml.eos_token_id", 3u32);
        writer.set("tokenizer.ggml.eot_token_id", 4u32);
        change(&mut writer);
        ModelConfig::from_gguf(&Gguf::from_bytes(writer.to_bytes(), "m.gguf")?)
    }

    #[test]
    fn keys_are_read() {
        let config = file(|_| {}).unwrap();
        assert_eq!((config.heads, config.kv_heads, config.head_dim), (4, 2, 4));
        assert_eq!((config.layers, config.intermediate_size, config.vocab_size), (2, 24, 32));
        assert_eq!(config.eos_token_ids, [3, 4]);
        assert_eq!(config.norm_eps, 1e-5);
        assert_eq!(config.rope, Some(Rope { theta: 500_000.0, scaling: None }));
        assert!(config.tied_embeddings);
    }

    #[test]
    fn listed_divisors_become_the_rope_scaling() {
        let with = |shape: usize, divisors: &[f32]| {
            file(|writer| writer.add(Tensor::from_f32(ROPE_DIVISORS, vec![shape], divisors).unwrap()))
        };
        let config = with(2, &[1.0, 3.5]).unwrap();
        assert_eq!(config.rope.unwrap().scaling, Some(RopeScaling::Divisors(vec![1.0, 3.5])));
        assert!(with(3, &[1.0; 3]).unwrap_err().to_string().contains("shape [3]"));
        assert!(with(2, &[1.0, 0.0]).unwrap_err().to_string().contains(ROPE_DIVISORS));
    }

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name() {
        let changes: [(&str, Value); 7] = [
            (ARCHITECTURE, "mamba".into()),
            ("llama.rope.scaling.type", "yarn".into()),
            ("llama.expert_count", 8u32.into()),
            ("llama.attention.sliding_window", 128u32.into()),
            ("llama.rope.dimension_count", 2u32.into()),
            ("llama.attention.head_count_kv", vec![2u32, 1].into()),
            ("llama.logit_scale", 2f32.into()),
        ];
        for (key, value) in changes {
            let error = file(|writer| writer.set(key, value.clone())).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        file(|writer| {
            writer.set("llama.expert_count", 0u32);
            writer.set("llama.rope.scaling.type", "none");
        })
        .unwrap();
    }
}
