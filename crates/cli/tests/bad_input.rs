//! Bad input ends in exit code 2 with one clear message and a hint, and leaves nothing half-written.
#![allow(clippy::unwrap_used)] // A test may fail loudly anywhere, also in its helpers.

mod common;

use common::{frontdesk, queries, stderr, tiny_model};

/// Trains on a file with this content and returns what was said; nothing may be left behind.
fn refuse(content: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data.file"), content).unwrap();
    let base = tiny_model();
    let mut command = frontdesk(folder.path());
    command.args(["train", "--data", "data.file", "--out", "run", "--base"]).arg(base);
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("error: ") && said.contains("\nhint: "), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(output.stdout.is_empty());
    assert!(!folder.path().join("run").exists(), "a refused run must leave nothing behind");
    said
}

#[test]
fn broken_json_names_line_and_column() {
    let said = refuse(b"{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\", \"label\": }\n");
    assert!(said.contains('2'), "{said}");
}

#[test]
fn files_that_cannot_be_trained_on() {
    refuse(b"");
    refuse(b"text,label\nhello,a\nworld,a\n");
    refuse(b"text,label\nhello,a\nworld,a\nonce,b\n");
    refuse(b"first,second\nhello,a\nworld,b\n");
    refuse(b"text,label\ncaf\xe9,a\nworld,b\n");
    refuse(b"text,label\n,a\nb,a\nc,b\nd,b\n");
    let mut long = b"text,label\nhello,a\n\"".to_vec();
    long.extend(std::iter::repeat_n(b'x', 50 << 20));
    long.extend(b"\",b\n");
    refuse(&long);
}

#[test]
fn missing_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["train", "--data", "nowhere.csv"][..],
        &["check", "nowhere.csv"],
        &["route", "--model", "nowhere", "hello"],
        &["eval", "--model", "nowhere", "--data", "nowhere.csv"],
        &["train", "--resume", "--out", "nowhere"],
    ] {
        let output = frontdesk(folder.path()).args(arguments).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("nowhere") && said.contains("hint: "), "{arguments:?}: {said}");
    }
}

#[test]
fn flags_that_make_no_sense() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 4);
    for flags in [
        &["--lr", "-1"][..],
        &["--rank", "0"],
        &["--targets", "q_proj,nose"],
        &["--epochs", "nan"],
        &["--max-steps", "0"],
        &["--max-tokens", "0"],
        &["--target-precision", "97"],
        &["--warm-up", "5"],
        &["--checkpoint-seconds", "inf"],
        &["--precision", "int8"],
    ] {
        let mut command = frontdesk(folder.path());
        command.args(["train", "--data", "data.csv", "--base"]).arg(tiny_model()).args(flags);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", stderr(&output));
        assert!(!folder.path().join("runs").exists());
    }
}

#[test]
fn a_config_file_is_read_and_its_mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 4);
    let config = folder.path().join("frontdesk.toml");
    std::fs::write(&config, "[check]\njson = true\n").unwrap();
    let output = frontdesk(folder.path()).args(["check", "data.csv"]).output().unwrap();
    assert!(output.stdout.starts_with(b"{"), "the file's flag must count");
    for (text, named) in
        [("[chek]\n", "chek"), ("[check]\njsn = true\n", "jsn"), ("[check\n", "frontdesk.toml")]
    {
        std::fs::write(&config, text).unwrap();
        let output = frontdesk(folder.path()).args(["check", "data.csv"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(named), "{}", stderr(&output));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_no_panic() {
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    queries(&folder.path().join("data.csv"), 4);
    let run = |stdout: Stdio, stderr: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_frontdesk"));
        command.current_dir(folder.path()).args(["check", "data.csv", "--suspects", "suspects.jsonl"]);
        command.stdout(stdout).stderr(stderr).output().unwrap()
    };
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let output = run(full(), Stdio::piped());
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("standard output cannot be written"), "{}", stderr(&output));
    // The words are lost, the work is not.
    assert_eq!(run(Stdio::null(), full()).status.code(), Some(0));
    assert!(folder.path().join("suspects.jsonl").exists());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = run(writer.into(), Stdio::piped());
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (Some(0), ""),
        "as when `head` has seen enough"
    );
}

#[test]
fn files_that_cannot_be_written_are_named_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    queries(&path.join("data.csv"), 4);
    let train = ["train", "--method", "linear", "--data", "data.csv", "--out", "run"];
    assert!(frontdesk(path).args(train).output().unwrap().status.success());
    let eval = |flags: &[&str]| {
        let mut command = frontdesk(path);
        command.args(["eval", "--model", "run", "--data", "data.csv"]).args(flags);
        command.output().unwrap()
    };
    for flags in [["--report", "data.csv"], ["--predictions", "data.csv/rows.jsonl"]] {
        let output = eval(&flags);
        let said = stderr(&output);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
        assert!(said.contains("could not write") && said.contains("hint: "), "{said}");
    }
    assert!(eval(&["--predictions", "new/folder/rows.jsonl"]).status.success());
    assert!(path.join("new/folder/rows.jsonl").exists());
}

#[test]
fn rows_that_say_nothing_about_a_run_calibrate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    queries(&path.join("data.csv"), 4);
    std::fs::write(path.join("other.csv"), "text,label\nhello,zebra\n").unwrap();
    let train = ["train", "--method", "linear", "--data", "data.csv", "--out", "run"];
    assert!(frontdesk(path).args(train).output().unwrap().status.success());
    let before = std::fs::read(path.join("run/frontdesk.json")).unwrap();
    for (data, expected) in [("other.csv", "`card_lost`"), ("data.csv", "knows by heart")] {
        let output = frontdesk(path).args(["calibrate", "--model", "run", "--data", data]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    assert_eq!(std::fs::read(path.join("run/frontdesk.json")).unwrap(), before);
}
