use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::{Segment, pool};

/// Values in [-1, 1) that bf16 holds exactly.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) % 256) as f32 / 128.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn to<E: Element>(values: &[f32]) -> Vec<E> {
    values.iter().map(|&v| E::from_f32(v)).collect()
}

fn from<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

/// A tree of `(parent, len, cached)`; parents are taken modulo what is there, and a depth of 4 is the most.
fn tree(parts: &[(usize, u32, bool)]) -> TreeLayout {
    let (mut segments, mut depths) = (Vec::<Segment>::new(), Vec::<usize>::new());
    let (mut kv_row, mut q_row) = (0, 0);
    for (index, &(parent, len, cached)) in parts.iter().enumerate() {
        let parent = parent % (index + 1);
        let parent = (parent > 0 && depths[parent - 1] < 4).then(|| parent as u32 - 1);
        depths.push(parent.map_or(0, |p| depths[p as usize] + 1));
        segments.push(Segment { parent, kv_row, q_row: (!cached).then_some(q_row), len });
        kv_row += len;
        q_row += if cached { 0 } else { len };
    }
    let tree = TreeLayout { segments };
    tree.assert_valid();
    tree
}

fn live(parts: &[(usize, u32, bool)]) -> Vec<(usize, u32, bool)> {
    parts.iter().map(|&(parent, len, _)| (parent, len, false)).collect()
}

fn kv_rows(tree: &TreeLayout) -> usize {
    tree.segments.iter().map(|s| s.len as usize).sum()
}

fn shape(group: usize, kv_heads: usize, head_dim: usize, mask: Mask) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads: group * kv_heads, kv_heads, head_dim, scale, mask, window: None }
}

/// Forward results in `E`.
struct Forward<E> {
    out: Vec<E>,
    lse: Vec<f32>,
}

type Run<E> = fn(&mut [E], &mut [f32], &[E], &[E], KvColumns, &TreeLayout, &AttentionShape);

fn run_forward<E: Element>(
    run: Run<E>,
    qkv: &[E],
    kv: &[E],
    columns: KvColumns,
    tree: &TreeLayout,
    shape: &AttentionShape,
) -> Forward<E> {
    let rows = tree.rows();
    let mut out = vec![E::default(); rows * shape.q_width()];
    let mut lse = vec![0.0; rows * shape.heads];
    run(&mut out, &mut lse, qkv, kv, columns, tree, shape);
    Forward { out, lse }
}

/// A value and the sum of the sizes of all that was added up for it.
#[derive(Clone, Copy, Default, Debug)]
struct Sum {
    value: f64,
    size: f64,
}

impl Sum {
    fn add(&mut self, value: f64, size: f64) {
        self.value += value;
        self.size += size;
    }
}

/// Key/value rows that a row sees, root first.
fn seen(tree: &TreeLayout, index: usize, i: usize, shape: &AttentionShape) -> Vec<usize> {
    let own = tree.segments[index];
    let end = if shape.mask == Mask::Causal { i + 1 } else { own.len as usize };
    let mut rows: Vec<usize> = (0..end).map(|j| own.kv_row as usize + j).rev().collect();
    let mut parent = own.parent;
    while let Some(p) = parent {
        let segment = tree.segments[p as usize];
        rows.extend((segment.kv_row as usize..(segment.kv_row + segment.len) as usize).rev());
        parent = segment.parent;
    }
    rows.truncate(shape.window.unwrap_or(usize::MAX));
    rows.reverse();
    rows
}

/// Attention in f64 on f32 values: `out` and `lse`.
fn exact_forward(
    qkv: &[f32],
    kv: &[f32],
    columns: KvColumns,
    tree: &TreeLayout,
    shape: &AttentionShape,
) -> (Vec<Sum>, Vec<Sum>) {
    let (size, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let mut out = vec![Sum::default(); tree.rows() * shape.q_width()];
    let mut lse = vec![Sum::default(); tree.rows() * shape.heads];
    for (index, segment) in tree.live() {
        for i in 0..segment.len as usize {
            let row = segment.q_row.unwrap() as usize + i;
            for head in 0..shape.heads {
                let keys = seen(tree, index, i, shape);
                let (mut scores, mut largest) = (Vec::new(), 0.0f64);
                for &key in &keys {
                    let mut score = Sum::default();
                    for d in 0..size {
                        let q = f64::from(qkv[row * shape.qkv_width() + head * size + d]);
                        let k = f64::from(kv[key * columns.stride + columns.k + head / group * size + d]);
                        score.add(f64::from(shape.scale) * q * k, (f64::from(shape.scale) * q * k).abs());
                    }
                    scores.push(score.value);
                    largest = largest.max(score.size);
                }
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let log = max + total.ln();
                lse[row * shape.heads + head].add(log, log.abs().max(largest));
                for (&key, score) in keys.iter().zip(&scores) {
                    for d in 0..size {
                        let v = f64::from(kv[key * columns.stride + columns.v + head / group * size + d]);
                        let term = (score - log).exp() * v;
                        out[row * shape.q_width() + head * size + d].add(term, term.abs() * (1.0 + largest));
                    }
                }
            }
        }
    }
    (out, lse)
}

/// The gradient of `qkv` in f64, from the stored `out` and `lse`.
fn exact_backward(
    d_out: &[f32],
    out: &[f32],
    lse: &[f32],
    qkv: &[f32],
    tree: &TreeLayout,
    shape: &AttentionShape,
) -> Vec<Sum> {
    let (size, group, width) = (shape.head_dim, shape.heads / shape.kv_heads, shape.qkv_width());
    let columns = shape.columns_in_qkv();
    let mut d = vec![Sum::default(); tree.rows() * width];
    let at = |values: &[f32], i: usize| f64::from(values[i]);
    for (index, segment) in tree.live() {
        for i in 0..segment.len as usize {
            let row = segment.q_row.unwrap() as usize + i;
            for head in 0..shape.heads {
                let (q_at, o_at) = (row * width + head * size, row * shape.q_width() + head * size);
                for key in seen(tree, index, i, shape) {
                    let k_at = key * width + columns.k + head / group * size;
                    let v_at = key * width + columns.v + head / group * size;
                    let (mut score, mut d_p) = (Sum::default(), Sum::default());
                    for c in 0..size {
                        let s = f64::from(shape.scale) * at(qkv, q_at + c) * at(qkv, k_at + c);
                        score.add(s, s.abs());
                        let v = at(d_out, o_at + c) * at(qkv, v_at + c);
                        let o = at(d_out, o_at + c) * at(out, o_at + c);
                        d_p.add(v - o, v.abs() + o.abs());
                    }
                    let p = (score.value - f64::from(lse[row * shape.heads + head])).exp();
                    let p_size = p * (1.0 + score.size);
                    let (d_s, d_s_size) = (p * d_p.value, p_size * d_p.size);
                    let scale = f64::from(shape.scale);
                    for c in 0..size {
                        let (q, k, o) = (at(qkv, q_at + c), at(qkv, k_at + c), at(d_out, o_at + c));
                        d[q_at + c].add(scale * d_s * k, scale * d_s_size * k.abs());
                        d[k_at + c].add(scale * d_s * q, scale * d_s_size * q.abs());
                        d[v_at + c].add(p * o, p_size * o.abs());
                    }
                }
            }
        }
    }
    d
}

/// The first value that is further from the exact one than roundings explain: to `E` of what is stored and of the
/// factors of its terms (probabilities and their gradients), and some of f32 along the sums.
fn deviation<E: Element>(values: &[E], exact: &[Sum]) -> Option<String> {
    assert_eq!(values.len(), exact.len());
    let unit = if E::NAME == "bf16" { 1.0 / 256.0 } else { 0.0 };
    let sums = 2f64.powi(-20);
    values.iter().zip(exact).enumerate().find_map(|(i, (value, exact))| {
        let error = (f64::from(value.to_f32()) - exact.value).abs();
        let allowed = (unit + sums) * exact.size + unit * exact.value.abs() + 1e-30;
        (error.is_nan() || error > allowed).then(|| {
            format!("value {i}: {value:?}, expected {exact:?}, error {error:e}, allowed {allowed:e}")
        })
    })
}

fn check<E: Element>(parts: &[(usize, u32, bool)], shape: &AttentionShape, seed: u64) {
    let tree_layout = tree(parts);
    let columns = shape.columns_in_cache();
    let qkv = noise(tree_layout.rows() * shape.qkv_width(), seed);
    let kv = noise(kv_rows(&tree_layout) * columns.stride, seed + 1);
    let fast = run_forward::<E>(forward, &to(&qkv), &to(&kv), columns, &tree_layout, shape);
    let (out, lse) = exact_forward(&qkv, &kv, columns, &tree_layout, shape);
    assert_eq!(deviation(&fast.out, &out), None, "out");
    assert_eq!(deviation(&fast.lse, &lse), None, "lse");

    let all_live = tree(&live(parts));
    let columns = shape.columns_in_qkv();
    let qkv = noise(all_live.rows() * shape.qkv_width(), seed + 2);
    let d_out = noise(all_live.rows() * shape.q_width(), seed + 3);
    let stored = run_forward::<E>(reference::forward, &to(&qkv), &to(&qkv), columns, &all_live, shape);
    let mut d_qkv = vec![E::from_f32(f32::NAN); qkv.len()];
    backward(&mut d_qkv, &to(&d_out), &stored.out, &stored.lse, &to(&qkv), &all_live, shape);
    let exact = exact_backward(&d_out, &from(&stored.out), &stored.lse, &qkv, &all_live, shape);
    assert_eq!(deviation(&d_qkv, &exact), None, "d_qkv");
}

fn masks() -> impl Strategy<Value = Mask> {
    prop_oneof![3 => Just(Mask::Causal), 1 => Just(Mask::Full)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn fast_is_exact_up_to_rounding(
        parts in prop::collection::vec((0usize..100, 1u32..40, prop::bool::weighted(0.2)), 1..9),
        group in 1usize..5,
        kv_heads in 1usize..4,
        head_dim in prop_oneof![Just(64usize), 1usize..70],
        mask in masks(),
        seed in 1u64..1_000_000,
    ) {
        let shape = shape(group, kv_heads, head_dim, mask);
        check::<f32>(&parts, &shape, seed);
        check::<bf16>(&parts, &shape, seed);
    }

    #[test]
    fn reference_is_exact_up_to_rounding(
        parts in prop::collection::vec((0usize..100, 1u32..12, Just(false)), 1..6),
        group in 1usize..4,
        head_dim in 1usize..20,
        mask in masks(),
        seed in 1u64..1_000_000,
    ) {
        let (tree, shape) = (tree(&parts), shape(group, 2, head_dim, mask));
        let columns = shape.columns_in_qkv();
        let qkv = noise(tree.rows() * shape.qkv_width(), seed);
        let plain = run_forward::<f32>(reference::forward, &qkv, &qkv, columns, &tree, &shape);
        let (out, lse) = exact_forward(&qkv, &qkv, columns, &tree, &shape);
        prop_assert_eq!(deviation(&plain.out, &out), None);
        prop_assert_eq!(deviation(&plain.lse, &lse), None);
    }
}

#[test]
fn long_chains_and_long_segments_are_exact_up_to_rounding() {
    // More keys than one group of scores holds: among the ancestors, in the own segment, and in both.
    let shape = shape(3, 2, 16, Mask::Causal);
    for parts in [
        vec![(0, 300, false), (1, 290, false), (1, 5, false)],
        vec![(0, 130, false), (1, 100, false), (2, 40, false), (2, 30, false), (3, 200, false)],
        vec![(0, 700, false)],
    ] {
        check::<f32>(&parts, &shape, 7);
        check::<bf16>(&parts, &shape, 8);
    }
    check::<bf16>(&[(0, 333, false), (1, 150, false)], &AttentionShape { mask: Mask::Full, ..shape }, 9);
}

#[test]
fn a_window_hides_what_lies_further_back() {
    let parts = [(0, 9, true), (1, 6, false), (2, 4, false), (1, 3, false)];
    for window in [1, 4, 11, 19, 500] {
        let shape = AttentionShape { window: Some(window), ..shape(3, 2, 16, Mask::Causal) };
        check::<f32>(&parts, &shape, 21);
        check::<f32>(&[(0, 40, false)], &shape, 22);
    }
}

#[test]
fn reference_backward_is_the_slope_of_the_forward_pass() {
    let (tree, shape) =
        (tree(&[(0, 3, false), (1, 2, false), (1, 4, false), (3, 2, false)]), shape(2, 2, 3, Mask::Causal));
    let columns = shape.columns_in_qkv();
    let qkv = noise(tree.rows() * shape.qkv_width(), 11);
    let d_out = noise(tree.rows() * shape.q_width(), 12);
    let loss = |qkv: &[f32]| -> f64 {
        let (out, _) = exact_forward(qkv, qkv, columns, &tree, &shape);
        out.iter().zip(&d_out).map(|(out, d)| out.value * f64::from(*d)).sum()
    };
    let stored = run_forward::<f32>(reference::forward, &qkv, &qkv, columns, &tree, &shape);
    let mut d_qkv = vec![0.0; qkv.len()];
    reference::backward(&mut d_qkv, &d_out, &stored.out, &stored.lse, &qkv, &tree, &shape);
    for i in 0..qkv.len() {
        // The inputs are multiples of 1/128, so both steps are exact in f32.
        let step = 1.0 / 1024.0;
        let (mut up, mut down) = (qkv.clone(), qkv.clone());
        up[i] += step;
        down[i] -= step;
        let slope = (loss(&up) - loss(&down)) / (2.0 * f64::from(step));
        assert!(
            (f64::from(d_qkv[i]) - slope).abs() < 2e-6,
            "input {i}: {} but the slope is {slope}",
            d_qkv[i]
        );
    }
}

/// Ordinary causal attention over one sequence, in f64: what a textbook writes.
fn causal(rows: &[&[f32]], shape: &AttentionShape) -> Vec<Vec<f64>> {
    let (size, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let columns = shape.columns_in_qkv();
    let mut out = vec![vec![0.0; shape.q_width()]; rows.len()];
    for t in 0..rows.len() {
        for head in 0..shape.heads {
            let kv_head = head / group * size;
            let weight = |j: usize| -> f64 {
                let q = &rows[t][head * size..][..size];
                let k = &rows[j][columns.k + kv_head..][..size];
                (f64::from(shape.scale) * q.iter().zip(k).map(|(q, k)| f64::from(q * k)).sum::<f64>()).exp()
            };
            let total: f64 = (0..=t).map(weight).sum();
            for (j, row) in rows.iter().enumerate().take(t + 1) {
                for d in 0..size {
                    out[t][head * size + d] += weight(j) / total * f64::from(row[columns.v + kv_head + d]);
                }
            }
        }
    }
    out
}

#[test]
fn tree_attention_is_causal_attention_along_each_path() {
    let parts = [
        (0, 7, false),
        (1, 20, false),
        (1, 1, false),
        (3, 5, false),
        (3, 2, false),
        (5, 18, false),
        (0, 4, false),
    ];
    let (tree, shape) = (tree(&parts), shape(3, 2, 8, Mask::Causal));
    let width = shape.qkv_width();
    let qkv = noise(tree.rows() * width, 21);
    let fast = run_forward::<f32>(forward, &qkv, &qkv, shape.columns_in_qkv(), &tree, &shape);
    for index in 0..tree.segments.len() {
        let last = tree.segments[index].len as usize - 1;
        let path = seen(&tree, index, last, &shape);
        let rows: Vec<&[f32]> = path.iter().map(|&row| &qkv[row * width..][..width]).collect();
        for (&row, expected) in path.iter().zip(causal(&rows, &shape)) {
            let found = &fast.out[row * shape.q_width()..][..shape.q_width()];
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (f64::from(*found) - expected).abs() < 1e-6,
                    "row {row}: {found}, expected {expected}"
                );
            }
        }
    }
}

/// The ancestors of a segment and itself as a tree of their own, and the rows they had.
fn path_alone(tree: &TreeLayout, index: usize) -> (TreeLayout, Vec<usize>) {
    let chain: Vec<usize> = tree.ancestors(index).into_iter().chain([index]).collect();
    let (mut segments, mut rows) = (Vec::new(), Vec::new());
    for (position, &segment) in chain.iter().enumerate() {
        let Segment { kv_row, len, .. } = tree.segments[segment];
        let row = rows.len() as u32;
        rows.extend(kv_row as usize..(kv_row + len) as usize);
        let parent = (position > 0).then(|| position as u32 - 1);
        segments.push(Segment { parent, kv_row: row, q_row: Some(row), len });
    }
    (TreeLayout { segments }, rows)
}

fn pick<T: Copy>(values: &[T], rows: &[usize], width: usize) -> Vec<T> {
    rows.iter().flat_map(|&row| &values[row * width..][..width]).copied().collect()
}

/// Forward and backward of a tree whose rows are all live.
fn passes<E: Element>(
    qkv: &[E],
    d_out: &[E],
    tree: &TreeLayout,
    shape: &AttentionShape,
) -> (Forward<E>, Vec<E>) {
    let stored = run_forward::<E>(forward, qkv, qkv, shape.columns_in_qkv(), tree, shape);
    let mut d_qkv = vec![E::default(); qkv.len()];
    backward(&mut d_qkv, d_out, &stored.out, &stored.lse, qkv, tree, shape);
    (stored, d_qkv)
}

fn check_identity<E: Element>(parts: &[(usize, u32, bool)], shape: &AttentionShape, seed: u64) {
    let tree = tree(&live(parts));
    let qkv = to::<E>(&noise(tree.rows() * shape.qkv_width(), seed));
    let d_out = to::<E>(&noise(tree.rows() * shape.q_width(), seed + 1));
    let (all, d_all) = passes(&qkv, &d_out, &tree, shape);
    let (one_thread, d_one_thread) = pool::alone(|| passes(&qkv, &d_out, &tree, shape));
    assert!(all.out == one_thread.out && all.lse == one_thread.lse, "forward depends on the threads");
    assert_eq!(d_all, d_one_thread, "backward depends on the threads");
    for index in 0..tree.segments.len() {
        let (path, rows) = path_alone(&tree, index);
        let (qkv, d_out) = (pick(&qkv, &rows, shape.qkv_width()), pick(&d_out, &rows, shape.q_width()));
        let (alone, d_alone) = passes(&qkv, &d_out, &path, shape);
        assert_eq!(alone.out, pick(&all.out, &rows, shape.q_width()), "out of segment {index}");
        assert_eq!(alone.lse, pick(&all.lse, &rows, shape.heads), "lse of segment {index}");
        // Queries hear from their own row only; keys hear from below, so a leaf's stay the same.
        let leaf = !tree.segments.iter().any(|s| s.parent == Some(index as u32));
        let own = tree.segments[index].len as usize;
        let first = rows.len() - own;
        for (i, &row) in rows.iter().enumerate() {
            let width = if leaf && i >= first { shape.qkv_width() } else { shape.q_width() };
            let (a, b) = (i * shape.qkv_width(), row * shape.qkv_width());
            assert_eq!(d_alone[a..][..width], d_all[b..][..width], "gradient of row {row}, segment {index}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_row_is_the_same_bits_whatever_else_is_in_the_tree(
        parts in prop::collection::vec((0usize..100, 1u32..40, Just(false)), 1..12),
        group in 1usize..5,
        head_dim in prop_oneof![Just(64usize), 1usize..40],
        mask in masks(),
        seed in 1u64..1_000_000,
    ) {
        let shape = shape(group, 2, head_dim, mask);
        check_identity::<f32>(&parts, &shape, seed);
        check_identity::<bf16>(&parts, &shape, seed);
    }
}

#[test]
fn long_segments_are_the_same_bits_too() {
    let shape = shape(3, 1, 8, Mask::Causal);
    let parts = [(0, 150, false), (1, 600, false), (1, 20, false), (1, 310, false), (0, 9, false)];
    check_identity::<f32>(&parts, &shape, 3);
    check_identity::<bf16>(&parts, &shape, 4);
}

#[test]
fn the_tolerance_notices_a_wrong_key() {
    let (tree, shape) = (tree(&[(0, 24, false), (1, 25, false)]), shape(3, 1, 64, Mask::Causal));
    let columns = shape.columns_in_qkv();
    let qkv = noise(tree.rows() * shape.qkv_width(), 31);
    let d_out = noise(tree.rows() * shape.q_width(), 32);
    let (out, _) = exact_forward(&qkv, &qkv, columns, &tree, &shape);
    // One value feature of the root's first token is off by 1/128 of the range: the last row, which spreads its
    // attention over 49 keys, barely feels it.
    let mut wrong = qkv.clone();
    wrong[columns.v] += 1.0 / 64.0;
    let found = run_forward::<f32>(forward, &wrong, &wrong, columns, &tree, &shape);
    assert!(deviation(&found.out, &out).is_some(), "f32 forward");
    wrong[columns.v] += 1.0;
    let found = run_forward::<bf16>(forward, &to(&wrong), &to(&wrong), columns, &tree, &shape);
    assert!(deviation(&found.out, &out).is_some(), "bf16 forward");
    // Keys of later tokens, which the causal mask hides, show in the gradient when they are counted.
    let stored = run_forward::<f32>(forward, &qkv, &qkv, columns, &tree, &shape);
    let mut d_qkv = vec![bf16::ZERO; qkv.len()];
    let stored_out = to::<bf16>(&stored.out);
    backward(&mut d_qkv, &to(&d_out), &stored_out, &stored.lse, &to(&qkv), &tree, &shape);
    let full = AttentionShape { mask: Mask::Full, ..shape };
    let exact = exact_backward(&d_out, &from(&stored_out), &stored.lse, &qkv, &tree, &full);
    assert!(deviation(&d_qkv, &exact).is_some(), "bf16 backward");
}
