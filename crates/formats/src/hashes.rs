//! Hashes of large files, remembered from one process to the next.
//!
//! A file is taken for unchanged while its device, inode, size and both its times are the same. The second of these
//! times moves with every write and no program can set it back, so an edit that restores the first is seen as well.
//! Where the system has no such times, every hash is computed anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::store;

/// Files below this size are hashed in less time than a memory is worth.
const SMALLEST: u64 = 1 << 20;
/// Nanoseconds that a file must have been left alone: a later write then surely has another time.
const SETTLED: i128 = 2_000_000_000;

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Remembers the hashes of large files in `folder` from now on; the first call counts.
pub fn remember_hashes(folder: PathBuf) {
    FOLDER.get_or_init(|| folder);
}

/// The hash of the file at `path`: the remembered one, or else what `compute` finds.
pub(crate) fn remembered<E>(path: &Path, compute: impl FnOnce() -> Result<String, E>) -> Result<String, E> {
    match FOLDER.get() {
        Some(folder) => remembered_in(folder, path, SETTLED, compute),
        None => compute(),
    }
}

fn remembered_in<E>(
    folder: &Path,
    path: &Path,
    settled: i128,
    compute: impl FnOnce() -> Result<String, E>,
) -> Result<String, E> {
    let Some((place, stamp)) = path.canonicalize().ok().and_then(|whole| {
        let place = folder.join(store::sha256_hex(whole.as_os_str().as_encoded_bytes()));
        Some((place, stamp(&whole, settled)?))
    }) else {
        return compute();
    };
    let known = fs::read_to_string(&place).unwrap_or_default();
    if let Some((old, hash)) = known.trim_end().rsplit_once(' ')
        && old == stamp
        && hash.len() == 64
    {
        return Ok(hash.to_owned());
    }
    let hash = compute()?;
    // A memory that cannot be written costs time at the next start, nothing else.
    if self::stamp(path, settled).is_some_and(|after| after == stamp) && fs::create_dir_all(folder).is_ok() {
        let _ = store::write_atomically(&place, format!("{stamp} {hash}\n").as_bytes());
    }
    Ok(hash)
}

/// What changes when the file does; `None` when it is small, or was written just now.
#[cfg(unix)]
fn stamp(path: &Path, settled: i128) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let file = fs::metadata(path).ok()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos();
    let changed = i128::from(file.ctime()) * 1_000_000_000 + i128::from(file.ctime_nsec());
    let settled = i128::try_from(now).ok()? - changed >= settled;
    (file.is_file() && file.size() >= SMALLEST && settled).then(|| {
        format!(
            "{} {} {} {} {} {changed}",
            file.dev(),
            file.ino(),
            file.size(),
            file.mtime(),
            file.mtime_nsec()
        )
    })
}

#[cfg(not(unix))]
fn stamp(_: &Path, _: i128) -> Option<String> {
    None
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    /// Hashes the file through the memory in `folder`; the second is whether it was computed.
    fn hash(folder: &Path, path: &Path, settled: i128) -> (String, bool) {
        let mut computed = false;
        let found = remembered_in(folder, path, settled, || {
            computed = true;
            std::io::Result::Ok(store::sha256_hex(&fs::read(path)?))
        });
        (found.unwrap(), computed)
    }

    #[test]
    fn a_file_is_hashed_once_and_again_when_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memory) = (folder.path().join("file"), folder.path().join("memory"));
        for size in [2 << 20, (2 << 20) + 1] {
            let bytes = vec![1u8; size];
            fs::write(&file, &bytes).unwrap();
            assert_eq!(hash(&memory, &file, 0), (store::sha256_hex(&bytes), true));
            assert_eq!(hash(&memory, &file, 0), (store::sha256_hex(&bytes), false));
        }
        let known = fs::read_dir(&memory).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&known).unwrap();
        for torn in ["", "torn", &text[..text.len() - 9]] {
            fs::write(&known, torn).unwrap();
            assert!(hash(&memory, &file, 0).1);
        }
    }

    #[test]
    fn a_file_written_just_now_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memory) = (folder.path().join("file"), folder.path().join("memory"));
        for byte in [1, 2] {
            let bytes = vec![byte; 2 << 20];
            fs::write(&file, &bytes).unwrap();
            assert_eq!(hash(&memory, &file, 3600 * SETTLED), (store::sha256_hex(&bytes), true));
        }
        assert!(!memory.exists());
    }
}
