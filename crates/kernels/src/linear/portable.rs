//! The kernels in plain Rust: for Arm, where the compiler turns them into NEON, and as building blocks elsewhere.

#![allow(clippy::inline_always)] // into functions compiled for wider instruction sets

use super::exp;
use super::kernel::{COLUMNS, Compute, Segment};

pub(super) fn tile<E: Compute>(
    c: &mut [f32],
    add: bool,
    segments: &[Segment<'_>],
    rows: usize,
    width: usize,
) {
    const LANES: usize = 16;
    for half in (0..width).step_by(LANES) {
        for row in 0..rows {
            let c = &mut c[row * COLUMNS + half..][..LANES];
            let mut sums = [0.0; LANES];
            if add {
                sums.copy_from_slice(c);
            }
            for s in segments {
                let a = s.a[..s.words * rows].chunks_exact(rows);
                for (a, b) in a.zip(s.b[..s.words * width].chunks_exact(width)) {
                    for (sum, b) in sums.iter_mut().zip(&b[half..half + LANES]) {
                        *sum = E::multiply_add(*sum, a[row], *b);
                    }
                }
            }
            c.copy_from_slice(&sums);
        }
    }
}

#[inline(always)]
pub(super) fn pack<E: Compute>(out: &mut [u32], stride: usize, rows: &[&[E]]) {
    for (r, row) in rows.iter().enumerate() {
        let words = row.len() / E::PAIR;
        for (k, values) in row.chunks_exact(E::PAIR).enumerate() {
            out[k * stride + r] = word(values);
        }
        if words * E::PAIR < row.len() {
            out[words * stride + r] = word(&row[words * E::PAIR..]);
        }
    }
}

#[inline(always)]
pub(super) fn weave<E: Compute>(
    out: &mut [u32],
    stride: usize,
    from: &[E],
    from_stride: usize,
    rows: usize,
    cols: usize,
) {
    for (k, t) in (0..rows).step_by(E::PAIR).enumerate() {
        let out = &mut out[k * stride..][..cols];
        let first = &from[t * from_stride..][..cols];
        if E::PAIR == 1 {
            out.copy_from_slice(bytemuck::cast_slice(first));
        } else if t + 1 < rows {
            let second = &from[(t + 1) * from_stride..][..cols];
            for ((out, a), b) in out.iter_mut().zip(first).zip(second) {
                *out = word(&[*a, *b]);
            }
        } else {
            for (out, a) in out.iter_mut().zip(first) {
                *out = word(&[*a]);
            }
        }
    }
}

/// One word of up to `PAIR` values; missing ones are zero.
#[inline(always)]
fn word<E: Compute>(values: &[E]) -> u32 {
    let mut pair = [E::default(); 2];
    for (to, from) in pair.iter_mut().zip(values) {
        *to = *from;
    }
    bytemuck::cast_slice::<E, u32>(&pair[..E::PAIR])[0]
}

#[inline(always)]
pub(super) fn turn<E: Compute>(out: &mut [u32], block: &[u32]) {
    let at = |k: usize, n: usize| (k / E::PAIR * COLUMNS + n) * E::PAIR + k % E::PAIR;
    let len = COLUMNS * COLUMNS;
    let (out, block) = (bytemuck::cast_slice_mut::<u32, E>(out), bytemuck::cast_slice::<u32, E>(block));
    let (out, block) = (&mut out[..len], &block[..len]);
    for n in 0..COLUMNS {
        for k in 0..COLUMNS {
            out[at(n, k)] = block[at(k, n)];
        }
    }
}

#[inline(always)]
pub(super) fn narrow<E: Compute>(out: &mut [E], values: &[f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = E::round(*value);
    }
}

#[inline(always)]
pub(super) fn add(out: &mut [f32], values: &[f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out += value;
    }
}

#[inline(always)]
pub(super) fn scale(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in values.chunks(16) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane = greater(*lane, *value));
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, greater)
}

/// Sixteen partial sums, so that the compiler may use vectors of any width and the order stays fixed.
#[inline(always)]
pub(super) fn exp(values: &mut [f32], shift: f32) -> f32 {
    let mut sums = [0.0; 16];
    for chunk in values.chunks_mut(16) {
        for (value, sum) in chunk.iter_mut().zip(&mut sums) {
            *value = exp::exp(*value - shift);
            *sum += *value;
        }
    }
    sums.iter().sum()
}

pub(super) fn spin<E: Compute>(rounds: usize) -> usize {
    let mut sums = [[0.0; 16]; 4];
    for _ in 0..rounds {
        for sum in sums.as_flattened_mut() {
            *sum = E::multiply_add(*sum, 0x3f80_3f80, 0x3f80_3f80);
        }
    }
    std::hint::black_box(sums);
    rounds * sums.as_flattened().len() * E::PAIR * 2
}
