//! `train_log.jsonl`: how a training went, for people and plots.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use formats::store;

use crate::{Error, Result};

/// `train_log.jsonl`: a line a step and a validation.
pub(crate) struct Log {
    file: std::fs::File,
    path: std::path::PathBuf,
    begun: Instant,
}

impl Log {
    /// Opens the log; of a resumed run, the lines after its checkpoint are dropped.
    pub(crate) fn open(path: &Path, steps: u64) -> Result<Self> {
        let step_of = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
        let old = std::fs::read_to_string(path).unwrap_or_default();
        let kept: String = old
            .lines()
            .filter(|line| step_of(line).is_some_and(|step| step <= steps))
            .flat_map(|line| [line, "\n"])
            .collect();
        store::write_atomically(path, kept.as_bytes())?;
        let failed = |source| Error::Io { path: path.to_path_buf(), action: "written", source };
        let file = std::fs::OpenOptions::new().append(true).open(path).map_err(failed)?;
        Ok(Self { file, path: path.to_path_buf(), begun: Instant::now() })
    }

    /// Since this process began, to the millisecond.
    pub(crate) fn seconds(&self) -> f64 {
        (self.begun.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
    }

    pub(crate) fn write(&mut self, line: &serde_json::Value) -> Result<()> {
        writeln!(self.file, "{line}").map_err(|source| Error::Io {
            path: self.path.clone(),
            action: "written",
            source,
        })
    }
}
