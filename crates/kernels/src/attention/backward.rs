//! The backward pass: probabilities again from the stored log-sum-exp, then five products per tile.

use std::ops::Range;

use super::AttentionShape;
use super::chunks::{Chunk, chunks};
use super::forward::seen;
use super::panels::{Form, Panels, Source, gather_rows, interleave_rows};
use super::plan::{Group, Stretch, Tile, tiles};
use super::product::{BLOCK_ROWS, Layout, Run, multiply};
use crate::lanes::{Kernel, Lanes, dispatch, pack};
use crate::pool::{self, Shared};
use crate::scratch::{Carver, Scratch};
use crate::{Element, TreeLayout};

const KEYS: Form = Form::Columns(Source::Keys);
const VALUES: Form = Form::Columns(Source::Values);
const KEY_ROWS: Form = Form::Rows(Source::Keys);

/// See [`super::backward`].
pub(super) fn run<E: Element>(
    d_qkv: &mut [E],
    d_out: &[E],
    out: &[E],
    lse: &[f32],
    qkv: &[E],
    tree: &TreeLayout,
    shape: &AttentionShape,
) {
    let panels = Panels::new(qkv, shape.columns_in_qkv(), tree, shape, &[KEYS, VALUES, KEY_ROWS]);
    let tiles = tiles(tree, &panels, shape);
    let chunks = chunks(tree, &tiles, shape);
    let (heads, width) = (shape.kv_heads, 2 * panels.size().padded);
    // Per chunk, head and key: the gradient of the key, then that of the value.
    let place = |rows: &Range<usize>, head: usize| {
        let start = rows.start * heads + head * rows.len();
        start * width..(start + rows.len()) * width
    };
    let mut sums = Scratch::take(chunks.last().map_or(0, |chunk| chunk.rows.end) * heads * width);
    let (d_qkv, to) = (Shared::new(d_qkv), Shared::new(&mut sums));
    pool::run(chunks.len() * heads, &|job| {
        // The last chunks of a long segment see the most keys: they go first.
        let (chunk, head) = (&chunks[chunks.len() - 1 - job / heads], job % heads);
        // SAFETY: each job has its own chunk and head.
        let sums = unsafe { to.range(place(&chunk.rows, head)) };
        sums.fill(0.0);
        for tile in &tiles[chunk.tiles.clone()] {
            let (d_qkv, panels, sums) = (&d_qkv, &panels, &mut *sums);
            dispatch(Backward { d_qkv, sums, d_out, out, lse, qkv, panels, tile, chunk, head, shape });
        }
    });
    let sums: &[f32] = &sums;
    pool::run(chunks.len() * heads, &|job| {
        let (home, head) = (job / heads, job % heads);
        for segment in chunks[home].segments() {
            if chunks[..home].iter().any(|chunk| chunk.row(segment).is_some()) {
                continue;
            }
            let segment_rows = tree.segments[segment].len as usize;
            let holders = chunks[home..].iter().filter_map(|chunk| Some((chunk, chunk.row(segment)?)));
            let part = |(chunk, row): (&Chunk, usize)| {
                &sums[place(&chunk.rows, head)][row * width..][..segment_rows * width]
            };
            let parts: Vec<&[f32]> = holders.map(part).collect();
            let row = tree.segments[segment].kv_row as usize;
            dispatch(Reduce { d_qkv: &d_qkv, parts: &parts, row, head, shape, padded: width / 2 });
        }
    });
}

/// One tile and key/value head.
struct Backward<'a, E> {
    d_qkv: &'a Shared<'a, E>,
    /// The chunk's accumulators for this head.
    sums: &'a mut [f32],
    d_out: &'a [E],
    out: &'a [E],
    lse: &'a [f32],
    qkv: &'a [E],
    panels: &'a Panels,
    tile: &'a Tile,
    chunk: &'a Chunk,
    head: usize,
    shape: &'a AttentionShape,
}

/// The working memory of a tile. Where words hold two rows, an odd number of rows is filled up with a row of zeros.
struct Work<'a> {
    /// `(rows, words)`.
    q: &'a mut [f32],
    d_out: &'a mut [f32],
    /// `(rows / pack, padded)`: words of neighbouring rows.
    q_rows: &'a mut [f32],
    d_out_rows: &'a mut [f32],
    /// `(rows, width)`: `q k^T` and `d_out v^T`.
    scores: &'a mut [f32],
    d_p: &'a mut [f32],
    /// `(rows / pack, width)`: words of neighbouring rows.
    p: &'a mut [f32],
    d_scores: &'a mut [f32],
    /// `(rows, width / pack)`: words of neighbouring keys.
    d_score_rows: &'a mut [f32],
    /// `(rows, padded)`.
    d_q: &'a mut [f32],
    /// `(rows)`.
    lse: &'a mut [f32],
    delta: &'a mut [f32],
    /// Scores of a row.
    width: usize,
}

impl<E: Element> Kernel for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let (block, group) = (self.panels.size(), self.shape.heads / self.shape.kv_heads);
        let rows = (self.tile.tokens.len() * group).next_multiple_of(pack::<E>());
        let width = self.tile.widest() * L::N;
        let (words, padded) = (rows * block.words, rows / pack::<E>() * block.padded);
        let (scores, packed) = (rows * width, rows * width / pack::<E>());
        let d_q = rows * block.padded;
        let lens = [words, words, padded, padded, scores, scores, packed, packed, packed, d_q, rows, rows];
        let mut scratch = Scratch::take(Carver::total(&lens));
        let mut carver = Carver::new(&mut scratch);
        let [q, d_out, q_rows, d_out_rows, scores, d_p, p, d_scores, d_score_rows, d_q, lse, delta] =
            lens.map(|len| carver.cut(len));
        let mut work = Work {
            q,
            d_out,
            q_rows,
            d_out_rows,
            scores,
            d_p,
            p,
            d_scores,
            d_score_rows,
            d_q,
            lse,
            delta,
            width,
        };
        self.load(l, &mut work);
        let tile = self.tile;
        for (index, keys) in tile.groups.iter().enumerate() {
            self.score::<L>(l, work.scores, work.q, KEYS, keys, width);
            self.score::<L>(l, work.d_p, work.d_out, VALUES, keys, width);
            self.differentiate(l, &mut work, keys);
            self.add_queries(l, &mut work, keys, index > 0);
            self.add_keys(l, &work, keys);
        }
        self.finish(l, &work);
    }
}

impl<E: Element> Backward<'_, E> {
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// Query rows, without the filler.
    fn rows(&self) -> usize {
        self.tile.tokens.len() * self.group()
    }

    /// Keys of the group's own stretch that the last row before `end` sees.
    #[inline(always)]
    fn own_keys(&self, keys: &Group, end: usize) -> usize {
        let token = self.tile.tokens.start + (end - 1) / self.group();
        self.tile.own_keys_in(keys, token, self.panels.size().lanes)
    }

    /// Gathers the tile's rows, and `delta = sum_d d_out out`.
    #[inline(always)]
    fn load<L: Lanes>(&self, l: L, work: &mut Work<'_>) {
        let Self { tile, head, shape, .. } = self;
        let (size, group, block) = (shape.head_dim, self.group(), self.panels.size());
        for token in 0..tile.tokens.len() {
            let at = (tile.q_row + token) * shape.heads + head * group;
            let q =
                &self.qkv[(tile.q_row + token) * shape.qkv_width() + head * group * size..][..group * size];
            let d_out = &self.d_out[at * size..][..group * size];
            let out = &self.out[at * size..][..group * size];
            let row = token * group;
            // The last token's rows are followed by the filler, if there is one.
            let total = if token + 1 == tile.tokens.len() { work.lse.len() - row } else { group };
            gather_rows(&mut work.q[row * block.words..], block.words, q, size, group, total, size);
            gather_rows(&mut work.d_out[row * block.words..], block.words, d_out, size, group, total, size);
            work.lse[row..][..group].copy_from_slice(&self.lse[at..][..group]);
            for (g, (d_out, out)) in d_out.chunks_exact(size).zip(out.chunks_exact(size)).enumerate() {
                let mut delta = l.splat(0.0);
                for (d_out, out) in d_out.chunks(L::N).zip(out.chunks(L::N)) {
                    delta = l.fma(l.read(d_out), l.read(out), delta);
                }
                work.delta[row + g] = l.sum(delta);
            }
        }
        let (rows, stride) = (work.lse.len(), block.words * pack::<E>());
        interleave_rows::<L, E>(
            l,
            work.q_rows,
            block.padded,
            bytemuck::cast_slice(work.q),
            stride,
            rows,
            size,
        );
        let d_out = bytemuck::cast_slice(work.d_out);
        interleave_rows::<L, E>(l, work.d_out_rows, block.padded, d_out, stride, rows, size);
    }

    /// `to = rows panel`, for `q k^T` and `d_out v^T`.
    #[inline(always)]
    fn score<L: Lanes>(&self, l: L, to: &mut [f32], a: &[f32], form: Form, keys: &Group, width: usize) {
        let (block, rows) = (self.panels.size(), self.rows());
        let layout = Layout {
            rows,
            vectors: 0,
            c_stride: width,
            a_stride: block.words,
            b_stride: L::N,
            b_across: block.columns,
            add: false,
        };
        for stretch in &keys.chain {
            let run = Run { a, b: self.panels.blocks(self.head, form, stretch.block), depth: block.words };
            let layout = Layout { vectors: stretch.blocks, ..layout };
            multiply::<L, E, false>(l, &mut to[stretch.column * L::N..], &[run], layout);
        }
        let Some(own) = keys.own else { return };
        let b = self.panels.blocks(self.head, form, own.block);
        for row in (0..rows).step_by(BLOCK_ROWS) {
            let end = rows.min(row + BLOCK_ROWS);
            let vectors = self.own_keys(keys, end).div_ceil(L::N);
            let run = Run { a: &a[row * block.words..], b, depth: block.words };
            let layout = Layout { rows: end - row, vectors, ..layout };
            multiply::<L, E, false>(l, &mut to[row * width + own.column * L::N..], &[run], layout);
        }
    }

    /// `p = exp(scale scores - lse)`, `d_scores = scale p (d_p - delta)`, as words in both directions.
    #[inline(always)]
    fn differentiate<L: Lanes>(&self, l: L, work: &mut Work<'_>, keys: &Group) {
        let (rows, width, blocks) = (self.rows(), work.width, keys.blocks());
        for first in (0..rows).step_by(pack::<E>()) {
            let second = (first + 1).min(rows - 1);
            let own = [self.own_keys(keys, first + 1), self.own_keys(keys, second + 1)];
            let word = first / pack::<E>() * width;
            for b in 0..blocks {
                let (p, d) = self.differential(l, work, keys, first, own[0], b);
                let words = word + b * L::N..word + (b + 1) * L::N;
                if pack::<E>() == 1 {
                    l.write(&mut work.p[words.clone()], p);
                    l.write(&mut work.d_scores[words.clone()], d);
                    l.write(&mut work.d_score_rows[words], d);
                    continue;
                }
                let (mut p2, mut d2) = (l.splat(0.0), l.splat(0.0));
                if first + 1 < rows {
                    (p2, d2) = self.differential(l, work, keys, second, own[1], b);
                }
                l.write(&mut work.p[words.clone()], l.pair(p, p2));
                l.write(&mut work.d_scores[words], l.pair(d, d2));
                let rows: &mut [E] = bytemuck::cast_slice_mut(work.d_score_rows);
                l.write(&mut rows[first * width + b * L::N..][..L::N], d);
                l.write(&mut rows[(first + 1) * width + b * L::N..][..L::N], d2);
            }
        }
    }

    /// Block `b` of a row of `p` and `d_scores`.
    #[inline(always)]
    fn differential<L: Lanes>(
        &self,
        l: L,
        work: &Work<'_>,
        keys: &Group,
        row: usize,
        own: usize,
        b: usize,
    ) -> (L::V, L::V) {
        let zero = l.splat(0.0);
        let seen = seen::<L>(&keys.keys, own, b);
        if seen == 0 {
            return (zero, zero);
        }
        let at = row * work.width + b * L::N;
        let (scores, d_p) = (l.read(&work.scores[at..at + L::N]), l.read(&work.d_p[at..at + L::N]));
        let scale = l.splat(self.shape.scale);
        let p = l.exp(l.fma(scores, scale, l.splat(-work.lse[row])));
        let d = l.mul(l.mul(p, scale), l.sub(d_p, l.splat(work.delta[row])));
        (l.first(seen, p, zero), l.first(seen, d, zero))
    }

    /// `d_q += d_scores k`, or `d_q = d_scores k`.
    #[inline(always)]
    fn add_queries<L: Lanes>(&self, l: L, work: &mut Work<'_>, keys: &Group, add: bool) {
        let (block, rows, pack) = (self.panels.size(), self.rows(), pack::<E>());
        let width = work.width / pack;
        let nothing = Run { a: &[], b: &[], depth: 0 };
        let mut runs = vec![nothing; keys.chain.len() + usize::from(keys.own.is_some())];
        for row in (0..rows).step_by(BLOCK_ROWS) {
            let end = rows.min(row + BLOCK_ROWS);
            for (run, stretch) in runs.iter_mut().zip(keys.chain.iter().chain(&keys.own)) {
                let a = &work.d_score_rows[row * width + stretch.column * L::N / pack..];
                let b = self.panels.blocks(self.head, KEY_ROWS, stretch.block);
                *run = Run { a, b, depth: stretch.keys.div_ceil(pack) };
            }
            if let (Some(_), Some(run)) = (keys.own, runs.last_mut()) {
                run.depth = self.own_keys(keys, end).div_ceil(pack);
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
            multiply::<L, E, false>(l, &mut work.d_q[row * block.padded..], &runs, layout);
        }
    }

    /// `d_k += d_scores^T q`, `d_v += p^T d_out`.
    #[inline(always)]
    fn add_keys<L: Lanes>(&mut self, l: L, work: &Work<'_>, keys: &Group) {
        for stretch in &keys.chain {
            self.add_stretch(l, work, *stretch, 0..stretch.keys, 0);
        }
        let Some(own) = keys.own else { return };
        let (lanes, group) = (self.panels.size().lanes, self.group());
        for key in (0..own.keys).step_by(BLOCK_ROWS) {
            // The first token that sees any of these keys.
            let token = (0..self.tile.tokens.len())
                .find(|token| self.tile.own_keys_in(keys, self.tile.tokens.start + token, lanes) > key);
            let Some(token) = token else { break };
            let end = own.keys.min(key + BLOCK_ROWS);
            self.add_stretch(l, work, own, key..end, token * group / pack::<E>());
        }
    }

    /// Some keys of a stretch, from a word of rows on.
    #[inline(always)]
    fn add_stretch<L: Lanes>(
        &mut self,
        l: L,
        work: &Work<'_>,
        stretch: Stretch,
        keys: Range<usize>,
        from: usize,
    ) {
        let block = self.panels.size();
        let first = self.chunk.row(stretch.segment).expect("a chunk holds every segment that its tiles see");
        let row = first + stretch.from * block.lanes + keys.start;
        let layout = Layout {
            rows: keys.len(),
            vectors: block.padded / L::N,
            c_stride: 2 * block.padded,
            a_stride: work.width,
            b_stride: block.padded,
            b_across: L::N,
            add: true,
        };
        let depth = work.lse.len() / pack::<E>() - from;
        let a = from * work.width + stretch.column * L::N + keys.start;
        let b = from * block.padded;
        let d_k = &mut self.sums[row * 2 * block.padded..];
        let run = Run { a: &work.d_scores[a..], b: &work.q_rows[b..], depth };
        multiply::<L, E, true>(l, d_k, &[run], layout);
        let d_v = &mut self.sums[(row * 2 + 1) * block.padded..];
        let run = Run { a: &work.p[a..], b: &work.d_out_rows[b..], depth };
        multiply::<L, E, true>(l, d_v, &[run], layout);
    }

    /// Writes the queries' gradient.
    #[inline(always)]
    fn finish<L: Lanes>(&self, l: L, work: &Work<'_>) {
        let Self { tile, head, shape, .. } = self;
        let (size, group, padded) = (shape.head_dim, self.group(), self.panels.size().padded);
        for token in 0..tile.tokens.len() {
            let at = (tile.q_row + token) * shape.qkv_width() + head * group * size;
            // SAFETY: each job has its own tokens and heads.
            let d_q = unsafe { self.d_qkv.range(at..at + group * size) };
            for (g, d_q) in d_q.chunks_exact_mut(size).enumerate() {
                let sums = work.d_q[(token * group + g) * padded..].chunks_exact(L::N);
                for (d_q, sums) in d_q.chunks_mut(L::N).zip(sums) {
                    l.write(d_q, l.read(sums));
                }
            }
        }
    }
}

/// Sums the chunks' accumulators of one segment and head, and writes the gradients of its keys and values.
struct Reduce<'a, E> {
    d_qkv: &'a Shared<'a, E>,
    /// `(keys, 2, padded)` each.
    parts: &'a [&'a [f32]],
    row: usize,
    head: usize,
    shape: &'a AttentionShape,
    padded: usize,
}

impl<E: Element> Kernel for Reduce<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { d_qkv, parts, row, head, shape, padded } = self;
        let (size, columns) = (shape.head_dim, shape.columns_in_qkv());
        for key in 0..parts[0].len() / (2 * padded) {
            for (half, column) in [columns.k, columns.v].into_iter().enumerate() {
                let at = (row + key) * columns.stride + column + head * size;
                // SAFETY: each job has its own segments and head, and these are not the queries' columns.
                let d = unsafe { d_qkv.range(at..at + size) };
                for (c, d) in d.chunks_mut(L::N).enumerate() {
                    let from = (2 * key + half) * padded + c * L::N;
                    let mut sum = l.read(&parts[0][from..from + L::N]);
                    for part in &parts[1..] {
                        sum = l.add(sum, l.read(&part[from..from + L::N]));
                    }
                    l.write(d, sum);
                }
            }
        }
    }
}
