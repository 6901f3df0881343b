//! Answers to routed queries on disk as they arrive, so that the same query is paid for once.
//!
//! A [journal](Journal) like that of an evaluation, without an end. Of a query it holds the SHA-256 alone: what
//! customers write stays where it was.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::answer::{Answer, Outcome};
use crate::chat::Usage;
use crate::endpoint::Endpoint;
use crate::journal::{self, Journal};
use crate::kept::QueryPrompt;
use crate::reading::LabelReader;

/// Who is asked, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    model: String,
    endpoint: String,
    /// SHA-256 of the prompt and the labels.
    prompt: String,
}

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Header(Header),
    Query {
        /// SHA-256 of its text.
        sha256: String,
        answer: Answer,
    },
}

/// What is known of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Known {
    pub(crate) outcome: Outcome,
    pub(crate) usage: Usage,
    pub(crate) counted: bool,
    pub(crate) seconds: f64,
}

/// The recording of one model's answers to routed queries.
#[derive(Debug)]
pub(crate) struct Queries {
    journal: Journal,
    known: HashMap<String, Known>,
}

impl Queries {
    /// Opens the recording in `folder`, or begins it.
    pub(crate) fn open(folder: &Path, endpoint: &Endpoint, prompt: &QueryPrompt) -> Result<Self> {
        let header = Header {
            model: endpoint.model.clone(),
            endpoint: endpoint.address(),
            prompt: prompt.sha256().to_owned(),
        };
        let name = format!("routed-{}", journal::name(&header.model, &format!("{header:?}")));
        let (mut journal, text) = Journal::open(folder, &name)?;
        let reader = LabelReader::new(prompt.labels());
        let mut known = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let bad = |reason: String| journal.damaged(number, reason);
            let line = serde_json::from_str(line).map_err(|error| bad(format!("is damaged: {error}")))?;
            match line {
                Line::Header(found) if number == 1 && found == header => {}
                Line::Query { sha256, answer } if number > 1 => {
                    known.insert(sha256, Known::of(&answer, &reader));
                }
                _ => return Err(bad("stands in the wrong place, or belongs to another prompt".into())),
            }
        }
        if text.is_empty() {
            journal.begin(&Line::Header(header))?;
        }
        Ok(Self { journal, known })
    }

    /// What was answered to this text before.
    pub(crate) fn known(&self, text: &str) -> Option<Known> {
        self.known.get(&hash(text)).copied()
    }

    /// How many texts have an answer.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn push(&mut self, text: &str, answer: Answer, known: Known) -> Result<()> {
        let sha256 = hash(text);
        self.journal.append(&Line::Query { sha256: sha256.clone(), answer })?;
        self.known.insert(sha256, known);
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> Result<()> {
        self.journal.sync()
    }
}

impl Known {
    pub(crate) fn of(answer: &Answer, reader: &LabelReader<'_>) -> Self {
        let Answer { reply, usage, counted, seconds, .. } = answer;
        Self { outcome: reader.read(reply).0, usage: *usage, counted: *counted, seconds: *seconds }
    }
}

fn hash(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
}
