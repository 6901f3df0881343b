//! Questions to an endpoint: timeouts, refusals, and tries again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use reqwest::{StatusCode, Url};
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};
use wire::{Backoff, asked_wait, shown};

use crate::answer::Answer;
use crate::chat::{Message, Reply, error_message};
use crate::endpoint::Endpoint;
use crate::tokens::TokenCounter;
use crate::{Error, Result};

/// Letters of a server's words that a message repeats.
const WORDS_SHOWN: usize = 300;

/// A connection to one endpoint.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    url: Url,
    http: reqwest::Client,
    backoff: Backoff,
    /// No request leaves before this moment: a server that one request is told to leave alone is left alone by all.
    not_before: Mutex<Option<Instant>>,
    stopped: AtomicBool,
    timeout: Duration,
}

/// A reply and what it took.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) reply: Reply,
    /// Of the successful try.
    pub(crate) seconds: f64,
    pub(crate) tries: u32,
}

impl Asked {
    /// As it is recorded, with its tokens.
    pub(crate) fn into_answer(
        self,
        row: usize,
        messages: &[Message],
        counter: &mut TokenCounter<'_>,
    ) -> Answer {
        let Self { reply, seconds, tries } = self;
        let counted = reply.usage.is_none();
        let usage = reply.usage.unwrap_or_else(|| counter.usage(messages, &reply));
        Answer { row, reply, usage, counted, seconds, tries }
    }
}

/// Why one question has no answer.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Another try would fail as well.
    Final(Error),
    /// The request may ask for something that the endpoint does not support; with the server's words.
    Unsupported(String, Error),
    /// Another try may succeed, after the wait that the server asked for.
    Passing(Error, Option<Duration>),
}

impl Client {
    /// How a whole data set is asked about: rate limits are mostly counted over a minute, and the seven waits add up
    /// to at least half and at most one.
    pub const PATIENT: Backoff =
        Backoff { tries: 8, first: Duration::from_millis(500), longest: Duration::from_mins(2) };

    /// A client that gives each request this long.
    ///
    /// # Errors
    /// [`Error::NoKey`] and [`Error::MalformedKey`] when the environment holds no usable key; [`Error::Client`] when
    /// the system's certificates cannot be used.
    pub fn new(endpoint: Endpoint, backoff: Backoff, timeout: Duration) -> Result<Self> {
        let http = wire::client()
            .connect_timeout(timeout)
            .timeout(timeout)
            .default_headers(endpoint.headers()?)
            .build()
            .map_err(|source| Error::Client { source: source.into() })?;
        let url = endpoint.chat_url();
        let (not_before, stopped) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { endpoint, url, http, backoff, not_before, stopped, timeout })
    }

    /// Who is asked.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The model that is asked.
    pub(crate) fn model(&self) -> &str {
        &self.endpoint.model
    }

    /// How long one request may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// From now on no failed request is tried again.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Tries until there is an answer, a fault that stays, or there were enough tries.
    pub(crate) async fn ask(&self, body: &Value) -> Result<Asked, Fault> {
        let mut tries = 0;
        loop {
            self.wait_for_all().await;
            tries += 1;
            let (error, asked) = match self.attempt(body).await {
                Ok((reply, seconds)) => return Ok(Asked { reply, seconds, tries }),
                Err(Fault::Passing(error, asked)) => (error, asked),
                Err(fault) => return Err(fault),
            };
            if tries >= self.backoff.tries || self.stopped.load(Ordering::Relaxed) {
                let gave_up = Error::GaveUp { url: shown(&self.url), tries, source: Box::new(error) };
                return Err(Fault::Final(gave_up));
            }
            if let Some(wait) = asked {
                if wait > self.backoff.longest {
                    return Err(Fault::Final(self.busy(&error, wait)));
                }
                tracing::warn!("{error}; all requests wait {wait:?}, as the server asks");
                self.hold(wait);
            } else {
                let wait = self.backoff.wait(tries);
                tracing::warn!("{error}; trying again in {wait:?}");
                sleep(wait).await;
            }
        }
    }

    fn busy(&self, error: &Error, wait: Duration) -> Error {
        let status = if let Error::Status { status, .. } = error { *status } else { 429 };
        Error::Busy { url: shown(&self.url), status, wait_s: wait.as_secs() }
    }

    fn hold(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut not_before = self.not_before.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *not_before = Some(not_before.map_or(until, |before| before.max(until)));
    }

    async fn wait_for_all(&self) {
        loop {
            let until = *self.not_before.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }

    /// One try: the reply and how long it took.
    async fn attempt(&self, body: &Value) -> Result<(Reply, f64), Fault> {
        let begun = Instant::now();
        let url = || shown(&self.url);
        let broken = |source: reqwest::Error| {
            Fault::Passing(Error::Network { url: url(), source: source.without_url() }, None)
        };
        let response = self.http.post(self.url.clone()).json(body).send().await.map_err(broken)?;
        let (status, headers) = (response.status(), response.headers().clone());
        // What the server says is cleared of the key before anything else sees it.
        let text = self.endpoint.redact(response.text().await.map_err(broken)?);
        if let Some(refusal) = filtered(&text).filter(|_| status == StatusCode::BAD_REQUEST) {
            let reply = Reply { refusal: Some(refusal), ..Reply::default() };
            return Ok((reply, begun.elapsed().as_secs_f64()));
        }
        if !status.is_success() {
            return Err(self.refusal(status, asked_wait(&headers, SystemTime::now()), &text));
        }
        let reply = Reply::parse(&text)
            .map_err(|reason| Fault::Passing(Error::Protocol { url: url(), reason: short(&reason) }, None))?;
        Ok((reply, begun.elapsed().as_secs_f64()))
    }

    /// What a status that is no success means.
    fn refusal(&self, status: StatusCode, asked: Option<Duration>, body: &str) -> Fault {
        let json: Value = serde_json::from_str(body).unwrap_or_default();
        let words = error_message(&json).unwrap_or_else(|| body.trim().to_owned());
        let message = if words.is_empty() { String::new() } else { format!(": {}", short(&words)) };
        let (url, status) = (shown(&self.url), status.as_u16());
        let code = json["error"]["code"].as_str().unwrap_or_default();
        let refused = |advice| Error::Refused { url: url.clone(), status, message: message.clone(), advice };
        let plain = || Error::Status { url: url.clone(), status, message: message.clone() };
        match (status, code) {
            (_, "insufficient_quota" | "billing_hard_limit_reached") => Fault::Final(refused(
                "the account has no credit left; top it up, then run the same command again",
            )),
            (401 | 403, _) => Fault::Final(refused("check the key, and that it may use this model")),
            (404, _) => {
                Fault::Final(refused("check the model's name and the address, which mostly ends with /v1"))
            }
            (_, "context_length_exceeded") => Fault::Final(refused("the prompt is too long; lower --shots")),
            // A server that trips over a feature often calls it its own fault.
            (500 | 501, _) if names_a_feature(&words) => Fault::Unsupported(words, plain()),
            (408 | 409 | 425 | 429 | 500.., _) => Fault::Passing(plain(), asked),
            (400 | 405 | 415 | 422, _) => Fault::Unsupported(
                words,
                refused("the request is not understood; a shorter prompt may be (--shots)"),
            ),
            _ => Fault::Final(plain()),
        }
    }
}

/// The words of a provider's filter that keeps a query from the model: an answer of its own kind, no failure.
fn filtered(body: &str) -> Option<String> {
    let json: Value = serde_json::from_str(body).ok()?;
    let code = json["error"]["code"].as_str()?;
    matches!(code, "content_filter" | "content_policy_violation")
        .then(|| short(&error_message(&json).unwrap_or_else(|| code.to_owned())))
}

fn names_a_feature(words: &str) -> bool {
    ["response_format", "json_schema", "json_object", "logprobs", "logits_all"]
        .iter()
        .any(|name| words.contains(name))
}

fn short(words: &str) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(WORDS_SHOWN).collect()
}
