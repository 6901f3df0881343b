//! `config.json`, as Hugging Face's transformers reads and writes it.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{Activation, Error, Family, ModelConfig, Result, Rope, RopeScaling};

/// Keys with no part in the mathematics of a forward pass.
const HARMLESS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "auto_map",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "diversity_penalty",
    "dropout",
    "dtype",
    "embd_pdrop",
    "embed_dropout",
    "encoder_no_repeat_ngram_size",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "pretraining_tp",
    "qa_dropout",
    "repetition_penalty",
    "resid_dropout",
    "resid_pdrop",
    "return_dict",
    "seq_classif_dropout",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "temperature",
    "tie_weights_",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "use_cache",
];
const HARMLESS_PREFIXES: &[&str] = &["_", "unsloth_"];

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

/// The keys of a file, taken out one by one, so that what is left was not understood.
struct Keys<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl Keys<'_> {
    /// Takes out a key; null is the same as absent.
    fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone()).map(Some).map_err(|_| {
                let supported = format!("a value of type {}", std::any::type_name::<T>());
                Error::unsupported(self.path, key, value.to_string(), supported)
            }),
        }
    }

    fn required<T: DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        self.optional(key)?.ok_or_else(|| Error::MissingKey { path: self.path.to_owned(), key: key.into() })
    }

    /// A token id, or a list of them.
    fn ids(&mut self, key: &str) -> Result<Vec<u32>> {
        match self.map.get(key) {
            Some(Value::Array(_)) => self.required(key),
            _ => Ok(self.optional(key)?.into_iter().collect()),
        }
    }

    /// The key's value must be the one that the mathematics here has; absent is as good.
    fn only(&mut self, key: &str, value: &str) -> Result<()> {
        match self.optional::<String>(key)? {
            Some(found) if found != value => {
                Err(Error::unsupported(self.path, key, format!("`{found}`"), format!("`{value}`")))
            }
            _ => Ok(()),
        }
    }

    /// The activation's name, one of `known`.
    fn activation(&mut self, key: &str, known: &[(&str, Activation)]) -> Result<Activation> {
        let Some(name) = self.optional::<String>(key)? else { return Ok(known[0].1) };
        known.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation).ok_or_else(|| {
            let names: Vec<String> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
            Error::unsupported(self.path, key, format!("`{name}`"), names.join(", "))
        })
    }

    /// Llama and Phi-3.
    fn rotary_decoder(&mut self, family: Family) -> Result<ModelConfig> {
        let hidden_size = self.required("hidden_size")?;
        let heads = self.required("num_attention_heads")?;
        let max_positions = self.optional("max_position_embeddings")?.unwrap_or(if family == Family::Phi3 {
            4096
        } else {
            2048
        });
        if family == Family::Phi3 {
            let window: Option<usize> = self.optional("sliding_window")?;
            if let Some(window) = window.filter(|&window| window < max_positions) {
                let supported = format!("at least max_position_embeddings, {max_positions}");
                return Err(Error::unsupported(self.path, "sliding_window", window.to_string(), supported));
            }
            self.whole_heads_rotate()?;
        }
        Ok(ModelConfig {
            family,
            vocab_size: self.required("vocab_size")?,
            hidden_size,
            intermediate_size: self.required("intermediate_size")?,
            layers: self.required("num_hidden_layers")?,
            heads,
            kv_heads: self.optional("num_key_value_heads")?.unwrap_or(heads),
            head_dim: self.head_dim(hidden_size, heads)?,
            max_positions,
            norm_eps: self.optional("rms_norm_eps")?.unwrap_or(if family == Family::Phi3 {
                1e-5
            } else {
                1e-6
            }),
            activation: self.activation("hidden_act", &[("silu", Activation::Silu)])?,
            rope: Some(self.rope(max_positions)?),
            windows: Vec::new(),
            token_types: 0,
            tied_embeddings: self.optional("tie_word_embeddings")?.unwrap_or(false),
            bos_token_id: self.optional("bos_token_id")?,
            eos_token_ids: self.ids("eos_token_id")?,
            pad_token_id: self.optional("pad_token_id")?,
        })
    }

    fn gpt_neo(&mut self) -> Result<ModelConfig> {
        let hidden_size = self.required("hidden_size")?;
        let heads = self.required("num_heads")?;
        let layers = self.required("num_layers")?;
        let known = [("gelu_new", Activation::GeluTanh), ("gelu", Activation::Gelu)];
        Ok(ModelConfig {
            family: Family::GptNeo,
            vocab_size: self.required("vocab_size")?,
            hidden_size,
            intermediate_size: self
                .optional("intermediate_size")?
                .unwrap_or_else(|| 4usize.saturating_mul(hidden_size)),
            layers,
            heads,
            kv_heads: heads,
            head_dim: self.head_dim(hidden_size, heads)?,
            max_positions: self.optional("max_position_embeddings")?.unwrap_or(2048),
            norm_eps: self.optional("layer_norm_epsilon")?.unwrap_or(1e-5),
            activation: self.activation("activation_function", &known)?,
            rope: None,
            windows: self.windows(layers)?,
            token_types: 0,
            tied_embeddings: self.optional("tie_word_embeddings")?.unwrap_or(true),
            bos_token_id: self.optional("bos_token_id")?,
            eos_token_ids: self.ids("eos_token_id")?,
            pad_token_id: self.optional("pad_token_id")?,
        })
    }

    /// GPT-Neo's windows: a pattern with repetitions in `attention_types`, or layer by layer in `attention_layers`.
    fn windows(&mut self, layers: usize) -> Result<Vec<Option<usize>>> {
        let window: usize = self.optional("window_size")?.unwrap_or(256);
        let listed: Option<Vec<String>> = self.optional("attention_layers")?;
        let types: Option<Vec<(Vec<String>, usize)>> = self.optional("attention_types")?;
        let repeated = |types: Vec<(Vec<String>, usize)>| {
            types.into_iter().flat_map(|(kinds, times)| {
                let len = kinds.len().saturating_mul(times);
                kinds.into_iter().cycle().take(len)
            })
        };
        // One more than there should be tells a list that is too long, however often it repeats.
        let kinds = listed.or_else(|| Some(repeated(types?).take(layers.saturating_add(1)).collect()));
        let kinds = kinds.ok_or_else(|| Error::MissingKey {
            path: self.path.to_owned(),
            key: "attention_layers".into(),
        })?;
        if kinds.len() != layers {
            let supported = format!("one kind for each of {layers} layers");
            return Err(Error::unsupported(self.path, "attention_layers", format!("{kinds:?}"), supported));
        }
        let window_of = |kind: &String| match kind.as_str() {
            "global" => Ok(None),
            "local" if window > 0 => Ok(Some(window)),
            _ => Err(Error::unsupported(
                self.path,
                "attention_layers",
                format!("`{kind}` with window_size {window}"),
                "`global`, or `local` with a window above 0",
            )),
        };
        kinds.iter().map(window_of).collect()
    }

    fn bert(&mut self) -> Result<ModelConfig> {
        self.only("position_embedding_type", "absolute")?;
        let known = [("gelu", Activation::Gelu), ("gelu_new", Activation::GeluTanh)];
        let sizes = ["hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers"];
        let eps = self.optional("layer_norm_eps")?.unwrap_or(1e-12);
        let token_types = self.optional("type_vocab_size")?.unwrap_or(2);
        let activation = self.activation("hidden_act", &known)?;
        self.encoder(Family::Bert, sizes, activation, eps, token_types)
    }

    fn distilbert(&mut self) -> Result<ModelConfig> {
        // Only how the table of positions was first filled; it is stored like any other.
        self.optional::<bool>("sinusoidal_pos_embds")?;
        let activation = self.activation("activation", &[("gelu", Activation::Gelu)])?;
        self.encoder(Family::DistilBert, ["dim", "n_heads", "hidden_dim", "n_layers"], activation, 1e-12, 0)
    }

    fn encoder(
        &mut self,
        family: Family,
        [width, heads, feed_forward, layers]: [&str; 4],
        activation: Activation,
        norm_eps: f32,
        token_types: usize,
    ) -> Result<ModelConfig> {
        let (hidden_size, heads) = (self.required(width)?, self.required(heads)?);
        // Of the head that predicts masked words, which nothing here computes.
        self.optional::<bool>("tie_word_embeddings")?;
        Ok(ModelConfig {
            family,
            vocab_size: self.required("vocab_size")?,
            hidden_size,
            intermediate_size: self.required(feed_forward)?,
            layers: self.required(layers)?,
            heads,
            kv_heads: heads,
            head_dim: self.head_dim(hidden_size, heads)?,
            max_positions: self.optional("max_position_embeddings")?.unwrap_or(512),
            norm_eps,
            activation,
            rope: None,
            windows: Vec::new(),
            token_types,
            tied_embeddings: true,
            bos_token_id: self.optional("bos_token_id")?,
            eos_token_ids: self.ids("eos_token_id")?,
            pad_token_id: self.optional("pad_token_id")?,
        })
    }

    /// The key `head_dim`, or the hidden size shared out over the heads.
    fn head_dim(&mut self, hidden_size: usize, heads: usize) -> Result<usize> {
        let named: Option<usize> = self.optional("head_dim")?;
        Ok(named.unwrap_or_else(|| hidden_size.checked_div(heads).unwrap_or_default()))
    }

    /// The rotary settings: `rope_theta` beside `rope_scaling`, or both in the later `rope_parameters`.
    fn rope(&mut self, max_positions: usize) -> Result<Rope> {
        let mut theta = self.optional("rope_theta")?;
        let original: Option<usize> = self.optional("original_max_position_embeddings")?;
        let mut scaling = None;
        for name in ["rope_scaling", "rope_parameters"] {
            let Some(map) = self.optional(name)? else { continue };
            let mut keys = Keys { path: self.path, map };
            theta = keys.optional("rope_theta")?.or(theta);
            keys.whole_heads_rotate()?;
            let kind: Option<String> = keys.optional("rope_type")?;
            let older_kind: Option<String> = keys.optional("type")?;
            match kind.or(older_kind).as_deref() {
                None | Some("default") => {}
                Some("llama3") => {
                    scaling = Some(RopeScaling::Llama3 {
                        factor: keys.required("factor")?,
                        low_freq_factor: keys.required("low_freq_factor")?,
                        high_freq_factor: keys.required("high_freq_factor")?,
                        original_max_positions: keys.required("original_max_position_embeddings")?,
                    });
                }
                Some("longrope" | "su") => {
                    let within: Option<usize> = keys.optional("original_max_position_embeddings")?;
                    let original_max_positions = within.or(original).unwrap_or(max_positions);
                    scaling = Some(RopeScaling::Long {
                        short: keys.required("short_factor")?,
                        original_max_positions,
                        attention_factor: keys.attention_factor(max_positions, original_max_positions)?,
                    });
                    // For texts beyond the original context, which are refused.
                    keys.optional::<Vec<f32>>("long_factor")?;
                }
                Some(other) => {
                    let key = format!("{name}.rope_type");
                    return Err(Error::unsupported(
                        self.path,
                        key,
                        format!("`{other}`"),
                        "`llama3`, `longrope` and `default`",
                    ));
                }
            }
            keys.refuse_the_rest()?;
        }
        Ok(Rope { theta: theta.unwrap_or(10_000.0), scaling })
    }

    fn whole_heads_rotate(&mut self) -> Result<()> {
        let key = "partial_rotary_factor";
        match self.optional::<f64>(key)? {
            Some(share) if (share - 1.0).abs() > 0.0 => {
                Err(Error::unsupported(self.path, key, share.to_string(), "1"))
            }
            _ => Ok(()),
        }
    }

    /// What longrope multiplies cosines and sines by.
    fn attention_factor(&mut self, max_positions: usize, original: usize) -> Result<f32> {
        let named: Option<f32> = self.optional("attention_factor")?;
        let factor: Option<f64> = self.optional("factor")?;
        let factor = factor.unwrap_or(max_positions as f64 / original as f64);
        let by_rule =
            if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() as f32 };
        Ok(named.unwrap_or(by_rule))
    }

    fn refuse_the_rest(self) -> Result<()> {
        let neutral = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        let harmless = |key: &str| {
            HARMLESS.contains(&key) || HARMLESS_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        };
        match self.map.iter().find(|(key, value)| !neutral(value) && !harmless(key)) {
            None => Ok(()),
            Some((key, value)) => Err(Error::unsupported(
                self.path,
                key,
                format!("`{value}`"),
                "the key left out; it may change what the model computes",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
