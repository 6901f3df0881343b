//! Labelled examples and the files they come from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Error;

/// One customer query with the label it should be routed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The query: the last user message.
    pub text: String,
    /// Where it should go, without surrounding white space.
    pub label: String,
    /// The system message of its conversation.
    pub system: Option<String>,
    /// The turns of the conversation before the query, oldest first; mostly none.
    pub history: Vec<Turn>,
    /// Where it was read.
    pub origin: Origin,
}

impl Example {
    /// An example of a single query.
    pub fn new(text: impl Into<String>, label: impl Into<String>, origin: Origin) -> Self {
        Self { text: text.into(), label: label.into(), system: None, history: Vec::new(), origin }
    }

    /// The query with the turns before it, one a line: what makes two examples the same.
    pub fn full_text(&self) -> Cow<'_, str> {
        if self.history.is_empty() {
            return Cow::Borrowed(&self.text);
        }
        let mut full = String::new();
        for turn in &self.history {
            full.push_str(&turn.text);
            full.push('\n');
        }
        full.push_str(&self.text);
        Cow::Owned(full)
    }
}

/// One earlier message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub text: String,
}

/// Who speaks in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The customer.
    User,
    /// The model or agent that answers.
    Assistant,
}

/// The place of an example in its file; shown as `train.csv:12` or `train.parquet row 12`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file as it was named.
    pub file: Arc<Path>,
    /// The place inside it.
    pub place: Place,
}

impl Origin {
    /// A line of a text file, from 1.
    pub fn line(file: &Arc<Path>, line: u64) -> Self {
        Self { file: Arc::clone(file), place: Place::Line(line) }
    }

    /// A row of a file without lines, from 1.
    pub fn row(file: &Arc<Path>, row: u64) -> Self {
        Self { file: Arc::clone(file), place: Place::Row(row) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Line(line) => write!(f, "{}:{line}", self.file.display()),
            Place::Row(row) => write!(f, "{} row {row}", self.file.display()),
        }
    }
}

/// How a place in a file is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The line on which the row starts, from 1.
    Line(u64),
    /// The number of the row, from 1.
    Row(u64),
}

/// How a data file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON array of objects.
    JsonArray,
    /// JSON objects one after the other.
    JsonLines,
    /// A table separated by commas, semicolons or bars.
    Csv,
    /// A table separated by tabs.
    Tsv,
    /// Apache Parquet.
    Parquet,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JsonArray => "JSON array",
            Self::JsonLines => "JSON lines",
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
            Self::Parquet => "Parquet",
        })
    }
}

/// The examples of one file.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The file as it was named.
    pub path: Arc<Path>,
    /// How it is written.
    pub format: Format,
    /// The field that the text was read from.
    pub text_field: String,
    /// The field that the label was read from; for conversations the same as `text_field`.
    pub label_field: String,
    /// The rows in file order. Rows with an empty text or label are kept.
    pub examples: Vec<Example>,
    /// SHA-256 of the file, in lowercase hexadecimal.
    pub sha256: String,
}

impl Dataset {
    /// The labels, sorted, each once, without the empty one.
    pub fn labels(&self) -> Vec<String> {
        self.label_counts().into_keys().map(str::to_owned).collect()
    }

    /// Checks what training cannot do without: a text and a label in every row, two labels or more, and two
    /// examples or more of each.
    ///
    /// # Errors
    /// The first of [`Error::Empty`], [`Error::EmptyField`], [`Error::OneLabel`] and [`Error::SingleExample`] that
    /// applies.
    pub fn check_trainable(&self) -> Result<(), Error> {
        for example in &self.examples {
            for (role, value) in [("text", &example.text), ("label", &example.label)] {
                if value.trim().is_empty() {
                    return Err(Error::EmptyField { at: example.origin.clone(), role });
                }
            }
        }
        let counts = self.label_counts();
        match counts.keys().next() {
            None => return Err(Error::Empty { path: self.path.to_path_buf() }),
            Some(label) if counts.len() == 1 => {
                return Err(Error::OneLabel {
                    path: self.path.to_path_buf(),
                    label: (*label).to_owned(),
                    rows: self.examples.len(),
                });
            }
            Some(_) => {}
        }
        match self.examples.iter().find(|example| counts.get(example.label.as_str()) == Some(&1)) {
            Some(example) => {
                Err(Error::SingleExample { at: example.origin.clone(), label: example.label.clone() })
            }
            None => Ok(()),
        }
    }

    /// Rows of each label, without the empty one.
    pub fn label_counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for example in self.examples.iter().filter(|example| !example.label.is_empty()) {
            *counts.entry(example.label.as_str()).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(rows: &[(&str, &str)]) -> Dataset {
        let path: Arc<Path> = Path::new("rows.csv").into();
        let examples = (2..)
            .zip(rows)
            .map(|(line, (text, label))| Example::new(*text, *label, Origin::line(&path, line)))
            .collect();
        Dataset {
            path,
            format: Format::Csv,
            text_field: "text".into(),
            label_field: "label".into(),
            examples,
            sha256: String::new(),
        }
    }

    #[test]
    fn labels_are_sorted_and_unique() {
        let data = dataset(&[("a", "z"), ("b", "k"), ("c", "z"), ("d", "")]);
        assert_eq!(data.labels(), ["k", "z"]);
    }

    #[test]
    fn trainable_data_has_texts_labels_and_two_examples_of_each() {
        assert!(dataset(&[("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")]).check_trainable().is_ok());
        let message = |rows: &[(&str, &str)]| {
            let error = dataset(rows).check_trainable().unwrap_err();
            format!("{error} | {}", error.hint())
        };
        assert!(message(&[]).contains("no rows"));
        assert!(message(&[("a", "x"), ("  ", "y")]).starts_with("rows.csv:3: the text is empty"));
        assert!(message(&[("a", "x"), ("b", "")]).starts_with("rows.csv:3: the label is empty"));
        assert!(message(&[("a", "x"), ("b", "x")]).contains("all 2 rows have the label \"x\""));
        let single = message(&[("a", "x"), ("b", "x"), ("c", "lonely")]);
        assert!(single.starts_with("rows.csv:4: label \"lonely\""), "{single}");
        assert!(single.contains("add examples of \"lonely\""), "{single}");
    }

    #[test]
    fn full_text_holds_the_history() {
        let mut example = Example::new("and you?", "x", Origin::row(&Path::new("f").into(), 1));
        assert_eq!(example.full_text(), "and you?");
        example.history.push(Turn { role: Role::User, text: "hello".into() });
        assert_eq!(example.full_text(), "hello\nand you?");
    }
}
