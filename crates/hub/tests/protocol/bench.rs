//! A hub, its server and an empty cache.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use hub::{Error, Hub, Progress, Pulled, Secret};
use tempfile::TempDir;

use crate::server::{COMMIT, ID, Server, TOKEN};

pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) hub: Hub,
    _folder: TempDir,
}

impl Bench {
    /// A server without files.
    pub(crate) fn empty() -> Self {
        let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
        let mut hub = Hub::from_env();
        (hub.home, hub.cache) = (folder.path().join("home"), folder.path().join("cache"));
        (hub.endpoint, hub.token, hub.offline) = (server.endpoint.clone(), None, false);
        hub.backoff.first = Duration::from_secs(1);
        hub.sleep = |wait| WAITS.with_borrow_mut(|waits| waits.push(wait));
        WAITS.take();
        Self { server, hub, _folder: folder }
    }

    /// A server with a model of `weights`, and files that no model needs.
    pub(crate) fn with_model(weights: &[u8]) -> Self {
        let bench = Self::empty();
        for file in SMALL.iter().chain(&["README.md", "pytorch_model.bin", "original/tokenizer.model"]) {
            bench.server.put(file, format!("this is {file}"), false);
        }
        bench.server.put("model.safetensors", weights, true);
        bench
    }

    /// A server with one GGUF file, on its own origin or on the hub's.
    pub(crate) fn with_gguf(bytes: &[u8], large: bool) -> Self {
        let bench = Self::empty();
        bench.server.put("m.gguf", bytes, large);
        bench
    }

    pub(crate) fn sign_in(&mut self) {
        self.hub.token = Secret::new(TOKEN);
    }

    pub(crate) fn pull(&self, name: &str) -> Result<Pulled, Error> {
        self.hub.pull(name, &mut ())
    }

    pub(crate) fn pull_gguf(&self) -> Result<Vec<u8>, Error> {
        Ok(fs::read(self.pull(&format!("{ID}:m.gguf"))?.path).unwrap())
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.hub.cache.join("models--org--repo")
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.repository().join("snapshots").join(COMMIT)
    }

    pub(crate) fn incomplete(&self, file: &str) -> PathBuf {
        self.repository().join("blobs").join(format!("{}.incomplete", self.server.etag(file)))
    }
}

/// The files besides the weights that a model needs.
pub(crate) const SMALL: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

thread_local! {
    static WAITS: RefCell<Vec<Duration>> = const { RefCell::new(Vec::new()) };
}

/// What this thread's downloads wanted to wait.
pub(crate) fn waits() -> Vec<Duration> {
    WAITS.with_borrow(Clone::clone)
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What was told: each file with its size and the bytes counted, and whether it was finished.
#[derive(Default)]
pub(crate) struct Told(pub(crate) Vec<(String, Option<u64>, u64, bool)>);

impl Progress for Told {
    fn start(&mut self, what: &str, total_bytes: Option<u64>) {
        self.0.push((what.to_owned(), total_bytes, 0, false));
    }

    fn advance(&mut self, bytes: u64) {
        self.0.last_mut().unwrap().2 += bytes;
    }

    fn finish(&mut self) {
        self.0.last_mut().unwrap().3 = true;
    }
}

/// Bytes that repeat nowhere near the sizes used here.
pub(crate) fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * i / 7) as u8).collect()
}
