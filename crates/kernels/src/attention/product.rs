//! `C = A B` or `C += A B` on small matrices of words, with the accumulators in registers.
//!
//! Each value of `C` is one chain of multiply-adds along the depth, whatever the sizes: a row's result does not
//! depend on the rows around it.

use std::marker::PhantomData;

use crate::Element;
use crate::lanes::{Kernel, Lanes};

/// Rows of a register block.
pub(super) const BLOCK_ROWS: usize = 6;

/// A stretch of the depth: its own places in A and B.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// Word (row 0, depth 0) of A.
    pub(super) a: &'a [f32],
    /// Word (depth 0, column 0) of B.
    pub(super) b: &'a [f32],
    /// Words along the sum.
    pub(super) depth: usize,
}

/// Where things lie.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Rows of C.
    pub(super) rows: usize,
    /// Vectors in a row of C.
    pub(super) vectors: usize,
    /// Words between rows of C.
    pub(super) c_stride: usize,
    /// Words between rows of A, or between depths of A when it is transposed; the other distance is 1.
    pub(super) a_stride: usize,
    /// Words between depths of B.
    pub(super) b_stride: usize,
    /// Words between vectors of B.
    pub(super) b_across: usize,
    /// C is added to.
    pub(super) add: bool,
}

/// Computes `C` from `runs`, with words of `E`; `T` says that A is transposed.
#[inline(always)]
pub(super) fn multiply<L: Lanes, E: Element, const T: bool>(
    l: L,
    c: &mut [f32],
    runs: &[Run<'_>],
    layout: Layout,
) {
    if layout.rows == 0 || layout.vectors == 0 {
        return;
    }
    assert!(c.len() >= (layout.rows - 1) * layout.c_stride + layout.vectors * L::N, "C is too short");
    for run in runs.iter().filter(|run| run.depth > 0) {
        let (last_row, last_depth) = (layout.rows - 1, run.depth - 1);
        let a_last =
            if T { last_depth * layout.a_stride + last_row } else { last_row * layout.a_stride + last_depth };
        assert!(run.a.len() > a_last, "A is too short");
        let b_last = last_depth * layout.b_stride + (layout.vectors - 1) * layout.b_across;
        assert!(run.b.len() >= b_last + L::N, "B is too short");
    }
    let c = c.as_mut_ptr();
    let mut vector = 0;
    while vector < layout.vectors {
        let across = L::ACROSS.min(layout.vectors - vector);
        let mut row = 0;
        while row < layout.rows {
            let rows = BLOCK_ROWS.min(layout.rows - row);
            let at = Corner { row, vector, c, runs, layout };
            match rows {
                1 => across_of::<L, E, T, 1>(l, across, at),
                2 => across_of::<L, E, T, 2>(l, across, at),
                3 => across_of::<L, E, T, 3>(l, across, at),
                4 => across_of::<L, E, T, 4>(l, across, at),
                5 => across_of::<L, E, T, 5>(l, across, at),
                _ => across_of::<L, E, T, BLOCK_ROWS>(l, across, at),
            }
            row += rows;
        }
        vector += across;
    }
}

#[inline(always)]
fn across_of<L: Lanes, E: Element, const T: bool, const ROWS: usize>(l: L, across: usize, at: Corner<'_>) {
    match across {
        1 => l.outline(Block::<E, T, ROWS, 1>(at, PhantomData)),
        2 => l.outline(Block::<E, T, ROWS, 2>(at, PhantomData)),
        3 => l.outline(Block::<E, T, ROWS, 3>(at, PhantomData)),
        _ => l.outline(Block::<E, T, ROWS, 4>(at, PhantomData)),
    }
}

/// The upper left of a register block; made by [`multiply`] alone, which has checked all lengths.
#[derive(Clone, Copy)]
struct Corner<'a> {
    row: usize,
    vector: usize,
    c: *mut f32,
    runs: &'a [Run<'a>],
    layout: Layout,
}

struct Block<'a, E, const T: bool, const ROWS: usize, const ACROSS: usize>(Corner<'a>, PhantomData<E>);

impl<E: Element, const T: bool, const ROWS: usize, const ACROSS: usize> Kernel
    for Block<'_, E, T, ROWS, ACROSS>
{
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        if ACROSS > L::ACROSS {
            unreachable!("blocks are at most {} vectors across", L::ACROSS);
        }
        let Corner { row, vector, c, runs, layout } = self.0;
        let a_row = if T { 1 } else { layout.a_stride };
        let a_step = if T { layout.a_stride } else { 1 };
        // SAFETY: `multiply` has checked that C, A and B hold all rows, depths and vectors of the layout, and this
        // block lies within them.
        unsafe {
            let c = c.add(row * layout.c_stride + vector * L::N);
            let mut acc = [[l.splat(0.0); ACROSS]; ROWS];
            if layout.add {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = l.load(c.add(r * layout.c_stride + v * L::N));
                    }
                }
            }
            for run in runs {
                let mut a = run.a.as_ptr().wrapping_add(row * a_row);
                let mut b = run.b.as_ptr().wrapping_add(vector * layout.b_across);
                for _ in 0..run.depth {
                    let mut columns = [l.splat(0.0); ACROSS];
                    for (v, column) in columns.iter_mut().enumerate() {
                        *column = l.load(b.add(v * layout.b_across));
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let word = l.splat(*a.add(r * a_row));
                        for (acc, &column) in acc.iter_mut().zip(&columns) {
                            *acc = l.dot_words::<E>(*acc, word, column);
                        }
                    }
                    a = a.wrapping_add(a_step);
                    b = b.wrapping_add(layout.b_stride);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, &acc) in acc.iter().enumerate() {
                    l.store(c.add(r * layout.c_stride + v * L::N), acc);
                }
            }
        }
    }
}
