//! Sums over rows: the gradients of vectors that every row is multiplied by or adds.

use crate::lanes::{Kernel, Lanes, dispatch};
use crate::{Element, pool};

/// Columns of a job.
const JOB: usize = 64;

/// `sums[c] += sum_t values[t, c]`.
/// # Shapes
/// `sums`: `(C)`, which gives the width; `values`: `(T, C)`.
pub fn sum<E: Element>(sums: &mut [f32], values: &[E]) {
    let width = sums.len();
    pool::for_each_chunk(sums, JOB, |job, sums| {
        dispatch(Columns::<E, f32> { sums, values, factors: None, first: job * JOB, width });
    });
}

/// `sums[c] += sum_t values[t, c] factors[t, c]`.
/// # Shapes
/// `sums`: `(C)`, which gives the width; `values`, `factors`: `(T, C)`.
/// # Panics
/// When the two differ in length.
pub fn sum_products<E: Element, F: Element>(sums: &mut [f32], values: &[E], factors: &[F]) {
    assert_eq!(values.len(), factors.len(), "a factor for each value");
    let width = sums.len();
    pool::for_each_chunk(sums, JOB, |job, sums| {
        dispatch(Columns { sums, values, factors: Some(factors), first: job * JOB, width });
    });
}

/// Some columns, from `first` on.
struct Columns<'a, E, F> {
    sums: &'a mut [f32],
    values: &'a [E],
    factors: Option<&'a [F]>,
    first: usize,
    width: usize,
}

impl<E: Element, F: Element> Kernel for Columns<'_, E, F> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { sums, values, factors, first, width } = self;
        for (i, sums) in sums.chunks_mut(L::N).enumerate() {
            let at = first + i * L::N..first + i * L::N + sums.len();
            let mut total = l.read(sums);
            match factors {
                Some(factors) => {
                    for (values, factors) in values.chunks_exact(width).zip(factors.chunks_exact(width)) {
                        total = l.fma(l.read(&values[at.clone()]), l.read(&factors[at.clone()]), total);
                    }
                }
                None => {
                    for values in values.chunks_exact(width) {
                        total = l.add(total, l.read(&values[at.clone()]));
                    }
                }
            }
            l.write(sums, total);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sums_equal_the_plain_ones(rows in 0usize..9, width in 1usize..150, seed in any::<u32>()) {
            let value = |i: usize| ((i as f32 + seed as f32 * 1e-3) * 0.7).sin();
            let values: Vec<bf16> = (0..rows * width).map(|i| bf16::from_f32(value(i))).collect();
            let factors: Vec<f32> = (0..rows * width).map(|i| value(3 * i + 1)).collect();
            let start: Vec<f32> = (0..width).map(value).collect();
            let (mut sums, mut products) = (start.clone(), start.clone());
            sum(&mut sums, &values);
            sum_products(&mut products, &values, &factors);
            for c in 0..width {
                let column = (c..rows * width).step_by(width);
                let plain = column.clone().fold(start[c], |sum, i| sum + values[i].to_f32());
                let with = column.fold(start[c], |sum, i| sum + values[i].to_f32() * factors[i]);
                prop_assert!((sums[c] - plain).abs() < 1e-5, "{c}: {} {plain}", sums[c]);
                prop_assert!((products[c] - with).abs() < 1e-5, "{c}: {} {with}", products[c]);
            }
        }
    }
}
