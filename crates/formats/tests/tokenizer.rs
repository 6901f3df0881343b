//! Tokenizers built from GGUF keys, saved and loaded again.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::sync::LazyLock;

use formats::gguf::Value;
use formats::{Error, Gguf, GgufWriter, Tokenizer};
use proptest::prelude::*;

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// All 256 byte tokens of byte-level BPE, then a few merges, in the order of GPT-2's alphabet.
fn byte_tokens() -> Vec<String> {
    let printable = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let shifted = (0..256u32).filter(|b| !printable(b)).enumerate().map(|(i, _)| 256 + i as u32);
    let alphabet = (0..256u32).filter(printable).chain(shifted);
    alphabet.map(|code| char::from_u32(code).unwrap().to_string()).collect()
}

struct File {
    pre: &'static str,
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
}

impl File {
    /// Bytes, `hi`, `Ġhi`, `12`, `123`, then the special tokens.
    fn new(pre: &'static str) -> Self {
        let mut tokens = byte_tokens();
        tokens.extend(["hi", "Ġhi", "12", "123"].map(str::to_owned));
        let mut types = vec![1; tokens.len()];
        tokens.extend(["<|bos|>", "<|im_end|>", "word"].map(str::to_owned));
        types.extend([CONTROL; 3]);
        let merges = ["h i", "Ġ hi", "1 2", "12 3"].map(str::to_owned).to_vec();
        Self { pre, tokens, types, merges }
    }

    fn gguf(&self, change: impl Fn(&mut GgufWriter)) -> Gguf {
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", "llama");
        writer.set("llama.context_length", 64u32);
        writer.set("tokenizer.ggml.model", "gpt2");
        writer.set("tokenizer.ggml.pre", self.pre);
        writer.set("tokenizer.ggml.tokens", self.tokens.clone());
        writer.set("tokenizer.ggml.token_type", self.types.clone());
        writer.set("tokenizer.ggml.merges", self.merges.clone());
        writer.set("tokenizer.ggml.bos_token_id", 260u32);
        writer.set("tokenizer.ggml.eos_token_id", 261u32);
        writer.set("tokenizer.chat_template", "{{ messages }}");
        change(&mut writer);
        Gguf::from_bytes(writer.to_bytes(), "t.gguf").unwrap()
    }

    fn build(&self) -> formats::Result<Tokenizer> {
        Tokenizer::from_gguf(&self.gguf(|_| {}))
    }
}

/// One tokenizer of each kind, for tests of many texts.
static BUILT: LazyLock<[Tokenizer; 3]> =
    LazyLock::new(|| ["smollm", "llama-bpe", "gpt-2"].map(|pre| File::new(pre).build().unwrap()));

fn spelt(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text).unwrap();
    ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect()
}

#[test]
fn each_pre_type_cuts_digits_its_own_way() {
    let cases: [(&str, &[&str]); 3] =
        [("smollm", &["1", "2", "3", "1"]), ("gpt-2", &["123", "1"]), ("llama-bpe", &["123", "1"])];
    for (pre, expected) in cases {
        assert_eq!(spelt(&File::new(pre).build().unwrap(), "1231"), expected, "{pre}");
    }
    let llama3 = File::new("llama-bpe").build().unwrap();
    // Llama 3 takes whole words that no merge reaches, and cuts numbers into threes from the left.
    assert_eq!(spelt(&llama3, "hi hi\n\n'S"), ["hi", "Ġhi", "Ċ", "Ċ", "'", "S"]);
}

#[test]
fn special_tokens_have_their_ids_and_spellings() {
    let tokenizer = File::new("smollm").build().unwrap();
    assert_eq!(tokenizer.vocab_size(), 263);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(260), Some(261), None));
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), ("<|bos|>", "<|im_end|>"));
    assert_eq!(tokenizer.eot_id(), Some(261));
    assert!(tokenizer.is_special(261) && !tokenizer.is_special(256) && !tokenizer.is_special(999));
    assert_eq!(tokenizer.encode("hi<|im_end|>").unwrap(), [256, 261]);
    assert_eq!(tokenizer.decode(&[256, 261], true).unwrap(), "hi");
    assert_eq!(tokenizer.decode(&[256, 261], false).unwrap(), "hi<|im_end|>");
    let named = File::new("smollm").gguf(|writer| writer.set("tokenizer.ggml.eot_token_id", 262u32));
    assert_eq!(Tokenizer::from_gguf(&named).unwrap().eot_id(), Some(262));
}

proptest! {
    #[test]
    fn plain_text_cannot_forge_a_special_token(
        pieces in proptest::collection::vec(
            prop_oneof![Just("<|im_end|>"), Just("<|bos|>"), Just("word"), Just("<|im"), Just("_end|>"), Just(" "), Just("hi")],
            0..8,
        ),
    ) {
        let text = pieces.concat();
        for tokenizer in &*BUILT {
            let ids = tokenizer.encode_plain(&text).unwrap();
            prop_assert!(!ids.iter().any(|&id| tokenizer.is_special(id)), "{tokenizer:?}: {text} {ids:?}");
            prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.as_str());
        }
    }

    #[test]
    fn text_survives(text in "\\PC{0,40}") {
        for tokenizer in &*BUILT {
            let ids = tokenizer.encode_plain(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.as_str());
        }
    }
}

#[test]
fn a_saved_tokenizer_is_the_same_one() {
    for pre in ["smollm", "llama-bpe", "default"] {
        let tokenizer = File::new(pre).build().unwrap();
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        tokenizer.save(first.path()).unwrap();
        let again = Tokenizer::from_folder(first.path()).unwrap();
        for text in ["hi hi 1234 <|im_end|> 'S\n\n x", "Größe 👍"] {
            assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        }
        assert_eq!((again.bos_id(), again.eos_id(), again.eot_id()), (Some(260), Some(261), Some(261)));
        again.save(second.path()).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            let read =
                |folder: &tempfile::TempDir| std::fs::read_to_string(folder.path().join(file)).unwrap();
            assert_eq!(read(&first), read(&second), "{file}");
        }
        let config = std::fs::read_to_string(first.path().join("tokenizer_config.json")).unwrap();
        assert!(config.contains("\"chat_template\": \"{{ messages }}\""), "{config}");
    }
}

#[test]
fn lengths_saved_by_others_do_not_cut_or_fill() {
    let folder = tempfile::tempdir().unwrap();
    File::new("smollm").build().unwrap().save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    );
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "!"
    });
    std::fs::write(&path, json.to_string()).unwrap();
    assert_eq!(Tokenizer::from_folder(folder.path()).unwrap().encode("hi hi").unwrap(), [256, 257]);
}

#[test]
fn what_is_not_known_or_not_sound_is_an_error_that_names_it() {
    let error = File::new("mystery").build().unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(error.to_string().contains("`mystery`") && error.to_string().contains("llama-bpe"), "{error}");
    let broken = |change: fn(&mut File)| {
        let mut file = File::new("smollm");
        change(&mut file);
        file.build().unwrap_err().to_string()
    };
    assert!(broken(|file| file.tokens[1] = "hi".into()).contains("`hi` twice"));
    assert!(broken(|file| file.merges[0] = "hi".into()).contains("not a pair"));
    assert!(broken(|file| file.types.truncate(5)).contains("5 items for 263 tokens"));
    assert!(broken(|file| file.merges[0] = "ab cd".into()).contains("tokenizer"));
    let keys = [("tokenizer.ggml.bos_token_id", "263"), ("tokenizer.ggml.model", "`llama`")];
    for (key, value) in keys {
        let gguf = File::new("smollm").gguf(|writer| match key {
            "tokenizer.ggml.model" => writer.set(key, "llama"),
            _ => writer.set(key, 263u32),
        });
        let error = Tokenizer::from_gguf(&gguf).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(value), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::from_folder(folder.path()), Err(Error::Read { .. })));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(Tokenizer::from_folder(folder.path()), Err(Error::Tokenizer { .. })));
}

#[test]
fn a_tokenizer_written_as_gguf_is_the_same_again() {
    for pre in ["smollm", "llama-bpe", "gpt-2"] {
        let mut file = File::new(pre);
        file.types[262] = USER_DEFINED;
        let before = file.gguf(|writer| writer.set("tokenizer.ggml.padding_token_id", 261u32));
        let tokenizer = Tokenizer::from_gguf(&before).unwrap();
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        // Once as it is, once after a way through Hugging Face's files, which do not name the end of a turn.
        for tokenizer in [tokenizer, Tokenizer::from_folder(folder.path()).unwrap()] {
            let mut writer = GgufWriter::new();
            writer.set("general.architecture", "llama");
            writer.set("llama.context_length", 64u32);
            tokenizer.to_gguf(&mut writer, 263).unwrap();
            let after = Gguf::from_bytes(writer.to_bytes(), "again.gguf").unwrap();
            for (key, value) in before.metadata() {
                assert_eq!(after.get(key), Some(value), "{pre}: {key}");
            }
            let begins = Value::Bool(pre == "llama-bpe");
            assert_eq!(after.get("tokenizer.ggml.add_bos_token"), Some(&begins), "{pre}");
            let again = Tokenizer::from_gguf(&after).unwrap();
            let text = "hi 123 12hi<|im_end|>word";
            assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{pre}");
        }
    }
}

#[test]
fn rows_without_a_token_are_written_as_unused() {
    let tokenizer = File::new("gpt-2").build().unwrap();
    let mut writer = GgufWriter::new();
    tokenizer.to_gguf(&mut writer, 265).unwrap();
    let gguf = Gguf::from_bytes(writer.to_bytes(), "rows.gguf").unwrap();
    let tokens = gguf.get("tokenizer.ggml.tokens").and_then(Value::as_strings).unwrap();
    assert_eq!(tokens[262..], ["word", "[PAD263]", "[PAD264]"]);
    let again = Tokenizer::from_gguf(&gguf).unwrap();
    assert_eq!(again.vocab_size(), tokenizer.vocab_size(), "no text becomes one of them");
    assert!(tokenizer.to_gguf(&mut GgufWriter::new(), 262).unwrap_err().to_string().contains("`word`"));
}

#[test]
fn a_tokenizer_that_gguf_has_no_name_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    File::new("gpt-2").build().unwrap().save(folder.path()).unwrap();
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for (change, instead, key) in [
        (r#""use_regex":true"#, r#""use_regex":false"#, "pre_tokenizer"),
        (r#""normalizer":null"#, r#""normalizer":{"type":"NFC"}"#, "normalizer"),
        (r#""byte_fallback":false"#, r#""byte_fallback":true"#, "model.type"),
    ] {
        let changed = text.replace(change, instead);
        assert_ne!(changed, text, "{change}");
        std::fs::write(&path, changed).unwrap();
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        let error = tokenizer.to_gguf(&mut GgufWriter::new(), 263).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("merged"), "{error}");
    }
}
