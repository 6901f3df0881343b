//! Which model is asked, where, and with which key.

use std::env;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use wire::{Secret, shown};

use crate::{Error, Result};

const OPENAI: &str = "https://api.openai.com/v1";
const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// A model behind an OpenAI-compatible endpoint.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The model as the endpoint names it.
    pub model: String,
    base: Url,
    key: Option<Secret>,
    /// Where the key was looked for.
    key_variable: String,
    needs_key: bool,
    organisation: Option<String>,
    project: Option<String>,
}

impl Endpoint {
    /// Reads `MODEL`, `MODEL@URL` or `MODEL@URL#VARIABLE`.
    ///
    /// Without a URL, `OPENAI_BASE_URL` or OpenAI itself is asked. The key is the value of `OPENAI_API_KEY`, with
    /// `OPENAI_ORG_ID` and `OPENAI_PROJECT_ID` beside it; or of `VARIABLE`, for a second provider. A server without
    /// keys needs none.
    ///
    /// # Errors
    /// [`Error::Spec`] when the text is none of the three forms. A missing key is found when a client is made: what
    /// was recorded needs none.
    pub fn from_env(spec: &str) -> Result<Self> {
        Self::read(spec, |name| env::var(name).ok())
    }

    /// A model at an address with a key, whatever the environment says; an empty key is none.
    ///
    /// # Errors
    /// [`Error::Spec`] when the address is none.
    pub fn with_key(model: &str, url: &str, key: &str) -> Result<Self> {
        let variable = |name: &str| (name == KEY_VARIABLE).then(|| key.to_owned());
        Self::read(&format!("{model}@{url}"), variable)
    }

    fn read(spec: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|v| !v.is_empty());
        let (model, url, key_variable) = split(spec)?;
        let (source, text) = match url {
            Some(url) => (model.to_owned(), url.to_owned()),
            None => {
                ("OPENAI_BASE_URL".to_owned(), set("OPENAI_BASE_URL").unwrap_or_else(|| OPENAI.to_owned()))
            }
        };
        let base = base_url(&source, &text)?;
        let own = key_variable.is_none();
        let key_variable = key_variable.unwrap_or(KEY_VARIABLE);
        let key = set(key_variable).and_then(|key| Secret::new(&key));
        // A variable that was named is meant.
        let needs_key = !own || base.host_str() == Some("api.openai.com");
        let beside = |names: &[&str]| names.iter().find_map(|name| set(name)).filter(|_| own);
        Ok(Self {
            model: model.to_owned(),
            base,
            key,
            key_variable: key_variable.to_owned(),
            needs_key,
            organisation: beside(&["OPENAI_ORG_ID", "OPENAI_ORGANIZATION"]),
            project: beside(&["OPENAI_PROJECT_ID"]),
        })
    }

    /// The endpoint's address, as reports and recordings show it.
    pub fn address(&self) -> String {
        shown(&self.base)
    }

    /// The variable of the key, where another one than `OPENAI_API_KEY` was named.
    pub fn key_variable(&self) -> Option<&str> {
        (self.key_variable != KEY_VARIABLE).then_some(&self.key_variable)
    }

    pub(crate) fn chat_url(&self) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["chat", "completions"]);
        }
        url
    }

    /// Key, organisation and project, as far as there are any.
    pub(crate) fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        let variable = || self.key_variable.clone();
        match &self.key {
            Some(key) => {
                let value = key.header().ok_or_else(|| Error::MalformedKey { variable: variable() })?;
                headers.insert(AUTHORIZATION, value);
            }
            None if self.needs_key => {
                return Err(Error::NoKey { endpoint: self.address(), variable: variable() });
            }
            None => {}
        }
        for (name, value) in [("openai-organization", &self.organisation), ("openai-project", &self.project)]
        {
            if let Some(value) = value.as_ref().and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        }
        Ok(headers)
    }

    /// The text without the key.
    pub(crate) fn redact(&self, text: String) -> String {
        match &self.key {
            Some(key) => key.redact(text),
            None => text,
        }
    }
}

/// Model, address and the variable of the key.
fn split(spec: &str) -> Result<(&str, Option<&str>, Option<&str>)> {
    // An address may hold a password, so messages show the name alone.
    let name = spec.char_indices().skip(1).find(|(_, c)| *c == '@').map_or(spec, |(at, _)| &spec[..at]);
    let bad = |reason| Error::Spec { text: name.to_owned(), reason };
    let at = spec.find("@http://").or_else(|| spec.find("@https://"));
    let (model, url) = at.map_or((spec, None), |at| (&spec[..at], Some(&spec[at + 1..])));
    // Some model names hold an `@` themselves; what looks like `host:port` is an address that lost its scheme.
    if url.is_none()
        && model.rsplit_once('@').is_some_and(|(name, host)| !name.is_empty() && host.contains(':'))
    {
        return Err(bad("the address does not begin with http:// or https://"));
    }
    if model.trim().is_empty() {
        return Err(bad("the model's name is missing"));
    }
    let (url, variable) = match url.and_then(|url| url.split_once('#')) {
        Some((url, variable)) => (Some(url), Some(variable)),
        None => (url, None),
    };
    // A key in its place is not shown.
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if variable.is_some_and(|name| name.is_empty() || !is_name(name)) {
        return Err(bad("after `#`, the name of an environment variable with the key is expected"));
    }
    Ok((model.trim(), url, variable))
}

/// The address that `/chat/completions` is appended to.
fn base_url(source: &str, text: &str) -> Result<Url> {
    let bad = |reason| Error::Spec { text: source.to_owned(), reason };
    let url = Url::parse(text.trim_end_matches('/').trim_end_matches("/chat/completions"));
    let mut url = url.map_err(|_| bad("the address is no web address such as http://127.0.0.1:8000/v1"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(bad("the address is no web address such as http://127.0.0.1:8000/v1"));
    }
    // Both would be copied into reports and recordings with the command line.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::Spec {
            text: shown(&url),
            reason: "a user or password has no place in the address: put the key into OPENAI_API_KEY",
        });
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::Spec { text: shown(&url), reason: "the address may not have a query" });
    }
    if url.path() == "/" {
        url.set_path("/v1");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spec: &str, variables: &[(&str, &str)]) -> Result<Endpoint> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Endpoint::read(spec, find)
    }

    fn message(spec: &str, variables: &[(&str, &str)]) -> String {
        read(spec, variables).and_then(|endpoint| endpoint.headers()).unwrap_err().to_string()
    }

    #[test]
    fn a_name_alone_is_openai_or_the_base_url() {
        let key = ("OPENAI_API_KEY", "sk-secret-key");
        let it = read("gpt-4o", &[key, ("OPENAI_ORG_ID", "org-1")]).unwrap();
        assert_eq!(it.chat_url().as_str(), "https://api.openai.com/v1/chat/completions");
        assert_eq!(it.headers().unwrap()["openai-organization"], "org-1");
        assert_eq!(it.headers().unwrap()[AUTHORIZATION].to_str().unwrap(), "Bearer sk-secret-key");
        let it = read("gpt-4o", &[key, ("OPENAI_BASE_URL", "https://proxy.example/openai/v1/")]).unwrap();
        assert_eq!(it.chat_url().as_str(), "https://proxy.example/openai/v1/chat/completions");
        assert!(message("gpt-4o", &[]).contains("OPENAI_API_KEY"));
    }

    #[test]
    fn an_address_may_follow() {
        for (spec, model, url) in [
            ("m@http://127.0.0.1:8000/v1", "m", "http://127.0.0.1:8000/v1/chat/completions"),
            ("m@http://127.0.0.1:8000", "m", "http://127.0.0.1:8000/v1/chat/completions"),
            ("m@http://h/v1/chat/completions/", "m", "http://h/v1/chat/completions"),
            ("@cf/meta/llama@https://h/x", "@cf/meta/llama", "https://h/x/chat/completions"),
        ] {
            let it = read(spec, &[]).unwrap();
            assert_eq!((it.model.as_str(), it.chat_url().as_str()), (model, url), "{spec}");
            assert!(it.headers().unwrap().is_empty());
        }
    }

    #[test]
    fn a_second_provider_has_a_key_of_its_own() {
        let variables =
            [("OPENAI_API_KEY", "sk-of-openai"), ("OTHER_KEY", "other-key"), ("OPENAI_ORG_ID", "org-1")];
        let it = read("m@https://other.example/v1#OTHER_KEY", &variables).unwrap();
        assert_eq!(it.headers().unwrap()[AUTHORIZATION].to_str().unwrap(), "Bearer other-key");
        assert_eq!(it.headers().unwrap().len(), 1, "the organisation is OpenAI's");
        assert_eq!(it.address(), "https://other.example/v1");
        assert!(message("m@https://other.example/v1#NOT_SET", &variables).contains("NOT_SET"));
    }

    #[test]
    fn what_cannot_be_asked_is_refused_without_showing_secrets() {
        assert!(message("m@127.0.0.1:8000", &[]).contains("http://"));
        assert!(message("@http://h", &[]).contains("name is missing"));
        assert!(message("m@http://", &[]).contains("no web address"));
        let key = message("m@http://h#sk-hunter2", &[]);
        assert!(key.contains("name of an environment variable") && !key.contains("hunter2"), "{key}");
        for spec in ["m@https://user:hunter2@h/v1", "m@https://h/v1?key=hunter2"] {
            let message = message(spec, &[]);
            assert!(message.contains("https://h/v1") && !message.contains("hunter2"), "{message}");
        }
        let message = message("m@http://h", &[("OPENAI_API_KEY", "two\nlines")]);
        assert!(message.contains("OPENAI_API_KEY") && !message.contains("lines"), "{message}");
    }
}
