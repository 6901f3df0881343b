//! Whether there is room.

use std::path::Path;

use crate::error::{Error, Result};

/// Refuses when the file system of `folder`, which exists, has less than `needed` bytes left.
///
/// A file system that does not tell is taken at its best.
pub(crate) fn require(folder: &Path, needed: u64) -> Result<()> {
    match fs4::available_space(folder) {
        Ok(free) if free < needed => Err(Error::DiskFull { path: folder.to_owned(), needed, free }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_disk_is_refused_with_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        require(folder.path(), 1).unwrap();
        let error = require(folder.path(), u64::MAX).unwrap_err();
        assert!(matches!(error, Error::DiskFull { needed: u64::MAX, free, .. } if free > 0), "{error}");
    }
}
