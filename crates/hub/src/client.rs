//! Requests to the hub: redirects, the token, refusals, and tries again.

use std::time::{Duration, SystemTime};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE},
};
use wire::{asked_wait, shown};

use crate::{
    catalogue::mirror_of,
    error::{Error, Result},
    hub::Hub,
};

const MAX_REDIRECTS: usize = 10;

/// Why one try failed.
pub(crate) enum Fault {
    /// Another try would fail as well.
    Final(Error),
    /// Another try may succeed, after the wait that the server asked for.
    Passing(Error, Option<Duration>),
    /// Another try may succeed, and this one brought enough that the count begins anew.
    Advanced(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// An answer, with what the hub said on the way about the file.
pub(crate) struct Reply {
    pub(crate) response: Response,
    pub(crate) facts: Facts,
}

/// What the hub's headers say about a file.
#[derive(Default)]
pub(crate) struct Facts {
    pub(crate) etag: Option<String>,
    pub(crate) size: Option<u64>,
    pub(crate) commit: Option<String>,
    linked: bool,
}

impl Facts {
    /// The hub's own names come before the standard ones, which may describe a redirect.
    fn note(&mut self, headers: &HeaderMap, redirect: bool) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if self.commit.is_none() {
            self.commit = text("x-repo-commit").map(ToOwned::to_owned);
        }
        if let Some(etag) = text("x-linked-etag") {
            (self.etag, self.linked) = (Some(bare(etag)), true);
        } else if !self.linked
            && let Some(etag) = text(ETAG.as_str())
        {
            self.etag = Some(bare(etag));
        }
        let own = text(CONTENT_LENGTH.as_str()).filter(|_| !redirect && !self.linked);
        if let Some(size) = text("x-linked-size").or(own).and_then(|size| size.parse().ok()) {
            self.size = Some(size);
        }
    }
}

fn bare(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// One repository's view of the hub.
pub(crate) struct Client<'h> {
    http: reqwest::Client,
    endpoint: Url,
    hub: &'h Hub,
    repository: &'h str,
}

impl<'h> Client<'h> {
    pub(crate) fn new(hub: &'h Hub, repository: &'h str) -> Result<Self> {
        let endpoint = Url::parse(hub.endpoint.trim_end_matches('/'))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| Error::Endpoint { endpoint: hub.endpoint.clone() })?;
        let http = wire::client()
            .connect_timeout(hub.stall)
            .read_timeout(hub.stall)
            .build()
            .map_err(|source| Error::Client { source: source.into() })?;
        Ok(Self { http, endpoint, hub, repository })
    }

    /// The hub's address of a path; each segment is escaped.
    pub(crate) fn url<'s>(&self, segments: impl IntoIterator<Item = &'s str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// What the hub says about a file, without its bytes.
    pub(crate) async fn head(&self, url: &Url, what: &str) -> Result<Facts> {
        self.retry(url, async || Ok(self.open(Method::HEAD, url, None, what).await?.facts)).await
    }

    /// One try at a GET; `resume` is where to start and the `ETag` that the file must still have.
    pub(crate) async fn get(
        &self,
        url: &Url,
        resume: Option<(u64, &str)>,
        what: &str,
    ) -> Result<Reply, Fault> {
        self.open(Method::GET, url, resume, what).await
    }

    /// Runs one try after another until one succeeds, fails for good, or there were enough.
    pub(crate) async fn retry<T>(
        &self,
        url: &Url,
        mut attempt: impl AsyncFnMut() -> Result<T, Fault>,
    ) -> Result<T> {
        let mut tries = 0;
        loop {
            let (error, asked) = match attempt().await {
                Ok(value) => return Ok(value),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Passing(error, asked)) => (error, asked),
                Err(Fault::Advanced(error)) => {
                    tries = 0;
                    (error, None)
                }
            };
            tries += 1;
            if tries >= self.hub.backoff.tries {
                return Err(Error::GaveUp { url: shown(url), tries, source: Box::new(error) });
            }
            let wait = asked.unwrap_or_else(|| self.hub.backoff.wait(tries));
            if wait > self.hub.backoff.longest
                && let Error::Status { url, status, .. } = error
            {
                return Err(Error::Busy { url, status, wait_s: wait.as_secs() });
            }
            tracing::warn!("{error}; trying again in {wait:?}");
            (self.hub.sleep)(wait);
        }
    }

    /// Follows redirects by hand: the token goes to the hub's own origin only, and a HEAD stops where the hub has
    /// said everything and sends us elsewhere for the bytes.
    async fn open(
        &self,
        method: Method,
        url: &Url,
        resume: Option<(u64, &str)>,
        what: &str,
    ) -> Result<Reply, Fault> {
        let (mut at, mut facts) = (url.clone(), Facts::default());
        for _ in 0..=MAX_REDIRECTS {
            let home = at.origin() == self.endpoint.origin();
            let mut request =
                self.http.request(method.clone(), at.clone()).header(ACCEPT_ENCODING, "identity");
            if home && let Some(token) = &self.hub.token {
                let value = token.header().ok_or(Error::MalformedToken)?;
                request = request.header(AUTHORIZATION, value);
            }
            if let Some((start, etag)) = resume {
                request = request.header(RANGE, format!("bytes={start}-"));
                if home {
                    request = request.header(IF_RANGE, format!("\"{etag}\""));
                }
            }
            let response = request.send().await.map_err(|source| broken(&at, source))?;
            let status = response.status();
            let location = response.headers().get(LOCATION).filter(|_| status.is_redirection());
            if home {
                facts.note(response.headers(), location.is_some());
            }
            if let Some(location) = location {
                let target = location.to_str().ok().and_then(|location| at.join(location).ok());
                let target = target.ok_or_else(|| protocol(&at, "it redirects to no address"))?;
                if at.scheme() == "https" && target.scheme() != "https" {
                    return Err(protocol(&at, "it redirects from https to an open connection").into());
                }
                let known = facts.etag.is_some() && facts.size.is_some() && facts.commit.is_some();
                if method == Method::HEAD && known && target.origin() != self.endpoint.origin() {
                    return Ok(Reply { response, facts });
                }
                at = target;
            } else if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(Reply { response, facts });
            } else {
                return Err(self.refusal(&at, home, &response, what));
            }
        }
        Err(protocol(url, "it redirects in a circle").into())
    }

    /// What a status that is no success means.
    fn refusal(&self, at: &Url, home: bool, response: &Response, what: &str) -> Fault {
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let (status, url) = (response.status().as_u16(), shown(at));
        let message =
            text("x-error-message").map(|text| format!(": {}", text.chars().take(300).collect::<String>()));
        let message = message.unwrap_or_default();
        let (repository, signed_in) = (self.repository.to_owned(), self.hub.token.is_some());
        Fault::Final(match (status, text("x-error-code")) {
            (408 | 429 | 500 | 502 | 503 | 504, _) => {
                let asked = asked_wait(response.headers(), SystemTime::now());
                return Fault::Passing(Error::Status { url, status, message }, asked);
            }
            (401 | 403, Some("GatedRepo")) if home => Error::Gated {
                page: self.url(repository.split('/')).into(),
                mirror: mirror_of(&repository),
                repository,
                reason: if signed_in { "your token has no access to it" } else { "no token was sent" },
            },
            (404, _) | (401 | 403, Some("RepoNotFound")) if home => Error::NotFound {
                what: what.to_owned(),
                url,
                status,
                hint: if signed_in {
                    "; a private repository also needs a token that may read it"
                } else {
                    "; a private repository needs HF_TOKEN"
                }
                .to_owned(),
            },
            (401 | 403, _) if home => Error::Refused {
                what: what.to_owned(),
                status,
                message,
                advice: if signed_in {
                    "check that the token in HF_TOKEN (or the token file) is valid and may read it"
                } else {
                    "set HF_TOKEN to a token that may read it"
                },
            },
            _ => Error::Status { url, status, message },
        })
    }
}

/// A broken connection; the address is taken out of the cause, because a signed one is a secret.
pub(crate) fn broken(at: &Url, source: reqwest::Error) -> Fault {
    Fault::Passing(Error::Network { url: shown(at), source: source.without_url() }, None)
}

pub(crate) fn protocol(at: &Url, reason: impl Into<String>) -> Error {
    Error::Protocol { url: shown(at), reason: reason.into() }
}
