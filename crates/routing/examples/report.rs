//! Writes reports of made-up models over 12, 77 and 150 labels, to be looked at and for `tools/report/check.py`:
//! `cargo run --release -p routing --example report -- FOLDER`.
#![allow(clippy::print_stdout, reason = "a program")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use routing::calibration::{Calibration, Goal, Scope, Scored, Thresholds};
use routing::cascade::{Cascade, CascadeGoal, Side};
use routing::report::{
    Cost, Fact, Findings, Input, Judged, Latency, ModelSection, Prediction, Provenance, Report, Seconds,
    Training,
};
use routing::{Example, Origin, suspects};

const SUBJECTS: [&str; 10] = [
    "card",
    "loan",
    "account",
    "transfer",
    "insurance claim",
    "password",
    "invoice",
    "delivery",
    "contract",
    "refund",
];
const MATTERS: [&str; 15] = [
    "lost",
    "delayed",
    "not working",
    "charged twice",
    "declined",
    "cancelled",
    "changed",
    "expired",
    "blocked",
    "verification",
    "limit",
    "fee",
    "address",
    "activation",
    "history",
];

fn labels(n: usize) -> Vec<String> {
    let name = |index: usize| format!("{}_{}", SUBJECTS[index % 10], MATTERS[index / 10]).replace(' ', "_");
    (0..n).map(name).collect()
}

/// A query about the label's subject and matter.
fn text(label: &str, rng: &mut ChaCha8Rng) -> String {
    let openings =
        ["Hello, my", "Please help, the", "Why is my", "Since yesterday the", "I wrote last week that the"];
    let ends =
        ["and I need it today.", "what can I do?", "for the second time!", "who takes care of it?", "again"];
    let pick = |of: &[&str], rng: &mut ChaCha8Rng| of[rng.random_range(0..of.len())].to_owned();
    let (opening, end) = (pick(&openings, rng), pick(&ends, rng));
    format!("{opening} {} {end}", label.replace('_', " "))
}

/// Answers of a model that is right `skill` of the time, and mostly knows when it is not.
fn answers(
    rows: &[(String, String)],
    labels: &[String],
    skill: f64,
    rng: &mut ChaCha8Rng,
) -> Vec<Prediction> {
    let answer = |(text, label): &(String, String)| {
        let at = labels.iter().position(|name| name == label);
        let right = at.is_some() && rng.random_range(0.0..1.0) < skill;
        let step = 10 * rng.random_range(1..3usize);
        let near = at.unwrap_or_else(|| rng.random_range(0..labels.len())) + step;
        let predicted = if right { label.clone() } else { labels[near % labels.len()].clone() };
        let doubt: f64 = rng.random_range(0.0..1.0);
        let probability = if right { 1.0 - 0.45 * doubt.powi(4) } else { 0.97 - 0.75 * doubt };
        let (text, label) = (text.clone(), label.clone());
        Prediction { text, label, predicted, probability: Some(probability), ..Prediction::default() }
    };
    rows.iter().map(answer).collect()
}

fn report(n: usize) -> Report {
    let (labels, mut rng) = (labels(n), ChaCha8Rng::seed_from_u64(n as u64));
    let mut rows = Vec::new();
    for round in 0..if n < 50 { 40 } else { 20 } {
        for label in labels.iter().skip(if round > 10 { round % 3 } else { 0 }) {
            rows.push((text(label, &mut rng), label.clone()));
        }
    }
    let out_of_scope = |rng: &mut ChaCha8Rng| (text("weather tomorrow", rng), "oos".to_owned());
    if n == 150 {
        rows.extend((0..300).map(|_| out_of_scope(&mut rng)));
    }
    let file: Arc<Path> = Arc::from(Path::new("train.csv"));
    let mut train: Vec<Example> = (0..n * 12)
        .map(|row| {
            let label = &labels[row % n];
            Example::new(text(label, &mut rng), label, Origin::line(&file, row as u64 + 2))
        })
        .collect();
    for row in (0..train.len()).step_by(97) {
        train[row].label.clone_from(&labels[(row + 3) % n]);
    }
    let own = own_model(&rows, &labels, &mut rng);
    let mut linear = answers(&rows, &labels, 0.88, &mut rng);
    for row in &mut linear {
        row.probability = None;
    }
    let mut section = ModelSection::new(
        "TF-IDF + linear SVM",
        &labels,
        &linear,
        Seconds { train: Some(0.7), evaluate: Some(0.2) },
    );
    section.latency = Latency::measure(vec![0.00008, 0.0001]);
    let linear = Judged { section, rows: linear };
    let large = large_model(&rows, &labels, &mut rng);
    let mut judged = vec![own, linear, large];
    if n == 150 {
        judged
            .iter_mut()
            .skip(1)
            .for_each(|it| it.section = it.section.clone().with_scope("oos", None, &it.rows));
    }
    let side = |it: &'static Judged, seconds| Side {
        name: &it.section.name,
        rows: &it.rows,
        cost_per_1000: it.section.cost.as_ref().map(|cost| cost.per_1000),
        seconds,
    };
    let (first, last): (&'static Judged, &'static Judged) =
        (Box::leak(Box::new(judged[0].clone())), Box::leak(Box::new(judged[2].clone())));
    let cascade = Cascade::new(side(first, &[0.019]), side(last, &[0.6]), CascadeGoal::AtMostShare(0.2));
    Training::new(&train).explain(&mut judged[0].section.mistakes);
    let findings =
        Findings { cascades: cascade.into_iter().collect(), suspects: suspects::find(&train, 0).ok() };
    Report::new(format!("Made-up queries, {n} labels"), &judged, findings, made(rows.len()))
}

fn own_model(rows: &[(String, String)], labels: &[String], rng: &mut ChaCha8Rng) -> Judged {
    let mut answers = answers(rows, labels, 0.93, rng);
    let scored: Vec<Scored> = answers
        .iter()
        .map(|row| Scored {
            predicted: labels.iter().position(|label| *label == row.predicted).unwrap_or_default(),
            probability: row.probability.unwrap_or_default(),
            right: row.is_right(),
            in_scope: true,
        })
        .collect();
    let thresholds = Thresholds::choose(labels, &scored, &Goal::Precision { target: 0.97 }, None);
    let has_oos = rows.iter().any(|row| row.1 == "oos");
    let rule = has_oos.then(|| Scope {
        label: "oos".into(),
        threshold: 0.6,
        min_in_scope: Some(0.9),
        validation: routing::calibration::ScopeScores::default(),
    });
    for row in answers.iter_mut().filter(|row| rule.is_some() && row.probability < Some(0.6)) {
        row.set_aside("oos");
    }
    let seconds = Seconds { train: Some(1380.0), evaluate: Some(28.5) };
    let mut section = ModelSection::new("smollm2-135m (lora)", labels, &answers, seconds)
        .with_thresholds(thresholds, &answers)
        .with_scope("oos", rule.as_ref(), &answers);
    section.calibration =
        Some(Calibration::fit(&[vec![0.0, -1.0], vec![0.0, -2.0], vec![-1.0, 0.0]], &[0, 0, 0]));
    section.latency = Latency::measure((1..=50).map(|at| 0.017 + 0.0001 * f64::from(at)).collect());
    section.cost = Some(Cost { per_1000: 0.00026, basis: "a busy machine at 0.1 USD an hour".into() });
    section.facts = vec![
        Fact::new("Method", "LoRA, rank 64, alpha 64"),
        Fact::new("Device", "cpu avx512 bf16"),
        Fact::new("Queries a second", "108.0"),
        Fact::new("Peak memory", "0.68 GB"),
    ];
    Judged { section, rows: answers }
}

fn large_model(rows: &[(String, String)], labels: &[String], rng: &mut ChaCha8Rng) -> Judged {
    let mut answers = answers(rows, labels, 0.94, rng);
    for row in answers.iter_mut().step_by(211) {
        row.predicted = "(none of the labels)".into();
        row.probability = Some(0.0);
    }
    let seconds = Seconds { train: None, evaluate: Some(0.6 * rows.len() as f64) };
    let mut section = ModelSection::new("gpt-4o (3 a label at random)", labels, &answers, seconds);
    section.latency = Latency::measure(vec![0.5, 0.6, 0.6, 1.4]);
    section.cost = Some(Cost { per_1000: 2.1, basis: "prices of 2026-06".into() });
    section.facts = vec![
        Fact::new("Endpoint", "https://api.example"),
        Fact::new("Break-even", "a machine at 0.1 USD an hour costs less from 47.6 queries an hour on"),
        Fact::new(
            "Fine-tuning it",
            "12.40 USD for the same data and epochs; training here took 0.038 USD of a machine",
        ),
    ];
    Judged { section, rows: answers }
}

fn made(rows: usize) -> Provenance {
    let input = |role: &str, name: &str, size: String| Input {
        role: role.into(),
        name: name.into(),
        size,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".into(),
    };
    Provenance {
        command: "cargo run --release -p routing --example report -- FOLDER".into(),
        seed: 0,
        inputs: vec![
            input("test data", "made up", format!("{rows} rows")),
            input("base model", "none", String::new()),
        ],
        versions: vec![Fact::new("frontdesk", env!("CARGO_PKG_VERSION"))],
    }
}

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()));
    std::fs::create_dir_all(&folder)?;
    for n in [12, 77, 150] {
        let (report, path) = (report(n), folder.join(format!("labels-{n}.html")));
        std::fs::write(&path, report.to_html())?;
        std::fs::write(path.with_extension("md"), report.to_markdown())?;
        println!("{}", path.display());
    }
    Ok(())
}
