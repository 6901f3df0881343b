//! Answers on disk as they arrive: JSON lines that are only ever appended to.
//!
//! The first line says what was asked; its hash is in the file's name, so that another model, prompt or set of rows
//! has a file of its own. Each answer is one line, handed to the system in one write: the end of this process loses
//! nothing that had arrived. At most once a second the file is also synced to the disk, so that a power cut loses at
//! most the answers of about a second, and a thousand answers do not wait a thousand times for the disk. A last line
//! without its end is what a crash left of a write; it is dropped, and its row asked again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::answer::Answer;
use crate::features::Features;
use crate::{Error, Result};

/// Time between two syncs.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The model as the endpoint names it.
    pub model: String,
    /// The endpoint's address.
    pub endpoint: String,
    /// How the examples were chosen, in words.
    pub shots: String,
    /// SHA-256 of template, labels and examples.
    pub prompt: String,
    /// SHA-256 of the rows.
    pub rows: String,
    /// Number of rows.
    pub count: usize,
}

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Header(Header),
    Features(Features),
    Answer(Answer),
}

/// The recording of one model's answers to one set of rows.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    /// `None` when it is only read.
    file: Option<File>,
    features: Option<Features>,
    answers: Vec<Option<Answer>>,
    synced: Instant,
}

impl Recording {
    /// Opens the recording in `folder` for appending, or begins it; the folder is made when it is missing.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process writes it, [`Error::Recording`] when it is damaged, [`Error::Io`].
    pub fn open(folder: &Path, header: &Header) -> Result<Self> {
        let path = Self::path_of(folder, header);
        let written = |source| Error::Io { path: path.clone(), action: "written", source };
        std::fs::create_dir_all(folder).map_err(written)?;
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(&path).map_err(written)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(written(source)),
            Ok(()) => {}
        }
        let text = read(&mut file, &path)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).map_err(written)?;
        let mut recording = Self::parse(path, &text[..whole], header)?;
        recording.file = Some(file);
        if whole == 0 {
            recording.append(&Line::Header(header.clone()))?;
            recording.sync()?;
            sync_folder(folder).map_err(|source| recording.failed(source))?;
        }
        Ok(recording)
    }

    /// Reads the recording in `folder` without changing it; one that is missing has no answers.
    ///
    /// # Errors
    /// [`Error::Recording`] when it is damaged, [`Error::Io`].
    pub fn read(folder: &Path, header: &Header) -> Result<Self> {
        let path = Self::path_of(folder, header);
        let text = match File::open(&path) {
            Ok(mut file) => read(&mut file, &path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::Io { path, action: "read", source }),
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        Self::parse(path, &text[..whole], header)
    }

    fn path_of(folder: &Path, header: &Header) -> PathBuf {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' };
        let name: String = header.model.chars().map(plain).take(80).collect();
        let hash = Sha256::digest(format!("{header:?}"));
        folder.join(format!("{}-{:.12}.jsonl", name.trim_start_matches('.'), format!("{hash:x}")))
    }

    fn parse(path: PathBuf, text: &str, header: &Header) -> Result<Self> {
        let mut answers = vec![None; header.count];
        let mut features = None;
        for (number, line) in (1..).zip(text.lines()) {
            let bad = |reason: String| Error::Recording { path: path.clone(), line: number, reason };
            let line = serde_json::from_str(line).map_err(|error| bad(format!("is damaged: {error}")))?;
            match line {
                Line::Header(found) if number == 1 && found == *header => {}
                Line::Features(found) if number > 1 => features = Some(found),
                Line::Answer(answer) if number > 1 => {
                    let row = answer.row;
                    let place = answers.get_mut(row).ok_or_else(|| bad(format!("there is no row {row}")))?;
                    if place.replace(answer).is_some() {
                        return Err(bad(format!("row {row} is answered twice")));
                    }
                }
                _ => {
                    return Err(bad(
                        "stands in the wrong place, or belongs to other rows or another prompt".into()
                    ));
                }
            }
        }
        Ok(Self { path, file: None, features, answers, synced: Instant::now() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rows that have an answer.
    pub fn answered(&self) -> usize {
        self.answers.iter().flatten().count()
    }

    /// The answers so far, in the order of the rows.
    pub fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().flatten()
    }

    /// All answers, in the order of the rows; `None` when some are missing.
    pub fn complete(&self) -> Option<Vec<Answer>> {
        self.answers.iter().cloned().collect()
    }

    /// What the endpoint was found to support.
    pub fn features(&self) -> Option<Features> {
        self.features
    }

    /// All answers, or the error that says how many there are.
    ///
    /// # Errors
    /// [`Error::NotRecorded`] when some are missing.
    pub fn require_complete(&self) -> Result<Vec<Answer>> {
        let (answered, rows) = (self.answered(), self.answers.len());
        self.complete().ok_or_else(|| Error::NotRecorded { path: self.path.clone(), answered, rows })
    }

    /// Rows that have no answer yet.
    pub(crate) fn missing(&self) -> Vec<usize> {
        (0..self.answers.len()).filter(|&row| self.answers[row].is_none()).collect()
    }

    pub(crate) fn learn(&mut self, features: Features) -> Result<()> {
        self.features = Some(features);
        self.append(&Line::Features(features))
    }

    pub(crate) fn push(&mut self, answer: Answer) -> Result<()> {
        let row = answer.row;
        let line = Line::Answer(answer);
        self.append(&line)?;
        if let Line::Answer(answer) = line {
            self.answers[row] = Some(answer);
        }
        if self.synced.elapsed() >= SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    /// Brings what was written to the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.synced = Instant::now();
        match &self.file {
            Some(file) => file.sync_data().map_err(|source| self.failed(source)),
            None => Ok(()),
        }
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let bytes = serde_json::to_vec(line).map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        });
        let written = bytes.map_err(io::Error::from).and_then(|bytes| match &mut self.file {
            Some(file) => file.write_all(&bytes),
            None => Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)),
        });
        written.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { path: self.path.clone(), action: "written", source }
    }
}

fn read(file: &mut File, path: &Path) -> Result<String> {
    let failed = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    file.read_to_end(&mut bytes).map_err(failed)?;
    // A torn last line may end inside a letter.
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    bytes.truncate(whole);
    String::from_utf8(bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// A new file's name lives in its folder, which Unix systems sync through a handle of its own.
fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Reply, Usage};

    fn header() -> Header {
        Header {
            model: "org/model:1".into(),
            endpoint: "http://h/v1".into(),
            shots: "none".into(),
            prompt: "p".into(),
            rows: "r".into(),
            count: 3,
        }
    }

    fn answer(row: usize) -> Answer {
        Answer {
            row,
            reply: Reply {
                content: Some("ä\n".into()),
                tokens: vec![("ä".into(), -0.1)],
                ..Reply::default()
            },
            usage: Usage { prompt: 5, cached: 1, completion: 2 },
            counted: false,
            seconds: 0.25,
            tries: 1,
        }
    }

    #[test]
    fn answers_survive_and_a_torn_line_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut recording = Recording::open(folder.path(), &header()).unwrap();
        recording.learn(Features::default()).unwrap();
        recording.push(answer(2)).unwrap();
        recording.push(answer(0)).unwrap();
        let path = recording.path().to_owned();
        assert!(matches!(Recording::open(folder.path(), &header()), Err(Error::InUse { .. })));
        drop(recording);
        let whole = std::fs::read(&path).unwrap();
        // A write that was cut inside the two bytes of a letter.
        let torn = [whole.clone(), b"{\"kind\":\"answer\",\"row\":1,\"reply\":{\"content\":\"\xc3".to_vec()]
            .concat();
        std::fs::write(&path, torn).unwrap();
        let mut recording = Recording::open(folder.path(), &header()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!((recording.missing(), recording.features()), (vec![1], Some(Features::default())));
        assert!(recording.complete().is_none());
        recording.push(answer(1)).unwrap();
        drop(recording);
        let answers = Recording::read(folder.path(), &header()).unwrap().complete().unwrap();
        assert_eq!(answers, [answer(0), answer(1), answer(2)]);
    }

    #[test]
    fn a_header_that_was_cut_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = Recording::open(folder.path(), &header()).unwrap().path().to_owned();
        std::fs::write(&path, "{\"kind\":\"hea").unwrap();
        Recording::open(folder.path(), &header()).unwrap().push(answer(1)).unwrap();
        assert_eq!(Recording::read(folder.path(), &header()).unwrap().answered(), 1);
    }

    #[test]
    fn another_question_has_another_file() {
        let folder = tempfile::tempdir().unwrap();
        Recording::open(folder.path(), &header()).unwrap().push(answer(0)).unwrap();
        let other = Header { prompt: "q".into(), ..header() };
        let missing = Recording::read(folder.path(), &other).unwrap();
        let message = missing.require_complete().unwrap_err().to_string();
        assert!(message.contains("0 of 3") && message.contains("--offline"), "{message}");
        assert!(!missing.path().exists(), "reading makes no file");
    }

    #[test]
    fn damage_is_named_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = {
            let mut recording = Recording::open(folder.path(), &header()).unwrap();
            recording.push(answer(0)).unwrap();
            recording.path().to_owned()
        };
        let whole = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = whole.lines().collect();
        for (text, at, reason) in [
            (format!("{}\n{{\n{}\n", lines[0], lines[1]), 2, "damaged"),
            (format!("{}\n{}\n{}\n", lines[0], lines[1], lines[1]), 3, "answered twice"),
            (format!("{}\n", lines[1]), 1, "wrong place"),
            (whole.replace("\"rows\":\"r\"", "\"rows\":\"s\""), 1, "other rows"),
            (whole.replace("\"row\":0", "\"row\":9"), 2, "no row 9"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = Recording::open(folder.path(), &header()).unwrap_err().to_string();
            assert!(message.contains(&format!(":{at}: ")) && message.contains(reason), "{message}");
        }
    }
}
