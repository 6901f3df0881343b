//! A file's bytes, mapped into memory.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::{Error, Result};

/// The bytes of a weight file: mapped from disk, or handed over in memory.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps the file at `path`; pages are read as they are touched.
    #[allow(unsafe_code)]
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.len() == 0 {
            return Ok(Self::Owned(Vec::new())); // some systems refuse to map nothing
        }
        // SAFETY: the map is read-only and private, and is only ever seen as plain bytes, for which every
        // value is valid. The one hazard left is another process that shortens the file while it is mapped;
        // weight files in a cache are replaced by rename, never edited in place, as every reader that maps
        // them relies on.
        let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file) };
        map.map(Self::Mapped).map_err(read)
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The bytes of a file, mapped: pages are read as they are touched. What changes the file must replace it by a rename.
///
/// # Errors
/// [`Error::Read`].
pub fn map(path: impl AsRef<Path>) -> Result<impl AsRef<[u8]> + Send + Sync + 'static> {
    Bytes::map(path.as_ref())
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
