//! Large models are asked for the same rows, and their answers judged.

use std::time::Duration;

use anyhow::Context;
use fewshot::{
    AskOptions, BreakEven, Client, Ending, Endpoint, Header, KeptPrompt, LabelReader, Observer, Price,
    Prices, PromptOptions, Prompts, Recording, Summary, TokenCounter, ask_all,
};
use indicatif::ProgressBar;
use routing::report::{Cost, Fact, Judged, Latency, ModelSection, Prediction, Seconds, usd};

use super::{Args, Competitor, Rows, break_even_line};
use crate::progress;
use crate::terminal::say;

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
    let name = format!("{} ({shots})", endpoint.model);
    let prompts = Prompts::new(rows.train, rows.asked, rows.labels, options)?;
    if prompts.kept_out() > 0 {
        say!(
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
        let client = Client::new(endpoint.clone(), Client::PATIENT, timeout)?;
        let asking = AskOptions { concurrency: args.concurrency.into(), price, max_cost: args.max_cost };
        let mut watch = Watch(progress::rows(&name, rows.asked.len()));
        let mut counter = TokenCounter::new(rows.count);
        let ending = ask_all(client, &prompts, &mut recording, &asking, &mut counter, &mut watch);
        watch.0.finish_and_clear();
        let (answered, all) = (recording.answered(), rows.asked.len());
        let kept =
            || format!("{name}: {answered} of {all} answers are kept in {}", recording.path().display());
        if let Ending::OutOfBudget { spent } = ending.with_context(kept)? {
            say!("{}; they cost {spent:.4} USD, more could pass --max-cost", kept());
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
                ..Prediction::default()
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
    let seconds: Vec<f64> = answers.iter().map(|answer| answer.seconds).collect();
    let timing = Seconds { train: None, evaluate: Some(seconds.iter().sum()) };
    let mut section = ModelSection::new(&name, rows.labels, &predictions, timing);
    section.latency = Latency::measure(seconds.clone());
    section.cost =
        summary.cost_per_1000.map(|per_1000| Cost { per_1000, basis: format!("prices of {}", prices.as_of) });
    section.facts = facts(&summary, break_even.as_ref(), prices, &recording, endpoint);
    section.facts.extend(price.and_then(|price| fine_tuning(&price, rows, prices)));
    Ok(Some(Competitor {
        judged: Judged { section, rows: predictions },
        seconds,
        header,
        key_variable: endpoint.key_variable().map(str::to_owned),
        prompt: KeptPrompt::of(&prompts, recording.features().unwrap_or_default()),
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
    ];
    if summary.tokens_counted > 0 {
        facts.push(Fact::new(
            "Tokens counted by the router's tokenizer",
            format!("{} answers", summary.tokens_counted),
        ));
    }
    if let Some(cost) = summary.cost {
        facts.push(Fact::new("Cost of these rows", format!("{}, prices of {}", usd(cost), prices.as_of)));
    }
    if let Some(line) = break_even.map(|it| break_even_line(it, prices.hardware)) {
        facts.push(Fact::new("Break-even", line));
    }
    if let Some(features) = recording.features() {
        facts.push(Fact::new("Answer format", format!("{:?}", features.structure).to_lowercase()));
    }
    facts
}

/// What fine-tuning this model at its provider costs, against training here.
fn fine_tuning(price: &Price, rows: &Rows<'_>, prices: &Prices) -> Option<Fact> {
    let there = usd(price.fine_tuning(rows.training.tokens, rows.training.epochs)?);
    let here = rows.training.seconds.map_or_else(String::new, |seconds| {
        format!("; training here took {} of a machine", usd(prices.hardware.cost(seconds)))
    });
    Some(Fact::new("Fine-tuning it", format!("{there} for the same data and epochs{here}")))
}
