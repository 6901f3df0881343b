//! A frozen matrix, packed once and used in both directions.

use std::marker::PhantomData;
use std::ops::Range;

use super::kernel::{COLUMNS, Compute};
use super::product::{CHUNK, Right};
use super::words::{Scratch, Words};
use crate::{Element, pool};

/// A frozen matrix `(rows, cols)`, kept as the right operand of `x W^T`: panels of 32 rows, `[panel][k word][32]`,
/// padded with zeros to whole blocks of 32 x 32.
#[derive(Debug, Clone)]
pub struct PackedMatrix<E> {
    rows: usize,
    cols: usize,
    words: Words,
    element: PhantomData<E>,
}

impl<E: Element> PackedMatrix<E> {
    /// `k` words of a block.
    const BLOCK: usize = COLUMNS / E::PAIR;

    /// Builds the matrix; `read(row, out)` fills one row.
    pub fn new(rows: usize, cols: usize, read: &mut dyn FnMut(usize, &mut [f32])) -> Self {
        let panel_words = cols.div_ceil(COLUMNS) * Self::BLOCK * COLUMNS;
        let mut words = Words::zeros(rows.div_ceil(COLUMNS) * panel_words);
        // Some panels at a time: one thread reads, all pack.
        let batch = (8 * pool::threads()).min(rows.div_ceil(COLUMNS));
        let mut values = vec![0.0; batch * COLUMNS * cols];
        for (i, words) in words.chunks_mut((batch * panel_words).max(1)).enumerate() {
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
        Self { rows, cols, words, element: PhantomData }
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
        let values = bytemuck::cast_slice::<u32, E>(self.panel_words(row / COLUMNS));
        for (words, out) in values.chunks_exact(COLUMNS * E::PAIR).zip(out.chunks_mut(E::PAIR)) {
            for (out, value) in out.iter_mut().zip(&words[row % COLUMNS * E::PAIR..]) {
                *out = value.to_f32();
            }
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

    fn panel_words(&self, panel: usize) -> &[u32] {
        let len = self.cols.div_ceil(COLUMNS) * Self::BLOCK * COLUMNS;
        &self.words[panel * len..][..len]
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
        usize::MAX
    }
    fn panel<'a>(&'a self, panel: usize, k: Range<usize>, _: &'a mut [u32]) -> &'a [u32] {
        &self.matrix.panel_words(self.panels.start + panel)[k.start * COLUMNS..k.end * COLUMNS]
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
    fn panel<'a>(&'a self, panel: usize, k: Range<usize>, scratch: &'a mut [u32]) -> &'a [u32] {
        let block_words = PackedMatrix::<E>::BLOCK * COLUMNS;
        let first = k.start / PackedMatrix::<E>::BLOCK;
        let blocks = first..k.end.div_ceil(PackedMatrix::<E>::BLOCK);
        for (block, out) in blocks.zip(scratch.chunks_mut(block_words)) {
            (E::kernels().turn)(out, &self.0.panel_words(block)[panel * block_words..][..block_words]);
        }
        &scratch[..k.len() * COLUMNS]
    }
}
