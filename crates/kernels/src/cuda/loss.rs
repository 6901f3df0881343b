//! Cross-entropy and log-probabilities over the vocabulary, some rows at a time.

use std::ops::Range;

use super::device::{Lane, Values};
use super::linear::Matrix;
use super::pass::Pass;
use super::product::{Operand, Place};
use super::scratch::Kind;
use super::{Cuda, args};
use crate::bf16;

/// Bytes of f32 logits that are kept at a time: a third of all, but at least and at most so many. The gradient of the
/// head's input is a product of as many rows, and of few ones it leaves most of a device idle.
const LOGIT_BYTES: [usize; 2] = [256 << 20, 512 << 20];

/// Some rows of `h` times the head, in scratch.
struct Logits {
    address: u64,
    rows: Range<usize>,
    stride: usize,
}

impl Cuda {
    pub(super) fn loss(
        &self,
        losses: &mut Values<f32>,
        d_h: &mut Values<f32>,
        d_head: Option<(&mut Values<f32>, usize)>,
        h: &Values<bf16>,
        head: &Matrix,
        pass: &Pass,
    ) {
        let (vocabulary, width) = (head.rows(), head.cols());
        let d_head = d_head.map(|(gradients, at)| gradients.at(at, vocabulary * width));
        let read = h.first(pass.chosen * width);
        let (losses, d_h) = (losses.first(pass.chosen), d_h.first(pass.chosen * width));
        self.each_logits(h, head, pass.chosen, |logits| {
            let Logits { address, rows, stride } = logits;
            let (first, count) = (rows.start as u64, rows.len());
            // SAFETY: scratch and buffers hold these rows; the pass has a target and a weight for each.
            unsafe {
                self.launch(
                    "cross_entropy",
                    count,
                    512,
                    args![
                        losses + 4 * first,
                        address,
                        pass.targets.address + 4 * first,
                        pass.weights.address + 4 * first,
                        count,
                        vocabulary,
                        stride
                    ],
                );
            }
            let to = d_h + 4 * first * width as u64;
            self.each_slice(head, |slice, weight| {
                let place = Place { address: to, stride: width, wide: true, add: slice.start > 0 };
                // The gradients of a row of logits begin where the logits did.
                let d_z = Operand::plain(address + 2 * slice.start as u64, 2 * stride);
                let sizes = [count, width, slice.len()];
                // SAFETY: as above.
                unsafe {
                    self.products.run(Lane::Main, place, d_z, Operand::plain(weight, width), sizes, 1.0);
                }
            });
            if let Some(gradient) = d_head {
                let place = Place { address: gradient, stride: width, wide: true, add: true };
                let d_z = Operand::transposed(address, 2 * stride);
                let sizes = [vocabulary, width, count];
                let h = Operand::plain(read + 2 * (rows.start * width) as u64, width);
                // SAFETY: as above; the gradient is as large as the head.
                unsafe { self.products.run(Lane::Main, place, d_z, h, sizes, 1.0) }
            }
        });
    }

    pub(super) fn log_probabilities(
        &self,
        out: &mut Values<f32>,
        h: &Values<bf16>,
        head: &Matrix,
        pass: &Pass,
    ) {
        let wanted = pass.wanted;
        self.each_logits(h, head, pass.chosen, |Logits { address, rows, stride }| {
            let count = rows.len();
            let sums = self.scratch.take(Kind::LogSums, 4 * count);
            // SAFETY: scratch holds these rows. Idle wanted ones write nothing, so that `out` need not hold them.
            unsafe {
                self.launch("log_sum_exp", count, 512, args![sums, address, count, head.rows(), stride]);
                let args = args![
                    out.first(0),
                    address,
                    sums,
                    wanted.address,
                    wanted.count,
                    rows.start,
                    count,
                    stride
                ];
                self.launch("pick", wanted.count.div_ceil(256), 256, args);
            }
        });
    }

    fn each_logits(&self, h: &Values<bf16>, head: &Matrix, rows: usize, mut body: impl FnMut(Logits)) {
        let (vocabulary, width) = (head.rows(), head.cols());
        let stride = vocabulary.next_multiple_of(8);
        let bytes = (4 * stride * rows / 3).clamp(LOGIT_BYTES[0], LOGIT_BYTES[1]);
        let most = (bytes / (4 * stride) / 64 * 64).max(64);
        // As even as can be.
        let at_once = rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(64);
        let h = h.first(rows * width);
        self.side.join();
        for first in (0..rows).step_by(at_once.max(1)) {
            let rows = first..rows.min(first + at_once);
            let address = self.scratch.take(Kind::Logits, 4 * rows.len() * stride);
            let h = Operand::plain(h + 2 * (first * width) as u64, width);
            self.each_slice(head, |slice, weight| {
                let address = address + 4 * slice.start as u64;
                let place = Place { address, stride, wide: true, add: false };
                let (weight, sizes) = (Operand::transposed(weight, width), [rows.len(), slice.len(), width]);
                // SAFETY: scratch holds the rows, `h` and the head are as long as their shapes.
                unsafe { self.products.run(Lane::Main, place, h, weight, sizes, 1.0) }
            });
            body(Logits { address, rows, stride });
        }
    }
}
