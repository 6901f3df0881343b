//! The list of ops, by the kernels of `source` and by cuBLASLt.

use std::ops::Range;

use cudarc::driver::result;

use super::device::{Lane, Values};
use super::error::Doing;
use super::linear::{Adapter, BLOCK_VALUES, Matrix};
use super::nccl::Group;
use super::pass::{Pass, Section, bucket};
use super::record::Recording;
use super::scratch::Kind;
use super::{Cuda, args};
use crate::{
    Activation, AdamW, AttentionShape, Backend, BlockFormat, Direction, Encoding, Gate, GatedLayer,
    KvColumns, Linear, Norm, Output, PassSpec, bf16, feed_forward,
};

type Wide = Values<f32>;
type Narrow = Values<bf16>;

/// Partial sums of squares.
const SQUARES: usize = 1024;

impl Cuda {
    pub(super) fn copy_bytes(&self, to: u64, from: u64, bytes: usize) {
        self.side.join();
        self.device.bind();
        // SAFETY: callers give addresses of at least so many bytes.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.device.stream(Lane::Main)) }.certain("copy");
    }

    /// Rows of a table.
    fn rows_of_table(&self, x: &mut Wide, table: &Matrix, index: Section, add: u32) {
        let (rows, width) = (index.count, table.cols());
        let (values, format) = table.stored();
        // SAFETY: the pass names rows of the table.
        unsafe {
            let args = args![x.first(rows * width), values, format, index.address, rows, width, add];
            self.launch("embed", rows, 128, args);
        }
    }

    /// `to[t] = from[index[t]]`, zeros where there is no index.
    fn gather_rows(&self, kernel: &str, to: u64, from: u64, index: Section, width: usize) {
        // SAFETY: callers give buffers that hold the pass's rows.
        unsafe {
            let args = args![to, from, index.address, index.count, width];
            self.launch_beside([&[from], &[to]], kernel, index.count, 128, args);
        }
    }

    /// Adds a norm's input gradient to `d_x`, and puts the rounded sum where `rounded` says, if it is not 0.
    fn norm_gradient(
        &self,
        rounded: u64,
        d_x: &mut Wide,
        d_h: &Wide,
        (unit, rstd): (&Narrow, &Wide),
        norm: &Norm<Self>,
        rows: usize,
    ) {
        let len = rows * norm.width;
        let (d_x, d_h, unit, rstd) = (d_x.first(len), d_h.first(len), unit.first(len), rstd.first(rows));
        let (weight, center) = (norm.weight.first(norm.width), u32::from(norm.center));
        // SAFETY: the lengths were checked.
        unsafe {
            let args = args![rounded, d_x, d_h, unit, rstd, weight, center, rows, norm.width];
            self.launch_beside([&[d_h, unit, rstd], &[d_x, rounded]], "norm_backward", rows, 256, args);
        }
    }

    /// A kernel over `len` values, beside the side stream.
    ///
    /// # Safety
    /// As [`Cuda::launch_beside`].
    unsafe fn each<const N: usize>(
        &self,
        touches: [&[u64]; 2],
        kernel: &str,
        len: usize,
        args: [super::Arg; N],
    ) {
        // SAFETY: by contract.
        unsafe { self.launch_beside(touches, kernel, len.div_ceil(BLOCK_VALUES), 256, args) }
    }
}

impl Backend for Cuda {
    type Wide = Wide;
    type Narrow = Narrow;
    type Matrix = Matrix;
    type Adapter = Adapter;
    type Pass = Pass;
    type Recording = Recording;
    type Group = Group;

    fn name(&self) -> String {
        format!("cuda {} {}", self.device.name, if self.device.f16 { "f16" } else { "bf16" })
    }
    fn scales_loss(&self) -> bool {
        self.device.f16
    }
    fn peak_flops(&self) -> f64 {
        self.large_products()
    }
    fn expect_heads(&self, head_dim: usize) {
        Self::expect_heads(self, head_dim);
    }
    fn rows_at_once(&self) -> usize {
        3072
    }
    fn peak_bytes(&self) -> Option<usize> {
        Some(self.device.most_held())
    }
    fn free_bytes(&self) -> Option<usize> {
        Some(self.device.memory().0)
    }
    fn join(devices: &[&Self]) -> Group {
        Group::join(devices)
    }
    fn sum(group: &Group, parts: &mut [(&Self, &mut Wide)]) {
        group.sum(parts);
    }

    fn wide(&self, len: usize) -> Wide {
        Values::new(&self.device, len)
    }
    fn narrow(&self, len: usize) -> Narrow {
        Values::new(&self.device, len)
    }
    fn wide_len(&self, buffer: &Wide) -> usize {
        buffer.len
    }
    fn narrow_len(&self, buffer: &Narrow) -> usize {
        buffer.len
    }
    fn upload(&self, buffer: &mut Wide, at: usize, values: &[f32]) {
        self.side.join();
        buffer.memory.upload(4 * at, values);
    }
    fn download(&self, out: &mut [f32], buffer: &Wide, at: usize) {
        self.side.join();
        buffer.memory.download(out, 4 * at);
    }
    fn pass(&self, spec: &PassSpec<'_>, reuse: Option<Pass>) -> Pass {
        Pass::new(&self.device, spec, reuse)
    }
    fn room(&self, rows: usize) -> usize {
        bucket(rows)
    }
    fn rows(&self, pass: &Pass) -> usize {
        pass.rows
    }
    fn chosen(&self, pass: &Pass) -> usize {
        pass.chosen
    }
    fn record(&self, recording: &mut Recording, pass: &Pass, body: impl FnOnce()) {
        recording.run((&self.device, &self.side), (pass.key(), self.scratch.version()), pass.rows, body);
    }
    fn copy(&self, to: &mut Narrow, from: &Narrow, len: usize) {
        if len > 0 {
            self.copy_bytes(to.first(len), from.first(len), 2 * len);
        }
    }
    fn round(&self, to: &mut Narrow, from: &Wide, len: usize) {
        // SAFETY: both hold `len` values.
        unsafe {
            let (to, from) = (to.first(len), from.first(len));
            self.each([&[from], &[to]], "round_wide", len, args![to, from, len]);
        }
    }
    fn widen(&self, to: &mut Wide, from: &Narrow, len: usize) {
        // SAFETY: both hold `len` values.
        unsafe {
            let (to, from) = (to.first(len), from.first(len));
            self.each([&[from], &[to]], "widen", len, args![to, from, len]);
        }
    }
    fn clear(&self, buffer: &mut Wide, len: usize) {
        if len > 0 {
            self.side.join();
            self.device.bind();
            // SAFETY: the buffer holds `len` values.
            unsafe { result::memset_d8_async(buffer.first(len), 0, 4 * len, self.device.stream(Lane::Main)) }
                .certain("clear");
        }
    }
    fn matrix(&self, rows: usize, cols: usize, read: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Matrix {
        self.dense_matrix(rows, cols, read)
    }
    fn matrix_from_blocks(&self, format: BlockFormat, rows: usize, cols: usize, raw: &[u8]) -> Matrix {
        self.matrix_of_blocks(format, rows, cols, raw)
    }
    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.bytes()
    }

    fn embed(&self, x: &mut Wide, table: &Matrix, pass: &Pass) {
        self.rows_of_table(x, table, pass.tokens, 0);
    }
    fn add_positions(&self, x: &mut Wide, table: &Matrix, pass: &Pass) {
        self.rows_of_table(x, table, pass.positions, 1);
    }

    fn gather(&self, to: &mut Wide, from: &Wide, pass: &Pass, width: usize) {
        let (to, from) = (to.first(pass.chosen * width), from.first(pass.rows * width));
        self.gather_rows("gather_wide", to, from, pass.chosen_rows, width);
    }
    fn spread(&self, to: &mut Wide, from: &Wide, pass: &Pass, width: usize) {
        let (to, from) = (to.first(pass.rows * width), from.first(pass.chosen * width));
        self.gather_rows("gather_wide", to, from, pass.places_of_chosen, width);
    }
    fn gather_narrow(&self, to: &mut Narrow, from: &Narrow, pass: &Pass, width: usize) {
        let (to, from) = (to.first(pass.chosen * width), from.first(pass.rows * width));
        self.gather_rows("gather_narrow", to, from, pass.chosen_rows, width);
    }
    fn spread_narrow(&self, to: &mut Narrow, from: &Narrow, pass: &Pass, width: usize) {
        let (to, from) = (to.first(pass.rows * width), from.first(pass.chosen * width));
        self.gather_rows("gather_narrow", to, from, pass.places_of_chosen, width);
    }

    fn norm(
        &self,
        h: &mut Narrow,
        unit: &mut Narrow,
        rstd: &mut Wide,
        x: &Wide,
        norm: &Norm<Self>,
        rows: usize,
    ) {
        let len = rows * norm.width;
        let bias = norm.bias.as_ref().map_or(0, |bias| bias.first(norm.width));
        let (h, unit, rstd, x) = (h.first(len), unit.first(len), rstd.first(rows), x.first(len));
        let (weight, center) = (norm.weight.first(norm.width), u32::from(norm.center));
        // SAFETY: the lengths were checked.
        unsafe {
            let args = args![h, unit, rstd, x, weight, bias, norm.eps, center, rows, norm.width];
            self.launch("norm_forward", rows, 256, args);
        }
    }
    fn norm_again(&self, h: &mut Narrow, unit: &Narrow, norm: &Norm<Self>, rows: usize) {
        let len = rows * norm.width;
        let bias = norm.bias.as_ref().map_or(0, |bias| bias.first(norm.width));
        let (h, unit, weight) = (h.first(len), unit.first(len), norm.weight.first(norm.width));
        // Only the gradients of parameters read it.
        self.side.run(Lane::Gradients, &[unit], &[h], || {
            let args = args![h, unit, weight, bias, rows, norm.width];
            // SAFETY: the lengths were checked.
            unsafe { self.device.launch(Lane::Gradients, self.functions["norm_again"], rows, 256, 0, args) }
        });
    }
    fn norm_backward(
        &self,
        d_x: &mut Wide,
        d_h: &Wide,
        unit: &Narrow,
        rstd: &Wide,
        norm: &Norm<Self>,
        rows: usize,
    ) {
        self.norm_gradient(0, d_x, d_h, (unit, rstd), norm, rows);
    }
    fn norm_backward_rounded(
        &self,
        rounded: &mut Narrow,
        d_x: &mut Wide,
        d_h: &Wide,
        unit: &Narrow,
        rstd: &Wide,
        norm: &Norm<Self>,
        rows: usize,
    ) {
        let rounded = rounded.first(rows * norm.width);
        self.norm_gradient(rounded, d_x, d_h, (unit, rstd), norm, rows);
    }

    fn refresh(&self, linear: &mut Linear<Self>, parameters: &Wide) {
        self.lay_out(&mut [linear], parameters);
    }
    fn refresh_all(&self, linears: &mut [&mut Linear<Self>], parameters: &Wide) {
        self.lay_out(linears, parameters);
    }
    fn merge(&self, linear: &mut Linear<Self>, _encoding: Encoding) {
        linear.matrix = self.merged(linear);
        (linear.slots, linear.adapter) = (Vec::new(), None);
    }
    fn encode(&self, matrix: &Matrix, _encoding: Encoding) -> Matrix {
        self.dense_copy(matrix)
    }
    fn linear(&self, y: Output<'_, Self>, mid: &mut Narrow, x: &Narrow, linear: &Linear<Self>, rows: usize) {
        self.linear_forward(y, mid, x, linear, rows);
    }
    fn linear_backward(
        &self,
        d_x: Output<'_, Self>,
        d_mid: &mut Narrow,
        d_y: &Narrow,
        linear: &Linear<Self>,
        rows: usize,
    ) {
        self.input_gradient(d_x, d_mid, d_y, linear, rows);
    }
    fn adapter_backward(
        &self,
        gradients: &mut Wide,
        x: &Narrow,
        mid: &Narrow,
        d_y: &Narrow,
        d_mid: &Narrow,
        linear: &Linear<Self>,
        rows: usize,
    ) {
        self.adapter_gradients(gradients, [x, mid, d_y, d_mid], linear, rows);
    }

    fn rotary(
        &self,
        qkv: &mut Narrow,
        table: &Wide,
        pass: &Pass,
        shape: &AttentionShape,
        direction: Direction,
    ) {
        let (rows, stride) = (pass.rows, shape.qkv_width());
        let sign = match direction {
            Direction::Forward => 1.0f32,
            Direction::Backward => -1.0,
        };
        // SAFETY: the buffer holds the pass's rows; the engine keeps positions below the table's.
        unsafe {
            let (qkv, table) = (qkv.first(rows * stride), table.first(0));
            let rotated = shape.heads + shape.kv_heads;
            let args = args![qkv, table, pass.positions.address, rotated, shape.head_dim, stride, rows, sign];
            self.launch_beside([&[], &[qkv]], "rotary", rows, 128, args);
        }
    }

    fn store_kv(&self, cache: &mut Narrow, qkv: &Narrow, pass: &Pass, shape: &AttentionShape) {
        let (rows, width) = (pass.rows, shape.qkv_width());
        // SAFETY: the buffer holds the pass's rows; the engine has made room in the cache.
        unsafe {
            let (cache, qkv) = (cache.first(0), qkv.first(rows * width));
            let args = args![cache, qkv, pass.kv_rows.address, rows, width, shape.q_width()];
            self.launch("store_kv", rows, 128, args);
        }
    }
    fn attention(
        &self,
        out: &mut Narrow,
        lse: &mut Wide,
        qkv: &Narrow,
        kv: &Narrow,
        columns: KvColumns,
        pass: &Pass,
        shape: &AttentionShape,
    ) {
        self.attention_forward(out, lse, [qkv, kv], columns, pass, shape);
    }
    fn attention_backward(
        &self,
        d_qkv: &mut Narrow,
        d_out: &Narrow,
        out: &Narrow,
        lse: &Wide,
        qkv: &Narrow,
        pass: &Pass,
        shape: &AttentionShape,
    ) {
        self.attention_gradient(d_qkv, [d_out, out, qkv], lse, pass, shape);
    }

    fn gated(&self, act: &mut Narrow, gate_up: &Narrow, Gate::Silu: Gate, rows: usize, width: usize) {
        let len = rows * width;
        // SAFETY: the lengths are checked.
        unsafe {
            let (act, gate_up) = (act.first(len), gate_up.first(2 * len));
            self.each([&[gate_up], &[act]], "gated", len, args![act, gate_up, rows, width]);
        }
    }
    fn gated_backward(
        &self,
        act: &mut Narrow,
        gate_up: &mut Narrow,
        Gate::Silu: Gate,
        rows: usize,
        width: usize,
    ) {
        let len = rows * width;
        let (act, gate_up) = (act.first(len), gate_up.first(2 * len));
        // SAFETY: the lengths were checked.
        unsafe {
            self.each([&[], &[act, gate_up]], "gated_backward", len, args![act, gate_up, rows, width]);
        }
    }

    fn feed_forward(
        &self,
        y: Output<'_, Self>,
        act: &mut Narrow,
        up: &mut Narrow,
        mids: [&mut Narrow; 2],
        h: &Narrow,
        layer: &GatedLayer<'_, Self>,
        rows: usize,
    ) {
        if self.joins_gate(layer, rows) {
            self.joined_forward(y, act, up, mids, h, layer, rows);
        } else {
            feed_forward::forward(self, y, act, up, mids, h, layer, rows);
        }
    }
    fn feed_forward_backward(
        &self,
        gradients: &mut Wide,
        d_h: Output<'_, Self>,
        d_mids: [&mut Narrow; 2],
        act: &mut Narrow,
        up: &mut Narrow,
        mids: [&Narrow; 2],
        h: &Narrow,
        d_y: &Narrow,
        layer: &GatedLayer<'_, Self>,
        rows: usize,
    ) {
        if self.joins_gate(layer, rows) {
            self.joined_backward(gradients, d_h, d_mids, act, up, mids, h, d_y, layer, rows);
        } else {
            feed_forward::backward(self, gradients, d_h, d_mids, act, up, mids, h, d_y, layer, rows);
        }
    }

    fn activation(&self, act: &mut Narrow, up: &Narrow, activation: Activation, rows: usize, width: usize) {
        let len = rows * width;
        // SAFETY: the lengths are checked.
        unsafe {
            let (act, up) = (act.first(len), up.first(len));
            self.each([&[up], &[act]], "activation", len, args![act, up, tanh(activation), len]);
        }
    }
    fn activation_backward(
        &self,
        act: &mut Narrow,
        up: &mut Narrow,
        activation: Activation,
        rows: usize,
        width: usize,
    ) {
        let len = rows * width;
        let (act, up) = (act.first(len), up.first(len));
        // SAFETY: the lengths were checked.
        unsafe {
            self.each([&[], &[act, up]], "activation_backward", len, args![act, up, tanh(activation), len]);
        }
    }

    fn cross_entropy(&self, losses: &mut Wide, d_h: &mut Wide, h: &Narrow, head: &Matrix, pass: &Pass) {
        self.loss(losses, d_h, None, h, head, pass);
    }
    fn log_probs(&self, out: &mut Wide, h: &Narrow, head: &Matrix, pass: &Pass) {
        self.log_probabilities(out, h, head, pass);
    }
    fn repack(&self, matrix: &mut Matrix, parameters: &Wide, at: usize, shared: Option<usize>) {
        self.replace_values(matrix, parameters, at, shared);
    }
    fn take(&self, to: &mut Wide, from: &Wide, at: usize) {
        self.copy_bytes(to.first(to.len), from.at(at, to.len), 4 * to.len);
    }
    fn weight_backward(
        &self,
        gradients: &mut Wide,
        at: usize,
        x: &Narrow,
        d_y: &Narrow,
        linear: &Linear<Self>,
        rows: usize,
    ) {
        self.weight_gradient(gradients, at, [x, d_y], linear, rows);
    }
    fn bias_backward(&self, gradients: &mut Wide, at: usize, d_y: &Narrow, width: usize, rows: usize) {
        self.bias_gradient(gradients, at, d_y, width, rows);
    }
    fn norm_parameters_backward(
        &self,
        gradients: &mut Wide,
        weight: usize,
        bias: Option<usize>,
        d_h: &Wide,
        unit: &Narrow,
        width: usize,
        rows: usize,
    ) {
        self.norm_gradients(gradients, (weight, bias), (d_h, unit), width, rows);
    }
    fn embed_backward(&self, gradients: &mut Wide, at: usize, d_x: &Wide, pass: &Pass, width: usize) {
        self.table_gradient(gradients, at, d_x, pass.tokens, width);
    }
    fn positions_backward(&self, gradients: &mut Wide, at: usize, d_x: &Wide, pass: &Pass, width: usize) {
        self.table_gradient(gradients, at, d_x, pass.positions, width);
    }
    fn cross_entropy_with_head(
        &self,
        losses: &mut Wide,
        d_h: &mut Wide,
        gradients: (&mut Wide, usize),
        h: &Narrow,
        head: &Matrix,
        pass: &Pass,
    ) {
        self.loss(losses, d_h, Some(gradients), h, head, pass);
    }
    fn square_sum(&self, values: &Wide) -> f64 {
        let parts = self.scratch.take(Kind::Squares, 8 * SQUARES);
        // SAFETY: scratch holds the parts.
        unsafe { self.launch("square_sum", SQUARES, 256, args![parts, values.first(values.len), values.len]) }
        let mut sums = [0.0f64; SQUARES];
        self.scratch.download(Kind::Squares, &mut sums);
        sums.iter().sum()
    }
    fn adamw(
        &self,
        parameters: &mut Wide,
        gradients: &Wide,
        first: &mut Wide,
        second: &mut Wide,
        range: Range<usize>,
        step: &AdamW,
    ) {
        let (size, root, keep) = step.factors();
        let at = |values: &Wide| values.at(range.start, range.len());
        let args = args![
            at(parameters),
            at(gradients),
            at(first),
            at(second),
            range.len(),
            size,
            root,
            keep,
            step.beta1,
            step.beta2,
            step.eps,
            step.gradient_scale
        ];
        // SAFETY: the lengths were checked.
        unsafe { self.launch("adamw", range.len().div_ceil(1024), 256, args) }
    }
}

fn tanh(activation: Activation) -> u32 {
    match activation {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
    }
}
