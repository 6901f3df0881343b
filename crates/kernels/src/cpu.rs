//! The processor as a [`Backend`]: buffers are vectors, ops are the functions of this crate.

use std::marker::PhantomData;
use std::ops::Range;

use crate::host_sum::{HostSum, sum_on_host};
use crate::linear::{Layer, PackedAdapter, PackedMatrix, Target};
use crate::{
    Activation, AdamW, AttentionShape, Backend, BlockFormat, Direction, Element, Encoding, Gate, Images,
    KvColumns, Linear, Norm, Output, PassSpec, TreeLayout, activation, adamw, attention, columns,
    cross_entropy, element, embed, gated, isa, linear, norm, rotary,
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

/// A pass on the host.
#[derive(Debug, Default)]
pub struct Pass {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    layout: TreeLayout,
    chosen: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    wanted: Vec<(u32, u32)>,
}

impl<E: Element> Backend for Cpu<E> {
    type Pass = Pass;
    type Recording = ();
    type Wide = Vec<f32>;
    type Narrow = Vec<E>;
    type Matrix = PackedMatrix<E>;
    type Adapter = PackedAdapter<E>;
    type Group = HostSum;

    fn name(&self) -> String {
        format!("cpu {} {}", isa::current().name(), E::NAME)
    }
    fn peak_flops(&self) -> f64 {
        linear::peak_flops::<E>()
    }
    fn rows_at_once(&self) -> usize {
        512
    }

    fn join(_: &[&Self]) -> HostSum {
        HostSum
    }
    fn sum(_: &HostSum, parts: &mut [(&Self, &mut Vec<f32>)]) {
        sum_on_host(parts);
    }

    fn narrow_size(&self) -> usize {
        size_of::<E>()
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
    fn pass(&self, spec: &PassSpec<'_>, reuse: Option<Pass>) -> Pass {
        fn fill<T: Copy>(to: &mut Vec<T>, from: &[T]) {
            to.clear();
            to.extend_from_slice(from);
        }
        spec.layout.assert_valid();
        let mut pass = reuse.unwrap_or_default();
        fill(&mut pass.tokens, spec.tokens);
        fill(&mut pass.positions, spec.positions);
        fill(&mut pass.layout.segments, &spec.layout.segments);
        fill(&mut pass.chosen, spec.chosen);
        fill(&mut pass.targets, spec.targets);
        fill(&mut pass.weights, spec.weights);
        fill(&mut pass.wanted, spec.wanted);
        pass
    }
    fn room(&self, rows: usize) -> usize {
        rows
    }
    fn rows(&self, pass: &Pass) -> usize {
        pass.tokens.len()
    }
    fn chosen(&self, pass: &Pass) -> usize {
        pass.chosen.len()
    }
    fn record(&self, _recording: &mut (), _pass: &Pass, body: impl FnOnce()) {
        body();
    }
    fn copy(&self, to: &mut Vec<E>, from: &Vec<E>, len: usize) {
        to[..len].copy_from_slice(&from[..len]);
    }
    fn round(&self, to: &mut Vec<E>, from: &Vec<f32>, len: usize) {
        element::round(&mut to[..len], &from[..len]);
    }
    fn widen(&self, to: &mut Vec<f32>, from: &Vec<E>, len: usize) {
        element::widen(&mut to[..len], &from[..len]);
    }
    fn clear(&self, buffer: &mut Vec<f32>, len: usize) {
        buffer[..len].fill(0.0);
    }
    fn matrix(&self, rows: usize, cols: usize, read: &(dyn Fn(usize, &mut [f32]) + Sync)) -> PackedMatrix<E> {
        PackedMatrix::new(rows, cols, &mut |row, out| read(row, out))
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
    fn image_layout(&self) -> Option<String> {
        Some(format!("{} {}", linear::LAYOUT, self.name()))
    }
    fn write_image(&self, matrix: &PackedMatrix<E>, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        matrix.write_image(out)
    }
    fn matrix_from_image(&self, rows: usize, cols: usize, images: &mut Images) -> Option<PackedMatrix<E>> {
        PackedMatrix::from_image(rows, cols, images)
    }
    fn matrix_bytes(&self, matrix: &PackedMatrix<E>) -> usize {
        matrix.bytes()
    }

    fn embed(&self, x: &mut Vec<f32>, table: &PackedMatrix<E>, pass: &Pass) {
        embed::forward(x, table, &pass.tokens);
    }

    fn add_positions(&self, x: &mut Vec<f32>, table: &PackedMatrix<E>, pass: &Pass) {
        embed::add(x, table, &pass.positions);
    }

    fn gather(&self, to: &mut Vec<f32>, from: &Vec<f32>, pass: &Pass, width: usize) {
        embed::gather(to, from, &pass.chosen, width);
    }
    fn spread(&self, to: &mut Vec<f32>, from: &Vec<f32>, pass: &Pass, width: usize) {
        embed::spread(&mut to[..pass.tokens.len() * width], from, &pass.chosen, width);
    }
    fn gather_narrow(&self, to: &mut Vec<E>, from: &Vec<E>, pass: &Pass, width: usize) {
        embed::gather(to, from, &pass.chosen, width);
    }
    fn spread_narrow(&self, to: &mut Vec<E>, from: &Vec<E>, pass: &Pass, width: usize) {
        embed::spread(&mut to[..pass.tokens.len() * width], from, &pass.chosen, width);
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
    fn merge(&self, linear: &mut Linear<Self>, encoding: Encoding) {
        linear.matrix = linear::merge(&Self::layer(linear), encoding);
        (linear.slots, linear.adapter) = (Vec::new(), None);
    }
    fn encode(&self, matrix: &PackedMatrix<E>, encoding: Encoding) -> PackedMatrix<E> {
        linear::merge(&Layer { matrix, bias: None, slots: &[], adapter: None }, encoding)
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
        pass: &Pass,
        shape: &AttentionShape,
        direction: Direction,
    ) {
        let len = pass.positions.len() * shape.qkv_width();
        rotary::apply(&mut qkv[..len], table, &pass.positions, shape, direction);
    }

    fn store_kv(&self, cache: &mut Vec<E>, qkv: &Vec<E>, pass: &Pass, shape: &AttentionShape) {
        let (from, to) = (shape.qkv_width(), 2 * shape.kv_width());
        let mut rows = qkv.chunks_exact(from);
        for (_, segment) in pass.layout.live() {
            let cache = &mut cache[segment.kv_row as usize * to..][..segment.len as usize * to];
            for (cache, row) in cache.chunks_exact_mut(to).zip(&mut rows) {
                cache.copy_from_slice(&row[shape.q_width()..]);
            }
        }
    }
    fn attention(
        &self,
        out: &mut Vec<E>,
        lse: &mut Vec<f32>,
        qkv: &Vec<E>,
        kv: &Vec<E>,
        columns: KvColumns,
        pass: &Pass,
        shape: &AttentionShape,
    ) {
        attention::forward(out, lse, qkv, kv, columns, &pass.layout, shape);
    }
    fn attention_backward(
        &self,
        d_qkv: &mut Vec<E>,
        d_out: &Vec<E>,
        out: &Vec<E>,
        lse: &Vec<f32>,
        qkv: &Vec<E>,
        pass: &Pass,
        shape: &AttentionShape,
    ) {
        attention::backward(d_qkv, d_out, out, lse, qkv, &pass.layout, shape);
    }

    fn gated(&self, act: &mut Vec<E>, gate_up: &Vec<E>, gate: Gate, rows: usize, width: usize) {
        gated::forward(&mut act[..rows * width], &gate_up[..2 * rows * width], gate, width);
    }
    fn gated_backward(&self, act: &mut Vec<E>, gate_up: &mut Vec<E>, gate: Gate, rows: usize, width: usize) {
        gated::backward(&mut act[..rows * width], &mut gate_up[..2 * rows * width], gate, width);
    }

    fn activation(&self, act: &mut Vec<E>, up: &Vec<E>, activation: Activation, rows: usize, width: usize) {
        activation::forward(&mut act[..rows * width], &up[..rows * width], activation, width);
    }
    fn activation_backward(
        &self,
        act: &mut Vec<E>,
        up: &mut Vec<E>,
        activation: Activation,
        rows: usize,
        width: usize,
    ) {
        let len = rows * width;
        activation::backward(&mut act[..len], &mut up[..len], activation, width);
    }

    fn cross_entropy(
        &self,
        losses: &mut Vec<f32>,
        d_h: &mut Vec<f32>,
        h: &Vec<E>,
        head: &PackedMatrix<E>,
        pass: &Pass,
    ) {
        let losses = &mut losses[..pass.targets.len()];
        cross_entropy::forward_backward(losses, Some(d_h), None, h, head, &pass.targets, &pass.weights);
    }
    fn log_probs(&self, out: &mut Vec<f32>, h: &Vec<E>, head: &PackedMatrix<E>, pass: &Pass) {
        let h = &h[..pass.chosen.len() * head.cols()];
        cross_entropy::log_probs(&mut out[..pass.wanted.len()], h, head, &pass.wanted);
    }
    fn repack(&self, matrix: &mut PackedMatrix<E>, parameters: &Vec<f32>, at: usize, shared: Option<usize>) {
        let values = &parameters[at..at + matrix.rows() * matrix.cols()];
        let Some(shared) = shared else { return matrix.refill(values) };
        let shared = &parameters[shared..shared + matrix.cols()];
        let sums: Vec<f32> = values.iter().zip(shared.iter().cycle()).map(|(v, shared)| v + shared).collect();
        matrix.refill(&sums);
    }
    fn take(&self, to: &mut Vec<f32>, from: &Vec<f32>, at: usize) {
        let len = to.len();
        to.copy_from_slice(&from[at..at + len]);
    }
    fn weight_backward(
        &self,
        gradients: &mut Vec<f32>,
        at: usize,
        x: &Vec<E>,
        d_y: &Vec<E>,
        linear: &Linear<Self>,
        rows: usize,
    ) {
        let Linear { inputs, outputs, .. } = *linear;
        let gradient = &mut gradients[at..at + outputs * inputs];
        linear::weight_backward(gradient, x, &d_y[..rows * outputs], inputs, outputs);
    }
    fn bias_backward(&self, gradients: &mut Vec<f32>, at: usize, d_y: &Vec<E>, width: usize, rows: usize) {
        columns::sum(&mut gradients[at..at + width], &d_y[..rows * width]);
    }
    fn norm_parameters_backward(
        &self,
        gradients: &mut Vec<f32>,
        weight: usize,
        bias: Option<usize>,
        d_h: &Vec<f32>,
        unit: &Vec<E>,
        width: usize,
        rows: usize,
    ) {
        let (d_h, unit) = (&d_h[..rows * width], &unit[..rows * width]);
        columns::sum_products(&mut gradients[weight..weight + width], d_h, unit);
        if let Some(bias) = bias {
            columns::sum(&mut gradients[bias..bias + width], d_h);
        }
    }
    fn embed_backward(&self, gradients: &mut Vec<f32>, at: usize, d_x: &Vec<f32>, pass: &Pass, width: usize) {
        embed::backward(&mut gradients[at..], d_x, &pass.tokens, width);
    }
    fn positions_backward(
        &self,
        gradients: &mut Vec<f32>,
        at: usize,
        d_x: &Vec<f32>,
        pass: &Pass,
        width: usize,
    ) {
        embed::backward(&mut gradients[at..], d_x, &pass.positions, width);
    }
    fn cross_entropy_with_head(
        &self,
        losses: &mut Vec<f32>,
        d_h: &mut Vec<f32>,
        (gradients, at): (&mut Vec<f32>, usize),
        h: &Vec<E>,
        head: &PackedMatrix<E>,
        pass: &Pass,
    ) {
        let losses = &mut losses[..pass.targets.len()];
        let d_head = &mut gradients[at..at + head.rows() * head.cols()];
        cross_entropy::forward_backward(
            losses,
            Some(d_h),
            Some(d_head),
            h,
            head,
            &pass.targets,
            &pass.weights,
        );
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
