//! What an evaluation leaves: predictions, the report's files, and its results on standard output.

use std::path::Path;

use formats::store;
use routing::report::{Prediction, Report};
use serde_json::json;

use super::Args;
use crate::verbs::against::Competitor;

use crate::terminal::Output;

/// A path's last part.
pub(super) fn short(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The names of a report's files.
const REPORT: [&str; 3] = ["report.html", "report.md", "report.json"];

/// Checks that all files can be written once there is something to write.
pub(super) fn check_writable(args: &Args) -> anyhow::Result<()> {
    let report = args.report.iter().flat_map(|folder| REPORT.map(|name| folder.join(name)));
    Ok(report.chain(args.predictions.clone()).try_for_each(store::check_writable)?)
}

pub(super) fn write_predictions(path: &Path, predictions: &[Prediction]) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for row in predictions {
        serde_json::to_writer(&mut bytes, row)?;
        bytes.push(b'\n');
    }
    Ok(store::write_atomically(path, &bytes)?)
}

pub(super) fn write_report(folder: &Path, report: &Report) -> anyhow::Result<()> {
    let pages = [
        report.to_html().into_bytes(),
        report.to_markdown().into_bytes(),
        serde_json::to_vec_pretty(report)?,
    ];
    for (name, page) in REPORT.iter().zip(pages) {
        store::write_atomically(folder.join(name), &page)?;
    }
    Ok(())
}

/// The results as JSON or in words. After the judged model the report holds the baseline, where there is one, and then
/// the large models.
pub(super) fn print(
    args: &Args,
    report: &Report,
    seconds: f64,
    has_baseline: bool,
    large: &[Competitor],
) -> anyhow::Result<()> {
    let mut out = Output;
    let section = &report.models[0];
    if args.json {
        let mut json = serde_json::to_value(&section.metrics)?;
        json["seconds"] = json!(seconds);
        json["queries_per_s"] = json!(section.metrics.n as f64 / seconds);
        json["latency"] = json!(section.latency);
        json["cost"] = json!(section.cost);
        json["reliability"] = json!(section.reliability);
        json["routed"] = json!(section.routed);
        json["scope"] = json!(section.scope.as_ref().map(|scope| scope.scores));
        if has_baseline {
            let baseline = &report.models[1];
            json["baseline"] = json!({
                "name": baseline.name, "accuracy": baseline.metrics.accuracy, "macro": baseline.metrics.macro_avg,
                "scope": baseline.scope.as_ref().map(|scope| scope.scores), "comparison": report.comparisons[0],
            });
        }
        if !args.against.against.is_empty() {
            let comparisons = &report.comparisons[usize::from(has_baseline)..];
            json["against"] = large.iter().zip(comparisons).map(|(it, with)| it.to_json(with)).collect();
            json["cascades"] = json!(report.cascades);
        }
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    writeln!(out, "{}", section.metrics.render_table())?;
    let mistakes = section.metrics.n as f64 * (1.0 - section.metrics.accuracy);
    writeln!(out, "{} rows in {seconds:.1} s, {mistakes:.0} wrong\n", section.metrics.n)?;
    for sentence in &report.summary {
        writeln!(out, "{sentence}")?;
    }
    Ok(())
}
