//! Products in integers, for routing: weights in 8 bits with one scale a row, activations rounded to 8 bits with one
//! scale a row at the time of the product.
//!
//! `y[t][o] = x_scale[t] w_scale[o] sum_i x[t][i] w[o][i]`. The dot products of the processors take one operand
//! without sign, so weights are stored as `w + 128`, and `128 sum_i x[t][i]` is taken off again. Sums are exact: every
//! instruction set gives the same bits.

use std::ops::Range;

use super::kernel::{COLUMNS, Compute, LeftForm, MOST_ROWS, Multiply, Tile};
use super::left::{Left, LeftLayout, RowPanels};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::product::{Right, multiply};
use super::words::Scratch;
use super::{PackedMatrix, Sink, Target, portable};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};
use crate::lanes::rows_per_job;
use crate::pool::{self, Shared};
use crate::{Element, Isa, isa};

/// What is added to a stored weight.
pub(super) const OFFSET: i32 = 128;
/// The largest byte; -128 is not used, so that the sign of a value does not matter.
const MOST: f32 = 127.0;
/// Sums of more products might not fit 32 bits.
pub(super) const MOST_INPUTS: usize = i32::MAX as usize / (255 * 127);

/// Four bytes in a word: signed activations times unsigned weights.
pub(crate) struct Bytes;

impl Multiply for Bytes {
    const PAIR: usize = 4;
    type Sum = i32;
    fn multiply_add(sum: i32, a: u32, b: u32) -> i32 {
        let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
        products.fold(sum, |sum, (a, b)| sum + i32::from(a as i8) * i32::from(b))
    }
    fn tile() -> Tile<i32> {
        match isa::current() {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => amx::tile::<Self>,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512::tile::<Self>,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::tile::<Self>,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::tile::<Self>,
            _ => portable::tile::<Self>,
        }
    }
    fn left() -> LeftForm {
        if isa::current() == Isa::Amx { LeftForm::Rows } else { LeftForm::Woven }
    }
}

/// The scale of bytes for values up to `peak`, and its inverse.
#[inline(always)]
#[allow(clippy::inline_always)] // into functions compiled for wider instruction sets
pub(super) fn byte_scale(peak: f32) -> (f32, f32) {
    (peak / MOST, if peak > 0.0 { MOST / peak } else { 0.0 })
}

/// The nearest byte, ties to even.
#[inline(always)]
#[allow(clippy::inline_always)]
pub(super) fn nearest(value: f32) -> i8 {
    // At this magnitude a unit of the last place is one.
    const SHIFT: f32 = 12_582_912.0;
    let value = value.clamp(-MOST, MOST);
    (value + SHIFT).to_bits() as i8
}

/// A matrix of bytes as the right operand of `x W^T`, or some of its panels.
struct Forward<'a> {
    words: &'a [u32],
    panel_words: usize,
    k_words: usize,
    panels: Range<usize>,
}

impl Right for Forward<'_> {
    fn panels(&self) -> usize {
        self.panels.len()
    }
    fn k_words(&self) -> usize {
        self.k_words
    }
    fn chunk(&self) -> usize {
        usize::MAX
    }
    fn panel<'a>(&'a self, panel: usize, k: Range<usize>, _: &'a mut [u32]) -> &'a [u32] {
        let panel = self.panels.start + panel;
        &self.words[panel * self.panel_words..][k.start * COLUMNS..k.end * COLUMNS]
    }
}

/// Rows rounded to bytes and packed.
pub(crate) struct Rounded {
    rows: RowPanels,
    layout: LeftLayout,
    packed: Scratch,
    /// Each row's scale and sum of bytes, in the bits of a word each.
    scales: Scratch,
}

impl Rounded {
    /// Rounds `rows` rows of `inputs` values.
    pub(crate) fn new<'x, E: Element>(
        rows: usize,
        inputs: usize,
        row: impl Fn(usize) -> &'x [E] + Sync,
    ) -> Self {
        let (rows, k_words) = (RowPanels::new::<Bytes>(rows), inputs.div_ceil(Bytes::PAIR));
        let layout = LeftLayout::new::<Bytes>(k_words);
        let mut packed = Scratch::take(layout.len(rows.rows));
        let mut scales = Scratch::take(2 * rows.rows);
        let (to, to_scales) = (Shared::new(&mut packed), Shared::new(&mut scales));
        let per_job = rows_per_job(inputs).div_ceil(Bytes::left().most_rows());
        pool::run(rows.count.div_ceil(per_job), &|job| {
            let mut bytes = Scratch::take(MOST_ROWS * k_words);
            for panel in job * per_job..rows.count.min((job + 1) * per_job) {
                let range = rows.rows_of(panel);
                // SAFETY: each panel belongs to one job, and the rows of panels do not overlap.
                let scales = unsafe { to_scales.range(2 * range.start..2 * range.end) };
                for ((t, words), scale) in
                    range.clone().zip(bytes.chunks_exact_mut(k_words)).zip(scales.chunks_exact_mut(2))
                {
                    words[k_words - 1] = 0; // the last word may be longer than the row
                    let bytes = &mut bytemuck::cast_slice_mut(words)[..inputs];
                    let (factor, sum) = (E::kernels().to_bytes)(bytes, row(t));
                    (scale[0], scale[1]) = (factor.to_bits(), sum.cast_unsigned());
                }
                let words: &[f32] = bytemuck::cast_slice(&bytes);
                let first = range.start;
                let row = |t: usize| &words[(t - first) * k_words..][..k_words];
                // SAFETY: as above.
                unsafe { layout.pack(&to, f32::kernels(), range, 0, row) };
            }
        });
        Self { rows, layout, packed, scales }
    }

    /// Multiplies with panels of a matrix of bytes and hands each tile to `store`, as [`multiply`] does.
    pub(crate) fn multiply<E: Element>(
        &self,
        matrix: &PackedMatrix<E>,
        panels: Range<usize>,
        store: &(impl Fn(Range<usize>, usize, &mut [f32]) + Sync),
    ) {
        let (words, scales) = matrix.bytes_and_scales();
        let (k_words, first) = (self.layout.k_words, panels.start);
        let right = Forward { words, panel_words: matrix.panel_words(), k_words, panels };
        let left = Left { words: &self.packed, layout: self.layout };
        multiply::<Bytes>(
            self.rows,
            left,
            &right,
            left,
            &(),
            &|rows: Range<usize>, panel, sums: &mut [i32]| {
                let scales = &scales[(first + panel) * COLUMNS..][..COLUMNS];
                let mut tile = [0.0; MOST_ROWS * COLUMNS];
                let of_rows = self.scales[2 * rows.start..2 * rows.end].chunks_exact(2);
                let tiles = tile.chunks_exact_mut(COLUMNS).zip(sums.chunks_exact(COLUMNS));
                for ((out, sums), row) in tiles.zip(of_rows) {
                    let (factor, sum) = (f32::from_bits(row[0]), row[1].cast_signed());
                    (E::kernels().from_sums)(out, sums, OFFSET * sum, factor, scales);
                }
                store(rows, panel, &mut tile);
            },
        );
    }
}

/// See [`super::forward`], of a matrix of bytes.
pub(super) fn forward<E: Element>(
    y: Target<'_, E>,
    x: &[E],
    matrix: &PackedMatrix<E>,
    bias: Option<&[f32]>,
    rows: usize,
) {
    if rows == 0 {
        return;
    }
    let inputs = matrix.cols();
    let rounded = Rounded::new(rows, inputs, |t| &x[t * inputs..][..inputs]);
    let sink = Sink::new(y, bias, matrix.rows(), rows);
    rounded.multiply(matrix, matrix.panels(), &|rows, panel, tile: &mut [f32]| sink.put(rows, panel, tile));
}
