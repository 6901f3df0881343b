//! Asks for every row: many at once, each one once, within a budget.

use std::sync::Arc;

use serde_json::Value;
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
    /// USD that all answers of the recording may cost, those of earlier runs included.
    pub max_cost: Option<f64>,
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
    if options.max_cost.is_some() && options.price.is_none() {
        return Err(Error::NoPrice { model: client.model().to_owned() });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Client { source: source.into() })?;
    let budget = Budget::new(options, recording);
    let mut job = Job { client: Arc::new(client), prompts, recording, budget, counter, observer };
    let ending = runtime.block_on(job.run(options.concurrency.max(1)));
    job.recording.sync()?;
    ending
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
                    self.record(question, asked)?;
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
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let reserve = self.budget.estimate(bytes, chat::answer_limit(labels, features));
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
            Ok(asked) => self.record(question, asked),
            Err(Fault::Final(error) | Fault::Unsupported(_, error) | Fault::Passing(error, _)) => Err(error),
        }
    }

    fn record(&mut self, question: Question, asked: Asked) -> Result<()> {
        let Question { row, messages, .. } = question;
        let Asked { reply, seconds, tries } = asked;
        let counted = reply.usage.is_none();
        let usage = reply.usage.unwrap_or_else(|| self.counter.usage(&messages, &reply));
        let bytes = messages.iter().map(|message| message.content.len()).sum();
        self.budget.spend(bytes, &usage);
        self.recording.push(Answer { row, reply, usage, counted, seconds, tries })?;
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
struct Budget {
    price: Option<Price>,
    max_cost: Option<f64>,
    spent: f64,
    reserved: f64,
    /// The most tokens a byte of a prompt had so far.
    tokens_per_byte: f64,
    /// The longest answer so far, in tokens.
    longest: Option<u64>,
}

impl Budget {
    /// Before the first answer: English has about one token in four bytes, other scripts one in two.
    const FIRST_GUESS: f64 = 0.5;

    fn new(options: &AskOptions, recording: &Recording) -> Self {
        let AskOptions { price, max_cost, .. } = *options;
        let spent =
            price.map_or(0.0, |price| recording.answers().map(|answer| price.cost(&answer.usage)).sum());
        Self { price, max_cost, spent, reserved: 0.0, tokens_per_byte: 0.0, longest: None }
    }

    /// USD that a request may cost: as many tokens a byte as the dearest one so far, and twice the longest answer.
    fn estimate(&self, bytes: usize, limit: u64) -> f64 {
        let per_byte = if self.longest.is_some() { self.tokens_per_byte } else { Self::FIRST_GUESS };
        let prompt = (bytes as f64 * per_byte).ceil() as u64;
        let completion = self.longest.map_or(limit, |longest| limit.min(2 * longest));
        self.price.map_or(0.0, |price| price.cost(&Usage { prompt, cached: 0, completion }))
    }

    fn allows(&self, reserve: f64) -> bool {
        self.max_cost.is_none_or(|most| self.spent + self.reserved + reserve <= most)
    }

    fn spend(&mut self, bytes: usize, usage: &Usage) {
        self.spent += self.price.map_or(0.0, |price| price.cost(usage));
        self.tokens_per_byte = self.tokens_per_byte.max(usage.prompt as f64 / bytes.max(1) as f64);
        self.longest = Some(self.longest.unwrap_or(0).max(usage.completion));
    }
}
