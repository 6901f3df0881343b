//! A tokenizer as the keys of a GGUF file: the reverse of [`Tokenizer::from_gguf`].

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::Tokenizer;
use super::gguf::{CONTROL, MERGES, MODEL, PRE, Pre, TOKENS, TYPES, UNUSED, USER_DEFINED};
use crate::gguf::GgufWriter;
use crate::{Error, Result};

/// The type of the merging model's tokens.
const NORMAL: i32 = 1;

/// The part of a `tokenizer.json` that is written.
#[derive(Deserialize)]
struct Whole {
    added_tokens: Vec<Added>,
    normalizer: Option<Json>,
    pre_tokenizer: Option<Json>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    vocab: Map<String, Json>,
    #[serde(default)]
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair([String; 2]),
    Joined(String),
}

impl Tokenizer {
    /// Sets the tokenizer's keys in a GGUF file for a model whose embedding table has `rows` rows.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a tokenizer that is not byte-level BPE with one of the splits that GGUF files name
    /// and this program reads.
    pub fn to_gguf(&self, writer: &mut GgufWriter<'_>, rows: usize) -> Result<()> {
        let fail = |source| Error::Tokenizer { path: self.path.clone(), source };
        let json = self.inner.to_string(false).map_err(fail)?;
        let whole: Whole = serde_json::from_str(&json)
            .map_err(|_| self.foreign("model.type", "not BPE with a vocabulary and merges".into()))?;
        let Model { r#type, byte_fallback, vocab, merges } = whole.model;
        if r#type != "BPE" || byte_fallback {
            let kind = if byte_fallback { "BPE over characters" } else { &r#type };
            return Err(self.foreign("model.type", kind.to_owned()));
        }
        if let Some(normalizer) = whole.normalizer {
            return Err(self.foreign("normalizer", normalizer.to_string()));
        }
        let split = whole.pre_tokenizer.unwrap_or_default();
        let pre = Pre::of(&split).ok_or_else(|| self.foreign("pre_tokenizer", split.to_string()))?;

        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; rows];
        let listed = vocab.into_iter().map(|(token, id)| (id.as_u64().map(|id| id as usize), token, NORMAL));
        let added = whole
            .added_tokens
            .into_iter()
            .map(|added| (Some(added.id), added.content, if added.special { CONTROL } else { USER_DEFINED }));
        for (id, token, kind) in listed.chain(added) {
            match id.filter(|&id| id < rows) {
                Some(id) => (tokens[id], types[id]) = (token, kind),
                None => return Err(self.foreign("vocab", format!("`{token}` beyond {rows} rows"))),
            }
        }
        let merges: Vec<String> = merges
            .into_iter()
            .map(|merge| match merge {
                Merge::Pair([left, right]) => format!("{left} {right}"),
                Merge::Joined(joined) => joined,
            })
            .collect();
        writer.set(MODEL, "gpt2");
        writer.set(PRE, pre.name());
        writer.set(TOKENS, tokens);
        writer.set(TYPES, types);
        writer.set(MERGES, merges);
        let unknown = self.setting("unk_token").and_then(|token| self.id(token));
        let turn_end = self.eot_id().filter(|&id| Some(id) != self.eos_id());
        let ids = [
            ("bos", self.bos_id()),
            ("eos", self.eos_id()),
            ("eot", turn_end),
            ("unknown", unknown),
            ("padding", self.pad_id()),
        ];
        for (name, id) in ids {
            if let Some(id) = id {
                writer.set(format!("tokenizer.ggml.{name}_token_id"), id);
            }
        }
        let begins = self.bos_id().is_some() && self.around()?.0.first().copied() == self.bos_id();
        writer.set("tokenizer.ggml.add_bos_token", begins);
        if let Some(template) = self.setting("chat_template") {
            writer.set("tokenizer.chat_template", template);
        }
        Ok(())
    }

    fn foreign(&self, key: &str, found: String) -> Error {
        let supported = "byte-level BPE split as GPT-2, SmolLM or Llama 3 do; export as `merged` instead";
        Error::unsupported(&self.path, key, found, supported)
    }
}
