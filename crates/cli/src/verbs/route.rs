//! `frontdesk route`: queries in, departments out.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use kernels::Backend;
use router::{Answer, Query, Router};
use routing::calibration::Decision;
use serde_json::json;

use crate::Done;
use crate::device::{DeviceArgs, on_device};
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
    device: DeviceArgs,
}

/// Lines of standard input that are answered together.
const AT_ONCE: usize = 32;

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    on_device!(args.device, route, args)
}

fn route<B: Backend>(backend: B, args: &Args) -> anyhow::Result<Done> {
    let mut router = open_router(backend, &args.model, args.base.as_deref(), args.device.encoding())?;
    if !args.text.is_empty() {
        answer(&mut router, &args.text, args)?;
        return Ok(Done::Fully);
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        let batch = lines.by_ref().take(AT_ONCE).collect::<Result<Vec<_>, _>>()?;
        if batch.is_empty() {
            return Ok(Done::Fully);
        }
        answer(&mut router, &batch, args)?;
    }
}

fn answer<B: Backend>(router: &mut Router<B>, texts: &[String], args: &Args) -> anyhow::Result<()> {
    let queries: Vec<Query<'_>> = texts.iter().map(|text| Query::new(text)).collect();
    let answers = router.route(&queries)?;
    let mut out = std::io::stdout().lock();
    for (text, answer) in texts.iter().zip(&answers) {
        if args.json {
            writeln!(out, "{}", to_json(router, answer, args.top))?;
        } else {
            writeln!(out, "{}", to_line(router, text, answer))?;
        }
    }
    Ok(())
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

fn to_json<B: Backend>(router: &Router<B>, answer: &Answer, top: usize) -> serde_json::Value {
    let others: Vec<_> = alternatives(answer, top)
        .into_iter()
        .map(|(label, probability)| json!({"label": router.label(label), "probability": probability}))
        .collect();
    json!({
        "label": router.label(answer.label),
        "probability": answer.probability,
        "decision": answer.decision,
        "in_scope": answer.in_scope,
        "alternatives": others,
        "ask": router.manifest().goes_on_to(answer.probability).map(|cascade| &cascade.model),
    })
}

pub(crate) fn to_line<B: Backend>(router: &Router<B>, text: &str, answer: &Answer) -> String {
    let label = router.label(answer.label);
    let decision = match answer.decision {
        Decision::Route => "",
        Decision::Triage if answer.in_scope => "  (triage)",
        Decision::Triage => "  (out of scope)",
    };
    let ask = router.manifest().goes_on_to(answer.probability);
    let ask = ask.map_or_else(String::new, |cascade| format!("  (ask {})", cascade.model));
    format!("{:>5.1}%  {label}{decision}{ask}  «{}»", 100.0 * answer.probability, text.trim())
}
