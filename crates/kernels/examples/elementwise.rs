//! Times the ops that are bound by memory: norms, rotary, gates and the optimizer, at the size of a training step
//! of `SmolLM2` 135M. Run with `cargo run --release -p kernels --example elementwise`.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use kernels::{AdamW, AttentionShape, Direction, Gate, Mask, adamw, bf16, gated, isa, norm, pool, rotary};

const ROUNDS: usize = 100;
const LAYERS: f64 = 30.0;
const ROWS: usize = 824;
const WIDTH: usize = 576;
const HIDDEN: usize = 1536;
/// LoRA of rank 16 on all seven projections.
const PARAMETERS: usize = 4_884_480;

/// Prints one op and returns the milliseconds of all its calls in a step.
fn time(name: &str, calls: f64, mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    println!("{name:<16} {best:>7.3} ms, {calls:>3} a step: {:>6.2} ms", best * calls);
    best * calls
}

fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
}

fn narrow(len: usize) -> Vec<bf16> {
    noise(len).into_iter().map(bf16::from_f32).collect()
}

fn main() {
    println!("{} with {} threads, best of {ROUNDS}", isa::current().name(), pool::threads());
    let mut total = 0.0;

    let weight = noise(WIDTH);
    let params = norm::Params { weight: &weight, bias: None, eps: 1e-5, center: false };
    let (x, mut d_x, d_h) = (noise(ROWS * WIDTH), noise(ROWS * WIDTH), noise(ROWS * WIDTH));
    let (mut h, mut unit, mut rstd) = (narrow(ROWS * WIDTH), narrow(ROWS * WIDTH), vec![0.0; ROWS]);
    let norms = 2.0 * LAYERS;
    total += time("norm", norms, || norm::forward(&mut h, &mut unit, &mut rstd, &x, params));
    total += time("norm again", norms, || norm::again(&mut h, &unit, params));
    total += time("norm backward", norms, || norm::backward(&mut d_x, &d_h, &unit, &rstd, params));

    let shape = AttentionShape {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        scale: 0.125,
        mask: Mask::Causal,
        window: None,
    };
    let (mut qkv, table) = (narrow(ROWS * shape.qkv_width()), noise(64 * 64));
    let positions: Vec<u32> = (0..ROWS as u32).map(|i| i % 49).collect();
    total += time("rotary twice", LAYERS, || {
        rotary::apply(&mut qkv, &table, &positions, &shape, Direction::Forward);
        rotary::apply(&mut qkv, &table, &positions, &shape, Direction::Backward);
    });

    let (mut act, d_act) = (narrow(ROWS * HIDDEN), narrow(ROWS * HIDDEN));
    let (gate_up, mut replaced) = (narrow(2 * ROWS * HIDDEN), narrow(2 * ROWS * HIDDEN));
    total += time("gated", LAYERS, || gated::forward(&mut act, &gate_up, Gate::Silu, HIDDEN));
    total += time("gated backward, and copies", LAYERS, || {
        act.copy_from_slice(&d_act);
        replaced.copy_from_slice(&gate_up);
        gated::backward(&mut act, &mut replaced, Gate::Silu, HIDDEN);
    });

    let (mut parameters, gradients) = (noise(PARAMETERS), noise(PARAMETERS));
    let (mut first, mut second) = (vec![0.0; PARAMETERS], vec![0.0; PARAMETERS]);
    let step = AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 1,
        gradient_scale: 1.0,
    };
    total += time("adamw", 1.0, || adamw::step(&mut parameters, &gradients, &mut first, &mut second, &step));
    let mut sum = 0.0;
    total += time("square sum", 1.0, || sum += adamw::square_sum(&gradients));
    println!("{:<16} {total:>31.2} ms (checksum {sum:.3e})", "a step");
}
