//! A tensor as it lies in a file: a name, a type, a shape and bytes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, quant};

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // each is the name that the formats' own specifications define
pub enum DType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl DType {
    /// Values in one block; a row holds whole blocks.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `len` values, or `None` when `len` is not a whole number of blocks.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        if len.is_multiple_of(self.block_len()) {
            (len / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    /// Bytes of a whole tensor, or `None` when its rows are not whole blocks or the size overflows.
    pub(crate) fn tensor_bytes(self, shape: &[usize]) -> Option<usize> {
        let (&row_len, outer) = shape.split_last()?;
        outer.iter().try_fold(self.row_bytes(row_len)?, |bytes, &dim| bytes.checked_mul(dim))
    }
}

/// A tensor to be written, whose bytes are made when their turn comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name, as the file will spell it.
    pub name: String,
    /// The type of the stored values.
    pub dtype: DType,
    /// The dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// The bytes that it takes.
    ///
    /// # Errors
    /// [`Error::Tensor`] when its rows are not whole blocks of the type.
    pub fn bytes(&self) -> Result<usize> {
        self.dtype.tensor_bytes(&self.shape).ok_or_else(|| Error::Tensor {
            tensor: self.name.clone(),
            reason: format!(
                "shape {:?} cannot be stored as {:?}, whose rows hold whole blocks of {} values",
                self.shape,
                self.dtype,
                self.dtype.block_len()
            ),
        })
    }

    /// Makes the bytes with `make`.
    ///
    /// # Errors
    /// Those of `make`; [`Error::Tensor`] when they are not as many as the shape says.
    pub(crate) fn made<'a>(
        &self,
        make: impl FnOnce(&Self) -> Result<Cow<'a, [u8]>>,
    ) -> Result<Cow<'a, [u8]>> {
        Ok(Tensor::new(self.name.clone(), self.dtype, self.shape.clone(), make(self)?)?.bytes)
    }
}

/// A tensor's stored form; `shape` is row-major, outermost first, so a linear layer's weight is (out, in).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Tensor<'a> {
    /// The name, in the naming of whoever handed the tensor out.
    pub name: String,
    /// The type of the stored values.
    pub dtype: DType,
    /// The dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The rows one after the other, as the file's format lays them out.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// A tensor of `bytes`.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the bytes are not exactly those of `shape` in `dtype`.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        shape: Vec<usize>,
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<Self> {
        let (spec, bytes) = (TensorSpec { name: name.into(), dtype, shape }, bytes.into());
        let expected = spec.bytes()?;
        let TensorSpec { name, shape, .. } = spec;
        if expected == bytes.len() {
            return Ok(Self { name, dtype, shape, bytes });
        }
        let reason = format!("{dtype:?} of shape {shape:?} takes {expected} bytes, found {}", bytes.len());
        Err(Error::Tensor { tensor: name, reason })
    }

    /// A tensor of 32-bit floats.
    ///
    /// # Errors
    /// [`Error::Tensor`] when `values` are not as many as `shape` says.
    pub fn from_f32(name: impl Into<String>, shape: Vec<usize>, values: &[f32]) -> Result<Tensor<'static>> {
        Tensor::new(name, DType::F32, shape, quant::quantize(DType::F32, values)?)
    }

    /// The number of rows: the product of all dimensions but the last; a vector is one row.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(0, |(_, outer)| outer.iter().product())
    }

    /// The values of one row: the last dimension.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// The stored bytes of one row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        assert!(row < self.rows(), "tensor `{}` has {} rows, row {row} asked for", self.name, self.rows());
        let bytes = self.bytes.len() / self.rows();
        &self.bytes[row * bytes..][..bytes]
    }

    /// Writes the values of one row to `out`.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not [`row_len`](Self::row_len) long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        quant::dequantize(self.dtype, self.row_bytes(row), out);
    }

    /// All values, row by row.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        quant::dequantize(self.dtype, &self.bytes, &mut values);
        values
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values pass through unchanged
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_in_place() {
        let values: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let tensor = Tensor::from_f32("t", vec![2, 3], &values).unwrap();
        assert_eq!((tensor.rows(), tensor.row_len()), (2, 3));
        let mut row = [0.0; 3];
        tensor.dequantize_row(1, &mut row);
        assert_eq!(row, [3.0, 4.0, 5.0]);
        assert_eq!(tensor.to_f32(), values);
    }

    #[test]
    fn bytes_must_fit_the_shape() {
        let error = Tensor::new("t", DType::F32, vec![2, 2], vec![0; 15]).unwrap_err().to_string();
        assert!(error.contains("`t`") && error.contains("16 bytes") && error.contains("15"), "{error}");
        let error = Tensor::new("t", DType::Q4K, vec![2, 255], vec![0; 15]).unwrap_err().to_string();
        assert!(error.contains("256 values"), "{error}");
        assert!(Tensor::new("t", DType::F32, vec![usize::MAX, usize::MAX], vec![0; 4]).is_err());
        assert!(Tensor::new("t", DType::F32, vec![], vec![0; 4]).is_err());
    }
}
