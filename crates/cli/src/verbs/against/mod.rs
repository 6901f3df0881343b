//! `frontdesk eval --against MODEL`: a large language model on the same rows.

mod ask;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use fewshot::{BreakEven, Choice, Hardware, Header, KeptPrompt, Prices, PromptOptions, Summary, Template};
use routing::Example;
use routing::compare::Comparison;
use routing::report::{Judged, usd};
use serde_json::{Value, json};

use crate::values;

pub(crate) use ask::ask;

/// Flags about large language models.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Args {
    /// Ask this model for the same rows: MODEL of OpenAI (or `OPENAI_BASE_URL`), MODEL@URL of any compatible server,
    /// or MODEL@URL#VARIABLE where another variable than `OPENAI_API_KEY` holds the key; may be given again.
    #[arg(long, value_name = "MODEL[@URL]", value_delimiter = ',')]
    pub(crate) against: Vec<String>,
    #[command(flatten)]
    pub(crate) shots: ShotArgs,
    /// Requests to a model at the same time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) concurrency: u16,
    /// Seconds that one request may take.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: u64,
    /// Stop before a model has cost more than this many USD, earlier runs included; exit code 1.
    #[arg(long, value_name = "USD", value_parser = values::from_zero::<f64>)]
    pub(crate) max_cost: Option<f64>,
    /// Use recorded answers only.
    #[arg(long)]
    pub(crate) offline: bool,
    /// Folder of the recorded answers; `fewshot` in the run folder by default.
    #[arg(long, value_name = "DIR")]
    pub(crate) recordings: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prices: PriceArgs,
}

/// Flags about the examples in a prompt.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ShotArgs {
    /// Training examples of each label in a model's prompt; 0 is zero-shot. Several numbers are compared.
    #[arg(long, value_name = "K", value_delimiter = ',', default_value = "3")]
    pub(crate) shots: Vec<usize>,
    /// How the examples are chosen.
    #[arg(long, value_enum, default_value = "random")]
    pub(crate) shots_by: ShotsBy,
    /// Use the examples of this file, all and in its order; they must be training rows.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shots", "shots_by"])]
    pub(crate) shots_file: Option<PathBuf>,
    /// Seed of the random choice.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) shots_seed: u64,
    /// Prompt template in place of the built-in one (minijinja).
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_template: Option<PathBuf>,
}

/// How examples are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShotsBy {
    /// At random, the same for every query.
    #[default]
    Random,
    /// The most similar to each query.
    Similar,
}

/// Flags about money.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct PriceArgs {
    /// Prices of your own, on top of the built-in ones (`frontdesk plan --show-prices` prints those).
    #[arg(long, value_name = "FILE")]
    pub(crate) prices: Option<PathBuf>,
    /// USD for an hour of the machine that serves the router.
    #[arg(long, value_name = "USD", value_parser = values::from_zero::<f64>)]
    pub(crate) hardware_price: Option<f64>,
}

impl ShotArgs {
    /// One prompt for each number of examples.
    pub(crate) fn prompts(&self) -> anyhow::Result<Vec<(String, PromptOptions)>> {
        let template = || match &self.prompt_template {
            Some(path) => Template::read(path),
            None => Template::built_in(),
        };
        if let Some(path) = &self.shots_file {
            let list = routing::read(path, &routing::ReadOptions::default())?.examples;
            let name = format!("{} listed examples", list.len());
            return Ok(vec![(name, PromptOptions { choice: Choice::Fixed(list), template: template()? })]);
        }
        let prompt = |&per_label: &usize| {
            let (name, choice) = match self.shots_by {
                _ if per_label == 0 => ("zero-shot".to_owned(), Choice::Random { per_label, seed: 0 }),
                ShotsBy::Random => {
                    let seed = self.shots_seed;
                    (format!("{per_label} a label at random"), Choice::Random { per_label, seed })
                }
                ShotsBy::Similar => {
                    (format!("{per_label} a label by similarity"), Choice::Similar { per_label })
                }
            };
            Ok((name, PromptOptions { choice, template: template()? }))
        };
        self.shots.iter().map(prompt).collect()
    }
}

impl PriceArgs {
    pub(crate) fn read(&self) -> anyhow::Result<Prices> {
        let mut prices = match &self.prices {
            Some(path) => Prices::read(path)?,
            None => Prices::built_in()?,
        };
        if let Some(per_hour) = self.hardware_price {
            prices.hardware = Hardware { per_hour };
        }
        Ok(prices)
    }
}

/// What a large model is compared on.
pub(crate) struct Rows<'a> {
    /// The evaluation rows.
    pub(crate) asked: &'a [Example],
    /// The rows that the router was trained on.
    pub(crate) train: &'a [Example],
    /// The labels.
    pub(crate) labels: &'a [String],
    /// The run folder.
    pub(crate) run: &'a Path,
    /// Queries a second that the router answered.
    pub(crate) queries_per_s: f64,
    /// Counts tokens where an endpoint does not.
    pub(crate) count: &'a dyn Fn(&str) -> usize,
    /// Training here, to be set against fine-tuning at the provider.
    pub(crate) training: Training,
}

/// What the router's training took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Training {
    /// Tokens of the training rows.
    pub(crate) tokens: u64,
    /// How often each was seen.
    pub(crate) epochs: f64,
    /// Seconds; `None` where the run has no record of them.
    pub(crate) seconds: Option<f64>,
}

/// One large model's part of the evaluation.
pub(crate) struct Competitor {
    pub(crate) judged: Judged,
    /// Seconds that each answer took.
    pub(crate) seconds: Vec<f64>,
    /// What was asked of whom.
    pub(crate) header: Header,
    /// The variable of its key, where it is not the usual one.
    pub(crate) key_variable: Option<String>,
    /// What makes its prompts again.
    pub(crate) prompt: KeptPrompt,
    summary: Summary,
    recording: PathBuf,
    break_even: Option<BreakEven>,
    prices_as_of: String,
}

impl Competitor {
    /// As it stands in the JSON output.
    pub(crate) fn to_json(&self, comparison: &Comparison) -> Value {
        let section = &self.judged.section;
        json!({
            "name": section.name, "accuracy": section.metrics.accuracy, "macro": section.metrics.macro_avg,
            "weighted": section.metrics.weighted, "scope": section.scope.as_ref().map(|scope| scope.scores),
            "comparison": comparison, "answers": self.summary, "prices_as_of": self.prices_as_of,
            "break_even": self.break_even, "recording": self.recording,
        })
    }
}

/// When a machine of one's own costs less, in words.
pub(crate) fn break_even_line(it: &BreakEven, hardware: Hardware) -> String {
    let machine = format!("a machine at {} USD an hour", hardware.per_hour);
    match (it.queries_per_hour, it.utilisation) {
        (Some(queries), Some(share)) => format!(
            "{machine} costs less from {queries:.1} queries an hour on ({:.2}% of what it can answer)",
            100.0 * share
        ),
        _ => format!(
            "{machine} never costs less: it answers 1,000 queries for {} at best",
            usd(it.local_per_1000)
        ),
    }
}
