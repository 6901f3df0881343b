//! Every op of the GPU against `Cpu<f32>` on the same bf16 inputs, over random trees, sizes and layouts.
//!
//! Without a GPU the tests say so and pass; with `FRONTDESK_CUDA` set, a device that does not open is a failure, and
//! `FRONTDESK_CUDA=f16` lets it compute in f16.

#![cfg(feature = "cuda")]
#![allow(clippy::print_stderr)] // says what was skipped

mod common;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use common::{Random, assert_close};
use half::f16;
use kernels::{
    Activation, AdamW, AttentionShape, Backend, BlockFormat, Cpu, Cuda, Direction, Encoding, Gate,
    GatedLayer, Linear, Mask, Norm, Output, PassSpec, Segment, Slot, TreeLayout, bf16,
};

/// Two roundings to bf16, and the sums' own.
const NARROW: f32 = 1.0 / 100.0;
/// What sums may leave where all terms cancel.
const NOTHING: f32 = 1e-5;
/// Sums of bf16 products that are kept in f32.
const WIDE: f32 = 1e-4;

/// The device, for one test at a time: its scratch serves one stream of ops.
fn device() -> Option<MutexGuard<'static, Cuda>> {
    static DEVICE: OnceLock<Option<Mutex<Cuda>>> = OnceLock::new();
    let asked = std::env::var("FRONTDESK_CUDA");
    let open = if asked.as_deref() == Ok("f16") { Cuda::open_f16 } else { Cuda::open };
    let device = DEVICE.get_or_init(|| match open(0, None) {
        Ok(device) => Some(Mutex::new(device)),
        Err(error) => {
            assert!(asked.is_err(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    });
    device.as_ref().map(|device| device.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs an op on both devices and holds the results together.
macro_rules! compare {
    ($name:expr, $run:expr) => {
        if let Some(device) = device() {
            let run_cuda = $run;
            let run_cpu = $run;
            let (found, expected) = (run_cuda(&*device), run_cpu(&Cpu::<f32>::new()));
            assert_same(&$name, &found, &expected);
        }
    };
}

/// A result's name, values and tolerance.
type Results = Vec<(&'static str, Vec<f32>, f32)>;

/// Each value within the tolerance, as a share of its size or of the typical size around it; and the typical
/// difference at most half of it and of four hundredths, so that a wide tolerance for single values hides no wrong sums.
fn assert_same(case: &str, found: &Results, expected: &Results) {
    for ((name, found, tolerance), (_, expected, _)) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len(), "{case} {name}");
        let typical = root_mean_square(expected.iter().copied());
        let tolerances: Vec<f32> =
            expected.iter().map(|v| tolerance * (v.abs() + typical) + NOTHING).collect();
        assert_close(&format!("{case}: {name}"), found, expected, &tolerances);
        let difference =
            root_mean_square(found.iter().zip(expected).map(|(found, expected)| found - expected));
        let most = typical * (tolerance / 2.0).min(2.0 * NARROW) + NOTHING;
        assert!(difference <= most, "{case}: {name} differs by {difference}, at most {most} was expected");
    }
}

fn root_mean_square(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let count = values.len().max(1) as f64;
    (values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>() / count).sqrt() as f32
}

/// Values that bf16 holds exactly, between -1 and 1.
fn values(random: &mut Random, len: usize) -> Vec<f32> {
    random.vec::<bf16>(len).into_iter().map(|v| 2.0 * v.to_f32()).collect()
}

fn wide<B: Backend>(ops: &B, len: usize, values: &[f32]) -> B::Wide {
    let mut buffer = ops.wide(len);
    ops.upload(&mut buffer, 0, values);
    buffer
}

fn narrow<B: Backend>(ops: &B, len: usize, values: &[f32]) -> B::Narrow {
    let (from, mut to) = (wide(ops, len, values), ops.narrow(len));
    ops.round(&mut to, &from, len);
    to
}

fn read<B: Backend>(ops: &B, buffer: &B::Wide, len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    ops.download(&mut out, buffer, 0);
    out
}

fn read_narrow<B: Backend>(ops: &B, buffer: &B::Narrow, len: usize) -> Vec<f32> {
    let mut as_wide = ops.wide(len);
    ops.widen(&mut as_wide, buffer, len);
    read(ops, &as_wide, len)
}

fn matrix<B: Backend>(ops: &B, rows: usize, cols: usize, values: &[f32]) -> B::Matrix {
    ops.matrix(rows, cols, &|row, out| out.copy_from_slice(&values[row * cols..][..cols]))
}

/// A tree of `(parent + 1 or 0, len, cached)`.
fn tree(parts: &[(usize, u32, bool)]) -> TreeLayout {
    let (mut kv_row, mut q_row) = (0, 0);
    let mut segments = Vec::new();
    for &(parent, len, cached) in parts {
        let parent = parent.checked_sub(1).map(|parent| parent as u32);
        segments.push(Segment { parent, kv_row, q_row: (!cached).then_some(q_row), len });
        kv_row += len;
        q_row += if cached { 0 } else { len };
    }
    let tree = TreeLayout { segments };
    tree.assert_valid();
    tree
}

fn random_tree(random: &mut Random, cached: bool) -> TreeLayout {
    let mut below = |most: f32| ((random.next() + 0.5) * most) as usize;
    let count = 1 + below(9.0);
    let parts = (0..count).map(|index| {
        let parent = if index == 0 { 0 } else { below(index as f32 + 1.0) };
        let most = [5.0, 40.0, 150.0][below(3.0)];
        // A lone row looks at itself alone: its scores have no gradient, only roundings.
        let least = if index == 0 { 2 } else { 1 };
        (parent, least + below(most) as u32, cached && index + 1 < count && below(2.0) == 0)
    });
    let parts: Vec<_> = parts.collect();
    tree(&parts)
}

/// A shared beginning, and as many continuations.
fn fan(root: u32, children: usize, len: u32) -> TreeLayout {
    let children = std::iter::repeat_n((1, len, false), children);
    tree(&std::iter::once((0, root, false)).chain(children).collect::<Vec<_>>())
}

fn kv_rows(tree: &TreeLayout) -> usize {
    tree.segments.iter().map(|segment| segment.len as usize).sum()
}

/// A pass over a tree with every third row chosen.
struct Spec {
    tree: TreeLayout,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    chosen: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    wanted: Vec<(u32, u32)>,
}

impl Spec {
    fn new(tree: TreeLayout, vocabulary: u32) -> Self {
        let rows = tree.rows() as u32;
        let chosen: Vec<u32> = (0..rows).filter(|row| row % 3 == 1 || *row + 1 == rows).collect();
        let some = |n: u32| (n * 7 + 3) % vocabulary;
        Self {
            tokens: (0..rows).map(some).collect(),
            positions: (0..rows).map(|row| (row * 5) % 64).collect(),
            targets: chosen.iter().copied().map(some).collect(),
            weights: chosen.iter().map(|row| (row % 4) as f32 / 4.0).collect(),
            wanted: (0..chosen.len() as u32)
                .step_by(2)
                .flat_map(|i| [(i, some(i)), (i, some(i + 1))])
                .collect(),
            chosen,
            tree,
        }
    }

    fn pass<B: Backend>(&self, ops: &B) -> B::Pass {
        let spec = PassSpec {
            tokens: &self.tokens,
            positions: &self.positions,
            layout: &self.tree,
            chosen: &self.chosen,
            targets: &self.targets,
            weights: &self.weights,
            wanted: &self.wanted,
        };
        ops.pass(&spec, None)
    }
}

fn blocks(random: &mut Random, format: BlockFormat, len: usize) -> Vec<u8> {
    let mut raw = Vec::new();
    for _ in 0..len / 32 {
        let scale = random.next() * 0.1;
        match format {
            BlockFormat::Nf4 => raw.extend(scale.to_le_bytes()),
            _ => raw.extend(f16::from_f32(scale).to_le_bytes()),
        }
        if format == BlockFormat::Q4_1 {
            raw.extend(f16::from_f32(random.next()).to_le_bytes());
        }
        let quants = if format == BlockFormat::Q8_0 { 32 } else { 16 };
        raw.extend((0..quants).map(|_| ((random.next() + 0.5) * 256.0) as u8));
    }
    raw
}

const FORMATS: [BlockFormat; 4] = [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::Nf4];

fn embed<B: Backend>(ops: &B, width: usize, format: Option<BlockFormat>) -> Results {
    let mut random = Random(1);
    let (spec, vocabulary) = (Spec::new(fan(9, 3, 5), 70), 70);
    let pass = spec.pass(ops);
    let table = match format {
        None => matrix(ops, vocabulary, width, &values(&mut random, vocabulary * width)),
        Some(format) => {
            let raw = blocks(&mut random, format, vocabulary * width);
            ops.matrix_from_blocks(format, vocabulary, width, &raw)
        }
    };
    let mut x = ops.wide(ops.rows(&pass) * width);
    ops.embed(&mut x, &table, &pass);
    let first = read(ops, &x, spec.tree.rows() * width);
    ops.add_positions(&mut x, &table, &pass);
    // Values of a block are rounded to bf16 on the device alone.
    let tolerance = if format.is_some() { NARROW } else { 1e-6 };
    vec![("embed", first, tolerance), ("add_positions", read(ops, &x, spec.tree.rows() * width), tolerance)]
}

#[test]
fn embeddings() {
    for width in [7, 64] {
        compare!(format!("width {width}"), |ops| embed(ops, width, None));
    }
    for format in FORMATS {
        compare!(format!("{format:?}"), |ops| embed(ops, 96, Some(format)));
    }
}

fn rows<B: Backend>(ops: &B, width: usize) -> Results {
    let mut random = Random(2);
    let spec = Spec::new(fan(30, 5, 11), 10);
    let (pass, rows, count) = (spec.pass(ops), spec.tree.rows(), spec.chosen.len());
    let len = ops.rows(&pass) * width;
    let x = values(&mut random, rows * width);
    let (from, from_narrow) = (wide(ops, len, &x), narrow(ops, len, &x));
    let (mut to, mut to_narrow) = (ops.wide(len), ops.narrow(len));
    ops.gather(&mut to, &from, &pass, width);
    ops.gather_narrow(&mut to_narrow, &from_narrow, &pass, width);
    let (mut back, mut back_narrow) = (wide(ops, len, &x), narrow(ops, len, &x));
    ops.spread(&mut back, &to, &pass, width);
    ops.spread_narrow(&mut back_narrow, &to_narrow, &pass, width);
    let mut copied = ops.narrow(len);
    ops.copy(&mut copied, &from_narrow, rows * width);
    let mut cleared = wide(ops, len, &x);
    ops.clear(&mut cleared, width);
    vec![
        ("gather", read(ops, &to, count * width), 0.0),
        ("gather_narrow", read_narrow(ops, &to_narrow, count * width), 0.0),
        ("spread", read(ops, &back, rows * width), 0.0),
        ("spread_narrow", read_narrow(ops, &back_narrow, rows * width), 0.0),
        ("copy", read_narrow(ops, &copied, rows * width), 0.0),
        ("clear", read(ops, &cleared, rows * width), 0.0),
    ]
}

#[test]
fn rows_are_copied_as_they_are() {
    for width in [5, 64] {
        compare!(format!("width {width}"), |ops| rows(ops, width));
    }
}

#[test]
fn idle_chosen_rows_are_zeros() {
    let Some(device) = device() else { return };
    let spec = Spec::new(fan(30, 5, 11), 10);
    let pass = spec.pass(&*device);
    let (rows, width, chosen) = (device.rows(&pass), 16, device.chosen(&pass));
    let from = wide(&*device, rows * width, &vec![1.0; rows * width]);
    let mut to = wide(&*device, rows * width, &vec![2.0; rows * width]);
    device.gather(&mut to, &from, &pass, width);
    let found = read(&*device, &to, chosen * width);
    assert!(found[spec.chosen.len() * width..].iter().all(|v| *v == 0.0));
    device.spread(&mut to, &from, &pass, width);
    let found = read(&*device, &to, rows * width);
    assert!(found[spec.tree.rows() * width..].iter().all(|v| *v == 0.0));
}

fn norms<B: Backend>(ops: &B, width: usize, center: bool) -> Results {
    let (mut random, rows) = (Random(3), 9);
    let len = rows * width;
    let norm = Norm::<B> {
        weight: wide(ops, width, &values(&mut random, width)),
        bias: center.then(|| wide(ops, width, &values(&mut random, width))),
        eps: 1e-5,
        center,
        width,
    };
    let (x, d_h) = (wide(ops, len, &values(&mut random, len)), wide(ops, len, &values(&mut random, len)));
    let (mut h, mut unit, mut rstd) = (ops.narrow(len), ops.narrow(len), ops.wide(rows));
    ops.norm(&mut h, &mut unit, &mut rstd, &x, &norm, rows);
    let mut again = ops.narrow(len);
    ops.norm_again(&mut again, &unit, &norm, rows);
    let mut d_x = wide(ops, len, &values(&mut random, len));
    ops.norm_backward(&mut d_x, &d_h, &unit, &rstd, &norm, rows);
    vec![
        ("h", read_narrow(ops, &h, len), NARROW),
        ("unit", read_narrow(ops, &unit, len), NARROW),
        ("rstd", read(ops, &rstd, rows), 1e-5),
        ("again", read_narrow(ops, &again, len), NARROW),
        ("d_x", read(ops, &d_x, len), NARROW),
    ]
}

#[test]
fn norms_forward_and_backward() {
    for (width, center) in [(7, false), (7, true), (576, false), (2048, false), (2304, true), (8200, false)] {
        compare!(format!("width {width}, center {center}"), |ops| norms(ops, width, center));
    }
}

struct Layer {
    inputs: usize,
    outputs: usize,
    slots: Vec<Slot>,
    bias: bool,
    format: Option<BlockFormat>,
}

impl Layer {
    /// Slots of `(first row, rows, rank)`, laid out as the engine does: all A, then all B.
    fn new(inputs: usize, outputs: usize, slots: &[(usize, usize, usize)]) -> Self {
        let mut at = 3;
        let mut take = |len| {
            at += len;
            at - len
        };
        let a: Vec<usize> = slots.iter().map(|slot| take(slot.2 * inputs)).collect();
        let slot = |(&(start, len, rank), a)| Slot {
            rows: start..start + len,
            rank,
            scale: 0.5,
            a,
            b: take(len * rank),
        };
        let slots = slots.iter().zip(a).map(slot).collect();
        Self { inputs, outputs, slots, bias: false, format: None }
    }

    fn parameters(&self) -> usize {
        self.slots.iter().map(|slot| slot.b + slot.rows.len() * slot.rank).max().unwrap_or(0)
    }

    fn run<B: Backend>(&self, ops: &B, rows: usize) -> Results {
        let mut random = Random(4);
        let (inputs, outputs) = (self.inputs, self.outputs);
        let frozen = match self.format {
            None => matrix(ops, outputs, inputs, &values(&mut random, outputs * inputs)),
            Some(format) => {
                let raw = blocks(&mut random, format, outputs * inputs);
                ops.matrix_from_blocks(format, outputs, inputs, &raw)
            }
        };
        let bias = self.bias.then(|| wide(ops, outputs, &values(&mut random, outputs)));
        let slots = self.slots.clone();
        let mut linear = Linear::<B> { matrix: frozen, bias, inputs, outputs, slots, adapter: None };
        let parameters = wide(ops, self.parameters(), &values(&mut random, self.parameters()));
        if !linear.slots.is_empty() {
            ops.refresh(&mut linear, &parameters);
        }
        let (x_len, y_len, mid_len) = (rows * inputs, rows * outputs, rows * linear.mid_width());
        let x = narrow(ops, x_len, &values(&mut random, x_len));
        let d_y = narrow(ops, y_len, &values(&mut random, y_len));
        let (mut y, mut mid, mut y_wide) = (ops.narrow(y_len), ops.narrow(mid_len), ops.wide(y_len));
        let mut sum = wide(ops, y_len, &values(&mut random, y_len));
        ops.linear(Output::Narrow(&mut y), &mut mid, &x, &linear, rows);
        ops.linear(Output::Wide(&mut y_wide), &mut mid, &x, &linear, rows);
        ops.linear(Output::Add(&mut sum), &mut mid, &x, &linear, rows);
        let (mut d_x, mut d_mid, mut d_x_wide) = (ops.narrow(x_len), ops.narrow(mid_len), ops.wide(x_len));
        ops.linear_backward(Output::Narrow(&mut d_x), &mut d_mid, &d_y, &linear, rows);
        ops.linear_backward(Output::Wide(&mut d_x_wide), &mut d_mid, &d_y, &linear, rows);
        let mut gradients = wide(ops, self.parameters(), &values(&mut random, self.parameters()));
        ops.adapter_backward(&mut gradients, &x, &mid, &d_y, &d_mid, &linear, rows);
        let mut results = vec![
            ("y", read_narrow(ops, &y, y_len), 1.5 * NARROW),
            ("y wide", read(ops, &y_wide, y_len), NARROW),
            ("y added", read(ops, &sum, y_len), NARROW),
            ("mid", read_narrow(ops, &mid, mid_len), NARROW),
            ("d_x", read_narrow(ops, &d_x, x_len), 1.5 * NARROW),
            ("d_x wide", read(ops, &d_x_wide, x_len), NARROW),
            ("d_mid", read_narrow(ops, &d_mid, mid_len), NARROW),
            ("gradients", read(ops, &gradients, self.parameters()), NARROW),
        ];
        ops.merge(&mut linear, Encoding::Compute);
        ops.linear(Output::Wide(&mut y_wide), &mut mid, &x, &linear, rows);
        // The sum of weights and LoRA is rounded once more.
        results.push(("y merged", read(ops, &y_wide, y_len), 2.0 * NARROW));
        results
    }
}

#[test]
fn linear_layers_with_and_without_lora() {
    let fused: [(usize, usize, usize); 3] = [(0, 64, 16), (64, 32, 16), (96, 32, 16)];
    for (inputs, outputs, slots) in [
        (64, 128, &fused[..]),
        (64, 128, &fused[..1]),
        (64, 128, &[]),
        (96, 200, &[(8, 40, 8), (100, 100, 4)]),
        (10, 14, &[(2, 5, 3), (7, 7, 2)]),
        (576, 1536, &[(0, 1536, 16)]),
    ] {
        for rows in [1, 24, 300] {
            let layer = Layer::new(inputs, outputs, slots);
            compare!(format!("{inputs} to {outputs}, {rows} rows"), |ops| layer.run(ops, rows));
        }
    }
    // So many rows take LoRA's share first.
    let layer = Layer::new(64, 128, &fused);
    compare!("2100 rows", |ops| layer.run(ops, 2100));
    for format in FORMATS {
        let layer = Layer { bias: true, format: Some(format), ..Layer::new(64, 128, &fused) };
        compare!(format!("{format:?}"), |ops| layer.run(ops, 40));
    }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, mask: Mask::Causal, window: None }
}

fn rotary<B: Backend>(ops: &B, shape: &AttentionShape, direction: Direction) -> Results {
    let mut random = Random(5);
    let spec = Spec::new(fan(20, 4, 9), 10);
    let (pass, len) = (spec.pass(ops), spec.tree.rows() * shape.qkv_width());
    let table = wide(ops, 64 * shape.head_dim, &values(&mut random, 64 * shape.head_dim));
    let mut qkv = narrow(ops, ops.rows(&pass) * shape.qkv_width(), &values(&mut random, len));
    ops.rotary(&mut qkv, &table, &pass, shape, direction);
    vec![("qkv", read_narrow(ops, &qkv, len), NARROW)]
}

#[test]
fn rotations_forward_and_backward() {
    for (heads, kv_heads, head_dim) in [(3, 1, 6), (4, 2, 64), (2, 2, 96)] {
        for direction in [Direction::Forward, Direction::Backward] {
            let shape = shape(heads, kv_heads, head_dim);
            compare!(format!("{heads} heads of {head_dim}, {direction:?}"), |ops| rotary(
                ops, &shape, direction
            ));
        }
    }
}

fn attention<B: Backend>(ops: &B, tree: &TreeLayout, shape: &AttentionShape) -> Results {
    let mut random = Random(6);
    let spec = Spec::new(tree.clone(), 10);
    let (pass, rows, width) = (spec.pass(ops), tree.rows(), shape.qkv_width());
    let room = ops.rows(&pass);
    let qkv = values(&mut random, rows * width).into_iter().map(|v| 2.0 * v).collect::<Vec<_>>();
    let qkv = narrow(ops, room * width, &qkv);
    let (mut out, mut lse) = (ops.narrow(room * shape.q_width()), ops.wide(room * shape.heads));
    let cached = tree.segments.iter().any(|segment| segment.q_row.is_none());
    if cached {
        let cache = values(&mut random, kv_rows(tree) * 2 * shape.kv_width());
        let mut cache = narrow(ops, cache.len(), &cache);
        ops.store_kv(&mut cache, &qkv, &pass, shape);
        ops.attention(&mut out, &mut lse, &qkv, &cache, shape.columns_in_cache(), &pass, shape);
    } else {
        ops.attention(&mut out, &mut lse, &qkv, &qkv, shape.columns_in_qkv(), &pass, shape);
    }
    let mut results = vec![
        // Weights are rounded, and a row of few keys is larger than the typical one of many.
        ("out", read_narrow(ops, &out, rows * shape.q_width()), 2.0 * NARROW),
        ("lse", read(ops, &lse, rows * shape.heads), WIDE),
    ];
    if !cached {
        let d_out = narrow(ops, room * shape.q_width(), &values(&mut random, rows * shape.q_width()));
        let mut d_qkv = narrow(ops, room * width, &vec![f32::NAN; room * width]);
        ops.attention_backward(&mut d_qkv, &d_out, &out, &lse, &qkv, &pass, shape);
        let d_qkv = read_narrow(ops, &d_qkv, room * width);
        assert!(d_qkv[rows * width..].iter().all(|v| *v == 0.0), "idle rows have no gradient");
        let part = |columns: std::ops::Range<usize>| -> Vec<f32> {
            d_qkv[..rows * width].chunks_exact(width).flat_map(|row| row[columns.clone()].to_vec()).collect()
        };
        let (q, kv) = (shape.q_width(), shape.kv_width());
        // `d_out v - delta` is small beside its terms, and `out` has been rounded.
        results.extend([
            ("d_q", part(0..q), 8.0 * NARROW),
            ("d_k", part(q..q + kv), 8.0 * NARROW),
            ("d_v", part(q + kv..width), 8.0 * NARROW),
        ]);
    }
    results
}

#[test]
fn attention_over_random_trees() {
    let mut random = Random(7);
    for head_dim in [6, 10, 16, 64, 96, 128] {
        for (heads, kv_heads) in [(2, 2), (3, 1), (8, 2), (6, 1)] {
            for (mask, window) in [(Mask::Causal, None), (Mask::Full, None), (Mask::Causal, Some(21))] {
                let shape = AttentionShape { mask, window, ..shape(heads, kv_heads, head_dim) };
                for cached in [false, true] {
                    let tree = random_tree(&mut random, cached);
                    let name = format!("{shape:?} over {:?}", tree.segments);
                    compare!(name, |ops| attention(ops, &tree, &shape));
                }
            }
        }
    }
}

#[test]
fn attention_over_a_shared_beginning_and_over_long_rows() {
    for (heads, kv_heads, head_dim) in [(8, 2, 64), (2, 2, 96), (3, 1, 10)] {
        for tree in [fan(46, 60, 24), fan(70, 3, 400), tree(&[(0, 700, false)])] {
            let shape = shape(heads, kv_heads, head_dim);
            compare!(format!("{shape:?}, {} segments", tree.segments.len()), |ops| attention(
                ops, &tree, &shape
            ));
        }
    }
}

#[test]
fn attention_of_rows_that_look_at_many_keys() {
    let branches = tree(&[(0, 333, false), (1, 200, false), (1, 77, false), (2, 130, false), (4, 5, false)]);
    for (heads, kv_heads) in [(2, 2), (3, 1), (4, 2), (6, 1), (8, 2)] {
        for (mask, window) in [(Mask::Causal, None), (Mask::Full, None), (Mask::Causal, Some(90))] {
            let shape = AttentionShape { mask, window, ..shape(heads, kv_heads, 64) };
            compare!(format!("{shape:?}"), |ops| attention(ops, &branches, &shape));
        }
    }
}

fn gates<B: Backend>(ops: &B, rows: usize, width: usize) -> Results {
    let mut random = Random(8);
    let len = rows * width;
    let spread: Vec<f32> = values(&mut random, 2 * len).into_iter().map(|v| 8.0 * v).collect();
    let d_act = values(&mut random, len);
    let (mut d, mut again, mut act) =
        (narrow(ops, 2 * len, &spread), narrow(ops, len, &d_act), ops.narrow(len));
    ops.gated(&mut act, &d, Gate::Silu, rows, width);
    ops.gated_backward(&mut again, &mut d, Gate::Silu, rows, width);
    let mut results = vec![
        ("gated", read_narrow(ops, &act, len), NARROW),
        ("gated again", read_narrow(ops, &again, len), NARROW),
        ("d_gate_up", read_narrow(ops, &d, 2 * len), NARROW),
    ];
    for activation in [Activation::Gelu, Activation::GeluTanh] {
        let (mut d, mut again) = (narrow(ops, len, &spread[..len]), narrow(ops, len, &d_act));
        ops.activation(&mut act, &d, activation, rows, width);
        ops.activation_backward(&mut again, &mut d, activation, rows, width);
        results.push(("activation", read_narrow(ops, &act, len), NARROW));
        results.push(("activation again", read_narrow(ops, &again, len), NARROW));
        results.push(("d_up", read_narrow(ops, &d, len), NARROW));
    }
    results
}

#[test]
fn gates_and_activations() {
    for (rows, width) in [(3, 7), (9, 64), (70, 1536)] {
        compare!(format!("({rows}, {width})"), |ops| gates(ops, rows, width));
    }
}

/// A feed-forward layer with LoRA of rank 16, forward and backward.
fn feed_forward<B: Backend>(ops: &B, rows: usize, outputs: usize, width: usize, post: bool) -> Results {
    let mut random = Random(13);
    let up = Layer::new(outputs, 2 * width, &[(0, width, 16), (width, width, 16)]);
    let down = Layer::new(width, outputs, &[(0, outputs, 16)]);
    let (up_len, len) = (up.parameters(), up.parameters() + down.parameters());
    // As small as in a model, so that the gate is neither open nor shut.
    let mut some = |len: usize| values(&mut random, len).into_iter().map(|v| v / 8.0).collect::<Vec<_>>();
    let parameters = wide(ops, len, &some(len));
    let mut linear = |layer: &Layer, at: usize| {
        let (inputs, outputs) = (layer.inputs, layer.outputs);
        let moved = |slot: &Slot| Slot { a: slot.a + at, b: slot.b + at, ..slot.clone() };
        let slots = layer.slots.iter().map(moved).collect();
        let matrix = matrix(ops, outputs, inputs, &some(outputs * inputs));
        let mut linear = Linear::<B> { matrix, bias: None, inputs, outputs, slots, adapter: None };
        ops.refresh(&mut linear, &parameters);
        linear
    };
    let (up, down) = (linear(&up, 0), linear(&down, up_len));
    let layer = GatedLayer { up: &up, down: &down, gate: Gate::Silu };
    let mut random = Random(14);
    let mut some = |len: usize| values(&mut random, len);
    let h = narrow(ops, rows * outputs, &some(rows * outputs));
    let d_y = narrow(ops, rows * outputs, &some(rows * outputs));
    let (mut y, mut d_h) = (wide(ops, rows * outputs, &some(rows * outputs)), ops.wide(rows * outputs));
    let (mut act, mut gate_up) = (ops.narrow(rows * width), ops.narrow(rows * 2 * width));
    let (mut up_mid, mut down_mid) = (ops.narrow(rows * 32), ops.narrow(rows * 16));
    let (mut d_up_mid, mut d_down_mid) = (ops.narrow(rows * 32), ops.narrow(rows * 16));
    let mids = [&mut up_mid, &mut down_mid];
    ops.feed_forward(Output::Add(&mut y), &mut act, &mut gate_up, mids, &h, &layer, rows);
    let act_after = read_narrow(ops, &act, rows * width);
    let mut gradients = wide(ops, len, &some(len));
    let out = if post { Output::Add(&mut d_h) } else { Output::Wide(&mut d_h) };
    ops.feed_forward_backward(
        &mut gradients,
        out,
        [&mut d_up_mid, &mut d_down_mid],
        &mut act,
        &mut gate_up,
        [&up_mid, &down_mid],
        &h,
        &d_y,
        &layer,
        rows,
    );
    vec![
        ("y", read(ops, &y, rows * outputs), 2.0 * NARROW),
        ("act", act_after, 4.0 * NARROW),
        ("up_mid", read_narrow(ops, &up_mid, rows * 32), NARROW),
        ("down_mid", read_narrow(ops, &down_mid, rows * 16), 2.0 * NARROW),
        ("d_up", read_narrow(ops, &gate_up, rows * 2 * width), 4.0 * NARROW),
        ("d_h", read(ops, &d_h, rows * outputs), 2.0 * NARROW),
        ("d_up_mid", read_narrow(ops, &d_up_mid, rows * 32), 2.0 * NARROW),
        ("d_down_mid", read_narrow(ops, &d_down_mid, rows * 16), NARROW),
        // Those of A behind a long sum of rounded slopes are larger than the typical one.
        ("gradients", read(ops, &gradients, len), 4.0 * NARROW),
    ]
}

#[test]
fn feed_forward_layers_with_lora() {
    // The last ones are joined with LoRA's products, the first has columns that are not.
    for (rows, outputs, width) in [(40, 64, 96), (512, 64, 256), (1040, 128, 1536), (2304, 64, 512)] {
        for post in [false, true] {
            compare!(format!("{rows} rows, width {width}, {post}"), |ops| feed_forward(
                ops, rows, outputs, width, post
            ));
        }
    }
}

fn loss<B: Backend>(ops: &B, tree: &TreeLayout, vocabulary: usize, width: usize) -> Results {
    let mut random = Random(9);
    let spec = Spec::new(tree.clone(), vocabulary as u32);
    let (pass, count) = (spec.pass(ops), spec.chosen.len());
    let head = matrix(ops, vocabulary, width, &values(&mut random, vocabulary * width));
    let room = ops.chosen(&pass);
    let h = narrow(ops, room * width, &values(&mut random, count * width));
    let (mut losses, mut d_h, mut out) =
        (ops.wide(room), ops.wide(room * width), ops.wide(spec.wanted.len()));
    ops.cross_entropy(&mut losses, &mut d_h, &h, &head, &pass);
    ops.log_probs(&mut out, &h, &head, &pass);
    let (mut with_head, mut d_h_with_head) = (ops.wide(room), ops.wide(room * width));
    let mut gradients = wide(ops, 3 + vocabulary * width, &values(&mut random, 3 + vocabulary * width));
    ops.cross_entropy_with_head(&mut with_head, &mut d_h_with_head, (&mut gradients, 3), &h, &head, &pass);
    vec![
        ("losses", read(ops, &losses, count), WIDE),
        ("d_h", read(ops, &d_h, count * width), NARROW),
        ("losses with head", read(ops, &with_head, count), WIDE),
        ("d_h with head", read(ops, &d_h_with_head, count * width), NARROW),
        ("d_head", read(ops, &gradients, 3 + vocabulary * width), NARROW),
        ("log_probs", read(ops, &out, spec.wanted.len()), WIDE),
    ]
}

#[test]
fn losses_and_log_probabilities() {
    for (tree, vocabulary, width) in
        [(fan(5, 2, 4), 11, 6), (fan(46, 20, 24), 4999, 64), (fan(900, 1, 3000), 49152, 32)]
    {
        compare!(format!("{vocabulary} tokens"), |ops| loss(ops, &tree, vocabulary, width));
    }
}

/// The gradients of weights that train, which lie anywhere, and the weights made of new values.
fn trained_weights<B: Backend>(ops: &B, inputs: usize, outputs: usize, tree: &TreeLayout) -> Results {
    let (mut random, vocabulary) = (Random(12), 64);
    let spec = Spec::new(tree.clone(), vocabulary as u32);
    let (pass, rows) = (spec.pass(ops), spec.tree.rows());
    let room = ops.rows(&pass);
    let zeros = matrix(ops, outputs, inputs, &vec![0.0; outputs * inputs]);
    let linear = Linear::<B> { matrix: zeros, bias: None, inputs, outputs, slots: Vec::new(), adapter: None };
    let x = narrow(ops, room * inputs, &values(&mut random, rows * inputs));
    let d_y = narrow(ops, room * outputs, &values(&mut random, rows * outputs));
    let d_h = wide(ops, room * inputs, &values(&mut random, rows * inputs));
    let table = vocabulary * inputs;
    let len = 3 + outputs * inputs + outputs + 2 * inputs + 2 * table;
    let mut gradients = wide(ops, len, &values(&mut random, len));
    let mut at = 3;
    let mut place = |len: usize| {
        at += len;
        at - len
    };
    ops.weight_backward(&mut gradients, place(outputs * inputs), &x, &d_y, &linear, room);
    ops.bias_backward(&mut gradients, place(outputs), &d_y, outputs, room);
    let (weight, bias) = (place(inputs), place(inputs));
    ops.norm_parameters_backward(&mut gradients, weight, Some(bias), &d_h, &x, inputs, room);
    ops.norm_parameters_backward(&mut gradients, weight, None, &d_h, &x, inputs, room);
    ops.embed_backward(&mut gradients, place(table), &d_h, &pass, inputs);
    ops.positions_backward(&mut gradients, place(table), &d_h, &pass, inputs);

    let parameters = wide(ops, len, &values(&mut random, len));
    let mut replaced = matrix(ops, vocabulary, inputs, &vec![0.0; table]);
    let (mut rows_of, mut rows_with, mut taken) =
        (ops.wide(room * inputs), ops.wide(room * inputs), ops.wide(inputs));
    ops.repack(&mut replaced, &parameters, 5, None);
    ops.embed(&mut rows_of, &replaced, &pass);
    ops.repack(&mut replaced, &parameters, 5, Some(1));
    ops.embed(&mut rows_with, &replaced, &pass);
    ops.take(&mut taken, &parameters, 7);
    vec![
        ("gradients", read(ops, &gradients, len), NARROW),
        ("replaced", read(ops, &rows_of, rows * inputs), 1e-6),
        ("replaced with a shared row", read(ops, &rows_with, rows * inputs), NARROW),
        ("taken", read(ops, &taken, inputs), 0.0),
    ]
}

#[test]
fn weights_that_train() {
    for (inputs, outputs, tree) in
        [(10, 14, fan(5, 2, 4)), (64, 200, fan(46, 20, 24)), (576, 1536, fan(40, 30, 22))]
    {
        compare!(format!("{inputs} to {outputs}"), |ops| trained_weights(ops, inputs, outputs, &tree));
    }
}

fn steps<B: Backend>(ops: &B, len: usize) -> Results {
    let mut random = Random(10);
    let mut parameters = wide(ops, len, &values(&mut random, len));
    let gradients = wide(ops, len, &values(&mut random, len));
    let (mut first, mut second) = (ops.wide(len), ops.wide(len));
    let range = 2..len - 1;
    for step in 1..4 {
        let (lr, gradient_scale) = (1e-2, 0.7);
        let adamw =
            AdamW { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step, gradient_scale };
        ops.adamw(&mut parameters, &gradients, &mut first, &mut second, range.clone(), &adamw);
    }
    vec![
        ("parameters", read(ops, &parameters, len), 1e-5),
        ("first moments", read(ops, &first, len), 1e-5),
        ("second moments", read(ops, &second, len), 1e-5),
        ("square sum", vec![ops.square_sum(&gradients) as f32], 1e-6),
    ]
}

#[test]
fn optimizer_steps() {
    for len in [5, 1000, 300_001] {
        compare!(format!("{len} parameters"), |ops| steps(ops, len));
    }
}

/// What a recorded pass computes: rotated rows, their attention, its gradient.
#[test]
fn replays_compute_what_the_first_run_does() {
    let Some(device) = device() else { return };
    let (ops, shape) = (&*device, shape(8, 2, 64));
    let (width, room, trees) =
        (shape.qkv_width(), ops.room(400), [fan(46, 12, 24), fan(40, 12, 24), fan(50, 12, 23)]);
    let mut random = Random(11);
    let inputs = values(&mut random, room * width);
    let table = wide(ops, 64 * 64, &values(&mut random, 64 * 64));
    let d_out = narrow(ops, room * shape.q_width(), &values(&mut random, room * shape.q_width()));
    let mut recording = <Cuda as Backend>::Recording::default();
    let (mut qkv, mut d_qkv) = (ops.narrow(room * width), ops.narrow(room * width));
    let (mut out, mut lse) = (ops.narrow(room * shape.q_width()), ops.wide(room * shape.heads));
    let mut reuse = None;
    let mut run = |tree: &TreeLayout, record: bool| {
        let spec = Spec::new(tree.clone(), 10);
        let pass_spec = PassSpec {
            tokens: &spec.tokens,
            positions: &spec.positions,
            layout: &spec.tree,
            chosen: &spec.chosen,
            targets: &spec.targets,
            weights: &spec.weights,
            wanted: &spec.wanted,
        };
        let pass = ops.pass(&pass_spec, reuse.take());
        let fresh = narrow(ops, room * width, &inputs);
        ops.copy(&mut qkv, &fresh, room * width);
        let mut body = || {
            ops.rotary(&mut qkv, &table, &pass, &shape, Direction::Forward);
            ops.attention(&mut out, &mut lse, &qkv, &qkv, shape.columns_in_qkv(), &pass, &shape);
            ops.attention_backward(&mut d_qkv, &d_out, &out, &lse, &qkv, &pass, &shape);
        };
        if record {
            ops.record(&mut recording, &pass, body);
        } else {
            body();
        }
        reuse = Some(pass);
        let rows = tree.rows();
        (read_narrow(ops, &out, rows * shape.q_width()), read_narrow(ops, &d_qkv, rows * width))
    };
    let eager: Vec<_> = trees.iter().map(|tree| run(tree, false)).collect();
    for round in 0..4 {
        for (tree, eager) in trees.iter().zip(&eager) {
            assert!(run(tree, true) == *eager, "round {round}: a replay differs");
        }
    }
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let Some(device) = device() else { return };
    let (shape, tree) = (shape(8, 2, 64), fan(46, 60, 24));
    let bits =
        |results: Results| -> Vec<u32> { results.into_iter().flat_map(|r| r.1).map(f32::to_bits).collect() };
    assert!(bits(attention(&*device, &tree, &shape)) == bits(attention(&*device, &tree, &shape)));
    let layer = Layer::new(576, 1536, &[(0, 1536, 16)]);
    assert!(bits(layer.run(&*device, 300)) == bits(layer.run(&*device, 300)));
    assert!(device.name().starts_with("cuda "), "{}", device.name());
}

/// Every GPU that there is, be it one alone, holds the sum of all their values.
#[test]
fn sums_by_nccl() {
    let Some(first) = device() else { return };
    let others: Vec<Cuda> =
        (1..Cuda::count().unwrap()).map(|index| Cuda::open(index, None).unwrap()).collect();
    let devices: Vec<&Cuda> = std::iter::once(&*first).chain(&others).collect();
    let group = Cuda::join(&devices);
    if group.to_string().contains("no libnccl") {
        eprintln!("skipped: {group}");
        return;
    }
    assert!(group.to_string().starts_with("by NCCL 2."), "{group}");
    eprintln!("{} devices, {group}", devices.len());
    for len in [1, 1000, 1 << 20] {
        // Few bits each, so that no order of the sum rounds.
        let own: Vec<_> = (1..=devices.len() as u64).map(|seed| values(&mut Random(seed), len)).collect();
        let mut buffers: Vec<_> = devices.iter().zip(&own).map(|(ops, own)| wide(*ops, len, own)).collect();
        Cuda::sum(&group, &mut devices.iter().copied().zip(&mut buffers).collect::<Vec<_>>());
        let expected: Vec<f32> = (0..len).map(|i| own.iter().map(|own| own[i]).sum()).collect();
        for (ops, buffer) in devices.iter().zip(&buffers) {
            assert!(read(*ops, buffer, len) == expected, "{len} values, {}", ops.name());
        }
    }
}
