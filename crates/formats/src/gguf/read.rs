//! The header: metadata, then the table of tensors, each rule checked before it is relied on.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::path::Path;

use super::cursor::{Cursor, Parsed};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, DTYPES, Entry, FORMAT, MAGIC, Value};
use crate::{DType, Error, Result};

type Metadata = BTreeMap<String, Value>;
type Tensors = BTreeMap<String, Entry>;

/// A key's length, type and smallest value; a tensor's name, one dimension, type and offset.
const LEAST_KEY_BYTES: usize = 8 + 4 + 1;
const LEAST_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;
const MOST_DIMENSIONS: u32 = 4;

/// Metadata and tensors of the file whose bytes are `bytes`.
pub(super) fn header(bytes: &[u8], path: &Path) -> Result<(Metadata, Tensors)> {
    let malformed = |reason| Error::malformed(path, FORMAT, reason);
    let mut cursor = Cursor::new(bytes);
    if cursor.array("the magic number").map_err(malformed)? != MAGIC {
        return Err(malformed("it does not begin with `GGUF`".into()));
    }
    match cursor.u32("the version").map_err(malformed)? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err(Error::unsupported(path, "byte order", "big-endian", "little-endian"));
        }
        version => return Err(Error::unsupported(path, "GGUF version", version.to_string(), "2 and 3")),
    }
    let tensor_count = cursor.count(LEAST_TENSOR_BYTES, "the number of tensors").map_err(malformed)?;
    let metadata = metadata(&mut cursor).map_err(malformed)?;
    let alignment = alignment(&metadata).map_err(malformed)?;
    let listed = (0..tensor_count)
        .map(|_| Listed::read(&mut cursor))
        .collect::<Parsed<Vec<_>>>()
        .map_err(malformed)?;
    let data_start = cursor.at().next_multiple_of(alignment);
    let tensors = place(listed, data_start, alignment, bytes.len(), path)?;
    Ok((metadata, tensors))
}

fn metadata(cursor: &mut Cursor) -> Parsed<Metadata> {
    let count = cursor.count(LEAST_KEY_BYTES, "the number of keys")?;
    let mut metadata = Metadata::new();
    for _ in 0..count {
        let key = cursor.string("a key")?;
        let value = Value::read(cursor).map_err(|reason| format!("key `{key}`: {reason}"))?;
        match metadata.entry(key) {
            Slot::Vacant(slot) => slot.insert(value),
            Slot::Occupied(slot) => return Err(format!("key `{}` is there twice", slot.key())),
        };
    }
    Ok(metadata)
}

fn alignment(metadata: &Metadata) -> Parsed<usize> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(value)) if value.is_power_of_two() && *value <= 1 << 20 => Ok(*value as usize),
        Some(other) => Err(format!("`{ALIGNMENT_KEY}` is {other:?}, not a power of two up to a megabyte")),
    }
}

/// A row of the table, as it stands in the file.
struct Listed {
    name: String,
    shape: Vec<usize>,
    type_number: u32,
    offset: usize,
}

impl Listed {
    fn read(cursor: &mut Cursor) -> Parsed<Self> {
        let name = cursor.string("a tensor's name")?;
        let dimensions = cursor.u32("a number of dimensions")?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(format!(
                "tensor `{name}` has {dimensions} dimensions, allowed are 1 to {MOST_DIMENSIONS}"
            ));
        }
        let mut shape =
            (0..dimensions).map(|_| cursor.size("a dimension")).collect::<Parsed<Vec<usize>>>()?;
        shape.reverse(); // the file counts from the innermost
        if shape.contains(&0) {
            return Err(format!("tensor `{name}` has the empty shape {shape:?}"));
        }
        Ok(Self {
            name,
            shape,
            type_number: cursor.u32("a tensor's type")?,
            offset: cursor.size("a tensor's offset")?,
        })
    }
}

/// Finds each tensor's bytes, which must be aligned, lie inside the file and belong to that tensor alone.
fn place(
    listed: Vec<Listed>,
    data_start: usize,
    alignment: usize,
    file_len: usize,
    path: &Path,
) -> Result<Tensors> {
    let malformed = |reason| Error::malformed(path, FORMAT, reason);
    let mut tensors = Tensors::new();
    for Listed { name, shape, type_number, offset } in listed {
        let dtype = dtype(type_number).ok_or_else(|| {
            let key = format!("type of tensor `{name}`");
            Error::unsupported(path, key, format!("number {type_number}"), supported_types())
        })?;
        if !offset.is_multiple_of(alignment) {
            return Err(malformed(format!(
                "tensor `{name}` lies at {offset}, not a multiple of {alignment}"
            )));
        }
        let bytes = dtype
            .tensor_bytes(&shape)
            .ok_or_else(|| malformed(format!("tensor `{name}` cannot be {dtype:?} of shape {shape:?}")))?;
        let end = data_start.checked_add(offset).and_then(|start| start.checked_add(bytes));
        let Some(end) = end.filter(|&end| end <= file_len) else {
            return Err(malformed(format!(
                "tensor `{name}` takes {bytes} bytes at {offset} after byte {data_start}, the file ends at {file_len}"
            )));
        };
        match tensors.entry(name) {
            Slot::Vacant(slot) => slot.insert(Entry { dtype, shape, range: end - bytes..end }),
            Slot::Occupied(slot) => {
                return Err(malformed(format!("tensor `{}` is there twice", slot.key())));
            }
        };
    }
    let mut by_start: Vec<_> = tensors.iter().map(|(name, entry)| (&entry.range, name)).collect();
    by_start.sort_by_key(|(range, _)| range.start);
    for pair in by_start.windows(2) {
        if pair[0].0.end > pair[1].0.start {
            return Err(malformed(format!("tensors `{}` and `{}` overlap", pair[0].1, pair[1].1)));
        }
    }
    Ok(tensors)
}

fn dtype(type_number: u32) -> Option<DType> {
    DTYPES.iter().find(|(number, _)| *number == type_number).map(|(_, dtype)| *dtype)
}

fn supported_types() -> String {
    let types: Vec<_> = DTYPES.iter().map(|(number, dtype)| format!("{number} ({dtype:?})")).collect();
    types.join(", ")
}
