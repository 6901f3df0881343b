//! Text to token ids and back.

mod folder;
mod gguf;
mod to_gguf;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) use folder::chat_template;
use serde_json::{Map, Value as Json};

use crate::{Error, Result};

/// The tokens that end a turn in the chat formats in use, for files that do not say which does.
const TURN_ENDS: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"];

/// The most by which replacements may multiply a text's length. Each file of a model may come from a stranger, and a
/// chain of replacements that double would fill any memory.
const MOST_GROWTH: f64 = 64.0;

/// By how much the replacements of a normalizer or a decoder may multiply the length of a text.
fn growth(part: &Json) -> f64 {
    let inner = ["normalizers", "decoders"].into_iter().find_map(|key| part[key].as_array());
    if let Some(parts) = inner {
        return parts.iter().map(growth).product();
    }
    if part["type"] != "Replace" {
        return 1.0;
    }
    let content = part["content"].as_str().map_or(0, str::len) as f64;
    // An expression may match a single byte, or nothing, beside each.
    let per_byte =
        part["pattern"]["String"].as_str().map_or(content + 1.0, |it| content / it.len().max(1) as f64);
    per_byte.max(1.0)
}

/// A tokenizer with the ids of its special tokens.
pub struct Tokenizer {
    path: PathBuf,
    /// Special tokens spelt out in a text are ordinary characters to it.
    inner: tokenizers::Tokenizer,
    /// The same for texts in which they are special tokens, built at first use.
    special: OnceLock<tokenizers::Tokenizer>,
    /// What stands in `tokenizer_config.json`.
    settings: Map<String, Json>,
    eot_id: Option<u32>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("tokens", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer from the text of a `tokenizer.json` and the keys of a `tokenizer_config.json`.
    fn new(
        json: &[u8],
        settings: Map<String, Json>,
        eot_id: Option<u32>,
        path: impl Into<PathBuf>,
    ) -> Result<Self> {
        let path = path.into();
        let fail = |source| Error::Tokenizer { path: path.clone(), source };
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(fail)?;
        // A file may have been saved in the middle of somebody's batching; lengths are not its business here.
        inner.with_truncation(None).map_err(fail)?;
        inner.with_padding(None);
        for (key, part) in [
            ("normalizer", serde_json::to_value(inner.get_normalizer())),
            ("decoder", serde_json::to_value(inner.get_decoder())),
        ] {
            let part = part.map_err(|source| Error::Json { path: path.clone(), source })?;
            let growth = growth(&part);
            if growth > MOST_GROWTH {
                let found = format!("replacements that let a text grow {growth:.0} times");
                return Err(Error::unsupported(path, key, found, format!("at most {MOST_GROWTH} times")));
            }
        }
        inner.set_encode_special_tokens(true);
        Ok(Self { path, inner, special: OnceLock::new(), settings, eot_id })
    }

    /// The ids of a text. No token is added; special tokens spelt out in the text become those tokens, so
    /// this is for text that a template or this program made.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let special = self.special.get_or_init(|| {
            let mut special = self.inner.clone();
            special.set_encode_special_tokens(false);
            special
        });
        self.encode_with(special, text)
    }

    /// The ids of a text from outside: `<|im_end|>` in it is ten ordinary characters, not the end of a turn.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(&self.inner, text)
    }

    fn encode_with(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
        let encoding = tokenizer
            .encode_fast(text, false)
            .map_err(|source| Error::Tokenizer { path: self.path.clone(), source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// What the tokenizer puts before and after a text that is meant for an encoder, such as `[CLS]` and `[SEP]`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn around(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let fail = |source| Error::Tokenizer { path: self.path.clone(), source };
        let encoding = self.inner.encode("a", true).map_err(fail)?;
        let (ids, added) = (encoding.get_ids(), encoding.get_special_tokens_mask());
        let begin = added.iter().take_while(|&&added| added == 1).count();
        let end = added[begin..].iter().rev().take_while(|&&added| added == 1).count();
        Ok((ids[..begin].to_vec(), ids[ids.len() - end..].to_vec()))
    }

    /// The text of ids, with special tokens spelt out or left out. Bytes that are not UTF-8, as when a
    /// character is cut in two, become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|source| Error::Tokenizer { path: self.path.clone(), source })
    }

    /// The token of an id as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the id is of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The number of tokens, special ones included; a model's table may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest id of any token.
    pub(crate) fn largest_id(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().unwrap_or_default()
    }

    /// The token that begins a text, if the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.setting("bos_token").and_then(|token| self.id(token))
    }

    /// The token that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.setting("eos_token").and_then(|token| self.id(token))
    }

    /// The token that ends a turn of a conversation: the one that the file names, else one with a name in
    /// common use, else the one that ends a text.
    pub fn eot_id(&self) -> Option<u32> {
        let by_name = || TURN_ENDS.iter().find_map(|token| self.id(token).filter(|&id| self.is_special(id)));
        self.eot_id.or_else(by_name).or_else(|| self.eos_id())
    }

    /// The token that fills batches in other programs.
    pub fn pad_id(&self) -> Option<u32> {
        self.setting("pad_token").and_then(|token| self.id(token))
    }

    /// The spelling of the token that begins a text, as chat templates want it; empty without one.
    pub fn bos_token(&self) -> &str {
        self.setting("bos_token").unwrap_or_default()
    }

    /// The spelling of the token that ends a text, as chat templates want it; empty without one.
    pub fn eos_token(&self) -> &str {
        self.setting("eos_token").unwrap_or_default()
    }

    /// A token among the settings, which stands there as a string or inside an object.
    fn setting(&self, key: &str) -> Option<&str> {
        let setting = self.settings.get(key)?;
        setting.as_str().or_else(|| setting.get("content")?.as_str())
    }

    /// Writes the files into `folder` with which transformers' `AutoTokenizer` loads this tokenizer and its
    /// chat template: `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`Error::Write`] and [`Error::Tokenizer`].
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        folder::save(self, folder.as_ref())
    }
}
