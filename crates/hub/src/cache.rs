//! The Hugging Face cache layout of one repository.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    name::check_relative,
};

/// The revision that is pulled.
pub(crate) const REVISION: &str = "main";

/// The folders of one repository in the cache.
pub(crate) struct RepositoryCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    /// The place of `org/repo` below `cache`; nothing is created.
    pub(crate) fn new(cache: &Path, id: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self { locks: cache.join(".locks").join(&folder), root: cache.join(folder) }
    }

    /// The folder of blobs, created.
    pub(crate) fn blobs(&self) -> Result<PathBuf> {
        let blobs = self.root.join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::write(&blobs))?;
        Ok(blobs)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(crate) fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The snapshot that `refs/main` names, if it names one.
    pub(crate) fn current(&self) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.root.join("refs").join(REVISION)).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| self.snapshot(commit))
    }

    /// Lets `refs/main` name `commit`, atomically.
    pub(crate) fn set_current(&self, commit: &str) -> Result<()> {
        let refs = self.root.join("refs");
        let path = refs.join(REVISION);
        let write = || {
            fs::create_dir_all(&refs)?;
            let file = shared().tempfile_in(&refs)?;
            fs::write(file.path(), commit)?;
            file.persist(&path).map_err(|e| e.error)
        };
        write().map(drop).map_err(Error::write(&path))
    }

    /// Makes `file` of the snapshot a relative link to its blob.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let pointer = self.snapshot(commit).join(file);
        if pointer.exists() {
            return Ok(());
        }
        // snapshots/<commit>/ are two levels; each folder in the name is one more.
        let target = PathBuf::from(format!("{}blobs/{etag}", "../".repeat(1 + file.split('/').count())));
        let make = || {
            if let Some(folder) = pointer.parent() {
                fs::create_dir_all(folder)?;
            }
            match fs::remove_file(&pointer) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            match symlink(&target, &self.blob(etag), &pointer) {
                // Another process may have made the same link in this moment.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && pointer.exists() => Ok(()),
                other => other,
            }
        };
        make().map_err(Error::write(&pointer))
    }
}

/// Whether the text is a git commit, which also makes it a safe folder name.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether the folder is a model whose every weight file is there.
pub(crate) fn is_model(folder: &Path) -> bool {
    folder.join("config.json").is_file()
        && (folder.join(WEIGHTS).is_file()
            || shards(&folder.join(INDEX))
                .is_ok_and(|shards| !shards.is_empty() && shards.iter().all(|s| folder.join(s).is_file())))
}

/// The name of weights in one file.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The name of the list of weight files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The weight files that an index names, each once.
pub(crate) fn shards(index: &Path) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = fs::read(index).map_err(Error::read(index))?;
    let Index { weight_map } = serde_json::from_slice(&text)
        .map_err(|e| Error::Read { path: index.to_owned(), source: e.into() })?;
    let shards: std::collections::BTreeSet<_> = weight_map.into_values().collect();
    shards.iter().try_for_each(|file| check_relative(file, || index.display().to_string()))?;
    Ok(shards.into_iter().collect())
}

#[cfg(unix)]
fn symlink(target: &Path, _: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

/// Links need a privilege on Windows; without it the snapshot holds a copy, as the Python client's does.
#[cfg(windows)]
fn symlink(target: &Path, blob: &Path, pointer: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, pointer).or_else(|_| fs::copy(blob, pointer).map(drop))
}

/// Temporary files are made for their owner alone; a cache may be shared, so the umask alone decides.
fn shared() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_whole_only_with_every_shard() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("config.json", "{}");
        assert!(!is_model(folder.path()));
        write(INDEX, r#"{"weight_map":{"a":"x-1.safetensors","b":"x-2.safetensors","c":"x-1.safetensors"}}"#);
        write("x-1.safetensors", "");
        assert!(!is_model(folder.path()));
        write("x-2.safetensors", "");
        assert!(is_model(folder.path()));
    }

    #[test]
    fn an_index_that_climbs_out_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join(INDEX);
        fs::write(&index, r#"{"weight_map":{"a":"../../evil"}}"#).unwrap();
        assert!(matches!(shards(&index), Err(Error::UnsafeName { file, .. }) if file == "../../evil"));
    }

    #[test]
    fn links_are_relative_at_any_depth_and_heal() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, commit) = (RepositoryCache::new(folder.path(), "org/repo"), "a".repeat(40));
        fs::write(cache.blobs().unwrap().join("tag"), "bytes").unwrap();
        for file in ["config.json", "sub/deeper/x.gguf"] {
            cache.link(&commit, file, "missing").unwrap();
            assert!(!cache.snapshot(&commit).join(file).exists());
            cache.link(&commit, file, "tag").unwrap();
            assert_eq!(fs::read(cache.snapshot(&commit).join(file)).unwrap(), b"bytes");
            #[cfg(unix)]
            assert!(fs::read_link(cache.snapshot(&commit).join(file)).unwrap().is_relative());
        }
    }

    #[test]
    fn a_ref_that_is_no_commit_names_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let cache = RepositoryCache::new(folder.path(), "org/repo");
        cache.set_current("../../../etc").unwrap();
        assert_eq!(cache.current(), None);
        cache.set_current(&"b".repeat(40)).unwrap();
        assert_eq!(cache.current(), Some(cache.snapshot(&"b".repeat(40))));
    }
}
