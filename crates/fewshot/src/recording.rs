//! Answers to evaluation rows on disk as they arrive.
//!
//! The first line of the [journal](Journal) says what was asked; its hash is in the file's name, so that another model,
//! prompt or set of rows has a file of its own. Each answer is one line.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::answer::Answer;
use crate::features::Features;
use crate::journal::{self, Journal};
use crate::{Error, Result};

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
    journal: Journal,
    features: Option<Features>,
    answers: Vec<Option<Answer>>,
}

impl Recording {
    /// Opens the recording in `folder` for appending, or begins it; the folder is made when it is missing.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process writes it, [`Error::Recording`] when it is damaged, [`Error::Io`].
    pub fn open(folder: &Path, header: &Header) -> Result<Self> {
        let (journal, text) = Journal::open(folder, &Self::name_of(header))?;
        let mut recording = Self::parse(journal, &text, header)?;
        if text.is_empty() {
            recording.journal.begin(&Line::Header(header.clone()))?;
        }
        Ok(recording)
    }

    /// Reads the recording in `folder` without changing it; one that is missing has no answers.
    ///
    /// # Errors
    /// [`Error::Recording`] when it is damaged, [`Error::Io`].
    pub fn read(folder: &Path, header: &Header) -> Result<Self> {
        let (journal, text) = Journal::read(folder, &Self::name_of(header))?;
        Self::parse(journal, &text, header)
    }

    fn name_of(header: &Header) -> String {
        journal::name(&header.model, &format!("{header:?}"))
    }

    fn parse(journal: Journal, text: &str, header: &Header) -> Result<Self> {
        let mut answers = vec![None; header.count];
        let mut features = None;
        for (number, line) in (1..).zip(text.lines()) {
            let bad = |reason: String| journal.damaged(number, reason);
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
        Ok(Self { journal, features, answers })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.journal.path()
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
        self.complete().ok_or_else(|| Error::NotRecorded { path: self.path().to_owned(), answered, rows })
    }

    /// Rows that have no answer yet.
    pub(crate) fn missing(&self) -> Vec<usize> {
        (0..self.answers.len()).filter(|&row| self.answers[row].is_none()).collect()
    }

    pub(crate) fn learn(&mut self, features: Features) -> Result<()> {
        self.features = Some(features);
        self.journal.append(&Line::Features(features))
    }

    pub(crate) fn push(&mut self, answer: Answer) -> Result<()> {
        let row = answer.row;
        let line = Line::Answer(answer);
        self.journal.append(&line)?;
        if let Line::Answer(answer) = line {
            self.answers[row] = Some(answer);
        }
        Ok(())
    }

    /// Brings what was written to the disk.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.journal.sync()
    }
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
