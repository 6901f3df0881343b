//! Where the rows of a token tree lie and what each may look at.

/// A run of tokens. It attends to all tokens of its ancestors, and to itself as the [`crate::Mask`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Index of the parent in [`TreeLayout::segments`], always smaller than this segment's own.
    pub parent: Option<u32>,
    /// First row of its keys and values.
    pub kv_row: u32,
    /// First row of its queries; `None` when only its keys and values are there (a cached segment).
    pub q_row: Option<u32>,
    /// Number of tokens.
    pub len: u32,
}

/// The segments of one pass, parents before children.
///
/// Rows of live segments (`q_row` is set) cover `0..rows` without gaps, in order. In training `q_row == kv_row`
/// for all; in serving the keys and values lie in a longer-lived cache and cached segments have no query rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TreeLayout {
    /// Parents before children.
    pub segments: Vec<Segment>,
}

impl TreeLayout {
    /// Number of query rows.
    pub fn rows(&self) -> usize {
        self.live().map(|(_, s)| s.len as usize).sum()
    }

    /// The segments whose rows are computed in this pass, with their indices.
    pub fn live(&self) -> impl Iterator<Item = (usize, &Segment)> {
        self.segments.iter().enumerate().filter(|(_, s)| s.q_row.is_some())
    }

    /// The ancestors of segment `index`, from the root down, without itself.
    pub fn ancestors(&self, index: usize) -> Vec<usize> {
        let mut chain = Vec::new();
        let mut next = self.segments[index].parent;
        while let Some(parent) = next {
            chain.push(parent as usize);
            next = self.segments[parent as usize].parent;
        }
        chain.reverse();
        chain
    }

    /// Checks what kernels rely on.
    ///
    /// # Panics
    /// When a parent does not come before its children, or live rows are not dense.
    pub fn assert_valid(&self) {
        let mut row = 0;
        for (index, segment) in self.segments.iter().enumerate() {
            if let Some(parent) = segment.parent {
                assert!((parent as usize) < index, "segment {index} has parent {parent}, which comes later");
            }
            if let Some(q_row) = segment.q_row {
                assert_eq!(q_row as usize, row, "segment {index} starts at row {q_row}, expected {row}");
                row += segment.len as usize;
            }
        }
    }
}
