//! The judged router on the rows, and the linear baseline that learned from the same training rows.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use fewshot::Hardware;
use kernels::Backend;
use router::{Answer, Manifest, Query, Router, TrainData, peak_memory};
use routing::linear::{LinearConfig, LinearModel};
use routing::report::{Alternative, Cost, Fact, Judged, Latency, ModelSection, Prediction, Seconds};
use routing::{Dataset, Example, ReadOptions};

use super::Args;
use crate::progress;
use crate::verbs::route::alternatives;

/// Rows asked alone, for the time that one takes.
const ALONE: usize = 50;

/// The router's results, and the seconds that answering all rows took.
pub(super) fn judge<B: Backend>(
    router: &mut Router<B>,
    data: &Dataset,
    args: &Args,
    hardware: Hardware,
) -> anyhow::Result<(Judged, f64)> {
    let (rows, seconds) = predict(router, data)?;
    let alone = measure_alone(router, data)?;
    let manifest = router.manifest();
    let known: Vec<String> = manifest.labels.iter().map(|label| label.text.clone()).collect();
    let name = format!("{} ({})", manifest.base.source, manifest.method.name());
    let timing = Seconds { train: trained_seconds(&args.model), evaluate: Some(seconds) };
    let mut section =
        ModelSection::new(&name, &known, &rows, timing).with_thresholds(manifest.thresholds.clone(), &rows);
    section.calibration = Some(manifest.calibration.clone());
    section.latency = Latency::measure(alone);
    let per_second = rows.len() as f64 / seconds;
    section.cost = cost(hardware, per_second);
    section.facts = facts(router, per_second);
    Ok((Judged { section, rows }, seconds))
}

fn predict<B: Backend>(router: &mut Router<B>, data: &Dataset) -> anyhow::Result<(Vec<Prediction>, f64)> {
    let bar = progress::rows("evaluate", data.examples.len());
    let begun = Instant::now();
    let answers = router.route_all(&data.examples, &mut |done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let seconds = begun.elapsed().as_secs_f64();
    let prediction = |(example, answer): (&Example, &Answer)| {
        let others = alternatives(answer, 3)
            .into_iter()
            .map(|(label, probability)| Alternative { label: router.label(label).to_owned(), probability });
        let mut prediction = Prediction {
            text: example.text.clone(),
            label: example.label.clone(),
            predicted: router.label(answer.label).to_owned(),
            probability: Some(answer.probability),
            alternatives: others.collect(),
            out_of_scope: false,
        };
        match &router.manifest().scope {
            Some(scope) if !answer.in_scope && prediction.predicted != scope.label => {
                prediction.set_aside(&scope.label);
            }
            _ => {}
        }
        prediction
    };
    Ok((data.examples.iter().zip(&answers).map(prediction).collect(), seconds))
}

/// Seconds of queries that are asked one at a time, spread over the rows.
fn measure_alone<B: Backend>(router: &mut Router<B>, data: &Dataset) -> anyhow::Result<Vec<f64>> {
    let step = data.examples.len().div_ceil(ALONE).max(1);
    data.examples
        .iter()
        .step_by(step)
        .map(|example| timed(|| router.route(&[Query::from(example)])))
        .collect()
}

fn timed<T, E: Into<anyhow::Error>>(work: impl FnOnce() -> Result<T, E>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    work().map_err(Into::into)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// What a machine that is never idle takes for 1,000 queries.
fn cost(hardware: Hardware, per_second: f64) -> Option<Cost> {
    let per_1000 = hardware.cost(1e3 / per_second);
    let basis = format!("a busy machine at {} USD an hour", hardware.per_hour);
    per_1000.is_finite().then_some(Cost { per_1000, basis })
}

/// What training took: by the run's log, where each resumption counts from its own start, or as it was measured
/// where there were no steps to log.
pub(super) fn trained_seconds(run: &Path) -> Option<f64> {
    logged_seconds(run).or_else(|| router::measured(run).map(|measured| measured.seconds))
}

fn logged_seconds(run: &Path) -> Option<f64> {
    let log = std::fs::read_to_string(run.join("train_log.jsonl")).ok()?;
    let seconds = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["seconds"].as_f64();
    let (mut before, mut last) = (0.0, 0.0);
    for now in log.lines().filter_map(seconds) {
        if now < last {
            before += last;
        }
        last = now;
    }
    Some(before + last).filter(|seconds| *seconds > 0.0)
}

/// What the router was trained on.
#[derive(Debug, Default)]
pub(super) struct TrainingRows {
    /// All rows of the file.
    pub(super) file: Vec<Example>,
    /// Those without the ones that it was validated on.
    pub(super) train: Vec<Example>,
}

pub(super) fn training_rows(args: &Args, manifest: &Manifest) -> anyhow::Result<TrainingRows> {
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
    let all = file.examples.clone();
    Ok(TrainingRows {
        file: all,
        train: TrainData::new(file, valid, &fields, &manifest.recipe)?.train().to_vec(),
    })
}

/// A TF-IDF + linear model trained on the rows that the router was trained on.
pub(super) fn baseline(
    train: &[Example],
    known: &[String],
    data: &Dataset,
    hardware: Hardware,
) -> Result<Judged, routing::Error> {
    let begun = Instant::now();
    let texts: Vec<&str> = train.iter().map(|example| example.text.as_str()).collect();
    let places: HashMap<&str, usize> = known.iter().map(String::as_str).zip(0..).collect();
    let index = |name: &String| places.get(name.as_str()).copied().unwrap_or_default();
    let labels: Vec<usize> = train.iter().map(|example| index(&example.label)).collect();
    let model = LinearModel::train(&texts, &labels, known.len(), &LinearConfig::default())?;
    let trained = Some(begun.elapsed().as_secs_f64());
    let mut each = Vec::with_capacity(data.examples.len());
    let mut predict = |example: &Example| {
        let begun = Instant::now();
        let predicted = known[model.predict(&example.text).0].clone();
        each.push(begun.elapsed().as_secs_f64());
        Prediction {
            text: example.text.clone(),
            label: example.label.clone(),
            predicted,
            ..Prediction::default()
        }
    };
    let rows: Vec<Prediction> = data.examples.iter().map(&mut predict).collect();
    let evaluate: f64 = each.iter().sum();
    let seconds = Seconds { train: trained, evaluate: Some(evaluate) };
    let mut section = ModelSection::new("TF-IDF + linear SVM", known, &rows, seconds);
    section.cost = cost(hardware, rows.len() as f64 / evaluate);
    section.latency = Latency::measure(each);
    Ok(Judged { section, rows })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_trainings_parts_add_up() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(trained_seconds(folder.path()), None);
        let lines = ["{\"seconds\":4.0}", "{\"seconds\":10.5}", "{\"seconds\":1.0}", "{\"seconds\":2.5}"];
        std::fs::write(folder.path().join("train_log.jsonl"), lines.join("\n")).unwrap();
        assert_eq!(trained_seconds(folder.path()), Some(13.0));
        std::fs::remove_file(folder.path().join("train_log.jsonl")).unwrap();
        let measured = "{\"seconds\": 2.5, \"peak_memory_bytes\": null}";
        std::fs::write(folder.path().join("measured.json"), measured).unwrap();
        assert_eq!(trained_seconds(folder.path()), Some(2.5), "a head takes no steps");
    }
}
