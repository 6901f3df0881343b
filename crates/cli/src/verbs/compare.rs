//! `frontdesk compare`: trained runs side by side.

use std::path::{Path, PathBuf};
use std::time::Instant;

use kernels::Backend;
use router::{Query, Router, RunFolder};
use routing::compare::{Answers, Comparison, Interval, Verdict, wilson};
use routing::metrics::Metrics;
use routing::{Dataset, Example, quantile};
use serde::Serialize;

use crate::Done;
use crate::device::{DeviceArgs, on_device};
use crate::progress;
use crate::terminal::{Output, say};
use crate::values;
use crate::verbs::{FieldArgs, open_router};

/// Flags of `compare`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Run folders.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Labelled queries to judge all runs on; without it each run's own validation figures are shown.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    fields: FieldArgs,
    /// Judge only the first N rows.
    #[arg(long, value_name = "N", value_parser = values::count::<usize>)]
    limit: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Queries that are timed alone.
const TIMED: usize = 50;
/// Seed of the bootstrap.
const SEED: u64 = 0;

/// One run in the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    /// Where it is.
    pub(crate) run: String,
    base: String,
    method: &'static str,
    /// Values that trained, by the weights of the model.
    trainable_share: Option<f64>,
    /// Rows that it was judged on.
    rows: usize,
    pub(crate) accuracy: f64,
    accuracy_interval: Interval,
    macro_f1: f64,
    /// Of the training, with the memory at its peak.
    minutes: Option<f64>,
    peak_memory_bytes: Option<u64>,
    /// Median of a query alone.
    pub(crate) ms_a_query: Option<f64>,
    /// Against the best run, on the same rows.
    against_best: Option<Comparison>,
}

impl Line {
    /// With the run's own figures on its validation examples.
    pub(crate) fn of(run: &RunFolder) -> Self {
        let (manifest, measured) = (&run.manifest, run.measured());
        let validation = manifest.validation;
        Self {
            run: run.path.display().to_string(),
            base: manifest.base.source.clone(),
            method: manifest.method.name(),
            trainable_share: manifest.trained_share(),
            rows: validation.rows,
            accuracy: validation.accuracy,
            accuracy_interval: validation.interval(),
            macro_f1: validation.macro_f1,
            minutes: measured.map(|measured| measured.seconds / 60.0),
            peak_memory_bytes: measured.and_then(|measured| measured.peak_memory_bytes),
            ms_a_query: None,
            against_best: None,
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    let mut lines = Vec::new();
    let mut answers: Vec<Vec<String>> = Vec::new();
    let data = args.data.as_ref().map(|file| routing::read(file, &args.fields.options())).transpose()?;
    let data = data.map(|mut data| {
        data.examples.truncate(args.limit.unwrap_or(usize::MAX));
        data
    });
    let mut validated = Vec::new();
    for path in &args.runs {
        let run = RunFolder::open(path)?;
        let mut line = Line::of(&run);
        validated.push(run.manifest.validated_on());
        if let Some(data) = &data {
            let (predicted, ms) = on_device!(args.device, judge, path, data, &args.device)?;
            let rows: Vec<(&str, &str)> = data
                .examples
                .iter()
                .zip(&predicted)
                .map(|(row, p)| (row.label.as_str(), p.as_str()))
                .collect();
            let metrics = Metrics::from_names(&[], &rows);
            let right = rows.iter().filter(|(label, predicted)| label == predicted).count();
            (line.accuracy, line.macro_f1, line.rows) = (metrics.accuracy, metrics.macro_avg.f1, rows.len());
            (line.accuracy_interval, line.ms_a_query) = (wilson(right, rows.len()), Some(ms));
            answers.push(predicted);
        }
        lines.push(line);
    }
    if let Some(data) = &data {
        set_against_best(&mut lines, &answers, data);
    }
    let comparable = data.is_some() || validated.iter().all(|rows| *rows == validated[0]);
    if !comparable {
        say!(
            "these runs were validated on different rows: their figures cannot be compared; use --data FILE"
        );
    }
    if args.json {
        writeln!(Output, "{}", serde_json::to_string_pretty(&lines)?)?;
    } else {
        write!(Output, "{}", table(&lines, best(&lines).filter(|_| comparable)))?;
    }
    Ok(Done::Fully)
}

/// The run's answer to each row, and the median milliseconds of a query alone.
fn judge<B: Backend>(
    backend: B,
    run: &Path,
    data: &Dataset,
    device: &DeviceArgs,
) -> anyhow::Result<(Vec<String>, f64)> {
    let mut router = open_router(backend, run, None, device.encoding())?;
    let bar = progress::rows(&run.display().to_string(), data.examples.len());
    let answers = router.route_all(&data.examples, &mut |done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let predicted = answers.iter().map(|answer| router.label(answer.label).to_owned()).collect();
    let ms = median_ms(&mut router, &data.examples)?;
    Ok((predicted, ms))
}

/// [`judge`]'s time alone.
pub(crate) fn ms_a_query<B: Backend>(
    backend: B,
    run: &Path,
    rows: &[Example],
    device: &DeviceArgs,
) -> anyhow::Result<f64> {
    let mut router = open_router(backend, run, None, device.encoding())?;
    median_ms(&mut router, rows)
}

fn median_ms<B: Backend>(router: &mut Router<B>, rows: &[Example]) -> anyhow::Result<f64> {
    let mut times = Vec::with_capacity(TIMED);
    // The first ones make room.
    for (index, row) in rows.iter().take(TIMED + 3).enumerate() {
        let begun = Instant::now();
        router.route(&[Query::from(row)])?;
        if index >= 3 || rows.len() <= 3 {
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(quantile(&times, 0.5).unwrap_or(f64::NAN))
}

/// Compares every run with the most accurate one.
fn set_against_best(lines: &mut [Line], answers: &[Vec<String>], data: &Dataset) {
    let truth: Vec<&str> = data.examples.iter().map(|row| row.label.as_str()).collect();
    let columns: Vec<Vec<&str>> =
        answers.iter().map(|column| column.iter().map(String::as_str).collect()).collect();
    let Some(best) = best(lines) else { return };
    let name = lines[best].run.clone();
    for (index, (line, column)) in lines.iter_mut().zip(&columns).enumerate() {
        if index != best {
            let first = Answers { name: &name, predicted: &columns[best] };
            let second = Answers { name: &line.run, predicted: column };
            line.against_best = Some(Comparison::new(&truth, first, second, SEED));
        }
    }
}

/// The most accurate line, of equals the one with the higher macro-F1, of equals the first.
pub(crate) fn best(lines: &[Line]) -> Option<usize> {
    let figures = |index: usize| (lines[index].accuracy, lines[index].macro_f1);
    (0..lines.len()).reduce(|best, next| if figures(next) > figures(best) { next } else { best })
}

/// A training's time in words.
fn time(minutes: f64) -> String {
    match minutes {
        ..1.0 => format!("{:.1} s", 60.0 * minutes),
        1.0..60.0 => format!("{minutes:.1} min"),
        _ => format!("{:.1} h", minutes / 60.0),
    }
}

/// A share of the weights: a head is far less than a tenth of a percent.
fn weights(share: f64) -> String {
    if share > 0.0 && share < 0.001 { "<0.1%".to_owned() } else { percent(share) }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

/// The lines for people, the best marked.
pub(crate) fn table(lines: &[Line], best: Option<usize>) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut rows = vec![
        [
            "run",
            "base",
            "method",
            "trained",
            "accuracy (95%)",
            "macro-F1",
            "training",
            "memory",
            "ms a query",
            "",
        ]
        .map(str::to_owned),
    ];
    for (index, line) in lines.iter().enumerate() {
        let Interval { low, high } = line.accuracy_interval;
        let verdict = match &line.against_best {
            _ if Some(index) == best => "best",
            None => "",
            Some(Comparison { verdict: Verdict::NoDifferenceShown, .. }) => "no difference shown",
            Some(_) => "less accurate",
        };
        rows.push([
            line.run.clone(),
            line.base.clone(),
            line.method.to_owned(),
            or_dash(line.trainable_share.map(weights)),
            format!("{} ({} to {})", percent(line.accuracy), percent(low), percent(high)),
            percent(line.macro_f1),
            or_dash(line.minutes.map(time)),
            or_dash(line.peak_memory_bytes.map(|bytes| format!("{:.2} GB", bytes as f64 / 1e9))),
            or_dash(line.ms_a_query.map(|ms| format!("{ms:.1}"))),
            verdict.to_owned(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &[String; 10]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
