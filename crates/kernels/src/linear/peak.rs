//! What the processor could do if memory cost nothing.

use std::time::{Duration, Instant};

use crate::{Element, pool};

/// Operations a second (a multiply-add counts as two) that all threads reach together in multiply-adds between
/// registers, with the instructions that products of `E` use. Measured, in about a tenth of a second.
pub fn peak_flops<E: Element>() -> f64 {
    let kernels = E::kernels();
    let start = Instant::now();
    let mut rounds = 1000;
    let mut best: f64 = 0.0;
    while start.elapsed() < Duration::from_millis(100) {
        let turn = Instant::now();
        let operations = std::sync::atomic::AtomicUsize::new(0);
        pool::run(pool::threads(), &|_| {
            operations.fetch_add((kernels.spin)(rounds), std::sync::atomic::Ordering::Relaxed);
        });
        let seconds = turn.elapsed().as_secs_f64();
        if seconds < 2e-3 {
            rounds *= 2;
        }
        best = best.max(operations.into_inner() as f64 / seconds);
    }
    best
}
