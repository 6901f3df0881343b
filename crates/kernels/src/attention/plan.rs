//! The work of one pass: tiles of query rows, and which key blocks each looks at.

use std::ops::Range;

use super::panels::Panels;
use super::{AttentionShape, Mask};
use crate::TreeLayout;

/// Query rows (tokens times heads that share keys) of a tile, at most; one token's rows always fit.
const TILE_ROWS: usize = 96;
/// Keys whose scores are held at a time. A row's chain of keys is cut here, wherever the row itself stands.
const GROUP_KEYS: usize = 128;

/// Consecutive key blocks of one segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub(super) segment: usize,
    /// First block, counted within the segment.
    pub(super) from: usize,
    /// First block, counted over all segments.
    pub(super) block: usize,
    pub(super) blocks: usize,
    /// Keys in these blocks.
    pub(super) keys: usize,
    /// First column of scores, in blocks.
    pub(super) column: usize,
}

/// The keys whose scores are held at one time.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    /// Of ancestors: seen by all rows.
    pub(super) chain: Vec<Stretch>,
    /// Of the tile's own segment: seen as the mask says.
    pub(super) own: Option<Stretch>,
    /// Keys in each block of `chain`.
    pub(super) keys: Vec<usize>,
}

impl Group {
    /// Blocks of scores in a row.
    pub(super) fn blocks(&self) -> usize {
        self.keys.len() + self.own.map_or(0, |own| own.blocks)
    }
}

/// Consecutive tokens of a live segment.
#[derive(Debug, Clone)]
pub(super) struct Tile {
    pub(super) segment: usize,
    /// Counted within the segment.
    pub(super) tokens: Range<usize>,
    /// Query row of the first token.
    pub(super) q_row: usize,
    /// All keys that some row of the tile sees.
    pub(super) groups: Vec<Group>,
    causal: bool,
    segment_len: usize,
}

impl Tile {
    /// Keys of its own segment that a token sees.
    fn own_keys(&self, token: usize) -> usize {
        if self.causal { token + 1 } else { self.segment_len }
    }

    /// Keys that the last row sees.
    pub(super) fn keys(&self) -> usize {
        let chain: usize = self.groups.iter().flat_map(|group| &group.keys).sum();
        chain + self.own_keys(self.tokens.end - 1)
    }

    /// Keys of `group`'s own stretch that a token sees.
    pub(super) fn own_keys_in(&self, group: &Group, token: usize, lanes: usize) -> usize {
        let Some(own) = group.own else { return 0 };
        self.own_keys(token).saturating_sub(own.from * lanes).min(own.keys)
    }

    /// Columns of scores that the widest group needs, in blocks.
    pub(super) fn widest(&self) -> usize {
        self.groups.iter().map(Group::blocks).max().unwrap_or(0)
    }
}

/// Tokens of a tile.
pub(super) fn tile_tokens(shape: &AttentionShape) -> usize {
    (TILE_ROWS / (shape.heads / shape.kv_heads)).max(1)
}

/// The tiles of all live segments, in order.
pub(super) fn tiles(tree: &TreeLayout, panels: &Panels, shape: &AttentionShape) -> Vec<Tile> {
    let step = tile_tokens(shape);
    let mut tiles = Vec::new();
    for (index, segment) in tree.live() {
        let segment_len = segment.len as usize;
        let (chain, rest) = chain_groups(tree, panels, index);
        for from in (0..segment_len).step_by(step) {
            let mut tile = Tile {
                segment: index,
                tokens: from..segment_len.min(from + step),
                q_row: segment.q_row.map_or(0, |row| row as usize) + from,
                groups: chain.clone(),
                causal: shape.mask == Mask::Causal,
                segment_len,
            };
            let keys = tile.own_keys(tile.tokens.end - 1);
            push_own(&mut tile.groups, rest.clone(), index, keys, panels);
            tiles.push(tile);
        }
    }
    tiles
}

/// The keys of the ancestors: full groups, and what is left for the group that the own keys begin in.
fn chain_groups(tree: &TreeLayout, panels: &Panels, index: usize) -> (Vec<Group>, Group) {
    let lanes = panels.size().lanes;
    let (mut full, mut group) = (Vec::new(), Group::default());
    for segment in tree.ancestors(index) {
        let len = tree.segments[segment].len as usize;
        let (mut from, end) = (0, len.div_ceil(lanes));
        while from < end {
            let column = group.keys.len();
            let blocks = (end - from).min(GROUP_KEYS / lanes - column);
            let keys = (len - from * lanes).min(blocks * lanes);
            let block = panels.first(segment) + from;
            group.chain.push(Stretch { segment, from, block, blocks, keys, column });
            group.keys.extend((0..blocks).map(|b| lanes.min(keys - b * lanes)));
            from += blocks;
            if group.keys.len() == GROUP_KEYS / lanes {
                full.push(std::mem::take(&mut group));
            }
        }
    }
    (full, group)
}

/// Adds the first `keys` keys of the own segment, beginning beside what `group` holds of the ancestors.
fn push_own(groups: &mut Vec<Group>, mut group: Group, segment: usize, keys: usize, panels: &Panels) {
    let lanes = panels.size().lanes;
    for at in (0..keys).step_by(GROUP_KEYS) {
        let keys = GROUP_KEYS.min(keys - at);
        group.own = Some(Stretch {
            segment,
            from: at / lanes,
            block: panels.first(segment) + at / lanes,
            blocks: keys.div_ceil(lanes),
            keys,
            column: group.keys.len(),
        });
        groups.push(std::mem::take(&mut group));
    }
}
