//! What the tests of the binary share.
#![allow(dead_code)] // Each test binary uses its own part.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// The binary, in an empty folder and without a network.
pub(crate) fn frontdesk(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("frontdesk").expect("the binary is built with the tests");
    command.current_dir(folder).env("HF_HUB_OFFLINE", "1").env("FRONTDESK_HOME", folder.join("home"));
    command
}

/// A random model of two layers with a byte-level tokenizer.
pub(crate) fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/tiny-chat")
        .canonicalize()
        .expect("the fixture is committed")
}

/// Queries of three departments that a tiny model can tell apart.
pub(crate) fn queries(path: &Path, per_label: usize) {
    let subjects =
        [("card_lost", "lost my card"), ("fee-question", "why this fee"), ("greeting", "hello good day")];
    let mut rows = String::from("text,label\n");
    for number in 0..per_label {
        for (label, text) in subjects {
            let _ = writeln!(
                rows,
                "{text} {},{label}",
                char::from(b'a' + (number % 26) as u8).to_string().repeat(number / 26 + 1)
            );
        }
    }
    std::fs::write(path, rows).expect("the folder can be written");
}

/// What the command printed on stderr.
pub(crate) fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
