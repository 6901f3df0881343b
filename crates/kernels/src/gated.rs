//! Gated activation: `act = f(gate) * up`. SwiGLU (Shazeer, 2020) has `f = silu`, `silu(z) = z sigmoid(z)`,
//! `silu'(z) = sigmoid(z) (1 + z (1 - sigmoid(z)))`.

use crate::Element;
use crate::lanes::{Kernel, Lanes, dispatch, rows_per_job};
use crate::pool::{Rows, for_each_rows};

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
    let rows = act.len() / width;
    for_each_rows(rows, rows_per_job(2 * width), Rows::new(act, width), |rows, act| {
        let gate_up = &gate_up[rows.start * 2 * width..rows.end * 2 * width];
        dispatch(Forward { act, gate_up, gate, width });
    });
}

/// In place: `act` holds its gradient before and, once more, itself after; `gate_up` becomes its gradient.
/// # Shapes
/// `act`: `(T, F)`; `gate_up`: `(T, 2 F)`.
pub fn backward<E: Element>(act: &mut [E], gate_up: &mut [E], gate: Gate, width: usize) {
    let rows = act.len() / width;
    let parts = (Rows::new(act, width), Rows::new(gate_up, 2 * width));
    for_each_rows(rows, rows_per_job(4 * width), parts, |_, (act, gate_up)| {
        dispatch(Backward { act, gate_up, gate, width });
    });
}

struct Forward<'a, E> {
    act: &'a mut [E],
    gate_up: &'a [E],
    gate: Gate,
    width: usize,
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { act, gate_up, gate: Gate::Silu, width } = self;
        for (act, row) in act.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (gates, ups) = row.split_at(width);
            let values = gates.chunks(L::N).zip(ups.chunks(L::N));
            for (act, (gate, up)) in act.chunks_mut(L::N).zip(values) {
                let z = l.read(gate);
                l.write(act, l.mul(l.mul(z, l.sigmoid(z)), l.read(up)));
            }
        }
    }
}

struct Backward<'a, E> {
    act: &'a mut [E],
    gate_up: &'a mut [E],
    gate: Gate,
    width: usize,
}

impl<E: Element> Kernel for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { act, gate_up, gate: Gate::Silu, width } = self;
        let one = l.splat(1.0);
        for (act, row) in act.chunks_exact_mut(width).zip(gate_up.chunks_exact_mut(2 * width)) {
            let (gates, ups) = row.split_at_mut(width);
            let pairs = gates.chunks_mut(L::N).zip(ups.chunks_mut(L::N));
            for (act, (gates, ups)) in act.chunks_mut(L::N).zip(pairs) {
                let (z, up, d) = (l.read(gates), l.read(ups), l.read(act));
                let s = l.sigmoid(z);
                let silu = l.mul(z, s);
                // s (1 + z (1 - s)) = s + silu (1 - s)
                let slope = l.fma(silu, l.sub(one, s), s);
                l.write(act, l.mul(silu, up));
                l.write(gates, l.mul(l.mul(d, up), slope));
                l.write(ups, l.mul(d, silu));
            }
        }
    }
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
    pub fn backward<E: Element>(act: &mut [E], gate_up: &mut [E], Gate::Silu: Gate, width: usize) {
        for (act, row) in act.chunks_exact_mut(width).zip(gate_up.chunks_exact_mut(2 * width)) {
            for i in 0..width {
                let (z, up, d) = (row[i].to_f32(), row[width + i].to_f32(), act[i].to_f32());
                let s = sigmoid(z);
                act[i] = E::from_f32(z * s * up);
                row[i] = E::from_f32(d * up * s * (1.0 + z * (1.0 - s)));
                row[width + i] = E::from_f32(d * z * s);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    fn to<E: Element>(values: &[f32]) -> Vec<E> {
        values.iter().map(|&v| E::from_f32(v)).collect()
    }

    /// Compares with the reference in f32 on the same (already rounded) values; the error of a product is a few
    /// roundings of its size, and that of the slope a few roundings of its two terms.
    fn check<E: Element>(values: &[f32], width: usize) -> Result<(), TestCaseError> {
        let rows = values.len() / (3 * width);
        let (gate_up, d_act) = values.split_at(2 * rows * width);
        let (gate_up, d_act) = (to::<E>(gate_up), to::<E>(&d_act[..rows * width]));
        let plain = |values: &[E]| values.iter().map(|v| v.to_f32()).collect::<Vec<f32>>();
        let (wide_gate_up, wide_d_act) = (plain(&gate_up), plain(&d_act));
        let mut act = vec![E::from_f32(f32::NAN); d_act.len()];
        let (mut again, mut d) = (d_act, gate_up.clone());
        forward(&mut act, &gate_up, Gate::Silu, width);
        backward(&mut again, &mut d, Gate::Silu, width);
        prop_assert_eq!(&act, &again, "the second act is the first");
        let (mut exact, mut exact_d) = (wide_d_act.clone(), wide_gate_up.clone());
        reference::backward(&mut exact, &mut exact_d, Gate::Silu, width);
        let unit = if E::NAME == "bf16" { 1.0 / 256.0 } else { 1e-6 };
        for i in 0..act.len() {
            let (row, c) = (i / width, i % width);
            let (gate, up) = (row * 2 * width + c, row * 2 * width + width + c);
            let d_size = (wide_d_act[i] * wide_gate_up[up]).abs() * (1.0 + wide_gate_up[gate].abs()) * 1e-6;
            let triples =
                [(act[i], exact[i], 0.0), (d[gate], exact_d[gate], d_size), (d[up], exact_d[up], 0.0)];
            for (found, exact, extra) in triples {
                let error = (found.to_f32() - exact).abs();
                prop_assert!(error <= unit * exact.abs() + extra + 1e-30, "{found:?}, expected {exact}");
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn fast_is_the_reference_up_to_rounding(
            width in 1usize..70,
            values in prop::collection::vec(-30.0f32..30.0, 210..1500),
        ) {
            check::<f32>(&values, width)?;
            check::<bf16>(&values, width)?;
        }
    }

    #[test]
    fn many_rows_are_shared_out() {
        let values: Vec<f32> = (0..3 * 200 * 601).map(|i| (i % 1013) as f32 * 0.01 - 5.0).collect();
        check::<f32>(&values, 601).unwrap();
    }

    #[test]
    fn reference_backward_is_the_slope_of_the_forward_pass() {
        let silu_up = |z: f64, up: f64| z / (1.0 + (-z).exp()) * up;
        for (z, up) in [(-8.0, 0.5), (-1.25, 2.0), (0.0, -1.0), (0.75, 0.25), (6.0, 3.0)] {
            let (mut d, mut act) = ([z as f32, up as f32], [2.0f32]);
            reference::backward(&mut act, &mut d, Gate::Silu, 1);
            let step = 1e-5;
            let by_gate = (silu_up(z + step, up) - silu_up(z - step, up)) / step;
            let by_up = (silu_up(z, up + step) - silu_up(z, up - step)) / step;
            assert!(
                (f64::from(d[0]) - by_gate).abs() < 1e-5,
                "gate {z}: {} but the slope is {by_gate}",
                d[0]
            );
            assert!((f64::from(d[1]) - by_up).abs() < 1e-5, "up {up}: {} but the slope is {by_up}", d[1]);
            assert!((f64::from(act[0]) - silu_up(z, up)).abs() < 1e-5);
        }
    }
}
