//! Keys and tokens, which never show.

use std::fmt;

use reqwest::header::HeaderValue;

/// What stands in its place.
const HIDDEN: &str = "[key hidden]";
/// A shorter text is a placeholder for servers without keys, such as `none`, and may occur in any answer.
const SHORTEST_SECRET: usize = 8;

/// An API key or an access token; its `Debug` form hides it, and it has no other.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text without the white space around it; none when nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The value of the `Authorization` header; `None` when no header can hold it.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The text without the secret: a server may repeat it in what it answers.
    pub fn redact(&self, text: String) -> String {
        if self.0.len() >= SHORTEST_SECRET && text.contains(&self.0) {
            return text.replace(&self.0, HIDDEN);
        }
        text
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_itself() {
        let key = Secret::new(" sk-very-secret\n").unwrap();
        assert!(!format!("{key:?} {:?}", key.header().unwrap()).contains("secret"));
        assert_eq!(key.header().unwrap().to_str().unwrap(), "Bearer sk-very-secret");
        assert_eq!(key.redact("bad key sk-very-secret!".into()), "bad key [key hidden]!");
    }

    #[test]
    fn a_placeholder_is_no_secret() {
        assert_eq!(Secret::new("none").unwrap().redact("none of these".into()), "none of these");
        assert!(Secret::new(" \n").is_none());
        assert!(Secret::new("two\nlines").unwrap().header().is_none());
    }
}
