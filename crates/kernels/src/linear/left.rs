//! Left operands: rows cut into panels and packed as the instruction set in use reads them.

use std::ops::Range;

use super::kernel::{Compute, Kernels, LeftForm, Multiply, ROWS, Segment, TILE_WORDS};
use super::words::LINE;
use crate::pool::Shared;

/// How rows are divided into panels of at most [`LeftForm::most_rows`] rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPanels {
    pub(crate) rows: usize,
    pub(crate) count: usize,
    pub(super) form: LeftForm,
}

impl RowPanels {
    /// For products of `M`.
    pub(crate) fn new<M: Multiply>(rows: usize) -> Self {
        Self::of(rows, M::left())
    }

    pub(super) fn of(rows: usize, form: LeftForm) -> Self {
        Self { rows, count: rows.div_ceil(form.most_rows()), form }
    }

    /// Most rows of a panel.
    pub(crate) fn most(self) -> usize {
        self.form.most_rows()
    }

    pub(crate) fn rows_of(self, panel: usize) -> Range<usize> {
        let most = self.most();
        let start = |panel: usize| match self.form {
            // As even as can be: low panels do not keep the multipliers busy.
            LeftForm::Woven => panel * self.rows / self.count,
            // As few heights as can be: the registers are set anew for each.
            LeftForm::Rows => self.rows.min(panel * most),
        };
        start(panel)..start(panel + 1)
    }
}

/// Where the words of a packed left operand lie, panel after panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeftLayout {
    form: LeftForm,
    /// Of `k`.
    pub(crate) k_words: usize,
    /// Words that a row takes.
    row_words: usize,
}

impl LeftLayout {
    /// For products of `M` over so many words of `k`.
    pub(crate) fn new<M: Multiply>(k_words: usize) -> Self {
        Self::of(k_words, M::left())
    }

    fn of(k_words: usize, form: LeftForm) -> Self {
        let row_words = match form {
            LeftForm::Woven => k_words,
            // An odd number of cache lines: a tile's rows do not compete for the same cache sets.
            LeftForm::Rows => (k_words + TILE_WORDS).next_multiple_of(LINE) | LINE,
        };
        Self { form, k_words, row_words }
    }

    /// Words of so many rows.
    pub(crate) fn len(self, rows: usize) -> usize {
        rows * self.row_words
    }

    /// The words of a panel.
    pub(crate) fn panel(self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.row_words..rows.end * self.row_words
    }

    /// Where a word of a panel of so many rows lies in it.
    pub(crate) fn at(self, rows: usize, row: usize, k: usize) -> usize {
        match self.form {
            LeftForm::Woven => k * rows + row,
            LeftForm::Rows => row * self.row_words + k,
        }
    }

    /// The part `k` of a panel of so many rows, and its stride.
    pub(crate) fn part(self, panel: &[u32], rows: usize, k: Range<usize>) -> (&[u32], usize) {
        match self.form {
            LeftForm::Woven => (&panel[k.start * rows..k.end * rows], rows),
            LeftForm::Rows if k.is_empty() => (&[], 0),
            LeftForm::Rows => (&panel[k.start..], self.row_words),
        }
    }

    /// Packs the rows of a panel from word `k` on.
    ///
    /// # Safety
    /// Nobody else uses these words.
    pub(crate) unsafe fn pack<'r, E: Compute>(
        self,
        words: &Shared<'_, u32>,
        kernels: &Kernels<E>,
        rows: Range<usize>,
        k: usize,
        row: impl Fn(usize) -> &'r [E],
    ) {
        if self.form == LeftForm::Woven {
            let mut slices: [&[E]; ROWS] = [&[]; ROWS];
            let count = rows.len();
            for (slice, t) in slices.iter_mut().zip(rows.clone()) {
                *slice = row(t);
            }
            let first = self.panel(&rows).start + k * count;
            let len = slices[0].len().div_ceil(kernels.pair) * count;
            // SAFETY: the caller's promise.
            let out = unsafe { words.range(first..first + len) };
            (kernels.pack)(out, count, &slices[..count]);
            return;
        }
        for t in rows {
            let (row, first) = (row(t), t * self.row_words + k);
            let len = row.len().div_ceil(E::PAIR);
            let behind = if k + len == self.k_words { self.row_words - self.k_words } else { 0 };
            // SAFETY: the caller's promise.
            let out = unsafe { words.range(first..first + len + behind) };
            out[len.saturating_sub(1)..].fill(0);
            bytemuck::cast_slice_mut(out)[..row.len()].copy_from_slice(row);
        }
    }
}

/// A packed left operand.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) words: &'a [u32],
    pub(crate) layout: LeftLayout,
}

impl<'a> Left<'a> {
    /// The part `k` of the panel with `rows`, met by `b`.
    pub(crate) fn segment(self, rows: &Range<usize>, k: Range<usize>, b: &'a [u32]) -> Segment<'a> {
        let (a, stride) = self.layout.part(&self.words[self.layout.panel(rows)], rows.len(), k.clone());
        Segment { a, stride, b, words: k.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_panels_are_even_or_full() {
        for (rows, form) in (1..200).flat_map(|rows| [(rows, LeftForm::Woven), (rows, LeftForm::Rows)]) {
            let (panels, most) = (RowPanels::of(rows, form), form.most_rows());
            let heights: Vec<usize> = (0..panels.count).map(|p| panels.rows_of(p).len()).collect();
            assert_eq!(heights.iter().sum::<usize>(), rows);
            assert!(heights.iter().all(|h| (1..=most).contains(h)));
            let (last, others) = heights.split_last().unwrap();
            match form {
                LeftForm::Woven => assert!(others.iter().all(|h| h.abs_diff(*last) <= 1)),
                LeftForm::Rows => assert!(others.iter().all(|h| *h == most)),
            }
        }
    }

    #[test]
    fn a_packed_row_lies_where_its_layout_says() {
        let (rows, values) = (3, 70);
        let value = |t: usize, k: usize| (t * values + k) as f32;
        let x: Vec<Vec<f32>> = (0..rows).map(|t| (0..values).map(|k| value(t, k)).collect()).collect();
        for form in [LeftForm::Woven, LeftForm::Rows] {
            let layout = LeftLayout::of(values, form);
            // Two parts, as the gradients of the logits are packed.
            let mut words = vec![u32::MAX; layout.len(rows)];
            let shared = Shared::new(&mut words);
            for (from, to) in [(0, 64), (64, values)] {
                // SAFETY: only this thread uses the words.
                unsafe { layout.pack(&shared, f32::kernels(), 0..rows, from, |t| &x[t][from..to]) };
            }
            for (t, k) in (0..rows).flat_map(|t| (0..values).map(move |k| (t, k))) {
                assert_eq!(words[layout.at(rows, t, k)], value(t, k).to_bits(), "{form:?}, row {t}, {k}");
            }
            let left = Left { words: &words, layout };
            let segment = left.segment(&(0..rows), 8..values, &[]);
            assert_eq!((segment.a[0], segment.words), (words[layout.at(rows, 0, 8)], values - 8));
            if form == LeftForm::Rows {
                let behind = |t| &words[layout.at(rows, t, values)..][..TILE_WORDS];
                assert!((0..rows).all(|t| behind(t) == [0; TILE_WORDS]), "what is read behind a row is zero");
            }
        }
    }
}
