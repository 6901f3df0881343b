//! RMSNorm and LayerNorm over rows.
//!
//! `unit = (x - mean) * rstd`, `h = unit * weight + bias`, with `rstd = 1 / sqrt(mean((x - mean)^2) + eps)`;
//! RMSNorm (Zhang and Sennrich, 2019) is the same with mean 0 and no bias. Backward, with `u = d_h * weight`:
//! `d_x = rstd * (u - mean(u) - unit * mean(u * unit))`, where RMSNorm drops `mean(u)`.

use std::ops::Range;

use crate::lanes::{Kernel, Lanes, dispatch, rows_per_job};
use crate::pool::{Rows, for_each_rows};
use crate::{Backend, Element};

/// A norm's constants and parameters.
pub struct Norm<B: Backend> {
    /// `(C)`.
    pub weight: B::Wide,
    /// `(C)`; only LayerNorm has one.
    pub bias: Option<B::Wide>,
    /// Added to the variance.
    pub eps: f32,
    /// LayerNorm subtracts the mean, RMSNorm does not.
    pub center: bool,
    /// `C`.
    pub width: usize,
}

/// The parameters as host slices: what the CPU functions take.
#[derive(Clone, Copy)]
pub struct Params<'a> {
    /// `(C)`.
    pub weight: &'a [f32],
    /// `(C)`.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub eps: f32,
    /// LayerNorm.
    pub center: bool,
}

/// Writes `h`, `unit` and `rstd` for the rows of `x`.
/// # Shapes
/// `h`, `unit`, `x`: `(T, C)`; `rstd`: `(T)`, whose length gives `T`.
pub fn forward<E: Element>(h: &mut [E], unit: &mut [E], rstd: &mut [f32], x: &[f32], params: Params<'_>) {
    let width = params.weight.len();
    let parts = (Rows::new(h, width), Rows::new(unit, width), Rows::new(rstd, 1));
    for_each_rows(x.len() / width, rows_per_job(2 * width), parts, |rows, (h, unit, rstd)| {
        dispatch(Forward { h, unit, rstd, x: &x[rows.start * width..rows.end * width], params });
    });
}

/// Writes `h` again from the stored `unit`, rounded as [`forward`] rounded it up to the rounding of `unit`.
pub fn again<E: Element>(h: &mut [E], unit: &[E], params: Params<'_>) {
    let width = params.weight.len();
    for_each_rows(unit.len() / width, rows_per_job(width), Rows::new(h, width), |rows, h| {
        dispatch(Again { h, unit: &unit[rows.start * width..rows.end * width], params });
    });
}

/// Adds the input gradient to `d_x`.
pub fn backward<E: Element>(d_x: &mut [f32], d_h: &[f32], unit: &[E], rstd: &[f32], params: Params<'_>) {
    let width = params.weight.len();
    for_each_rows(rstd.len(), rows_per_job(2 * width), Rows::new(d_x, width), |rows, d_x| {
        let at = rows.start * width..rows.end * width;
        dispatch(Backward { d_x, d_h: &d_h[at.clone()], unit: &unit[at], rstd: &rstd[rows], params });
    });
}

/// `values * weight + bias` for the columns `at`.
#[inline(always)]
fn affine<L: Lanes>(l: L, values: L::V, params: Params<'_>, at: Range<usize>) -> L::V {
    let weight = l.read(&params.weight[at.clone()]);
    match params.bias {
        Some(bias) => l.fma(values, weight, l.read(&bias[at])),
        None => l.mul(values, weight),
    }
}

struct Forward<'a, E> {
    h: &'a mut [E],
    unit: &'a mut [E],
    rstd: &'a mut [f32],
    x: &'a [f32],
    params: Params<'a>,
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { h, unit, rstd, x, params } = self;
        let width = params.weight.len();
        let zero = l.splat(0.0);
        for (t, rstd) in rstd.iter_mut().enumerate() {
            let at = t * width..(t + 1) * width;
            let (h, unit, x) = (&mut h[at.clone()], &mut unit[at.clone()], &x[at]);
            let mut mean = 0.0;
            if params.center {
                let mut sums = [zero; 4];
                for x in x.chunks(4 * L::N) {
                    for (sum, x) in sums.iter_mut().zip(x.chunks(L::N)) {
                        *sum = l.add(*sum, l.read(x));
                    }
                }
                mean = total(l, sums) / width as f32;
            }
            let mean = l.splat(mean);
            let mut squares = [zero; 4];
            for x in x.chunks(4 * L::N) {
                for (square, x) in squares.iter_mut().zip(x.chunks(L::N)) {
                    let from_mean = l.first(x.len(), l.sub(l.read(x), mean), zero);
                    *square = l.fma(from_mean, from_mean, *square);
                }
            }
            *rstd = 1.0 / (total(l, squares) / width as f32 + params.eps).sqrt();
            let scale = l.splat(*rstd);
            let outputs = h.chunks_mut(L::N).zip(unit.chunks_mut(L::N));
            for (c, ((h, unit), x)) in outputs.zip(x.chunks(L::N)).enumerate() {
                let value = l.mul(l.sub(l.read(x), mean), scale);
                l.write(unit, value);
                l.write(h, affine(l, value, params, c * L::N..c * L::N + x.len()));
            }
        }
    }
}

struct Again<'a, E> {
    h: &'a mut [E],
    unit: &'a [E],
    params: Params<'a>,
}

impl<E: Element> Kernel for Again<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.params.weight.len();
        for (h, unit) in self.h.chunks_exact_mut(width).zip(self.unit.chunks_exact(width)) {
            for (c, (h, unit)) in h.chunks_mut(L::N).zip(unit.chunks(L::N)).enumerate() {
                l.write(h, affine(l, l.read(unit), self.params, c * L::N..c * L::N + unit.len()));
            }
        }
    }
}

struct Backward<'a, E> {
    d_x: &'a mut [f32],
    d_h: &'a [f32],
    unit: &'a [E],
    rstd: &'a [f32],
    params: Params<'a>,
}

impl<E: Element> Kernel for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { d_x, d_h, unit, rstd, params } = self;
        let (weight, width) = (params.weight, params.weight.len());
        for (t, &rstd) in rstd.iter().enumerate() {
            let at = t * width..(t + 1) * width;
            let (d_x, d_h, unit) = (&mut d_x[at.clone()], &d_h[at.clone()], &unit[at]);
            let (mut sums, mut dots) = ([l.splat(0.0); 4], [l.splat(0.0); 4]);
            let inputs = d_h.chunks(4 * L::N).zip(unit.chunks(4 * L::N)).zip(weight.chunks(4 * L::N));
            for ((d_h, unit), weight) in inputs {
                let inputs = d_h.chunks(L::N).zip(unit.chunks(L::N)).zip(weight.chunks(L::N));
                for ((sum, dot), ((d_h, unit), weight)) in sums.iter_mut().zip(&mut dots).zip(inputs) {
                    let u = l.mul(l.read(d_h), l.read(weight));
                    *sum = l.add(*sum, u);
                    *dot = l.fma(u, l.read(unit), *dot);
                }
            }
            let mean = if params.center { total(l, sums) / width as f32 } else { 0.0 };
            let dot = total(l, dots) / width as f32;
            let (mean, minus_dot, scale) = (l.splat(mean), l.splat(-dot), l.splat(rstd));
            let inputs = d_h.chunks(L::N).zip(unit.chunks(L::N)).zip(weight.chunks(L::N));
            for (d_x, ((d_h, unit), weight)) in d_x.chunks_mut(L::N).zip(inputs) {
                let u = l.sub(l.mul(l.read(d_h), l.read(weight)), mean);
                let slope = l.fma(l.read(unit), minus_dot, u);
                l.write(d_x, l.fma(scale, slope, l.read(d_x)));
            }
        }
    }
}

/// Sum of all lanes.
#[inline(always)]
fn total<L: Lanes>(l: L, v: [L::V; 4]) -> f32 {
    l.sum(l.add(l.add(v[0], v[1]), l.add(v[2], v[3])))
}

/// The plain versions.
pub mod reference {
    use super::{Element, Params};

    /// See [`super::forward`].
    pub fn forward<E: Element>(h: &mut [E], unit: &mut [E], rstd: &mut [f32], x: &[f32], params: Params<'_>) {
        let width = params.weight.len();
        for (t, rstd) in rstd.iter_mut().enumerate() {
            let row = &x[t * width..][..width];
            let mean = if params.center { row.iter().sum::<f32>() / width as f32 } else { 0.0 };
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / width as f32;
            *rstd = 1.0 / (variance + params.eps).sqrt();
            for c in 0..width {
                let value = (row[c] - mean) * *rstd;
                unit[t * width + c] = E::from_f32(value);
                h[t * width + c] = E::from_f32(value * params.weight[c] + params.bias.map_or(0.0, |b| b[c]));
            }
        }
    }

    /// See [`super::again`].
    pub fn again<E: Element>(h: &mut [E], unit: &[E], params: Params<'_>) {
        let width = params.weight.len();
        for (i, (h, unit)) in h.iter_mut().zip(unit).enumerate() {
            let c = i % width;
            *h = E::from_f32(unit.to_f32() * params.weight[c] + params.bias.map_or(0.0, |b| b[c]));
        }
    }

    /// See [`super::backward`].
    pub fn backward<E: Element>(d_x: &mut [f32], d_h: &[f32], unit: &[E], rstd: &[f32], params: Params<'_>) {
        let width = params.weight.len();
        for (t, rstd) in rstd.iter().enumerate() {
            let at = t * width;
            let (mut sum, mut dot) = (0.0, 0.0);
            for c in 0..width {
                let u = d_h[at + c] * params.weight[c];
                sum += u;
                dot += u * unit[at + c].to_f32();
            }
            let mean = if params.center { sum / width as f32 } else { 0.0 };
            let dot = dot / width as f32;
            for c in 0..width {
                let u = d_h[at + c] * params.weight[c];
                d_x[at + c] += rstd * (u - mean - unit[at + c].to_f32() * dot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    struct Case {
        x: Vec<f32>,
        d_h: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
    }

    impl Case {
        fn new(values: &[f32], rows: usize, width: usize) -> Self {
            let mut values = values.iter().copied().cycle();
            let mut next = |len: usize| values.by_ref().take(len).collect::<Vec<f32>>();
            Self { x: next(rows * width), d_h: next(rows * width), weight: next(width), bias: next(width) }
        }

        fn params(&self, center: bool) -> Params<'_> {
            Params { weight: &self.weight, bias: center.then_some(&self.bias), eps: 1e-5, center }
        }
    }

    fn check<E: Element>(case: &Case, center: bool) -> Result<(), TestCaseError> {
        let (params, width) = (case.params(center), case.weight.len());
        let (len, rows) = (case.x.len(), case.x.len() / width);
        let nan = E::from_f32(f32::NAN);
        let (mut h, mut unit, mut rstd) = (vec![nan; len], vec![nan; len], vec![0.0; rows]);
        forward(&mut h, &mut unit, &mut rstd, &case.x, params);
        let (mut exact_h, mut exact_unit, mut exact_rstd) = (vec![0.0; len], vec![0.0; len], vec![0.0; rows]);
        reference::forward(&mut exact_h, &mut exact_unit, &mut exact_rstd, &case.x, params);
        let stored: Vec<f32> = unit.iter().map(|v| v.to_f32()).collect();
        let (mut h_again, mut exact_again) = (vec![nan; len], vec![0.0; len]);
        again(&mut h_again, &unit, params);
        reference::again(&mut exact_again, &stored, params);
        let (mut d_x, mut exact_d_x) = (case.x.clone(), vec![0.0; len]);
        backward(&mut d_x, &case.d_h, &unit, &rstd, params);
        reference::backward(&mut exact_d_x, &case.d_h, &stored, &rstd, params);
        let rounding = if E::NAME == "bf16" { 1.0 / 256.0 } else { 0.0 };
        let sums = 2e-6;
        for i in 0..len {
            let (t, c) = (i / width, i % width);
            let row = t * width..(t + 1) * width;
            prop_assert!((rstd[t] - exact_rstd[t]).abs() <= sums * exact_rstd[t]);
            let largest = case.x[row.clone()].iter().fold(0.0f32, |a, x| a.max(x.abs()));
            let size = largest * rstd[t] * sums;
            let error = (unit[i].to_f32() - exact_unit[i]).abs();
            prop_assert!(
                error <= rounding * exact_unit[i].abs() + size,
                "unit {:?}, {}",
                unit[i],
                exact_unit[i]
            );
            let size = size * case.weight[c].abs() + case.bias[c].abs() * sums;
            for (found, exact) in [(h[i], exact_h[i]), (h_again[i], exact_again[i])] {
                let error = (found.to_f32() - exact).abs();
                prop_assert!(error <= rounding * exact.abs() + size, "h {found:?}, expected {exact}");
            }
            // Sizes of the terms of d_x: u, the mean of u, and unit times the mean of |u unit|.
            let u: Vec<f32> = row.clone().map(|j| (case.d_h[j] * case.weight[j % width]).abs()).collect();
            let mean = u.iter().sum::<f32>() / width as f32;
            let dot = u.iter().zip(&stored[row]).map(|(u, v)| u * v.abs()).sum::<f32>() / width as f32;
            let size = rstd[t] * (u[c] + mean + stored[i].abs() * dot) + case.x[i].abs();
            let error = (d_x[i] - (case.x[i] + exact_d_x[i])).abs();
            prop_assert!(error <= sums * size, "d_x {}, expected {}", d_x[i], case.x[i] + exact_d_x[i]);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn fast_is_the_reference_up_to_rounding(
            values in prop::collection::vec(-4.0f32..4.0, 50..300),
            rows in 1usize..12,
            width in 1usize..150,
            center in any::<bool>(),
        ) {
            let case = Case::new(&values, rows, width);
            check::<f32>(&case, center)?;
            check::<bf16>(&case, center)?;
        }
    }

    #[test]
    fn many_rows_are_shared_out_and_stay_the_same_bits() {
        let values: Vec<f32> = (0..100_003).map(|i| (i % 1013) as f32 * 0.01 - 5.0).collect();
        let (rows, width) = (300, 577);
        let case = Case::new(&values, rows, width);
        check::<f32>(&case, true).unwrap();
        let run = |rows: usize| {
            let len = rows * width;
            let (mut h, mut unit, mut rstd) = (vec![bf16::ZERO; len], vec![bf16::ZERO; len], vec![0.0; rows]);
            forward(&mut h, &mut unit, &mut rstd, &case.x[..len], case.params(true));
            let mut d_x = vec![0.0; len];
            backward(&mut d_x, &case.d_h[..len], &unit, &rstd, case.params(true));
            (h, unit, rstd, d_x)
        };
        let all = run(rows);
        assert_eq!(all, crate::pool::alone(|| run(rows)), "depends on the threads");
        let few = run(7);
        assert_eq!(few.0, all.0[..7 * width], "depends on the rows around");
        assert_eq!(few.3, all.3[..7 * width], "depends on the rows around");
    }

    #[test]
    fn reference_backward_is_the_slope_of_the_forward_pass() {
        let loss = |x: &[f64], case: &Case, center: bool| -> f64 {
            let n = x.len() as f64;
            let mean = if center { x.iter().sum::<f64>() / n } else { 0.0 };
            let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
            let rstd = 1.0 / (variance + f64::from(1e-5f32)).sqrt();
            let terms = x.iter().zip(&case.weight).zip(&case.d_h);
            terms.map(|((v, w), d)| (v - mean) * rstd * f64::from(*w) * f64::from(*d)).sum()
        };
        let values: Vec<f32> = (0..97).map(|i| ((i * 37) % 101) as f32 / 50.5 - 1.0).collect();
        let case = Case::new(&values, 1, 19);
        for center in [false, true] {
            let params = case.params(center);
            let (mut h, mut unit, mut rstd, mut d_x) = ([0.0f32; 19], [0.0f32; 19], [0.0], [0.0; 19]);
            reference::forward(&mut h, &mut unit, &mut rstd, &case.x, params);
            reference::backward(&mut d_x, &case.d_h, &unit, &rstd, params);
            let x: Vec<f64> = case.x.iter().map(|&v| f64::from(v)).collect();
            for i in 0..19 {
                let (mut up, mut down) = (x.clone(), x.clone());
                up[i] += 1e-5;
                down[i] -= 1e-5;
                let slope = (loss(&up, &case, center) - loss(&down, &case, center)) / 2e-5;
                assert!((f64::from(d_x[i]) - slope).abs() < 5e-6, "{i}: {} but the slope is {slope}", d_x[i]);
            }
        }
    }
}
