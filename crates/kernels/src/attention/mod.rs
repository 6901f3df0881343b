//! Attention over a token tree: a row looks at every token of its segment's ancestors and, as the mask says, at its
//! own segment.
//!
//! `p = softmax(scale q k^T)`, `out = p v`. Backward, with `delta = sum_d d_out * out` and `p = exp(s - lse)`:
//! `d_v += p^T d_out`, `d_s = p * (d_out v^T - delta)`, `d_q = scale d_s k`, `d_k += scale d_s^T q`
//! (Dao et al., 2022). Keys of a shared ancestor receive the sum over all its descendants.

mod backward;
mod chunks;
mod forward;
mod panels;
mod plan;
mod product;
pub mod reference;

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
    /// Tokens that a row looks back over, itself included; `None`: all that the mask allows. Only with
    /// [`Mask::Causal`].
    pub window: Option<usize>,
}

impl AttentionShape {
    /// `H D`.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Whether some row of the tree stands further than the window from its first token. Where none does, a window
    /// changes nothing; where one does, the plain version runs: queries are short beside the windows in use.
    fn hides_some_of(&self, tree: &TreeLayout) -> bool {
        let reach = |index: usize, len: u32| {
            let before =
                tree.ancestors(index).into_iter().map(|ancestor| tree.segments[ancestor].len as usize);
            before.sum::<usize>() + len as usize
        };
        self.window.is_some_and(|window| tree.live().any(|(index, own)| reach(index, own.len) > window))
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
    if shape.hides_some_of(tree) {
        return reference::forward(out, lse, qkv, kv, columns, tree, shape);
    }
    forward::run(out, lse, qkv, kv, columns, tree, shape);
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
    if shape.hides_some_of(tree) {
        return reference::backward(d_qkv, d_out, out, lse, qkv, tree, shape);
    }
    backward::run(d_qkv, d_out, out, lse, qkv, tree, shape);
}

#[cfg(test)]
mod tests;
