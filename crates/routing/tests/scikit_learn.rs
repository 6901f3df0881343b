//! Metrics, comparisons and the linear model against what scikit-learn, statsmodels and scipy computed.
//! `tools/parity/metrics.py` rebuilds the fixtures.
#![allow(clippy::unwrap_used, reason = "a helper of tests may fail and print as they may")]

use routing::compare::{Answers, Comparison, Interval, McNemar, wilson};
use routing::linear::{LinearConfig, LinearModel};
use routing::metrics::Metrics;
use serde_json::Value;

const EXACT: f64 = 1e-9;

fn fixture(name: &str) -> Value {
    let path = format!("{}/../../fixtures/metrics/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}; tools/parity/metrics.py writes it"));
    serde_json::from_str(&text).unwrap()
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// Equal structure and strings, numbers within `EXACT`.
fn assert_close(found: &Value, expected: &Value, at: &str) {
    match (found, expected) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= EXACT, "{at}: {a} instead of {b}");
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                assert_close(a, b, &format!("{at}[{index}]"));
            }
        }
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{at}: {:?}", a.keys());
            for (key, value) in a {
                assert_close(value, &b[key], &format!("{at}.{key}"));
            }
        }
        _ => assert_eq!(found, expected, "{at}"),
    }
}

#[test]
fn metrics_equal_scikit_learns() {
    let cases = fixture("metrics.json");
    for (name, case) in cases.as_object().unwrap() {
        let labels: Vec<String> = read(&case["labels"]);
        let (truth, predicted): (Vec<usize>, Vec<usize>) = (read(&case["truth"]), read(&case["predicted"]));
        let metrics = Metrics::from_indices(&labels, &truth, &predicted);
        assert_close(&serde_json::to_value(&metrics).unwrap(), &case["metrics"], name);
        if let Some(table) = case["table"].as_str() {
            assert_eq!(metrics.render_table(), table, "{name}");
        }
    }
    assert_eq!(cases.as_object().unwrap().len(), 8);
}

#[test]
fn names_give_the_same_as_indices_when_every_label_occurs() {
    let case = &fixture("metrics.json")["unbalanced"];
    let labels: Vec<String> = read(&case["labels"]);
    let names = |column: &str| -> Vec<&str> {
        read::<Vec<usize>>(&case[column]).into_iter().map(|index| labels[index].as_str()).collect()
    };
    let (truth, predicted) = (names("truth"), names("predicted"));
    let rows: Vec<(&str, &str)> = truth.into_iter().zip(predicted).collect();
    assert_close(
        &serde_json::to_value(Metrics::from_names(&labels, &rows)).unwrap(),
        &case["metrics"],
        "names",
    );
}

#[test]
fn wilson_equals_statsmodels() {
    for case in fixture("compare.json")["wilson"].as_array().unwrap() {
        let Interval { low, high } = wilson(read(&case["right"]), read(&case["n"]));
        assert_close(&serde_json::json!([low, high]), &case["interval"], &case.to_string());
    }
}

#[test]
fn mcnemar_equals_statsmodels() {
    for case in fixture("compare.json")["mcnemar"].as_array().unwrap() {
        let test = McNemar::new(read(&case["only_first"]), read(&case["only_second"]));
        assert_close(&serde_json::to_value(test).unwrap(), case, &case.to_string());
    }
}

#[test]
fn bootstrap_intervals_are_near_scipys() {
    let case = &fixture("compare.json")["bootstrap"];
    let names = ["a", "b", "c", "d", "e", "f"];
    let column = |name: &str| -> Vec<&str> {
        read::<Vec<usize>>(&case[name]).into_iter().map(|index| names[index]).collect()
    };
    let (truth, first, second) = (column("truth"), column("first"), column("second"));
    let answers = |name, predicted| Answers { name, predicted };
    let found = Comparison::new(&truth, answers("first", &first), answers("second", &second), 1);
    let pairs = [
        ("accuracy", found.accuracy_difference, found.accuracy_interval),
        ("macro_f1", found.macro_f1_difference, found.macro_f1_interval),
    ];
    for (name, difference, interval) in pairs {
        let expected: [f64; 2] = read(&case[name]["interval"]);
        assert!(
            (difference - case[name]["difference"].as_f64().unwrap()).abs() < EXACT,
            "{name}: {difference}"
        );
        // other random numbers: the ends of 2,000 resamples scatter by some 2% of the width, four times that is far
        let slack = 0.08 * (expected[1] - expected[0]);
        for (found, expected) in [(interval.low, expected[0]), (interval.high, expected[1])] {
            assert!((found - expected).abs() < slack, "{name}: {interval:?} instead of {expected:?}");
        }
    }
}

#[test]
fn linear_scores_equal_linear_svcs() {
    let case = fixture("linear.json");
    let (texts, labels): (Vec<String>, Vec<usize>) = (read(&case["texts"]), read(&case["labels"]));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = LinearConfig { tolerance: 1e-6, ..LinearConfig::default() };
    let model = LinearModel::train(&texts, &labels, 3, &config).unwrap();
    assert_eq!(model.n_features(), read::<usize>(&case["n_features"]));
    let (probes, expected): (Vec<String>, Vec<Vec<f32>>) = (read(&case["probes"]), read(&case["scores"]));
    for (probe, expected) in probes.iter().zip(&expected) {
        let (_, scores) = model.predict(probe);
        for (score, expected) in scores.iter().zip(expected) {
            // weights are f32 and the solvers stop at different places
            assert!((score - expected).abs() < 2e-4, "{probe:?}: {scores:?} instead of {expected:?}");
        }
    }
}
