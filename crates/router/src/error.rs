//! What can go wrong between a data set and an answer.

use std::path::PathBuf;

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a data set and an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The examples are at fault.
    #[error(transparent)]
    Data(#[from] routing::Error),
    /// The model's files are at fault.
    #[error(transparent)]
    Files(#[from] formats::Error),
    /// The engine could not do it.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The base model has no chat template.
    #[error("the base model `{model}` has no chat template")]
    NoTemplate {
        /// Its name.
        model: String,
    },
    /// The template does what a frozen prompt cannot follow.
    #[error("the chat template of `{model}` {problem}")]
    Template {
        /// The model's name.
        model: String,
        /// What it does.
        problem: &'static str,
    },
    /// A run that has no export of this kind.
    #[error("there is no export as `{target}`: {problem}")]
    Export {
        /// As `--to` spells it.
        target: &'static str,
        /// Why, and what to do instead.
        problem: String,
    },
    /// Data that is not what the run was trained on.
    #[error("{}: is not the file that the run was trained on", path.display())]
    OtherData {
        /// The file.
        path: PathBuf,
    },
    /// An observer had the training stopped.
    #[error("the training was stopped")]
    Stopped,
    /// A file of a linear model does not hold one.
    #[error("{}: is no linear model: {problem}", path.display())]
    Linear {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A file of counted tokens does not hold them.
    #[error("{}: holds no counts of tokens in labels; without its line in `files` of frontdesk.json the run works as well, but slower", path.display())]
    Draft {
        /// The file.
        path: PathBuf,
    },
    /// There is a run in the way.
    #[error("{}: there is already a run in this folder", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// There is nothing to go on with.
    #[error("{}: there is no interrupted run in this folder", path.display())]
    NothingToResume {
        /// The folder.
        path: PathBuf,
    },
    /// The training has not come to its end.
    #[error("{}: the training of this run was interrupted", path.display())]
    Unfinished {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is no run folder.
    #[error("{}: is not a run folder, it has no frontdesk.json", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has another format.
    #[error("{}: has format {found}, expected {expected}", path.display())]
    Format {
        /// `frontdesk.json`.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// What this version reads.
        expected: u32,
    },
    /// A file of the run folder is not the one that was written.
    #[error("{}: its SHA-256 is {found}, frontdesk.json says {expected}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// As recorded.
        expected: String,
        /// As read.
        found: String,
    },
    /// A file that belongs to the run is not there.
    #[error("{}: is missing, frontdesk.json lists it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The base model is another than the run was trained on.
    #[error("{}: is not the base model of this run: its SHA-256 is {found}, expected {expected}", path.display())]
    WrongBase {
        /// The base model's file.
        path: PathBuf,
        /// As recorded.
        expected: String,
        /// As read.
        found: String,
    },
    /// There is nothing to calibrate on.
    #[error("{}: has no rows to calibrate on", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
    },
    /// No large model was chosen to stand behind the run, or its prompt was not kept.
    #[error("{}: has no large model to ask", path.display())]
    NoCascade {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{}: cannot be {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: `read`, `written`, `copied`.
        action: &'static str,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file of the run folder could not be understood.
    #[error("{}: is not what this version of frontdesk writes", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        #[source]
        source: serde_json::Error,
    },
    /// A run is resumed with other data or another base model.
    #[error("the run cannot go on: {what} changed since it began")]
    PlanChanged {
        /// What changed.
        what: &'static str,
    },
    /// A checkpoint file that cannot be used.
    #[error("{}: the checkpoint cannot be read: {problem}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another process trains in the folder.
    #[error("{}: another process is training in this folder", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
}

impl Error {
    /// What to do next, when there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Data(error) => return Some(error.hint()),
            Self::NoTemplate { .. } => {
                "use the model's instruct version, or a folder whose tokenizer_config.json has a chat_template"
            }
            Self::Occupied { .. } => {
                "name another folder with --out, or delete this one first; an interrupted run goes on with --resume"
            }
            Self::NothingToResume { .. } => "leave --resume away to start a new run",
            Self::Unfinished { .. } => "finish it with `frontdesk train --resume --out FOLDER`",
            Self::NotARun { .. } => "name the folder that `frontdesk train --out` wrote",
            Self::Format { .. } => "use the version of frontdesk that wrote it, or train anew",
            Self::Changed { .. } | Self::Missing { .. } => {
                "copy the whole run folder again from where it was trained"
            }
            Self::NoCascade { .. } => {
                "choose one with `frontdesk eval --against MODEL --cascade best`; recorded answers are used again"
            }
            Self::WrongBase { .. } => "name the right file or folder with --base",
            Self::Json { .. } => {
                "copy it again from where it was written, or use the version of frontdesk that wrote it"
            }
            Self::Checkpoint { .. } => "delete the folder and train anew",
            Self::Busy { .. } => "wait for it to end, or name another folder with --out",
            Self::PlanChanged { .. } => "put the old files back, or start a new run in another folder",
            Self::Engine(engine::Error::Diverged { .. }) => "try a lower --lr",
            Self::Engine(engine::Error::Memory { fit: None, .. }) => {
                "free memory, try --recompute or --method lora, lower --max-tokens, or take a smaller base model or one in 4 bits"
            }
            Self::Engine(engine::Error::Memory { fit: Some(fit), .. } | engine::Error::Room { fit, .. }) => {
                return Some(format!(
                    "--rows-per-pass {fit}, which changes the result by rounding alone, or --recompute, which changes nothing; or free memory"
                ));
            }
            Self::Engine(engine::Error::Recompute) => "leave --recompute away",
            Self::Engine(engine::Error::TooLong { .. }) => {
                "shorten the text, or lower --max-tokens in training"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
