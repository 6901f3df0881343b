//! The list of ops that a device offers to the engine.

use crate::{
    Activation, AdamW, AttentionShape, BlockFormat, Direction, Encoding, Gate, GatedLayer, Images, KvColumns,
    Linear, Norm, TreeLayout, feed_forward,
};

/// Where a product goes.
pub enum Output<'a, B: Backend> {
    /// Overwrites activations.
    Narrow(&'a mut B::Narrow),
    /// Overwrites f32 values.
    Wide(&'a mut B::Wide),
    /// Adds to f32 values (the residual stream).
    Add(&'a mut B::Wide),
}

/// What one pass computes, as the engine describes it.
#[derive(Debug, Clone, Copy)]
pub struct PassSpec<'a> {
    /// The token of each row.
    pub tokens: &'a [u32],
    /// The position of each row.
    pub positions: &'a [u32],
    /// Who may look at whom.
    pub layout: &'a TreeLayout,
    /// Rows that are wanted after the last block, in order, each once.
    pub chosen: &'a [u32],
    /// The token that should follow each chosen row; empty when there is no loss.
    pub targets: &'a [u32],
    /// Factor of each chosen row's loss; as long as `targets`.
    pub weights: &'a [f32],
    /// `(index into chosen, token)` whose log-probability is asked for, sorted by the index.
    pub wanted: &'a [(u32, u32)],
}

/// A device: its buffers and its ops.
///
/// Ops never allocate device memory in the steady state, are deterministic (same inputs, same bytes), and panic on
/// a broken contract (a buffer too short); everything that meets user data is checked before it gets here. Buffers
/// may be longer than an op needs: each op touches the leading `rows * width` values.
pub trait Backend: Sized + Send + Sync + 'static {
    /// f32 values: residual stream, parameters, gradients, optimizer state.
    type Wide: Send + Sync;
    /// Activations in the backend's compute type.
    type Narrow: Send + Sync;
    /// A frozen matrix `(O, I)`, laid out for products.
    type Matrix: Send + Sync;
    /// The LoRA matrices of one linear layer, laid out for the products of the current step.
    type Adapter: Send + Sync;

    /// What a pass computes, on the device: tokens, tree, chosen rows, targets.
    type Pass: Send + Sync;
    /// Ops recorded once and replayed, for devices where starting an op costs more than a small op.
    type Recording: Default + Send + Sync;
    /// What some devices need to add up their buffers; shown as the way in which they do it.
    type Group: std::fmt::Display + Send + Sync;

    /// What runs and how, for reports: `cpu avx512 bf16`.
    fn name(&self) -> String;
    /// Most bytes of device memory held at a time; `None` where memory is the process's own.
    fn peak_bytes(&self) -> Option<usize> {
        None
    }

    /// Bytes of device memory that can still be had; `None` where memory is the process's own.
    fn free_bytes(&self) -> Option<usize> {
        None
    }
    /// Whether activations are f16, so that small gradients vanish and large ones overflow unless the loss is scaled.
    fn scales_loss(&self) -> bool {
        false
    }
    /// Begins, beside what comes next, to prepare attention with heads of `head_dim` values; without it the first pass
    /// does.
    fn expect_heads(&self, _head_dim: usize) {}
    /// Operations a second (a multiply-add counts as two) of products whose operands are near; measured.
    fn peak_flops(&self) -> f64;
    /// Rows of a pass that keep the device busy; more take memory and save little time.
    fn rows_at_once(&self) -> usize;

    /// Joins devices, in this order, for [`Backend::sum`].
    fn join(devices: &[&Self]) -> Self::Group;
    /// Replaces each device's buffer by the sum of all, the same bits everywhere. They are as long as each other.
    fn sum(group: &Self::Group, parts: &mut [(&Self, &mut Self::Wide)]);

    /// Bytes of an activation.
    fn narrow_size(&self) -> usize {
        2
    }
    /// `len` zeros.
    fn wide(&self, len: usize) -> Self::Wide;
    /// `len` zeros.
    fn narrow(&self, len: usize) -> Self::Narrow;
    /// Number of values.
    fn wide_len(&self, buffer: &Self::Wide) -> usize;
    /// Number of values.
    fn narrow_len(&self, buffer: &Self::Narrow) -> usize;
    /// Copies host values to `buffer[at..]`.
    fn upload(&self, buffer: &mut Self::Wide, at: usize, values: &[f32]);
    /// Copies `buffer[at..at + out.len()]` to the host.
    fn download(&self, out: &mut [f32], buffer: &Self::Wide, at: usize);
    /// Brings a pass to the device, into the memory of an earlier one where there is one.
    fn pass(&self, spec: &PassSpec<'_>, reuse: Option<Self::Pass>) -> Self::Pass;
    /// Rows that buffers must hold for passes of up to `rows` rows.
    fn room(&self, rows: usize) -> usize;
    /// Rows that ops over the pass's tokens touch: its tokens, and as many idle rows as the device likes.
    fn rows(&self, pass: &Self::Pass) -> usize;
    /// Rows that ops over the pass's chosen rows touch.
    fn chosen(&self, pass: &Self::Pass) -> usize;
    /// Runs `body`, or replays what it did for an earlier pass of the same size. `body` must only call ops, and
    /// always on the same buffers; drop the recording with the first of them.
    fn record(&self, recording: &mut Self::Recording, pass: &Self::Pass, body: impl FnOnce());
    /// Copies the first `len` values.
    fn copy(&self, to: &mut Self::Narrow, from: &Self::Narrow, len: usize);
    /// Copies the first `len` values, rounded to the compute type.
    fn round(&self, to: &mut Self::Narrow, from: &Self::Wide, len: usize);
    /// Copies the first `len` values of activations as f32.
    fn widen(&self, to: &mut Self::Wide, from: &Self::Narrow, len: usize);
    /// Sets the first `len` values to zero.
    fn clear(&self, buffer: &mut Self::Wide, len: usize);
    /// Builds a frozen `(rows, cols)` matrix; `read(row, out)` fills one row, on any thread.
    fn matrix(&self, rows: usize, cols: usize, read: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Self::Matrix;
    /// Builds a frozen `(rows, cols)` matrix that keeps the few bits of a file's blocks, row-major; products are the
    /// same as with the expanded matrix. `cols` is a multiple of 32.
    fn matrix_from_blocks(&self, format: BlockFormat, rows: usize, cols: usize, raw: &[u8]) -> Self::Matrix;
    /// What images of matrices depend on beside the matrix; `None` where the device makes none.
    fn image_layout(&self) -> Option<String> {
        None
    }
    /// Writes a matrix as it lies in memory, for [`Backend::matrix_from_image`] of a device with the same layout.
    ///
    /// # Errors
    /// When `out` does not take it, or the device makes no images.
    fn write_image(&self, _matrix: &Self::Matrix, _out: &mut dyn std::io::Write) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    /// The next matrix of `images`, which stays where it is; `None` when it is not one of `rows` by `cols`.
    fn matrix_from_image(&self, _rows: usize, _cols: usize, _images: &mut Images) -> Option<Self::Matrix> {
        None
    }
    /// Bytes that a matrix occupies.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;

    /// `x[t] = table[tokens[t]]`. Shapes: `x` `(T, C)`, `table` `(V, C)`.
    fn embed(&self, x: &mut Self::Wide, table: &Self::Matrix, pass: &Self::Pass);

    /// `x[t] += table[positions[t]]`. Shapes: `x` `(T, C)`, `table` `(positions, C)`.
    fn add_positions(&self, x: &mut Self::Wide, table: &Self::Matrix, pass: &Self::Pass);

    /// `to[i] = from[chosen[i]]`, rows of `width` values.
    fn gather(&self, to: &mut Self::Wide, from: &Self::Wide, pass: &Self::Pass, width: usize);
    /// `to[chosen[i]] = from[i]`, and zero in the pass's other rows.
    fn spread(&self, to: &mut Self::Wide, from: &Self::Wide, pass: &Self::Pass, width: usize);
    /// [`Backend::gather`] for activations.
    fn gather_narrow(&self, to: &mut Self::Narrow, from: &Self::Narrow, pass: &Self::Pass, width: usize);
    /// [`Backend::spread`] for activations.
    fn spread_narrow(&self, to: &mut Self::Narrow, from: &Self::Narrow, pass: &Self::Pass, width: usize);

    /// `unit = (x - mean) * rstd` (mean only for LayerNorm), `h = unit * weight + bias`. Overwrites all three.
    /// Shapes: `h`, `unit`, `x` `(T, C)`; `rstd` `(T)`. `unit` and `rstd` are what the backward pass needs.
    fn norm(
        &self,
        h: &mut Self::Narrow,
        unit: &mut Self::Narrow,
        rstd: &mut Self::Wide,
        x: &Self::Wide,
        norm: &Norm<Self>,
        rows: usize,
    );
    /// `h = unit * weight + bias`: what [`Backend::norm`] wrote, once more, for the gradients of parameters.
    fn norm_again(&self, h: &mut Self::Narrow, unit: &Self::Narrow, norm: &Norm<Self>, rows: usize);
    /// Adds the input gradient to `d_x`. Shapes: `d_x`, `d_h` `(T, C)`.
    fn norm_backward(
        &self,
        d_x: &mut Self::Wide,
        d_h: &Self::Wide,
        unit: &Self::Narrow,
        rstd: &Self::Wide,
        norm: &Norm<Self>,
        rows: usize,
    );

    /// [`Backend::norm_backward`], then [`Backend::round`] of `d_x` to `rounded`.
    fn norm_backward_rounded(
        &self,
        rounded: &mut Self::Narrow,
        d_x: &mut Self::Wide,
        d_h: &Self::Wide,
        unit: &Self::Narrow,
        rstd: &Self::Wide,
        norm: &Norm<Self>,
        rows: usize,
    ) {
        self.norm_backward(d_x, d_h, unit, rstd, norm, rows);
        self.round(rounded, d_x, rows * norm.width);
    }

    /// Lays out the layer's LoRA matrices from the parameters `(all slots' A and B)` for this step's products.
    fn refresh(&self, linear: &mut Linear<Self>, parameters: &Self::Wide);
    /// [`Backend::refresh`] for many layers, all with slots.
    fn refresh_all(&self, linears: &mut [&mut Linear<Self>], parameters: &Self::Wide) {
        for linear in linears {
            self.refresh(linear, parameters);
        }
    }
    /// Puts `W + scale B A` in place of the frozen matrix, and takes the slots away: for routing. A device without
    /// products of integers keeps the compute type instead.
    fn merge(&self, linear: &mut Linear<Self>, encoding: Encoding);
    /// A copy of a frozen matrix in another encoding.
    fn encode(&self, matrix: &Self::Matrix, encoding: Encoding) -> Self::Matrix;
    /// `mid = scale * x A^T` for every slot, `y = x W^T + bias + mid B^T`.
    /// Shapes: `y` `(T, O)`, `x` `(T, I)`, `mid` `(T, sum of R)`.
    fn linear(
        &self,
        y: Output<'_, Self>,
        mid: &mut Self::Narrow,
        x: &Self::Narrow,
        linear: &Linear<Self>,
        rows: usize,
    );
    /// `d_mid = scale * d_y B`, `d_x = d_y W + d_mid A`. Shapes as in [`Backend::linear`].
    fn linear_backward(
        &self,
        d_x: Output<'_, Self>,
        d_mid: &mut Self::Narrow,
        d_y: &Self::Narrow,
        linear: &Linear<Self>,
        rows: usize,
    );
    /// Adds `d_mid^T x` to each slot's A and `d_y^T mid` to its B in `gradients` (laid out as the parameters).
    fn adapter_backward(
        &self,
        gradients: &mut Self::Wide,
        x: &Self::Narrow,
        mid: &Self::Narrow,
        d_y: &Self::Narrow,
        d_mid: &Self::Narrow,
        linear: &Linear<Self>,
        rows: usize,
    );

    /// Rotates the query and key heads in place by their position's angles (rotate-half layout), or back.
    /// Shapes: `qkv` `(T, (H + 2 G) D)`, `table` `(positions, D)`: `D/2` cosines, then `D/2` sines.
    fn rotary(
        &self,
        qkv: &mut Self::Narrow,
        table: &Self::Wide,
        pass: &Self::Pass,
        shape: &AttentionShape,
        direction: Direction,
    );

    /// Copies each row's key and value columns of `qkv` to where the pass's layout wants them in `cache`, rows of
    /// `2 G D`.
    fn store_kv(
        &self,
        cache: &mut Self::Narrow,
        qkv: &Self::Narrow,
        pass: &Self::Pass,
        shape: &AttentionShape,
    );
    /// Attention over a token tree; also writes the log-sum-exp of each row and head.
    /// Shapes: `out` `(T, H D)`, `lse` `(T, H)`, `qkv` `(T, (H + 2 G) D)`, `kv` as `columns` says.
    fn attention(
        &self,
        out: &mut Self::Narrow,
        lse: &mut Self::Wide,
        qkv: &Self::Narrow,
        kv: &Self::Narrow,
        columns: KvColumns,
        pass: &Self::Pass,
        shape: &AttentionShape,
    );
    /// Writes the gradient of `qkv` (keys and values in the same buffer, all segments live).
    fn attention_backward(
        &self,
        d_qkv: &mut Self::Narrow,
        d_out: &Self::Narrow,
        out: &Self::Narrow,
        lse: &Self::Wide,
        qkv: &Self::Narrow,
        pass: &Self::Pass,
        shape: &AttentionShape,
    );

    /// `act = gate_fn(gate) * up`. Shapes: `act` `(T, F)`, `gate_up` `(T, 2 F)`: gates, then ups.
    fn gated(&self, act: &mut Self::Narrow, gate_up: &Self::Narrow, gate: Gate, rows: usize, width: usize);
    /// In place: `act` holds its gradient before and, once more, itself after; `gate_up` becomes its gradient.
    fn gated_backward(
        &self,
        act: &mut Self::Narrow,
        gate_up: &mut Self::Narrow,
        gate: Gate,
        rows: usize,
        width: usize,
    );

    /// A feed-forward layer with a gate: `up` and `mids[0]` from `h`, `act` from `up`, `y` and `mids[1]` from `act`.
    /// `up` is what [`Backend::feed_forward_backward`] of as many rows wants, and may lack LoRA's share.
    /// Shapes: `act` `(T, F)`, `up` `(T, 2 F)`, `h`, `y` `(T, C)`, `mids` as in [`Backend::linear`].
    fn feed_forward(
        &self,
        y: Output<'_, Self>,
        act: &mut Self::Narrow,
        up: &mut Self::Narrow,
        mids: [&mut Self::Narrow; 2],
        h: &Self::Narrow,
        layer: &GatedLayer<'_, Self>,
        rows: usize,
    ) {
        feed_forward::forward(self, y, act, up, mids, h, layer, rows);
    }
    /// The input gradient of a feed-forward layer and, in `gradients`, those of LoRA's matrices. `up` becomes its
    /// gradient; `act` is room for something. Shapes as in [`Backend::feed_forward`].
    fn feed_forward_backward(
        &self,
        gradients: &mut Self::Wide,
        d_h: Output<'_, Self>,
        d_mids: [&mut Self::Narrow; 2],
        act: &mut Self::Narrow,
        up: &mut Self::Narrow,
        mids: [&Self::Narrow; 2],
        h: &Self::Narrow,
        d_y: &Self::Narrow,
        layer: &GatedLayer<'_, Self>,
        rows: usize,
    ) {
        feed_forward::backward(self, gradients, d_h, d_mids, act, up, mids, h, d_y, layer, rows);
    }

    /// `act = f(up)`. Shapes: `act`, `up` `(T, F)`.
    fn activation(
        &self,
        act: &mut Self::Narrow,
        up: &Self::Narrow,
        activation: Activation,
        rows: usize,
        width: usize,
    );
    /// In place, as [`Backend::gated_backward`].
    fn activation_backward(
        &self,
        act: &mut Self::Narrow,
        up: &mut Self::Narrow,
        activation: Activation,
        rows: usize,
        width: usize,
    );

    /// `losses[i] = -log softmax(h[i] W^T)[targets[i]]` and the gradient of `sum_i weights[i] losses[i]` by `h`, for
    /// the chosen rows. Shapes: `losses` `(L)`, `h`, `d_h` `(L, C)`, `head` `(V, C)`.
    fn cross_entropy(
        &self,
        losses: &mut Self::Wide,
        d_h: &mut Self::Wide,
        h: &Self::Narrow,
        head: &Self::Matrix,
        pass: &Self::Pass,
    );
    /// `out[i] = log softmax(h[index] W^T)[token]` for each `(index, token)` that the pass wants.
    fn log_probs(&self, out: &mut Self::Wide, h: &Self::Narrow, head: &Self::Matrix, pass: &Self::Pass);
    /// Replaces the values of a matrix in the compute type by `parameters[at..]`, row-major; where `shared` names a row
    /// of the parameters, it is added to each.
    fn repack(&self, matrix: &mut Self::Matrix, parameters: &Self::Wide, at: usize, shared: Option<usize>);
    /// Copies `from[at..]` to all of `to`.
    fn take(&self, to: &mut Self::Wide, from: &Self::Wide, at: usize);
    /// Adds `d_y^T x`, the gradient of the layer's matrix, to `gradients[at..]`.
    /// Shapes: `x` `(T, I)`, `d_y` `(T, O)`, the gradient `(O, I)`.
    fn weight_backward(
        &self,
        gradients: &mut Self::Wide,
        at: usize,
        x: &Self::Narrow,
        d_y: &Self::Narrow,
        linear: &Linear<Self>,
        rows: usize,
    );
    /// Adds the sum of the rows of `d_y` `(T, width)`, the gradient of a bias, to `gradients[at..]`.
    fn bias_backward(
        &self,
        gradients: &mut Self::Wide,
        at: usize,
        d_y: &Self::Narrow,
        width: usize,
        rows: usize,
    );
    /// Adds the gradient of a norm's weight to `gradients[weight..]`, and that of its bias to `gradients[bias..]`.
    /// Shapes: `d_h`, `unit` `(T, C)`.
    fn norm_parameters_backward(
        &self,
        gradients: &mut Self::Wide,
        weight: usize,
        bias: Option<usize>,
        d_h: &Self::Wide,
        unit: &Self::Narrow,
        width: usize,
        rows: usize,
    );
    /// Adds each row of `d_x` `(T, width)` to its token's row of `gradients[at..]`; idle rows hold zeros.
    fn embed_backward(
        &self,
        gradients: &mut Self::Wide,
        at: usize,
        d_x: &Self::Wide,
        pass: &Self::Pass,
        width: usize,
    );
    /// Adds each row of `d_x` `(T, width)` to its position's row of `gradients[at..]`; idle rows hold zeros.
    fn positions_backward(
        &self,
        gradients: &mut Self::Wide,
        at: usize,
        d_x: &Self::Wide,
        pass: &Self::Pass,
        width: usize,
    );
    /// [`Backend::cross_entropy`], which also adds the gradient of the head to `gradients[at..]`.
    fn cross_entropy_with_head(
        &self,
        losses: &mut Self::Wide,
        d_h: &mut Self::Wide,
        gradients: (&mut Self::Wide, usize),
        h: &Self::Narrow,
        head: &Self::Matrix,
        pass: &Self::Pass,
    );
    /// Sum of squares, summed in f64 in a fixed order.
    fn square_sum(&self, values: &Self::Wide) -> f64;
    /// One step on `range` of the parameters; `gradients` are multiplied by `gradient_scale` first.
    fn adamw(
        &self,
        parameters: &mut Self::Wide,
        gradients: &Self::Wide,
        first: &mut Self::Wide,
        second: &mut Self::Wide,
        range: std::ops::Range<usize>,
        step: &AdamW,
    );
}
