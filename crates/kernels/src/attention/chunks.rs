//! How the backward pass shares out its work: chunks of tiles, with accumulators of their own for every key that
//! they see, which are summed in the order of the chunks. The cut depends on the tree alone, never on the threads;
//! and the gradient of a segment without children does not depend on where the chunks of others end.

use std::ops::Range;

use super::AttentionShape;
use super::plan::{Tile, tile_tokens};
use crate::TreeLayout;

/// Jobs (chunks times key/value heads) to aim at.
const JOBS: usize = 32;
/// A segment longer than this is cut, into at most [`UNITS`] chunks that it shares with nobody.
const UNIT_TOKENS: usize = 256;
const UNITS: usize = 8;

/// Tiles that one job works through in order.
pub(super) struct Chunk {
    pub(super) tiles: Range<usize>,
    /// The segments whose keys its tiles see, in order, each with its first row among the chunk's accumulators.
    segments: Vec<(usize, usize)>,
    /// Rows of accumulators, counted over all chunks.
    pub(super) rows: Range<usize>,
}

impl Chunk {
    fn new(tiles: Range<usize>, first_row: usize, all: &[Tile], tree: &TreeLayout) -> Self {
        let mut seen: Vec<usize> = Vec::new();
        for tile in &all[tiles.clone()] {
            if seen.last() != Some(&tile.segment) {
                seen.extend(tree.ancestors(tile.segment));
                seen.push(tile.segment);
            }
        }
        seen.sort_unstable();
        seen.dedup();
        let (mut row, mut segments) = (0, Vec::with_capacity(seen.len()));
        for segment in seen {
            segments.push((segment, row));
            row += tree.segments[segment].len as usize;
        }
        Self { tiles, segments, rows: first_row..first_row + row }
    }

    /// The segments whose keys its tiles see.
    pub(super) fn segments(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().map(|&(segment, _)| segment)
    }

    /// First row of a segment's accumulators among the chunk's, if it has some.
    pub(super) fn row(&self, segment: usize) -> Option<usize> {
        let index = self.segments.binary_search_by_key(&segment, |&(segment, _)| segment).ok()?;
        Some(self.segments[index].1)
    }
}

/// Cuts the tiles.
pub(super) fn chunks(tree: &TreeLayout, tiles: &[Tile], shape: &AttentionShape) -> Vec<Chunk> {
    let work = |tile: &Tile| tile.tokens.len() * tile.keys();
    let quota = tiles.iter().map(work).sum::<usize>().div_ceil(JOBS.div_ceil(shape.kv_heads));
    let (mut chunks, mut first_row) = (Vec::new(), 0);
    let (mut from, mut done, mut shared) = (0, 0, true);
    for (index, tile) in tiles.iter().enumerate() {
        let len = tree.segments[tile.segment].len as usize;
        let cut = len > UNIT_TOKENS;
        let unit = UNIT_TOKENS.max(len.div_ceil(UNITS)).next_multiple_of(tile_tokens(shape));
        let begins = tile.tokens.start % if cut { unit } else { len } == 0;
        if index > 0 && begins && (cut || !shared || done >= quota) {
            chunks.push(Chunk::new(from..index, first_row, tiles, tree));
            first_row = chunks[chunks.len() - 1].rows.end;
            (from, done) = (index, 0);
        }
        shared = !cut;
        done += work(tile);
    }
    if from < tiles.len() {
        chunks.push(Chunk::new(from..tiles.len(), first_row, tiles, tree));
    }
    chunks
}
