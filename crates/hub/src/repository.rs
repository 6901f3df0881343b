//! Pulling a repository: which files, in which order.

use std::path::PathBuf;

use crate::{
    cache::{INDEX, REVISION, RepositoryCache, WEIGHTS, is_commit, shards},
    client::{Client, broken, protocol},
    disk, download,
    download::Remote,
    error::{Error, Result},
    hub::Hub,
    name::{check_relative, is_gguf},
    progress::Progress,
};

/// The files of a repository at one commit.
struct Listing {
    commit: String,
    files: Vec<String>,
}

impl Listing {
    fn has(&self, file: &str) -> bool {
        self.files.iter().any(|it| it == file)
    }
}

/// Fetches the model, or the one `file`, of the repository `id`; gives the snapshot folder, or the file in it.
pub(crate) fn pull(hub: &Hub, id: &str, file: Option<&str>, progress: &mut dyn Progress) -> Result<PathBuf> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Client { source: source.into() })?;
    let pull = Pull { client: Client::new(hub, id)?, cache: RepositoryCache::new(&hub.cache, id), id };
    runtime.block_on(pull.run(file, progress))
}

/// One pull of one repository.
struct Pull<'h> {
    client: Client<'h>,
    cache: RepositoryCache,
    id: &'h str,
}

impl Pull<'_> {
    /// The ref comes last, so that a model that is whole stays found while a newer one is on its way.
    async fn run(&self, file: Option<&str>, progress: &mut dyn Progress) -> Result<PathBuf> {
        let listing = self.list().await?;
        let snapshot = self.cache.snapshot(&listing.commit);
        let path = if let Some(file) = file {
            if !listing.has(file) {
                return Err(self.no_file(file, &listing));
            }
            self.fetch(&listing.commit, &[file.to_owned()], progress).await?;
            snapshot.join(file)
        } else {
            if !listing.has("config.json") {
                return Err(self.unsuitable("config.json", &listing));
            }
            self.fetch(&listing.commit, &small_files(&listing), progress).await?;
            let weights = match (listing.has(INDEX), listing.has(WEIGHTS)) {
                (true, _) => shards(&snapshot.join(INDEX))?,
                (false, true) => vec![WEIGHTS.to_owned()],
                (false, false) => return Err(self.unsuitable("model.safetensors", &listing)),
            };
            self.fetch(&listing.commit, &weights, progress).await?;
            snapshot
        };
        self.cache.set_current(&listing.commit)?;
        Ok(path)
    }

    async fn list(&self) -> Result<Listing> {
        #[derive(serde::Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = self
            .client
            .url(["api", "models"].into_iter().chain(self.id.split('/')).chain(["revision", REVISION]));
        let what = format!("repository `{}`", self.id);
        let text = self
            .client
            .retry(&url, async || {
                let reply = self.client.get(&url, None, &what).await?;
                reply.response.bytes().await.map_err(|source| broken(&url, source))
            })
            .await?;
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|e| protocol(&url, format!("the list of files does not parse ({e})")))?;
        if !is_commit(&answer.sha) {
            return Err(protocol(&url, format!("`{}` is no commit", answer.sha)));
        }
        let files: Vec<_> = answer.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        files.iter().try_for_each(|file| check_relative(file, || format!("the repository `{}`", self.id)))?;
        Ok(Listing { commit: answer.sha, files })
    }

    /// Fetches the files that the snapshot lacks, after a look at the disk for all of them.
    async fn fetch(&self, commit: &str, files: &[String], progress: &mut dyn Progress) -> Result<()> {
        let snapshot = self.cache.snapshot(commit);
        let mut missing = Vec::new();
        for file in files.iter().filter(|file| !snapshot.join(file).exists()) {
            missing.push(self.ask(commit, file).await?);
        }
        let blobs = self.cache.blobs()?;
        let needed =
            missing.iter().fold(0, |sum: u64, remote| sum.saturating_add(remote.still_needed(&self.cache)));
        disk::require(&blobs, needed)?;
        for remote in missing {
            self.fetch_steady(commit, remote, progress).await?;
        }
        Ok(())
    }

    /// Fetches a file, anew each time that the server's copy turns out to be another one.
    async fn fetch_steady(
        &self,
        commit: &str,
        mut remote: Remote,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        const TIMES: u32 = 3;
        for _ in 0..TIMES {
            if download::fetch(&self.client, &self.cache, &remote, progress).await?
                == download::Outcome::Whole
            {
                return self.cache.link(commit, &remote.file, &remote.etag);
            }
            remote = self.ask(commit, &remote.file).await?;
        }
        Err(Error::Unsteady { repository: self.id.to_owned(), file: remote.file, times: TIMES })
    }

    /// Asks the hub for a file's `ETag` and size.
    async fn ask(&self, commit: &str, file: &str) -> Result<Remote> {
        let url = self.client.url(self.id.split('/').chain(["resolve", commit]).chain(file.split('/')));
        let what = format!("file `{file}` in `{}`", self.id);
        let facts = self.client.head(&url, &what).await?;
        let (Some(etag), Some(size), Some(told)) = (facts.etag, facts.size, facts.commit) else {
            return Err(protocol(&url, "ETag, size or X-Repo-Commit is missing"));
        };
        if told != commit {
            return Err(protocol(&url, format!("it speaks of commit `{told}`, asked for was `{commit}`")));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if etag.is_empty() || etag.starts_with('.') || !etag.bytes().all(plain) {
            return Err(protocol(&url, format!("the ETag `{etag}` cannot name a file")));
        }
        Ok(Remote { file: file.to_owned(), what, url, etag, size })
    }

    fn unsuitable(&self, missing: &'static str, listing: &Listing) -> Error {
        let ggufs = ggufs(listing);
        let hint = match ggufs.first() {
            Some(first) => format!("; it has GGUF files ({}): pull `{}:{first}`", ggufs.join(", "), self.id),
            None => String::new(),
        };
        Error::Unsuitable { repository: self.id.to_owned(), missing, hint }
    }

    fn no_file(&self, file: &str, listing: &Listing) -> Error {
        let hint = match ggufs(listing) {
            ggufs if ggufs.is_empty() => "; it has no GGUF file".to_owned(),
            ggufs => format!("; its GGUF files are {}", ggufs.join(", ")),
        };
        let url = self.client.url(self.id.split('/')).into();
        Error::NotFound { what: format!("file `{file}` in `{}`", self.id), url, status: 200, hint }
    }
}

fn ggufs(listing: &Listing) -> Vec<&str> {
    listing.files.iter().map(String::as_str).filter(|file| is_gguf(file)).collect()
}

/// All that a model needs besides its weights. The word lists are for tokenizers without a `tokenizer.json`.
fn small_files(listing: &Listing) -> Vec<String> {
    const NAMES: [&str; 5] = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        // How an encoder's outputs become one vector.
        "1_Pooling/config.json",
        INDEX,
    ];
    const WORD_LISTS: [&str; 3] = ["vocab.json", "merges.txt", "vocab.txt"];
    let words = !listing.has("tokenizer.json");
    let needed = |file: &&String| {
        NAMES.contains(&file.as_str())
            || (file.starts_with("tokenizer") && !file.contains('/'))
            || (words && WORD_LISTS.contains(&file.as_str()))
    };
    listing.files.iter().filter(needed).cloned().collect()
}
