//! A run, rows to judge it on, and an endpoint that answers them.
#![allow(dead_code)] // Each test binary uses its own part.

use std::fmt::Write;
use std::path::Path;
use std::process::Output;

use self::server::Action;
use crate::common::{frontdesk, queries, stderr, tiny_model};

#[path = "../../../fewshot/tests/endpoint/server.rs"]
pub(crate) mod server;

/// No test may find it anywhere but in a request's header.
pub(crate) const KEY: &str = "sk-never-to-be-seen-0123456789";
const LABELS: [&str; 3] = ["card_lost", "fee-question", "greeting"];
pub(crate) const ROWS: usize = 120;

/// A trained run and evaluation rows that end with their label.
pub(crate) fn prepare(folder: &Path) {
    queries(&folder.join("data.csv"), 20);
    let mut rows = String::from("text,label\n");
    for row in 0..ROWS {
        let label = LABELS[row % 3];
        let _ = writeln!(rows, "evaluation row number {row} wants {label},{label}");
    }
    std::fs::write(folder.join("test.csv"), rows).unwrap();
    let mut command = frontdesk(folder);
    command.args(["train", "--data", "data.csv", "--out", "run", "--epochs", "1", "--rank", "4", "--base"]);
    let output = command.arg(tiny_model()).args(["--precision", "f32"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

pub(crate) const EVAL: [&str; 11] = [
    "eval",
    "--model",
    "run",
    "--data",
    "test.csv",
    "--json",
    "--report",
    "report",
    "--precision",
    "f32",
    "--against",
];

/// `eval --against` this model.
pub(crate) fn eval(folder: &Path, model: &str, flags: &[&str]) -> Output {
    let mut command = frontdesk(folder);
    command.env("OPENAI_API_KEY", KEY).args(EVAL).arg(model).args(flags);
    command.output().unwrap()
}

/// Answers with the label that the row names; refuses the first row and shouts in the second.
pub(crate) fn right(question: &server::Question) -> Action {
    let label = question.query().rsplit(' ').next().unwrap();
    if question.query().contains("number 0 ") {
        let mut body = server::completion("", question);
        body["choices"][0]["message"]["refusal"] = "I will not.".into();
        return Action::Body(body);
    }
    let label = if question.query().contains("number 1 ") { label.to_uppercase() } else { label.to_owned() };
    Action::Say(format!("{{\"label\":\"{label}\"}}"))
}

/// Answers in the recordings.
pub(crate) fn recorded(folder: &Path) -> usize {
    let Ok(files) = std::fs::read_dir(folder.join("run/fewshot")) else { return 0 };
    let text =
        |file: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(file.unwrap().path()).unwrap();
    files.map(|file| text(file).matches("\"kind\":\"answer\"").count()).sum()
}

/// All that is recorded in the run.
pub(crate) fn recordings(path: &Path) -> String {
    let files = std::fs::read_dir(path.join("run/fewshot")).unwrap();
    files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}
