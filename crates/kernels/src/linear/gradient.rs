//! The gradients of A and B: sums over the rows of a batch.
//!
//! `d_A = d_mid^T x` and `d_B^T = mid^T d_y`: both have few rows (the ranks) and as columns those of a row-major
//! matrix, of which two consecutive rows are woven into words on the fly.

use std::ops::Range;

use super::kernel::{COLUMNS, LeftForm};
use super::left::{Left, LeftLayout, RowPanels};
use super::product::CHUNK;
use super::words::Scratch;
use super::{Element, Layer, Slot};
use crate::pool::{self, Shared};

/// See [`super::adapter_backward`].
pub(super) fn adapter_backward<E: Element>(
    gradients: &mut [f32],
    x: &[E],
    mid: &[E],
    d_y: &[E],
    d_mid: &[E],
    layer: &Layer<'_, E>,
    rows: usize,
) {
    let (outputs, inputs) = (layer.matrix.rows(), layer.matrix.cols());
    let panels = RankPanel::list::<E>(layer.slots);
    let width: usize = layer.slots.iter().map(|slot| slot.rank).sum();
    assert_disjoint(layer.slots, inputs);
    if rows == 0 || width == 0 {
        return;
    }
    let mut mid = weave_ranks(mid, width, rows, &panels);
    let mut d_mid = weave_ranks(d_mid, width, rows, &panels);
    let (mid, d_mid) = (&mut *mid, &mut *d_mid);
    let gradients = Shared::new(gradients);
    let (input_groups, output_groups) = (inputs.div_ceil(GROUP), outputs.div_ceil(GROUP));
    pool::run(input_groups + output_groups, &|job| {
        if job < input_groups {
            let group = job * GROUP..inputs.min((job + 1) * GROUP);
            sum_rows(x, inputs, rows, group, d_mid, &panels, |columns, panel, tile| {
                let slot = &layer.slots[panel.slot];
                for (r, tile) in panel.ranks.clone().zip(tile.chunks_exact(COLUMNS)) {
                    let start = slot.a + r * inputs;
                    // SAFETY: no other job has these columns, and the slots share no parameters.
                    let out = unsafe { gradients.range(start + columns.start..start + columns.end) };
                    (E::kernels().add)(out, &tile[..columns.len()]);
                }
            });
        } else {
            let first = (job - input_groups) * GROUP;
            let group = first..outputs.min(first + GROUP);
            let met = panels.iter().filter(|panel| !overlap(&layer.slots[panel.slot], &group).is_empty());
            let met: Vec<RankPanel> = met.cloned().collect();
            sum_rows(d_y, outputs, rows, group, mid, &met, |columns, panel, tile| {
                let slot = &layer.slots[panel.slot];
                for o in overlap(slot, columns) {
                    let start = slot.b + (o - slot.rows.start) * slot.rank;
                    // SAFETY: as above, with rows of B.
                    let out = unsafe { gradients.range(start + panel.ranks.start..start + panel.ranks.end) };
                    let tile = tile[o - columns.start..].iter().step_by(COLUMNS);
                    out.iter_mut().zip(tile).for_each(|(out, sum)| *out += sum);
                }
            });
        }
    });
}

/// See [`super::weight_backward`].
pub(super) fn weight_backward<E: Element>(
    gradient: &mut [f32],
    x: &[E],
    d_y: &[E],
    inputs: usize,
    outputs: usize,
) {
    let rows = d_y.len() / outputs;
    // The outputs stand where the ranks of an A matrix would.
    let panels = RankPanel::list::<E>(&[Slot { rows: 0..0, rank: outputs, scale: 1.0, a: 0, b: 0 }]);
    if rows == 0 {
        return;
    }
    let mut d_y = weave_ranks(d_y, outputs, rows, &panels);
    let d_y = &mut *d_y;
    let gradient = Shared::new(gradient);
    // Few panels a job, however many outputs there are: their tiles stay in the second-level cache.
    let parts: Vec<&[RankPanel]> = panels.chunks(PANELS).collect();
    pool::run(inputs.div_ceil(GROUP) * parts.len(), &|job| {
        let (group, panels) = (job / parts.len(), parts[job % parts.len()]);
        let group = group * GROUP..inputs.min((group + 1) * GROUP);
        sum_rows(x, inputs, rows, group, d_y, panels, |columns, panel, tile| {
            for (o, tile) in panel.ranks.clone().zip(tile.chunks_exact(COLUMNS)) {
                // SAFETY: no other job has these columns of these outputs.
                let out = unsafe { gradient.range(o * inputs + columns.start..o * inputs + columns.end) };
                (E::kernels().add)(out, &tile[..columns.len()]);
            }
        });
    });
}

/// The rows of a slot within a range.
fn overlap(slot: &Slot, columns: &Range<usize>) -> Range<usize> {
    slot.rows.start.max(columns.start)..slot.rows.end.min(columns.end)
}

/// A few ranks of a slot.
#[derive(Clone)]
struct RankPanel {
    slot: usize,
    ranks: Range<usize>,
    /// Where they are in `mid`.
    columns: Range<usize>,
}

impl RankPanel {
    /// For products of `E`.
    fn list<E: Element>(slots: &[Slot]) -> Vec<Self> {
        let (mut panels, mut first) = (Vec::new(), 0);
        for (slot, Slot { rank, .. }) in slots.iter().enumerate() {
            let cut = RowPanels::new::<E>(*rank);
            panels.extend((0..cut.count).map(|panel| {
                let ranks = cut.rows_of(panel);
                Self { slot, columns: first + ranks.start..first + ranks.end, ranks }
            }));
            first += rank;
        }
        panels
    }
}

/// The left operand: `mid^T` in panels of ranks.
fn weave_ranks<E: Element>(mid: &[E], width: usize, rows: usize, panels: &[RankPanel]) -> Scratch {
    let layout = LeftLayout::new::<E>(rows.div_ceil(E::pair()));
    let mut words = Scratch::take(layout.len(width));
    let shared = Shared::new(&mut words);
    pool::run(panels.len(), &|i| {
        let (columns, kernels) = (&panels[i].columns, E::kernels());
        // SAFETY: panels have columns of their own.
        let out = unsafe { shared.range(layout.panel(columns)) };
        let (mid, count) = (&mid[columns.start..], columns.len());
        if kernels.left == LeftForm::Woven {
            return (kernels.weave)(out, count, mid, width, rows, count);
        }
        let mut woven = Scratch::take(layout.k_words * count);
        (kernels.weave)(&mut woven, count, mid, width, rows, count);
        out.fill(0);
        for (k, words) in woven.chunks_exact(count).enumerate() {
            words.iter().enumerate().for_each(|(r, word)| out[layout.at(count, r, k)] = *word);
        }
    });
    words
}

/// Columns of a job: some neighbouring cache lines of each row.
const GROUP: usize = 4 * COLUMNS;
/// Panels of outputs of a job in [`weight_backward`].
const PANELS: usize = 16;

/// Multiplies each panel of ranks by some columns of `from`, summing over its rows, and hands each tile to
/// `store(columns, panel, tile)`.
fn sum_rows<E: Element>(
    from: &[E],
    width: usize,
    rows: usize,
    group: Range<usize>,
    left: &[u32],
    panels: &[RankPanel],
    store: impl Fn(&Range<usize>, &RankPanel, &[f32]),
) {
    let tile_len = E::left().most_rows() * COLUMNS;
    if panels.is_empty() {
        return;
    }
    let layout = LeftLayout::new::<E>(rows.div_ceil(E::pair()));
    let left = Left { words: left, layout };
    let parts = group.clone().step_by(COLUMNS).map(|first| first..group.end.min(first + COLUMNS));
    let parts: Vec<Range<usize>> = parts.collect();
    let chunk = CHUNK.min(layout.k_words);
    let mut scratch = Scratch::take(parts.len() * chunk * COLUMNS);
    if !group.len().is_multiple_of(COLUMNS) {
        // Columns behind the last one are multiplied too, and their sums left alone.
        scratch.fill(0);
    }
    let mut tiles = Scratch::take(parts.len() * panels.len() * tile_len);
    let tiles: &mut [f32] = bytemuck::cast_slice_mut(&mut tiles);
    for first in (0..layout.k_words).step_by(chunk) {
        let k = first..layout.k_words.min(first + chunk);
        // A few rows at a time, so that the processor sees each row's lines follow each other.
        for at in k.clone().step_by(STEP) {
            let (t, end) = (at * E::pair(), rows.min((at + STEP).min(k.end) * E::pair()));
            for (columns, words) in parts.iter().zip(scratch.chunks_exact_mut(chunk * COLUMNS)) {
                let words = &mut words[(at - k.start) * COLUMNS..];
                let from = &from[t * width + columns.start..];
                (E::kernels().weave)(words, COLUMNS, from, width, end - t, columns.len());
            }
        }
        let words = scratch.chunks_exact(chunk * COLUMNS);
        for ((columns, b), tiles) in
            parts.iter().zip(words).zip(tiles.chunks_exact_mut(panels.len() * tile_len))
        {
            for (panel, tile) in panels.iter().zip(tiles.chunks_exact_mut(tile_len)) {
                let segment = left.segment(&panel.columns, k.clone(), b);
                (E::kernels().tile)(tile, first > 0, &[segment], panel.columns.len(), COLUMNS);
                if k.end == layout.k_words {
                    store(columns, panel, tile);
                }
            }
        }
    }
}

/// `k` words that are woven at a time.
const STEP: usize = 8;

/// Jobs write to different parts of the gradients only if the slots have parameters of their own.
fn assert_disjoint(slots: &[Slot], inputs: usize) {
    let a = slots.iter().map(|slot| slot.a..slot.a + slot.rank * inputs);
    let mut ranges: Vec<_> =
        a.chain(slots.iter().map(|slot| slot.b..slot.b + slot.rows.len() * slot.rank)).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    assert!(
        ranges.windows(2).all(|pair| pair[0].end <= pair[1].start),
        "LoRA slots share parameters: {slots:?}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_parameters_of_their_own() {
        let slot = |a, b| Slot { rows: 0..4, rank: 2, scale: 1.0, a, b };
        assert_disjoint(&[slot(0, 16), slot(24, 40)], 8);
        for b in [slot(23, 40), slot(24, 39), slot(0, 100)] {
            let caught = std::panic::catch_unwind(|| assert_disjoint(&[slot(0, 16), b], 8));
            assert!(caught.is_err());
        }
    }
}
