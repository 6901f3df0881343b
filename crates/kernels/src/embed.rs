//! Token embedding: rows of a table by index.

use crate::linear::PackedMatrix;
use crate::{Element, pool};

/// `x[t] = table[tokens[t]]`.
/// # Shapes
/// `x`: `(T, C)`, `table`: `(V, C)`, `tokens`: `(T)`.
/// # Writes
/// Overwrites `x[..T * C]`.
/// # Panics
/// When a token is not below `V` or `x` is too short.
pub fn forward<E: Element>(x: &mut [f32], table: &PackedMatrix<E>, tokens: &[u32]) {
    let width = table.cols();
    pool::for_each_rows(tokens.len(), 16, pool::Rows::new(x, width), |range, x| {
        for (row, &token) in x.chunks_exact_mut(width).zip(&tokens[range]) {
            table.read_row(token as usize, row);
        }
    });
}

/// `x[t] += table[rows[t]]`.
/// # Shapes
/// `x`: `(T, C)`, `table`: `(V, C)`, `rows`: `(T)`.
/// # Panics
/// When a row is not below `V` or `x` is too short.
pub fn add<E: Element>(x: &mut [f32], table: &PackedMatrix<E>, rows: &[u32]) {
    let width = table.cols();
    pool::for_each_rows(rows.len(), 16, pool::Rows::new(x, width), |range, x| {
        let mut added = vec![0.0; width];
        for (x, &row) in x.chunks_exact_mut(width).zip(&rows[range]) {
            table.read_row(row as usize, &mut added);
            x.iter_mut().zip(&added).for_each(|(x, added)| *x += added);
        }
    });
}

/// `to[i] = from[rows[i]]`, rows of `width` values.
pub fn gather<V: Copy>(to: &mut [V], from: &[V], rows: &[u32], width: usize) {
    for (to, &row) in to.chunks_exact_mut(width).zip(rows) {
        to.copy_from_slice(&from[row as usize * width..][..width]);
    }
}

/// `to[rows[i]] = from[i]`, and zero in every other row of `to`.
pub fn spread<V: Copy + Default>(to: &mut [V], from: &[V], rows: &[u32], width: usize) {
    to.fill(V::default());
    for (from, &row) in from.chunks_exact(width).zip(rows) {
        to[row as usize * width..][..width].copy_from_slice(from);
    }
}

/// `gradient[rows[t]] += d_x[t]`, one after the other: the backward pass of [`forward`] and [`add`].
/// # Shapes
/// `gradient`: `(V, C)`, `d_x`: `(T, C)`, `rows`: `(T)`.
/// # Panics
/// When a row is not below `V` or `d_x` is too short.
pub fn backward(gradient: &mut [f32], d_x: &[f32], rows: &[u32], width: usize) {
    assert!(d_x.len() >= rows.len() * width, "embed::backward: too short");
    for (d_x, &row) in d_x.chunks_exact(width).zip(rows) {
        let sums = &mut gradient[row as usize * width..][..width];
        sums.iter_mut().zip(d_x).for_each(|(sum, d)| *sum += d);
    }
}
