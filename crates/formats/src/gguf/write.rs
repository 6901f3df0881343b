//! Writing GGUF version 3.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::value::put_str;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, DTYPES, MAGIC, Value};
use crate::{DType, Error, Result, Tensor, TensorSpec};

const VERSION: u32 = 3;

/// A GGUF file to be: keys and tensors, written in the order in which they were added.
#[derive(Debug, Default)]
pub struct GgufWriter<'a> {
    metadata: Vec<(String, Value)>,
    /// Those without bytes are made when they are written.
    tensors: Vec<(TensorSpec, Option<Cow<'a, [u8]>>)>,
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
        let Tensor { name, dtype, shape, bytes } = tensor;
        self.push(TensorSpec { name, dtype, shape }, Some(bytes));
    }

    /// Adds a tensor whose bytes [`GgufWriter::save`] asks for when their turn comes.
    ///
    /// # Panics
    /// As [`GgufWriter::add`].
    pub fn declare(&mut self, spec: TensorSpec) {
        self.push(spec, None);
    }

    fn push(&mut self, spec: TensorSpec, bytes: Option<Cow<'a, [u8]>>) {
        assert!(
            self.tensors.iter().all(|(known, _)| known.name != spec.name),
            "GgufWriter: tensor `{}` added twice",
            spec.name
        );
        assert!(
            (1..=4).contains(&spec.shape.len()) && !spec.shape.contains(&0),
            "GgufWriter: tensor `{}` has shape {:?}",
            spec.name,
            spec.shape
        );
        self.tensors.push((spec, bytes));
    }

    /// Writes the file at `path`, not atomically; `make` gives the bytes of declared tensors, one at a time.
    ///
    /// # Errors
    /// Those of `make`; [`Error::Write`]; [`Error::Tensor`] when bytes do not fit their tensor's shape.
    pub fn save<'b>(
        &self,
        path: &Path,
        make: &mut dyn FnMut(&TensorSpec) -> Result<Cow<'b, [u8]>>,
    ) -> Result<()> {
        let fail = |source| Error::Write { path: path.to_owned(), source };
        let mut file = BufWriter::new(File::create(path).map_err(fail)?);
        self.write(&mut file, &fail, make)?;
        file.into_inner().map_err(|error| fail(error.into_error()))?.sync_all().map_err(fail)
    }

    fn write<'b>(
        &self,
        out: &mut impl Write,
        fail: &dyn Fn(io::Error) -> Error,
        make: &mut dyn FnMut(&TensorSpec) -> Result<Cow<'b, [u8]>>,
    ) -> Result<()> {
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_str(key, &mut header);
            value.write(&mut header);
        }
        let mut offset = 0;
        for (tensor, _) in &self.tensors {
            put_str(&tensor.name, &mut header);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&dim| header.extend((dim as u64).to_le_bytes()));
            header.extend(type_number(tensor.dtype).to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes()?).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        write_padded(out, &header).map_err(fail)?;
        for (tensor, bytes) in &self.tensors {
            match bytes {
                Some(bytes) => write_padded(out, bytes),
                None => write_padded(out, &tensor.made(&mut *make)?),
            }
            .map_err(fail)?;
        }
        Ok(())
    }

    /// The file's bytes.
    ///
    /// # Panics
    /// When a tensor was declared and not added.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let unmade = |spec: &TensorSpec| -> Result<Cow<'static, [u8]>> {
            panic!("GgufWriter: tensor `{}` was declared and has no bytes", spec.name)
        };
        let written =
            self.write(&mut bytes, &|source| Error::Write { path: "memory".into(), source }, &mut { unmade });
        written.expect("writing to memory cannot fail");
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
