//! Cross-entropy and log-probabilities over the vocabulary, on chosen rows only, without keeping all logits.
//!
//! `z = h W^T`, `loss = logsumexp(z) - z[target]`, `d_h = weight (softmax(z) - onehot(target)) W`.

use crate::Element;
use crate::linear::PackedMatrix;

/// Writes `losses` and, if asked, `d_h`.
/// # Shapes
/// `h`, `d_h`: `(L, C)`; `losses`, `targets`, `weights`: `(L)`; `head`: `(V, C)`.
pub fn forward_backward<E: Element>(
    losses: &mut [f32],
    d_h: Option<&mut [f32]>,
    h: &[E],
    head: &PackedMatrix<E>,
    targets: &[u32],
    weights: &[f32],
) {
    reference::forward_backward(losses, d_h, h, head, targets, weights);
}

/// `out[i] = log softmax(h[row] W^T)[token]` for each `(row, token)`, sorted by row.
pub fn log_probs<E: Element>(out: &mut [f32], h: &[E], head: &PackedMatrix<E>, wanted: &[(u32, u32)]) {
    reference::log_probs(out, h, head, wanted);
}

/// The plain versions.
pub mod reference {
    use super::{Element, PackedMatrix};

    fn logits<E: Element>(h: &[E], head: &PackedMatrix<E>) -> Vec<f32> {
        let mut row = vec![0.0; head.cols()];
        (0..head.rows())
            .map(|token| {
                head.read_row(token, &mut row);
                h.iter().zip(&row).map(|(h, w)| h.to_f32() * w).sum()
            })
            .collect()
    }

    fn log_sum_exp(z: &[f32]) -> f32 {
        let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        max + z.iter().map(|z| (z - max).exp()).sum::<f32>().ln()
    }

    /// See [`super::forward_backward`].
    pub fn forward_backward<E: Element>(
        losses: &mut [f32],
        mut d_h: Option<&mut [f32]>,
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
