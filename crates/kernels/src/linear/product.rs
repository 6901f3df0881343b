//! The product driver: cuts `C = A B` into jobs and runs the tiles of each.

use std::ops::Range;

use super::kernel::{COLUMNS, Compute, Kernels, LeftForm, MOST_ROWS, Multiply, ROWS, Segment, TILE_WORDS};
use super::words::{LINE, Scratch};
use crate::pool::{self, Shared};

/// How rows are divided into panels of at most [`LeftForm::most_rows`] rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPanels {
    pub(crate) rows: usize,
    pub(crate) count: usize,
    form: LeftForm,
}

impl RowPanels {
    /// For products of `M`.
    pub(crate) fn new<M: Multiply>(rows: usize) -> Self {
        Self::of(rows, M::left())
    }

    fn of(rows: usize, form: LeftForm) -> Self {
        Self { rows, count: rows.div_ceil(form.most_rows()), form }
    }

    pub(crate) fn rows_of(self, panel: usize) -> Range<usize> {
        let most = self.form.most_rows();
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
        let form = M::left();
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

/// A right operand in panels of [`COLUMNS`] columns.
pub(crate) trait Right: Sync {
    fn panels(&self) -> usize;
    fn k_words(&self) -> usize;
    /// Most `k` words that `panel` may be asked for at once.
    fn chunk(&self) -> usize;
    /// Fetches what [`Right::panel`] will read, the i-th of n parts, where the processor does not do so by itself.
    fn prefetch(&self, _panel: usize, _k: Range<usize>, _i: usize, _n: usize) {}
    /// Words `[k][COLUMNS]` of a part of a panel, written to `scratch` unless they lie ready.
    fn panel<'a>(&'a self, panel: usize, k: Range<usize>, scratch: &'a mut [u32]) -> &'a [u32];
}

/// More of the sum over `k`, of a second pair of operands that is small: LoRA.
pub(crate) trait Extra: Sync {
    /// The part of the second left operand's `k` words that a panel needs, and its words of the right one.
    fn panel(&self, panel: usize) -> (Range<usize>, &[u32]);
}

/// Nothing more.
impl Extra for () {
    fn panel(&self, _: usize) -> (Range<usize>, &[u32]) {
        (0..0, &[])
    }
}

/// Most `k` words of a panel that is expanded, in whole blocks: it stays in the second-level cache.
pub(crate) const CHUNK: usize = 640;

/// Computes `left right + extra_left extra` and hands each tile to `store(rows, panel, tile)`, tile rows being
/// [`COLUMNS`] long.
pub(crate) fn multiply<M: Multiply>(
    rows: RowPanels,
    left: Left<'_>,
    right: &impl Right,
    extra_left: Left<'_>,
    extra: &impl Extra,
    store: &(impl Fn(Range<usize>, usize, &mut [M::Sum]) + Sync),
) {
    let multiply_tile = M::tile();
    let k_words = right.k_words();
    let chunk = even_chunk(k_words, right.chunk());
    let plan = Plan::new(rows, right.panels(), chunk);
    pool::run(plan.jobs(), &|job| {
        let (row_panels, panels) = plan.job(job);
        let mut scratch =
            Scratch::take(if right.chunk() == usize::MAX { 0 } else { right.chunk() * COLUMNS });
        // Between chunks every tile of the job is kept.
        let several = chunk < k_words;
        let tile_len = MOST_ROWS * COLUMNS;
        let mut tiles = Scratch::take(if several { row_panels.len() * panels.len() } else { 1 } * tile_len);
        let tiles: &mut [M::Sum] = bytemuck::cast_slice_mut(&mut tiles);
        let mut k = 0..chunk;
        loop {
            let last = k.end == k_words;
            let next = k.end..(k.end + chunk).min(k_words);
            for panel in panels.clone() {
                let b = right.panel(panel, k.clone(), &mut scratch);
                let (extra_k, extra_words) = if last { extra.panel(panel) } else { (0..0, &[][..]) };
                for (i, row_panel) in row_panels.clone().enumerate() {
                    let range = rows.rows_of(row_panel);
                    let index = if several { (panel - panels.start) * row_panels.len() + i } else { 0 };
                    let tile = &mut tiles[index * tile_len..][..tile_len];
                    let segments = [
                        left.segment(&range, k.clone(), b),
                        extra_left.segment(&range, extra_k.clone(), extra_words),
                    ];
                    multiply_tile(tile, k.start > 0, &segments, range.len(), COLUMNS);
                    if panel + 1 < panels.end {
                        right.prefetch(panel + 1, k.clone(), i, row_panels.len());
                    } else {
                        right.prefetch(panels.start, next.clone(), i, row_panels.len());
                    }
                    if last {
                        store(range, panel, tile);
                    }
                }
            }
            if last {
                break;
            }
            k = next;
        }
    });
}

/// Parts of `k` of about the same size and at most `most` words, in whole blocks.
fn even_chunk(k_words: usize, most: usize) -> usize {
    let parts = k_words.div_ceil(most).max(1);
    k_words.div_ceil(parts).next_multiple_of(COLUMNS).min(k_words)
}

/// Bytes of a left operand that pass each panel of the right one. They come from the third-level cache in time, as a tile
/// takes two bytes a cycle; more row blocks would expand the panels more often.
const MOST_LEFT: usize = 4 << 20;

/// How a product is cut: blocks of row panels times groups of column panels.
struct Plan {
    row_panels: usize,
    row_blocks: usize,
    panels: usize,
    group: usize,
}

impl Plan {
    /// Several jobs for each thread, so that a late thread costs little; few row blocks, as each expands its panels
    /// anew.
    fn new(rows: RowPanels, panels: usize, chunk: usize) -> Self {
        let row_panels = rows.count;
        let most = (MOST_LEFT / (4 * chunk.max(1))).max(16 * ROWS) / rows.form.most_rows();
        let jobs = 8 * pool::threads();
        let few = row_panels.div_ceil(most);
        let many = (row_panels * rows.form.most_rows() / (8 * ROWS)).max(1).min(row_panels);
        let row_blocks = jobs.div_ceil(panels.max(1)).clamp(few, many.max(few));
        let group = (panels * row_blocks / jobs).clamp(1, 8);
        Self { row_panels, row_blocks, panels, group }
    }
    fn jobs(&self) -> usize {
        self.row_blocks * self.panels.div_ceil(self.group)
    }
    /// Neighbouring jobs share their column panels.
    fn job(&self, job: usize) -> (Range<usize>, Range<usize>) {
        let (group, block) = (job / self.row_blocks, job % self.row_blocks);
        let start = |block: usize| block * self.row_panels / self.row_blocks;
        let first = group * self.group;
        (start(block)..start(block + 1), first..(first + self.group).min(self.panels))
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::linear::kernel::operand_value;

    #[test]
    fn a_plan_covers_every_tile_once() {
        for (row_panels, panels) in [1, 2, 7, 8, 19, 69, 86, 400]
            .into_iter()
            .flat_map(|rows| [1, 2, 3, 17, 18, 96, 1536].map(|panels| (rows, panels)))
        {
            for form in [LeftForm::Woven, LeftForm::Rows] {
                let plan = Plan::new(RowPanels::of(row_panels * form.most_rows(), form), panels, 100);
                let mut seen = vec![0; row_panels * panels];
                for job in 0..plan.jobs() {
                    let (row_panels, columns) = plan.job(job);
                    for row_panel in row_panels {
                        columns.clone().for_each(|panel| seen[row_panel * panels + panel] += 1);
                    }
                }
                assert!(seen.iter().all(|n| *n == 1), "{row_panels} x {panels}");
            }
        }
    }

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
        let kernels = bf16::kernels();
        let (rows, values) = (3, 70);
        let value = |t: usize, i: usize| bf16::from_f32((t * values + i) as f32);
        let x: Vec<Vec<bf16>> = (0..rows).map(|t| (0..values).map(|i| value(t, i)).collect()).collect();
        let k_words = values.div_ceil(kernels.pair);
        let layout = LeftLayout::new::<bf16>(k_words);
        // Two parts, as the gradients of the logits are packed.
        let mut words = vec![u32::MAX; layout.len(rows)];
        let shared = Shared::new(&mut words);
        for (from, to) in [(0, 64), (64, values)] {
            let row = |t: usize| &x[t][from..to];
            // SAFETY: only this thread uses the words.
            unsafe { layout.pack(&shared, kernels, 0..rows, from / kernels.pair, row) };
        }
        for (t, i) in (0..rows).flat_map(|t| (0..values).map(move |i| (t, i))) {
            let word = words[layout.at(rows, t, i / kernels.pair)];
            let found = operand_value::<bf16>(word, i).to_bits();
            assert_eq!(found, value(t, i).to_f32().to_bits(), "row {t}, value {i}");
        }
        let left = Left { words: &words, layout };
        let segment = left.segment(&(0..rows), 8..k_words, &[]);
        assert_eq!(segment.a[0], words[layout.at(rows, 0, 8)]);
        assert_eq!(segment.words, k_words - 8);
    }
}
