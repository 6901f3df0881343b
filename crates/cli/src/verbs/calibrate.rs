//! `frontdesk calibrate`: temperature, thresholds and the out-of-scope rule of a finished run, chosen anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use formats::store;
use kernels::Backend;
use router::{CalibrateOptions, Calibrated};
use routing::calibration::{Costs, Goal};
use serde_json::json;

use crate::Done;
use crate::device::{DeviceArgs, on_device};
use crate::progress;
use crate::terminal::{Output, on_one_line, say};
use crate::values;
use crate::verbs::{FieldArgs, open_router};

/// Flags of `calibrate`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Run folder of a trained router; its frontdesk.json is replaced.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Labelled queries that it was not trained on.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    fields: FieldArgs,
    /// Base model, when it is elsewhere than the run says.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Share of the automatically routed queries that must be right; by default what the run was trained for.
    #[arg(long, value_name = "X", conflicts_with_all = ["cost_wrong", "cost_triage", "costs"], value_parser = values::share::<f64>)]
    target_precision: Option<f64>,
    /// Instead: what a query sent to the wrong department costs, in any unit.
    #[arg(long, value_name = "X", requires = "cost_triage", value_parser = values::from_zero::<f64>)]
    cost_wrong: Option<f64>,
    /// And what it costs when a person looks first.
    #[arg(long, value_name = "X", requires = "cost_wrong", value_parser = values::from_zero::<f64>)]
    cost_triage: Option<f64>,
    /// TOML file of labels with costs of their own: `[claims]`, `wrong = 40`, `triage = 2`.
    #[arg(long, value_name = "FILE", requires = "cost_wrong")]
    costs: Option<PathBuf>,
    /// Label that means "out of scope" in the data, and perhaps in the model.
    #[arg(long, value_name = "LABEL")]
    oos_label: Option<String>,
    /// Recognise as much out of scope as this in-scope accuracy allows; exit code 1 when it cannot be kept.
    #[arg(long, value_name = "X", requires = "oos_label", value_parser = values::share::<f64>)]
    min_in_scope: Option<f64>,
    /// Choose and print, but leave the run as it is.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    on_device!(args.device, calibrate, args)
}

fn calibrate<B: Backend>(backend: B, args: &Args) -> anyhow::Result<Done> {
    let fields = args.fields.options();
    let data = routing::read(&args.data, &fields)?;
    let mut router = open_router(backend, &args.model, args.base.as_deref(), args.device.encoding())?;
    let manifest = router.manifest();
    if !args.dry_run {
        store::check_writable(args.model.join("frontdesk.json"))?;
    }
    anyhow::ensure!(
        data.sha256 != manifest.data.sha256,
        "{} is the file the run was trained on, which it knows by heart; name rows it has not seen",
        data.path.display()
    );
    let known: Vec<String> = manifest.labels.iter().map(|label| label.text.clone()).collect();
    anyhow::ensure!(
        data.examples.iter().any(|example| known.contains(&example.label)),
        "no row of {} has a label that the model knows; it knows {}",
        data.path.display(),
        some(&known)
    );
    let goal = goal(args, manifest.recipe.target_precision, &known)?;
    if let Some(label) = &args.oos_label {
        let occurs = known.contains(label) || data.examples.iter().any(|example| example.label == *label);
        anyhow::ensure!(
            occurs || args.min_in_scope.is_some(),
            "no row of {} and no label of the model is `{label}`; without any, --min-in-scope is needed",
            data.path.display()
        );
    }
    let options =
        CalibrateOptions { goal, oos_label: args.oos_label.clone(), min_in_scope: args.min_in_scope };
    let bar = progress::rows("calibrate", data.examples.len());
    let found = router.calibrate(&data, &fields, &options, &mut |done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if !args.dry_run {
        found.save(&args.model)?;
    }
    print(args, &found)?;
    if found.scope.is_none()
        && let Some(least) = args.min_in_scope
    {
        say!("no threshold keeps {:.1}% of the in-scope rows right; no scope rule is set", 100.0 * least);
        return Ok(Done::BelowTheBar);
    }
    Ok(Done::Fully)
}

/// The first labels, for an example of how they are written.
fn some(labels: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = labels.iter().take(SHOWN).map(|label| format!("`{}`", on_one_line(label, 40)));
    let more = if labels.len() > SHOWN { " and others" } else { "" };
    shown.collect::<Vec<_>>().join(", ") + more
}

fn goal(args: &Args, trained_for: f64, known: &[String]) -> anyhow::Result<Goal> {
    let (Some(wrong), Some(triage)) = (args.cost_wrong, args.cost_triage) else {
        return Ok(Goal::Precision { target: args.target_precision.unwrap_or(trained_for) });
    };
    let cost_of = args.costs.as_deref().map(|path| read_costs(path, known)).transpose()?.unwrap_or_default();
    Ok(Goal::Cost { cost: Costs { wrong, triage }, cost_of })
}

fn read_costs(path: &Path, known: &[String]) -> anyhow::Result<BTreeMap<String, Costs>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("{name}: cannot be read"))?;
    let costs: BTreeMap<String, Costs> =
        toml::from_str(&text).with_context(|| format!("{name}: is no table of costs by label"))?;
    for (label, cost) in &costs {
        anyhow::ensure!(known.contains(label), "{name}: `{label}` is no label of the model");
        anyhow::ensure!(cost.are_valid(), "{name}: the costs of `{label}` must be numbers from 0 on");
    }
    Ok(costs)
}

fn print(args: &Args, found: &Calibrated) -> anyhow::Result<()> {
    let mut out = Output;
    let Calibrated { calibration, thresholds, scope, data, accuracy } = found;
    if args.json {
        let json = json!({
            "rows": data.rows, "accuracy": accuracy, "calibration": calibration, "thresholds": thresholds,
            "scope": scope, "saved": !args.dry_run,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    writeln!(out, "{} rows, {} right", data.rows, percent(*accuracy))?;
    writeln!(
        out,
        "temperature {:.3}; calibration error {} before, {} after",
        calibration.temperature,
        percent(calibration.ece_before),
        percent(calibration.ece_after)
    )?;
    if let Some(scope) = scope {
        let scores = scope.validation;
        writeln!(
            out,
            "out of scope below {:.3}: {} of {} in-scope rows right, {} of {} out-of-scope rows recognised",
            scope.threshold,
            percent(scores.in_scope_accuracy),
            scores.in_scope_rows,
            percent(scores.recall),
            scores.out_of_scope_rows
        )?;
    }
    writeln!(
        out,
        "thresholds for {}: {} is routed without a person, {} of it rightly",
        thresholds.goal.describe(),
        percent(thresholds.coverage),
        percent(thresholds.precision)
    )?;
    if let Some(cost) = thresholds.cost_per_query {
        writeln!(out, "{cost:.3} a query")?;
    }
    Ok(())
}
