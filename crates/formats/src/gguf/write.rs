//! Writing GGUF version 3.

use std::io::{self, Write};

use super::value::put_str;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, DTYPES, MAGIC, Value};
use crate::{DType, Tensor};

const VERSION: u32 = 3;

/// A GGUF file to be: keys and tensors, written in the order in which they were added.
#[derive(Debug, Default)]
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor<'a>>,
}

impl<'a> GgufWriter<'a> {
    /// A file with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key, or gives it another value.
    ///
    /// # Panics
    /// When the key is `general.alignment`: tensors are always aligned to the format's default.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        assert_ne!(key, ALIGNMENT_KEY, "GgufWriter aligns tensors to {DEFAULT_ALIGNMENT} bytes");
        match self.metadata.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key, value)),
        }
    }

    /// Adds a tensor under its own name, which in GGUF is not the Hugging Face one.
    ///
    /// # Panics
    /// When a tensor of that name is there already, or its shape has more than four dimensions or an empty
    /// one.
    pub fn add(&mut self, tensor: Tensor<'a>) {
        assert!(
            self.tensors.iter().all(|known| known.name != tensor.name),
            "GgufWriter: tensor `{}` added twice",
            tensor.name
        );
        assert!(
            (1..=4).contains(&tensor.shape.len()) && !tensor.shape.contains(&0),
            "GgufWriter: tensor `{}` has shape {:?}",
            tensor.name,
            tensor.shape
        );
        self.tensors.push(tensor);
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_str(key, &mut header);
            value.write(&mut header);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_str(&tensor.name, &mut header);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&dim| header.extend((dim as u64).to_le_bytes()));
            header.extend(type_number(tensor.dtype).to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        write_padded(&mut out, &header)?;
        self.tensors.iter().try_for_each(|tensor| write_padded(&mut out, &tensor.bytes))
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing to memory cannot fail.
        let _ = self.write(&mut bytes);
        bytes
    }
}

fn write_padded(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    let padding = bytes.len().next_multiple_of(DEFAULT_ALIGNMENT) - bytes.len();
    out.write_all(&[0; DEFAULT_ALIGNMENT][..padding])
}

fn type_number(dtype: DType) -> u32 {
    let known = DTYPES.iter().find(|(_, known)| *known == dtype);
    known.expect("the table holds every type").0
}
