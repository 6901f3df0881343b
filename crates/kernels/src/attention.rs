//! Attention over a token tree: a row looks at every token of its segment's ancestors and, as the mask says, at its
//! own segment.
//!
//! `p = softmax(scale q k^T)`, `out = p v`. Backward, with `delta = sum_d d_out * out` and `p = exp(s - lse)`:
//! `d_v += p^T d_out`, `d_s = p * (d_out v^T - delta)`, `d_q = scale d_s k`, `d_k += scale d_s^T q`
//! (Dao et al., 2022). Keys of a shared ancestor receive the sum over all its descendants.

use crate::{Element, TreeLayout};

/// What a row may see of its own segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Itself and what came before.
    Causal,
    /// Everything (encoders).
    Full,
}

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// `H`.
    pub heads: usize,
    /// `G`; `H` is a multiple of it, and `H / G` consecutive query heads share a key/value head.
    pub kv_heads: usize,
    /// `D`.
    pub head_dim: usize,
    /// Usually `1 / sqrt(D)`.
    pub scale: f32,
    /// Within a segment.
    pub mask: Mask,
}

impl AttentionShape {
    /// `H D`.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// `G D`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// `(H + 2 G) D`.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }
    /// Where keys and values lie when they are read from the `qkv` rows themselves.
    pub fn columns_in_qkv(&self) -> KvColumns {
        let k = self.q_width();
        KvColumns { stride: self.qkv_width(), k, v: k + self.kv_width() }
    }
    /// Where keys and values lie in a cache of rows `(2 G D)`.
    pub fn columns_in_cache(&self) -> KvColumns {
        KvColumns { stride: 2 * self.kv_width(), k: 0, v: self.kv_width() }
    }
}

/// Where keys and values lie in the rows of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvColumns {
    /// Values between rows.
    pub stride: usize,
    /// First key column.
    pub k: usize,
    /// First value column.
    pub v: usize,
}

/// Writes `out` and `lse` for the live rows of `tree`.
/// # Shapes
/// `out`: `(T, H D)`, `lse`: `(T, H)`, `qkv`: `(T, (H + 2 G) D)` of which only the queries are read, `kv`: rows as
/// `columns` says, indexed by `Segment::kv_row`.
pub fn forward<E: Element>(
    out: &mut [E],
    lse: &mut [f32],
    qkv: &[E],
    kv: &[E],
    columns: KvColumns,
    tree: &TreeLayout,
    shape: &AttentionShape,
) {
    reference::forward(out, lse, qkv, kv, columns, tree, shape);
}

/// Writes `d_qkv` for all rows; every segment of `tree` is live and `kv_row == q_row`.
/// # Shapes
/// `d_qkv`, `qkv`: `(T, (H + 2 G) D)`; `d_out`, `out`: `(T, H D)`; `lse`: `(T, H)`.
pub fn backward<E: Element>(
    d_qkv: &mut [E],
    d_out: &[E],
    out: &[E],
    lse: &[f32],
    qkv: &[E],
    tree: &TreeLayout,
    shape: &AttentionShape,
) {
    reference::backward(d_qkv, d_out, out, lse, qkv, tree, shape);
}

/// The plain versions.
pub mod reference {
    use super::{AttentionShape, Element, KvColumns, Mask, TreeLayout};

    fn dot<E: Element>(a: &[E], b: &[E]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
    }

    /// The key/value rows that row `i` of segment `index` sees.
    fn visible(tree: &TreeLayout, index: usize, i: usize, mask: Mask) -> Vec<usize> {
        let own = tree.segments[index];
        let mut rows = Vec::new();
        for ancestor in tree.ancestors(index) {
            let segment = tree.segments[ancestor];
            rows.extend(segment.kv_row as usize..(segment.kv_row + segment.len) as usize);
        }
        let seen = if mask == Mask::Causal { i + 1 } else { own.len as usize };
        rows.extend(own.kv_row as usize..own.kv_row as usize + seen);
        rows
    }

    /// See [`super::forward`].
    pub fn forward<E: Element>(
        out: &mut [E],
        lse: &mut [f32],
        qkv: &[E],
        kv: &[E],
        columns: KvColumns,
        tree: &TreeLayout,
        shape: &AttentionShape,
    ) {
        let (size, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        for (index, segment) in tree.live() {
            for i in 0..segment.len as usize {
                let row = segment.q_row.map_or(0, |r| r as usize) + i;
                let keys = visible(tree, index, i, shape.mask);
                for head in 0..shape.heads {
                    let q = &qkv[row * shape.qkv_width() + head * size..][..size];
                    let key = |r: usize| &kv[r * columns.stride + columns.k + head / group * size..][..size];
                    let value =
                        |r: usize| &kv[r * columns.stride + columns.v + head / group * size..][..size];
                    let scores: Vec<f32> = keys.iter().map(|&r| shape.scale * dot(q, key(r))).collect();
                    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
                    lse[row * shape.heads + head] = max + sum.ln();
                    for d in 0..size {
                        let weighted =
                            keys.iter().zip(&scores).map(|(&r, s)| (s - max).exp() * value(r)[d].to_f32());
                        out[row * shape.q_width() + head * size + d] =
                            E::from_f32(weighted.sum::<f32>() / sum);
                    }
                }
            }
        }
    }

    /// See [`super::backward`].
    pub fn backward<E: Element>(
        d_qkv: &mut [E],
        d_out: &[E],
        out: &[E],
        lse: &[f32],
        qkv: &[E],
        tree: &TreeLayout,
        shape: &AttentionShape,
    ) {
        let (size, group, width) = (shape.head_dim, shape.heads / shape.kv_heads, shape.qkv_width());
        let columns = shape.columns_in_qkv();
        let mut sums = vec![0.0f32; tree.rows() * width];
        for (index, segment) in tree.live() {
            for i in 0..segment.len as usize {
                let row = segment.q_row.map_or(0, |r| r as usize) + i;
                for head in 0..shape.heads {
                    let (q_at, o_at) = (row * width + head * size, row * shape.q_width() + head * size);
                    let delta = dot(&d_out[o_at..][..size], &out[o_at..][..size]);
                    for key_row in visible(tree, index, i, shape.mask) {
                        let k_at = key_row * width + columns.k + head / group * size;
                        let v_at = key_row * width + columns.v + head / group * size;
                        let score = shape.scale * dot(&qkv[q_at..][..size], &qkv[k_at..][..size]);
                        let p = (score - lse[row * shape.heads + head]).exp();
                        let d_score =
                            p * (dot(&d_out[o_at..][..size], &qkv[v_at..][..size]) - delta) * shape.scale;
                        for d in 0..size {
                            sums[v_at + d] += p * d_out[o_at + d].to_f32();
                            sums[q_at + d] += d_score * qkv[k_at + d].to_f32();
                            sums[k_at + d] += d_score * qkv[q_at + d].to_f32();
                        }
                    }
                }
            }
        }
        for (d, sum) in d_qkv.iter_mut().zip(&sums) {
            *d = E::from_f32(*sum);
        }
    }
}
