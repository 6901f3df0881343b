//! Merged weights that are kept from one process to the next, and what happens to them.
#![allow(clippy::unwrap_used)] // A test may fail loudly anywhere.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{frontdesk, queries, stderr, tiny_model};

fn train(folder: &Path, out: &str, seed: &str) {
    let mut command = frontdesk(folder);
    command.args(["train", "--out", out, "--epochs", "2", "--batch", "8", "--lr", "0.01", "--rank", "4"]);
    command.args(["--data", "data.csv", "--seed", seed, "--base"]).arg(tiny_model());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

fn route(folder: &Path, run: &str) -> Vec<u8> {
    let output =
        frontdesk(folder).args(["route", "--json", "--model", run, "lost my card c"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output.stdout
}

/// The files with this ending.
fn kept(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join("home/packed")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
}

#[test]
fn what_is_kept_gives_the_same_answer_and_is_written_anew_when_it_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    queries(&folder.join("data.csv"), 20);
    train(folder, "run", "0");
    let answer = route(folder, "run");
    let [packed, hash] = ["packed", "sha256"].map(|ending| kept(folder, ending).pop().unwrap());
    let written = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let (bytes, before) = (fs::read(&packed).unwrap(), written(&packed));
    assert_eq!(route(folder, "run"), answer, "mapped");
    assert_eq!(written(&packed), before, "it is not written twice");

    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    for broken in [&bytes[..bytes.len() / 2], &[], &changed, &[&bytes[..], &[0]].concat()] {
        fs::write(&packed, broken).unwrap();
        assert_eq!(route(folder, "run"), answer);
        assert!(fs::read(&packed).unwrap() == bytes, "written anew");
    }
    for path in [&packed, &hash] {
        fs::remove_file(path).unwrap();
        assert_eq!(route(folder, "run"), answer);
        fs::write(path, "torn").unwrap();
        assert_eq!(route(folder, "run"), answer);
    }
    assert!(fs::read(&packed).unwrap() == bytes);

    // Another run, and the first one anew in the same place, are not taken for it.
    train(folder, "other", "1");
    let other = route(folder, "other");
    assert_ne!(other, answer);
    fs::rename(folder.join("run"), folder.join("first")).unwrap();
    fs::rename(folder.join("other"), folder.join("run")).unwrap();
    assert_eq!(route(folder, "run"), other);
    assert_eq!(route(folder, "first"), answer);
    assert_eq!(kept(folder, "packed").len(), 2);
}

#[test]
fn two_processes_may_keep_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    queries(&folder.join("data.csv"), 20);
    train(folder, "run", "0");
    let start = || {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("frontdesk"));
        command.current_dir(folder).env("FRONTDESK_HOME", folder.join("home")).env("HF_HUB_OFFLINE", "1");
        command.args(["route", "--json", "--model", "run", "lost my card c"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    let children = [start(), start(), start()];
    let answers = children.map(|child| child.wait_with_output().unwrap().stdout);
    assert!(answers.iter().all(|answer| *answer == route(folder, "run")), "{answers:?}");
    let names: Vec<PathBuf> =
        fs::read_dir(folder.join("home/packed")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}
