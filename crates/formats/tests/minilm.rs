//! The real all-MiniLM-L6-v2, whose folder is in `FRONTDESK_MINILM`.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test that cannot go on should stop, and say if it was skipped

use std::path::PathBuf;

use formats::{BaseModel, Family, Tokenizer};
use serde_json::Value;

#[test]
fn texts_are_cut_into_the_pieces_that_transformers_gives() {
    let Some(folder) = std::env::var_os("FRONTDESK_MINILM") else {
        eprintln!("skipped: set FRONTDESK_MINILM to the folder that `frontdesk pull minilm-l6` prints");
        return;
    };
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families/minilm.json");
    let fixture: Value =
        serde_json::from_slice(&std::fs::read(path).expect("run tools/parity/minilm.py to make the fixture"))
            .unwrap();
    let model = BaseModel::open(folder).unwrap();
    assert_eq!((model.config.family, model.config.layers, model.config.hidden_size), (Family::Bert, 6, 384));
    let tokenizer = model.tokenizer().unwrap();
    let (before, after) = tokenizer.around().unwrap();
    assert_eq!((before.as_slice(), after.as_slice()), ([101].as_slice(), [102].as_slice()));
    let saved = tempfile::tempdir().unwrap();
    tokenizer.save(saved.path()).unwrap();
    for tokenizer in [tokenizer, Tokenizer::from_folder(saved.path()).unwrap()] {
        for text in fixture["texts"].as_array().unwrap() {
            let ids =
                [before.clone(), tokenizer.encode(text["text"].as_str().unwrap()).unwrap(), after.clone()];
            let expected: Vec<u32> =
                text["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(ids.concat(), expected, "{}", text["text"]);
        }
        // A text from outside cannot forge the token that ends a text.
        assert!(!tokenizer.encode_plain("a [SEP] b").unwrap().contains(&102));
        assert!(tokenizer.encode("a [SEP] b").unwrap().contains(&102));
    }
}
