//! `eval --against` with a scripted endpoint: a kill, a resume, an offline run, and a key that nobody sees.
#![allow(clippy::unwrap_used)] // A test may fail loudly anywhere, also in its helpers.

mod common;
#[path = "common/large.rs"]
mod large;

use std::collections::HashSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{frontdesk, queries, stderr, tiny_model};
use large::server::{Action, Server};
use large::{EVAL, KEY, ROWS, eval, prepare, recorded, recordings, right};
use serde_json::Value;

#[test]
fn a_killed_evaluation_goes_on_and_is_repeated_offline() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare(path);
    let open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&open);
    let server = Server::start(move |question| {
        if question.number < ROWS / 2 || opened.load(Ordering::Relaxed) {
            right(question)
        } else {
            Action::Hang
        }
    });
    // By the name of a model with a price.
    let model = format!("gpt-4o@{}", server.url);

    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("frontdesk"));
    command.current_dir(path).env("OPENAI_API_KEY", KEY).env("HF_HUB_OFFLINE", "1").args(EVAL).arg(&model);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while recorded(path) < ROWS / 2 {
        assert!(child.try_wait().unwrap().is_none(), "it must wait for the server");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    open.store(true, Ordering::Relaxed);
    let output = eval(path, &model, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let answered = server.answered();
    assert_eq!(
        (answered.len(), answered.iter().collect::<HashSet<_>>().len()),
        (ROWS, ROWS),
        "each row once"
    );
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [it] = &json["against"].as_array().unwrap()[..] else { panic!("{json}") };
    assert!((it["accuracy"].as_f64().unwrap() - 119.0 / 120.0).abs() < 1e-9, "{it}");
    assert_eq!(it["name"], "gpt-4o (3 a label at random)");
    let answers = &it["answers"];
    assert_eq!((&answers["refused"], &answers["spelled_otherwise"]), (&1.into(), &1.into()));
    assert!(
        answers["cost_per_1000"].as_f64().unwrap() > 0.0 && it["break_even"]["queries_per_hour"].is_number()
    );
    assert_eq!(it["comparison"]["n"], ROWS);
    assert_eq!(json["baseline"]["name"], "TF-IDF + linear SVM");
    let page = std::fs::read_to_string(path.join("report/report.html")).unwrap();
    assert!(page.contains("gpt-4o (3 a label at random)") && page.contains("(refused)"));

    let cascade = &json["cascades"][0];
    assert_eq!(cascade["second"], it["name"]);
    let ends =
        ["share", "accuracy"].map(|key| cascade["points"].as_array().unwrap().last().unwrap()[key].clone());
    assert_eq!(ends, [1.0.into(), it["accuracy"].clone()], "all queries asked of it are its accuracy");

    let prompt = server.log()[0].body["messages"].to_string();
    assert!(
        prompt.contains("lost my card") && !prompt.contains("number 5 "),
        "examples are training rows: {prompt}"
    );
    let everything =
        [page, stderr(&output), String::from_utf8(output.stdout.clone()).unwrap(), recordings(path)];
    assert!(everything.iter().all(|text| !text.contains(KEY)));
    assert!(server.log()[0].head.contains(KEY));

    // Nobody listens any more, and there is no key.
    let requests = server.log().len();
    let mut command = frontdesk(path);
    let offline =
        command.env_remove("OPENAI_API_KEY").args(EVAL).args([&model, "--offline"]).output().unwrap();
    let again: Value = serde_json::from_slice(&offline.stdout).unwrap();
    assert_eq!((&again["against"][0]["answers"], server.log().len()), (answers, requests));
    let kept = eval(path, &model, &["--offline", "--cascade", "share=0.5"]);
    assert!(kept.status.success() && stderr(&kept).contains("kept in the run"), "{}", stderr(&kept));
    let run: Value =
        serde_json::from_slice(&std::fs::read(path.join("run/frontdesk.json")).unwrap()).unwrap();
    let point = &run["cascade"]["point"];
    assert!(point["share"].as_f64().unwrap() <= 0.5 && run["cascade"]["model"] == "gpt-4o", "{run}");
    let unreached = eval(path, &model, &["--offline", "--cascade", "cost=0"]);
    assert_eq!(unreached.status.code(), Some(1), "{}", stderr(&unreached));
    let mut command = frontdesk(path);
    let route = command.args(["route", "--model", "run", "--json", "--precision", "f32", "hello good day"]);
    let answer: Value = serde_json::from_slice(&route.output().unwrap().stdout).unwrap();
    let unsure = answer["probability"].as_f64().unwrap() < point["threshold"].as_f64().unwrap();
    assert_eq!(answer["ask"] == "gpt-4o", unsure, "{answer}");
    let missing = eval(path, &model, &["--offline", "--shots", "0"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("0 of 120 answers"), "{}", stderr(&missing));
}

#[test]
fn several_models_prompts_and_a_budget() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare(path);
    let server = Server::start(right);
    let (dear, cheap) = (format!("gpt-4o@{}", server.url), format!("gpt-4o-mini@{}", server.url));

    let stopped = eval(path, &dear, &["--shots", "0", "--max-cost", "0.01"]);
    assert_eq!(stopped.status.code(), Some(1), "{}", stderr(&stopped));
    assert!(stderr(&stopped).contains("--max-cost"), "{}", stderr(&stopped));
    let json: Value = serde_json::from_slice(&stopped.stdout).unwrap();
    assert_eq!((json["n"].as_u64(), json["against"].as_array().map(Vec::len)), (Some(ROWS as u64), Some(0)));
    let paid = server.answered().len();
    assert!(paid > 0 && paid < ROWS);

    let output = eval(path, &dear, &["--against", &cheap, "--shots", "0,2"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> =
        json["against"].as_array().unwrap().iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(
        names,
        [
            "gpt-4o (zero-shot)",
            "gpt-4o (2 a label at random)",
            "gpt-4o-mini (zero-shot)",
            "gpt-4o-mini (2 a label at random)",
        ]
    );
    assert_eq!(server.answered().len(), 4 * ROWS, "what the budget had paid for is not asked again");

    let unpriced = eval(path, &format!("unknown@{}", server.url), &["--max-cost", "1"]);
    assert_eq!(unpriced.status.code(), Some(2));
    assert!(stderr(&unpriced).contains("no price for `unknown`"), "{}", stderr(&unpriced));
}

#[test]
fn a_plan_says_what_it_takes_before_anything_is_spent() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 40);
    let plan = |flags: &[&str]| {
        let mut command = frontdesk(folder.path());
        command.args(["plan", "--data", "data.csv", "--json", "--rank", "4", "--base"]).arg(tiny_model());
        let output = command.args(flags).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    // Training has no integers: the plan is that of `train` and then `route`, each as it runs.
    for (flags, trains, routes) in [
        (&["--device", "cpu"][..], "bf16", "int8"),
        (&["--precision", "int8"], "bf16", "int8"),
        (&["--precision", "bf16", "--device", "cpu"], "bf16", "bf16"),
        (&["--precision", "int8", "--method", "head"], "bf16", "bf16"),
    ] {
        let planned = plan(flags);
        let trains_on = planned["trains_on"].as_str().unwrap();
        assert!(trains_on.starts_with("cpu") && trains_on.ends_with(trains), "{trains_on}");
        assert_eq!(planned["routes_in"], routes, "{flags:?}");
    }
    let measured = plan(&[]);
    assert_eq!(measured["measured"], true);
    assert!(measured["examples_per_s"].as_f64().unwrap() > 0.0);
    assert!(measured["peak_memory_bytes"].as_u64().unwrap() > 1_000_000);
    let flags = [
        "--examples-per-s",
        "5",
        "--queries-per-s",
        "10",
        "--epochs",
        "3",
        "--hardware-price",
        "0.6",
        "--shots",
        "1",
    ];
    let given = plan(&flags);
    let (rows, held) = (given["training_rows"].as_f64().unwrap(), given["validation_rows"].as_f64().unwrap());
    let seconds = (3.0 * rows + 2.0 * 5.0 * held) / 5.0;
    assert!((given["minutes"].as_f64().unwrap() - seconds / 60.0).abs() < 1e-9, "{given}");
    assert!((given["own_cost_per_1000"].as_f64().unwrap() - 0.6 / 36.0).abs() < 1e-9, "{given}");
    assert!((given["training_cost"].as_f64().unwrap() - seconds / 6000.0).abs() < 1e-9, "{given}");
    let models = given["models"].as_array().unwrap();
    assert_eq!((models.len(), &models[0]["name"]), (2, &"gpt-4o".into()));
    // 2.50 USD a million tokens in, 10.00 out.
    let number = |name: &str| models[0][name].as_f64().unwrap();
    let cost = (number("prompt_tokens") * 2.5 + number("answer_tokens") * 10.0) / 1e3;
    assert!((number("cost_per_1000") / cost - 1.0).abs() < 1e-3, "{given}");
    let tokens = given["training_tokens"].as_f64().unwrap();
    assert!((number("fine_tuning_cost") - 3.0 * tokens * 25.0 / 1e6).abs() < 1e-9);
}
