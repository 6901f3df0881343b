//! The plain versions.

use super::{AttentionShape, Element, KvColumns, Mask, TreeLayout};

fn dot<E: Element>(a: &[E], b: &[E]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
}

/// The key/value rows that row `i` of segment `index` sees.
fn visible(tree: &TreeLayout, index: usize, i: usize, shape: &AttentionShape) -> Vec<usize> {
    let own = tree.segments[index];
    let mut rows = Vec::new();
    for ancestor in tree.ancestors(index) {
        let segment = tree.segments[ancestor];
        rows.extend(segment.kv_row as usize..(segment.kv_row + segment.len) as usize);
    }
    let seen = if shape.mask == Mask::Causal { i + 1 } else { own.len as usize };
    rows.extend(own.kv_row as usize..own.kv_row as usize + seen);
    let behind = rows.len().saturating_sub(shape.window.unwrap_or(rows.len()));
    rows.split_off(behind)
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
            let keys = visible(tree, index, i, shape);
            for head in 0..shape.heads {
                let q = &qkv[row * shape.qkv_width() + head * size..][..size];
                let key = |r: usize| &kv[r * columns.stride + columns.k + head / group * size..][..size];
                let value = |r: usize| &kv[r * columns.stride + columns.v + head / group * size..][..size];
                let scores: Vec<f32> = keys.iter().map(|&r| shape.scale * dot(q, key(r))).collect();
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
                lse[row * shape.heads + head] = max + sum.ln();
                for d in 0..size {
                    let weighted =
                        keys.iter().zip(&scores).map(|(&r, s)| (s - max).exp() * value(r)[d].to_f32());
                    out[row * shape.q_width() + head * size + d] = E::from_f32(weighted.sum::<f32>() / sum);
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
                for key_row in visible(tree, index, i, shape) {
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
