//! LoRA merged into the frozen weights, `W + scale B A`, and weights encoded anew.

use super::Layer;
use super::adapter::PackedAdapter;
use super::bytes::{MOST_INPUTS, byte_scale};
use super::kernel::{COLUMNS, MOST_ROWS};
use super::left::{Left, LeftLayout, RowPanels};
use super::matrix::{Form, PackedMatrix};
use super::product::Extra;
use super::words::{Scratch, Words};
use crate::pool::{self, Shared};
use crate::{Element, Slot};

/// How the weights of a merged layer are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// In the compute type.
    Compute,
    /// In 8 bits with one scale a row; activations are rounded to 8 bits too, and products are sums of integers.
    /// Such a matrix has no backward pass.
    Int8,
}

/// Values of a block.
const BLOCK: usize = COLUMNS * COLUMNS;

/// Makes one matrix of a layer's weights and its LoRA pairs.
/// # Panics
/// When rows of more than 66,000 inputs are to be bytes.
pub fn merge<E: Element>(layer: &Layer<'_, E>, encoding: Encoding) -> PackedMatrix<E> {
    let (rows, cols) = (layer.matrix.rows(), layer.matrix.cols());
    let form = match encoding {
        Encoding::Compute => Form::Values,
        Encoding::Int8 => {
            assert!(cols <= MOST_INPUTS, "sums of {cols} products of bytes might not fit 32 bits");
            Form::Bytes(vec![0.0; rows.next_multiple_of(COLUMNS)])
        }
    };
    let mut merged = PackedMatrix::zeros(rows, cols, form);
    let (panel_words, blocks) = (merged.panel_words(), cols.div_ceil(COLUMNS));
    let pairs = layer.adapter.map_or_else(Vec::new, |adapter| pairs(adapter, layer.slots, blocks));
    let (words, scales) = merged.parts_mut();
    let scales = Shared::new(scales);
    pool::for_each_chunk(words, panel_words, |panel, words| {
        let mut values = Scratch::take(blocks * BLOCK);
        let values: &mut [f32] = bytemuck::cast_slice_mut(&mut values);
        for (block, values) in values.chunks_exact_mut(BLOCK).enumerate() {
            layer.matrix.widen(panel, block, values);
        }
        for pair in &pairs {
            pair.add(values, panel);
        }
        match encoding {
            Encoding::Compute => write_values::<E>(words, values),
            // SAFETY: each panel has its own scales, and belongs to one job.
            Encoding::Int8 => unsafe {
                write_bytes::<E>(words, scales.range(panel * COLUMNS..(panel + 1) * COLUMNS), values);
            },
        }
    });
    merged
}

/// A slot's pair as operands of `A^T B^T`.
struct Pair<'a, E> {
    slot: &'a Slot,
    adapter: &'a PackedAdapter<E>,
    /// Its words among those of all slots.
    mid: std::ops::Range<usize>,
    /// `A^T` as a left operand, a block of [`COLUMNS`] rows after the other.
    left: Words,
}

fn pairs<'a, E: Element>(
    adapter: &'a PackedAdapter<E>,
    slots: &'a [Slot],
    blocks: usize,
) -> Vec<Pair<'a, E>> {
    let mut first = 0;
    let pair = |slot: &'a Slot| {
        let mid = first..first + slot.rank.div_ceil(E::pair());
        first = mid.end;
        let layout = LeftLayout::new::<E>(mid.len());
        let mut left = Words::zeros(blocks * layout.len(COLUMNS));
        let parts = RowPanels::new::<E>(COLUMNS);
        for (block, left) in left.chunks_exact_mut(layout.len(COLUMNS).max(1)).enumerate() {
            let (all, a) = adapter.backward.panel(block);
            let a = &a[(mid.start - all.start) * COLUMNS..][..mid.len() * COLUMNS];
            for part in 0..parts.count {
                let rows = parts.rows_of(part);
                let left = &mut left[layout.panel(&rows)];
                for (k, a) in a.chunks_exact(COLUMNS).enumerate() {
                    for (r, word) in a[rows.clone()].iter().enumerate() {
                        left[layout.at(rows.len(), r, k)] = *word;
                    }
                }
            }
        }
        Pair { slot, adapter, mid, left }
    };
    slots.iter().map(pair).collect()
}

impl<E: Element> Pair<'_, E> {
    /// Adds the pair's product to a panel of values, `[input][COLUMNS]`.
    fn add(&self, values: &mut [f32], panel: usize) {
        let columns = panel * COLUMNS..(panel + 1) * COLUMNS;
        if self.slot.rows.end <= columns.start || columns.end <= self.slot.rows.start {
            return;
        }
        let kernels = E::kernels();
        let (all, b) = self.adapter.forward.panel(panel);
        let (k, parts) = (self.mid.len(), RowPanels::new::<E>(COLUMNS));
        let layout = LeftLayout::new::<E>(k);
        let b = &b[(self.mid.start - all.start) * COLUMNS..][..k * COLUMNS];
        let mut tile = [0.0; MOST_ROWS * COLUMNS];
        for (block, values) in values.chunks_exact_mut(BLOCK).enumerate() {
            let left = Left { words: &self.left[block * layout.len(COLUMNS)..], layout };
            for part in 0..parts.count {
                let rows = parts.rows_of(part);
                let segment = left.segment(&rows, 0..k, b);
                (kernels.tile)(&mut tile, false, &[segment], rows.len(), COLUMNS);
                let tile = &mut tile[..rows.len() * COLUMNS];
                (kernels.scale)(tile, self.slot.scale);
                (kernels.add)(&mut values[rows.start * COLUMNS..rows.end * COLUMNS], tile);
            }
        }
    }
}

/// Rounds a panel to the compute type.
fn write_values<E: Element>(words: &mut [u32], values: &[f32]) {
    let mut rounded = [E::default(); BLOCK];
    for (words, values) in words.chunks_exact_mut(BLOCK / E::PAIR).zip(values.chunks_exact(BLOCK)) {
        if E::pair() == 1 {
            (E::kernels().narrow)(bytemuck::cast_slice_mut(words), values);
        } else {
            (E::kernels().narrow)(&mut rounded, values);
            (E::kernels().weave)(words, COLUMNS, &rounded, COLUMNS, COLUMNS, COLUMNS);
        }
    }
}

/// Rounds a panel to bytes, with a scale for each column.
fn write_bytes<E: Element>(words: &mut [u32], scales: &mut [f32], values: &[f32]) {
    let mut peaks = [0.0; COLUMNS];
    (E::kernels().peaks)(&mut peaks, values);
    let mut inverses = [0.0; COLUMNS];
    for ((scale, inverse), peak) in scales.iter_mut().zip(&mut inverses).zip(peaks) {
        (*scale, *inverse) = byte_scale(peak);
    }
    (E::kernels().weave_bytes)(words, values, &inverses);
}
