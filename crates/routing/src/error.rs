//! What can be wrong with labelled data, each with the place and what to do about it.

use std::path::{Path, PathBuf};

use crate::example::Origin;

/// Why labelled data could not be read or cannot be trained on.
///
/// The message says what is wrong and where; [`Error::hint`] says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No file stands at the path.
    #[error("{}: no such file", path.display())]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The path is a folder.
    #[error("{}: is a folder, expected one data file", path.display())]
    IsDirectory {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The path is a pipe or a device.
    #[error("{}: is a pipe or a device, expected a file", path.display())]
    NotAFile {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The operating system could not read the file.
    #[error("{}: cannot be read", path.display())]
    Io {
        /// The path as it was given.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file of suspects does not fit the data, or is none.
    #[error("{}: line {line}: {reason}", path.display())]
    Correction {
        /// The file of suspects.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The file holds no rows.
    #[error("{}: the file holds no rows", path.display())]
    Empty {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The file is none of the formats read here.
    #[error("{}: is {found}, expected JSON, JSON lines, CSV, TSV or Parquet", path.display())]
    UnknownFormat {
        /// The path as it was given.
        path: PathBuf,
        /// What the content looks like.
        found: &'static str,
    },
    /// The text is not encoded in UTF-8.
    #[error("{}: line {line}: not UTF-8 at byte {offset}, it looks like {guess}", path.display())]
    NotUtf8 {
        /// The path as it was given.
        path: PathBuf,
        /// Line of the first wrong byte, from 1.
        line: u64,
        /// Offset of the first wrong byte in the file, from 0.
        offset: u64,
        /// The encoding it looks like, as `iconv` names it.
        guess: &'static str,
    },
    /// The JSON is broken.
    #[error("{}: line {line}, column {column}: broken JSON: {message}", path.display())]
    Json {
        /// The path as it was given.
        path: PathBuf,
        /// Line of the mistake, from 1.
        line: u64,
        /// Column of the mistake in bytes, from 1.
        column: u64,
        /// What the parser expected.
        message: String,
    },
    /// A JSON row is not an object.
    #[error("{at}: the row is {found}, expected an object such as {{\"text\": …, \"label\": …}}")]
    NotAnObject {
        /// The row.
        at: Origin,
        /// What stands there.
        found: &'static str,
    },
    /// No field has a name that is known to hold the text or the label.
    #[error("{}: no field looks like the {role}; found {}", path.display(), list(columns))]
    NoField {
        /// The path as it was given.
        path: PathBuf,
        /// `text` or `label`.
        role: &'static str,
        /// The fields found.
        columns: Vec<String>,
    },
    /// Several fields could be the text or the label.
    #[error("{}: {} could each be the {role}; found {}", path.display(), list(candidates), list(columns))]
    AmbiguousField {
        /// The path as it was given.
        path: PathBuf,
        /// `text` or `label`.
        role: &'static str,
        /// The fields that could be meant.
        candidates: Vec<String>,
        /// The fields found.
        columns: Vec<String>,
    },
    /// A row lacks a field that was named, or that the first row has.
    #[error("{at}: no field {field:?}; found {}", list(columns))]
    MissingField {
        /// The row.
        at: Origin,
        /// The field that is missing.
        field: String,
        /// The fields found.
        columns: Vec<String>,
    },
    /// A field holds something that is no text.
    #[error("{at}: field {field:?} holds {found}, expected {expected}")]
    FieldType {
        /// The row.
        at: Origin,
        /// The field.
        field: String,
        /// What stands there.
        found: &'static str,
        /// What can be read.
        expected: &'static str,
    },
    /// A conversation cannot be read as a query with its label.
    #[error("{at}: the conversation in field {field:?} {problem}")]
    Conversation {
        /// The row.
        at: Origin,
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// One row is larger than any query can be.
    #[error("{at}: the row is larger than {limit_bytes} bytes")]
    RowTooLarge {
        /// The row.
        at: Origin,
        /// The most bytes a row may have.
        limit_bytes: usize,
    },
    /// A table row has more or fewer fields than the header.
    #[error("{at}: the row has {found} fields, the header has {expected}")]
    Ragged {
        /// The row.
        at: Origin,
        /// Fields in the header.
        expected: usize,
        /// Fields in the row.
        found: usize,
    },
    /// A quoted table field is never closed.
    #[error("{at}: a quoted field starts in this row and never ends")]
    UnclosedQuote {
        /// The row.
        at: Origin,
    },
    /// A Parquet column is compressed with a codec that is not built in.
    #[error("{}: column {column:?} is compressed with {codec}, expected none, SNAPPY or ZSTD", path.display())]
    Codec {
        /// The path as it was given.
        path: PathBuf,
        /// The column.
        column: String,
        /// The codec.
        codec: String,
    },
    /// The Parquet file is damaged or uses something unknown.
    #[error("{}: damaged or unsupported Parquet: {message}", path.display())]
    Parquet {
        /// The path as it was given.
        path: PathBuf,
        /// What the Parquet library said.
        message: String,
    },
    /// A row has no text or no label.
    #[error("{at}: the {role} is empty")]
    EmptyField {
        /// The row.
        at: Origin,
        /// `text` or `label`.
        role: &'static str,
    },
    /// All rows have the same label.
    #[error("{}: all {rows} rows have the label {label:?}, expected two labels or more", path.display())]
    OneLabel {
        /// The path as it was given.
        path: PathBuf,
        /// The only label.
        label: String,
        /// Rows in the file.
        rows: usize,
    },
    /// A linear model of n-grams would take too much memory.
    #[error("a linear model of {features} n-grams and {labels} labels would have {} million weights, at most {} million are built", features * labels / 1_000_000, limit / 1_000_000)]
    LinearSize {
        /// Features of the texts.
        features: usize,
        /// Labels.
        labels: usize,
        /// Weights at most.
        limit: usize,
    },
    /// A label has a single example.
    #[error("{at}: label {label:?} has only this example, expected two or more")]
    SingleExample {
        /// The row.
        at: Origin,
        /// The label.
        label: String,
    },
}

impl Error {
    /// What to do next, in one or two sentences.
    pub fn hint(&self) -> String {
        match self {
            Self::NotFound { path } => match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) if !parent.is_dir() => {
                    format!("There is no folder {} either: check the path.", parent.display())
                }
                _ => "Check the spelling, and the folder that the command runs in.".into(),
            },
            Self::IsDirectory { path } => {
                format!("Name a file inside it, for example {}.", path.join("train.jsonl").display())
            }
            Self::NotAFile { .. } => "Save the data to a file first: it is read more than once.".into(),
            Self::Io { .. } => "Check that the file is readable by this user and the disk is in order.".into(),
            Self::Empty { .. } => "Add rows such as {\"text\": \"Where is my card?\", \"label\": \"cards\"}, one a line.".into(),
            Self::UnknownFormat { .. } => {
                "Unpack an archive, or export a spreadsheet as CSV in UTF-8, and name the result.".into()
            }
            Self::NotUtf8 { path, guess, .. } => {
                let path = path.display();
                format!("Convert it: iconv -f {guess} -t UTF-8 {path} > {path}.utf8")
            }
            Self::Json { .. } => "Correct the file there, or write it again with a JSON library.".into(),
            Self::NotAnObject { .. } => {
                "Write one object a row: JSON lines, or one JSON array of objects.".into()
            }
            Self::NoField { .. } | Self::AmbiguousField { .. } => {
                "Say which fields to use: --text-field NAME --label-field NAME. A table needs a header line.".into()
            }
            Self::MissingField { .. } => {
                "Correct the row, or name a field that every row has: --text-field NAME --label-field NAME.".into()
            }
            Self::FieldType { .. } => {
                "Correct the row, or name other fields: --text-field NAME --label-field NAME.".into()
            }
            Self::Conversation { .. } => {
                "Write the query as the last user message and the label as the assistant message after it.".into()
            }
            Self::RowTooLarge { .. } => {
                "Shorten or remove the row. If it should be small, look for a quote or bracket that is never closed.".into()
            }
            Self::Ragged { .. } => {
                "Put fields that hold the separator or a line break in double quotes, and double the quotes inside them.".into()
            }
            Self::UnclosedQuote { .. } => "Close the field with a double quote, or double the quote that opens it.".into(),
            Self::Codec { path, .. } => format!(
                "Write it again with another codec: python3 -c \"import pandas; pandas.read_parquet('{0}').to_parquet('{0}.zstd', compression='zstd')\"",
                path.display()
            ),
            Self::Parquet { .. } => "Fetch or write the file again; if other tools read it, export it as JSON lines.".into(),
            Self::Correction { .. } => {
                "Name the data that the suspects were found in, unchanged, and edit only `corrected` and `remove`.".into()
            }
            Self::EmptyField { .. } => "Fill it in or remove the row; `check` lists all such rows.".into(),
            Self::LinearSize { .. } => {
                "Train on an encoder instead: --method head --base minilm-l6; or merge labels.".into()
            }
            Self::OneLabel { .. } => {
                "Add examples of the other labels, or name another field: --label-field NAME.".into()
            }
            Self::SingleExample { label, .. } => format!(
                "One example cannot be both learned from and tested on: add examples of {label:?}, merge it into another label, or remove it."
            ),
        }
    }

    /// The error for an operating system's refusal, told apart by what the user can do about it.
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::NotFound { path },
            std::io::ErrorKind::IsADirectory => Self::IsDirectory { path },
            _ => Self::Io { path, source },
        }
    }
}

/// Names in quotes, the first twenty of them.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return "none".into();
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("{name:.60?}")).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
