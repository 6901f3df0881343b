//! Weights that train: their gradients, and their values as the products want them.

use super::device::{Lane, Values};
use super::linear::{BLOCK_VALUES, Matrix};
use super::pass::Section;
use super::product::{Operand, Place};
use super::scratch::Kind;
use super::{Cuda, args};
use crate::{Linear, bf16};

/// Columns and rows that a thread block sums.
const SUM_COLUMNS: usize = 32;
const SUM_ROWS: usize = 256;

impl Cuda {
    pub(super) fn replace_values(
        &self,
        matrix: &mut Matrix,
        parameters: &Values<f32>,
        at: usize,
        shared: Option<usize>,
    ) {
        let (to, format) = matrix.stored();
        assert_eq!(format, 0, "only values of the compute type are replaced");
        let (cols, len) = (matrix.cols(), matrix.rows() * matrix.cols());
        let shared = shared.map_or(0, |at| parameters.at(at, cols));
        // SAFETY: matrix and parameters hold `len` values.
        unsafe {
            let args = args![to, parameters.at(at, len), shared, len, cols];
            self.launch("repack", len.div_ceil(BLOCK_VALUES), 256, args);
        }
    }

    pub(super) fn weight_gradient(
        &self,
        gradients: &mut Values<f32>,
        at: usize,
        [x, d_y]: [&Values<bf16>; 2],
        linear: &Linear<Self>,
        rows: usize,
    ) {
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        if rows == 0 {
            return;
        }
        let address = gradients.at(at, outputs * inputs);
        let place = Place { address, stride: inputs, wide: true, add: true };
        let (x, d_y) = (x.first(rows * inputs), d_y.first(rows * outputs));
        self.side.run(Lane::Gradients, &[x, d_y], &[gradients.first(0)], || {
            let (d_y, x) = (Operand::transposed(d_y, outputs), Operand::plain(x, inputs));
            // SAFETY: the shapes are those of the layer, the buffers long enough.
            unsafe { self.products.run(Lane::Gradients, place, d_y, x, [outputs, inputs, rows], 1.0) }
        });
    }

    pub(super) fn bias_gradient(
        &self,
        gradients: &mut Values<f32>,
        at: usize,
        d_y: &Values<bf16>,
        width: usize,
        rows: usize,
    ) {
        let values = d_y.first(rows * width);
        let sums = gradients.at(at, width);
        let parts = self.column_parts(width, rows);
        self.side.run(Lane::Gradients, &[values], &[gradients.first(0)], || {
            self.sum_columns("sum_columns", parts, [values, 0], [sums, 0], width, rows);
        });
    }

    pub(super) fn norm_gradients(
        &self,
        gradients: &mut Values<f32>,
        (weight, bias): (usize, Option<usize>),
        (d_h, unit): (&Values<f32>, &Values<bf16>),
        width: usize,
        rows: usize,
    ) {
        let (d_h, unit) = (d_h.first(rows * width), unit.first(rows * width));
        let sums = [bias.map_or(0, |at| gradients.at(at, width)), gradients.at(weight, width)];
        let parts = self.column_parts(width, rows);
        self.side.run(Lane::Gradients, &[d_h, unit], &[gradients.first(0)], || {
            self.sum_columns("sum_norm_columns", parts, [d_h, unit], sums, width, rows);
        });
    }

    /// Scratch for the parts of columns' sums; taken before work begins beside the main stream, which clears it.
    fn column_parts(&self, width: usize, rows: usize) -> u64 {
        self.scratch.take(Kind::ColumnSums, 4 * 2 * rows.div_ceil(SUM_ROWS) * width)
    }

    /// Adds the columns' sums of values, and of values times factors, to where these go: in parts, then the parts in
    /// order.
    fn sum_columns(
        &self,
        kernel: &str,
        parts: u64,
        [values, factors]: [u64; 2],
        [sums, products]: [u64; 2],
        width: usize,
        rows: usize,
    ) {
        let (tiles, chunks) = (width.div_ceil(SUM_COLUMNS), rows.div_ceil(SUM_ROWS));
        let launch = |kernel: &str, grid, args| {
            // SAFETY: callers give as many values as rows and width say; scratch holds the parts.
            unsafe { self.device.launch(Lane::Gradients, self.functions[kernel], grid, 256, 0, args) }
        };
        launch(kernel, tiles * chunks, args![parts, values, factors, rows, width]);
        launch("add_columns", width.div_ceil(256), args![sums, products, parts, chunks, width]);
    }

    /// `gradients[at..][index[t]] += d_x[t]`.
    pub(super) fn table_gradient(
        &self,
        gradients: &mut Values<f32>,
        at: usize,
        d_x: &Values<f32>,
        index: Section,
        width: usize,
    ) {
        let (to, d_x) = (gradients.at(at, width), d_x.first(index.count * width));
        let args = args![to, d_x, index.address, index.count, width];
        // SAFETY: the buffer holds the pass's rows, which name rows of the table.
        unsafe { self.launch("add_rows", index.count, 128, args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_knows_the_same_sizes() {
        let source = include_str!("source/parameters.cu");
        for (name, value) in [("SUM_COLUMNS", SUM_COLUMNS), ("SUM_ROWS", SUM_ROWS)] {
            assert!(source.contains(&format!("constexpr u32 {name} = {value};")), "{name}");
        }
    }
}
