//! The feed-forward layer with a gate: two products with LoRA, and the gate between them.

use crate::{Backend, Gate, Linear, Output};

/// The layers of a gated feed-forward layer: `y = down(act)`, `act = gate_fn(gates) * ups`, `gates, ups = up(h)`.
pub struct GatedLayer<'a, B: Backend> {
    /// Gates, then ups: `(2 F, C)`.
    pub up: &'a Linear<B>,
    /// `(C, F)`.
    pub down: &'a Linear<B>,
    /// Between them.
    pub gate: Gate,
}

/// [`Backend::feed_forward`], op by op.
pub fn forward<B: Backend>(
    ops: &B,
    y: Output<'_, B>,
    act: &mut B::Narrow,
    up: &mut B::Narrow,
    [up_mid, down_mid]: [&mut B::Narrow; 2],
    h: &B::Narrow,
    layer: &GatedLayer<'_, B>,
    rows: usize,
) {
    ops.linear(Output::Narrow(up), up_mid, h, layer.up, rows);
    ops.gated(act, up, layer.gate, rows, layer.down.inputs);
    ops.linear(y, down_mid, act, layer.down, rows);
}

/// [`Backend::feed_forward_backward`], op by op.
pub fn backward<B: Backend>(
    ops: &B,
    gradients: &mut B::Wide,
    d_h: Output<'_, B>,
    [d_up_mid, d_down_mid]: [&mut B::Narrow; 2],
    act: &mut B::Narrow,
    up: &mut B::Narrow,
    [up_mid, down_mid]: [&B::Narrow; 2],
    h: &B::Narrow,
    d_y: &B::Narrow,
    layer: &GatedLayer<'_, B>,
    rows: usize,
) {
    ops.linear_backward(Output::Narrow(act), d_down_mid, d_y, layer.down, rows);
    ops.gated_backward(act, up, layer.gate, rows, layer.down.inputs);
    ops.adapter_backward(gradients, act, down_mid, d_y, d_down_mid, layer.down, rows);
    ops.linear_backward(d_h, d_up_mid, up, layer.up, rows);
    ops.adapter_backward(gradients, h, up_mid, up, d_up_mid, layer.up, rows);
}
