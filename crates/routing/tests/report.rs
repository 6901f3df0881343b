//! One report in its three forms: nothing is loaded from anywhere, nothing in the data can break out, and the
//! numbers are those of the metrics.

use routing::calibration::{Calibration, LabelThreshold, ThresholdSource, Thresholds};
use routing::compare::{Answers, Comparison};
use routing::report::{Fact, Input, MISTAKES, ModelSection, Prediction, Provenance, Report, Routed, Seconds};

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
            alternatives: Vec::new(),
        }
    };
    (0..90).map(row).collect()
}

fn report() -> Report {
    let (tuned, linear) = (predictions(9, true), predictions(3, false));
    let predicted =
        |rows: &'static [Prediction]| rows.iter().map(|row| row.predicted.as_str()).collect::<Vec<_>>();
    let (tuned, linear): (&'static [Prediction], &'static [Prediction]) = (tuned.leak(), linear.leak());
    let truth: Vec<&str> = tuned.iter().map(|row| row.label.as_str()).collect();
    let comparison = Comparison::new(
        &truth,
        Answers { name: "tuned", predicted: &predicted(tuned) },
        Answers { name: "linear", predicted: &predicted(linear) },
        1,
    );
    let mut first =
        ModelSection::new("tuned", &labels(), tuned, Seconds { train: Some(83.0), evaluate: Some(0.5) })
            .with_thresholds(thresholds(), tuned);
    first.calibration = Some(Calibration::fit(&[vec![0.0, -1.0], vec![0.0, -1.0]], &[0, 1]));
    first.facts = vec![Fact::new("device", HOSTILE)];
    Report {
        title: format!("Queries {HOSTILE}"),
        models: vec![first, ModelSection::new("linear", &labels(), linear, Seconds::default())],
        comparisons: vec![comparison],
        made: Provenance {
            command: format!("frontdesk eval {HOSTILE}"),
            seed: 7,
            inputs: vec![Input {
                role: "test data".into(),
                name: HOSTILE.into(),
                size: "90 rows".into(),
                sha256: "00ff".into(),
            }],
            versions: vec![Fact::new("frontdesk", "0.1.0")],
        },
    }
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
    Thresholds { target: 0.9, global: None, per_label, coverage: 0.5, precision: 0.95 }
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
    assert_eq!(html.matches("class=\"confusion\"").count(), 2);
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
    assert!(section.mistakes.iter().all(|row| !row.is_right()));
    assert!(section.mistakes[0].text.starts_with("query 88 "), "{}", section.mistakes[0].text);
    assert!(section.mistakes.is_sorted_by(|a, b| a.probability >= b.probability));
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
    assert!(table.iter().all(|line| columns(line) == 5), "{mistakes}");
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
    let empty = Report {
        title: "Nothing".into(),
        models: vec![ModelSection::new("none", &[], &[], Seconds::default())],
        comparisons: Vec::new(),
        made: Provenance::default(),
    };
    assert!(empty.to_html().contains("Nothing"));
    assert!(empty.to_markdown().starts_with("# Nothing\n"));
    assert!(!empty.to_html().contains("NaN"));
}
