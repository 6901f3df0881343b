//! Keys and values laid out for products: once per segment and head, however many segments look at them.
//!
//! The keys of a segment are cut into blocks of one vector's lanes (the last one padded with zeros). Per block:
//! *columns* `(D, lanes)`, words of neighbours along `D`, one key per lane, for `q k^T`; and *rows* `(lanes, D)`,
//! words of neighbouring keys, one feature per lane, for `p v`.

use std::ops::Range;

use crate::lanes::{Kernel, Lanes, dispatch, pack};
use crate::pool::{self, Shared};
use crate::scratch::Scratch;
use crate::{AttentionShape, Element, KvColumns, TreeLayout};

/// Which of a key's two vectors.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Keys,
    Values,
}

/// A matrix to lay out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Columns(Source),
    Rows(Source),
}

/// Sizes of the blocks, in words.
#[derive(Clone, Copy)]
pub(super) struct BlockSize {
    /// Keys of a block: the lanes of a vector.
    pub(super) lanes: usize,
    /// Words of a row of queries or keys: `D` values, rounded up.
    pub(super) words: usize,
    /// `D`, rounded up to whole vectors.
    pub(super) padded: usize,
    /// A block of columns.
    pub(super) columns: usize,
    /// A block of rows.
    pub(super) rows: usize,
}

impl BlockSize {
    pub(super) fn new<E>(lanes: usize, size: usize) -> Self {
        let words = size.div_ceil(pack::<E>());
        let padded = size.next_multiple_of(lanes);
        Self {
            lanes,
            words,
            padded,
            columns: words.next_multiple_of(lanes) * lanes,
            rows: lanes / pack::<E>() * padded,
        }
    }
}

/// The blocks of all segments that a live segment looks at.
pub(super) struct Panels {
    map: Map,
    words: Scratch,
}

/// Where the blocks lie.
struct Map {
    size: BlockSize,
    /// First block of each segment.
    first: Vec<usize>,
    /// First row and number of rows of each block.
    blocks: Vec<(usize, usize)>,
    forms: Vec<Form>,
}

/// Blocks that one job lays out.
const BLOCKS_PER_JOB: usize = 8;

impl Map {
    fn new(size: BlockSize, tree: &TreeLayout, forms: &[Form]) -> Self {
        let mut needed = vec![false; tree.segments.len()];
        for (index, segment) in tree.segments.iter().enumerate().rev() {
            needed[index] |= segment.q_row.is_some();
            if let (true, Some(parent)) = (needed[index], segment.parent) {
                needed[parent as usize] = true;
            }
        }
        let (mut first, mut blocks) = (Vec::with_capacity(needed.len()), Vec::new());
        for (segment, needed) in tree.segments.iter().zip(needed) {
            first.push(blocks.len());
            let len = if needed { segment.len as usize } else { 0 };
            for at in (0..len).step_by(size.lanes) {
                blocks.push((segment.kv_row as usize + at, size.lanes.min(len - at)));
            }
        }
        Self { size, first, blocks, forms: forms.to_vec() }
    }

    fn block_words(&self, form: Form) -> usize {
        match form {
            Form::Columns(_) => self.size.columns,
            Form::Rows(_) => self.size.rows,
        }
    }

    /// Words of all forms of one head.
    fn head_words(&self) -> usize {
        self.forms.iter().map(|&form| self.blocks.len() * self.block_words(form)).sum()
    }

    /// Where some blocks of a form of a head lie.
    fn range(&self, head: usize, form: Form, blocks: Range<usize>) -> Range<usize> {
        let before = self.forms.iter().take_while(|&&f| f != form);
        let start: usize = before.map(|&f| self.blocks.len() * self.block_words(f)).sum();
        let (start, each) = (head * self.head_words() + start, self.block_words(form));
        start + blocks.start * each..start + blocks.end * each
    }
}

impl Panels {
    /// Lays out `forms` of the keys and values in `kv`.
    pub(super) fn new<E: Element>(
        kv: &[E],
        columns: KvColumns,
        tree: &TreeLayout,
        shape: &AttentionShape,
        forms: &[Form],
    ) -> Self {
        let size = BlockSize::new::<E>(dispatch(CountLanes), shape.head_dim);
        let map = Map::new(size, tree, forms);
        let mut words = Scratch::take(shape.kv_heads * map.head_words());
        let to = Shared::new(&mut words);
        let per_head = map.blocks.len().div_ceil(BLOCKS_PER_JOB);
        pool::run(shape.kv_heads * per_head, &|job| {
            let (head, from) = (job / per_head, job % per_head * BLOCKS_PER_JOB);
            let blocks = from..map.blocks.len().min(from + BLOCKS_PER_JOB);
            for &form in forms {
                let (Form::Columns(source) | Form::Rows(source)) = form;
                let column = if source == Source::Keys { columns.k } else { columns.v };
                dispatch(Fill {
                    // SAFETY: each job has its own head and blocks, each form its own words.
                    to: unsafe { to.range(map.range(head, form, blocks.clone())) },
                    from: kv,
                    at: column + head * shape.head_dim,
                    stride: columns.stride,
                    width: shape.head_dim,
                    blocks: &map.blocks[blocks.clone()],
                    form,
                    size,
                });
            }
        });
        Self { map, words }
    }

    /// The sizes of the blocks.
    pub(super) fn size(&self) -> BlockSize {
        self.map.size
    }

    /// First block of a segment.
    pub(super) fn first(&self, segment: usize) -> usize {
        self.map.first[segment]
    }

    /// One head's blocks of a form from block `from` on.
    pub(super) fn blocks(&self, head: usize, form: Form, from: usize) -> &[f32] {
        &self.words[self.map.range(head, form, from..self.map.blocks.len())]
    }
}

struct CountLanes;

impl Kernel for CountLanes {
    type Output = usize;
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> usize {
        L::N
    }
}

struct Fill<'a, E> {
    to: &'a mut [f32],
    from: &'a [E],
    at: usize,
    stride: usize,
    width: usize,
    blocks: &'a [(usize, usize)],
    form: Form,
    size: BlockSize,
}

impl<E: Element> Kernel for Fill<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { to, from, at, stride, width, blocks, form, size } = self;
        match form {
            Form::Columns(_) => {
                let row_words = size.columns / L::N;
                let mut stage = Scratch::take(size.columns);
                for (to, &(row, rows)) in to.chunks_exact_mut(size.columns).zip(blocks) {
                    let from = &from[row * stride + at..];
                    gather_rows(&mut stage, row_words, from, stride, rows, L::N, width);
                    for k in (0..row_words).step_by(L::N) {
                        assert!(k + L::N <= row_words, "whole vectors");
                        // SAFETY: `stage` holds N rows and `to` a row per word of them; both are `columns` long.
                        unsafe {
                            l.transpose(
                                to.as_mut_ptr().add(k * L::N),
                                L::N,
                                stage.as_ptr().add(k),
                                row_words,
                            );
                        }
                    }
                }
            }
            Form::Rows(_) => {
                for (to, &(row, rows)) in to.chunks_exact_mut(size.rows).zip(blocks) {
                    interleave_rows(l, to, size.padded, &from[row * stride + at..], stride, rows, width);
                }
            }
        }
    }
}

/// Copies `rows` rows of `width` values to rows of `words` words, with zeros after them and in rows up to `total`.
#[inline(always)]
pub(super) fn gather_rows<E: Element>(
    to: &mut [f32],
    words: usize,
    from: &[E],
    stride: usize,
    rows: usize,
    total: usize,
    width: usize,
) {
    let to: &mut [E] = bytemuck::cast_slice_mut(&mut to[..total * words]);
    for (row, to) in to.chunks_exact_mut(words * pack::<E>()).enumerate() {
        let (values, rest) = to.split_at_mut(width);
        if row < rows {
            values.copy_from_slice(&from[row * stride..][..width]);
        } else {
            values.fill(E::default());
        }
        rest.fill(E::default());
    }
}

/// Makes rows of words of neighbouring rows: `to` is `(rows / pack, padded)`; zeros past the edges, to its end.
#[inline(always)]
pub(super) fn interleave_rows<L: Lanes, E: Element>(
    l: L,
    to: &mut [f32],
    padded: usize,
    from: &[E],
    stride: usize,
    rows: usize,
    width: usize,
) {
    for (word, to) in to.chunks_exact_mut(padded).enumerate() {
        for (c, to) in to.chunks_exact_mut(L::N).enumerate() {
            let (at, end) = (c * L::N, width.min((c + 1) * L::N));
            let row = word * pack::<E>();
            let first = if row < rows { l.read(&from[row * stride..][at..end]) } else { l.splat(0.0) };
            if pack::<E>() == 1 {
                l.write(to, first);
                continue;
            }
            let row = row + 1;
            let second = if row < rows { l.read(&from[row * stride..][at..end]) } else { l.splat(0.0) };
            l.write(to, l.pair(first, second));
        }
    }
}
