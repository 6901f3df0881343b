//! The tokenizer keys of a GGUF file, turned into the `tokenizer.json` that the model was published with.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::Tokenizer;
use crate::gguf::{Gguf, Value};
use crate::{Error, Result};

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// Types of tokens that are matched in text before anything else.
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
/// Rows of the table that no token uses.
pub(super) const UNUSED: i32 = 5;

const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// How text is cut into words before merging; a GGUF file only gives this a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pre {
    Gpt2,
    SmolLm,
    Llama3,
}

impl Pre {
    /// The name in GGUF files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::SmolLm => "smollm",
            Self::Llama3 => "llama-bpe",
        }
    }

    /// The one that splits as the `pre_tokenizer` of a `tokenizer.json` does.
    pub(super) fn of(split: &Json) -> Option<Self> {
        // Whether offsets leave out spaces says nothing about the tokens.
        fn plain(split: &Json) -> Json {
            match split {
                Json::Object(keys) => {
                    let kept = keys.iter().filter(|(key, _)| *key != "trim_offsets");
                    kept.map(|(key, value)| (key.clone(), plain(value))).collect::<Map<_, _>>().into()
                }
                Json::Array(items) => items.iter().map(plain).collect(),
                other => other.clone(),
            }
        }
        let split = plain(split);
        [Self::Gpt2, Self::SmolLm, Self::Llama3].into_iter().find(|pre| plain(&pre.pre_tokenizer()) == split)
    }

    fn named(name: &str, path: &Path) -> Result<Self> {
        match name {
            "gpt-2" | "default" => Ok(Self::Gpt2),
            "smollm" => Ok(Self::SmolLm),
            "llama-bpe" => Ok(Self::Llama3),
            _ => Err(Error::unsupported(
                path,
                PRE,
                format!("`{name}`"),
                "`smollm`, `llama-bpe`, `gpt-2` and `default`",
            )),
        }
    }

    fn pre_tokenizer(self) -> Json {
        let byte_level = |use_regex: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex
            })
        };
        let sequence = |first: Json, then: Json| json!({"type": "Sequence", "pretokenizers": [first, then]});
        match self {
            Self::Gpt2 => byte_level(true),
            Self::SmolLm => sequence(json!({"type": "Digits", "individual_digits": true}), byte_level(true)),
            Self::Llama3 => sequence(
                json!({
                    "type": "Split",
                    "pattern": {"Regex": LLAMA3_SPLIT},
                    "behavior": "Isolated",
                    "invert": false
                }),
                byte_level(false),
            ),
        }
    }
}

impl Tokenizer {
    /// The tokenizer in the keys of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming a tokenizer model or `pre` type that is not known;
    /// [`Error::MissingKey`]; [`Error::Malformed`] when tokens repeat or special ids lie outside the
    /// vocabulary.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let path = gguf.path();
        let model = gguf.required(MODEL, Value::as_str)?;
        if model != "gpt2" {
            return Err(Error::unsupported(path, MODEL, format!("`{model}`"), "`gpt2` (byte-level BPE)"));
        }
        let pre = Pre::named(gguf.required(PRE, Value::as_str)?, path)?;
        let tokens = gguf.required(TOKENS, Value::as_strings)?;
        let special = SpecialTokens::read(gguf, tokens)?;
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": special.added,
            "normalizer": null,
            "pre_tokenizer": pre.pre_tokenizer(),
            "post_processor": post_processor(gguf, pre, &special)?,
            "decoder": {
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true
            },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": pre == Pre::Llama3,
                "vocab": vocabulary(&tokens[..special.first_outside], path)?,
                "merges": merges(gguf)?,
            }
        });
        let settings = settings(gguf, &special)?;
        Self::new(json.to_string().as_bytes(), settings, special.eot.map(|(id, _)| id), path)
    }
}

/// A token's id and spelling.
type Named = Option<(u32, String)>;

struct SpecialTokens {
    /// Entries for `tokenizer.json`.
    added: Vec<Json>,
    /// Where the run of special tokens at the end of the vocabulary begins: those are not the merging
    /// model's, which might otherwise make one out of ordinary text.
    first_outside: usize,
    bos: Named,
    eos: Named,
    eot: Named,
    unknown: Named,
    padding: Named,
}

impl SpecialTokens {
    fn read(gguf: &Gguf, tokens: &[String]) -> Result<Self> {
        let malformed = |reason| Error::malformed(gguf.path(), "GGUF", reason);
        let types = gguf.required(TYPES, Value::as_i32s)?;
        if types.len() != tokens.len() {
            return Err(malformed(format!(
                "`{TYPES}` has {} items for {} tokens",
                types.len(),
                tokens.len()
            )));
        }
        let is_added = |kind: i32| kind == CONTROL || kind == USER_DEFINED;
        let added = tokens.iter().zip(types).enumerate().filter(|(_, (_, kind))| is_added(**kind));
        let added = added.map(|(id, (content, kind))| {
            let special = *kind == CONTROL;
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": !special, "special": special
            })
        });
        let named = |name: &str| -> Result<Named> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let Some(id) = gguf.optional(&key, Value::as_id)? else { return Ok(None) };
            match tokens.get(id as usize) {
                Some(token) => Ok(Some((id, token.clone()))),
                None => {
                    Err(malformed(format!("`{key}` is {id}, beyond a vocabulary of {} tokens", tokens.len())))
                }
            }
        };
        Ok(Self {
            added: added.collect(),
            first_outside: types
                .iter()
                .rposition(|&kind| !is_added(kind) && kind != UNUSED)
                .map_or(0, |last| last + 1),
            bos: named("bos")?,
            eos: named("eos")?,
            eot: named("eot")?,
            unknown: named("unknown")?,
            padding: named("padding")?,
        })
    }
}

fn vocabulary(tokens: &[String], path: &Path) -> Result<Map<String, Json>> {
    let mut vocabulary = Map::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert(token.clone(), id.into()).is_some() {
            return Err(Error::malformed(path, "GGUF", format!("`{TOKENS}` has the token `{token}` twice")));
        }
    }
    Ok(vocabulary)
}

fn merges(gguf: &Gguf) -> Result<Vec<Json>> {
    let merges = gguf.required(MERGES, Value::as_strings)?;
    let pair = |merge: &String| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok(json!([left, right])),
        _ => Err(Error::malformed(
            gguf.path(),
            "GGUF",
            format!("`{MERGES}` has `{merge}`, which is not a pair"),
        )),
    };
    merges.iter().map(pair).collect()
}

/// What is added around a text by programs that ask for special tokens: the first token, for Llama 3.
fn post_processor(gguf: &Gguf, pre: Pre, special: &SpecialTokens) -> Result<Json> {
    let wanted = gguf.optional("tokenizer.ggml.add_bos_token", Value::as_bool)?.unwrap_or(true);
    let (Pre::Llama3, true, Some((id, bos))) = (pre, wanted, &special.bos) else { return Ok(Json::Null) };
    let token = |kind: u8| json!({"SpecialToken": {"id": bos, "type_id": kind}});
    let text = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
    Ok(json!({
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {
                "type": "TemplateProcessing",
                "single": [token(0), text("A", 0)],
                "pair": [token(0), text("A", 0), token(1), text("B", 1)],
                "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}
            }
        ]
    }))
}

fn settings(gguf: &Gguf, special: &SpecialTokens) -> Result<Map<String, Json>> {
    let mut settings = Map::new();
    settings.insert("clean_up_tokenization_spaces".into(), false.into());
    settings.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    let named = [
        ("bos_token", &special.bos),
        ("eos_token", &special.eos),
        ("pad_token", &special.padding),
        ("unk_token", &special.unknown),
    ];
    for (key, token) in named {
        if let Some((_, token)) = token {
            settings.insert(key.into(), token.as_str().into());
        }
    }
    let architecture = gguf.optional("general.architecture", Value::as_str)?.unwrap_or_default();
    if let Some(length) = gguf.optional(&format!("{architecture}.context_length"), Value::as_usize)? {
        settings.insert("model_max_length".into(), length.into());
    }
    if let Some(template) = gguf.optional("tokenizer.chat_template", Value::as_str)? {
        settings.insert("chat_template".into(), template.into());
    }
    Ok(settings)
}
