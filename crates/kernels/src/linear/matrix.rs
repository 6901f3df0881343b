//! A frozen matrix, packed once and used in both directions.

use std::marker::PhantomData;
use std::ops::Range;

use super::blocks::BlockFormat;
use super::kernel::{COLUMNS, Compute};
use super::product::{CHUNK, Right};
use super::words::{Scratch, Words, prefetch};
use crate::{Element, pool};

/// A frozen matrix `(rows, cols)`, kept as the right operand of `x W^T`: panels of 32 rows, each a row of blocks of
/// 32 x 32, padded with zeros. A block holds values of the compute type, `[k word][32]`, or quants.
#[derive(Debug, Clone)]
pub struct PackedMatrix<E> {
    rows: usize,
    cols: usize,
    /// `None`: values of the compute type.
    format: Option<BlockFormat>,
    words: Words,
    element: PhantomData<E>,
}

impl<E: Element> PackedMatrix<E> {
    /// `k` words of an expanded block.
    const BLOCK: usize = COLUMNS / E::PAIR;

    /// Builds the matrix; `read(row, out)` fills one row.
    pub fn new(rows: usize, cols: usize, read: &mut dyn FnMut(usize, &mut [f32])) -> Self {
        let mut matrix = Self::zeros(rows, cols, None);
        let panel_words = matrix.panel_words();
        // Some panels at a time: one thread reads, all pack.
        let batch = (8 * pool::threads()).min(rows.div_ceil(COLUMNS));
        let mut values = vec![0.0; batch * COLUMNS * cols];
        for (i, words) in matrix.words.chunks_mut((batch * panel_words).max(1)).enumerate() {
            let first = i * batch * COLUMNS;
            let count = (rows - first).min(batch * COLUMNS);
            for (row, values) in values.chunks_mut(cols).take(count).enumerate() {
                read(first + row, values);
            }
            pool::for_each_chunk(words, panel_words, |panel, words| {
                let values =
                    &values[panel * COLUMNS * cols..(count * cols).min((panel + 1) * COLUMNS * cols)];
                let mut rounded = Scratch::take(values.len().div_ceil(E::PAIR));
                let rounded = &mut bytemuck::cast_slice_mut::<u32, E>(&mut rounded)[..values.len()];
                (E::kernels().narrow)(rounded, values);
                pack_columns(words, COLUMNS, rounded.chunks_exact(cols));
            });
        }
        matrix
    }

    /// Builds the matrix from the blocks of a file, row-major, and keeps their few bits.
    ///
    /// # Panics
    /// When `cols` is no multiple of 32 or `raw` has not the length of the blocks.
    pub fn from_blocks(format: BlockFormat, rows: usize, cols: usize, raw: &[u8]) -> Self {
        let (blocks, bytes) = (cols / COLUMNS, format.bytes());
        assert!(
            cols.is_multiple_of(COLUMNS) && raw.len() == rows * blocks * bytes,
            "{rows} x {cols} of {format:?}"
        );
        let mut matrix = Self::zeros(rows, cols, Some(format));
        let panel_words = matrix.panel_words();
        pool::for_each_chunk(&mut matrix.words, panel_words, |panel, words| {
            let raw = raw.chunks_exact(blocks * bytes).skip(panel * COLUMNS).take(COLUMNS);
            let words: &mut [u8] = bytemuck::cast_slice_mut(words);
            for (n, row) in raw.enumerate() {
                for (block, raw) in words.chunks_exact_mut(COLUMNS * bytes).zip(row.chunks_exact(bytes)) {
                    format.store(block, n, raw);
                }
            }
        });
        matrix
    }

    /// `O`.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// `I`.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Memory held.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val::<[u32]>(&self.words)
    }

    /// Copies one row out.
    ///
    /// # Panics
    /// When the row is not below `rows` or `out` is longer than a row.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() <= self.cols, "row {row} of {}", self.rows);
        let n = row % COLUMNS;
        for (block, out) in out.chunks_mut(COLUMNS).enumerate() {
            let words = self.block(row / COLUMNS, block);
            let mut values = [E::default(); COLUMNS];
            if let Some(format) = self.format {
                values = format.read(bytemuck::cast_slice(words), n);
            } else {
                let words = bytemuck::cast_slice::<u32, E>(words).chunks_exact(COLUMNS * E::PAIR);
                for (values, words) in values.chunks_exact_mut(E::PAIR).zip(words) {
                    values.copy_from_slice(&words[n * E::PAIR..][..E::PAIR]);
                }
            }
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_f32());
        }
    }

    /// The right operand of `x W^T`, or some of its panels.
    pub(crate) fn forward(&self, panels: Range<usize>) -> Forward<'_, E> {
        Forward { matrix: self, panels }
    }
    /// All panels of [`PackedMatrix::forward`].
    pub(crate) fn panels(&self) -> Range<usize> {
        0..self.rows.div_ceil(COLUMNS)
    }
    /// The right operand of `d_y W`.
    pub(crate) fn backward(&self) -> Backward<'_, E> {
        Backward(self)
    }

    fn zeros(rows: usize, cols: usize, format: Option<BlockFormat>) -> Self {
        let mut matrix = Self { rows, cols, format, words: Words::default(), element: PhantomData };
        matrix.words = Words::zeros(rows.div_ceil(COLUMNS) * matrix.panel_words());
        matrix
    }
    /// Words of a stored block.
    fn block_words(&self) -> usize {
        self.format.map_or(Self::BLOCK * COLUMNS, BlockFormat::words)
    }
    fn panel_words(&self) -> usize {
        self.cols.div_ceil(COLUMNS) * self.block_words()
    }
    fn block(&self, panel: usize, block: usize) -> &[u32] {
        &self.words[panel * self.panel_words() + block * self.block_words()..][..self.block_words()]
    }
}

/// Packs up to 32 rows as the columns of a panel.
pub(super) fn pack_columns<'a, E: Compute>(
    out: &mut [u32],
    stride: usize,
    rows: impl Iterator<Item = &'a [E]>,
) {
    let mut slices: [&[E]; COLUMNS] = [&[]; COLUMNS];
    let mut count = 0;
    for (slice, row) in slices.iter_mut().zip(rows) {
        *slice = row;
        count += 1;
    }
    for (i, slices) in slices[..count].chunks(16).enumerate() {
        (E::kernels().pack)(&mut out[16 * i..], stride, slices);
    }
}

/// See [`PackedMatrix::forward`].
pub(crate) struct Forward<'a, E> {
    matrix: &'a PackedMatrix<E>,
    panels: Range<usize>,
}

impl<E: Element> Right for Forward<'_, E> {
    fn panels(&self) -> usize {
        self.panels.len()
    }
    fn k_words(&self) -> usize {
        self.matrix.cols.div_ceil(E::PAIR)
    }
    fn chunk(&self) -> usize {
        if self.matrix.format.is_some() { CHUNK } else { usize::MAX }
    }
    fn panel<'a>(&'a self, panel: usize, k: Range<usize>, scratch: &'a mut [u32]) -> &'a [u32] {
        let (matrix, panel) = (self.matrix, self.panels.start + panel);
        let Some(format) = matrix.format else {
            return &matrix.words[panel * matrix.panel_words()..][k.start * COLUMNS..k.end * COLUMNS];
        };
        let blocks = blocks::<E>(&k);
        for (block, out) in blocks.zip(scratch.chunks_mut(PackedMatrix::<E>::BLOCK * COLUMNS)) {
            (E::kernels().expand)(out, bytemuck::cast_slice(matrix.block(panel, block)), format);
        }
        &scratch[..k.len() * COLUMNS]
    }
}

/// See [`PackedMatrix::backward`].
pub(crate) struct Backward<'a, E>(&'a PackedMatrix<E>);

impl<E: Element> Right for Backward<'_, E> {
    fn panels(&self) -> usize {
        self.0.cols.div_ceil(COLUMNS)
    }
    fn k_words(&self) -> usize {
        self.0.rows.div_ceil(E::PAIR)
    }
    fn chunk(&self) -> usize {
        CHUNK
    }
    /// Blocks lie a whole panel apart.
    fn prefetch(&self, panel: usize, k: Range<usize>, i: usize, n: usize) {
        let blocks = blocks::<E>(&k);
        for block in blocks.start + i * blocks.len() / n..blocks.start + (i + 1) * blocks.len() / n {
            prefetch(self.0.block(block, panel));
        }
    }
    fn panel<'a>(&'a self, panel: usize, k: Range<usize>, scratch: &'a mut [u32]) -> &'a [u32] {
        let kernels = E::kernels();
        let mut expanded = [0; COLUMNS * COLUMNS];
        for (block, out) in blocks::<E>(&k).zip(scratch.chunks_mut(PackedMatrix::<E>::BLOCK * COLUMNS)) {
            let words = self.0.block(block, panel);
            if let Some(format) = self.0.format {
                (kernels.expand)(&mut expanded, bytemuck::cast_slice(words), format);
                (kernels.turn)(out, &expanded);
            } else {
                (kernels.turn)(out, words);
            }
        }
        &scratch[..k.len() * COLUMNS]
    }
}

/// The blocks that hold a range of `k` words which begins with a block.
fn blocks<E: Element>(k: &Range<usize>) -> Range<usize> {
    k.start / PackedMatrix::<E>::BLOCK..k.end.div_ceil(PackedMatrix::<E>::BLOCK)
}
