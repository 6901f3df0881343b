//! The API key, which never shows.

use std::fmt;

use reqwest::header::HeaderValue;

/// What stands in place of the key.
const HIDDEN: &str = "[key hidden]";
/// A shorter text is a placeholder for servers without keys, such as `none`, and may occur in any answer.
const SHORTEST_SECRET: usize = 8;

/// An API key; its `Debug` form hides it, and it has no other.
#[derive(Clone)]
pub(crate) struct Key(String);

impl Key {
    /// The key without the white space around it; none when nothing is left.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The value of the `Authorization` header; `None` when no header can hold the key.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The text without the key: a server may repeat it in what it answers.
    pub(crate) fn redact(&self, text: String) -> String {
        if self.0.len() >= SHORTEST_SECRET && text.contains(&self.0) {
            return text.replace(&self.0, HIDDEN);
        }
        text
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_itself() {
        let key = Key::new(" sk-very-secret\n").unwrap();
        assert!(!format!("{key:?} {:?}", key.header().unwrap()).contains("secret"));
        assert_eq!(key.header().unwrap().to_str().unwrap(), "Bearer sk-very-secret");
        assert_eq!(key.redact("bad key sk-very-secret!".into()), "bad key [key hidden]!");
    }

    #[test]
    fn a_placeholder_is_no_secret() {
        assert_eq!(Key::new("none").unwrap().redact("none of these".into()), "none of these");
        assert!(Key::new(" \n").is_none());
        assert!(Key::new("two\nlines").unwrap().header().is_none());
    }
}
