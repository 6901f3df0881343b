//! `route --ask`: the large model that was judged is asked about queries of which the router is unsure.
#![allow(clippy::unwrap_used)] // A test may fail loudly anywhere, also in its helpers.

mod common;
#[path = "common/large.rs"]
mod large;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{frontdesk, stderr};
use large::server::{Action, Question, Server};
use large::{KEY, eval, prepare, recordings, right};
use serde_json::Value;

/// The run's large model is asked about these; nobody may see the key.
fn ask(folder: &Path, queries: &[&str], flags: &[&str]) -> (Vec<Value>, String) {
    let mut command = frontdesk(folder);
    command.env("OPENAI_API_KEY", KEY).args([
        "route",
        "--model",
        "run",
        "--json",
        "--precision",
        "f32",
        "--ask",
    ]);
    let output = command.args(flags).write_stdin(queries.join("\n")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(!lines.contains(KEY) && !stderr(&output).contains(KEY));
    let answers: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), queries.len(), "no query is lost");
    (answers, stderr(&output))
}

/// The router's own decision counts, and the reason is said.
fn assert_own(answer: &Value, reason: &str) {
    for key in ["label", "probability", "decision", "in_scope"] {
        assert_eq!(answer[key], answer["router"][key], "{answer}");
    }
    assert_eq!(answer["answered_by"], "router", "{answer}");
    assert!(answer["asked"]["failure"].as_str().is_some_and(|it| it.contains(reason)), "{reason}: {answer}");
}

#[test]
fn what_the_router_is_unsure_of_is_asked_as_it_was_judged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare(path);
    let server = Server::start(right);
    let model = format!("gpt-4o@{}", server.url);
    let mut none = frontdesk(path);
    let none = none.args(["route", "--model", "run", "--ask", "hello"]).output().unwrap();
    assert_eq!(none.status.code(), Some(2), "no cascade was chosen yet");
    assert!(stderr(&none).contains("--cascade"), "{}", stderr(&none));

    // A model that is always right is asked always.
    let kept = eval(path, &model, &["--cascade", "best", "--shots-by", "similar", "--shots", "2"]);
    assert!(kept.status.success() && stderr(&kept).contains("route --ask"), "{}", stderr(&kept));
    let judged = server.log().last().unwrap().body.clone();
    std::fs::remove_file(path.join("data.csv")).unwrap();

    let before = server.log().len();
    let queries =
        ["send this to fee-question", "evaluation row number 0 wants card_lost", "send it to nowhere"];
    let (answers, said) = ask(path, &queries, &[]);
    let [label, refused, nowhere] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(label["label"], "fee-question");
    assert_eq!((&label["decision"], &label["answered_by"]), (&"route".into(), &"gpt-4o".into()), "{label}");
    assert_eq!(label["asked"]["said"], "fee-question");
    let tokens = &label["asked"]["tokens"];
    let number = |key: &str| tokens[key].as_f64().unwrap();
    let cost =
        ((number("prompt") - number("cached")) * 2.5 + number("cached") * 1.25 + number("completion") * 10.0)
            / 1e6;
    assert!((label["asked"]["cost"].as_f64().unwrap() - cost).abs() < 1e-12 && cost > 0.0, "{label}");
    assert_eq!(
        (&refused["asked"]["said"], &nowhere["asked"]["said"]),
        (&"(refused)".into(), &"(none of the labels)".into())
    );
    for answer in [refused, nowhere] {
        assert_eq!(
            (&answer["label"], &answer["answered_by"]),
            (&answer["router"]["label"], &"router".into())
        );
    }
    assert!(said.contains("3 of 3 queries") && said.contains("3 answers now"), "{said}");
    let log = server.log();
    assert_eq!(log.len(), before + 3, "the endpoint is known: nothing is tried out");
    for key in ["response_format", "temperature", "max_tokens", "logprobs"] {
        assert_eq!(log[before].body[key], judged[key], "{key}");
    }
    let system = |question: &Question| question.body["messages"][0]["content"].to_string();
    assert!(log[before..].iter().any(|question| system(question).contains("why this fee")));
    let recorded = recordings(path);
    assert!(!recorded.contains(KEY) && !recorded.contains("send this"), "queries stay where they were");

    // The same again is paid for already, and needs nobody.
    let (again, said) = ask(path, &queries, &[]);
    assert_eq!(server.log().len(), log.len());
    assert_eq!((&again[0]["asked"]["recorded"], &again[0]["asked"]["cost"]), (&true.into(), &0.0.into()));
    assert_eq!(again[0]["label"], "fee-question");
    assert!(said.contains("3 recorded before"), "{said}");

    // The prompt is part of the run; new thresholds take it away.
    let prompts = || {
        let files = std::fs::read_dir(path.join("run")).unwrap().map(|file| file.unwrap().path());
        files
            .filter(|file| file.file_name().unwrap().to_string_lossy().starts_with("cascade-"))
            .collect::<Vec<_>>()
    };
    let [file] = &prompts()[..] else { panic!("{:?}", prompts()) };
    let text = std::fs::read_to_string(file).unwrap();
    assert!(!text.contains(KEY));
    std::fs::write(file, text.replace("lost my card", "lost my keys")).unwrap();
    let mut changed = frontdesk(path);
    let changed = changed.args(["route", "--model", "run", "--ask", "hello"]).output().unwrap();
    assert!(
        changed.status.code() == Some(2) && stderr(&changed).contains("cascade-"),
        "{}",
        stderr(&changed)
    );
    std::fs::write(file, text).unwrap();
    let mut calibrate = frontdesk(path);
    calibrate.args(["calibrate", "--model", "run", "--data", "test.csv", "--precision", "f32"]);
    assert!(calibrate.output().unwrap().status.success());
    assert!(prompts().is_empty());
}

#[test]
fn a_large_model_that_fails_loses_no_query() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare(path);
    let fault = Arc::new(AtomicUsize::new(0));
    let broken = Arc::clone(&fault);
    let server = Server::start(move |question| match broken.load(Ordering::Relaxed) {
        0 => right(question),
        429 => Action::Status(429, vec![("Retry-After", "600".into())], String::new()),
        1 => Action::Hang,
        2 => Action::Cut(30),
        // Half way through, it is gone.
        3 if question.query().ends_with("fee-question") => right(question),
        3 => Action::Cut(0),
        status => Action::Status(status as u16, vec![], format!("{{\"error\":\"no, {KEY}\"}}")),
    });
    let model = format!("gpt-4o@{}", server.url);
    let kept = eval(path, &model, &["--cascade", "best"]);
    assert!(kept.status.success(), "{}", stderr(&kept));

    for (number, (code, reason)) in
        [(429, "wait 600 s"), (500, "500"), (401, "check the key"), (400, "400"), (2, "broke"), (1, "broke")]
            .into_iter()
            .enumerate()
    {
        fault.store(code, Ordering::Relaxed);
        let queries = [format!("query {number} wants greeting"), format!("query {number} wants card_lost")];
        let (answers, said) = ask(path, &queries.each_ref().map(String::as_str), &["--timeout", "1"]);
        for answer in &answers {
            assert_own(answer, reason);
        }
        assert!(said.contains("the router's own decision stands"), "{said}");
        assert!(said.contains("2 without an answer"), "{said}");
    }

    // One at a time: what came after the failure is not even asked.
    fault.store(3, Ordering::Relaxed);
    let before = server.log().len();
    let (answers, _) = ask(
        path,
        &["a fee-question", "b fee-question", "c greeting", "d greeting", "e fee-question"],
        &["--concurrency", "1"],
    );
    let by: Vec<&str> = answers.iter().map(|answer| answer["answered_by"].as_str().unwrap()).collect();
    assert_eq!(by, ["gpt-4o", "gpt-4o", "router", "router", "router"]);
    assert_own(&answers[2], "broke");
    assert_own(&answers[4], "not asked, because it failed a moment ago");
    assert_eq!(server.log().len(), before + 4, "two tries of the one that failed");

    fault.store(0, Ordering::Relaxed);
    let (healed, _) = ask(path, &["c greeting", "c greeting"], &[]);
    assert_eq!((&healed[0]["label"], &healed[1]["label"]), (&"greeting".into(), &"greeting".into()));
    assert_eq!(healed[1]["asked"]["recorded"], true, "equal queries are asked once");
    assert_eq!(server.log().len(), before + 5);
    let (broke, said) = ask(path, &["one more fee-question", "a fee-question"], &["--max-cost", "0"]);
    assert_own(&broke[0], "--max-cost");
    assert_eq!(broke[1]["answered_by"], "gpt-4o", "what is recorded costs nothing");
    assert!(said.contains("--max-cost"), "{said}");
}
