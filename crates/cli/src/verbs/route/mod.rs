//! `frontdesk route`: queries in, departments out.

mod ask;
mod lines;

use std::path::PathBuf;

use kernels::Backend;
use router::{Answer, Query, Router};
use routing::calibration::{Decision, Scope};
use serde_json::json;

use self::ask::{AskArgs, Asking, Word};
use self::lines::{Batch, Lines};
use crate::Done;
use crate::device::{DeviceArgs, on_device};
use crate::terminal::{Output, on_one_line};
use crate::verbs::open_router;

/// Flags of `route`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Queries; without any, each line of standard input is one.
    text: Vec<String>,
    /// Run folder of a trained router.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Base model, when it is elsewhere than the run says.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Print a JSON object a query.
    #[arg(long)]
    json: bool,
    /// Alternatives shown after the label.
    #[arg(long, value_name = "N", default_value_t = 2)]
    top: usize,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Characters of a query that are shown beside its answer.
const QUERY: usize = 100;

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    on_device!(args.device, route, args)
}

fn route<B: Backend>(backend: B, args: &Args) -> anyhow::Result<Done> {
    let mut asking = Asking::open(&args.ask, &args.model)?;
    let mut router = open_router(backend, &args.model, args.base.as_deref(), args.device.encoding())?;
    if args.text.is_empty() {
        let mut lines = Lines::new(std::io::stdin());
        loop {
            let Batch { texts, wrong } = lines.next_batch();
            let done = texts.is_empty();
            answer(&mut router, asking.as_mut(), &texts, args)?;
            match wrong {
                Some(error) => return Err(error),
                None if done => break,
                None => {}
            }
        }
    } else {
        answer(&mut router, asking.as_mut(), &args.text, args)?;
    }
    asking.inspect(Asking::finish);
    Ok(Done::Fully)
}

fn answer<B: Backend>(
    router: &mut Router<B>,
    asking: Option<&mut Asking>,
    texts: &[String],
    args: &Args,
) -> anyhow::Result<()> {
    let queries: Vec<Query<'_>> = texts.iter().map(|text| Query::new(text)).collect();
    let own = router.route(&queries)?;
    let words = match asking {
        Some(asking) => asking.ask(router, texts, &own).into_iter().map(Some).collect(),
        None => vec![None; own.len()],
    };
    let mut out = Output;
    for ((text, own), word) in texts.iter().zip(own).zip(words) {
        let routed = Routed::new(router, own, word);
        if args.json {
            writeln!(out, "{}", to_json(router, &routed, args.top))?;
        } else {
            writeln!(out, "{}", to_line(router, text, &routed))?;
        }
    }
    Ok(())
}

/// What becomes of one query.
pub(crate) struct Routed {
    /// What the router said.
    own: Answer,
    /// What counts.
    answer: Answer,
    /// The large model for queries like this.
    model: Option<String>,
    /// What it said; `None` where it was not to be asked.
    word: Option<Word>,
}

impl Routed {
    /// By the router alone.
    pub(crate) fn alone<B: Backend>(router: &Router<B>, own: Answer) -> Self {
        Self::new(router, own, None)
    }

    /// The large model's label counts, with the probability that the router gives it.
    fn new<B: Backend>(router: &Router<B>, own: Answer, word: Option<Word>) -> Self {
        let manifest = router.manifest();
        let mut answer = own.clone();
        if let Some(label) = word.as_ref().and_then(Word::label) {
            let is_nowhere = |scope: &Scope| scope.label == router.label(label);
            answer.in_scope = !manifest.scope.as_ref().is_some_and(is_nowhere);
            answer.decision = if answer.in_scope { Decision::Route } else { Decision::Triage };
            (answer.label, answer.probability) = (label, own.probabilities[label]);
        }
        let model = manifest.goes_on_to(own.probability).map(|cascade| cascade.model.clone());
        Self { own, answer, model, word }
    }

    fn answered_by(&self) -> &str {
        let large = self.word.as_ref().and_then(Word::label).and(self.model.as_deref());
        large.unwrap_or("router")
    }
}

/// Other labels, the most probable first.
pub(crate) fn alternatives(answer: &Answer, count: usize) -> Vec<(usize, f64)> {
    let mut ranked: Vec<(usize, f64)> = answer
        .probabilities
        .iter()
        .copied()
        .enumerate()
        .filter(|(label, _)| *label != answer.label)
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(count);
    ranked
}

fn to_json<B: Backend>(router: &Router<B>, routed: &Routed, top: usize) -> serde_json::Value {
    let Routed { own, answer, model, word } = routed;
    let others: Vec<_> = alternatives(answer, top)
        .into_iter()
        .map(|(label, probability)| json!({"label": router.label(label), "probability": probability}))
        .collect();
    let mut json = json!({
        "label": router.label(answer.label),
        "probability": answer.probability,
        "decision": answer.decision,
        "in_scope": answer.in_scope,
        "alternatives": others,
        "ask": model,
    });
    if let Some(word) = word {
        json["answered_by"] = routed.answered_by().into();
        json["router"] = json!({
            "label": router.label(own.label), "probability": own.probability, "decision": own.decision,
            "in_scope": own.in_scope,
        });
        json["asked"] = word.to_json(model.as_deref());
    }
    json
}

pub(crate) fn to_line<B: Backend>(router: &Router<B>, text: &str, routed: &Routed) -> String {
    let Routed { own, answer, model, word } = routed;
    let label = router.label(answer.label);
    let decision = match answer.decision {
        Decision::Route => "",
        Decision::Triage if answer.in_scope => "  (triage)",
        Decision::Triage => "  (out of scope)",
    };
    let large = match (model, word) {
        (None, _) => String::new(),
        (Some(model), None | Some(Word::NotNeeded)) => format!("  (ask {model})"),
        (Some(model), Some(Word::Unanswered(_))) => format!("  ({model} did not answer)"),
        (Some(model), Some(Word::Said(said, text))) => match said.outcome.label() {
            Some(_) => format!("  ({model}; the router: {})", router.label(own.label)),
            None => format!("  ({model} {text})"),
        },
    };
    let text = on_one_line(text, QUERY);
    format!("{:>5.1}%  {label}{decision}{large}  «{text}»", 100.0 * answer.probability)
}
