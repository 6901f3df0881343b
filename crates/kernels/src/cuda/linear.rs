//! Frozen matrices, LoRA, and products with both.

use std::ops::Range;
use std::sync::PoisonError;
use std::time::Instant;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::device::{Lane, Memory, Values};
use super::product::{Operand, Place};
use super::scratch::Kind;
use super::{Cuda, args};
use crate::pool::{self, Rows};
use crate::{BlockFormat, Linear, Output, Slot, bf16, element};

/// Values that are read, rounded and sent at a time.
const PIECE: usize = 16 << 20;
/// Rows of them that a thread reads at a time.
const ROWS_PER_JOB: usize = 32;
/// Rows of an output head that are expanded at a time: 64 MiB at a width of 2048.
const SLICE_ROWS: usize = 16 << 10;
/// Rows from which LoRA's share of a product comes first.
const SHARE_FIRST: usize = 2048;
/// Values that a thread block of most kernels covers.
pub(super) const BLOCK_VALUES: usize = 2048;

/// A frozen matrix `(rows, cols)` on the device, row-major.
#[derive(Debug)]
pub struct Matrix {
    memory: Memory,
    /// `None` for values of the compute type.
    format: Option<BlockFormat>,
    rows: usize,
    cols: usize,
}

impl Matrix {
    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The bytes, and what the kernels call their format.
    pub(super) fn stored(&self) -> (u64, u32) {
        let format = match self.format {
            None => 0,
            Some(BlockFormat::Q4_0) => 1,
            Some(BlockFormat::Q4_1) => 2,
            Some(BlockFormat::Q8_0) => 3,
            Some(BlockFormat::Nf4) => 4,
        };
        (self.memory.address, format)
    }
}

/// A layer's LoRA matrices in the compute type, as the products of a step take them.
#[derive(Debug)]
pub struct Adapter {
    /// All slots' A stacked: `(sum of R, I)`.
    pub(super) a: Values<bf16>,
    /// Each slot's B in its rows and columns, zeros elsewhere: `(O, sum of R)`.
    pub(super) b: Values<bf16>,
    /// Five words a slot.
    slots: Memory,
    /// What the words say.
    laid_out: Vec<Slot>,
}

/// The adapter, `sum of R` and scale of a layer that has slots.
pub(super) struct Lora<'a> {
    pub(super) adapter: &'a Adapter,
    width: usize,
    pub(super) scale: f32,
}

impl Cuda {
    pub(super) fn dense_matrix(
        &self,
        rows: usize,
        cols: usize,
        read: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Matrix {
        let mut memory = Memory::new(&self.device, 2 * rows * cols);
        let at_once = (PIECE / cols.max(1)).clamp(1, rows.max(1));
        let mut rounded = vec![0u16; at_once * cols];
        for first in (0..rows).step_by(at_once) {
            let count = at_once.min(rows - first);
            pool::for_each_rows(count, ROWS_PER_JOB, Rows::new(&mut rounded, cols), |range, rounded| {
                let mut values = vec![0.0; cols];
                for (row, rounded) in range.zip(rounded.chunks_exact_mut(cols.max(1))) {
                    read(first + row, &mut values);
                    if self.device.f16 {
                        rounded.reinterpret_cast_mut::<f16>().convert_from_f32_slice(&values);
                    } else {
                        element::round(rounded.reinterpret_cast_mut::<bf16>(), &values);
                    }
                }
            });
            memory.upload(2 * first * cols, &rounded[..count * cols]);
        }
        Matrix { memory, format: None, rows, cols }
    }

    pub(super) fn matrix_of_blocks(
        &self,
        format: BlockFormat,
        rows: usize,
        cols: usize,
        raw: &[u8],
    ) -> Matrix {
        let expected = rows * cols / 32 * format.bytes();
        assert!(cols.is_multiple_of(32) && raw.len() == expected, "{rows} x {cols} of {format:?}");
        let mut memory = Memory::new(&self.device, raw.len());
        memory.upload(0, raw);
        Matrix { memory, format: Some(format), rows, cols }
    }

    /// Operations a second of a large product of random values: zeros would be faster.
    pub(super) fn large_products(&self) -> f64 {
        const SIZE: usize = 8192;
        const TIMES: u32 = 10;
        let matrix = self.dense_matrix(SIZE, SIZE, &|index, row| {
            let mut state = index as u32;
            for value in row {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *value = f32::from((state >> 16) as u16) / 65536.0 - 0.5;
            }
        });
        let out: Values<bf16> = Values::new(&self.device, SIZE * SIZE);
        let place = Place { address: out.first(SIZE * SIZE), stride: SIZE, wide: false, add: false };
        let operand = Operand::plain(matrix.memory.address, SIZE);
        let run = |times| {
            let begun = Instant::now();
            for _ in 0..times {
                let other = Operand { transposed: true, ..operand };
                // SAFETY: all three are of this size.
                unsafe { self.products.run(Lane::Main, place, operand, other, [SIZE; 3], 1.0) }
            }
            self.wait();
            begun.elapsed().as_secs_f64()
        };
        run(TIMES);
        2.0 * (SIZE as f64).powi(3) * f64::from(TIMES) / run(TIMES)
    }

    /// Writes the values of a matrix to `to`, in the compute type.
    fn expand(&self, to: u64, matrix: &Matrix) {
        let len = matrix.rows * matrix.cols;
        let (raw, format) = matrix.stored();
        // SAFETY: `to` holds the matrix's values, `raw` its blocks.
        unsafe {
            let args = args![to, raw, format, len as u64];
            self.launch_beside([&[raw], &[to]], "expand", len.div_ceil(BLOCK_VALUES), 256, args);
        }
    }

    /// Calls `body` with the rows of a matrix in the compute type and where they lie: some at a time where they must be expanded.
    pub(super) fn each_slice(&self, matrix: &Matrix, mut body: impl FnMut(Range<usize>, u64)) {
        let Some(format) = matrix.format else { return body(0..matrix.rows, matrix.memory.address) };
        for first in (0..matrix.rows).step_by(SLICE_ROWS) {
            let rows = first..matrix.rows.min(first + SLICE_ROWS);
            let len = rows.len() * matrix.cols;
            let to = self.scratch.take(Kind::Expanded, 2 * len);
            let raw = matrix.memory.address + (first * matrix.cols / 32 * format.bytes()) as u64;
            let args = args![to, raw, matrix.stored().1, len as u64];
            // SAFETY: scratch holds the values, `raw` points to their blocks.
            unsafe { self.launch("expand", len.div_ceil(BLOCK_VALUES), 256, args) }
            body(rows, to);
        }
    }

    /// A matrix as a product wants it: the compute type, in scratch where it is not stored so.
    pub(super) fn dense(&self, matrix: &Matrix) -> u64 {
        if matrix.format.is_none() {
            return matrix.memory.address;
        }
        let to = self.scratch.take(Kind::Expanded, 2 * matrix.rows * matrix.cols);
        self.expand(to, matrix);
        to
    }

    /// A copy in the compute type.
    pub(super) fn dense_copy(&self, matrix: &Matrix) -> Matrix {
        let (rows, cols) = (matrix.rows, matrix.cols);
        let memory = Memory::new(&self.device, 2 * rows * cols);
        if matrix.format.is_some() {
            self.expand(memory.address, matrix);
        } else {
            self.copy_bytes(memory.address, matrix.memory.address, memory.bytes);
        }
        Matrix { memory, format: None, rows, cols }
    }

    /// Lays out the adapters of all these layers at once.
    pub(super) fn lay_out(&self, linears: &mut [&mut Linear<Self>], parameters: &Values<f32>) {
        let (mut layers, mut blocks, mut end) = (Vec::new(), 0, 0);
        for linear in linears.iter_mut() {
            let (width, inputs, outputs) = (linear.mid_width(), linear.inputs, linear.outputs);
            let adapter = match linear.adapter.take() {
                Some(adapter) if adapter.laid_out == linear.slots => adapter,
                _ => self.adapter(&linear.slots, inputs, outputs),
            };
            let words = |low: usize, high: usize| low as u64 | (high as u64) << 32;
            layers.extend([
                adapter.a.first(width * inputs),
                adapter.b.first(width * outputs),
                adapter.slots.address,
                words(linear.slots.len(), inputs),
                words(outputs, width),
                blocks as u64,
            ]);
            blocks += (width * (inputs + outputs)).div_ceil(1024);
            let ends = linear.slots.iter().map(|s| (s.a + s.rank * inputs).max(s.b + s.rank * s.rows.len()));
            end = end.max(ends.max().unwrap_or(0));
            linear.adapter = Some(adapter);
        }
        let mut known = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match &mut *known {
            Some(known) if known.0 == layers => known,
            known => {
                let mut memory = Memory::new(&self.device, 8 * layers.len());
                memory.upload(0, &layers);
                known.insert((layers, memory))
            }
        };
        let args = args![known.1.address, linears.len(), parameters.first(end)];
        // SAFETY: A and B were made for these slots, and the parameters reach to the end of the last.
        unsafe { self.launch("refresh", blocks, 256, args) }
    }

    /// Room for the matrices of these slots.
    fn adapter(&self, slots: &[Slot], inputs: usize, outputs: usize) -> Adapter {
        let width: usize = slots.iter().map(|slot| slot.rank).sum();
        let words =
            |slot: &Slot| [slot.rows.start, slot.rows.len(), slot.rank, slot.a, slot.b].map(|n| n as u32);
        let words: Vec<u32> = slots.iter().flat_map(words).collect();
        let mut memory = Memory::new(&self.device, 4 * words.len());
        memory.upload(0, &words);
        let [a, b] = [inputs, outputs].map(|len| Values::new(&self.device, len * width));
        Adapter { a, b, slots: memory, laid_out: slots.to_vec() }
    }

    pub(super) fn lora(linear: &Linear<Self>) -> Option<Lora<'_>> {
        let first = linear.slots.first()?;
        let alike = |slot: &Slot| slot.scale.to_bits() == first.scale.to_bits();
        assert!(linear.slots.iter().all(alike), "slots of a layer share their scale");
        let adapter = linear.adapter.as_ref();
        let adapter =
            adapter.unwrap_or_else(|| panic!("a layer with LoRA slots must be refreshed before use"));
        Some(Lora { adapter, width: linear.mid_width(), scale: first.scale })
    }

    /// The matrix of a layer with LoRA added to it.
    pub(super) fn merged(&self, linear: &Linear<Self>) -> Matrix {
        let merged = self.dense_copy(&linear.matrix);
        if let Some(Lora { adapter, width, scale }) = Self::lora(linear) {
            let (outputs, inputs) = (linear.outputs, linear.inputs);
            let place = Place { address: merged.memory.address, stride: inputs, wide: false, add: true };
            let b = Operand::plain(adapter.b.first(outputs * width), width);
            let a = Operand::plain(adapter.a.first(width * inputs), inputs);
            // SAFETY: the shapes are those of the layer.
            unsafe { self.products.run(Lane::Main, place, b, a, [outputs, inputs, width], scale) }
        }
        merged
    }

    pub(super) fn place(output: Output<'_, Self>, rows: usize, width: usize) -> Place {
        let (address, wide, add) = match output {
            Output::Narrow(to) => (to.first(rows * width), false, false),
            Output::Wide(to) => (to.first(rows * width), true, false),
            Output::Add(to) => (to.first(rows * width), true, true),
        };
        Place { address, stride: width, wide, add }
    }

    pub(super) fn linear_forward(
        &self,
        y: Output<'_, Self>,
        mid: &mut Values<bf16>,
        x: &Values<bf16>,
        linear: &Linear<Self>,
        rows: usize,
    ) {
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        let place = Self::place(y, rows, outputs);
        self.side.settle(&[x.first(0)], &[place.address, mid.first(0)]);
        let x = Operand::plain(x.first(rows * inputs), inputs);
        let weight = Operand::transposed(self.dense(&linear.matrix), inputs);
        let weight = (weight, [rows, outputs, inputs]);
        if let Some(Lora { adapter, width, scale }) = Self::lora(linear) {
            let a = Operand::transposed(adapter.a.first(width * inputs), inputs);
            let b = Operand::transposed(adapter.b.first(outputs * width), width);
            let mid = (mid.first(rows * width), width);
            // SAFETY: the shapes are those of the layer, the buffers long enough.
            unsafe { self.with_lora(place, mid, x, (a, b), weight, scale) }
        } else {
            // SAFETY: as above.
            unsafe { self.products.run(Lane::Main, place, x, weight.0, weight.1, 1.0) }
        }
        if let Some(bias) = &linear.bias {
            let kernel = if place.wide { "add_bias_wide" } else { "add_bias_narrow" };
            let grid = (rows * outputs).div_ceil(BLOCK_VALUES);
            // SAFETY: as above.
            unsafe {
                let args = args![place.address, bias.first(outputs), rows, outputs];
                self.launch_beside([&[], &[place.address]], kernel, grid, 256, args);
            }
        }
    }

    pub(super) fn input_gradient(
        &self,
        d_x: Output<'_, Self>,
        d_mid: &mut Values<bf16>,
        d_y: &Values<bf16>,
        linear: &Linear<Self>,
        rows: usize,
    ) {
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        let place = Self::place(d_x, rows, inputs);
        self.side.settle(&[d_y.first(0)], &[place.address, d_mid.first(0)]);
        let d_y = Operand::plain(d_y.first(rows * outputs), outputs);
        let weight = (Operand::plain(self.dense(&linear.matrix), inputs), [rows, inputs, outputs]);
        if let Some(Lora { adapter, width, scale }) = Self::lora(linear) {
            let b = Operand::plain(adapter.b.first(outputs * width), width);
            let a = Operand::plain(adapter.a.first(width * inputs), inputs);
            let d_mid = (d_mid.first(rows * width), width);
            // SAFETY: the shapes are those of the layer, the buffers long enough.
            unsafe { self.with_lora(place, d_mid, d_y, (b, a), weight, scale) }
        } else {
            // SAFETY: as above.
            unsafe { self.products.run(Lane::Main, place, d_y, weight.0, weight.1, 1.0) }
        }
    }

    /// A product and LoRA's share: `mid = scale * x down`, `place (+)= x weight + mid up`. `mid` is its address and
    /// columns, `weight` comes with rows, columns and the length of its sums. Of few rows the share is added when both
    /// are there, as `mid` is made beside the product; of many it comes first, so that the output is read once, by the
    /// large product, which has the time.
    ///
    /// # Safety
    /// As [`super::product::Products::run`].
    unsafe fn with_lora(
        &self,
        place: Place,
        (mid, width): (u64, usize),
        x: Operand,
        (down, up): (Operand, Operand),
        (weight, [rows, columns, sums]): (Operand, [usize; 3]),
        scale: f32,
    ) {
        let to = Place { address: mid, stride: width, wide: false, add: false };
        let share = (Operand::plain(mid, width), up, [rows, columns, width]);
        // SAFETY: by contract.
        unsafe {
            if rows >= SHARE_FIRST && !place.add {
                self.products.run(Lane::Main, to, x, down, [rows, width, sums], scale);
                self.products.run(Lane::Main, place, share.0, share.1, share.2, 1.0);
                let place = Place { add: true, ..place };
                return self.products.run(Lane::Main, place, x, weight, [rows, columns, sums], 1.0);
            }
            self.side.run(Lane::Mid, &[x.address], &[mid], || {
                self.products.run(Lane::Mid, to, x, down, [rows, width, sums], scale);
            });
            self.products.run(Lane::Main, place, x, weight, [rows, columns, sums], 1.0);
            self.side.settle(&[mid], &[]);
            self.products.run(Lane::Main, Place { add: true, ..place }, share.0, share.1, share.2, 1.0);
        }
    }

    pub(super) fn adapter_gradients(
        &self,
        gradients: &mut Values<f32>,
        [x, mid, d_y, d_mid]: [&Values<bf16>; 4],
        linear: &Linear<Self>,
        rows: usize,
    ) {
        if rows == 0 || linear.slots.is_empty() {
            return;
        }
        let reads = [x, mid, d_y, d_mid].map(|values| values.first(0));
        self.side.run(Lane::Gradients, &reads, &[gradients.first(0)], || {
            self.a_gradients(gradients, [x, d_mid], linear, rows);
            self.b_gradients(gradients, [mid, d_y], linear, rows);
        });
    }

    /// Adds `d_mid^T x` to the gradients of A, on the stream of gradients.
    pub(super) fn a_gradients(
        &self,
        gradients: &Values<f32>,
        [x, d_mid]: [&Values<bf16>; 2],
        linear: &Linear<Self>,
        rows: usize,
    ) {
        let (inputs, width, mut first) = (linear.inputs, linear.mid_width(), 0);
        // A matrices that lie in a row are one.
        for run in linear.slots.chunk_by(|one, next| next.a == one.a + one.rank * inputs) {
            let rank: usize = run.iter().map(|slot| slot.rank).sum();
            let address = gradients.at(run[0].a, rank * inputs);
            let place = Place { address, stride: inputs, wide: true, add: true };
            let d_mid = Operand::transposed(column(d_mid, rows, width, first), width);
            let x = Operand::plain(x.first(rows * inputs), inputs);
            // SAFETY: the shapes are those of the layer, the buffers long enough.
            unsafe { self.products.run(Lane::Gradients, place, d_mid, x, [rank, inputs, rows], 1.0) }
            first += rank;
        }
    }

    /// Adds `d_y^T mid` to the gradients of B, on the stream of gradients.
    pub(super) fn b_gradients(
        &self,
        gradients: &Values<f32>,
        [mid, d_y]: [&Values<bf16>; 2],
        linear: &Linear<Self>,
        rows: usize,
    ) {
        let (outputs, width, mut first) = (linear.outputs, linear.mid_width(), 0);
        for slot in &linear.slots {
            let (begin, count) = (slot.rows.start, slot.rows.len());
            let address = gradients.at(slot.b, count * slot.rank);
            let place = Place { address, stride: slot.rank, wide: true, add: true };
            let d_y = Operand::transposed(column(d_y, rows, outputs, begin), outputs);
            let mid = Operand::plain(column(mid, rows, width, first), width);
            // SAFETY: the shapes are those of the layer, the buffers long enough.
            unsafe { self.products.run(Lane::Gradients, place, d_y, mid, [count, slot.rank, rows], 1.0) }
            first += slot.rank;
        }
    }
}

/// Where column `at` of rows of `stride` values begins.
fn column(values: &Values<bf16>, rows: usize, stride: usize, at: usize) -> u64 {
    values.first(rows * stride) + 2 * at as u64
}
