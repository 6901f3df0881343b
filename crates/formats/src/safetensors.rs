//! A folder of safetensors files: one `model.safetensors`, or shards under an index.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorInfo, View};
use serde::Deserialize;

use crate::map::Bytes;
use crate::{DType, Error, Result, Tensor, quant, store};

pub(crate) const FORMAT: &str = "safetensors";
pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Length of the number before the header.
const PREFIX_BYTES: usize = 8;

/// The open weight files of a folder, mapped.
#[derive(Debug)]
pub struct SafetensorsFolder {
    path: PathBuf,
    files: Vec<(PathBuf, Bytes)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// The part of an index file that is read.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    /// Opens `model.safetensors` in the folder at `path`, or the shards of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`Error::Read`] when neither is there; [`Error::Malformed`] when a file breaks its format, an index
    /// names a file outside the folder, or a shard lacks a tensor that the index promises.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut folder = Self { path: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        let (single, index) = (path.join(SINGLE), path.join(INDEX));
        if single.exists() || !index.exists() {
            folder.add(single, |_| true)?;
            return Ok(folder);
        }
        let Index { weight_map } = store::read_json(&index)?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            shards.entry(shard).or_default().push(tensor);
        }
        for (shard, promised) in shards {
            if !is_plain_name(shard) {
                let reason = format!("it names the shard `{shard}`, which is not a plain file name");
                return Err(Error::malformed(index, FORMAT, reason));
            }
            folder.add(path.join(shard), |tensor| promised.binary_search(&tensor).is_ok())?;
            if let Some(missing) = promised.iter().find(|tensor| !folder.tensors.contains_key(**tensor)) {
                let reason = format!("it promises tensor `{missing}` in `{shard}`, which does not have it");
                return Err(Error::malformed(index, FORMAT, reason));
            }
        }
        Ok(folder)
    }

    /// Maps a file and lists those of its tensors that `wanted` accepts.
    fn add(&mut self, path: PathBuf, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let bytes = Bytes::map(&path)?;
        for (name, info, range) in contents(&bytes, &path)? {
            if wanted(&name) {
                let entry = Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape, range };
                self.tensors.insert(name, entry);
            }
        }
        self.files.push((path, bytes));
        Ok(())
    }

    /// The folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The weight files with all their bytes, in the order of their names.
    pub(crate) fn files(&self) -> impl ExactSizeIterator<Item = (&Path, &[u8])> {
        self.files.iter().map(|(path, bytes)| (path.as_path(), &**bytes))
    }

    /// The names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The type of a tensor.
    ///
    /// # Errors
    /// As [`SafetensorsFolder::tensor`].
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let entry = self.entry(name)?;
        dtype(entry.dtype, name, &self.files[entry.file].0)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let missing = || Error::MissingTensor { path: self.path.clone(), tensor: name.into() };
        self.tensors.get(name).ok_or_else(missing)
    }

    /// A tensor, read in place.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Unsupported`] when it is not of 32-bit or 16-bit floats.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let entry = self.entry(name)?;
        let (path, bytes) = &self.files[entry.file];
        Tensor::new(name, dtype(entry.dtype, name, path)?, entry.shape.clone(), &bytes[entry.range.clone()])
    }
}

/// Tensors by name: shape (outermost first) and values.
pub type NamedValues = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Every tensor of a file.
///
/// # Errors
/// [`Error::Read`], [`Error::Malformed`], and [`Error::Unsupported`] for a type that is not of floats.
pub fn read_f32(path: impl AsRef<Path>) -> Result<NamedValues> {
    let path = path.as_ref();
    let bytes = store::read(path)?;
    let mut tensors = BTreeMap::new();
    for (name, info, range) in contents(&bytes, path)? {
        let tensor = Tensor::new(&name, dtype(info.dtype, &name, path)?, info.shape.clone(), &bytes[range])?;
        let values = tensor.to_f32();
        tensors.insert(name, (info.shape, values));
    }
    Ok(tensors)
}

/// A tensor to write: its name, its shape (outermost first) and its values.
pub type Named<'a> = (&'a str, Vec<usize>, &'a [f32]);

/// Writes named tensors as `dtype` (f32, f16 or bf16) atomically, one after the other; the same tensors always give
/// the same bytes.
///
/// # Errors
/// [`Error::Write`]; [`Error::Tensor`] when a tensor's values are not as many as its shape says, or for another type.
pub fn write(path: impl AsRef<Path>, dtype: DType, tensors: &[Named<'_>]) -> Result<()> {
    let fail = |tensor: &str, reason: String| Error::Tensor { tensor: tensor.into(), reason };
    let stored = match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        other => return Err(fail("all", format!("{other:?} is no type of safetensors"))),
    };
    for (name, shape, values) in tensors {
        if shape.iter().product::<usize>() != values.len() {
            return Err(fail(name, format!("{} values for shape {shape:?}", values.len())));
        }
    }
    let views = tensors.iter().map(|(name, shape, values)| (*name, Rounded { dtype, stored, shape, values }));
    store::write_atomically_with(path.as_ref(), |file| {
        safetensors::serialize_to_file(views, None, file).map_err(std::io::Error::other)
    })
}

/// Values that become bytes when they are written.
struct Rounded<'a> {
    dtype: DType,
    stored: Dtype,
    shape: &'a [usize],
    values: &'a [f32],
}

impl View for Rounded<'_> {
    fn dtype(&self) -> Dtype {
        self.stored
    }
    fn shape(&self) -> &[usize] {
        self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        quant::quantize(self.dtype, self.values).expect("floats have no blocks to fill").into()
    }
    fn data_len(&self) -> usize {
        self.values.len() * if self.dtype == DType::F32 { 4 } else { 2 }
    }
}

/// Name, type, shape and place of each tensor in the bytes of a safetensors file, in the order of the names.
pub(crate) fn contents(bytes: &[u8], path: &Path) -> Result<Vec<(String, TensorInfo, Range<usize>)>> {
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|error| Error::malformed(path, FORMAT, error.to_string()))?;
    let start = PREFIX_BYTES + header;
    let place = |(name, info): (String, &TensorInfo)| {
        let (from, to) = info.data_offsets;
        (name, info.clone(), start + from..start + to)
    };
    let mut contents: Vec<_> = metadata.tensors().into_iter().map(place).collect();
    contents.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
    Ok(contents)
}

/// The stored type, if it is one of floats.
pub(crate) fn dtype(dtype: Dtype, tensor: &str, path: &Path) -> Result<DType> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => Err(Error::unsupported(
            path,
            format!("type of tensor `{tensor}`"),
            format!("{other:?}"),
            "F32, F16 and BF16",
        )),
    }
}

/// Whether joining the name to a folder stays in that folder, on every system.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['\\', ':'])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use safetensors::tensor::TensorView;
    use serde_json::json;

    use super::*;

    fn file(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    fn bf16(values: &[f32]) -> Vec<u8> {
        crate::quant::quantize(DType::BF16, values).unwrap()
    }

    #[test]
    fn one_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let a = ("a", Dtype::BF16, vec![1, 2], bf16(&[1.0, -2.0]));
        let b = ("b", Dtype::I64, vec![1], vec![0; 8]);
        fs::write(folder.path().join(SINGLE), file(&[a, b])).unwrap();
        let weights = SafetensorsFolder::open(folder.path()).unwrap();
        assert_eq!(weights.tensor_names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(weights.shape("a"), Some([1, 2].as_slice()));
        assert_eq!(weights.tensor("a").unwrap().to_f32(), [1.0, -2.0]);
        assert!(weights.tensor("b").unwrap_err().to_string().contains("I64"));
        assert!(matches!(weights.tensor("c"), Err(Error::MissingTensor { .. })));
    }

    fn sharded(weight_map: &serde_json::Value) -> Result<SafetensorsFolder> {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("model");
        fs::create_dir(&inside).unwrap();
        for (path, name, value) in
            [(inside.join("1.safetensors"), "a", 1.0), (folder.path().join("2.safetensors"), "b", 2.0)]
        {
            fs::write(path, file(&[(name, Dtype::BF16, vec![1], bf16(&[value]))])).unwrap();
        }
        fs::copy(folder.path().join("2.safetensors"), inside.join("2.safetensors")).unwrap();
        fs::write(inside.join(INDEX), json!({"metadata": {}, "weight_map": weight_map}).to_string()).unwrap();
        SafetensorsFolder::open(inside)
    }

    #[test]
    fn shards_are_read_together() {
        let weights = sharded(&json!({"a": "1.safetensors", "b": "2.safetensors"})).unwrap();
        assert_eq!(weights.tensor("a").unwrap().to_f32(), [1.0]);
        assert_eq!(weights.tensor("b").unwrap().to_f32(), [2.0]);
        assert_eq!(weights.files().len(), 2);
    }

    #[test]
    fn an_index_cannot_reach_outside_its_folder_or_promise_what_is_not_there() {
        for shard in
            ["../2.safetensors", "/etc/passwd", "..", ".", "", "./2.safetensors", "x/..", "..\\2", "C:2"]
        {
            let error = sharded(&json!({"b": shard})).unwrap_err().to_string();
            assert!(error.contains("plain file name"), "{shard}: {error}");
        }
        let error = sharded(&json!({"b": "1.safetensors"})).unwrap_err().to_string();
        assert!(error.contains("promises tensor `b`"), "{error}");
        assert!(matches!(sharded(&json!({"b": "3.safetensors"})), Err(Error::Read { .. })));
    }

    proptest! {
        #[test]
        fn damaged_files_are_errors_or_sound(flips in proptest::collection::vec((0usize..200, any::<u8>()), 1..6), cut in 0usize..200) {
            let mut bytes = file(&[("tensor", Dtype::BF16, vec![2, 3], bf16(&[0.5; 6]))]);
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Ok(contents) = contents(&bytes, Path::new("file")) {
                for (_, _, range) in contents {
                    prop_assert!(range.end <= bytes.len());
                }
            }
        }
    }
}
