//! The forward pass: online softmax (Milakov and Gimelshein, 2018) over groups of keys.

use super::panels::{Form, Panels, Source, gather_rows};
use super::plan::{Group, Tile, tiles};
use super::product::{BLOCK_ROWS, Layout, Run, multiply};
use super::{AttentionShape, KvColumns};
use crate::lanes::{Kernel, Lanes, dispatch, pack};
use crate::pool::{self, Shared};
use crate::scratch::{Carver, Scratch};
use crate::{Element, TreeLayout};

const KEYS: Form = Form::Columns(Source::Keys);
const VALUES: Form = Form::Rows(Source::Values);

/// See [`super::forward`].
pub(super) fn run<E: Element>(
    out: &mut [E],
    lse: &mut [f32],
    qkv: &[E],
    kv: &[E],
    columns: KvColumns,
    tree: &TreeLayout,
    shape: &AttentionShape,
) {
    let panels = Panels::new(kv, columns, tree, shape, &[KEYS, VALUES]);
    let tiles = tiles(tree, &panels, shape);
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    pool::run(tiles.len() * shape.kv_heads, &|job| {
        let (tile, head) = (&tiles[job / shape.kv_heads], job % shape.kv_heads);
        dispatch(Forward { out: &out, lse: &lse, qkv, panels: &panels, tile, head, shape });
    });
}

/// One tile and key/value head.
struct Forward<'a, E> {
    out: &'a Shared<'a, E>,
    lse: &'a Shared<'a, f32>,
    qkv: &'a [E],
    panels: &'a Panels,
    tile: &'a Tile,
    head: usize,
    shape: &'a AttentionShape,
}

/// The working memory of a tile.
struct Work<'a> {
    /// `(rows, words)`.
    q: &'a [f32],
    /// `(rows, width)`.
    scores: &'a mut [f32],
    /// `(rows, width)` values of `E`: `exp(score - peak)`.
    p: &'a mut [f32],
    /// `(rows, padded)`: the sums of `p v` so far.
    sums: &'a mut [f32],
    /// `(rows)`: the largest score so far.
    peaks: &'a mut [f32],
    /// `(rows)`: the sums of `p` so far.
    totals: &'a mut [f32],
    /// Scores of a row.
    width: usize,
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { qkv, panels, tile, head, shape, .. } = self;
        let (size, block, group) = (shape.head_dim, panels.size(), shape.heads / shape.kv_heads);
        let rows = tile.tokens.len() * group;
        let width = tile.widest() * L::N;
        let lens =
            [rows * block.words, rows * width, rows * width / pack::<E>(), rows * block.padded, rows, rows];
        let mut scratch = Scratch::take(Carver::total(&lens));
        let mut carver = Carver::new(&mut scratch);
        let [q, scores, p, sums, peaks, totals] = lens.map(|len| carver.cut(len));
        for token in 0..tile.tokens.len() {
            let from = &qkv[(tile.q_row + token) * shape.qkv_width() + head * group * size..][..group * size];
            let to = &mut q[token * group * block.words..];
            gather_rows(to, block.words, from, size, group, group, size);
        }
        peaks.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        let mut work = Work { q, scores, p, sums, peaks, totals, width };
        for (index, keys) in tile.groups.iter().enumerate() {
            self.score(l, &mut work, keys);
            self.soften(l, &mut work, keys, index > 0);
            self.gather(l, &mut work, keys, index > 0);
        }
        self.finish(l, &work);
    }
}

impl<E: Element> Forward<'_, E> {
    /// Keys of the group's own stretch that the last row before `end` sees.
    #[inline(always)]
    fn own_keys(&self, keys: &Group, end: usize) -> usize {
        let token = self.tile.tokens.start + (end - 1) / (self.shape.heads / self.shape.kv_heads);
        self.tile.own_keys_in(keys, token, self.panels.size().lanes)
    }

    /// `scores = q k^T`.
    #[inline(always)]
    fn score<L: Lanes>(&self, l: L, work: &mut Work<'_>, keys: &Group) {
        let block = self.panels.size();
        let rows = work.peaks.len();
        let layout = Layout {
            rows,
            vectors: 0,
            c_stride: work.width,
            a_stride: block.words,
            b_stride: L::N,
            b_across: block.columns,
            add: false,
        };
        for stretch in &keys.chain {
            let b = self.panels.blocks(self.head, KEYS, stretch.block);
            let run = Run { a: work.q, b, depth: block.words };
            let layout = Layout { vectors: stretch.blocks, ..layout };
            multiply::<L, E, false>(l, &mut work.scores[stretch.column * L::N..], &[run], layout);
        }
        let Some(own) = keys.own else { return };
        let b = self.panels.blocks(self.head, KEYS, own.block);
        for row in (0..rows).step_by(BLOCK_ROWS) {
            let end = rows.min(row + BLOCK_ROWS);
            let vectors = self.own_keys(keys, end).div_ceil(L::N);
            let run = Run { a: &work.q[row * block.words..], b, depth: block.words };
            let layout = Layout { rows: end - row, vectors, ..layout };
            let at = row * work.width + own.column * L::N;
            multiply::<L, E, false>(l, &mut work.scores[at..], &[run], layout);
        }
    }

    /// `p = exp(scale scores - peak)`, with peaks, totals and, when there are some, earlier sums brought up to date.
    #[inline(always)]
    fn soften<L: Lanes>(&self, l: L, work: &mut Work<'_>, keys: &Group, again: bool) {
        let (scale, nothing) = (l.splat(self.shape.scale), l.splat(f32::NEG_INFINITY));
        let padded = self.panels.size().padded;
        let width = work.width;
        let p: &mut [E] = bytemuck::cast_slice_mut(work.p);
        let blocks = keys.blocks();
        for row in 0..work.peaks.len() {
            let own = self.own_keys(keys, row + 1);
            let scores = &work.scores[row * width..][..blocks * L::N];
            let p = &mut p[row * width..][..blocks * L::N];
            let mut peak = nothing;
            for (b, scores) in scores.chunks_exact(L::N).enumerate() {
                let seen = seen::<L>(&keys.keys, own, b);
                if seen > 0 {
                    peak = l.max(peak, l.first(seen, l.read(scores), nothing));
                }
            }
            let before = work.peaks[row];
            let peak = before.max(l.peak(peak) * self.shape.scale);
            let minus_peak = l.splat(-peak);
            let mut total = l.splat(0.0);
            for (b, (scores, p)) in scores.chunks_exact(L::N).zip(p.chunks_exact_mut(L::N)).enumerate() {
                let seen = seen::<L>(&keys.keys, own, b);
                let mut value = l.splat(0.0);
                if seen > 0 {
                    value = l.first(seen, l.exp(l.fma(l.read(scores), scale, minus_peak)), value);
                }
                total = l.add(total, value);
                l.write(p, value);
            }
            let total = l.sum(total);
            work.peaks[row] = peak;
            if again {
                let keep = (before - peak).exp();
                work.totals[row] = work.totals[row] * keep + total;
                let keep = l.splat(keep);
                for sums in work.sums[row * padded..][..padded].chunks_exact_mut(L::N) {
                    l.write(sums, l.mul(l.read(sums), keep));
                }
            } else {
                work.totals[row] = total;
            }
        }
    }

    /// `sums += p v`, or `sums = p v`.
    #[inline(always)]
    fn gather<L: Lanes>(&self, l: L, work: &mut Work<'_>, keys: &Group, add: bool) {
        let block = self.panels.size();
        let (rows, pack, width) = (work.peaks.len(), pack::<E>(), work.width / pack::<E>());
        let nothing = Run { a: &[], b: &[], depth: 0 };
        let mut runs = vec![nothing; keys.chain.len() + 1];
        for row in (0..rows).step_by(BLOCK_ROWS) {
            let end = rows.min(row + BLOCK_ROWS);
            for (run, stretch) in runs.iter_mut().zip(keys.chain.iter().chain(&keys.own)) {
                let a = &work.p[row * width + stretch.column * L::N / pack..];
                let b = self.panels.blocks(self.head, VALUES, stretch.block);
                *run = Run { a, b, depth: stretch.keys.div_ceil(pack) };
            }
            if keys.own.is_some() {
                runs[keys.chain.len()].depth = self.own_keys(keys, end).div_ceil(pack);
            }
            let layout = Layout {
                rows: end - row,
                vectors: block.padded / L::N,
                c_stride: block.padded,
                a_stride: width,
                b_stride: block.padded,
                b_across: L::N,
                add,
            };
            multiply::<L, E, false>(l, &mut work.sums[row * block.padded..], &runs, layout);
        }
    }

    /// `out = sums / totals`, `lse = peaks + ln totals`.
    #[inline(always)]
    fn finish<L: Lanes>(&self, l: L, work: &Work<'_>) {
        let Self { out, lse, panels, tile, head, shape, .. } = self;
        let (size, group, padded) = (shape.head_dim, shape.heads / shape.kv_heads, panels.size().padded);
        for token in 0..tile.tokens.len() {
            let at = (tile.q_row + token) * shape.heads + head * group;
            // SAFETY: each job has its own tokens and heads, in `lse` as in `out`.
            let (lse, out) =
                unsafe { (lse.range(at..at + group), out.range(at * size..(at + group) * size)) };
            for (g, (lse, out)) in lse.iter_mut().zip(out.chunks_exact_mut(size)).enumerate() {
                let row = token * group + g;
                *lse = work.peaks[row] + work.totals[row].ln();
                let share = l.splat(1.0 / work.totals[row]);
                let sums = work.sums[row * padded..].chunks_exact(L::N);
                for (out, sums) in out.chunks_mut(L::N).zip(sums) {
                    l.write(out, l.mul(l.read(sums), share));
                }
            }
        }
    }
}

/// Keys of block `b` that a row sees which sees `own` keys of its own segment.
#[inline(always)]
pub(super) fn seen<L: Lanes>(chain: &[usize], own: usize, b: usize) -> usize {
    match chain.get(b) {
        Some(&keys) => keys,
        None => own.saturating_sub((b - chain.len()) * L::N).min(L::N),
    }
}
