//! Why a baseline could not be asked, and what to do about it.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a baseline could not be asked. No message holds a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text names no model at an address.
    #[error("`{text}`: {reason}; expected MODEL, MODEL@URL or MODEL@URL#VARIABLE")]
    Spec {
        /// The model or the variable.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The endpoint needs a key and the environment has none.
    #[error("{endpoint} needs a key: set {variable}, or name a server of your own with MODEL@URL")]
    NoKey {
        /// Who needs it.
        endpoint: String,
        /// The variable that would hold it.
        variable: String,
    },
    /// The key holds a character that no header can hold. The key is not shown.
    #[error(
        "the key in {variable} holds a line break or another character that no header can hold: set it anew"
    )]
    MalformedKey {
        /// The variable.
        variable: String,
    },
    /// The runtime or the client could not start.
    #[error("could not start the network client")]
    Client {
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The system refused to read or write.
    #[error("`{}` could not be {action}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// `read` or `written`.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The prompt template does not parse or failed.
    #[error("the prompt template `{name}` failed")]
    Template {
        /// The file, or `built in`.
        name: String,
        /// The reason, with the line.
        #[source]
        source: minijinja::Error,
    },
    /// The prompt template hides the query from the model.
    #[error(
        "the prompt template `{name}` does not show the query: it must contain {{{{ query }}}} in its block `user`"
    )]
    NoQuery {
        /// The file.
        name: String,
    },
    /// An example would show the model an evaluation row.
    #[error(
        "{what} is a near copy of the evaluation row {row}: the model would be told the answer; take it out, or \
         evaluate on other rows"
    )]
    Leak {
        /// The example or the line of the template.
        what: String,
        /// Where the row stands.
        row: String,
    },
    /// A listed example is not among the training rows.
    #[error("the example {shot} is not among the training rows with its label: list training rows only")]
    NotTraining {
        /// Where the example stands.
        shot: String,
    },
    /// The connection broke.
    #[error("the connection to {url} broke")]
    Network {
        /// Who was asked.
        url: String,
        /// How it broke.
        #[source]
        source: reqwest::Error,
    },
    /// An HTTP status that is no answer.
    #[error("{url} answered {status}{message}")]
    Status {
        /// Who was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's words, with a colon before them, or nothing.
        message: String,
    },
    /// The server refused for good.
    #[error("{url} refused with status {status}{message}: {advice}")]
    Refused {
        /// Who was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's words, with a colon before them, or nothing.
        message: String,
        /// What to do.
        advice: &'static str,
    },
    /// The body is no chat completion.
    #[error("{url} answered with no chat completion: {reason}")]
    Protocol {
        /// Who was asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server asks for a longer wait than is reasonable.
    #[error(
        "{url} answered {status} and asks to wait {wait_s} s: run the same command again later, it goes on where it stopped"
    )]
    Busy {
        /// Who was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The wait in seconds.
        wait_s: u64,
    },
    /// Every try failed.
    #[error("{url} failed {tries} times in a row: run the same command again, it goes on where it stopped")]
    GaveUp {
        /// Who was asked.
        url: String,
        /// How often.
        tries: u32,
        /// The last failure.
        #[source]
        source: Box<Error>,
    },
    /// The recording is not what was written.
    #[error("{}:{line}: {reason}; move the file away to ask anew", path.display())]
    Recording {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Another process writes the recording.
    #[error("`{}` is being written by another process: wait for it to end", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The network was ruled out and the recording is not complete.
    #[error(
        "`{}` holds {answered} of {rows} answers, and offline none can be asked for: run once without --offline, with \
         the same model, prompt and rows",
        path.display()
    )]
    NotRecorded {
        /// The file, existing or not.
        path: PathBuf,
        /// Answers in it.
        answered: usize,
        /// Answers needed.
        rows: usize,
    },
    /// The price file cannot be understood.
    #[error("`{name}` is no price file: {reason}")]
    Prices {
        /// The file, or `built in`.
        name: String,
        /// What is wrong, with the line.
        reason: String,
    },
    /// A budget was set for a model without a price.
    #[error(
        "there is no price for `{model}`, so a budget cannot be kept: add [model.\"{model}\"] to the price file, or leave --max-cost out"
    )]
    NoPrice {
        /// The model.
        model: String,
    },
}
