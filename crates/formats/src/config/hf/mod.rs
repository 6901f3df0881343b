//! `config.json`, as Hugging Face's transformers reads and writes it.

mod encoders;
mod gpt_neo;
mod keys;
mod pooling;
mod rotary;

use std::path::Path;

use serde_json::{Value, json};

use self::keys::Keys;
use crate::{Error, Family, ModelConfig, Result, RopeScaling};

impl ModelConfig {
    /// The configuration in the text of a `config.json`; `path` stands in the errors.
    ///
    /// Keys that are absent have the defaults of transformers. A key that this program does not know is an
    /// error unless its value is null, false or empty: it might change what the model computes.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::MissingKey`], or [`Error::Unsupported`] naming the key.
    pub fn from_hf_json(text: &str, path: &Path) -> Result<Self> {
        let json = |source| Error::Json { path: path.to_owned(), source };
        let mut keys = Keys { path, map: serde_json::from_str(text).map_err(json)? };
        let kind: String = keys.required("model_type")?;
        let Some(family) = Family::ALL.into_iter().find(|family| family.traits().model_type == kind) else {
            let known = Family::ALL.map(|family| format!("`{}`", family.traits().model_type)).join(", ");
            return Err(Error::unsupported(path, "model_type", format!("`{kind}`"), known));
        };
        let config = match family {
            Family::Llama | Family::Phi3 => keys.rotary_decoder(family)?,
            Family::GptNeo => keys.gpt_neo()?,
            Family::Bert => keys.bert()?,
            Family::DistilBert => keys.distilbert()?,
        };
        keys.refuse_the_rest()?;
        config.check(path)
    }

    /// The text of a `config.json` with which transformers builds the same model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the rotary scaling is a list of divisors, for which transformers has no
    /// key, and for another family than Llama, whose models come with a file of their own.
    pub fn to_hf_json(&self) -> Result<String> {
        let (Family::Llama, Some(rope)) = (self.family, &self.rope) else {
            let found = format!("{:?}", self.family);
            return Err(Error::unsupported("config.json", "model_type", found, "Llama"));
        };
        let rope_scaling = match rope.scaling {
            None => Value::Null,
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            }) => {
                json!({
                    "factor": factor,
                    "high_freq_factor": high_freq_factor,
                    "low_freq_factor": low_freq_factor,
                    "original_max_position_embeddings": original_max_positions,
                    "rope_type": "llama3",
                })
            }
            Some(RopeScaling::Divisors(_) | RopeScaling::Long { .. }) => {
                return Err(Error::unsupported(
                    "config.json",
                    "rope_scaling",
                    "a list of divisors",
                    "the rule of Llama 3, or none",
                ));
            }
        };
        let eos_token_id = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let json = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos_token_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pad_token_id": self.pad_token_id,
            "pretraining_tp": 1,
            "rms_norm_eps": shortest(self.norm_eps),
            "rope_scaling": rope_scaling,
            "rope_theta": rope.theta,
            "tie_word_embeddings": self.tied_embeddings,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        Ok(format!("{json:#}\n"))
    }
}

/// The f64 whose digits are the fewest that give this f32, so that 1e-5 does not become 0.000009999999747.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().expect("a printed f32 is a number")
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::Rope;

    fn smollm2() -> Map<String, Value> {
        let json = json!({
            "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
            "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": true,
            "max_position_embeddings": 8192, "mlp_bias": false, "model_type": "llama",
            "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2,
            "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
            "rope_theta": 100_000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
            "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152
        });
        json.as_object().unwrap().clone()
    }

    fn read(map: &Map<String, Value>) -> Result<ModelConfig> {
        ModelConfig::from_hf_json(&serde_json::to_string(map).unwrap(), Path::new("m/config.json"))
    }

    #[test]
    fn smollm2_is_read_and_written_back() {
        let config = read(&smollm2()).unwrap();
        assert_eq!((config.hidden_size, config.heads, config.kv_heads, config.head_dim), (576, 9, 3, 64));
        assert_eq!((config.layers, config.vocab_size, config.intermediate_size), (30, 49152, 1536));
        assert_eq!(config.rope, Some(Rope { theta: 100_000.0, scaling: None }));
        assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), [2].as_slice()));
        assert!(config.tied_embeddings);
        let written = config.to_hf_json().unwrap();
        assert!(written.contains("\"rms_norm_eps\": 1e-5") || written.contains("0.00001"), "{written}");
        assert_eq!(ModelConfig::from_hf_json(&written, Path::new("config.json")).unwrap(), config);
    }

    #[test]
    fn llama3_scaling_is_read_in_both_spellings() {
        let rule = json!({
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"
        });
        let mut older = smollm2();
        older.insert("rope_scaling".into(), rule.clone());
        older.insert("rope_theta".into(), json!(500_000.0));
        older.insert("eos_token_id".into(), json!([7, 8]));
        let mut later = older.clone();
        let mut parameters = rule;
        parameters["rope_theta"] = json!(500_000.0);
        later.remove("rope_scaling");
        later.remove("rope_theta");
        later.insert("rope_parameters".into(), parameters);
        let config = read(&older).unwrap();
        assert_eq!(read(&later).unwrap(), config);
        assert_eq!(config.eos_token_ids, [7, 8]);
        assert!(matches!(
            config.rope.as_ref().unwrap().scaling,
            Some(RopeScaling::Llama3 { factor: 32.0, .. })
        ));
        let written = config.to_hf_json().unwrap();
        assert_eq!(ModelConfig::from_hf_json(&written, Path::new("config.json")).unwrap(), config);
    }

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name() {
        let changes = [
            ("model_type", json!("mistral")),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("sliding_window", json!(4096)),
            ("partial_rotary_factor", json!(0.5)),
            ("rope_interleaved", json!(true)),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
            ("rope_scaling", json!({"rope_type": "llama3", "factor": 2.0})),
            ("quantization_config", json!({"bits": 4})),
            ("num_key_value_heads", json!(2)),
            ("head_dim", json!(63)),
            ("num_hidden_layers", json!(1_000_000_000_000_u64)),
            ("num_attention_heads", json!(0)),
            ("hidden_size", json!(-1)),
        ];
        for (key, value) in changes {
            let mut map = smollm2();
            map.insert(key.into(), value);
            let error = read(&map).unwrap_err().to_string();
            let names = [
                key,
                "original_max",
                "low_freq_factor",
                "key and value heads",
                "head size",
                "layers",
                "heads",
            ];
            assert!(names.iter().any(|name| error.contains(name)), "{key}: {error}");
            assert!(error.contains("m/config.json"), "{error}");
        }
        let mut map = smollm2();
        map.remove("hidden_size");
        assert!(read(&map).unwrap_err().to_string().contains("`hidden_size`"));
        assert!(matches!(ModelConfig::from_hf_json("{", Path::new("c")), Err(Error::Json { .. })));
    }
}
