//! A large model behind the router is asked about queries as they come; one that it does not answer is no error.

use std::collections::HashMap;
use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::answer::Outcome;
use crate::ask::{AskOptions, Budget, runtime};
use crate::chat::{self, Message, Usage};
use crate::client::{Asked, Client, Fault};
use crate::kept::QueryPrompt;
use crate::prices::Price;
use crate::queries::{Known, Queries};
use crate::reading::LabelReader;
use crate::tokens::TokenCounter;
use crate::{Error, Result};

/// How long a model that failed is left alone, so that queries do not queue up behind it.
const REST: Duration = Duration::from_secs(30);

/// What the model said to a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Said {
    /// What its answer means.
    pub outcome: Outcome,
    /// Tokens that the answer took when it was asked for.
    pub usage: Usage,
    /// Whether the tokens were counted here.
    pub counted: bool,
    /// USD that it cost now: nothing where it was recorded. `None` without a price.
    pub cost: Option<f64>,
    /// Seconds that it took when it was asked for.
    pub seconds: f64,
    /// Whether it was recorded before.
    pub recorded: bool,
}

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unanswered {
    /// It was asked, and this went wrong.
    #[error("{0}")]
    Failed(String),
    /// The model failed a moment ago, in these words, and is left alone for a while.
    #[error("not asked, because it failed a moment ago: {0}")]
    Resting(String),
    /// What it says cannot be recorded, so it is asked no more.
    #[error("asked no more, because its answers cannot be recorded: {0}")]
    Unrecorded(String),
    /// The answer could have cost more than is left.
    #[error("it could have cost more than is left of --max-cost")]
    OutOfBudget,
}

/// Asks, within a budget, and records every answer.
#[derive(Debug)]
pub struct Asker {
    runtime: Runtime,
    desk: Desk,
}

#[derive(Debug)]
struct Desk {
    client: Arc<Client>,
    prompt: QueryPrompt,
    queries: Queries,
    budget: Budget,
    concurrency: usize,
    /// Why nothing is asked, and until when; without a time, to the end.
    rest: Option<(Option<Instant>, Unanswered)>,
}

/// One request that has left.
struct Sent {
    index: usize,
    messages: Vec<Message>,
    reserve: f64,
    asked: Result<Asked, Fault>,
}

impl Asker {
    /// Opens the recording in `folder`, or begins it. The budget is for what this value asks for.
    ///
    /// # Errors
    /// [`Error::NoPrice`] for a budget without a price, [`Error::InUse`] when another process writes the recording,
    /// [`Error::Recording`] when it is damaged, [`Error::Io`].
    pub fn new(client: Client, prompt: QueryPrompt, folder: &Path, options: &AskOptions) -> Result<Self> {
        options.check(&client)?;
        let queries = Queries::open(folder, client.endpoint(), &prompt)?;
        let (budget, concurrency) = (Budget::new(options, 0.0), options.concurrency.max(1));
        let desk = Desk { client: Arc::new(client), prompt, queries, budget, concurrency, rest: None };
        Ok(Self { runtime: runtime()?, desk })
    }

    /// What the model says to each query. Equal ones are asked once, and none that is recorded.
    pub fn ask(&mut self, queries: &[&str], counter: &mut TokenCounter<'_>) -> Vec<Result<Said, Unanswered>> {
        let (mut distinct, mut known) = (Vec::new(), HashMap::new());
        // Of each query its place among the distinct ones, and whether it stood before.
        let mut places = Vec::with_capacity(queries.len());
        for &query in queries {
            let place = *known.entry(query).or_insert(distinct.len());
            places.push((place, place < distinct.len()));
            if place == distinct.len() {
                distinct.push(query);
            }
        }
        let answers = self.runtime.block_on(self.desk.ask(&distinct, counter));
        let answer = |(place, again): (usize, bool)| {
            answers[place].clone().map(|said| if again { said.as_recorded() } else { said })
        };
        places.into_iter().map(answer).collect()
    }

    /// USD spent so far; `None` without a price.
    pub fn spent(&self) -> Option<f64> {
        self.desk.budget.price.map(|_| self.desk.budget.spent)
    }
}

impl Desk {
    async fn ask(
        &mut self,
        queries: &[&str],
        counter: &mut TokenCounter<'_>,
    ) -> Vec<Result<Said, Unanswered>> {
        let price = self.budget.price;
        let recorded = |known| Said::new(known, price).as_recorded();
        let mut answers: Vec<Option<Result<Said, Unanswered>>> =
            queries.iter().map(|query| self.queries.known(query).map(recorded).map(Ok)).collect();
        let missing: Vec<usize> = (0..queries.len()).filter(|&index| answers[index].is_none()).collect();
        let (mut next, mut tasks) = (missing.into_iter().peekable(), JoinSet::new());
        loop {
            while let Some(&index) = next.peek().filter(|_| tasks.len() < self.concurrency) {
                match self.question(queries[index]) {
                    // What the others under way do not cost may be enough.
                    Err(Unanswered::OutOfBudget) if !tasks.is_empty() => break,
                    Err(reason) => answers[index] = Some(Err(reason)),
                    Ok((messages, body, reserve)) => {
                        self.budget.reserved += reserve;
                        let client = Arc::clone(&self.client);
                        tasks.spawn(async move {
                            let asked = client.ask(&body).await;
                            Sent { index, messages, reserve, asked }
                        });
                    }
                }
                next.next();
            }
            let Some(done) = tasks.join_next().await else { break };
            if let Some((index, answer)) = self.take(queries, done, counter) {
                answers[index] = Some(answer);
            }
        }
        if let Err(error) = self.queries.sync() {
            self.rest = Some((None, Unanswered::Unrecorded(in_words(&error))));
        }
        let lost = || Err(Unanswered::Failed("the request was lost".into()));
        answers.into_iter().map(|answer| answer.unwrap_or_else(lost)).collect()
    }

    /// The request for a query and what it may cost, where one may leave.
    fn question(&mut self, query: &str) -> Result<(Vec<Message>, Value, f64), Unanswered> {
        match &self.rest {
            Some((Some(until), _)) if *until <= Instant::now() => self.rest = None,
            Some((_, reason)) => return Err(reason.clone()),
            None => {}
        }
        let (labels, features) = (self.prompt.labels(), self.prompt.features());
        let failed = |error: Error| Unanswered::Failed(in_words(&error));
        let messages = self.prompt.messages(query).map_err(failed)?;
        let reserve = self.budget.estimate(&messages, chat::answer_limit(labels, features));
        if !self.budget.allows(reserve) {
            return Err(Unanswered::OutOfBudget);
        }
        let body = chat::body(self.client.model(), &messages, labels, features);
        Ok((messages, body, reserve))
    }

    fn take(
        &mut self,
        queries: &[&str],
        done: Result<Sent, JoinError>,
        counter: &mut TokenCounter<'_>,
    ) -> Option<(usize, Result<Said, Unanswered>)> {
        let Sent { index, messages, reserve, asked } = match done {
            Ok(sent) => sent,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return None,
            },
        };
        self.budget.reserved -= reserve;
        let answer = match asked {
            Ok(asked) => Ok(self.record(queries[index], &messages, asked, counter)),
            Err(Fault::Final(error) | Fault::Unsupported(_, error) | Fault::Passing(error, _)) => {
                let reason = in_words(&error);
                if let Some(wait) = rest_after(&error) {
                    self.rest = Some((Some(Instant::now() + wait), Unanswered::Resting(reason.clone())));
                }
                Err(Unanswered::Failed(reason))
            }
        };
        Some((index, answer))
    }

    fn record(
        &mut self,
        query: &str,
        messages: &[Message],
        asked: Asked,
        counter: &mut TokenCounter<'_>,
    ) -> Said {
        let answer = asked.into_answer(self.queries.len(), messages, counter);
        self.budget.spend(messages, &answer.usage);
        let reader = LabelReader::new(self.prompt.labels());
        let known = Known::of(&answer, &reader);
        // This answer is paid for, so it is used.
        if let Err(error) = self.queries.push(query, answer, known) {
            self.rest = Some((None, Unanswered::Unrecorded(in_words(&error))));
        }
        Said::new(known, self.budget.price)
    }
}

impl Said {
    fn new(known: Known, price: Option<Price>) -> Self {
        let Known { outcome, usage, counted, seconds } = known;
        let cost = price.map(|price| price.cost(&usage));
        Self { outcome, usage, counted, cost, seconds, recorded: false }
    }

    /// The same once more, which costs nothing.
    fn as_recorded(self) -> Self {
        Self { cost: self.cost.map(|_| 0.0), recorded: true, ..self }
    }
}

/// How long to leave the model alone after this failure; `None` where it is about one query alone.
fn rest_after(error: &Error) -> Option<Duration> {
    match error {
        Error::Refused { status: 400 | 413 | 422, .. } | Error::Status { status: 400 | 413 | 422, .. } => {
            None
        }
        Error::Busy { wait_s, .. } => Some(REST.max(Duration::from_secs(*wait_s))),
        _ => Some(REST),
    }
}

/// A failure and its causes in one line, without advice that is about an evaluation.
fn in_words(error: &Error) -> String {
    match error {
        Error::GaveUp { source, .. } => in_words(source),
        Error::Busy { url, status, wait_s } => format!("{url} answered {status} and asks to wait {wait_s} s"),
        _ => {
            let causes = std::iter::successors(error.source(), |&cause| cause.source());
            causes.fold(error.to_string(), |words, cause| format!("{words}: {cause}"))
        }
    }
}
