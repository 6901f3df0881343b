//! Asks for every row: many at once, each one once, within a budget.

use std::sync::Arc;

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::answer::Answer;
use crate::chat::{self, Message, Usage};
use crate::client::{Asked, Client, Fault};
use crate::features::Features;
use crate::prices::Price;
use crate::prompts::Prompts;
use crate::recording::Recording;
use crate::tokens::TokenCounter;
use crate::{Error, Result};

/// How rows are asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AskOptions {
    /// Requests at the same time, at least one.
    pub concurrency: usize,
    /// What the model costs.
    pub price: Option<Price>,
    /// USD that may be spent; for [`ask_all`] on all answers of the recording, those of earlier runs included.
    pub max_cost: Option<f64>,
}

impl AskOptions {
    /// Refuses a budget that cannot be kept.
    pub(crate) fn check(&self, client: &Client) -> Result<()> {
        match (self.max_cost, self.price) {
            (Some(_), None) => Err(Error::NoPrice { model: client.model().to_owned() }),
            _ => Ok(()),
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ending {
    /// Every row has an answer.
    Complete,
    /// Another answer could have cost more than the budget.
    OutOfBudget {
        /// USD for the answers so far.
        spent: f64,
    },
}

/// Sees answers as they arrive.
pub trait Observer {
    /// This many rows have an answer, for this many USD.
    fn answered(&mut self, answered: usize, cost: Option<f64>) {
        let _ = (answered, cost);
    }
}

impl Observer for () {}

/// Asks for every row that the recording has no answer to, and records each answer as it arrives.
///
/// What the endpoint supports is found with the first row and remembered in the recording.
///
/// # Errors
/// The first failure that stays. Requests under way are waited for and their answers recorded, so the same call goes
/// on where this one stopped.
pub fn ask_all(
    client: Client,
    prompts: &Prompts<'_>,
    recording: &mut Recording,
    options: &AskOptions,
    counter: &mut TokenCounter<'_>,
    observer: &mut dyn Observer,
) -> Result<Ending> {
    options.check(&client)?;
    let cost = |answer: &Answer| options.price.map_or(0.0, |price| price.cost(&answer.usage));
    let budget = Budget::new(options, recording.answers().map(cost).sum());
    let mut job = Job { client: Arc::new(client), prompts, recording, budget, counter, observer };
    let ending = runtime()?.block_on(job.run(options.concurrency.max(1)));
    job.recording.sync()?;
    ending
}

/// Requests wait for each other on one thread.
pub(crate) fn runtime() -> Result<Runtime> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|source| Error::Client { source: source.into() })
}

/// One request that is ready to leave.
#[derive(Debug)]
struct Question {
    row: usize,
    messages: Vec<Message>,
    body: Value,
    /// USD that it may cost.
    reserve: f64,
}

struct Job<'a, 'p, 'c> {
    client: Arc<Client>,
    prompts: &'a Prompts<'p>,
    recording: &'a mut Recording,
    budget: Budget,
    counter: &'a mut TokenCounter<'c>,
    observer: &'a mut dyn Observer,
}

impl Job<'_, '_, '_> {
    async fn run(&mut self, concurrency: usize) -> Result<Ending> {
        let out_of_budget = |budget: &Budget| Ok(Ending::OutOfBudget { spent: budget.spent });
        let features = match (self.recording.features(), self.recording.missing().first()) {
            (_, None) => return Ok(Ending::Complete),
            (Some(features), _) => features,
            (None, Some(&row)) => match self.settle(row).await? {
                Some(features) => features,
                None => return out_of_budget(&self.budget),
            },
        };
        let missing = self.recording.missing();
        let mut next = missing.iter().copied().peekable();
        let mut tasks = JoinSet::new();
        loop {
            while let Some(&row) = next.peek().filter(|_| tasks.len() < concurrency) {
                let question = self.question(row, features)?;
                if !self.budget.allows(question.reserve) {
                    break;
                }
                next.next();
                self.budget.reserved += question.reserve;
                let client = Arc::clone(&self.client);
                tasks.spawn(async move {
                    let asked = client.ask(&question.body).await;
                    (question, asked)
                });
            }
            match tasks.join_next().await {
                None if next.peek().is_some() => return out_of_budget(&self.budget),
                None => return Ok(Ending::Complete),
                Some(done) => {
                    if let Err(error) = self.take(done) {
                        self.drain(tasks).await;
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Asks for a row with everything, then with less and less, until the endpoint is content; `None` when the budget
    /// does not allow it.
    async fn settle(&mut self, row: usize) -> Result<Option<Features>> {
        let mut features = Features::default();
        loop {
            let question = self.question(row, features)?;
            if !self.budget.allows(question.reserve) {
                return Ok(None);
            }
            match self.client.ask(&question.body).await {
                Ok(asked) => {
                    self.recording.learn(features)?;
                    self.record(&question, asked)?;
                    return Ok(Some(features));
                }
                Err(Fault::Unsupported(words, error)) => match features.after_refusal(&words) {
                    Some(fewer) => features = fewer,
                    None => return Err(error),
                },
                Err(Fault::Final(error) | Fault::Passing(error, _)) => return Err(error),
            }
        }
    }

    fn question(&self, row: usize, features: Features) -> Result<Question> {
        let messages = self.prompts.messages(row, features.structure)?;
        let labels = self.prompts.labels();
        let body = chat::body(self.client.model(), &messages, labels, features);
        let reserve = self.budget.estimate(&messages, chat::answer_limit(labels, features));
        Ok(Question { row, messages, body, reserve })
    }

    fn take(&mut self, done: Result<(Question, Result<Asked, Fault>), tokio::task::JoinError>) -> Result<()> {
        let (question, asked) = match done {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => return Err(Error::Client { source: error.into() }),
            },
        };
        self.budget.reserved -= question.reserve;
        match asked {
            Ok(asked) => self.record(&question, asked),
            Err(Fault::Final(error) | Fault::Unsupported(_, error) | Fault::Passing(error, _)) => Err(error),
        }
    }

    fn record(&mut self, question: &Question, asked: Asked) -> Result<()> {
        let answer = asked.into_answer(question.row, &question.messages, self.counter);
        self.budget.spend(&question.messages, &answer.usage);
        self.recording.push(answer)?;
        let cost = self.budget.price.map(|_| self.budget.spent);
        self.observer.answered(self.recording.answered(), cost);
        Ok(())
    }

    /// Waits for the requests under way and records their answers, which are paid for; further failures say nothing
    /// new.
    async fn drain(&mut self, mut tasks: JoinSet<(Question, Result<Asked, Fault>)>) {
        self.client.stop();
        let deadline = Instant::now() + self.client.timeout();
        while let Ok(Some(done)) = timeout_at(deadline, tasks.join_next()).await {
            let _ = self.take(done);
        }
    }
}

/// What was spent and what the requests under way may cost.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) price: Option<Price>,
    max_cost: Option<f64>,
    pub(crate) spent: f64,
    pub(crate) reserved: f64,
    /// The most tokens a byte of a prompt had so far.
    tokens_per_byte: f64,
    /// The longest answer so far, in tokens.
    longest: Option<u64>,
}

impl Budget {
    /// Before the first answer: English has about one token in four bytes, other scripts one in two.
    const FIRST_GUESS: f64 = 0.5;

    pub(crate) fn new(options: &AskOptions, spent: f64) -> Self {
        let AskOptions { price, max_cost, .. } = *options;
        Self { price, max_cost, spent, reserved: 0.0, tokens_per_byte: 0.0, longest: None }
    }

    /// USD that a request may cost: as many tokens a byte as the dearest one so far, and twice the longest answer.
    pub(crate) fn estimate(&self, messages: &[Message], limit: u64) -> f64 {
        let per_byte = if self.longest.is_some() { self.tokens_per_byte } else { Self::FIRST_GUESS };
        let prompt = (bytes(messages) as f64 * per_byte).ceil() as u64;
        let completion = self.longest.map_or(limit, |longest| limit.min(2 * longest));
        self.price.map_or(0.0, |price| price.cost(&Usage { prompt, cached: 0, completion }))
    }

    pub(crate) fn allows(&self, reserve: f64) -> bool {
        self.max_cost.is_none_or(|most| self.spent + self.reserved + reserve <= most)
    }

    pub(crate) fn spend(&mut self, messages: &[Message], usage: &Usage) {
        self.spent += self.price.map_or(0.0, |price| price.cost(usage));
        self.tokens_per_byte = self.tokens_per_byte.max(usage.prompt as f64 / bytes(messages).max(1) as f64);
        self.longest = Some(self.longest.unwrap_or(0).max(usage.completion));
    }
}

fn bytes(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.content.len()).sum()
}
