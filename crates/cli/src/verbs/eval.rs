//! `frontdesk eval`: metrics, predictions, and the report.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use formats::store;
use kernels::Backend;
use router::{Manifest, Query, Router, TrainData};
use routing::compare::{Answers, Comparison};
use routing::linear::{LinearConfig, LinearModel};
use routing::report::{Alternative, Fact, Input, ModelSection, Prediction, Provenance, Report, Seconds};
use routing::{Dataset, Example, ReadOptions};
use serde_json::{Value, json};

use crate::Done;
use crate::device::{DeviceArgs, on_device};
use crate::progress;
use crate::verbs::against::{self, Competitor};
use crate::verbs::route::alternatives;
use crate::verbs::{FieldArgs, open_router, peak_memory};

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
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Exit with code 1 when the accuracy is below this share.
    #[arg(long, value_name = "X")]
    pub(crate) min_accuracy: Option<f64>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) against: against::Args,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// Rows answered together.
const AT_ONCE: usize = 64;
/// Seed of the bootstrap.
const SEED: u64 = 0;

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    on_device!(args.device, judge, args)
}

fn judge<B: Backend>(backend: B, args: &Args) -> anyhow::Result<Done> {
    let mut data = routing::read(&args.data, &args.fields.options())?;
    data.examples.truncate(args.limit.unwrap_or(usize::MAX));
    let mut router = open_router(backend, &args.model, args.base.as_deref(), args.device.encoding())?;
    let (predictions, seconds) = predict(&mut router, &data)?;
    if let Some(path) = &args.predictions {
        write_predictions(path, &predictions)?;
    }
    let manifest = router.manifest();
    let known: Vec<String> = manifest.labels.iter().map(|label| label.text.clone()).collect();
    let name = format!("{}, {}", manifest.base.source, manifest.method.name());
    let timing = Seconds { train: None, evaluate: Some(seconds) };
    let mut section = ModelSection::new(&name, &known, &predictions, timing)
        .with_thresholds(manifest.thresholds.clone(), &predictions);
    section.calibration = Some(manifest.calibration.clone());
    section.facts = facts(&router, predictions.len() as f64 / seconds);

    let training = training_rows(args, manifest);
    let mut others = Vec::new();
    match &training {
        Ok(train) => others.push(baseline(train, &known, &data)),
        Err(error) => eprintln!("no linear baseline: {error:#}; name its training data with --train-data"),
    }
    let linear = others.len();
    let train = training.unwrap_or_default();
    let competitors = ask(args, &router, &train, &known, &data, predictions.len() as f64 / seconds)?;
    let stopped = competitors.iter().any(Option::is_none);
    let competitors: Vec<Competitor> = competitors.into_iter().flatten().collect();
    others.extend(competitors.iter().map(|other| (other.section.clone(), other.predictions.clone())));
    let comparisons: Vec<Comparison> =
        others.iter().map(|(other, rows)| compare(&section.name, &predictions, &other.name, rows)).collect();
    let beside = Beside {
        baseline: others[..linear].first().map(|(other, _)| {
            json!({
                "name": other.name, "accuracy": other.metrics.accuracy, "macro": other.metrics.macro_avg,
                "comparison": comparisons.first(),
            })
        }),
        against: competitors.iter().zip(&comparisons[linear..]).map(|(it, with)| it.to_json(with)).collect(),
    };
    let models = std::iter::once(section).chain(others.into_iter().map(|(other, _)| other)).collect();
    let title = format!("{} on {}", short(&args.model), short(&args.data));
    let report = Report { title, models, comparisons, made: provenance(args, manifest, &data) };
    if let Some(folder) = &args.report {
        write_report(folder, &report)?;
        eprintln!("report: {}", folder.join("report.html").display());
    }
    print(args, &report, seconds, &beside)?;
    let accuracy = report.models[0].metrics.accuracy;
    Ok(match args.min_accuracy {
        Some(bar) if accuracy < bar => {
            eprintln!("accuracy {accuracy:.4} is below the bar of {bar}");
            Done::BelowTheBar
        }
        _ if stopped => Done::BelowTheBar,
        _ => Done::Fully,
    })
}

/// What the JSON output says of the models beside the judged one.
struct Beside {
    baseline: Option<Value>,
    against: Vec<Value>,
}

fn compare(name: &str, rows: &[Prediction], other: &str, others: &[Prediction]) -> Comparison {
    let column = |rows: &[Prediction]| rows.iter().map(|row| row.predicted.clone()).collect::<Vec<_>>();
    let (first, second) = (column(rows), column(others));
    let truth: Vec<&str> = rows.iter().map(|row| row.label.as_str()).collect();
    let (a, b) =
        (Answers { name, predicted: &names(&first) }, Answers { name: other, predicted: &names(&second) });
    Comparison::new(&truth, a, b, SEED)
}

/// The large models' answers, where any are asked for.
fn ask<B: Backend>(
    args: &Args,
    router: &Router<B>,
    train: &[Example],
    known: &[String],
    data: &Dataset,
    queries_per_s: f64,
) -> anyhow::Result<Vec<Option<Competitor>>> {
    let count = |text: &str| router.tokens(text).unwrap_or(text.len());
    let rows = against::Rows {
        asked: &data.examples,
        train,
        labels: known,
        run: &args.model,
        queries_per_s,
        count: &count,
    };
    against::ask(&args.against, &rows)
}

fn predict<B: Backend>(router: &mut Router<B>, data: &Dataset) -> anyhow::Result<(Vec<Prediction>, f64)> {
    let bar = progress::rows("evaluate", data.examples.len());
    let begun = Instant::now();
    let mut predictions = Vec::with_capacity(data.examples.len());
    for rows in data.examples.chunks(AT_ONCE) {
        let queries: Vec<Query<'_>> = rows.iter().map(Query::from).collect();
        for (example, answer) in rows.iter().zip(router.route(&queries)?) {
            let others = alternatives(&answer, 3).into_iter().map(|(label, probability)| Alternative {
                label: router.label(label).to_owned(),
                probability,
            });
            predictions.push(Prediction {
                text: example.text.clone(),
                label: example.label.clone(),
                predicted: router.label(answer.label).to_owned(),
                probability: Some(answer.probability),
                alternatives: others.collect(),
            });
        }
        bar.inc(rows.len() as u64);
    }
    bar.finish_and_clear();
    Ok((predictions, begun.elapsed().as_secs_f64()))
}

/// A path's last part.
fn short(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn names(column: &[String]) -> Vec<&str> {
    column.iter().map(String::as_str).collect()
}

/// The rows that the router was trained on, without those that it was validated on.
fn training_rows(args: &Args, manifest: &Manifest) -> anyhow::Result<Vec<Example>> {
    let record = &manifest.data;
    let fields =
        ReadOptions { text_field: record.text_field.clone(), label_field: record.label_field.clone() };
    let read = |path: &Path| routing::read(path, &fields);
    let file = read(args.train_data.as_deref().unwrap_or(&record.path))?;
    anyhow::ensure!(
        file.sha256 == record.sha256,
        "{} is not the file the run was trained on",
        file.path.display()
    );
    let valid = manifest.valid.as_ref().map(|valid| read(&valid.path)).transpose()?;
    Ok(TrainData::new(file, valid, &fields, &manifest.recipe)?.train().to_vec())
}

/// A TF-IDF + linear model trained on the rows that the router was trained on.
fn baseline(train: &[Example], known: &[String], data: &Dataset) -> (ModelSection, Vec<Prediction>) {
    let begun = Instant::now();
    let texts: Vec<&str> = train.iter().map(|example| example.text.as_str()).collect();
    let index = |name: &String| known.iter().position(|label| label == name).unwrap_or_default();
    let labels: Vec<usize> = train.iter().map(|example| index(&example.label)).collect();
    let model = LinearModel::train(&texts, &labels, known.len(), &LinearConfig::default());
    let trained = Some(begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    let predictions: Vec<Prediction> = data
        .examples
        .iter()
        .map(|example| Prediction {
            text: example.text.clone(),
            label: example.label.clone(),
            predicted: known[model.predict(&example.text).0].clone(),
            probability: None,
            alternatives: Vec::new(),
        })
        .collect();
    let seconds = Seconds { train: trained, evaluate: Some(begun.elapsed().as_secs_f64()) };
    (ModelSection::new("TF-IDF + linear SVM", known, &predictions, seconds), predictions)
}

fn facts<B: Backend>(router: &Router<B>, per_second: f64) -> Vec<Fact> {
    let manifest = router.manifest();
    let mut facts = vec![
        Fact::new("Method", manifest.method_in_words()),
        Fact::new("Device", router.device()),
        Fact::new("Queries a second", format!("{per_second:.1}")),
    ];
    if let Some(bytes) = peak_memory() {
        facts.push(Fact::new("Peak memory", format!("{:.2} GB", bytes as f64 / 1e9)));
    }
    facts
}

fn provenance(args: &Args, manifest: &Manifest, data: &Dataset) -> Provenance {
    let rows = |rows: usize| format!("{rows} rows");
    let input = |role: &str, name: String, size: String, sha256: &str| Input {
        role: role.to_owned(),
        name,
        size,
        sha256: sha256.to_owned(),
    };
    let record = &manifest.data;
    let labels = format!("{} labels", manifest.labels.len());
    Provenance {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        seed: manifest.recipe.seed,
        inputs: vec![
            input("test data", data.path.display().to_string(), rows(data.examples.len()), &data.sha256),
            input("training data", record.path.display().to_string(), rows(record.rows), &record.sha256),
            input("base model", manifest.base.name.clone(), labels, &manifest.base.sha256),
        ],
        versions: vec![
            Fact::new("frontdesk", env!("CARGO_PKG_VERSION")),
            Fact::new("Run", args.model.display().to_string()),
        ],
    }
}

fn write_predictions(path: &Path, predictions: &[Prediction]) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for row in predictions {
        serde_json::to_writer(&mut bytes, row)?;
        bytes.push(b'\n');
    }
    Ok(store::write_atomically(path, &bytes)?)
}

fn write_report(folder: &Path, report: &Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be created", folder.display()))?;
    store::write_atomically(folder.join("report.html"), report.to_html().as_bytes())?;
    store::write_atomically(folder.join("report.md"), report.to_markdown().as_bytes())?;
    store::write_atomically(folder.join("report.json"), &serde_json::to_vec_pretty(report)?)?;
    Ok(())
}

fn print(args: &Args, report: &Report, seconds: f64, beside: &Beside) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let section = &report.models[0];
    if args.json {
        let mut json = serde_json::to_value(&section.metrics)?;
        json["seconds"] = json!(seconds);
        json["queries_per_s"] = json!(section.metrics.n as f64 / seconds);
        json["reliability"] = json!(section.reliability);
        json["routed"] = json!(section.routed);
        if let Some(baseline) = &beside.baseline {
            json["baseline"] = baseline.clone();
        }
        if !args.against.against.is_empty() {
            json["against"] = json!(beside.against);
        }
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    writeln!(out, "{}", section.metrics.render_table())?;
    let mistakes = section.metrics.n as f64 * (1.0 - section.metrics.accuracy);
    writeln!(out, "{} rows in {seconds:.1} s, {mistakes:.0} wrong", section.metrics.n)?;
    if let Some(routed) = section.routed {
        let target = 100.0 * section.thresholds.as_ref().map_or(0.0, |thresholds| thresholds.target);
        writeln!(
            out,
            "with the thresholds for {target:.0}% precision, {:.1}% is routed without a person, {:.1}% of it rightly",
            100.0 * routed.coverage,
            100.0 * routed.precision
        )?;
    }
    for comparison in &report.comparisons {
        writeln!(out, "{}", comparison.sentence())?;
    }
    Ok(())
}
