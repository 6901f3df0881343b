//! The access token, which never shows.

use std::fmt;

use reqwest::header::HeaderValue;

use crate::error::{Error, Result};

/// An access token of the hub; its `Debug` form hides it, and it has no other.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token without the white space around it; none when nothing is left.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(crate) fn header(&self) -> Result<HeaderValue> {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", self.0)).map_err(|_| Error::MalformedToken)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_itself() {
        let token = Token::new(" hf_secret\n").unwrap();
        assert!(!format!("{token:?} {:?}", token.header().unwrap()).contains("secret"));
        assert_eq!(token.header().unwrap().to_str().unwrap(), "Bearer hf_secret");
    }

    #[test]
    fn refuses_what_no_header_can_hold_without_showing_it() {
        let error = Token::new("hf_se\ncret").unwrap().header().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("cret"), "{error:?}");
        assert!(Token::new(" \n").is_none());
    }
}
