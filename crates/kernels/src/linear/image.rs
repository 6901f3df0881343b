//! Matrices as they lie in memory, as bytes: what was packed or merged once is mapped by the next process.
//!
//! An image of a matrix is a head of eight numbers (u32: form, rows, columns, scales, words), the scales (f32) and the
//! words, each filled up with zeros to whole cache lines. It is for the machine that wrote it: numbers have the
//! processor's order, and words that of its instruction set. [`LAYOUT`] stands for everything else.

use std::io::{self, Write};
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::blocks::BlockFormat;
use super::matrix::{Form, PackedMatrix};
use super::words::{LINE, Words};
use crate::Element;

/// Version of the layout of packed words; another one when anything about it changes.
pub const LAYOUT: u32 = 1;
/// Bytes of a cache line, at which each part begins.
const ALIGN: usize = 4 * LINE;
/// Numbers at the beginning.
const HEAD: usize = 5;

/// Bytes that live as long as what was made of them: those of a file that is mapped.
pub type Mapped = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Images of matrices, one after the other.
pub struct Images {
    bytes: Mapped,
    at: usize,
}

impl Images {
    /// Begins with the first.
    pub fn new(bytes: Mapped) -> Self {
        Self { bytes, at: 0 }
    }

    /// The range of the next `len` bytes.
    fn take(&mut self, len: usize) -> Option<Range<usize>> {
        let range = self.at..self.at.checked_add(len)?;
        self.at = range.end.checked_next_multiple_of(ALIGN)?;
        (self.at <= (*self.bytes).as_ref().len()).then_some(range)
    }

    /// The next `len` words, copied.
    fn words(&mut self, len: usize) -> Option<Vec<u32>> {
        let range = self.take(len.checked_mul(4)?)?;
        Some(bytemuck::pod_collect_to_vec(&(*self.bytes).as_ref()[range]))
    }
}

/// Words of a matrix.
#[derive(Clone)]
pub(super) enum Kept {
    Own(Words),
    /// A range of the bytes, in whole words that are aligned.
    Mapped(Mapped, Range<usize>),
}

impl Deref for Kept {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        match self {
            Self::Own(words) => words,
            Self::Mapped(bytes, range) => bytemuck::cast_slice(&(**bytes).as_ref()[range.clone()]),
        }
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if matches!(self, Self::Own(_)) { "own" } else { "mapped" };
        write!(f, "{} {kind} words", self.len())
    }
}

impl Form {
    fn code(&self) -> u32 {
        match self {
            Self::Values => 0,
            Self::Bytes(_) => 1,
            Self::Blocks(BlockFormat::Q4_0) => 2,
            Self::Blocks(BlockFormat::Q4_1) => 3,
            Self::Blocks(BlockFormat::Q8_0) => 4,
            Self::Blocks(BlockFormat::Nf4) => 5,
        }
    }

    fn of(code: u32, scales: Vec<f32>) -> Option<Self> {
        let blocks = match code {
            0 => return Some(Self::Values),
            1 => return Some(Self::Bytes(scales)),
            2 => BlockFormat::Q4_0,
            3 => BlockFormat::Q4_1,
            4 => BlockFormat::Q8_0,
            5 => BlockFormat::Nf4,
            _ => return None,
        };
        Some(Self::Blocks(blocks))
    }
}

impl<E: Element> PackedMatrix<E> {
    /// Writes the matrix's image.
    ///
    /// # Errors
    /// When `out` does not take it.
    pub fn write_image(&self, out: &mut dyn Write) -> io::Result<()> {
        let (form, words) = self.parts();
        let scales: &[f32] = if let Form::Bytes(scales) = form { scales } else { &[] };
        let sizes = [self.rows(), self.cols(), scales.len(), words.len()];
        let mut head = vec![form.code()];
        for size in sizes {
            head.push(u32::try_from(size).map_err(io::Error::other)?);
        }
        for part in [&head[..], bytemuck::cast_slice(scales), words] {
            let bytes: &[u8] = bytemuck::cast_slice(part);
            out.write_all(bytes)?;
            out.write_all(&[0; ALIGN][..bytes.len().next_multiple_of(ALIGN) - bytes.len()])?;
        }
        Ok(())
    }

    /// The next matrix of `images`, whose words stay where they are; `None` when it is not one of `rows` by `cols`.
    pub fn from_image(rows: usize, cols: usize, images: &mut Images) -> Option<Self> {
        let head = images.words(HEAD)?;
        let size = |at: usize| head[at] as usize;
        if (size(1), size(2)) != (rows, cols) {
            return None;
        }
        let scales = images.words(size(3))?.into_iter().map(f32::from_bits).collect::<Vec<_>>();
        let form = Form::of(head[0], scales)?;
        let range = images.take(size(4).checked_mul(4)?)?;
        let ready = bytemuck::try_cast_slice::<u8, u32>(&(*images.bytes).as_ref()[range.clone()]).is_ok();
        let words = Kept::Mapped(images.bytes.clone(), range);
        if ready { Self::of_parts(rows, cols, form, words) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::linear::{Encoding, Layer, merge};

    /// Bytes that begin on a cache line, as a mapped file does.
    struct Lines(Words, usize);

    impl AsRef<[u8]> for Lines {
        fn as_ref(&self) -> &[u8] {
            &bytemuck::cast_slice(&self.0)[..self.1]
        }
    }

    fn mapped(bytes: &[u8]) -> Images {
        let mut words = Words::zeros(bytes.len().div_ceil(4));
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Images::new(Arc::new(Lines(words, bytes.len())))
    }

    fn matrices<E: Element>() -> Vec<PackedMatrix<E>> {
        let values = PackedMatrix::<E>::new(40, 64, &mut |row, out| {
            out.iter_mut().enumerate().for_each(|(k, out)| *out = ((row * 64 + k) as f32).sin());
        });
        let raw: Vec<u8> = (0..40 * 2 * 20).map(|i| if i % 20 < 4 { 0x2c } else { i as u8 }).collect();
        let blocks = PackedMatrix::<E>::from_blocks(BlockFormat::Q4_1, 40, 64, &raw);
        let layer = Layer { matrix: &values, bias: None, slots: &[], adapter: None };
        let bytes = merge(&layer, Encoding::Int8);
        vec![values, blocks, bytes]
    }

    fn rows<E: Element>(matrix: &PackedMatrix<E>) -> Vec<f32> {
        let mut out = vec![0.0; 40 * 64];
        out.chunks_exact_mut(64).enumerate().for_each(|(row, out)| matrix.read_row(row, out));
        out
    }

    fn images_come_back<E: Element>() {
        let matrices = matrices::<E>();
        let mut bytes = Vec::new();
        for matrix in &matrices {
            matrix.write_image(&mut bytes).unwrap();
        }
        let mut images = mapped(&bytes);
        for matrix in &matrices {
            let again = PackedMatrix::<E>::from_image(40, 64, &mut images).unwrap();
            assert_eq!(rows(&again), rows(matrix));
            assert_eq!(again.bytes(), matrix.bytes());
        }
        assert!(PackedMatrix::<E>::from_image(40, 64, &mut images).is_none(), "there is no fourth");
    }

    #[test]
    fn images_come_back_in_both_types() {
        images_come_back::<f32>();
        images_come_back::<bf16>();
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let mut whole = Vec::new();
        matrices::<bf16>()[2].write_image(&mut whole).unwrap();
        let read =
            |bytes: &[u8], rows| PackedMatrix::<bf16>::from_image(rows, 64, &mut mapped(bytes)).is_some();
        assert!(read(&whole, 40) && !read(&whole, 41));
        for len in [0, 7, 64, whole.len() / 2, whole.len() - 1] {
            assert!(!read(&whole[..len], 40), "{len} bytes");
        }
        // Another form, fewer or far too many scales, fewer or far too many words.
        for (at, number) in [(0, 9), (0, 0), (3, 1), (3, u32::MAX), (4, 64), (4, u32::MAX)] {
            let mut broken = whole.clone();
            broken[4 * at..][..4].copy_from_slice(&u32::to_ne_bytes(number));
            assert!(!read(&broken, 40), "number {at} is {number}");
        }
    }
}
