//! The linear ops: the plain versions against finite differences, the fast ones against the plain ones, and what is
//! promised of their bits.

mod common;

use common::{Random, assert_close};
use half::f16;
use kernels::linear::{
    BlockFormat, Layer, PackedAdapter, PackedMatrix, Target, adapter_backward, backward, forward, reference,
    weight_backward,
};
use kernels::{Element, Slot, bf16, pool};
use proptest::prelude::*;

/// A layer and a batch.
struct Case<E> {
    inputs: usize,
    outputs: usize,
    rows: usize,
    slots: Vec<Slot>,
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
    parameters: Vec<f32>,
    x: Vec<E>,
    d_y: Vec<E>,
}

#[derive(Clone, Copy, PartialEq)]
enum Path {
    Fast,
    Plain,
}

/// What forward, backward and adapter gradients give.
struct Results<E> {
    y: Vec<f32>,
    narrow_y: Vec<E>,
    mid: Vec<E>,
    d_x: Vec<f32>,
    narrow_d_x: Vec<E>,
    d_mid: Vec<E>,
    gradients: Vec<f32>,
}

impl<E: Element> Case<E> {
    fn new(inputs: usize, outputs: usize, rows: usize, slots: &[(usize, usize, usize)], seed: u64) -> Self {
        let mut random = Random(seed);
        let (mut at, mut list) = (3, Vec::new());
        for (i, &(start, len, rank)) in slots.iter().enumerate() {
            let (a, b) = (at, at + rank * inputs);
            at = b + len * rank + 2;
            list.push(Slot { rows: start..start + len, rank, scale: 0.5 + i as f32, a, b });
        }
        let weights = random.vec::<E>(outputs * inputs).into_iter().map(E::to_f32).collect();
        let bias = seed.is_multiple_of(2).then(|| random.vec::<f32>(outputs));
        let parameters = random.vec::<E>(at).into_iter().map(E::to_f32).collect();
        let (x, d_y) = (random.vec(rows * inputs), random.vec(rows * outputs));
        Self { inputs, outputs, rows, slots: list, weights, bias, parameters, x, d_y }
    }

    fn mid_width(&self) -> usize {
        self.slots.iter().map(|slot| slot.rank).sum()
    }

    fn run(&self, path: Path) -> Results<E> {
        let inputs = self.inputs;
        let mut read =
            |row: usize, out: &mut [f32]| out.copy_from_slice(&self.weights[row * inputs..][..inputs]);
        let matrix = PackedMatrix::<E>::new(self.outputs, inputs, &mut read);
        let mut adapter = PackedAdapter::<E>::default();
        adapter.refresh(&self.parameters, &self.slots, inputs);
        let layer = Layer {
            matrix: &matrix,
            bias: self.bias.as_deref(),
            slots: &self.slots,
            adapter: (!self.slots.is_empty()).then_some(&adapter),
        };
        let rows = self.rows;
        let (y_len, x_len, mid_len) = (rows * self.outputs, rows * inputs, rows * self.mid_width());
        let mut r = Results {
            y: vec![1.0; y_len],
            narrow_y: vec![E::default(); y_len],
            mid: vec![E::default(); mid_len],
            d_x: vec![1.0; x_len],
            narrow_d_x: vec![E::default(); x_len],
            d_mid: vec![E::default(); mid_len],
            gradients: vec![1.0; self.parameters.len()],
        };
        let (x, d_y) = (&self.x, &self.d_y);
        if path == Path::Fast {
            forward(Target::Narrow(&mut r.narrow_y), &mut r.mid, x, &layer, rows);
            forward(Target::Add(&mut r.y), &mut r.mid, x, &layer, rows);
            backward(Target::Narrow(&mut r.narrow_d_x), &mut r.d_mid, d_y, &layer, rows);
            backward(Target::Wide(&mut r.d_x), &mut r.d_mid, d_y, &layer, rows);
            adapter_backward(&mut r.gradients, x, &r.mid, d_y, &r.d_mid, &layer, rows);
        } else {
            reference::forward(Target::Narrow(&mut r.narrow_y), &mut r.mid, x, &layer, rows);
            reference::forward(Target::Add(&mut r.y), &mut r.mid, x, &layer, rows);
            reference::backward(Target::Narrow(&mut r.narrow_d_x), &mut r.d_mid, d_y, &layer, rows);
            reference::backward(Target::Wide(&mut r.d_x), &mut r.d_mid, d_y, &layer, rows);
            reference::adapter_backward(&mut r.gradients, x, &r.mid, d_y, &r.d_mid, &layer, rows);
        }
        r
    }

    /// The same with every value's sign taken off: sums of magnitudes.
    fn magnitudes(&self) -> Self {
        let abs = |values: &[f32]| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
        let abs_e = |values: &[E]| values.iter().map(|v| E::from_f32(v.to_f32().abs())).collect();
        Self {
            slots: self.slots.clone(),
            weights: abs(&self.weights),
            bias: self.bias.as_deref().map(abs),
            parameters: abs(&self.parameters),
            x: abs_e(&self.x),
            d_y: abs_e(&self.d_y),
            ..*self
        }
    }

    /// Holds results to the plain version's. Sums differ by their order (a few units of f32 on the sum of
    /// magnitudes), stored values by one rounding of `E`, and what follows from a `mid` by that rounding of it.
    fn check(&self, r: &Results<E>) {
        let unit = if E::NAME == "f32" { 1e-6 } else { 1.0 / 128.0 };
        let plain = self.run(Path::Plain);
        let full = self.magnitudes().run(Path::Plain);
        let lora = Self { weights: vec![0.0; self.weights.len()], ..self.magnitudes() }.run(Path::Plain);
        let sums = |full: &[f32], lora: &[f32]| -> Vec<f32> {
            full.iter().zip(lora).map(|(full, lora)| 4e-6 * full + unit * lora).collect()
        };
        assert_close("mid", &wide(&r.mid), &wide(&plain.mid), &scaled(&wide(&full.mid), 2e-6 + unit));
        assert_close("y", &r.y, &plain.y, &sums(&full.y, &lora.y));
        assert_close("narrow y", &wide(&r.narrow_y), &wide(&plain.narrow_y), &scaled(&full.y, 2e-6 + unit));
        assert_close("d_mid", &wide(&r.d_mid), &wide(&plain.d_mid), &scaled(&wide(&full.d_mid), 2e-6 + unit));
        assert_close("d_x", &r.d_x, &plain.d_x, &sums(&full.d_x, &lora.d_x));
        let narrow = scaled(&full.d_x, 2e-6 + unit);
        assert_close("narrow d_x", &wide(&r.narrow_d_x), &wide(&plain.narrow_d_x), &narrow);
        let gradients = scaled(&full.gradients, 4e-6 + unit);
        assert_close("gradients", &r.gradients, &plain.gradients, &gradients);
    }
}

fn wide<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

fn scaled(values: &[f32], factor: f32) -> Vec<f32> {
    values.iter().map(|v| v * factor).collect()
}

/// Slots `(start, len, rank)` within the outputs.
fn slots(outputs: usize) -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    prop::collection::vec((0..outputs, 1usize..40), 0..4).prop_map(move |mut cuts| {
        cuts.sort_unstable();
        cuts.dedup_by_key(|cut| cut.0);
        let ends = cuts.iter().skip(1).map(|cut| cut.0).chain([outputs]).collect::<Vec<_>>();
        cuts.iter().zip(ends).map(|(&(start, rank), end)| (start, end - start, rank)).collect()
    })
}

/// Inputs, outputs, rows, slots and seed.
type Shape = (usize, usize, usize, Vec<(usize, usize, usize)>, u64);

fn shapes() -> impl Strategy<Value = Shape> {
    (1usize..140, 1usize..140, 1usize..60).prop_flat_map(|(inputs, outputs, rows)| {
        (Just(inputs), Just(outputs), Just(rows), slots(outputs), any::<u64>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn bf16_fast_is_plain((inputs, outputs, rows, slots, seed) in shapes()) {
        let case = Case::<bf16>::new(inputs, outputs, rows, &slots, seed);
        case.check(&case.run(Path::Fast));
    }

    #[test]
    fn f32_fast_is_plain((inputs, outputs, rows, slots, seed) in shapes()) {
        let case = Case::<f32>::new(inputs, outputs, rows, &slots, seed);
        case.check(&case.run(Path::Fast));
    }
}

/// Sums longer than a chunk, batches longer than a block of rows.
#[test]
fn long_sums_and_batches() {
    let case = Case::<bf16>::new(70, 4500, 13, &[(0, 4000, 5)], 2);
    case.check(&case.run(Path::Fast));
    let case = Case::<f32>::new(70, 2300, 13, &[(1, 2200, 5)], 3);
    case.check(&case.run(Path::Fast));
    let case = Case::<bf16>::new(33, 40, 2300, &[(3, 30, 17)], 4);
    case.check(&case.run(Path::Fast));
    let case = Case::<f32>::new(33, 40, 1300, &[(3, 30, 17)], 5);
    case.check(&case.run(Path::Fast));
}

/// One wrong weight of 1,344 must not pass the comparison.
#[test]
#[should_panic(expected = "differs")]
fn a_wrong_weight_is_noticed() {
    let case = Case::<bf16>::new(42, 32, 9, &[(0, 32, 4)], 8);
    let mut wrong = Case::<bf16>::new(42, 32, 9, &[(0, 32, 4)], 8);
    wrong.weights[700] += 0.25;
    case.check(&wrong.run(Path::Fast));
}

/// Nor one wrong value of B.
#[test]
#[should_panic(expected = "differs")]
fn a_wrong_adapter_is_noticed() {
    let case = Case::<f32>::new(42, 32, 9, &[(0, 32, 4)], 8);
    let mut wrong = Case::<f32>::new(42, 32, 9, &[(0, 32, 4)], 8);
    wrong.parameters[case.slots[0].b + 77] += 1e-3;
    case.check(&wrong.run(Path::Fast));
}

/// A row's results do not depend on the other rows, its place, or the number of threads.
fn rows_stand_alone<E: Element>() {
    let slots = [(5, 40, 7), (45, 60, 16)];
    let all = Case::<E>::new(130, 111, 150, &slots, 6);
    let whole = all.run(Path::Fast);
    let alone = pool::alone(|| all.run(Path::Fast));
    assert_eq!(whole.y, alone.y);
    assert_eq!(whole.d_x, alone.d_x);
    assert_eq!(whole.gradients, alone.gradients);
    let mid_width = all.mid_width();
    for (first, rows) in [(0, 1), (149, 1), (7, 2), (31, 5), (20, 12), (20, 13), (3, 47), (1, 149)] {
        let part = Case::<E> {
            rows,
            x: all.x[first * 130..][..rows * 130].to_vec(),
            d_y: all.d_y[first * 111..][..rows * 111].to_vec(),
            ..Case::new(130, 111, 0, &slots, 6)
        };
        let r = part.run(Path::Fast);
        let of = |width: usize| first * width..(first + rows) * width;
        assert_eq!(r.y, whole.y[of(111)], "y of {rows} rows from {first}");
        assert_eq!(r.narrow_y, whole.narrow_y[of(111)]);
        assert_eq!(r.mid, whole.mid[of(mid_width)]);
        assert_eq!(r.d_x, whole.d_x[of(130)], "d_x of {rows} rows from {first}");
        assert_eq!(r.narrow_d_x, whole.narrow_d_x[of(130)]);
        assert_eq!(r.d_mid, whole.d_mid[of(mid_width)]);
    }
}

fn check_weight_gradient<E: Element>(inputs: usize, outputs: usize, rows: usize, seed: u64) {
    let mut random = Random(seed);
    let (x, d_y) = (random.vec::<E>(rows * inputs), random.vec::<E>(rows * outputs));
    let before = random.vec::<f32>(outputs * inputs);
    let (mut fast, mut plain) = (before.clone(), before.clone());
    weight_backward(&mut fast, &x, &d_y, inputs, outputs);
    reference::weight_backward(&mut plain, &x, &d_y, inputs, outputs);
    for o in 0..outputs {
        for i in 0..inputs {
            let terms = (0..rows).map(|t| (x[t * inputs + i].to_f32() * d_y[t * outputs + o].to_f32()).abs());
            let size = before[o * inputs + i].abs() + terms.sum::<f32>();
            let (fast, plain) = (fast[o * inputs + i], plain[o * inputs + i]);
            assert!((fast - plain).abs() <= 2e-6 * size.max(1e-3), "({o}, {i}): {fast}, expected {plain}");
        }
    }
}

#[test]
fn the_gradient_of_a_weight_is_plain_and_adds_up() {
    for (inputs, outputs, rows, seed) in
        [(5, 3, 1, 1), (384, 77, 130, 2), (40, 405, 90, 5), (33, 31, 700, 3), (130, 12, 37, 4)]
    {
        check_weight_gradient::<f32>(inputs, outputs, rows, seed);
        check_weight_gradient::<bf16>(inputs, outputs, rows, seed);
    }
}

#[test]
fn rows_stand_alone_in_both_types() {
    rows_stand_alone::<bf16>();
    rows_stand_alone::<f32>();
}

/// The ops are linear in each argument, so a central difference of any width is exact but for rounding.
#[test]
fn plain_gradients_are_finite_differences() {
    let (inputs, outputs, rows) = (6, 9, 4);
    let slots = [(1, 3, 2), (4, 5, 3)];
    let case = Case::<f32>::new(inputs, outputs, rows, &slots, 12);
    let results = case.run(Path::Plain);
    let objective = |case: &Case<f32>| -> f64 {
        let y = case.run(Path::Plain).y;
        y.iter().zip(&case.d_y).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum()
    };
    let fresh = || Case::<f32>::new(inputs, outputs, rows, &slots, 12);
    let difference = |change: &dyn Fn(&mut Case<f32>, f32)| {
        let (mut up, mut down) = (fresh(), fresh());
        change(&mut up, 0.5);
        change(&mut down, -0.5);
        objective(&up) - objective(&down)
    };
    for at in 0..rows * inputs {
        let numeric = difference(&|case, step| case.x[at] += step);
        assert!((numeric - f64::from(results.d_x[at])).abs() < 1e-4, "d_x[{at}]");
    }
    for at in 0..case.parameters.len() {
        let numeric = difference(&|case, step| case.parameters[at] += step);
        // Gradients are added to what was there: ones.
        assert!((numeric - f64::from(results.gradients[at] - 1.0)).abs() < 1e-4, "gradients[{at}]");
    }
}

#[test]
fn rows_of_a_matrix_come_back() {
    let mut random = Random(3);
    let (rows, cols) = (67, 45);
    let values = random.vec::<f32>(rows * cols);
    let mut read = |row: usize, out: &mut [f32]| out.copy_from_slice(&values[row * cols..][..cols]);
    let (wide, narrow) =
        (PackedMatrix::<f32>::new(rows, cols, &mut read), PackedMatrix::<bf16>::new(rows, cols, &mut read));
    let mut out = vec![0.0; cols];
    for row in 0..rows {
        wide.read_row(row, &mut out);
        assert_eq!(out, values[row * cols..][..cols]);
        narrow.read_row(row, &mut out);
        let rounded: Vec<f32> =
            values[row * cols..][..cols].iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(out, rounded);
    }
}

/// As published with bitsandbytes.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Blocks of a file as their format has them, and the values they stand for.
fn blocks(format: BlockFormat, values: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let mut random = Random(seed);
    let (mut raw, mut expanded) = (Vec::new(), Vec::new());
    for _ in 0..values / 32 {
        let (d, m) = (f16::from_f32(0.1 * random.next()), f16::from_f32(random.next()));
        let quants: Vec<u8> = (0..format.bytes()).map(|_| (256.0 * (random.next() + 0.5)) as u8).collect();
        if format != BlockFormat::Nf4 {
            raw.extend(d.to_le_bytes());
        }
        let nibble = |i: usize| f32::from(quants[i % 16] >> (i / 16 * 4) & 15);
        let d = d.to_f32();
        match format {
            BlockFormat::Q4_0 => {
                raw.extend(&quants[..16]);
                expanded.extend((0..32).map(|i| d * (nibble(i) - 8.0)));
            }
            BlockFormat::Q4_1 => {
                raw.extend(m.to_le_bytes());
                raw.extend(&quants[..16]);
                expanded.extend((0..32).map(|i| d * nibble(i) + m.to_f32()));
            }
            BlockFormat::Nf4 => {
                let d = 0.1 * m.to_f32();
                raw.extend(d.to_le_bytes());
                raw.extend(&quants[..16]);
                expanded.extend((0..32).map(|i| d * NF4[nibble(i) as usize]));
            }
            BlockFormat::Q8_0 => {
                raw.extend(&quants[..32]);
                expanded.extend(quants[..32].iter().map(|q| d * f32::from(*q as i8)));
            }
        }
    }
    (raw, expanded)
}

/// A matrix kept in few bits gives the bits of the same matrix expanded beforehand.
fn blocks_are_expanded_exactly<E: Element>(rows: usize, cols: usize, batch: usize) {
    for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::Nf4] {
        let (raw, values) = blocks(format, rows * cols, 7);
        let mut read = |row: usize, out: &mut [f32]| out.copy_from_slice(&values[row * cols..][..cols]);
        let dense = PackedMatrix::<E>::new(rows, cols, &mut read);
        let packed = PackedMatrix::<E>::from_blocks(format, rows, cols, &raw);
        assert_eq!(packed.bytes(), rows.next_multiple_of(32) * cols / 32 * format.bytes());
        let (mut one, mut other) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..rows {
            dense.read_row(row, &mut one);
            packed.read_row(row, &mut other);
            assert_eq!(one, other, "row {row} of {format:?}");
        }
        let mut random = Random(9);
        let (x, d_y) = (random.vec::<E>(batch * cols), random.vec::<E>(batch * rows));
        let run = |matrix: &PackedMatrix<E>| {
            let layer = Layer { matrix, bias: None, slots: &[], adapter: None };
            let (mut y, mut d_x) = (vec![0.0; batch * rows], vec![0.0; batch * cols]);
            forward(Target::Wide(&mut y), &mut [], &x, &layer, batch);
            backward(Target::Wide(&mut d_x), &mut [], &d_y, &layer, batch);
            (y, d_x)
        };
        assert_eq!(run(&dense), run(&packed), "{format:?}");
    }
}

#[test]
fn blocks_are_expanded_exactly_in_both_types() {
    blocks_are_expanded_exactly::<bf16>(75, 96, 19);
    blocks_are_expanded_exactly::<f32>(75, 96, 19);
    blocks_are_expanded_exactly::<bf16>(40, 2336, 3);
    blocks_are_expanded_exactly::<f32>(2100, 32, 3);
}

/// A matrix refilled is the matrix built from the same values.
#[test]
fn new_values_take_the_place_of_the_old_ones() {
    fn check<E: Element>(rows: usize, cols: usize) {
        let mut random = Random(8);
        let (old, new) = (random.vec::<f32>(rows * cols), random.vec::<f32>(rows * cols));
        let build = |values: &[f32]| {
            PackedMatrix::<E>::new(rows, cols, &mut |row, out| {
                out.copy_from_slice(&values[row * cols..][..cols]);
            })
        };
        let mut refilled = build(&old);
        refilled.refill(&new);
        let (expected, mut a, mut b) = (build(&new), vec![0.0; cols], vec![0.0; cols]);
        for row in 0..rows {
            refilled.read_row(row, &mut a);
            expected.read_row(row, &mut b);
            assert_eq!(a, b, "row {row}");
        }
    }
    check::<f32>(45, 39);
    check::<bf16>(700, 33);
}
