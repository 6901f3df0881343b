//! `frontdesk eval --against MODEL`: a large language model on the same rows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use fewshot::{
    AskOptions, Backoff, BreakEven, Choice, Client, Ending, Endpoint, Hardware, Header, LabelReader,
    Observer, Prices, PromptOptions, Prompts, Recording, Summary, Template, TokenCounter, ask_all,
};
use indicatif::ProgressBar;
use routing::Example;
use routing::compare::Comparison;
use routing::report::{Fact, ModelSection, Prediction, Seconds};
use serde_json::{Value, json};

use crate::progress;

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
    #[arg(long, value_name = "USD")]
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
    #[arg(long, value_name = "USD")]
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
            anyhow::ensure!(
                per_hour.is_finite() && per_hour >= 0.0,
                "--hardware-price is {per_hour}, expected a number from 0 on"
            );
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
}

/// One large model's part of the evaluation.
pub(crate) struct Competitor {
    pub(crate) section: ModelSection,
    pub(crate) predictions: Vec<Prediction>,
    summary: Summary,
    recording: PathBuf,
    break_even: Option<BreakEven>,
    prices_as_of: String,
}

impl Competitor {
    /// As it stands in the JSON output.
    pub(crate) fn to_json(&self, comparison: &Comparison) -> Value {
        let metrics = &self.section.metrics;
        json!({
            "name": self.section.name, "accuracy": metrics.accuracy, "macro": metrics.macro_avg,
            "weighted": metrics.weighted, "comparison": comparison, "answers": self.summary,
            "prices_as_of": self.prices_as_of, "break_even": self.break_even, "recording": self.recording,
        })
    }
}

/// Shows answers as they arrive.
struct Watch(ProgressBar);

impl Observer for Watch {
    fn answered(&mut self, answered: usize, cost: Option<f64>) {
        self.0.set_position(answered as u64);
        if let Some(cost) = cost {
            self.0.set_message(format!("{cost:.2} USD"));
        }
    }
}

/// Asks every model with every prompt; `None` in place of one that ran out of its budget.
pub(crate) fn ask(args: &Args, rows: &Rows<'_>) -> anyhow::Result<Vec<Option<Competitor>>> {
    if args.against.is_empty() {
        return Ok(Vec::new());
    }
    let prompts = args.shots.prompts()?;
    let prices = args.prices.read()?;
    let mut competitors = Vec::new();
    for model in &args.against {
        let endpoint = Endpoint::from_env(model)?;
        for (shots, options) in &prompts {
            competitors.push(ask_one(args, rows, &endpoint, shots, options, &prices)?);
        }
    }
    Ok(competitors)
}

fn ask_one(
    args: &Args,
    rows: &Rows<'_>,
    endpoint: &Endpoint,
    shots: &str,
    options: &PromptOptions,
    prices: &Prices,
) -> anyhow::Result<Option<Competitor>> {
    let name = format!("{}, {shots}", endpoint.model);
    let prompts = Prompts::new(rows.train, rows.asked, rows.labels, options)?;
    if prompts.kept_out() > 0 {
        eprintln!(
            "{} training rows are near copies of evaluation rows and stay out of the prompt",
            prompts.kept_out()
        );
    }
    let header = Header {
        model: endpoint.model.clone(),
        endpoint: endpoint.address(),
        shots: shots.to_owned(),
        prompt: prompts.prompt_sha256(),
        rows: prompts.rows_sha256(),
        count: rows.asked.len(),
    };
    let folder = args.recordings.clone().unwrap_or_else(|| rows.run.join("fewshot"));
    let price = prices.of(&endpoint.model).copied();
    let mut recording = Recording::read(&folder, &header)?;
    if !args.offline && recording.complete().is_none() {
        recording = Recording::open(&folder, &header)?;
        let timeout = Duration::from_secs(args.timeout);
        let client = Client::new(endpoint.clone(), Backoff::default(), timeout)?;
        let asking = AskOptions { concurrency: args.concurrency.into(), price, max_cost: args.max_cost };
        let mut watch = Watch(progress::rows(&name, rows.asked.len()));
        let mut counter = TokenCounter::new(rows.count);
        let ending = ask_all(client, &prompts, &mut recording, &asking, &mut counter, &mut watch);
        watch.0.finish_and_clear();
        let (answered, all) = (recording.answered(), rows.asked.len());
        let kept =
            || format!("{name}: {answered} of {all} answers are kept in {}", recording.path().display());
        if let Ending::OutOfBudget { spent } = ending.with_context(kept)? {
            eprintln!("{}; they cost {spent:.4} USD, more could pass --max-cost", kept());
            return Ok(None);
        }
    }
    let answers = recording.require_complete()?;
    let reader = LabelReader::new(rows.labels);
    let summary = Summary::new(&answers, &reader, price.as_ref());
    let mut predictions: Vec<Prediction> = rows
        .asked
        .iter()
        .zip(&answers)
        .map(|(example, answer)| {
            let (outcome, probability) = reader.read(&answer.reply);
            Prediction {
                text: example.text.clone(),
                label: example.label.clone(),
                predicted: outcome.name(rows.labels).to_owned(),
                probability,
                alternatives: Vec::new(),
            }
        })
        .collect();
    if predictions.iter().any(|row| row.probability.is_some()) {
        // No label is as unsure as it gets.
        for row in predictions.iter_mut().filter(|row| !rows.labels.contains(&row.predicted)) {
            row.probability = Some(0.0);
        }
    }
    let break_even =
        summary.cost_per_1000.map(|cost| BreakEven::new(prices.hardware, rows.queries_per_s, cost));
    let timing = Seconds { train: None, evaluate: Some(answers.iter().map(|answer| answer.seconds).sum()) };
    let mut section = ModelSection::new(&name, rows.labels, &predictions, timing);
    section.facts = facts(&summary, break_even.as_ref(), prices, &recording, endpoint);
    Ok(Some(Competitor {
        section,
        predictions,
        summary,
        recording: recording.path().to_owned(),
        break_even,
        prices_as_of: prices.as_of.clone(),
    }))
}

fn facts(
    summary: &Summary,
    break_even: Option<&BreakEven>,
    prices: &Prices,
    recording: &Recording,
    endpoint: &Endpoint,
) -> Vec<Fact> {
    let each = |tokens: u64| tokens as f64 / summary.rows.max(1) as f64;
    let mut facts = vec![
        Fact::new("Endpoint", endpoint.address()),
        Fact::new("Answered by", summary.models.join(", ")),
        Fact::new(
            "Answers that are no label",
            format!(
                "{} refused, {} none of the labels, {} empty",
                summary.refused, summary.outside, summary.empty
            ),
        ),
        Fact::new("Labels spelled otherwise", summary.spelled_otherwise.to_string()),
        Fact::new(
            "Tokens a query",
            format!(
                "{:.0} in, of them {:.0} cached; {:.1} out",
                each(summary.tokens.prompt),
                each(summary.tokens.cached),
                each(summary.tokens.completion)
            ),
        ),
        Fact::new("Time for an answer", format!("p50 {:.2} s, p95 {:.2} s", summary.p50_s, summary.p95_s)),
    ];
    if summary.tokens_counted > 0 {
        facts.push(Fact::new(
            "Tokens counted by the router's tokenizer",
            format!("{} answers", summary.tokens_counted),
        ));
    }
    if let (Some(cost), Some(per_1000)) = (summary.cost, summary.cost_per_1000) {
        let as_of = format!("prices of {}", prices.as_of);
        facts.push(Fact::new("Cost of these rows", format!("{cost:.4} USD, {as_of}")));
        facts.push(Fact::new("Cost of 1,000 queries", format!("{per_1000:.4} USD")));
    }
    if let Some(line) = break_even.map(|it| break_even_line(it, prices.hardware)) {
        facts.push(Fact::new("Break-even", line));
    }
    if let Some(features) = recording.features() {
        facts.push(Fact::new("Answer format", format!("{:?}", features.structure).to_lowercase()));
    }
    facts
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
            "{machine} never costs less: it answers 1,000 queries for {:.4} USD at best",
            it.local_per_1000
        ),
    }
}
