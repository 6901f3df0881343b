//! Rotary position embedding (Su et al., 2021), in the rotate-half layout of Hugging Face:
//! `(a, b) -> (a cos - b sin, b cos + a sin)` for `a = x[i]`, `b = x[i + D/2]`.
//! A rotation is orthogonal, so its backward pass is the rotation by the negative angle.

use crate::lanes::{Kernel, Lanes, dispatch, rows_per_job};
use crate::pool::{Rows, for_each_rows};
use crate::{AttentionShape, Element};

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// By the position's angle.
    Forward,
    /// Back: the gradient.
    Backward,
}

/// Rotates the query and key heads of `qkv` in place.
/// # Shapes
/// `qkv`: `(T, (H + 2 G) D)`; `table`: `(positions, D)`, `D/2` cosines then `D/2` sines; `positions`: `(T)`.
/// # Panics
/// When a position is not in the table.
pub fn apply<E: Element>(
    qkv: &mut [E],
    table: &[f32],
    positions: &[u32],
    shape: &AttentionShape,
    direction: Direction,
) {
    let width = shape.qkv_width();
    for_each_rows(positions.len(), rows_per_job(width), Rows::new(qkv, width), |rows, qkv| {
        dispatch(Apply { qkv, table, positions: &positions[rows], shape, direction });
    });
}

struct Apply<'a, E> {
    qkv: &'a mut [E],
    table: &'a [f32],
    positions: &'a [u32],
    shape: &'a AttentionShape,
    direction: Direction,
}

impl<E: Element> Kernel for Apply<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { qkv, table, positions, shape, direction } = self;
        let (size, half) = (shape.head_dim, shape.head_dim / 2);
        let sign = l.splat(if direction == Direction::Forward { 1.0 } else { -1.0 });
        for (row, &position) in qkv.chunks_exact_mut(shape.qkv_width()).zip(positions) {
            let (cos, sin) = table[position as usize * size..][..size].split_at(half);
            for head in row[..(shape.heads + shape.kv_heads) * size].chunks_exact_mut(size) {
                let (left, right) = head.split_at_mut(half);
                let angles = cos.chunks(L::N).zip(sin[..half].chunks(L::N));
                let pairs = left.chunks_mut(L::N).zip(right[..half].chunks_mut(L::N));
                for ((left, right), (cos, sin)) in pairs.zip(angles) {
                    let (a, b, cos, sin) =
                        (l.read(left), l.read(right), l.read(cos), l.mul(sign, l.read(sin)));
                    l.write(left, l.sub(l.mul(a, cos), l.mul(b, sin)));
                    l.write(right, l.fma(a, sin, l.mul(b, cos)));
                }
            }
        }
    }
}

/// The plain version.
pub mod reference {
    use super::{AttentionShape, Direction, Element};

    /// See [`super::apply`].
    pub fn apply<E: Element>(
        qkv: &mut [E],
        table: &[f32],
        positions: &[u32],
        shape: &AttentionShape,
        direction: Direction,
    ) {
        let size = shape.head_dim;
        let half = size / 2;
        let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
        for (row, &position) in qkv.chunks_exact_mut(shape.qkv_width()).zip(positions) {
            let (cos, sin) = table[position as usize * size..][..size].split_at(half);
            for head in row[..(shape.heads + shape.kv_heads) * size].chunks_exact_mut(size) {
                for i in 0..half {
                    let (a, b) = (head[i].to_f32(), head[i + half].to_f32());
                    head[i] = E::from_f32(a * cos[i] - sign * b * sin[i]);
                    head[i + half] = E::from_f32(b * cos[i] + sign * a * sin[i]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::Mask;

    fn table(positions: usize, size: usize) -> Vec<f32> {
        let half = size / 2;
        let angle = |p: usize, i: usize| p as f32 * 0.7f32.powi(i as i32);
        let mut table = vec![0.0; positions * size];
        for p in 0..positions {
            for i in 0..half {
                table[p * size + i] = angle(p, i).cos();
                table[p * size + half + i] = angle(p, i).sin();
            }
        }
        table
    }

    fn check<E: Element>(
        values: &[f32],
        positions: &[u32],
        shape: &AttentionShape,
    ) -> Result<(), TestCaseError> {
        let width = shape.qkv_width();
        let rows = positions.len();
        let start: Vec<E> = values.iter().cycle().take(rows * width).map(|&v| E::from_f32(v)).collect();
        let wide: Vec<f32> = start.iter().map(|v| v.to_f32()).collect();
        let table = table(64, shape.head_dim);
        let (size, half) = (shape.head_dim, shape.head_dim / 2);
        for direction in [Direction::Forward, Direction::Backward] {
            let (mut found, mut exact) = (start.clone(), wide.clone());
            apply(&mut found, &table, positions, shape, direction);
            reference::apply(&mut exact, &table, positions, shape, direction);
            let unit = if E::NAME == "bf16" { 1.0 / 256.0 } else { 0.0 };
            for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                let (at, c) = (i - i % width % size, i % width % size);
                let turned = i % width < (shape.heads + shape.kv_heads) * size && c < 2 * half;
                let size =
                    if turned { wide[at + c % half].abs() + wide[at + half + c % half].abs() } else { 0.0 };
                let error = (found.to_f32() - exact).abs();
                prop_assert!(
                    error <= unit * exact.abs() + 3e-7 * size,
                    "value {i}: {found:?}, expected {exact}"
                );
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn fast_is_the_reference_up_to_rounding(
            values in prop::collection::vec(-4.0f32..4.0, 1000),
            positions in prop::collection::vec(0u32..64, 1..40),
            group in 1usize..4,
            head_dim in prop_oneof![Just(64usize), 1usize..80],
        ) {
            let shape =
                AttentionShape { heads: 2 * group, kv_heads: 2, head_dim, scale: 1.0, mask: Mask::Causal, window: None };
            check::<f32>(&values, &positions, &shape)?;
            check::<bf16>(&values, &positions, &shape)?;
        }
    }

    #[test]
    fn the_reference_rotates_by_the_positions_angle_and_back() {
        let shape = AttentionShape {
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            scale: 1.0,
            mask: Mask::Causal,
            window: None,
        };
        let start = vec![3.0f32, 4.0, 1.0, 0.0, 7.0, 8.0];
        let mut qkv = start.clone();
        reference::apply(&mut qkv, &table(64, 2), &[1], &shape, Direction::Forward);
        let turned = [3.0 * 1f64.cos() - 4.0 * 1f64.sin(), 4.0 * 1f64.cos() + 3.0 * 1f64.sin()];
        let expected = [turned[0], turned[1], 1f64.cos(), 1f64.sin(), 7.0, 8.0];
        for (found, expected) in qkv.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{qkv:?}, expected {expected:?}");
        }
        // The backward pass of a rotation is its transpose, which is its inverse.
        reference::apply(&mut qkv, &table(64, 2), &[1], &shape, Direction::Backward);
        for (found, start) in qkv.iter().zip(start) {
            assert!((found - start).abs() < 1e-6, "{found}, expected {start}");
        }
    }

    #[test]
    #[should_panic(expected = "range")]
    fn a_position_outside_of_the_table_is_refused() {
        let shape = AttentionShape {
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            scale: 1.0,
            mask: Mask::Causal,
            window: None,
        };
        apply(&mut [0.0f32; 6], &table(4, 2), &[4], &shape, Direction::Forward);
    }
}
