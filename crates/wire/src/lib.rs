//! What every call over the network keeps to: secrets that never show, waits between tries, one client.

mod backoff;
mod secret;

pub use backoff::{Backoff, asked_wait};
pub use secret::Secret;

use reqwest::{ClientBuilder, Url};

/// A client that follows no redirect by itself: a redirect would carry a secret to another place.
pub fn client() -> ClientBuilder {
    // Fails when a provider is there already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("frontdesk/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
}

/// An address without its query and user, where secrets stand.
pub fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_shows_no_secret() {
        let url = Url::parse("https://user:hunter2@host:8443/v1/models?key=hunter2#hunter2").unwrap();
        assert_eq!(shown(&url), "https://host:8443/v1/models");
    }
}
