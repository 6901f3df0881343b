//! The tokenizer files of a Hugging Face folder.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::Tokenizer;
use crate::{Error, Result, store};

const TOKENIZER: &str = "tokenizer.json";
const SETTINGS: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_KEY: &str = "chat_template";

const SPECIAL_TOKEN_KEYS: [&str; 7] =
    ["bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token", "unk_token"];

impl Tokenizer {
    /// The tokenizer of a Hugging Face folder: `tokenizer.json`, and `tokenizer_config.json` if it is there.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Json`] and [`Error::Tokenizer`].
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(TOKENIZER);
        let mut settings = settings(folder)?;
        if let Some(template) = chat_template(folder)? {
            settings.insert(TEMPLATE_KEY.into(), template.into());
        }
        Self::new(&store::read(&path)?, settings, None, path)
    }
}

/// The chat template of a Hugging Face folder, from its own file or `tokenizer_config.json`.
pub(crate) fn chat_template(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(TEMPLATE);
    if path.exists() {
        let bytes = store::read(&path)?;
        let not_text = |_| Error::malformed(&path, "chat template", "it is not UTF-8");
        return String::from_utf8(bytes).map(Some).map_err(not_text);
    }
    Ok(match settings(folder)?.get(TEMPLATE_KEY) {
        Some(Json::String(template)) => Some(template.clone()),
        // Several templates under names of their own; the one for plain chat is called so.
        Some(Json::Array(named)) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str())
            .map(str::to_owned),
        _ => None,
    })
}

fn settings(folder: &Path) -> Result<Map<String, Json>> {
    let path = folder.join(SETTINGS);
    if path.exists() { store::read_json(&path) } else { Ok(Map::new()) }
}

pub(super) fn save(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let json = tokenizer
        .inner
        .to_string(false)
        .map_err(|source| Error::Tokenizer { path: folder.join(TOKENIZER), source })?;
    let special = SPECIAL_TOKEN_KEYS.iter().filter_map(|key| Some((*key, tokenizer.setting(key)?)));
    let special: Map<String, Json> = special.map(|(key, token)| (key.to_owned(), token.into())).collect();
    store::write_atomically(folder.join(TOKENIZER), json.as_bytes())?;
    for (name, map) in [(SETTINGS, &tokenizer.settings), (SPECIAL_TOKENS, &special)] {
        store::write_atomically(folder.join(name), format!("{:#}\n", Json::from(map.clone())).as_bytes())?;
    }
    Ok(())
}
