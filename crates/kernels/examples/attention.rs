//! Times tree attention on the workloads that it is made for. Run with `cargo run --release -p kernels --example
//! attention`; `KERNELS_ISA` and `KERNELS_THREADS` apply.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use kernels::{AttentionShape, Element, Mask, Segment, TreeLayout, attention, bf16, isa, pool};

const ROUNDS: usize = 60;

/// Segments of `(parent, length)`; the first `cached` of them have no queries.
fn tree(parts: &[(Option<u32>, u32)], cached: usize) -> TreeLayout {
    let (mut kv_row, mut q_row) = (0, 0);
    let segment = |(index, &(parent, len)): (usize, &(Option<u32>, u32))| {
        let segment = Segment { parent, kv_row, q_row: (index >= cached).then_some(q_row), len };
        kv_row += len;
        q_row += if index >= cached { len } else { 0 };
        segment
    };
    TreeLayout { segments: parts.iter().enumerate().map(segment).collect() }
}

/// A prompt's beginning of `root` tokens and examples of `each` tokens.
fn training(root: u32, examples: usize, each: u32) -> TreeLayout {
    let parts: Vec<_> = [(None, root)].into_iter().chain((0..examples).map(|_| (Some(0), each))).collect();
    tree(&parts, 0)
}

/// A cached beginning, a query and the edges of a trie of labels: chains up to 5 deep.
fn serving(root: u32, query: u32, edges: u32) -> TreeLayout {
    let mut parts = vec![(None, root), (Some(0), query)];
    for edge in 0..edges {
        let parent = if edge % 5 == 0 { 1 } else { 1 + edge };
        parts.push((Some(parent), 1 + edge % 3));
    }
    tree(&parts, 1)
}

fn best_ms(mut work: impl FnMut()) -> f64 {
    let time = |()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e3
    };
    std::iter::repeat_n((), ROUNDS).map(time).fold(f64::INFINITY, f64::min)
}

fn noise<E: Element>(len: usize) -> Vec<E> {
    (0..len).map(|i| E::from_f32(((i * 7919) % 1009) as f32 / 504.5 - 1.0)).collect()
}

fn time<E: Element>(name: &str, tree: &TreeLayout, shape: &AttentionShape, layers: usize) {
    let rows = tree.rows();
    let kv_rows: usize = tree.segments.iter().map(|s| s.len as usize).sum();
    let all_live = rows == kv_rows;
    let qkv = noise::<E>(rows * shape.qkv_width());
    let cache = noise::<E>(if all_live { 0 } else { kv_rows * 2 * shape.kv_width() });
    let (mut out, mut lse) = (vec![E::default(); rows * shape.q_width()], vec![0.0; rows * shape.heads]);
    let forward = best_ms(|| {
        let (kv, columns) =
            if all_live { (&qkv, shape.columns_in_qkv()) } else { (&cache, shape.columns_in_cache()) };
        attention::forward(&mut out, &mut lse, &qkv, kv, columns, tree, shape);
    });
    let mut backward = 0.0;
    if all_live {
        let (d_out, mut d_qkv) = (noise::<E>(out.len()), vec![E::default(); qkv.len()]);
        backward = best_ms(|| attention::backward(&mut d_qkv, &d_out, &out, &lse, &qkv, tree, shape));
    }
    let total = (forward + backward) * layers as f64;
    println!(
        "{name:<28} {:<5} {rows:>5} rows: forward {forward:>8.3} ms, backward {backward:>8.3} ms, \
         {layers} layers {total:>8.1} ms",
        E::NAME
    );
}

fn main() {
    let smol = AttentionShape {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        scale: 0.125,
        mask: Mask::Causal,
        window: None,
    };
    let llama = AttentionShape { heads: 32, kv_heads: 8, ..smol };
    println!("{} with {} threads, best of {ROUNDS}", isa::current().name(), pool::threads());
    for (name, shape, layers) in [("SmolLM2 135M", smol, 30), ("Llama 3.2 1B", llama, 16)] {
        time::<bf16>(&format!("{name}, step of 32"), &training(24, 32, 25), &shape, layers);
        time::<f32>(&format!("{name}, step of 32"), &training(24, 32, 25), &shape, layers);
        time::<bf16>(&format!("{name}, one query"), &serving(24, 14, 0), &shape, layers);
        time::<bf16>(&format!("{name}, query and labels"), &serving(24, 14, 100), &shape, layers);
        time::<bf16>(&format!("{name}, 2048 tokens"), &training(2048, 0, 0), &shape, layers);
    }
}
