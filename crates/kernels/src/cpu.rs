//! The processor as a [`Backend`]: buffers are vectors, ops are the functions of this crate.

use std::marker::PhantomData;
use std::ops::Range;

use crate::linear::{Layer, PackedAdapter, PackedMatrix, Target};
use crate::{
    AdamW, AttentionShape, Backend, BlockFormat, Direction, Element, Gate, KvColumns, Linear, Norm, Output,
    TreeLayout, adamw, attention, cross_entropy, element, embed, gated, isa, linear, norm, rotary,
};

/// The processor, computing in `E`.
#[derive(Debug, Default)]
pub struct Cpu<E>(PhantomData<E>);

impl<E: Element> Cpu<E> {
    /// Uses the widest instruction set found (see [`isa::current`]) and all cores.
    pub fn new() -> Self {
        Self(PhantomData)
    }

    fn target(output: Output<'_, Self>) -> Target<'_, E> {
        match output {
            Output::Narrow(out) => Target::Narrow(out),
            Output::Wide(out) => Target::Wide(out),
            Output::Add(out) => Target::Add(out),
        }
    }

    fn layer(linear: &Linear<Self>) -> Layer<'_, E> {
        let adapter = linear.adapter.as_ref().filter(|_| !linear.slots.is_empty());
        assert!(
            adapter.is_some() || linear.slots.is_empty(),
            "a layer with LoRA slots must be refreshed before use"
        );
        Layer { matrix: &linear.matrix, bias: linear.bias.as_deref(), slots: &linear.slots, adapter }
    }

    fn params(norm: &Norm<Self>) -> norm::Params<'_> {
        norm::Params { weight: &norm.weight, bias: norm.bias.as_deref(), eps: norm.eps, center: norm.center }
    }
}

impl<E: Element> Backend for Cpu<E> {
    type Wide = Vec<f32>;
    type Narrow = Vec<E>;
    type Matrix = PackedMatrix<E>;
    type Adapter = PackedAdapter<E>;

    fn name(&self) -> String {
        format!("cpu {} {}", isa::current().name(), E::NAME)
    }

    fn wide(&self, len: usize) -> Vec<f32> {
        vec![0.0; len]
    }
    fn narrow(&self, len: usize) -> Vec<E> {
        vec![E::default(); len]
    }
    fn wide_len(&self, buffer: &Vec<f32>) -> usize {
        buffer.len()
    }
    fn narrow_len(&self, buffer: &Vec<E>) -> usize {
        buffer.len()
    }
    fn upload(&self, buffer: &mut Vec<f32>, at: usize, values: &[f32]) {
        buffer[at..][..values.len()].copy_from_slice(values);
    }
    fn download(&self, out: &mut [f32], buffer: &Vec<f32>, at: usize) {
        out.copy_from_slice(&buffer[at..][..out.len()]);
    }
    fn round(&self, to: &mut Vec<E>, from: &Vec<f32>, len: usize) {
        element::round(&mut to[..len], &from[..len]);
    }
    fn clear(&self, buffer: &mut Vec<f32>, len: usize) {
        buffer[..len].fill(0.0);
    }
    fn matrix(&self, rows: usize, cols: usize, read: &mut dyn FnMut(usize, &mut [f32])) -> PackedMatrix<E> {
        PackedMatrix::new(rows, cols, read)
    }
    fn matrix_from_blocks(
        &self,
        format: BlockFormat,
        rows: usize,
        cols: usize,
        raw: &[u8],
    ) -> PackedMatrix<E> {
        PackedMatrix::from_blocks(format, rows, cols, raw)
    }
    fn matrix_bytes(&self, matrix: &PackedMatrix<E>) -> usize {
        matrix.bytes()
    }

    fn embed(&self, x: &mut Vec<f32>, table: &PackedMatrix<E>, tokens: &[u32]) {
        embed::forward(x, table, tokens);
    }

    fn gather(&self, to: &mut Vec<f32>, from: &Vec<f32>, rows: &[u32], width: usize) {
        embed::gather(to, from, rows, width);
    }
    fn scatter_add(&self, to: &mut Vec<f32>, from: &Vec<f32>, rows: &[u32], width: usize) {
        for (from, &row) in from.chunks_exact(width).zip(rows) {
            let to = &mut to[row as usize * width..][..width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
    fn gather_narrow(&self, to: &mut Vec<E>, from: &Vec<E>, rows: &[u32], width: usize) {
        embed::gather(to, from, rows, width);
    }
    fn spread_narrow(&self, to: &mut Vec<E>, from: &Vec<E>, rows: &[u32], total: usize, width: usize) {
        to[..total * width].fill(E::default());
        for (from, &row) in from.chunks_exact(width).zip(rows) {
            to[row as usize * width..][..width].copy_from_slice(from);
        }
    }

    fn norm(
        &self,
        h: &mut Vec<E>,
        unit: &mut Vec<E>,
        rstd: &mut Vec<f32>,
        x: &Vec<f32>,
        norm: &Norm<Self>,
        rows: usize,
    ) {
        let len = rows * norm.width;
        norm::forward(&mut h[..len], &mut unit[..len], &mut rstd[..rows], &x[..len], Self::params(norm));
    }
    fn norm_again(&self, h: &mut Vec<E>, unit: &Vec<E>, norm: &Norm<Self>, rows: usize) {
        let len = rows * norm.width;
        norm::again(&mut h[..len], &unit[..len], Self::params(norm));
    }
    fn norm_backward(
        &self,
        d_x: &mut Vec<f32>,
        d_h: &Vec<f32>,
        unit: &Vec<E>,
        rstd: &Vec<f32>,
        norm: &Norm<Self>,
        rows: usize,
    ) {
        let len = rows * norm.width;
        norm::backward(&mut d_x[..len], &d_h[..len], &unit[..len], &rstd[..rows], Self::params(norm));
    }

    fn refresh(&self, linear: &mut Linear<Self>, parameters: &Vec<f32>) {
        linear.adapter.get_or_insert_default().refresh(parameters, &linear.slots, linear.inputs);
    }
    fn linear(&self, y: Output<'_, Self>, mid: &mut Vec<E>, x: &Vec<E>, linear: &Linear<Self>, rows: usize) {
        linear::forward(Self::target(y), mid, x, &Self::layer(linear), rows);
    }
    fn linear_backward(
        &self,
        d_x: Output<'_, Self>,
        d_mid: &mut Vec<E>,
        d_y: &Vec<E>,
        linear: &Linear<Self>,
        rows: usize,
    ) {
        linear::backward(Self::target(d_x), d_mid, d_y, &Self::layer(linear), rows);
    }
    fn adapter_backward(
        &self,
        gradients: &mut Vec<f32>,
        x: &Vec<E>,
        mid: &Vec<E>,
        d_y: &Vec<E>,
        d_mid: &Vec<E>,
        linear: &Linear<Self>,
        rows: usize,
    ) {
        linear::adapter_backward(gradients, x, mid, d_y, d_mid, &Self::layer(linear), rows);
    }

    fn rotary(
        &self,
        qkv: &mut Vec<E>,
        table: &Vec<f32>,
        positions: &[u32],
        shape: &AttentionShape,
        direction: Direction,
    ) {
        let len = positions.len() * shape.qkv_width();
        rotary::apply(&mut qkv[..len], table, positions, shape, direction);
    }

    fn store_kv(&self, cache: &mut Vec<E>, at: usize, qkv: &Vec<E>, shape: &AttentionShape, rows: usize) {
        let (from, to) = (shape.qkv_width(), 2 * shape.kv_width());
        for t in 0..rows {
            cache[(at + t) * to..][..to].copy_from_slice(&qkv[t * from + shape.q_width()..][..to]);
        }
    }
    fn attention(
        &self,
        out: &mut Vec<E>,
        lse: &mut Vec<f32>,
        qkv: &Vec<E>,
        kv: &Vec<E>,
        columns: KvColumns,
        tree: &TreeLayout,
        shape: &AttentionShape,
    ) {
        attention::forward(out, lse, qkv, kv, columns, tree, shape);
    }
    fn attention_backward(
        &self,
        d_qkv: &mut Vec<E>,
        d_out: &Vec<E>,
        out: &Vec<E>,
        lse: &Vec<f32>,
        qkv: &Vec<E>,
        tree: &TreeLayout,
        shape: &AttentionShape,
    ) {
        attention::backward(d_qkv, d_out, out, lse, qkv, tree, shape);
    }

    fn gated(&self, act: &mut Vec<E>, gate_up: &Vec<E>, gate: Gate, rows: usize, width: usize) {
        gated::forward(&mut act[..rows * width], &gate_up[..2 * rows * width], gate, width);
    }
    fn gated_backward(
        &self,
        d_gate_up: &mut Vec<E>,
        act: &mut Vec<E>,
        d_act: &Vec<E>,
        gate_up: &Vec<E>,
        gate: Gate,
        rows: usize,
        width: usize,
    ) {
        let len = rows * width;
        let (d_gate_up, gate_up) = (&mut d_gate_up[..2 * len], &gate_up[..2 * len]);
        gated::backward(d_gate_up, &mut act[..len], &d_act[..len], gate_up, gate, width);
    }

    fn cross_entropy(
        &self,
        losses: &mut [f32],
        d_h: Option<&mut Vec<f32>>,
        h: &Vec<E>,
        head: &PackedMatrix<E>,
        targets: &[u32],
        weights: &[f32],
    ) {
        cross_entropy::forward_backward(losses, d_h.map(Vec::as_mut_slice), h, head, targets, weights);
    }
    fn log_probs(
        &self,
        out: &mut [f32],
        h: &Vec<E>,
        rows: usize,
        head: &PackedMatrix<E>,
        wanted: &[(u32, u32)],
    ) {
        cross_entropy::log_probs(out, &h[..rows * head.cols()], head, wanted);
    }
    fn square_sum(&self, values: &Vec<f32>) -> f64 {
        adamw::square_sum(values)
    }
    fn adamw(
        &self,
        parameters: &mut Vec<f32>,
        gradients: &Vec<f32>,
        first: &mut Vec<f32>,
        second: &mut Vec<f32>,
        range: Range<usize>,
        step: &AdamW,
    ) {
        let (p, g) = (&mut parameters[range.clone()], &gradients[range.clone()]);
        adamw::step(p, g, &mut first[range.clone()], &mut second[range], step);
    }
}
