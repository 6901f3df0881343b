//! The feed-forward layer with a gate, whose kernels add LoRA's share to what they read and take from what they write
//! what LoRA's matrices want of it: the outputs of the large products are read once.

use super::device::{Arg, Lane, Values};
use super::linear::Lora;
use super::product::{Operand, Place};
use super::scratch::Kind;
use super::{Cuda, args};
use crate::feed_forward::GatedLayer;
use crate::{Linear, Output, bf16};

/// The rank that the kernels are made for.
const RANK: usize = 16;
/// Columns of a block.
const COLUMNS: usize = 256;
/// Rows of a block in the forward pass.
const FORWARD_ROWS: usize = 128;
/// Rows that a warp works on at a time.
const TILE_ROWS: usize = 16;
/// Rows of gradients that each chunk of rows leaves: of three matrices.
const PART_ROWS: usize = 3 * RANK;
/// Blocks of the backward pass: what a large device runs at a time, two on each multiprocessor.
const BLOCKS: usize = 256;
/// Columns that a block sums.
const SUM_COLUMNS: usize = 32;
/// Rows from which this is faster than op by op.
const LEAST_ROWS: usize = 512;

/// Bytes of shared memory for what a block reads of a matrix, while it works on the rows before.
const COMING: usize = 2 * 2 * TILE_ROWS * COLUMNS;
/// What the kernels use of it.
pub(super) const SHARED: [(&str, usize); 2] =
    [("gated_with_lora", 2 * COMING), ("gated_with_lora_backward", 3 * COMING)];

type Narrow = Values<bf16>;

impl Cuda {
    /// Whether the kernels know this layer. The same for the forward and the backward pass: in between, `up` lacks
    /// LoRA's share.
    pub(super) fn joins_gate(&self, layer: &GatedLayer<'_, Self>, rows: usize) -> bool {
        let (up, down, width) = (layer.up, layer.down, layer.down.inputs);
        let reaches = [0..width, width..2 * width];
        let pair = up.slots.len() == 2 && up.slots.iter().zip(reaches).all(|(slot, rows)| slot.rows == rows);
        let whole = down.slots.len() == 1 && down.slots[0].rows == (0..down.outputs);
        pair && whole
            && up.slots.iter().chain(&down.slots).all(|slot| slot.rank == RANK)
            && up.bias.is_none()
            && down.bias.is_none()
            && width.is_multiple_of(COLUMNS)
            && rows.is_multiple_of(TILE_ROWS)
            && rows >= LEAST_ROWS
            && self.functions.contains_key("gated_with_lora")
    }

    fn adapted(linear: &Linear<Self>) -> Lora<'_> {
        Self::lora(linear).unwrap_or_else(|| unreachable!("a joined layer has LoRA"))
    }

    /// [`crate::Backend::feed_forward`] of a layer that [`Cuda::joins_gate`].
    pub(super) fn joined_forward(
        &self,
        y: Output<'_, Self>,
        act: &mut Narrow,
        up: &mut Narrow,
        [up_mid, down_mid]: [&mut Narrow; 2],
        h: &Narrow,
        layer: &GatedLayer<'_, Self>,
        rows: usize,
    ) {
        let (inputs, outputs, width) = (layer.up.inputs, layer.down.outputs, layer.down.inputs);
        let (up_lora, down_lora) = (Self::adapted(layer.up), Self::adapted(layer.down));
        let (blocks, len) = (width / COLUMNS, rows * RANK);
        let mids = self.scratch.take(Kind::Logits, 4 * blocks * len);
        let (act, gate_up) = (act.first(rows * width), up.first(rows * 2 * width));
        let (mid, next_mid) = (up_mid.first(2 * len), down_mid.first(len));
        let h = Operand::plain(h.first(rows * inputs), inputs);
        let to = Self::place(y, rows, outputs);
        self.side.settle(&[h.address], &[gate_up, mid, mids, next_mid, to.address]);
        let a = Operand::transposed(up_lora.adapter.a.first(2 * RANK * inputs), inputs);
        let weight = Operand::transposed(self.dense(&layer.up.matrix), inputs);
        self.narrow_product(mid, 2 * RANK, h, a, [rows, inputs], up_lora.scale);
        let place = Place { address: gate_up, stride: 2 * width, wide: false, add: false };
        let (b, next_a) =
            (up_lora.adapter.b.first(4 * RANK * width), down_lora.adapter.a.first(RANK * width));
        let args = args![act, mids, gate_up, mid, b, next_a, rows, width, FORWARD_ROWS];
        let grid = blocks * rows.div_ceil(FORWARD_ROWS);
        // SAFETY: the shapes are those of the layer, the buffers long enough; the kernels know these shapes.
        unsafe {
            self.products.run(Lane::Main, place, h, weight, [rows, 2 * width, inputs], 1.0);
            self.side.settle(&[gate_up, mid], &[act]);
            self.launch_gate(0, grid, args);
            let args = args![next_mid, mids, down_lora.scale, blocks, len];
            self.launch_beside([&[mids], &[next_mid]], "sum_mid_parts", len.div_ceil(1024), 256, args);
        }
        let share = [
            Operand::plain(next_mid, RANK),
            Operand::transposed(down_lora.adapter.b.first(outputs * RANK), RANK),
        ];
        let weight = Operand::transposed(self.dense(&layer.down.matrix), width);
        self.product_and_share(to, [Operand::plain(act, width), weight], share, [rows, outputs, width, RANK]);
    }

    /// [`crate::Backend::feed_forward_backward`] of a layer that [`Cuda::joins_gate`].
    pub(super) fn joined_backward(
        &self,
        gradients: &mut Values<f32>,
        d_h: Output<'_, Self>,
        [d_up_mid, d_down_mid]: [&mut Narrow; 2],
        act: &mut Narrow,
        up: &mut Narrow,
        [up_mid, down_mid]: [&Narrow; 2],
        h: &Narrow,
        d_y: &Narrow,
        layer: &GatedLayer<'_, Self>,
        rows: usize,
    ) {
        let (inputs, outputs, width) = (layer.up.inputs, layer.down.outputs, layer.down.inputs);
        let (up_lora, down_lora) = (Self::adapted(layer.up), Self::adapted(layer.down));
        let chunk = rows.div_ceil((BLOCKS * COLUMNS / width).max(1)).next_multiple_of(TILE_ROWS);
        let (blocks, chunks, len) = (width / COLUMNS, rows.div_ceil(chunk), rows * 2 * RANK);
        let part_bytes = 4 * chunks * PART_ROWS * width;
        let parts = self.scratch.take(Kind::Logits, part_bytes + 4 * blocks * len);
        let d_mids = parts + part_bytes as u64;
        let (d_act, d_up, mid) = (act.first(rows * width), up.first(rows * 2 * width), up_mid.first(len));
        let (d_mid, next_d_mid) = (d_down_mid.first(rows * RANK), d_up_mid.first(len));
        let slopes = Operand::plain(d_y.first(rows * outputs), outputs);
        let to = Self::place(d_h, rows, inputs);
        self.side.settle(&[slopes.address], &[d_act, d_up, d_mid, next_d_mid, parts, to.address]);
        let weight = Operand::plain(self.dense(&layer.down.matrix), width);
        let b = Operand::plain(down_lora.adapter.b.first(outputs * RANK), RANK);
        self.narrow_product(d_mid, RANK, slopes, b, [rows, outputs], down_lora.scale);
        let place = Place { address: d_act, stride: width, wide: false, add: false };
        let (b, a) = (up_lora.adapter.b.first(4 * RANK * width), down_lora.adapter.a.first(RANK * width));
        let args = args![d_up, parts, d_mids, d_act, mid, d_mid, b, a, rows, width, chunk];
        let grid = blocks * chunks;
        // SAFETY: the shapes are those of the layer, the buffers long enough; the kernels know these shapes.
        unsafe {
            self.products.run(Lane::Main, place, slopes, weight, [rows, width, outputs], 1.0);
            self.side.settle(&[d_act, mid, d_mid], &[d_up, parts]);
            self.launch_gate(1, grid, args);
            let args = args![next_d_mid, d_mids, up_lora.scale, blocks, len];
            self.launch_beside([&[], &[next_d_mid]], "sum_mid_parts", len.div_ceil(1024), 256, args);
        }
        let reads = [parts, down_mid.first(0), slopes.address];
        self.side.run(Lane::Gradients, &reads, &[gradients.first(0)], || {
            let [gates, ups] = [0, 1].map(|i| gradients.at(layer.up.slots[i].b, width * RANK));
            let a = gradients.at(layer.down.slots[0].a, RANK * width);
            let args = args![gates, ups, a, parts, chunks, width];
            let sum = self.functions["sum_lora_parts"];
            // SAFETY: scratch holds the chunks' parts, the gradients all of LoRA's matrices.
            unsafe { self.device.launch(Lane::Gradients, sum, width / SUM_COLUMNS, 256, 0, args) }
            self.b_gradients(gradients, [down_mid, d_y], layer.down, rows);
        });
        let a = Operand::plain(up_lora.adapter.a.first(2 * RANK * inputs), inputs);
        let share = [Operand::plain(next_d_mid, 2 * RANK), a];
        let weight = Operand::plain(self.dense(&layer.up.matrix), inputs);
        let product = [Operand::plain(d_up, 2 * width), weight];
        self.product_and_share(to, product, share, [rows, inputs, 2 * width, 2 * RANK]);
        self.side.run(Lane::Gradients, &[h.first(0), next_d_mid], &[gradients.first(0)], || {
            self.a_gradients(gradients, [h, d_up_mid], layer.up, rows);
        });
    }

    /// Starts one of the kernels of [`SHARED`].
    ///
    /// # Safety
    /// As [`super::device::Device::launch`].
    unsafe fn launch_gate<const N: usize>(&self, which: usize, grid: usize, args: [Arg; N]) {
        let (kernel, shared) = SHARED[which];
        // SAFETY: by contract.
        unsafe { self.device.launch(Lane::Main, self.functions[kernel], grid, 256, shared, args) }
    }

    /// `mid = scale * x down`, beside the main stream. Shapes: `mid` `(rows, ranks)`, `x` `(rows, sums)`.
    fn narrow_product(
        &self,
        mid: u64,
        ranks: usize,
        x: Operand,
        down: Operand,
        [rows, sums]: [usize; 2],
        scale: f32,
    ) {
        self.side.run(Lane::Mid, &[x.address], &[mid], || {
            let place = Place { address: mid, stride: ranks, wide: false, add: false };
            // SAFETY: callers give the shapes of a layer, and buffers that are long enough.
            unsafe { self.products.run(Lane::Mid, place, x, down, [rows, ranks, sums], scale) }
        });
    }

    /// `to (+)= x weight + mid up`, of two pairs with sums of these lengths; the large product reads what is there.
    fn product_and_share(
        &self,
        to: Place,
        [x, weight]: [Operand; 2],
        [mid, up]: [Operand; 2],
        [rows, columns, sums, ranks]: [usize; 4],
    ) {
        // SAFETY: callers give the shapes of a layer, and buffers that are long enough.
        unsafe {
            self.products.run(Lane::Main, to, mid, up, [rows, columns, ranks], 1.0);
            let to = Place { add: true, ..to };
            self.products.run(Lane::Main, to, x, weight, [rows, columns, sums], 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_knows_the_same_sizes() {
        let source = include_str!("source/gates.cu");
        for (name, value) in [
            ("RANK", RANK),
            ("TILE_ROWS", TILE_ROWS),
            ("TILE_COLUMNS", COLUMNS / 8),
            ("GATE_WARPS", 8),
            ("SUM_COLUMNS", SUM_COLUMNS),
        ] {
            assert!(source.contains(&format!("constexpr u32 {name} = {value};")), "{name}");
        }
    }
}
