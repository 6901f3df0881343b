//! A frozen matrix, packed once and used in both directions.

use std::marker::PhantomData;
use std::ops::Range;

use super::blocks::BlockFormat;
use super::bytes::OFFSET;
use super::image::Kept;
use super::kernel::{COLUMNS, Compute};
use super::product::{CHUNK, Right};
use super::words::{Scratch, Words, prefetch};
use crate::{Element, pool};

/// A frozen matrix `(rows, cols)`, kept as the right operand of `x W^T`: panels of 32 rows, each a row of blocks of
/// 32 x 32, padded with zeros.
#[derive(Debug, Clone)]
pub struct PackedMatrix<E> {
    rows: usize,
    cols: usize,
    form: Form,
    words: Kept,
    element: PhantomData<E>,
}

/// What a block holds.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// Values of the compute type, in the order of operand words `[k word][32]`.
    Values,
    /// Quants.
    Blocks(BlockFormat),
    /// Bytes with an offset, `[k word][32]`; the scale of each row.
    Bytes(Vec<f32>),
}

impl<E: Element> PackedMatrix<E> {
    /// Builds the matrix; `read(row, out)` fills one row.
    pub fn new(rows: usize, cols: usize, read: &mut dyn FnMut(usize, &mut [f32])) -> Self {
        let mut matrix = Self::zeros(rows, cols, Form::Values);
        let panel_words = matrix.panel_words();
        let all = matrix.parts_mut().0;
        // Some panels at a time: one thread reads, all pack.
        let batch = (8 * pool::threads()).min(rows.div_ceil(COLUMNS));
        let mut values = vec![0.0; batch * COLUMNS * cols];
        for (i, words) in all.chunks_mut((batch * panel_words).max(1)).enumerate() {
            let first = i * batch * COLUMNS;
            let count = (rows - first).min(batch * COLUMNS);
            for (row, values) in values.chunks_mut(cols).take(count).enumerate() {
                read(first + row, values);
            }
            pack_panels::<E>(words, panel_words, &values[..count * cols], cols);
        }
        matrix
    }

    /// Replaces all values, given row-major.
    ///
    /// # Panics
    /// When they are not as many as the matrix has, or it holds something else than values of the compute type.
    pub fn refill(&mut self, values: &[f32]) {
        assert!(matches!(self.form, Form::Values), "only values of the compute type are replaced");
        assert_eq!(values.len(), self.rows * self.cols, "a value for each place");
        let panel_words = self.panel_words();
        let cols = self.cols;
        pack_panels::<E>(self.parts_mut().0, panel_words, values, cols);
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
        let mut matrix = Self::zeros(rows, cols, Form::Blocks(format));
        let panel_words = matrix.panel_words();
        pool::for_each_chunk(matrix.parts_mut().0, panel_words, |panel, words| {
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
        let scales = if let Form::Bytes(scales) = &self.form { scales.len() } else { 0 };
        4 * (self.words.len() + scales)
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
            match &self.form {
                Form::Values => {
                    let (words, pair) = (bytemuck::cast_slice::<u32, E>(words), E::pair());
                    for (values, words) in
                        values.chunks_exact_mut(pair).zip(words.chunks_exact(COLUMNS * pair))
                    {
                        values.copy_from_slice(&words[n * pair..][..pair]);
                    }
                }
                Form::Blocks(format) => values = format.read(bytemuck::cast_slice(words), n),
                Form::Bytes(scales) => {
                    for (k, out) in out.iter_mut().enumerate() {
                        *out = scales[row] * f32::from(stored_byte(words, n, k));
                    }
                    continue;
                }
            }
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_f32());
        }
    }

    /// A row's bytes and their scale, of a matrix of bytes.
    pub(super) fn read_bytes(&self, row: usize) -> (impl Iterator<Item = i8>, f32) {
        let (_, scales) = self.bytes_and_scales();
        let byte =
            move |k: usize| stored_byte(self.block(row / COLUMNS, k / COLUMNS), row % COLUMNS, k % COLUMNS);
        ((0..self.cols).map(byte), scales[row])
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

    pub(super) fn zeros(rows: usize, cols: usize, form: Form) -> Self {
        let mut matrix = Self { rows, cols, form, words: Kept::Own(Words::default()), element: PhantomData };
        matrix.words = Kept::Own(Words::zeros(matrix.words_in_all()));
        matrix
    }
    /// A matrix of words that are there already; `None` when they, or the scales of bytes, are not as many as it needs.
    pub(super) fn of_parts(rows: usize, cols: usize, form: Form, words: Kept) -> Option<Self> {
        let matrix = Self { rows, cols, form, words, element: PhantomData };
        let scales = if let Form::Bytes(scales) = &matrix.form { Some(scales.len()) } else { None };
        let fits = matrix.words.len() == matrix.words_in_all()
            && scales.is_none_or(|scales| scales == rows.next_multiple_of(COLUMNS));
        fits.then_some(matrix)
    }
    /// What [`PackedMatrix::of_parts`] takes.
    pub(super) fn parts(&self) -> (&Form, &[u32]) {
        (&self.form, &self.words)
    }
    fn words_in_all(&self) -> usize {
        self.rows.div_ceil(COLUMNS) * self.panel_words()
    }
    /// Whether products with it are of integers.
    pub(crate) fn is_bytes(&self) -> bool {
        matches!(self.form, Form::Bytes(_))
    }
    /// The words and scales of a matrix of bytes.
    pub(super) fn bytes_and_scales(&self) -> (&[u32], &[f32]) {
        let Form::Bytes(scales) = &self.form else { panic!("a matrix of bytes is asked for") };
        (&self.words, scales)
    }
    /// All words, and the scales that a matrix of bytes has.
    ///
    /// # Panics
    /// When the words are those of a file.
    pub(super) fn parts_mut(&mut self) -> (&mut [u32], &mut [f32]) {
        let scales = if let Form::Bytes(scales) = &mut self.form { &mut scales[..] } else { &mut [] };
        let Kept::Own(words) = &mut self.words else { panic!("a matrix that is mapped does not change") };
        (words, scales)
    }
    /// Writes the values of a block, `[k][32]`: those of a file's blocks exactly, not rounded to `E`.
    pub(super) fn widen(&self, panel: usize, block: usize, out: &mut [f32]) {
        let words = self.block(panel, block);
        match &self.form {
            Form::Values => {
                let (words, pair) = (bytemuck::cast_slice::<u32, E>(words), E::pair());
                for (out, words) in
                    out.chunks_exact_mut(COLUMNS * pair).zip(words.chunks_exact(COLUMNS * pair))
                {
                    for (i, value) in words.iter().enumerate() {
                        out[i % pair * COLUMNS + i / pair] = value.to_f32();
                    }
                }
            }
            Form::Blocks(format) => {
                (f32::kernels().expand)(bytemuck::cast_slice_mut(out), bytemuck::cast_slice(words), *format);
            }
            Form::Bytes(scales) => {
                for (at, out) in out.iter_mut().enumerate() {
                    let (k, n) = (at / COLUMNS, at % COLUMNS);
                    *out = scales[panel * COLUMNS + n] * f32::from(stored_byte(words, n, k));
                }
            }
        }
    }
    /// Writes a block as operands, `[k word][32]`.
    fn expand(&self, panel: usize, block: usize, out: &mut [u32]) {
        let words = self.block(panel, block);
        match self.form {
            Form::Values => (E::kernels().widen)(bytemuck::cast_slice_mut(out), bytemuck::cast_slice(words)),
            Form::Blocks(format) => (E::kernels().expand)(out, bytemuck::cast_slice(words), format),
            Form::Bytes(_) => panic!("bytes are multiplied in integers"),
        }
    }
    /// Words of a stored block.
    fn block_words(&self) -> usize {
        match &self.form {
            Form::Values => COLUMNS * COLUMNS / E::PAIR,
            Form::Blocks(format) => format.words(),
            Form::Bytes(_) => COLUMNS * COLUMNS / 4,
        }
    }
    pub(super) fn panel_words(&self) -> usize {
        self.cols.div_ceil(COLUMNS) * self.block_words()
    }
    fn block(&self, panel: usize, block: usize) -> &[u32] {
        &self.words[panel * self.panel_words() + block * self.block_words()..][..self.block_words()]
    }
}

/// Row `n`, column `k` of a block of bytes.
fn stored_byte(words: &[u32], n: usize, k: usize) -> i8 {
    let byte = words[k / 4 * COLUMNS + n].to_le_bytes()[k % 4];
    (i32::from(byte) - OFFSET) as i8
}

/// Rounds rows and packs them, panel by panel.
fn pack_panels<E: Element>(words: &mut [u32], panel_words: usize, values: &[f32], cols: usize) {
    pool::for_each_chunk(words, panel_words, |panel, words| {
        let values = &values[panel * COLUMNS * cols..values.len().min((panel + 1) * COLUMNS * cols)];
        let mut rounded = Scratch::take(values.len().div_ceil(E::PAIR));
        let rounded = &mut bytemuck::cast_slice_mut::<u32, E>(&mut rounded)[..values.len()];
        (E::kernels().narrow)(rounded, values);
        let rows = rounded.chunks_exact(cols);
        if stored_as_operands::<E>() {
            pack_columns(words, COLUMNS, rows);
        } else {
            let mut operands = Scratch::take(cols * COLUMNS);
            if values.len() < cols * COLUMNS {
                // Rows that are missing are zeros, so that the same matrix has the same bytes.
                operands.fill(0);
            }
            pack_columns(&mut operands, COLUMNS, rows);
            (E::kernels().narrow)(bytemuck::cast_slice_mut(words), bytemuck::cast_slice(&operands));
        }
    });
}

/// Whether products read values of the compute type as they are stored; they are widened otherwise.
fn stored_as_operands<E: Element>() -> bool {
    E::pair() == E::PAIR
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
        self.matrix.cols.div_ceil(E::pair())
    }
    fn chunk(&self) -> usize {
        let ready = matches!(self.matrix.form, Form::Values) && stored_as_operands::<E>();
        if ready { usize::MAX } else { CHUNK }
    }
    fn panel<'a>(&'a self, panel: usize, k: Range<usize>, scratch: &'a mut [u32]) -> &'a [u32] {
        let (matrix, panel) = (self.matrix, self.panels.start + panel);
        if self.chunk() == usize::MAX {
            return &matrix.words[panel * matrix.panel_words()..][k.start * COLUMNS..k.end * COLUMNS];
        }
        for (block, out) in blocks::<E>(&k).zip(scratch.chunks_mut(block_words::<E>())) {
            matrix.expand(panel, block, out);
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
        self.0.rows.div_ceil(E::pair())
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
        let mut expanded = [0; COLUMNS * COLUMNS];
        let ready = matches!(self.0.form, Form::Values) && stored_as_operands::<E>();
        for (block, out) in blocks::<E>(&k).zip(scratch.chunks_mut(block_words::<E>())) {
            let words = if ready {
                self.0.block(block, panel)
            } else {
                self.0.expand(block, panel, &mut expanded);
                &expanded
            };
            (E::kernels().turn)(out, words);
        }
        &scratch[..k.len() * COLUMNS]
    }
}

/// The blocks that hold a range of `k` words which begins with a block.
fn blocks<E: Element>(k: &Range<usize>) -> Range<usize> {
    let words = COLUMNS / E::pair();
    k.start / words..k.end.div_ceil(words)
}

/// Words of a block of operands.
fn block_words<E: Element>() -> usize {
    COLUMNS * COLUMNS / E::pair()
}
