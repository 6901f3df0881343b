//! A file of JSON lines that is only ever appended to.
//!
//! Each line is handed to the system in one write: the end of this process loses nothing that had arrived. At most once
//! a second the file is also synced to the disk, so that a power cut loses at most the answers of about a second, and a
//! thousand answers do not wait a thousand times for the disk. A last line without its end is what a crash left of a
//! write; it is dropped.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Time between two syncs.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// An append-only file of JSON lines, which one process writes at a time.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// `None` when it is only read.
    file: Option<File>,
    synced: Instant,
}

/// A file's name: the model's, as far as file names allow, and a hash of all that was asked.
pub(crate) fn name(model: &str, asked: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' };
    let model: String = model.chars().map(plain).take(80).collect();
    format!("{}-{:.12}.jsonl", model.trim_start_matches('.'), format!("{:x}", Sha256::digest(asked)))
}

impl Journal {
    /// Opens the file for appending, or makes it, in a folder that is made when it is missing; and its whole lines.
    pub(crate) fn open(folder: &Path, name: &str) -> Result<(Self, String)> {
        let path = folder.join(name);
        let written = |source| Error::Io { path: path.clone(), action: "written", source };
        std::fs::create_dir_all(folder).map_err(written)?;
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(&path).map_err(written)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(written(source)),
            Ok(()) => {}
        }
        let text = whole_lines(&mut file, &path)?;
        file.set_len(text.len() as u64).map_err(written)?;
        Ok((Self { path, file: Some(file), synced: Instant::now() }, text))
    }

    /// The whole lines of the file, which is not changed; none of one that is missing.
    pub(crate) fn read(folder: &Path, name: &str) -> Result<(Self, String)> {
        let path = folder.join(name);
        let text = match File::open(&path) {
            Ok(mut file) => whole_lines(&mut file, &path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::Io { path, action: "read", source }),
        };
        Ok((Self { path, file: None, synced: Instant::now() }, text))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The first line of a new file, at once on the disk.
    pub(crate) fn begin(&mut self, line: &impl Serialize) -> Result<()> {
        self.append(line)?;
        self.sync()?;
        // A new file's name lives in its folder, which Unix systems sync through a handle of its own.
        #[cfg(unix)]
        if let Some(folder) = self.path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    /// One more line.
    pub(crate) fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(line).map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        });
        let written = bytes.map_err(io::Error::from).and_then(|bytes| match &mut self.file {
            Some(file) => file.write_all(&bytes),
            None => Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)),
        });
        written.map_err(|source| self.failed(source))?;
        if self.synced.elapsed() >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    /// Brings what was written to the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.synced = Instant::now();
        match &self.file {
            Some(file) => file.sync_data().map_err(|source| self.failed(source)),
            None => Ok(()),
        }
    }

    /// The error about a line, from 1.
    pub(crate) fn damaged(&self, line: usize, reason: String) -> Error {
        Error::Recording { path: self.path.clone(), line, reason }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { path: self.path.clone(), action: "written", source }
    }
}

/// All lines that have their end.
fn whole_lines(file: &mut File, path: &Path) -> Result<String> {
    let failed = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    file.read_to_end(&mut bytes).map_err(failed)?;
    // A torn last line may end inside a letter.
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    bytes.truncate(whole);
    String::from_utf8(bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}
