//! The plain versions of the linear ops: what the fast ones are judged against.

use super::{Element, Layer, PackedAdapter, Slot, Target};

impl<E: Element> Target<'_, E> {
    fn put(&mut self, at: usize, value: f32) {
        match self {
            Self::Narrow(out) => out[at] = E::from_f32(value),
            Self::Wide(out) => out[at] = value,
            Self::Add(out) => out[at] += value,
        }
    }
}

/// A and B.
type Pair = (Vec<f32>, Vec<f32>);

/// Each slot with its A and B.
fn pairs<'a, E: Element>(layer: &Layer<'a, E>) -> Vec<(&'a Slot, Pair)> {
    let pair = |(index, slot)| layer.adapter.map(|adapter: &PackedAdapter<E>| (slot, adapter.pair(index)));
    layer.slots.iter().enumerate().filter_map(pair).collect()
}

/// See [`super::forward`].
pub fn forward<E: Element>(mut y: Target<'_, E>, mid: &mut [E], x: &[E], layer: &Layer<'_, E>, rows: usize) {
    let (outputs, inputs) = (layer.matrix.rows(), layer.matrix.cols());
    if layer.matrix.is_bytes() {
        return forward_bytes(y, x, layer, rows);
    }
    let pairs = pairs(layer);
    let mid_width: usize = layer.slots.iter().map(|slot| slot.rank).sum();
    let mut column = 0;
    for (slot, (a, _)) in &pairs {
        for t in 0..rows {
            for r in 0..slot.rank {
                let sum: f32 = (0..inputs).map(|i| x[t * inputs + i].to_f32() * a[r * inputs + i]).sum();
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
            for (slot, (_, b)) in &pairs {
                if slot.rows.contains(&o) {
                    let b = &b[(o - slot.rows.start) * slot.rank..][..slot.rank];
                    let mid = &mid[t * mid_width + column..][..slot.rank];
                    sum += mid.iter().zip(b).map(|(m, b)| m.to_f32() * b).sum::<f32>();
                }
                column += slot.rank;
            }
            y.put(t * outputs + o, sum);
        }
    }
}

/// [`forward`] in integers.
fn forward_bytes<E: Element>(mut y: Target<'_, E>, x: &[E], layer: &Layer<'_, E>, rows: usize) {
    let (outputs, inputs) = (layer.matrix.rows(), layer.matrix.cols());
    for t in 0..rows {
        let x = &x[t * inputs..][..inputs];
        let peak = x.iter().fold(0.0f32, |peak, x| peak.max(x.to_f32().abs()));
        let inverse = if peak > 0.0 { 127.0 / peak } else { 0.0 };
        let byte = |x: &E| (x.to_f32() * inverse).clamp(-127.0, 127.0).round_ties_even() as i32;
        let bytes: Vec<i32> = x.iter().map(byte).collect();
        for o in 0..outputs {
            let (weights, scale) = layer.matrix.read_bytes(o);
            let sum: i32 = bytes.iter().zip(weights).map(|(x, w)| x * i32::from(w)).sum();
            let value = sum as f32 * (peak / 127.0 * scale) + layer.bias.map_or(0.0, |bias| bias[o]);
            y.put(t * outputs + o, value);
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
    let pairs = pairs(layer);
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
    for (slot, (a, b)) in &pairs {
        for t in 0..rows {
            for r in 0..slot.rank {
                let dot = slot.rows.clone().zip(b.iter().skip(r).step_by(slot.rank));
                let sum: f32 = dot.map(|(o, b)| d_y[t * outputs + o].to_f32() * b).sum();
                let d = E::from_f32(slot.scale * sum);
                d_mid[t * mid_width + column + r] = d;
                for i in 0..inputs {
                    sums[t * inputs + i] += d.to_f32() * a[r * inputs + i];
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

/// See [`super::weight_backward`].
pub fn weight_backward<E: Element>(gradient: &mut [f32], x: &[E], d_y: &[E], inputs: usize, outputs: usize) {
    for (x, d_y) in x.chunks_exact(inputs).zip(d_y.chunks_exact(outputs)) {
        for (gradient, d_y) in gradient.chunks_exact_mut(inputs).zip(d_y) {
            gradient.iter_mut().zip(x).for_each(|(g, x)| *g += d_y.to_f32() * x.to_f32());
        }
    }
}
