//! Cross-entropy and log-probabilities over the vocabulary, on chosen rows only, without keeping all logits.
//!
//! `z = h W^T`, `loss = logsumexp(z) - z[target]`, `d_z = weight (softmax(z) - onehot(target))`, `d_h = d_z W`,
//! `d_W = d_z^T h`.

use std::ops::Range;

use crate::linear::bytes::Rounded;
use crate::linear::kernel::{COLUMNS, MOST_ROWS, ROWS};
use crate::linear::left::{Left, LeftLayout, RowPanels};
use crate::linear::product::multiply;
use crate::linear::words::Scratch;
use crate::linear::{self, PackedMatrix, Sink, Target};
use crate::pool::{self, Shared};
use crate::{Element, Isa, isa};

/// Bytes of logits that are kept at a time, more or less. More rows share the work of expanding the head.
const CHUNK_BYTES: usize = 20 << 20;
/// Columns of the vocabulary whose exponentials are summed at a time, in panels of the head.
const SEGMENT_PANELS: usize = 32;
const SEGMENT: usize = SEGMENT_PANELS * COLUMNS;

/// Writes `losses` and, if asked, `d_h`; then also adds the head's gradient to `d_head`, if asked.
/// # Shapes
/// `h`, `d_h`: `(L, C)`; `losses`, `targets`, `weights`: `(L)`; `head`, `d_head`: `(V, C)`.
/// # Panics
/// When a slice is shorter than its shape or a target is not below `V`.
pub fn forward_backward<E: Element>(
    losses: &mut [f32],
    mut d_h: Option<&mut [f32]>,
    mut d_head: Option<&mut [f32]>,
    h: &[E],
    head: &PackedMatrix<E>,
    targets: &[u32],
    weights: &[f32],
) {
    if isa::current() == Isa::Scalar {
        return reference::forward_backward(losses, d_h, d_head, h, head, targets, weights);
    }
    let width = head.cols();
    let (losses, weights) = (&mut losses[..targets.len()], &weights[..targets.len()]);
    for chunk in chunks(targets.len(), head.rows()) {
        let wanted: Vec<(usize, u32)> = targets[chunk.clone()].iter().copied().enumerate().collect();
        let mut picked = vec![0.0; chunk.len()];
        let row = |t: usize| &h[(chunk.start + t) * width..][..width];
        let mut logits = Logits::new(chunk.len(), row, head, &wanted, &mut picked);
        let lse: Vec<f32> = (0..chunk.len()).map(|t| logits.log_sum_exp(t)).collect();
        for (loss, (lse, z)) in losses[chunk.clone()].iter_mut().zip(lse.iter().zip(&picked)) {
            *loss = lse - z;
        }
        if let Some(d_h) = d_h.as_deref_mut() {
            let d_h = &mut d_h[chunk.start * width..chunk.end * width];
            let mut d_z = Scratch::take(if d_head.is_some() { chunk.len() * head.rows() } else { 0 });
            let d_z: &mut [E] = bytemuck::cast_slice_mut(&mut d_z);
            let (targets, weights) = (&targets[chunk.clone()], &weights[chunk.clone()]);
            logits.backward(d_h, d_head.is_some().then_some(&mut *d_z), head, &lse, targets, weights);
            if let Some(d_head) = d_head.as_deref_mut() {
                let (h, d_z) =
                    (&h[chunk.start * width..chunk.end * width], &d_z[..chunk.len() * head.rows()]);
                linear::weight_backward(d_head, h, d_z, width, head.rows());
            }
        }
    }
}

/// `out[i] = log softmax(h[row] W^T)[token]` for each `(row, token)`, sorted by row.
/// # Panics
/// When a row or a token does not exist.
pub fn log_probs<E: Element>(out: &mut [f32], h: &[E], head: &PackedMatrix<E>, wanted: &[(u32, u32)]) {
    if isa::current() == Isa::Scalar {
        return reference::log_probs(out, h, head, wanted);
    }
    let width = head.cols();
    let out = &mut out[..wanted.len()];
    let mut rows: Vec<u32> = wanted.iter().map(|(row, _)| *row).collect();
    rows.dedup();
    let mut at = 0;
    for chunk in chunks(rows.len(), head.rows()) {
        let rows = &rows[chunk];
        let mut local = Vec::new();
        for (t, row) in rows.iter().enumerate() {
            let tokens = wanted[at + local.len()..].iter().take_while(|(r, _)| r == row);
            local.extend(tokens.map(|(_, token)| (t, *token)));
        }
        let out = &mut out[at..at + local.len()];
        let logits = Logits::new(rows.len(), |t| &h[rows[t] as usize * width..][..width], head, &local, out);
        let lse: Vec<f32> = (0..rows.len()).map(|t| logits.log_sum_exp(t)).collect();
        out.iter_mut().zip(&local).for_each(|(out, (t, _))| *out -= lse[*t]);
        at += local.len();
    }
}

/// Rows cut as even as can be.
fn chunks(rows: usize, vocabulary: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (CHUNK_BYTES / (4 * vocabulary.max(1))).clamp(4 * ROWS, 16 * ROWS);
    let count = rows.div_ceil(most);
    (0..count).map(move |i| i * rows / count..(i + 1) * rows / count)
}

/// The rows of `h`, ready for products with the head.
enum Rows {
    Values { rows: RowPanels, packed: Scratch, layout: LeftLayout },
    Bytes(Rounded),
}

impl Rows {
    fn new<'h, E: Element>(
        rows: RowPanels,
        row: impl Fn(usize) -> &'h [E] + Sync,
        head: &PackedMatrix<E>,
    ) -> Self {
        if head.is_bytes() {
            return Self::Bytes(Rounded::new(rows.rows, head.cols(), row));
        }
        let layout = LeftLayout::new::<E>(head.cols().div_ceil(E::pair()));
        let mut packed = Scratch::take(layout.len(rows.rows));
        let shared = Shared::new(&mut packed);
        for panel in 0..rows.count {
            // SAFETY: only this thread uses the words.
            unsafe { layout.pack(&shared, E::kernels(), rows.rows_of(panel), 0, &row) };
        }
        Self::Values { rows, packed, layout }
    }

    fn multiply<E: Element>(
        &self,
        head: &PackedMatrix<E>,
        panels: Range<usize>,
        store: &(impl Fn(Range<usize>, usize, &mut [f32]) + Sync),
    ) {
        match self {
            Self::Bytes(rounded) => rounded.multiply(head, panels, store),
            Self::Values { rows, packed, layout } => {
                let left = Left { words: packed, layout: *layout };
                multiply::<E>(*rows, left, &head.forward(panels), left, &(), store);
            }
        }
    }
}

/// The logits of some rows, as exponentials: `exp(z - max)` with a maximum for each row and segment.
struct Logits {
    rows: RowPanels,
    vocabulary: usize,
    stride: usize,
    /// `(rows, stride)`.
    values: Scratch,
    /// The maximum and the sum of `exp(z - max)`, `(segments, rows)`.
    parts: Vec<(f32, f32)>,
}

impl Logits {
    /// Also writes the logit of each `(row, token)` of `wanted`, which is sorted by row, to `picked`.
    fn new<'h, E: Element>(
        rows: usize,
        row: impl Fn(usize) -> &'h [E] + Sync,
        head: &PackedMatrix<E>,
        wanted: &[(usize, u32)],
        picked: &mut [f32],
    ) -> Self {
        let (kernels, vocabulary, rows) = (E::kernels(), head.rows(), RowPanels::new::<E>(rows));
        assert!(
            wanted.iter().all(|(_, token)| (*token as usize) < vocabulary),
            "a token is not below {vocabulary}"
        );
        let left = Rows::new(rows, row, head);
        // An odd number of cache lines between rows: a tile's rows do not compete for the same cache sets.
        let stride = vocabulary.div_ceil(COLUMNS) * COLUMNS + 16;
        let segments = vocabulary.div_ceil(SEGMENT);
        let mut values = Scratch::take(rows.rows * stride);
        let mut parts = vec![(f32::NEG_INFINITY, 0.0); segments * rows.rows];
        let shared = Shared::new(bytemuck::cast_slice_mut::<u32, f32>(&mut values));
        let (shared_parts, shared_picked) = (Shared::new(&mut parts), Shared::new(picked));
        pool::run(segments, &|segment| {
            let panels =
                segment * SEGMENT_PANELS..((segment + 1) * SEGMENT_PANELS).min(vocabulary.div_ceil(COLUMNS));
            let columns = segment * SEGMENT..((segment + 1) * SEGMENT).min(vocabulary);
            left.multiply(head, panels.clone(), &|rows: Range<usize>, panel, tile: &mut [f32]| {
                let first = (panels.start + panel) * COLUMNS;
                for (t, tile) in rows.zip(tile.chunks_exact(COLUMNS)) {
                    // SAFETY: no other job has these columns; the padding of the last segment lies in the row.
                    let out = unsafe { shared.range(t * stride + first..t * stride + first + COLUMNS) };
                    out.copy_from_slice(tile);
                }
            });
            for (i, (t, token)) in wanted.iter().enumerate() {
                if columns.contains(&(*token as usize)) {
                    let at = t * stride + *token as usize;
                    // SAFETY: no other job has this token, and each i is one.
                    unsafe { shared_picked.range(i..i + 1)[0] = shared.range(at..at + 1)[0] };
                }
            }
            // SAFETY: each segment has its own parts.
            let parts = unsafe { shared_parts.range(segment * rows.rows..(segment + 1) * rows.rows) };
            for (t, part) in parts.iter_mut().enumerate() {
                // SAFETY: as for the tiles.
                let z = unsafe { shared.range(t * stride + columns.start..t * stride + columns.end) };
                let max = (kernels.max)(z);
                *part = (max, (kernels.exp)(z, max));
            }
        });
        Self { rows, vocabulary, stride, values, parts }
    }

    fn log_sum_exp(&self, t: usize) -> f32 {
        let parts = || self.parts.iter().skip(t).step_by(self.rows.rows);
        let max = parts().fold(f32::NEG_INFINITY, |max, part| max.max(part.0));
        let sum: f64 = parts().map(|(m, sum)| f64::from(*sum) * f64::from(m - max).exp()).sum();
        max + sum.ln() as f32
    }

    /// Uses up the exponentials; also writes the gradients of the logits, `(rows, vocabulary)`, if asked.
    fn backward<E: Element>(
        &mut self,
        d_h: &mut [f32],
        d_z: Option<&mut [E]>,
        head: &PackedMatrix<E>,
        lse: &[f32],
        targets: &[u32],
        weights: &[f32],
    ) {
        let (kernels, rows, stride, vocabulary) = (E::kernels(), self.rows, self.stride, self.vocabulary);
        let layout = LeftLayout::new::<E>(vocabulary.div_ceil(E::pair()));
        let mut packed = Scratch::take(layout.len(rows.rows));
        let shared = Shared::new(&mut packed);
        let values = Shared::new(bytemuck::cast_slice_mut::<u32, f32>(&mut self.values));
        let d_z = d_z.map(Shared::new);
        let parts = &self.parts;
        let segments = vocabulary.div_ceil(SEGMENT);
        pool::run(segments * rows.count, &|job| {
            let (panel, segment) = (job / segments, job % segments);
            let columns = segment * SEGMENT..((segment + 1) * SEGMENT).min(vocabulary);
            let panel = rows.rows_of(panel);
            let mut rounded = Scratch::take(MOST_ROWS * SEGMENT);
            let rounded: &mut [E] = bytemuck::cast_slice_mut(&mut rounded);
            for (t, out) in panel.clone().zip(rounded.chunks_exact_mut(SEGMENT)) {
                // SAFETY: no other job has these rows and columns.
                let e = unsafe { values.range(t * stride + columns.start..t * stride + columns.end) };
                (kernels.scale)(e, weights[t] * (parts[segment * rows.rows + t].0 - lse[t]).exp());
                if columns.contains(&(targets[t] as usize)) {
                    e[targets[t] as usize - columns.start] -= weights[t];
                }
                (kernels.narrow)(&mut out[..e.len()], e);
                if let Some(d_z) = &d_z {
                    let row = t * vocabulary;
                    // SAFETY: as above.
                    let d_z = unsafe { d_z.range(row + columns.start..row + columns.end) };
                    d_z.copy_from_slice(&out[..columns.len()]);
                }
            }
            let row = |t: usize| &rounded[(t - panel.start) * SEGMENT..][..columns.len()];
            // SAFETY: as above, in the packed order.
            unsafe { layout.pack(&shared, kernels, panel.clone(), columns.start / E::pair(), row) };
        });
        let left = Left { words: &packed, layout };
        let sink = Sink::<E>::new(Target::Wide(d_h), None, head.cols(), rows.rows);
        multiply::<E>(rows, left, &head.backward(), left, &(), &|rows, panel, tile: &mut [f32]| {
            sink.put(rows, panel, tile);
        });
    }
}

/// The plain versions.
pub mod reference {
    use super::{Element, PackedMatrix, Target};
    use crate::linear::{Layer, reference};

    fn logits<E: Element>(h: &[E], head: &PackedMatrix<E>) -> Vec<f32> {
        let mut z = vec![0.0; head.rows()];
        let layer = Layer { matrix: head, bias: None, slots: &[], adapter: None };
        reference::forward(Target::Wide(&mut z), &mut [], h, &layer, 1);
        z
    }

    fn log_sum_exp(z: &[f32]) -> f32 {
        let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        max + z.iter().map(|z| (z - max).exp()).sum::<f32>().ln()
    }

    /// See [`super::forward_backward`].
    pub fn forward_backward<E: Element>(
        losses: &mut [f32],
        mut d_h: Option<&mut [f32]>,
        mut d_head: Option<&mut [f32]>,
        h: &[E],
        head: &PackedMatrix<E>,
        targets: &[u32],
        weights: &[f32],
    ) {
        let width = head.cols();
        let mut row = vec![0.0; width];
        for (l, h) in h.chunks_exact(width).take(targets.len()).enumerate() {
            let z = logits(h, head);
            let lse = log_sum_exp(&z);
            losses[l] = lse - z[targets[l] as usize];
            let Some(d_h) = d_h.as_deref_mut() else { continue };
            let d_h = &mut d_h[l * width..][..width];
            d_h.fill(0.0);
            for (token, z) in z.iter().enumerate() {
                let hit = if token == targets[l] as usize { 1.0 } else { 0.0 };
                let d = weights[l] * ((z - lse).exp() - hit);
                head.read_row(token, &mut row);
                d_h.iter_mut().zip(&row).for_each(|(d_h, w)| *d_h += d * w);
                if let Some(d_head) = d_head.as_deref_mut() {
                    let d_row = &mut d_head[token * width..][..width];
                    d_row.iter_mut().zip(h).for_each(|(d_w, h)| *d_w += d * h.to_f32());
                }
            }
        }
    }

    /// See [`super::log_probs`].
    pub fn log_probs<E: Element>(out: &mut [f32], h: &[E], head: &PackedMatrix<E>, wanted: &[(u32, u32)]) {
        let width = head.cols();
        let mut last: Option<(u32, Vec<f32>, f32)> = None;
        for (out, &(row, token)) in out.iter_mut().zip(wanted) {
            if last.as_ref().is_none_or(|(r, ..)| *r != row) {
                let z = logits(&h[row as usize * width..][..width], head);
                let lse = log_sum_exp(&z);
                last = Some((row, z, lse));
            }
            if let Some((_, z, lse)) = &last {
                *out = z[token as usize] - lse;
            }
        }
    }
}
