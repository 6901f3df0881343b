//! What can be wrong with a model file.

use std::{io, path::PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Characters of a file's own words that an error repeats.
const MOST_SHOWN: usize = 300;

/// Why a model file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read.
    #[error("could not read `{}`", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The operating system refused to write.
    #[error("could not write `{}`", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// There is something where a new folder should go.
    #[error("`{}` is there already; name another folder, or remove it first", path.display())]
    Taken {
        /// The place.
        path: PathBuf,
    },
    /// The path holds no model in a known form.
    #[error(
        "`{}` is not a model: expected a .gguf file, or a folder with config.json and model.safetensors",
        path.display()
    )]
    NotAModel {
        /// What was opened.
        path: PathBuf,
    },
    /// The bytes break the rules of their format: the file is damaged, cut short or made to harm.
    #[error("`{}` is not a sound {format} file: {reason}; fetch it again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The format that it should have.
        format: &'static str,
        /// The rule that it breaks, and where.
        reason: String,
    },
    /// A JSON file does not parse, or lacks the fields of its kind.
    #[error("`{}` is not the JSON expected there", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        #[source]
        source: serde_json::Error,
    },
    /// A key that must be there is not.
    #[error("`{}` has no `{key}`", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The file is sound but asks for something that this program does not do.
    #[error("`{}`: `{key}` is {found}, supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting, as the file spells it.
        key: String,
        /// The value found.
        found: String,
        /// What would have been accepted.
        supported: String,
    },
    /// A tensor that the model needs is not in its files.
    #[error("`{}` has no tensor `{tensor}`", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("tensor `{tensor}` in `{}` has shape {found:?}, the configuration asks for {expected:?}", path.display())]
    Shape {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape that follows from the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's bytes do not fit its shape and type.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What does not fit.
        reason: String,
    },
    /// The tokenizer's own library refused.
    #[error("the tokenizer of `{}` failed", path.display())]
    Tokenizer {
        /// Where the tokenizer came from.
        path: PathBuf,
        /// The library's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The chat template does not parse, or failed on these messages.
    #[error("the chat template failed; it comes with the model, so check the messages and their roles first")]
    Template {
        /// The template engine's reason, with its line.
        #[source]
        source: minijinja::Error,
    },
    /// The chat template goes on and on.
    #[error("the chat template worked for more than {seconds} seconds: use a model with another template")]
    TemplateEndless {
        /// The time that it may take.
        seconds: u64,
    },
    /// The chat template made its engine panic.
    #[error("the chat template crashed its engine: use a model with another template")]
    TemplatePanic,
}

impl Error {
    /// A rule of `format` that the file at `path` breaks.
    pub(crate) fn malformed(
        path: impl Into<PathBuf>,
        format: &'static str,
        reason: impl Into<String>,
    ) -> Self {
        Self::Malformed { path: path.into(), format, reason: reason.into() }
    }

    /// A setting that is sound but not supported.
    pub(crate) fn unsupported(
        path: impl Into<PathBuf>,
        key: impl Into<String>,
        found: impl Into<String>,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            path: path.into(),
            key: key.into(),
            found: shortened(found.into()),
            supported: supported.into(),
        }
    }
}

/// What a file says, as far as an error has room for it.
fn shortened(text: String) -> String {
    match text.char_indices().nth(MOST_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
