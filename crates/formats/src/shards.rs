//! Writing the weights of a model as Hugging Face folders hold them: one safetensors file, or shards under an index.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;

use crate::safetensors::{INDEX, SINGLE};
use crate::{DType, Error, Result, TensorSpec, store};

/// Writes `model.safetensors`, or several files of at most `most_bytes` of values each and their index. A tensor is
/// made when its turn comes, so that one of them at a time is in memory; a tensor beyond `most_bytes` has a file to
/// itself.
///
/// The folder must be one that nobody reads yet: its files are not replaced atomically.
///
/// # Errors
/// Those of `make`; [`Error::Write`]; [`Error::Tensor`] for a type that safetensors has not.
pub fn write_model<'a>(
    folder: &Path,
    tensors: &[TensorSpec],
    most_bytes: usize,
    make: &mut dyn FnMut(&TensorSpec) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let mut shards: Vec<(usize, Vec<&TensorSpec>)> = Vec::new();
    for tensor in tensors {
        let bytes = tensor.bytes()?;
        match shards.last_mut() {
            Some((filled, shard)) if *filled + bytes <= most_bytes => {
                *filled += bytes;
                shard.push(tensor);
            }
            _ => shards.push((bytes, vec![tensor])),
        }
    }
    if let [(_, only)] = &shards[..] {
        return write_file(&folder.join(SINGLE), only, make);
    }
    let mut weight_map = BTreeMap::new();
    for (number, (_, shard)) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        write_file(&folder.join(&name), shard, make)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), name.clone())));
    }
    let total: usize = shards.iter().map(|(bytes, _)| bytes).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    store::write_atomically(folder.join(INDEX), format!("{index:#}\n").as_bytes())
}

fn write_file<'a>(
    path: &Path,
    tensors: &[&TensorSpec],
    make: &mut dyn FnMut(&TensorSpec) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let fail = |source| Error::Write { path: path.to_owned(), source };
    let header = header(tensors)?;
    let mut file = BufWriter::new(File::create(path).map_err(fail)?);
    file.write_all(&header).map_err(fail)?;
    for tensor in tensors {
        file.write_all(&tensor.made(&mut *make)?).map_err(fail)?;
    }
    file.into_inner().map_err(|error| fail(error.into_error()))?.sync_all().map_err(fail)
}

/// The length of the header and the header, padded so that the values are aligned to eight bytes.
fn header(tensors: &[&TensorSpec]) -> Result<Vec<u8>> {
    let mut at = 0;
    let place = |tensor: &&TensorSpec| {
        let dtype = match tensor.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            other => return Err(refuse(&tensor.name, format!("safetensors has no type {other:?}"))),
        };
        let begin = at;
        at += tensor.bytes()?;
        Ok((
            tensor.name.clone(),
            TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (begin, at) },
        ))
    };
    let places = tensors.iter().map(place).collect::<Result<Vec<_>>>()?;
    // As PyTorch's own files say it: transformers asks for this.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata =
        Metadata::new(Some(format), places).map_err(|error| refuse("the header", error.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| refuse("the header", error.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}

fn refuse(tensor: &str, reason: String) -> Error {
    Error::Tensor { tensor: tensor.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::SafetensorsFolder;

    fn spec(name: &str, dtype: DType, rows: usize) -> TensorSpec {
        TensorSpec { name: name.to_owned(), dtype, shape: vec![rows, 2] }
    }

    fn bytes(spec: &TensorSpec) -> Result<Cow<'static, [u8]>> {
        let first = f32::from(spec.name.as_bytes()[0]);
        let values: Vec<f32> = (0..spec.shape[0] * 2).map(|i| first + i as f32).collect();
        Ok(crate::quant::quantize(spec.dtype, &values)?.into())
    }

    #[test]
    fn one_file_or_shards_are_read_back_alike() {
        let specs = [spec("c", DType::F16, 3), spec("a", DType::F16, 1), spec("b", DType::F16, 4)];
        for (most, files) in [(usize::MAX, 1), (16, 2), (4, 3)] {
            let folder = tempfile::tempdir().unwrap();
            write_model(folder.path(), &specs, most, &mut bytes).unwrap();
            let read = SafetensorsFolder::open(folder.path()).unwrap();
            assert_eq!(read.files().len(), files);
            assert_eq!(read.tensor_names().collect::<Vec<_>>(), ["a", "b", "c"]);
            for spec in &specs {
                let tensor = read.tensor(&spec.name).unwrap();
                assert_eq!((tensor.dtype, &tensor.shape), (spec.dtype, &spec.shape));
                assert_eq!(*tensor.bytes, *bytes(spec).unwrap());
            }
            let whole = std::fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(whole, files + usize::from(files > 1), "an index stands beside shards alone");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let write = |spec: TensorSpec, make: &mut dyn FnMut(&TensorSpec) -> Result<Cow<'static, [u8]>>| {
            write_model(folder.path(), &[spec], usize::MAX, make).unwrap_err().to_string()
        };
        let blocks = TensorSpec { name: "q".into(), dtype: DType::Q8_0, shape: vec![1, 32] };
        assert!(write(blocks, &mut bytes).contains("no type Q8_0"));
        let short = write(spec("s", DType::F32, 2), &mut |_| Ok(vec![0; 3].into()));
        assert!(short.contains("`s`") && short.contains("16 bytes"), "{short}");
    }
}
