//! RMSNorm and LayerNorm over rows.
//!
//! `unit = (x - mean) * rstd`, `h = unit * weight + bias`, with `rstd = 1 / sqrt(mean((x - mean)^2) + eps)`;
//! RMSNorm (Zhang and Sennrich, 2019) is the same with mean 0 and no bias. Backward, with `u = d_h * weight`:
//! `d_x = rstd * (u - mean(u) - unit * mean(u * unit))`, where RMSNorm drops `mean(u)`.

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
    reference::forward(h, unit, rstd, x, params);
}

/// Writes `h` again from the stored `unit`, rounded as [`forward`] rounded it up to the rounding of `unit`.
pub fn again<E: Element>(h: &mut [E], unit: &[E], params: Params<'_>) {
    reference::again(h, unit, params);
}

/// Adds the input gradient to `d_x`.
pub fn backward<E: Element>(d_x: &mut [f32], d_h: &[f32], unit: &[E], rstd: &[f32], params: Params<'_>) {
    reference::backward(d_x, d_h, unit, rstd, params);
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
