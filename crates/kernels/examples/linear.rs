//! Speed of the linear layers of SmolLM2-135M with LoRA of rank 16, as GFLOP/s and share of the measured peak.
//!
//! `cargo run --release -p kernels --example linear [bf16|q4_1|f32|int8]`; `q4_1` multiplies in bf16 too, and `int8` has
//! no backward pass and no LoRA: it is for routing, against the same in bf16.

#![allow(clippy::print_stdout)] // its purpose

use std::time::{Duration, Instant};

use kernels::linear::{
    BlockFormat, Encoding, Layer, PackedAdapter, PackedMatrix, Target, adapter_backward, backward, forward,
    merge,
};
use kernels::{Element, Slot, bf16, cross_entropy, isa, peak_flops, pool};

const RANK: usize = 16;

struct Shape {
    name: &'static str,
    inputs: usize,
    outputs: usize,
    slots: &'static [usize],
}

const SHAPES: [Shape; 5] = [
    Shape { name: "qkv", inputs: 576, outputs: 960, slots: &[576, 192, 192] },
    Shape { name: "o", inputs: 576, outputs: 576, slots: &[576] },
    Shape { name: "gate_up", inputs: 576, outputs: 3072, slots: &[1536, 1536] },
    Shape { name: "down", inputs: 1536, outputs: 576, slots: &[576] },
    Shape { name: "head", inputs: 576, outputs: 49152, slots: &[] },
];

fn main() {
    let only = std::env::args().nth(1);
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wanted("bf16") {
        report::<bf16>(None);
    }
    if wanted("q4_1") {
        report::<bf16>(Some(BlockFormat::Q4_1));
    }
    if wanted("f32") {
        report::<f32>(None);
    }
    if wanted("int8") {
        routing();
    }
}

/// Merged layers in bf16 and in 8 bits, forward only, at the rows of one query and of many.
fn routing() {
    println!("layer      M     bf16                int8 (operations of integers)");
    for rows in [1, 4, 12, 20, 64, 512] {
        let mut totals = [0.0; 2];
        for shape in &SHAPES {
            let x = Random(1).vec::<bf16>(rows * shape.inputs);
            let mut y = vec![bf16::ZERO; rows * shape.outputs];
            let matrix = matrix::<bf16>(None, shape.outputs, shape.inputs, &mut Random(2));
            let plain = Layer { matrix: &matrix, bias: None, slots: &[], adapter: None };
            let bytes = merge(&plain, Encoding::Int8);
            let bytes = Layer { matrix: &bytes, ..plain };
            let seconds = [&plain, &bytes].map(|layer| {
                let mut y = Target::Narrow(&mut y);
                best(|| {
                    let y = match &mut y {
                        Target::Narrow(y) => Target::Narrow(y),
                        _ => unreachable!("made above"),
                    };
                    forward(y, &mut [], &x, layer, rows);
                })
            });
            let operations = 2.0 * (rows * shape.inputs * shape.outputs) as f64 / 1e9;
            let [bf16, int8] =
                seconds.map(|seconds| format!("{:7.1} us {:4.0} G/s", 1e6 * seconds, operations / seconds));
            println!("{:8} {rows:3}   {bf16}   {int8}", shape.name);
            if shape.name != "head" {
                totals.iter_mut().zip(seconds).for_each(|(total, seconds)| *total += seconds);
            }
        }
        println!("block    {rows:3}   {:7.1} us            {:7.1} us", 1e6 * totals[0], 1e6 * totals[1]);
    }
}

fn report<E: Element>(format: Option<BlockFormat>) {
    let peak = peak_flops::<E>().max(peak_flops::<E>());
    let (isa, threads) = (isa::current().name(), pool::threads());
    let weights = format.map_or(E::NAME.into(), |format| format!("{format:?}"));
    println!("{} {isa}, weights {weights}, {threads} threads, peak {:.0} GFLOP/s", E::NAME, peak / 1e9);
    println!("layer      M     forward           backward          adapter");
    for rows in [1, 16, 64, 224, 824] {
        let mut total = (0.0, 0.0);
        for shape in &SHAPES {
            let (flops, seconds) = layer::<E>(shape, format, rows, peak);
            if !shape.slots.is_empty() {
                total = (total.0 + flops, total.1 + seconds);
            }
        }
        println!("block  {rows:5}   {}", rate(total.0, total.1, peak));
    }
    for rows in [1, 16, 160] {
        loss::<E>(format, rows, peak);
    }
}

fn layer<E: Element>(shape: &Shape, format: Option<BlockFormat>, rows: usize, peak: f64) -> (f64, f64) {
    let (inputs, outputs) = (shape.inputs, shape.outputs);
    let mut random = Random(1);
    let matrix = matrix::<E>(format, outputs, inputs, &mut random);
    let (mut slots, mut at, mut row) = (Vec::new(), 0, 0);
    for rows in shape.slots {
        let (a, b) = (at, at + RANK * inputs);
        slots.push(Slot { rows: row..row + rows, rank: RANK, scale: 1.0, a, b });
        (at, row) = (b + rows * RANK, row + rows);
    }
    let parameters = random.vec::<f32>(at);
    let mut adapter = PackedAdapter::<E>::default();
    adapter.refresh(&parameters, &slots, inputs);
    let layer = Layer { matrix: &matrix, bias: None, slots: &slots, adapter: Some(&adapter) };
    let width = RANK * slots.len();
    let x = random.vec::<E>(rows * inputs);
    let d_y = random.vec::<E>(rows * outputs);
    let (mut y, mut d_x) = (vec![E::default(); rows * outputs], vec![0.0; rows * inputs]);
    let (mut mid, mut d_mid) = (vec![E::default(); rows * width], vec![E::default(); rows * width]);
    let mut gradients = vec![0.0; at];

    let lora: usize = shape.slots.iter().map(|rows| RANK * (inputs + rows)).sum();
    let product = 2.0 * rows as f64 * (inputs * outputs + lora) as f64;
    let ahead = best(|| forward(Target::Narrow(&mut y), &mut mid, &x, &layer, rows));
    let back = best(|| backward(Target::Wide(&mut d_x), &mut d_mid, &d_y, &layer, rows));
    let side = if slots.is_empty() {
        0.0
    } else {
        best(|| adapter_backward(&mut gradients, &x, &mid, &d_y, &d_mid, &layer, rows))
    };
    let side_flops = 2.0 * rows as f64 * lora as f64;
    let side_text = if slots.is_empty() { String::new() } else { rate(side_flops, side, peak) };
    let (ahead_text, back_text) = (rate(product, ahead, peak), rate(product, back, peak));
    println!("{:8} {rows:3}   {ahead_text}   {back_text}   {side_text}", shape.name);
    (2.0 * product + side_flops, ahead + back + side)
}

fn loss<E: Element>(format: Option<BlockFormat>, rows: usize, peak: f64) {
    let (width, vocabulary) = (576, 49152);
    let mut random = Random(1);
    let head = matrix::<E>(format, vocabulary, width, &mut random);
    let h = random.vec::<E>(rows * width);
    let (mut losses, mut d_h) = (vec![0.0; rows], vec![0.0; rows * width]);
    let targets: Vec<u32> = (0..rows as u32).collect();
    let weights = vec![1.0; rows];
    let product = 2.0 * (rows * width * vocabulary) as f64;
    let both = best(|| {
        cross_entropy::forward_backward(&mut losses, Some(&mut d_h), None, &h, &head, &targets, &weights);
    });
    let wanted: Vec<(u32, u32)> = targets.iter().map(|t| (*t, *t)).collect();
    let ahead = best(|| cross_entropy::log_probs(&mut losses, &h, &head, &wanted));
    println!(
        "loss     {rows:3}   {} (log_probs)   {} (cross_entropy with gradient)",
        rate(product, ahead, peak),
        rate(2.0 * product, both, peak)
    );
}

fn matrix<E: Element>(
    format: Option<BlockFormat>,
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> PackedMatrix<E> {
    let Some(format) = format else { return PackedMatrix::new(rows, cols, &mut |_, out| random.fill(out)) };
    // Scales and minima of 0.007, quants at random.
    let mut block = vec![0x20; format.bytes()];
    block[4..].fill_with(|| (256.0 * random.next()) as i8 as u8);
    PackedMatrix::from_blocks(format, rows, cols, &block.repeat(rows * cols / 32))
}

fn rate(flops: f64, seconds: f64, peak: f64) -> String {
    format!("{:5.0} GFLOP/s {:3.0}%", flops / seconds / 1e9, 100.0 * flops / seconds / peak)
}

/// The shortest of many runs: other work on the machine only ever adds.
fn best(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut count = 0;
    while count < 3 || start.elapsed() < Duration::from_millis(250) {
        let turn = Instant::now();
        work();
        best = best.min(turn.elapsed().as_secs_f64());
        count += 1;
    }
    best
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5
    }
    fn fill(&mut self, out: &mut [f32]) {
        out.fill_with(|| self.next());
    }
    fn vec<E: Element>(&mut self, len: usize) -> Vec<E> {
        (0..len).map(|_| E::from_f32(self.next())).collect()
    }
}
