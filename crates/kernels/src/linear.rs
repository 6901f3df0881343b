//! Linear layers over frozen weights, with LoRA (Hu et al., 2021) folded in.
//!
//! `mid = scale x A^T`, `y = x W^T + bias + mid B^T`. Backward: `d_mid = scale d_y B`, `d_x = d_y W + d_mid A`,
//! `d_A = d_mid^T x`, `d_B = d_y^T mid`. The scale sits in `mid` and `d_mid`, so A and B appear unscaled elsewhere.

use crate::{Backend, Element};

/// One LoRA pair on a range of a layer's output rows (a fused layer such as q/k/v has one for each part).
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Output rows of the layer that this pair feeds. Slots of a layer are in order and do not overlap.
    pub rows: std::ops::Range<usize>,
    /// `R`.
    pub rank: usize,
    /// `alpha / R`, or `alpha / sqrt(R)` for rsLoRA.
    pub scale: f32,
    /// Where A `(R, I)` begins in the parameters.
    pub a: usize,
    /// Where B `(rows.len(), R)` begins in the parameters.
    pub b: usize,
}

/// A frozen linear layer and its LoRA pairs.
pub struct Linear<B: Backend> {
    /// `(O, I)`.
    pub matrix: B::Matrix,
    /// `(O)`.
    pub bias: Option<B::Wide>,
    /// `I`.
    pub inputs: usize,
    /// `O`.
    pub outputs: usize,
    /// In order of their rows.
    pub slots: Vec<Slot>,
    /// What [`Backend::refresh`] made of the slots' parameters; `None` without LoRA.
    pub adapter: Option<B::Adapter>,
}

impl<B: Backend> Linear<B> {
    /// Columns of `mid`: the sum of the ranks.
    pub fn mid_width(&self) -> usize {
        self.slots.iter().map(|slot| slot.rank).sum()
    }
}

/// A frozen matrix `(rows, cols)`.
#[derive(Debug, Clone)]
pub struct PackedMatrix<E> {
    rows: usize,
    cols: usize,
    values: Vec<E>,
}

impl<E: Element> PackedMatrix<E> {
    /// Builds the matrix; `read(row, out)` fills one row.
    pub fn new(rows: usize, cols: usize, read: &mut dyn FnMut(usize, &mut [f32])) -> Self {
        let (mut row, mut values) = (vec![0.0; cols], Vec::with_capacity(rows * cols));
        for index in 0..rows {
            read(index, &mut row);
            values.extend(row.iter().map(|&v| E::from_f32(v)));
        }
        Self { rows, cols, values }
    }
    /// `O`.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// `I`.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Memory held.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(self.values.as_slice())
    }
    /// Copies one row out.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(&self.values[row * self.cols..][..self.cols]) {
            *out = value.to_f32();
        }
    }
}

/// The LoRA pairs of one layer, laid out for the products of the current step.
#[derive(Debug, Clone, Default)]
pub struct PackedAdapter<E> {
    /// Each slot's A and B, rounded to the compute type.
    pairs: Vec<(Vec<E>, Vec<E>)>,
}

impl<E: Element> PackedAdapter<E> {
    /// Reads every slot's A and B from the parameters, reusing this adapter's memory.
    pub fn refresh(&mut self, parameters: &[f32], slots: &[Slot], inputs: usize) {
        let round = |values: &[f32]| values.iter().map(|&v| E::from_f32(v)).collect();
        self.pairs = slots
            .iter()
            .map(|slot| {
                let a = &parameters[slot.a..][..slot.rank * inputs];
                let b = &parameters[slot.b..][..slot.rows.len() * slot.rank];
                (round(a), round(b))
            })
            .collect();
    }
}

/// A layer as the CPU functions take it.
pub struct Layer<'a, E> {
    /// `(O, I)`.
    pub matrix: &'a PackedMatrix<E>,
    /// `(O)`.
    pub bias: Option<&'a [f32]>,
    /// In order of their rows.
    pub slots: &'a [Slot],
    /// Refreshed; `None` when there are no slots.
    pub adapter: Option<&'a PackedAdapter<E>>,
}

/// Where a product goes on the host.
pub enum Target<'a, E> {
    /// Overwrites.
    Narrow(&'a mut [E]),
    /// Overwrites.
    Wide(&'a mut [f32]),
    /// Adds.
    Add(&'a mut [f32]),
}

impl<E: Element> Target<'_, E> {
    fn put(&mut self, at: usize, value: f32) {
        match self {
            Self::Narrow(out) => out[at] = E::from_f32(value),
            Self::Wide(out) => out[at] = value,
            Self::Add(out) => out[at] += value,
        }
    }
}

/// Writes `mid` and puts `y`.
/// # Shapes
/// `x`: `(T, I)`, `mid`: `(T, sum of R)`, `y`: `(T, O)`; `rows` is `T`.
pub fn forward<E: Element>(y: Target<'_, E>, mid: &mut [E], x: &[E], layer: &Layer<'_, E>, rows: usize) {
    reference::forward(y, mid, x, layer, rows);
}

/// Writes `d_mid` and puts `d_x`.
pub fn backward<E: Element>(
    d_x: Target<'_, E>,
    d_mid: &mut [E],
    d_y: &[E],
    layer: &Layer<'_, E>,
    rows: usize,
) {
    reference::backward(d_x, d_mid, d_y, layer, rows);
}

/// Adds each slot's `d_A` and `d_B` to `gradients`, laid out as the parameters.
pub fn adapter_backward<E: Element>(
    gradients: &mut [f32],
    x: &[E],
    mid: &[E],
    d_y: &[E],
    d_mid: &[E],
    layer: &Layer<'_, E>,
    rows: usize,
) {
    reference::adapter_backward(gradients, x, mid, d_y, d_mid, layer, rows);
}

/// The plain versions.
pub mod reference {
    use super::{Element, Layer, Target};

    /// See [`super::forward`].
    pub fn forward<E: Element>(
        mut y: Target<'_, E>,
        mid: &mut [E],
        x: &[E],
        layer: &Layer<'_, E>,
        rows: usize,
    ) {
        let (outputs, inputs) = (layer.matrix.rows(), layer.matrix.cols());
        let pairs = layer.adapter.map_or(&[][..], |adapter| &adapter.pairs);
        let mid_width: usize = layer.slots.iter().map(|slot| slot.rank).sum();
        let mut column = 0;
        for (slot, (a, _)) in layer.slots.iter().zip(pairs) {
            for t in 0..rows {
                for r in 0..slot.rank {
                    let sum: f32 =
                        (0..inputs).map(|i| x[t * inputs + i].to_f32() * a[r * inputs + i].to_f32()).sum();
                    mid[t * mid_width + column + r] = E::from_f32(slot.scale * sum);
                }
            }
            column += slot.rank;
        }
        let mut row = vec![0.0; inputs];
        for o in 0..outputs {
            layer.matrix.read_row(o, &mut row);
            for t in 0..rows {
                let mut sum: f32 = (0..inputs).map(|i| x[t * inputs + i].to_f32() * row[i]).sum();
                sum += layer.bias.map_or(0.0, |bias| bias[o]);
                let mut column = 0;
                for (slot, (_, b)) in layer.slots.iter().zip(pairs) {
                    if slot.rows.contains(&o) {
                        let b = &b[(o - slot.rows.start) * slot.rank..][..slot.rank];
                        let mid = &mid[t * mid_width + column..][..slot.rank];
                        sum += mid.iter().zip(b).map(|(m, b)| m.to_f32() * b.to_f32()).sum::<f32>();
                    }
                    column += slot.rank;
                }
                y.put(t * outputs + o, sum);
            }
        }
    }

    /// See [`super::backward`].
    pub fn backward<E: Element>(
        mut d_x: Target<'_, E>,
        d_mid: &mut [E],
        d_y: &[E],
        layer: &Layer<'_, E>,
        rows: usize,
    ) {
        let (outputs, inputs) = (layer.matrix.rows(), layer.matrix.cols());
        let pairs = layer.adapter.map_or(&[][..], |adapter| &adapter.pairs);
        let mid_width: usize = layer.slots.iter().map(|slot| slot.rank).sum();
        let mut sums = vec![0.0f32; rows * inputs];
        let mut row = vec![0.0; inputs];
        for o in 0..outputs {
            layer.matrix.read_row(o, &mut row);
            for t in 0..rows {
                let d = d_y[t * outputs + o].to_f32();
                for i in 0..inputs {
                    sums[t * inputs + i] += d * row[i];
                }
            }
        }
        let mut column = 0;
        for (slot, (a, b)) in layer.slots.iter().zip(pairs) {
            for t in 0..rows {
                for r in 0..slot.rank {
                    let dot = slot.rows.clone().zip(b.iter().skip(r).step_by(slot.rank));
                    let sum: f32 = dot.map(|(o, b)| d_y[t * outputs + o].to_f32() * b.to_f32()).sum();
                    let d = E::from_f32(slot.scale * sum);
                    d_mid[t * mid_width + column + r] = d;
                    for i in 0..inputs {
                        sums[t * inputs + i] += d.to_f32() * a[r * inputs + i].to_f32();
                    }
                }
            }
            column += slot.rank;
        }
        for (at, sum) in sums.into_iter().enumerate() {
            d_x.put(at, sum);
        }
    }

    /// See [`super::adapter_backward`].
    pub fn adapter_backward<E: Element>(
        gradients: &mut [f32],
        x: &[E],
        mid: &[E],
        d_y: &[E],
        d_mid: &[E],
        layer: &Layer<'_, E>,
        rows: usize,
    ) {
        let (outputs, inputs) = (layer.matrix.rows(), layer.matrix.cols());
        let mid_width: usize = layer.slots.iter().map(|slot| slot.rank).sum();
        let mut column = 0;
        for slot in layer.slots {
            for r in 0..slot.rank {
                for t in 0..rows {
                    let (m, d_m) = (mid[t * mid_width + column + r], d_mid[t * mid_width + column + r]);
                    for i in 0..inputs {
                        gradients[slot.a + r * inputs + i] += d_m.to_f32() * x[t * inputs + i].to_f32();
                    }
                    for (n, o) in slot.rows.clone().enumerate() {
                        gradients[slot.b + n * slot.rank + r] += d_y[t * outputs + o].to_f32() * m.to_f32();
                    }
                }
            }
            column += slot.rank;
        }
    }
}
