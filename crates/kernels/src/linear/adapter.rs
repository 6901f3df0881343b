//! The LoRA pairs of a layer, laid out for the products of the current step.

use std::marker::PhantomData;
use std::ops::Range;

use super::Slot;
use super::kernel::{COLUMNS, Compute, operand_value};
use super::matrix::pack_columns;
use super::product::Extra;
use super::words::{Scratch, Words};
use crate::Element;

/// The LoRA pairs of one layer, laid out for the products of the current step: each of A and B is a narrow right
/// operand in one direction and a short one in the other.
#[derive(Debug, Clone, Default)]
pub struct PackedAdapter<E> {
    /// What the layout was made for.
    shape: Option<(Vec<Slot>, usize)>,
    pub(super) forward: Folded,
    pub(super) backward: Folded,
    element: PhantomData<E>,
}

/// One direction: down to the ranks, and up again.
#[derive(Debug, Clone, Default)]
pub(super) struct Folded {
    /// One for each slot.
    pub(super) down: Vec<Down>,
    /// Panels of [`COLUMNS`] columns, `[k word][COLUMNS]` each.
    up: Words,
    up_panels: Vec<UpPanel>,
}

/// The narrow operand of one slot, in pieces of 32 columns, the last of 16 or 32.
#[derive(Debug, Clone)]
pub(super) struct Down {
    /// The left operand's `k` words that it meets.
    pub(super) k: Range<usize>,
    words: Words,
    rank: usize,
}

#[derive(Debug, Clone)]
struct UpPanel {
    /// Words of `mid` that feed this panel.
    mid: Range<usize>,
    at: usize,
}

impl Down {
    fn zeros(k: Range<usize>, rank: usize) -> Self {
        let width: usize = pieces(rank).map(|(_, width)| width).sum();
        Self { words: Words::zeros(k.len() * width), k, rank }
    }
    /// The columns, the panel's width and its words, for each piece.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (Range<usize>, usize, &[u32])> {
        let k = self.k.len();
        pieces(self.rank).map(move |(columns, width)| {
            let words = &self.words[columns.start * k..][..width * k];
            (columns, width, words)
        })
    }
}

fn pieces(rank: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
    (0..rank).step_by(COLUMNS).map(move |first| {
        let columns = first..rank.min(first + COLUMNS);
        let width = if columns.len() > 16 { COLUMNS } else { 16 };
        (columns, width)
    })
}

impl Extra for Folded {
    fn panel(&self, panel: usize) -> (Range<usize>, &[u32]) {
        // Panels behind the last slot have no entry.
        self.up_panels.get(panel).map_or((0..0, &[]), |panel| {
            (panel.mid.clone(), &self.up[panel.at..][..panel.mid.len() * COLUMNS])
        })
    }
}

impl<E: Element> PackedAdapter<E> {
    /// Reads every slot's A and B from the parameters, reusing this adapter's memory.
    pub fn refresh(&mut self, parameters: &[f32], slots: &[Slot], inputs: usize) {
        if self.shape.as_ref().is_none_or(|(s, i)| s != slots || *i != inputs) {
            self.lay_out(slots, inputs);
        }
        let (mut mid, pair) = (0, E::pair());
        for (index, slot) in slots.iter().enumerate() {
            let mid_words = slot.rank.div_ceil(pair);
            round(&parameters[slot.a..][..slot.rank * inputs], 0, |a: &[E]| {
                self.write_a(index, a, inputs, mid);
            });
            // Row pairs of B begin at even rows of the layer.
            let skip = slot.rows.start % pair;
            round(&parameters[slot.b..][..slot.rows.len() * slot.rank], skip * slot.rank, |b: &[E]| {
                self.write_b(index, slot, b, skip, mid);
            });
            mid += mid_words;
        }
    }

    /// Slot `index`'s A and B as they are used, for the plain versions.
    pub(super) fn pair(&self, index: usize) -> (Vec<f32>, Vec<f32>) {
        let (slots, inputs) = self.shape.as_ref().expect("an adapter is refreshed before it is used");
        let slot = &slots[index];
        let read = |down: &Down, k: usize, r: usize| {
            let (columns, width, words) =
                down.pieces().find(|(columns, ..)| columns.contains(&r)).expect("a column");
            let word = (k / E::pair() - down.k.start) * width + r - columns.start;
            operand_value::<E>(words[word], k)
        };
        let (a, b) = (&self.forward.down[index], &self.backward.down[index]);
        let a = (0..slot.rank).flat_map(|r| (0..*inputs).map(move |i| read(a, i, r))).collect();
        let b = slot.rows.clone().flat_map(|o| (0..slot.rank).map(move |r| read(b, o, r))).collect();
        (a, b)
    }

    fn lay_out(&mut self, slots: &[Slot], inputs: usize) {
        self.shape = Some((slots.to_vec(), inputs));
        let (mut mids, mut mid, pair) = (Vec::new(), 0, E::pair());
        for slot in slots {
            mids.push(mid..mid + slot.rank.div_ceil(pair));
            mid += slot.rank.div_ceil(pair);
        }
        let input_words = inputs.div_ceil(pair);
        self.forward.down = slots.iter().map(|slot| Down::zeros(0..input_words, slot.rank)).collect();
        let output_words = |rows: &Range<usize>| rows.start / pair..rows.end.div_ceil(pair);
        self.backward.down =
            slots.iter().map(|slot| Down::zeros(output_words(&slot.rows), slot.rank)).collect();

        let outputs = slots.iter().map(|slot| slot.rows.end).max().unwrap_or(0);
        self.forward.lay_out_up((0..outputs.div_ceil(COLUMNS)).map(|panel| {
            let columns = panel * COLUMNS..(panel + 1) * COLUMNS;
            let meets = |slot: &Slot| slot.rows.start < columns.end && columns.start < slot.rows.end;
            let mut met = slots.iter().zip(&mids).filter(|(slot, _)| meets(slot)).map(|(_, mid)| mid);
            let first = met.next();
            first.map_or(0..0, |first| first.start..met.next_back().unwrap_or(first).end)
        }));
        self.backward.lay_out_up((0..inputs.div_ceil(COLUMNS)).map(|_| 0..mid));
    }

    fn write_a(&mut self, index: usize, a: &[E], inputs: usize, mid: usize) {
        let rank = a.len() / inputs.max(1);
        self.forward.down[index].write(|out, columns, width| {
            pack_columns(out, width, columns.map(|r| &a[r * inputs..][..inputs]));
        });
        for (panel, first) in (0..inputs).step_by(COLUMNS).enumerate() {
            let count = COLUMNS.min(inputs - first);
            let out = self.backward.up_words(panel, mid, 0);
            (E::kernels().weave)(out, COLUMNS, &a[first..], inputs, rank, count);
        }
    }

    /// `b` begins with `skip` rows of zeros.
    fn write_b(&mut self, index: usize, slot: &Slot, b: &[E], skip: usize, mid: usize) {
        let (rank, rows) = (slot.rank, slot.rows.len() + skip);
        self.backward.down[index].write(|out, columns, width| {
            (E::kernels().weave)(out, width, &b[columns.start..], rank, rows, columns.len());
        });
        let mut first = slot.rows.start;
        while first < slot.rows.end {
            let end = slot.rows.end.min(first / COLUMNS * COLUMNS + COLUMNS);
            let rows = &b[(first - slot.rows.start + skip) * rank..][..(end - first) * rank];
            let out = self.forward.up_words(first / COLUMNS, mid, first % COLUMNS);
            pack_columns(out, COLUMNS, rows.chunks_exact(rank.max(1)));
            first = end;
        }
    }
}

impl Down {
    fn write(&mut self, write: impl Fn(&mut [u32], Range<usize>, usize)) {
        let k = self.k.len();
        for (columns, width) in pieces(self.rank) {
            write(&mut self.words[columns.start * k..][..width * k], columns, width);
        }
    }
}

impl Folded {
    fn lay_out_up(&mut self, mids: impl Iterator<Item = Range<usize>>) {
        let mut at = 0;
        self.up_panels = mids
            .map(|mid| {
                let panel = UpPanel { mid, at };
                at += panel.mid.len() * COLUMNS;
                panel
            })
            .collect();
        self.up = Words::zeros(at);
    }

    /// A panel's words from word `mid` of all mids, from `column` on.
    fn up_words(&mut self, panel: usize, mid: usize, column: usize) -> &mut [u32] {
        let panel = &self.up_panels[panel];
        let words = &mut self.up[panel.at..][..panel.mid.len() * COLUMNS];
        &mut words[(mid - panel.mid.start) * COLUMNS + column..]
    }
}

/// Calls `work` with `zeros` zeros and the rounded values.
fn round<E: Compute>(values: &[f32], zeros: usize, work: impl FnOnce(&[E])) {
    let len = zeros + values.len();
    let mut scratch = Scratch::take(len.div_ceil(E::PAIR));
    let rounded = &mut bytemuck::cast_slice_mut::<u32, E>(&mut scratch)[..len];
    rounded[..zeros].fill(E::default());
    (E::kernels().narrow)(&mut rounded[zeros..], values);
    work(rounded);
}
