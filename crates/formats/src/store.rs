//! Files written whole or not at all, and their hashes.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Error, Result, hashes};

/// Writes `bytes` to `path` so that a crash at any moment leaves either the old file or the new one.
///
/// The bytes go to a temporary file in the same folder, which is synced and then renamed over `path`.
///
/// # Errors
/// [`Error::Write`] when the folder does not exist or the system refuses; `path` is then as it was.
pub fn write_atomically(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomically_with(path.as_ref(), |file| fs::write(file, bytes))
}

/// [`write_atomically`] for what `write` puts into the temporary file whose path it is given.
///
/// # Errors
/// As there, and [`Error::Write`] when `write` fails.
pub fn write_atomically_with(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    replace(path, write).map_err(|source| Error::Write { path: path.to_owned(), source })
}

fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let folder = folder_of(path);
    let file = temporary(folder)?;
    let mode = file.as_file().metadata()?.permissions();
    write(file.path())?;
    // `write` may have put another file under the name, with permissions of its own.
    let written = fs::File::open(file.path())?;
    written.set_permissions(mode)?;
    written.sync_all()?;
    file.persist(path).map_err(|failed| failed.error)?;
    // The rename itself lives in the folder, which Unix systems sync through a handle of its own.
    #[cfg(unix)]
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

/// Makes the folder of a file that will be written later, and checks that it can be: before hours of work, not after.
///
/// # Errors
/// [`Error::Write`].
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let check = || {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        fs::create_dir_all(folder_of(path))?;
        temporary(folder_of(path)).map(drop)
    };
    check().map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// A file that goes away with its handle. It is as readable as any other file, because it may become one; and its
/// errors are the system's, without a name that nobody knows.
fn temporary(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(".writing-").make_in(folder, |path| fs::File::create_new(path))
}

/// A folder that appears whole or not at all: it is filled under another name beside its place, and removed when it
/// is dropped before [`StagedFolder::put_in_place`].
#[derive(Debug)]
pub struct StagedFolder {
    place: PathBuf,
    staging: tempfile::TempDir,
}

impl StagedFolder {
    /// Begins a folder at `place`, making the folders above it.
    ///
    /// # Errors
    /// [`Error::Taken`] when something is there already that is not an empty folder; [`Error::Write`].
    pub fn begin(place: impl Into<PathBuf>) -> Result<Self> {
        let place = place.into();
        let empty = || fs::read_dir(&place).is_ok_and(|mut entries| entries.next().is_none());
        if place.symlink_metadata().is_ok() && !empty() {
            return Err(Error::Taken { path: place });
        }
        let begin = || -> io::Result<tempfile::TempDir> {
            let above = folder_of(&place);
            fs::create_dir_all(above)?;
            let mut builder = tempfile::Builder::new();
            builder.prefix(".writing-");
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
            builder.tempdir_in(above)
        };
        let staging = begin().map_err(|source| Error::Write { path: place.clone(), source })?;
        Ok(Self { place, staging })
    }

    /// Where the files go until then.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Gives the folder its name, with all its files on disk.
    ///
    /// # Errors
    /// [`Error::Write`]; there is then nothing at its place.
    pub fn put_in_place(self) -> Result<()> {
        let put = || -> io::Result<()> {
            for entry in fs::read_dir(self.staging.path())? {
                fs::File::open(entry?.path())?.sync_all()?;
            }
            #[cfg(unix)]
            fs::File::open(self.staging.path())?.sync_all()?;
            if self.place.exists() {
                fs::remove_dir(&self.place)?;
            }
            fs::rename(self.staging.path(), &self.place)?;
            #[cfg(unix)]
            fs::File::open(folder_of(&self.place))?.sync_all()?;
            Ok(())
        };
        put().map_err(|source| Error::Write { path: self.place.clone(), source })?;
        // Its own name is gone; there is nothing left to remove.
        let _ = self.staging.keep();
        Ok(())
    }
}

/// The folder that holds a path.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The SHA-256 of `bytes` in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The SHA-256 of a file in lower-case hexadecimal, read in pieces; of a large file that has not changed since, the
/// one that is remembered ([`crate::remember_hashes`]).
///
/// # Errors
/// [`Error::Read`] when the file cannot be read.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let hash = || -> io::Result<String> {
        let mut file = fs::File::open(path)?;
        let mut hasher = Sha256::new();
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(format!("{:x}", hasher.finalize())),
                read => hasher.update(&piece[..read]),
            }
        }
    };
    hashes::remembered(path, hash).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// The bytes of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// A JSON file as the type that it should hold.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|source| Error::Json { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn hashes_are_the_published_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        write_atomically(&path, b"abc").unwrap();
        assert_eq!(sha256_hex(b"abc"), ABC);
        assert_eq!(sha256_file(&path).unwrap(), ABC);
    }

    #[test]
    fn a_write_replaces_the_file_and_leaves_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, b"old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomically(folder.path().join("no/file"), b"").unwrap_err();
        assert!(error.to_string().contains("no/file"), "{error}");
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains("No such file") && !why.contains(".writing-"), "{why}");
    }

    #[test]
    fn what_cannot_be_written_is_known_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        check_writable(inside("new/folder/file")).unwrap();
        assert_eq!(fs::read_dir(inside("new/folder")).unwrap().count(), 0);
        fs::write(inside("file"), "").unwrap();
        assert!(check_writable(inside("file/below")).is_err());
        assert!(check_writable(inside("new")).is_err(), "a folder is no file");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_as_readable_as_others_whoever_wrote_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        fs::write(folder.path().join("other"), "").unwrap();
        let write = |file: &Path| {
            fs::remove_file(file)?;
            fs::write(file, "private")?;
            fs::set_permissions(file, PermissionsExt::from_mode(0o600))
        };
        write_atomically_with(&folder.path().join("file"), write).unwrap();
        assert_eq!(mode("file"), mode("other"));
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("above/export");
        let fill = || {
            let staged = StagedFolder::begin(&place).unwrap();
            fs::write(staged.path().join("file"), b"all").unwrap();
            assert!(!place.join("file").exists());
            staged
        };
        drop(fill());
        assert_eq!(fs::read_dir(folder.path().join("above")).unwrap().count(), 0);
        fs::create_dir(&place).unwrap();
        fill().put_in_place().unwrap();
        assert_eq!(fs::read(place.join("file")).unwrap(), b"all");
        assert_eq!(fs::read_dir(folder.path().join("above")).unwrap().count(), 1);
        let error = StagedFolder::begin(&place).unwrap_err();
        assert!(matches!(error, Error::Taken { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_written_file_is_readable_by_others_as_the_umask_allows() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        write_atomically(&ours, b"").unwrap();
        fs::write(&plain, b"").unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
