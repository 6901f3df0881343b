//! GGUF files, versions 2 and 3, little-endian: typed metadata and tensors by name.

mod cursor;
mod file_type;
mod read;
mod value;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use file_type::FileType;
pub use value::{Array, Value};
pub use write::GgufWriter;

use crate::map::Bytes;
use crate::{DType, Error, Result, Tensor};

const FORMAT: &str = "GGUF";
const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// The type numbers of tensors.
const DTYPES: [(u32, DType); 13] = [
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (10, DType::Q2K),
    (11, DType::Q3K),
    (12, DType::Q4K),
    (13, DType::Q5K),
    (14, DType::Q6K),
    (30, DType::BF16),
];

/// An open GGUF file: its metadata in memory, its tensors mapped.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

/// Where a tensor lies in the file.
#[derive(Debug)]
struct Entry {
    dtype: DType,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Gguf {
    /// Opens and checks the file at `path`.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::Malformed`] with the first rule of the format that the file breaks;
    /// [`Error::Unsupported`] for another version, byte order or tensor type.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(Bytes::map(path)?, path)
    }

    /// Checks a file that is already in memory; `path` stands in its errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: Vec<u8>, path: impl AsRef<Path>) -> Result<Self> {
        Self::parse(Bytes::Owned(bytes), path.as_ref())
    }

    fn parse(bytes: Bytes, path: &Path) -> Result<Self> {
        let (metadata, tensors) = read::header(&bytes, path)?;
        Ok(Self { path: path.to_owned(), bytes, metadata, tensors })
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All keys with their values, in the order of their names.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The value of a key as the type that `as_type` picks, such as [`Value::as_str`]; `None` without the
    /// key.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the value has another type.
    pub fn optional<'a, T>(
        &'a self,
        key: &str,
        as_type: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key)
            .map(|value| {
                as_type(value).ok_or_else(|| {
                    Error::malformed(
                        &self.path,
                        FORMAT,
                        format!("`{key}` has an unexpected type, {}", value.kind()),
                    )
                })
            })
            .transpose()
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// [`Error::MissingKey`], or as [`optional`](Self::optional).
    pub fn required<'a, T>(&'a self, key: &str, as_type: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        self.optional(key, as_type)?
            .ok_or_else(|| Error::MissingKey { path: self.path.clone(), key: key.into() })
    }

    /// The names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, outermost dimension first (the reverse of the order in the file).
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The type of a tensor.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// A tensor, read in place.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::MissingTensor { path: self.path.clone(), tensor: name.into() })?;
        Tensor::new(name, entry.dtype, entry.shape.clone(), &self.bytes[entry.range.clone()])
    }
}
