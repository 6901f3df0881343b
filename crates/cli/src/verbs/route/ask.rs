//! `route --ask`: the large model of the run's cascade is asked about what the router is unsure of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use fewshot::{AskOptions, Asker, Backoff, Client, Endpoint, KeptPrompt, Said, TokenCounter, Unanswered};
use kernels::Backend;
use router::{Answer, Router, RunFolder};
use routing::report::usd;
use serde_json::{Value, json};

use crate::terminal::say;
use crate::values;
use crate::verbs::against::PriceArgs;

/// Flags about the large model behind the router.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AskArgs {
    /// Ask the large model that `eval --cascade` kept in the run about queries below its threshold, with the prompt that
    /// was judged; where it gives no label, the router's own decision stands.
    #[arg(long)]
    ask: bool,
    /// Where the model is, when it has moved; `#VARIABLE` behind it names the variable of its key.
    #[arg(long, value_name = "URL", requires = "ask")]
    ask_at: Option<String>,
    /// Requests to it at the same time.
    #[arg(long, value_name = "N", default_value_t = 8, requires = "ask", value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Seconds that one request to it may take.
    #[arg(long, value_name = "S", default_value_t = 10, requires = "ask", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// USD that this command may spend on it.
    #[arg(long, value_name = "USD", requires = "ask", value_parser = values::from_zero::<f64>)]
    max_cost: Option<f64>,
    /// Folder of its recorded answers; `fewshot` in the run folder by default.
    #[arg(long, value_name = "DIR", requires = "ask")]
    recordings: Option<PathBuf>,
    /// Prices of your own, on top of the built-in ones.
    #[arg(long, value_name = "FILE", requires = "ask")]
    prices: Option<PathBuf>,
}

/// Somebody waits for the answer: one more try, soon.
const BACKOFF: Backoff =
    Backoff { tries: 2, first: Duration::from_millis(250), longest: Duration::from_secs(5) };

/// What came of asking about one query.
#[derive(Debug, Clone)]
pub(super) enum Word {
    /// The router is sure enough.
    NotNeeded,
    /// The model said something: a label, or in brackets what is none.
    Said(Said, String),
    /// It said nothing.
    Unanswered(Unanswered),
}

/// Asks, and counts what came of it.
pub(super) struct Asking {
    model: String,
    labels: Vec<String>,
    asker: Asker,
    queries: usize,
    asked: usize,
    recorded: usize,
    unanswered: usize,
    /// The last failure that the user was told of.
    told: Option<Unanswered>,
}

impl Asking {
    /// Ready to ask, where the flags say so.
    pub(super) fn open(args: &AskArgs, run: &Path) -> anyhow::Result<Option<Self>> {
        if !args.ask {
            return Ok(None);
        }
        let run = RunFolder::open(run)?;
        let (cascade, prompt) = run.cascade()?;
        let prompt: KeptPrompt = serde_json::from_slice(&prompt)
            .with_context(|| format!("{}: the prompt of its cascade cannot be read", run.path.display()))?;
        let variable = cascade.key_variable.as_ref().map_or_else(String::new, |name| format!("#{name}"));
        let place = args.ask_at.clone().unwrap_or_else(|| format!("{}{variable}", cascade.endpoint));
        let endpoint = Endpoint::from_env(&format!("{}@{place}", cascade.model))?;
        let prices = PriceArgs { prices: args.prices.clone(), hardware_price: None }.read()?;
        let options = AskOptions {
            concurrency: args.concurrency.into(),
            price: prices.of(&cascade.model).copied(),
            max_cost: args.max_cost,
        };
        let client = Client::new(endpoint, BACKOFF, Duration::from_secs(args.timeout))?;
        let labels: Vec<String> = run.manifest.labels.iter().map(|label| label.text.clone()).collect();
        let folder = args.recordings.clone().unwrap_or_else(|| run.path.join("fewshot"));
        let asker = Asker::new(client, prompt.open(labels.clone())?, &folder, &options)?;
        let model = cascade.model.clone();
        Ok(Some(Self { model, labels, asker, queries: 0, asked: 0, recorded: 0, unanswered: 0, told: None }))
    }

    /// Asks about the queries that the router is unsure of; one word for each query.
    pub(super) fn ask<B: Backend>(
        &mut self,
        router: &Router<B>,
        texts: &[String],
        own: &[Answer],
    ) -> Vec<Word> {
        let goes_on = |answer: &Answer| router.manifest().goes_on_to(answer.probability).is_some();
        let unsure: Vec<usize> = (0..own.len()).filter(|&row| goes_on(&own[row])).collect();
        let queries: Vec<&str> = unsure.iter().map(|&row| texts[row].as_str()).collect();
        let mut counter = TokenCounter::new(|text| router.tokens(text).unwrap_or(text.len()));
        let mut words = vec![Word::NotNeeded; own.len()];
        for (row, said) in unsure.into_iter().zip(self.asker.ask(&queries, &mut counter)) {
            words[row] = match said {
                Ok(said) => Word::Said(said, said.outcome.name(&self.labels).to_owned()),
                Err(reason) => Word::Unanswered(reason),
            };
        }
        for word in &words {
            self.count(word);
        }
        words
    }

    fn count(&mut self, word: &Word) {
        self.queries += 1;
        match word {
            Word::NotNeeded => {}
            Word::Said(said, _) => {
                self.asked += 1;
                self.recorded += usize::from(said.recorded);
            }
            Word::Unanswered(reason) => {
                self.asked += 1;
                self.unanswered += 1;
                // The same again, and what follows from it, would bury everything else.
                if !matches!(reason, Unanswered::Resting(_)) && self.told.as_ref() != Some(reason) {
                    say!("{}: {reason}; the router's own decision stands", self.model);
                    self.told = Some(reason.clone());
                }
            }
        }
    }

    /// Says what came of it.
    pub(super) fn finish(&self) {
        let Self { model, queries, asked, recorded, unanswered, .. } = self;
        let cost = self.asker.spent().map_or_else(String::new, |cost| format!(", for {}", usd(cost)));
        say!(
            "{model} was needed for {asked} of {queries} queries{cost}: {} answers now, {recorded} recorded before, \
             {unanswered} without an answer",
            asked - recorded - unanswered
        );
    }
}

impl Word {
    /// The label that the model chose.
    pub(super) fn label(&self) -> Option<usize> {
        if let Self::Said(said, _) = self { said.outcome.label() } else { None }
    }

    /// As it stands in the JSON output.
    pub(super) fn to_json(&self, model: Option<&str>) -> Value {
        match self {
            Self::NotNeeded => Value::Null,
            Self::Unanswered(reason) => {
                json!({ "model": model, "said": null, "failure": reason.to_string(), "cost": null })
            }
            Self::Said(said, text) => json!({
                "model": model, "said": text, "failure": null, "cost": said.cost,
                "tokens": said.usage, "tokens_counted": said.counted, "seconds": said.seconds,
                "recorded": said.recorded,
            }),
        }
    }
}
