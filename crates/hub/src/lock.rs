//! One process at a time.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    path::Path,
};

use crate::{
    error::{Error, Result},
    progress::Progress,
};

/// Holds the lock on `path` until dropped, and waits for whoever has it now.
///
/// On Unix this is `flock`, as the Python client's: both keep out of each other's way.
pub(crate) fn acquire(path: &Path, progress: &mut dyn Progress) -> Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::write(folder))?;
    }
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(Error::write(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.start("waiting for another download of the same file", None);
                let locked = file.lock();
                progress.finish();
                locked.map_err(Error::write(path))?;
            }
            Err(TryLockError::Error(source)) => return Err(Error::Write { path: path.to_owned(), source }),
        }
        if still_named(&file) {
            return Ok(file);
        }
    }
}

/// Whoever had the lock may have removed the file: then this lock keeps nobody out.
#[cfg(unix)]
fn still_named(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

#[cfg(not(unix))]
fn still_named(_: &File) -> bool {
    true
}
