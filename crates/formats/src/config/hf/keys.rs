//! The keys of a `config.json`, taken out one by one, so that what is left was not understood.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Activation, Error, Result};

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

/// The keys of a file, taken out one by one, so that what is left was not understood.
pub(super) struct Keys<'a> {
    pub(super) path: &'a Path,
    pub(super) map: Map<String, Value>,
}

impl Keys<'_> {
    /// Takes out a key; null is the same as absent.
    pub(super) fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone()).map(Some).map_err(|_| {
                let supported = format!("a value of type {}", std::any::type_name::<T>());
                Error::unsupported(self.path, key, value.to_string(), supported)
            }),
        }
    }

    pub(super) fn required<T: DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        self.optional(key)?.ok_or_else(|| Error::MissingKey { path: self.path.to_owned(), key: key.into() })
    }

    /// A token id, or a list of them.
    pub(super) fn ids(&mut self, key: &str) -> Result<Vec<u32>> {
        match self.map.get(key) {
            Some(Value::Array(_)) => self.required(key),
            _ => Ok(self.optional(key)?.into_iter().collect()),
        }
    }

    /// The key's value must be the one that the mathematics here has; absent is as good.
    pub(super) fn only(&mut self, key: &str, value: &str) -> Result<()> {
        match self.optional::<String>(key)? {
            Some(found) if found != value => {
                Err(Error::unsupported(self.path, key, format!("`{found}`"), format!("`{value}`")))
            }
            _ => Ok(()),
        }
    }

    /// The activation's name, one of `known`.
    pub(super) fn activation(&mut self, key: &str, known: &[(&str, Activation)]) -> Result<Activation> {
        let Some(name) = self.optional::<String>(key)? else { return Ok(known[0].1) };
        known.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation).ok_or_else(|| {
            let names: Vec<String> = known.iter().map(|(name, _)| format!("`{name}`")).collect();
            Error::unsupported(self.path, key, format!("`{name}`"), names.join(", "))
        })
    }

    /// The key `head_dim`, or the hidden size shared out over the heads.
    pub(super) fn head_dim(&mut self, hidden_size: usize, heads: usize) -> Result<usize> {
        let named: Option<usize> = self.optional("head_dim")?;
        Ok(named.unwrap_or_else(|| hidden_size.checked_div(heads).unwrap_or_default()))
    }

    /// What was not taken out might change what the model computes.
    pub(super) fn refuse_the_rest(self) -> Result<()> {
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
