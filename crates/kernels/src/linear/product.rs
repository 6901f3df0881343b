//! The product driver: cuts `C = A B` into jobs and runs the tiles of each.

use std::ops::Range;

use super::kernel::{COLUMNS, Multiply, ROWS};
use super::left::{Left, RowPanels};
use super::words::Scratch;
use crate::pool;

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
        let tile_len = rows.most() * COLUMNS;
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
        let most = (MOST_LEFT / (4 * chunk.max(1))).max(16 * ROWS) / rows.most();
        let jobs = 8 * pool::threads();
        let few = row_panels.div_ceil(most);
        let many = (row_panels * rows.most() / (8 * ROWS)).max(1).min(row_panels);
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
    use super::*;
    use crate::linear::kernel::LeftForm;

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
}
