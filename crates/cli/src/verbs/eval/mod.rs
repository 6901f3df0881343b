//! `frontdesk eval`: metrics, predictions, and the report.

mod made;
mod output;
mod own;

use std::path::PathBuf;

use anyhow::Context;
use kernels::Backend;
use router::{CascadeRecord, Method, Router};
use routing::calibration::Scope;
use routing::cascade::{Cascade, CascadeGoal, Side};
use routing::report::{Findings, Judged, Report, Training};
use routing::{Dataset, Example, suspects};

use crate::Done;
use crate::device::{DeviceArgs, on_device};
use crate::terminal::say;
use crate::values;
use crate::verbs::against::{self, Competitor};
use crate::verbs::plan::training_tokens;
use crate::verbs::{FieldArgs, open_router};

/// Flags of `eval`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Run folder of a trained router.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Labelled queries to judge it on.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) fields: FieldArgs,
    /// The training data, for the linear baseline, when it is elsewhere than the run says.
    #[arg(long, value_name = "FILE")]
    pub(crate) train_data: Option<PathBuf>,
    /// Base model, when it is elsewhere than the run says.
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    /// Folder for report.html, report.md and report.json.
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// File for a JSON line a row: text, label, predicted, probability.
    #[arg(long, value_name = "FILE")]
    pub(crate) predictions: Option<PathBuf>,
    /// Judge only the first N rows.
    #[arg(long, value_name = "N", value_parser = values::count::<usize>)]
    pub(crate) limit: Option<usize>,
    /// Exit with code 1 when the accuracy is below this share.
    #[arg(long, value_name = "X", value_parser = values::share::<f64>)]
    pub(crate) min_accuracy: Option<f64>,
    /// Label of rows that are out of scope; by default what `calibrate` was told.
    #[arg(long, value_name = "LABEL")]
    pub(crate) oos_label: Option<String>,
    /// Choose when the first large model of --against is asked, and keep it in the run: `best`, `accuracy=X` (the
    /// fewest queries that reach it), `cost=USD` (for 1,000 queries) or `share=X`.
    #[arg(long, value_name = "GOAL", value_parser = cascade_goal, requires = "against")]
    pub(crate) cascade: Option<CascadeGoal>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) against: against::Args,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

fn cascade_goal(text: &str) -> Result<CascadeGoal, String> {
    if text == "best" {
        return Ok(CascadeGoal::Accuracy);
    }
    let parsed = text.split_once('=').and_then(|(what, value)| {
        let value: f64 = value.parse().ok().filter(|value| *value >= 0.0)?;
        match what {
            "accuracy" if value <= 1.0 => Some(CascadeGoal::AtLeast(value)),
            "cost" => Some(CascadeGoal::AtMostCost(value)),
            "share" if value <= 1.0 => Some(CascadeGoal::AtMostShare(value)),
            _ => None,
        }
    });
    parsed.ok_or_else(|| "expected `best`, `accuracy=0.95`, `cost=1.50` or `share=0.2`".to_owned())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    on_device!(args.device, judge, args)
}

fn judge<B: Backend>(backend: B, args: &Args) -> anyhow::Result<Done> {
    output::check_writable(args)?;
    let mut data = routing::read(&args.data, &args.fields.options())?;
    data.examples.truncate(args.limit.unwrap_or(usize::MAX));
    let prices = args.against.prices.read()?;
    let mut router = open_router(backend, &args.model, args.base.as_deref(), args.device.encoding())?;
    let (mut own, seconds) = own::judge(&mut router, &data, args, prices.hardware)?;
    if let Some(path) = &args.predictions {
        output::write_predictions(path, &own.rows)?;
    }
    let manifest = router.manifest();
    let known: Vec<String> = manifest.labels.iter().map(|label| label.text.clone()).collect();
    let training = own::training_rows(args, manifest);
    let mut baseline = None;
    match &training {
        Ok(rows) => match own::baseline(&rows.train, &known, &data, prices.hardware) {
            Ok(judged) => baseline = Some(judged),
            Err(error) => say!("no linear baseline: {error}"),
        },
        Err(error) => say!("no linear baseline: {error:#}; name its training data with --train-data"),
    }
    let own::TrainingRows { file, train } = training.unwrap_or_default();
    let asked = ask(args, &router, &train, &known, &data, own.rows.len() as f64 / seconds)?;
    let stopped = asked.iter().any(Option::is_none);
    let mut large: Vec<Competitor> = asked.into_iter().flatten().collect();

    let (label, rule) = scope(args, &router);
    if let Some(label) = label {
        let judged = baseline.iter_mut().chain(large.iter_mut().map(|it| &mut it.judged));
        judged.for_each(|it| add_scope(it, &label, None));
        add_scope(&mut own, &label, rule.as_ref());
    }
    let (goal, mut cascades) = (args.cascade.unwrap_or(CascadeGoal::Accuracy), Vec::new());
    for it in &large {
        let found = Cascade::new(side(&own, &[latency(&own)]), side(&it.judged, &it.seconds), goal);
        cascades.extend(found.map(|cascade| (it, cascade)));
    }
    // where a model ran out of its budget, the first one left is not the one that was meant
    let missed = match (args.cascade.filter(|_| !stopped), large.first()) {
        (Some(_), Some(first)) => !keep_cascade(args, &data, first, &cascades)?,
        _ => false,
    };
    let mut findings = Findings { cascades: cascades.into_iter().map(|it| it.1).collect(), suspects: None };
    if args.report.is_some() && !train.is_empty() {
        findings.suspects = suspects::find(&file, 0).ok();
        let index = Training::new(&train);
        let judged = baseline.iter_mut().chain(large.iter_mut().map(|it| &mut it.judged)).chain([&mut own]);
        judged.for_each(|it| index.explain(&mut it.section.mistakes));
    }
    let made = made::provenance(args, manifest, &data, &large)?;
    let title = format!("{} on {}", output::short(&args.model), output::short(&args.data));
    let others: Vec<Judged> =
        baseline.iter().cloned().chain(large.iter().map(|it| it.judged.clone())).collect();
    let judged: Vec<Judged> = std::iter::once(own).chain(others).collect();
    let report = Report::new(title, &judged, findings, made);
    if let Some(folder) = &args.report {
        output::write_report(folder, &report)?;
        say!("report: {}", folder.join("report.html").display());
    }
    output::print(args, &report, seconds, baseline.is_some(), &large)?;
    let accuracy = report.models[0].metrics.accuracy;
    let below = args.min_accuracy.filter(|bar| accuracy < *bar);
    if let Some(bar) = below {
        say!("accuracy {accuracy:.4} is below the bar of {bar}");
    }
    Ok(if below.is_some() || stopped || missed { Done::BelowTheBar } else { Done::Fully })
}

/// The label of rows that are out of scope, and the run's rule about them.
fn scope<B: Backend>(args: &Args, router: &Router<B>) -> (Option<String>, Option<Scope>) {
    let rule = router.manifest().scope.clone();
    (args.oos_label.clone().or_else(|| rule.as_ref().map(|rule| rule.label.clone())), rule)
}

fn add_scope(judged: &mut Judged, label: &str, rule: Option<&Scope>) {
    judged.section = judged.section.clone().with_scope(label, rule, &judged.rows);
}

fn side<'a>(judged: &'a Judged, seconds: &'a [f64]) -> Side<'a> {
    let cost_per_1000 = judged.section.cost.as_ref().map(|cost| cost.per_1000);
    Side { name: &judged.section.name, rows: &judged.rows, cost_per_1000, seconds }
}

/// Seconds that one query takes at the median.
fn latency(judged: &Judged) -> f64 {
    judged.section.latency.map_or(0.0, |it| it.p50_s)
}

/// Keeps the chosen point of the first large model's cascade in the run; false where no point meets the goal.
fn keep_cascade(
    args: &Args,
    data: &Dataset,
    first: &Competitor,
    cascades: &[(&Competitor, Cascade)],
) -> anyhow::Result<bool> {
    let name = &first.judged.section.name;
    let found = cascades.iter().find(|(it, _)| it.judged.section.name == *name);
    let Some((_, cascade)) = found else {
        say!("no share of the queries that go on to {name} meets --cascade; the run is as it was");
        return Ok(false);
    };
    let record = CascadeRecord {
        model: first.header.model.clone(),
        endpoint: first.header.endpoint.clone(),
        key_variable: first.key_variable.clone(),
        shots: first.header.shots.clone(),
        prompt: first.header.prompt.clone(),
        prompt_file: None,
        data: data.sha256.clone(),
        goal: cascade.goal,
        point: *cascade.point(),
    };
    let prompt = serde_json::to_vec_pretty(&first.prompt)?;
    record
        .save(&args.model, &prompt)
        .with_context(|| format!("the cascade with {name} could not be kept"))?;
    let point = cascade.point();
    say!(
        "kept in the run: {name} is asked below {:.3}, {:.1}% of these queries, by `route --ask`",
        point.threshold,
        100.0 * point.share
    );
    Ok(true)
}

/// The large models' answers, where any are asked for; `None` in place of one that ran out of its budget.
fn ask<B: Backend>(
    args: &Args,
    router: &Router<B>,
    train: &[Example],
    known: &[String],
    data: &Dataset,
    queries_per_s: f64,
) -> anyhow::Result<Vec<Option<Competitor>>> {
    if args.against.against.is_empty() {
        return Ok(Vec::new());
    }
    let count = |text: &str| router.tokens(text).unwrap_or(text.len());
    let (method, recipe) = (router.manifest().method, &router.manifest().recipe);
    // Where a head tells the labels apart, they have no tokens.
    let by_head = router.manifest().labels.iter().all(|label| label.ids.is_empty());
    let whole_encoder = method == Method::Full && by_head;
    let training = against::Training {
        tokens: training_tokens(train, &recipe.system, &count),
        epochs: if method.reads_once() { 1.0 } else { recipe.sized_for(train.len(), whole_encoder).1.into() },
        seconds: own::trained_seconds(&args.model),
    };
    let rows = against::Rows {
        asked: &data.examples,
        train,
        labels: known,
        run: &args.model,
        queries_per_s,
        count: &count,
        training,
    };
    against::ask(&args.against, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cascades_goal_is_one_word_or_a_word_and_a_number() {
        assert_eq!(cascade_goal("best"), Ok(CascadeGoal::Accuracy));
        assert_eq!(cascade_goal("accuracy=0.95"), Ok(CascadeGoal::AtLeast(0.95)));
        assert_eq!(cascade_goal("cost=1.5"), Ok(CascadeGoal::AtMostCost(1.5)));
        assert_eq!(cascade_goal("share=0.2"), Ok(CascadeGoal::AtMostShare(0.2)));
        for wrong in ["", "worst", "share", "share=x", "share=2", "accuracy=95", "cost=-1", "cost=NaN"] {
            assert!(cascade_goal(wrong).unwrap_err().contains("share=0.2"), "{wrong}");
        }
    }
}
