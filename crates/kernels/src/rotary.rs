//! Rotary position embedding (Su et al., 2021), in the rotate-half layout of Hugging Face:
//! `(a, b) -> (a cos - b sin, b cos + a sin)` for `a = x[i]`, `b = x[i + D/2]`.
//! A rotation is orthogonal, so its backward pass is the rotation by the negative angle.

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
    reference::apply(qkv, table, positions, shape, direction);
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
