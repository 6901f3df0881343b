//! Merged layers: LoRA in the weights, and products in integers, against the plain versions.

mod common;

use common::{Random, assert_close};
use kernels::cross_entropy::{self, log_probs};
use kernels::linear::{
    BlockFormat, Encoding, Layer, PackedAdapter, PackedMatrix, Target, forward, merge, reference,
};
use kernels::{Element, Slot, bf16, pool};
use proptest::prelude::*;

/// A layer with LoRA on some of its rows.
struct Case<E> {
    matrix: PackedMatrix<E>,
    slots: Vec<Slot>,
    parameters: Vec<f32>,
    adapter: PackedAdapter<E>,
}

impl<E: Element> Case<E> {
    fn new(inputs: usize, outputs: usize, rank: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let matrix = PackedMatrix::new(outputs, inputs, &mut |_, out| out.fill_with(|| random.next()));
        // Two slots that begin and end anywhere, with rows between them that have none.
        let (first, second) = (outputs / 7..outputs / 2, outputs.div_ceil(2) + outputs / 9..outputs);
        let (mut slots, mut at) = (Vec::new(), 1);
        for (rows, scale) in [(first, 0.7), (second, 2.0)] {
            if rows.is_empty() {
                continue;
            }
            let (a, b) = (at, at + rank * inputs);
            at = b + rows.len() * rank;
            slots.push(Slot { rows, rank, scale, a, b });
        }
        let parameters: Vec<f32> = random.vec::<E>(at).into_iter().map(E::to_f32).collect();
        let mut adapter = PackedAdapter::default();
        adapter.refresh(&parameters, &slots, inputs);
        Self { matrix, slots, parameters, adapter }
    }

    fn layer(&self) -> Layer<'_, E> {
        Layer { matrix: &self.matrix, bias: None, slots: &self.slots, adapter: Some(&self.adapter) }
    }

    /// Row `o` of `W + scale B A`.
    fn merged_row(&self, o: usize) -> Vec<f32> {
        let inputs = self.matrix.cols();
        let mut row = vec![0.0; inputs];
        self.matrix.read_row(o, &mut row);
        for slot in self.slots.iter().filter(|slot| slot.rows.contains(&o)) {
            for r in 0..slot.rank {
                let b = self.parameters[slot.b + (o - slot.rows.start) * slot.rank + r];
                let a = &self.parameters[slot.a + r * inputs..][..inputs];
                row.iter_mut().zip(a).for_each(|(w, a)| *w += slot.scale * b * a);
            }
        }
        row
    }

    /// Every merged weight is off by half a step of its encoding at most.
    fn check(&self) {
        let unit = if E::NAME == "f32" { 1e-6 } else { 1.0 / 256.0 };
        let (values, bytes) = (merge(&self.layer(), Encoding::Compute), merge(&self.layer(), Encoding::Int8));
        let mut found = vec![0.0; self.matrix.cols()];
        for o in 0..self.matrix.rows() {
            let expected = self.merged_row(o);
            let peak = expected.iter().fold(0.0f32, |peak, w| peak.max(w.abs()));
            values.read_row(o, &mut found);
            let near: Vec<f32> = expected.iter().map(|w| 1e-5 + unit * w.abs()).collect();
            assert_close("value", &found, &expected, &near);
            bytes.read_row(o, &mut found);
            assert_close("byte", &found, &expected, &vec![peak / 253.0 + 1e-5; found.len()]);
        }
    }
}

/// The product of a matrix of bytes, fast and plain.
fn products<E: Element>(bytes: &PackedMatrix<E>, x: &[E], rows: usize) -> [(Vec<f32>, Vec<E>); 2] {
    let layer = Layer { matrix: bytes, bias: None, slots: &[], adapter: None };
    let run = |fast: bool| {
        let (mut y, mut narrow) = (vec![1.0; rows * bytes.rows()], vec![E::default(); rows * bytes.rows()]);
        for target in [Target::Add(&mut y), Target::Narrow(&mut narrow)] {
            if fast {
                forward(target, &mut [], x, &layer, rows);
            } else {
                reference::forward(target, &mut [], x, &layer, rows);
            }
        }
        (y, narrow)
    };
    [run(true), run(false)]
}

fn bytes_fast_is_plain<E: Element>(inputs: usize, outputs: usize, rows: usize, seed: u64) {
    let bytes = merge(&Case::<E>::new(inputs, outputs, 3, seed).layer(), Encoding::Int8);
    let x = Random(seed + 1).vec::<E>(rows * inputs);
    let [fast, plain] = products(&bytes, &x, rows);
    assert_eq!(fast, plain, "{outputs} x {inputs}, {rows} rows");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn lora_is_merged(inputs in 1usize..140, outputs in 1usize..140, rank in 1usize..40, seed: u64) {
        Case::<bf16>::new(inputs, outputs, rank, seed).check();
        Case::<f32>::new(inputs, outputs, rank, seed).check();
    }

    /// Sums of integers are exact: the same bits, whatever the instruction set.
    #[test]
    fn bytes_fast_is_plain_in_both_types(
        inputs in 1usize..200, outputs in 1usize..140, rows in 1usize..60, seed in 0..u64::MAX,
    ) {
        bytes_fast_is_plain::<bf16>(inputs, outputs, rows, seed);
        bytes_fast_is_plain::<f32>(inputs, outputs, rows, seed);
    }
}

#[test]
fn long_sums_of_bytes() {
    bytes_fast_is_plain::<bf16>(9000, 33, 13, 4);
    bytes_fast_is_plain::<f32>(40, 700, 300, 5);
}

/// The largest bytes of either sign everywhere: sixteen bits would overflow.
#[test]
fn the_largest_bytes_do_not_overflow() {
    let inputs = 2000;
    for (x, w) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
        let values = PackedMatrix::<bf16>::new(5, inputs, &mut |_, out| out.fill(w));
        let plain = Layer { matrix: &values, bias: None, slots: &[], adapter: None };
        let bytes = merge(&plain, Encoding::Int8);
        let x = vec![bf16::from_f32(x); 3 * inputs];
        let [(fast, _), (plain, _)] = products(&bytes, &x, 3);
        assert_eq!(fast, plain);
        let expected = 1.0 + x[0].to_f32() * w * inputs as f32;
        assert!(fast.iter().all(|y| (y - expected).abs() < 1e-3), "{} is not {expected}", fast[0]);
    }
}

/// Rows and weights of zeros, tiny and huge values.
#[test]
fn bytes_of_extreme_values() {
    let inputs = 70;
    for size in [0.0, 1e-38, 1e-30, 1e18] {
        let values = PackedMatrix::<f32>::new(33, inputs, &mut |row, out| out.fill(size * (row % 3) as f32));
        let bytes = merge(&Layer { matrix: &values, bias: None, slots: &[], adapter: None }, Encoding::Int8);
        let x: Vec<f32> = (0..2 * inputs).map(|i| if i < inputs { size } else { i as f32 }).collect();
        let [fast, plain] = products(&bytes, &x, 2);
        assert_eq!(fast, plain, "{size:e}");
        assert!(fast.0.iter().all(|y| y.is_finite()), "{size:e}");
    }
}

/// A file's blocks are encoded without a rounding in between.
#[test]
fn blocks_are_encoded_exactly() {
    let (rows, cols) = (40, 64);
    for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0] {
        let mut raw = vec![0x2a; format.bytes() * rows * cols / 32];
        raw.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= if at % 7 == 6 { at as u8 } else { 0 });
        let wide = PackedMatrix::<f32>::from_blocks(format, rows, cols, &raw);
        let narrow = PackedMatrix::<bf16>::from_blocks(format, rows, cols, &raw);
        let (mut one, mut other) = (vec![0.0; cols], vec![0.0; cols]);
        let (wide, narrow) = (encode(&wide), encode(&narrow));
        for row in 0..rows {
            wide.read_row(row, &mut one);
            narrow.read_row(row, &mut other);
            assert_eq!(one, other, "{format:?}");
        }
    }
}

fn encode<E: Element>(matrix: &PackedMatrix<E>) -> PackedMatrix<E> {
    merge(&Layer { matrix, bias: None, slots: &[], adapter: None }, Encoding::Int8)
}

#[test]
fn a_row_of_bytes_stands_alone() {
    let (inputs, rows) = (130, 150);
    let bytes = merge(&Case::<bf16>::new(inputs, 111, 5, 6).layer(), Encoding::Int8);
    let x = Random(7).vec::<bf16>(rows * inputs);
    let [(whole, _), _] = products(&bytes, &x, rows);
    let [(alone, _), _] = pool::alone(|| products(&bytes, &x, rows));
    assert_eq!(whole, alone);
    for (first, rows) in [(0, 1), (149, 1), (31, 5), (20, 13), (3, 47)] {
        let [(part, _), _] = products(&bytes, &x[first * inputs..][..rows * inputs], rows);
        assert_eq!(part, whole[first * 111..][..rows * 111], "{rows} rows from {first}");
    }
}

#[test]
fn log_probs_of_a_head_of_bytes() {
    let (inputs, rows) = (96, 14);
    let head = encode(&PackedMatrix::<bf16>::new(2100, inputs, &mut {
        let mut random = Random(8);
        move |_, out| out.fill_with(|| random.next())
    }));
    let h = Random(9).vec::<bf16>(rows * inputs);
    let wanted: Vec<(u32, u32)> = (0..rows as u32).map(|t| (t, 149 * t)).collect();
    let (mut fast, mut plain) = (vec![0.0; rows], vec![0.0; rows]);
    log_probs(&mut fast, &h, &head, &wanted);
    cross_entropy::reference::log_probs(&mut plain, &h, &head, &wanted);
    assert_close("log probs", &fast, &plain, &vec![2e-5; rows]);
}
