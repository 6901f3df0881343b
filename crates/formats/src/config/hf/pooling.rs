//! `1_Pooling/config.json`, in which sentence-transformers says how an encoder is read.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::keys::Keys;
use crate::{Error, ModelConfig, Pooling, Result};

impl Pooling {
    /// Where the file lies in a model's folder.
    pub const FILE: &str = "1_Pooling/config.json";

    /// The pooling in the keys of a `1_Pooling/config.json`; `path` stands in the errors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the key of a pooling that is not known here.
    pub(crate) fn from_keys(map: Map<String, Value>, path: &Path) -> Result<Self> {
        let mut keys = Keys { path, map };
        for size in ["word_embedding_dimension", "embedding_dimension"] {
            keys.optional::<usize>(size)?;
        }
        // Of texts behind a prompt, which there is none of here.
        keys.optional::<bool>("include_prompt")?;
        let mut flag = |key| Ok::<_, Error>(keys.optional::<bool>(key)?.unwrap_or(false));
        let (first, mean) = (flag("pooling_mode_cls_token")?, flag("pooling_mode_mean_tokens")?);
        let named: Option<String> = keys.optional("pooling_mode")?;
        keys.refuse_the_rest()?;
        match (named.as_deref(), first, mean) {
            (Some("cls"), false, false) | (None, true, false) => Ok(Self::First),
            (Some("mean"), false, false) | (None, false, true) => Ok(Self::Mean),
            _ => {
                let found = format!("{named:?}, cls_token {first}, mean_tokens {mean}");
                Err(Error::unsupported(path, "pooling_mode", found, "one of `cls` and `mean`"))
            }
        }
    }
}

impl ModelConfig {
    /// The text of a `1_Pooling/config.json` for an encoder that is not read as encoders are without it.
    pub fn pooling_json(&self) -> Option<String> {
        let json = json!({
            "word_embedding_dimension": self.hidden_size,
            "pooling_mode_cls_token": true,
            "pooling_mode_mean_tokens": false,
        });
        (self.pooling == Pooling::First).then(|| format!("{json:#}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_read_and_others_are_refused_by_name() {
        let read =
            |text: &str| Pooling::from_keys(serde_json::from_str(text).unwrap(), Path::new(Pooling::FILE));
        let modes = |first, mean, max| {
            read(&format!(
                r#"{{"word_embedding_dimension": 384, "pooling_mode_cls_token": {first},
                "pooling_mode_mean_tokens": {mean}, "pooling_mode_max_tokens": {max}, "include_prompt": true}}"#
            ))
        };
        assert_eq!(modes(true, false, false).unwrap(), Pooling::First);
        assert_eq!(modes(false, true, false).unwrap(), Pooling::Mean);
        assert_eq!(read(r#"{"pooling_mode": "cls"}"#).unwrap(), Pooling::First);
        assert!(modes(false, true, true).unwrap_err().to_string().contains("pooling_mode_max_tokens"));
        for text in [r#"{"pooling_mode": "lasttoken"}"#, r#"{"pooling_mode_cls_token": false}"#, "{}"] {
            assert!(read(text).unwrap_err().to_string().contains("pooling_mode"), "{text}");
        }
        assert!(modes(true, true, false).unwrap_err().to_string().contains("pooling_mode"));
    }
}
