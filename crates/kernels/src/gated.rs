//! Gated activation: `act = f(gate) * up`. SwiGLU (Shazeer, 2020) has `f = silu`, `silu(z) = z sigmoid(z)`,
//! `silu'(z) = sigmoid(z) (1 + z (1 - sigmoid(z)))`.

use crate::Element;

/// The gate's function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `z sigmoid(z)`.
    Silu,
}

/// Writes `act`.
/// # Shapes
/// `act`: `(T, F)`, whose length gives `T`; `gate_up`: `(T, 2 F)`, gates then ups in each row.
pub fn forward<E: Element>(act: &mut [E], gate_up: &[E], gate: Gate, width: usize) {
    reference::forward(act, gate_up, gate, width);
}

/// Writes `d_gate_up` and, once more, `act`.
/// # Shapes
/// `act`, `d_act`: `(T, F)`; `gate_up`, `d_gate_up`: `(T, 2 F)`.
pub fn backward<E: Element>(
    d_gate_up: &mut [E],
    act: &mut [E],
    d_act: &[E],
    gate_up: &[E],
    gate: Gate,
    width: usize,
) {
    reference::backward(d_gate_up, act, d_act, gate_up, gate, width);
}

/// The plain versions.
pub mod reference {
    use super::{Element, Gate};

    fn sigmoid(z: f32) -> f32 {
        1.0 / (1.0 + (-z).exp())
    }

    /// See [`super::forward`].
    pub fn forward<E: Element>(act: &mut [E], gate_up: &[E], Gate::Silu: Gate, width: usize) {
        for (act, row) in act.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            for i in 0..width {
                let z = row[i].to_f32();
                act[i] = E::from_f32(z * sigmoid(z) * row[width + i].to_f32());
            }
        }
    }

    /// See [`super::backward`].
    pub fn backward<E: Element>(
        d_gate_up: &mut [E],
        act: &mut [E],
        d_act: &[E],
        gate_up: &[E],
        Gate::Silu: Gate,
        width: usize,
    ) {
        let rows = act.chunks_exact_mut(width).zip(d_act.chunks_exact(width));
        let pairs = d_gate_up.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width));
        for ((act, d_act), (d_row, row)) in rows.zip(pairs) {
            for i in 0..width {
                let (z, up, d) = (row[i].to_f32(), row[width + i].to_f32(), d_act[i].to_f32());
                let s = sigmoid(z);
                act[i] = E::from_f32(z * s * up);
                d_row[i] = E::from_f32(d * up * s * (1.0 + z * (1.0 - s)));
                d_row[width + i] = E::from_f32(d * z * s);
            }
        }
    }
}
