//! The plain (ungated) activation: `act = f(up)`. GELU (Hendrycks and Gimpel, 2016) is `f(z) = z Φ(z)`, with
//! `f'(z) = Φ(z) + z φ(z)`; its approximation is `f(z) = z s(u)`, `u = 2 sqrt(2/π) (z + 0.044715 z^3)`, where `s` is
//! the sigmoid (`0.5 (1 + tanh(u / 2)) = s(u)`), with `f'(z) = s + z s (1 - s) u'`.

use crate::Element;
use crate::lanes::{Kernel, Lanes, dispatch, rows_per_job};
use crate::pool::{Rows, for_each_rows};

/// The function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// With the normal distribution's `Φ`.
    Gelu,
    /// With its approximation by a tanh.
    GeluTanh,
}

/// `2 sqrt(2/π)`.
const SLOPE: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

/// Writes `act`.
/// # Shapes
/// `act`, `up`: `(T, F)`; the length of `act` gives `T`, `width` is `F`.
pub fn forward<E: Element>(act: &mut [E], up: &[E], activation: Activation, width: usize) {
    let rows = act.len() / width;
    for_each_rows(rows, rows_per_job(width), Rows::new(act, width), |rows, act| {
        dispatch(Forward { act, up: &up[rows.start * width..rows.end * width], activation });
    });
}

/// In place: `act` holds its gradient before and, once more, itself after; `up` becomes its gradient.
/// # Shapes
/// Both `(T, F)`; the length of `act` gives `T`, `width` is `F`.
pub fn backward<E: Element>(act: &mut [E], up: &mut [E], activation: Activation, width: usize) {
    let rows = act.len() / width;
    let parts = (Rows::new(act, width), Rows::new(up, width));
    for_each_rows(rows, rows_per_job(2 * width), parts, |_, (act, up)| {
        dispatch(Backward { act, up, activation });
    });
}

/// `f(z)` and `f'(z)`.
#[inline(always)]
fn value_and_slope<L: Lanes>(l: L, z: L::V, activation: Activation) -> (L::V, L::V) {
    let one = l.splat(1.0);
    match activation {
        Activation::Gelu => {
            let (zero, half) = (l.splat(0.0), l.splat(0.5));
            let size = l.max(z, l.sub(zero, z));
            let density = l.exp(l.mul(l.mul(z, z), l.splat(-0.5)));
            let tail = tail(l, size, density);
            // z Φ(z) is max(z, 0) - |z| (1 - Φ(|z|)); Φ(z) is half, and as much more or less as z's sign says.
            let value = l.sub(l.max(z, zero), l.mul(size, tail));
            let sign = l.max(l.splat(-1.0), l.min(one, l.mul(z, l.splat(1e30))));
            let phi = l.fma(sign, l.sub(half, tail), half);
            (value, l.fma(l.mul(z, l.splat(FRAC_1_SQRT_2PI)), density, phi))
        }
        Activation::GeluTanh => {
            let square = l.mul(z, z);
            let u = l.mul(l.mul(z, l.splat(SLOPE)), l.fma(square, l.splat(CUBIC), one));
            let s = l.sigmoid(u);
            let d_u = l.mul(l.splat(SLOPE), l.fma(square, l.splat(3.0 * CUBIC), one));
            let value = l.mul(z, s);
            (value, l.fma(l.mul(value, l.sub(one, s)), d_u, s))
        }
    }
}

const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;

/// `1 - Φ(size)` to 1e-7 for a `size` not below 0, with `density = e^(-size²/2)` (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
fn tail<L: Lanes>(l: L, size: L::V, density: L::V) -> L::V {
    let one = l.splat(1.0);
    let t = l.div(one, l.fma(size, l.splat(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2), one));
    let mut p = l.splat(0.530_702_7);
    for c in [-0.726_576, 0.710_706_9, -0.142_248_37, 0.127_414_8] {
        p = l.fma(p, t, l.splat(c));
    }
    l.mul(l.mul(p, t), density)
}

struct Forward<'a, E> {
    act: &'a mut [E],
    up: &'a [E],
    activation: Activation,
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (act, up) in self.act.chunks_mut(L::N).zip(self.up.chunks(L::N)) {
            l.write(act, value_and_slope(l, l.read(up), self.activation).0);
        }
    }
}

struct Backward<'a, E> {
    act: &'a mut [E],
    up: &'a mut [E],
    activation: Activation,
}

impl<E: Element> Kernel for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (act, up) in self.act.chunks_mut(L::N).zip(self.up.chunks_mut(L::N)) {
            let (value, slope) = value_and_slope(l, l.read(up), self.activation);
            l.write(up, l.mul(l.read(act), slope));
            l.write(act, value);
        }
    }
}

/// The plain versions.
pub mod reference {
    use super::{Activation, CUBIC, Element, SLOPE};

    /// `f(z)` and `f'(z)` in f64.
    pub fn value_and_slope(z: f64, activation: Activation) -> (f64, f64) {
        match activation {
            Activation::Gelu => {
                let (phi, density) = (normal(z), (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt());
                (z * phi, phi + z * density)
            }
            Activation::GeluTanh => {
                let (slope, cubic) = (f64::from(SLOPE), f64::from(CUBIC));
                let s = 1.0 / (1.0 + (-slope * (z + cubic * z * z * z)).exp());
                (z * s, s + z * s * (1.0 - s) * slope * (1.0 + 3.0 * cubic * z * z))
            }
        }
    }

    /// `Φ(z)`: its series `1/2 + φ(z) (z + z³/3 + z⁵/15 + …)`, whose terms all have one sign; beyond 8 it is 0 or 1
    /// to the last digit.
    fn normal(z: f64) -> f64 {
        if z.abs() > 8.0 {
            return if z > 0.0 { 1.0 } else { 0.0 };
        }
        let (mut term, mut sum, mut odd) = (z, 0.0, 1.0);
        while term.abs() > 1e-18 {
            sum += term;
            odd += 2.0;
            term *= z * z / odd;
        }
        0.5 + sum * (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    /// See [`super::forward`].
    pub fn forward<E: Element>(act: &mut [E], up: &[E], activation: Activation) {
        for (act, up) in act.iter_mut().zip(up) {
            *act = E::from_f32(value_and_slope(f64::from(up.to_f32()), activation).0 as f32);
        }
    }

    /// See [`super::backward`].
    pub fn backward<E: Element>(act: &mut [E], up: &mut [E], activation: Activation) {
        for (act, up) in act.iter_mut().zip(up) {
            let (value, slope) = value_and_slope(f64::from(up.to_f32()), activation);
            *up = E::from_f32((f64::from(act.to_f32()) * slope) as f32);
            *act = E::from_f32(value as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Activation; 2] = [Activation::Gelu, Activation::GeluTanh];

    fn check<E: Element>(values: &[f32], activation: Activation) -> Result<(), TestCaseError> {
        let to = |values: &[f32]| values.iter().map(|&v| E::from_f32(v)).collect::<Vec<E>>();
        let (up, d_act) = values.split_at(values.len() / 2);
        let (up, d_act) = (to(up), to(&d_act[..up.len()]));
        let nan = vec![E::from_f32(f32::NAN); up.len()];
        let (mut act, mut again, mut d_up) = (nan, d_act.clone(), up.clone());
        let width = up.len().min(113);
        let len = up.len() / width * width;
        forward(&mut act[..len], &up, activation, width);
        backward(&mut again[..len], &mut d_up[..len], activation, width);
        prop_assert_eq!(&act[..len], &again[..len], "the second act is the first");
        let unit = if E::NAME == "bf16" { 1.0 / 256.0 } else { 1e-6 };
        for i in 0..len {
            let (value, slope) = reference::value_and_slope(f64::from(up[i].to_f32()), activation);
            let d = f64::from(d_act[i].to_f32());
            // Φ is off by 2e-7 whatever its size.
            for (found, exact, size) in
                [(act[i], value, f64::from(up[i].to_f32())), (d_up[i], d * slope, 4.0 * d)]
            {
                let error = (f64::from(found.to_f32()) - exact).abs();
                prop_assert!(error <= unit * exact.abs() + 3e-7 * size.abs() + 1e-30, "{found:?}, {exact}");
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn fast_is_the_reference_up_to_rounding(values in prop::collection::vec(-12.0f32..12.0, 2..1500)) {
            for activation in BOTH {
                check::<f32>(&values, activation)?;
                check::<bf16>(&values, activation)?;
            }
        }
    }

    #[test]
    fn many_values_are_shared_out() {
        let values: Vec<f32> = (0..400_003).map(|i| (i % 1013) as f32 * 0.01 - 5.0).collect();
        check::<f32>(&values, Activation::Gelu).unwrap();
    }

    #[test]
    fn the_reference_is_known_at_points_and_its_slope_is_that_of_the_function() {
        // Φ(1) = 0.841344746068543, Φ(-2) = 0.022750131948179.
        let value = |z, activation| reference::value_and_slope(z, activation).0;
        assert!((value(1.0, Activation::Gelu) - 0.841_344_746_068_543).abs() < 1e-14);
        assert!((value(-2.0, Activation::Gelu) + 2.0 * 0.022_750_131_948_179).abs() < 1e-14);
        for activation in BOTH {
            for z in [-7.0, -2.5, -0.3, 0.0, 0.4, 1.7, 6.0] {
                let slope = (value(z + 1e-5, activation) - value(z - 1e-5, activation)) / 2e-5;
                assert!((reference::value_and_slope(z, activation).1 - slope).abs() < 1e-9, "{z}");
            }
        }
        assert!((value(0.7, Activation::Gelu) - value(0.7, Activation::GeluTanh)).abs() < 1e-3);
    }
}
