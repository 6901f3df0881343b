//! Token trees: what one pass computes.

use kernels::{PassSpec, Segment, TreeLayout};

/// A row whose next token is known and counts in the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Labelled {
    /// Row of the tree.
    pub row: u32,
    /// The token that should follow.
    pub target: u32,
    /// Factor of this row's loss.
    pub weight: f32,
}

/// Segments of tokens, each continuing its parent. Nothing is padded and nothing shared is stored twice.
#[derive(Debug, Clone, Default)]
pub struct TokenTree {
    /// Tokens of the live segments, in row order.
    pub tokens: Vec<u32>,
    /// Position of each live token: it continues its parent's.
    pub positions: Vec<u32>,
    /// Who may look at whom.
    pub layout: TreeLayout,
    /// Position after the last token of each segment.
    ends: Vec<u32>,
}

impl TokenTree {
    /// Removes all segments, keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.layout.segments.clear();
        self.ends.clear();
    }

    /// Adds a segment whose keys and values lie at the row of its queries (training). Returns its index.
    pub fn push(&mut self, parent: Option<usize>, tokens: &[u32]) -> usize {
        let row = self.tokens.len() as u32;
        self.push_at(parent, tokens, row)
    }

    /// Adds a segment whose keys and values will lie at row `kv_row` of a cache. Returns its index.
    pub fn push_at(&mut self, parent: Option<usize>, tokens: &[u32], kv_row: u32) -> usize {
        let q_row = Some(self.tokens.len() as u32);
        let begin = self.begin(parent);
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(begin..begin + tokens.len() as u32);
        self.add(parent, Segment { parent: None, kv_row, q_row, len: tokens.len() as u32 })
    }

    /// Adds a segment whose keys and values are in the cache already. Returns its index.
    pub fn push_cached(&mut self, parent: Option<usize>, kv_row: u32, len: u32) -> usize {
        self.add(parent, Segment { parent: None, kv_row, q_row: None, len })
    }

    /// Rows to compute.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// What a pass over this tree computes, as long as nothing is chosen.
    pub(crate) fn spec(&self) -> PassSpec<'_> {
        let Self { tokens, positions, layout, .. } = self;
        PassSpec { tokens, positions, layout, chosen: &[], targets: &[], weights: &[], wanted: &[] }
    }

    fn begin(&self, parent: Option<usize>) -> u32 {
        parent.map_or(0, |parent| self.ends[parent])
    }

    fn add(&mut self, parent: Option<usize>, segment: Segment) -> usize {
        self.ends.push(self.begin(parent) + segment.len);
        self.layout.segments.push(Segment { parent: parent.map(|p| p as u32), ..segment });
        self.layout.segments.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_continue_the_parents() {
        let mut tree = TokenTree::default();
        let root = tree.push_cached(None, 0, 5);
        let query = tree.push_at(Some(root), &[7, 8], 5);
        tree.push_at(Some(query), &[9], 7);
        tree.push_at(Some(root), &[3, 3, 3], 8);
        assert_eq!(tree.positions, [5, 6, 7, 5, 6, 7]);
        assert_eq!(tree.rows(), 6);
        tree.layout.assert_valid();
    }
}
