//! The kernels in plain Rust: where nothing wider is, and as building blocks elsewhere.

#![allow(clippy::inline_always)] // into functions compiled for wider instruction sets

use bytemuck::Zeroable;

use super::blocks::BlockFormat;
use super::bytes::{OFFSET, byte_scale, nearest};
use super::exp;
use super::kernel::{COLUMNS, Compute, Multiply, Segment, round_pair};

pub(super) fn tile<M: Multiply>(
    c: &mut [M::Sum],
    add: bool,
    segments: &[Segment<'_>],
    rows: usize,
    width: usize,
) {
    const LANES: usize = 16;
    for half in (0..width).step_by(LANES) {
        for row in 0..rows {
            let c = &mut c[row * COLUMNS + half..][..LANES];
            let mut sums = [M::Sum::zeroed(); LANES];
            if add {
                sums.copy_from_slice(c);
            }
            for s in segments {
                let a = s.a[..s.words * rows].chunks_exact(rows);
                for (a, b) in a.zip(s.b[..s.words * width].chunks_exact(width)) {
                    for (sum, b) in sums.iter_mut().zip(&b[half..half + LANES]) {
                        *sum = M::multiply_add(*sum, a[row], *b);
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
        let row = |t: usize| &from[t * from_stride..][..cols];
        if E::PAIR == 1 {
            out.copy_from_slice(bytemuck::cast_slice(row(t)));
            continue;
        }
        let first = bytemuck::cast_slice::<E, u16>(row(t)).iter().map(|v| u32::from(*v));
        if t + 1 < rows {
            let second = bytemuck::cast_slice::<E, u16>(row(t + 1)).iter().map(|v| u32::from(*v) << 16);
            out.iter_mut().zip(first.zip(second)).for_each(|(out, (first, second))| *out = first | second);
        } else {
            out.iter_mut().zip(first).for_each(|(out, first)| *out = first);
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
    let len = COLUMNS * COLUMNS / E::PAIR;
    let (out, block) = (&mut out[..len], &block[..len]);
    if E::PAIR == 1 {
        for n in 0..COLUMNS {
            for k in 0..COLUMNS {
                out[n * COLUMNS + k] = block[k * COLUMNS + n];
            }
        }
        return;
    }
    // Two rows of two values at a time.
    for (n, out) in out.chunks_exact_mut(COLUMNS).enumerate() {
        for k in 0..COLUMNS / 2 {
            let (left, right) = (block[k * COLUMNS + 2 * n], block[k * COLUMNS + 2 * n + 1]);
            out[2 * k] = left & 0xffff | right << 16;
            out[2 * k + 1] = left >> 16 | right & 0xffff_0000;
        }
    }
}

#[inline(always)]
pub(super) fn expand<E: Compute>(out: &mut [u32], block: &[u8], format: BlockFormat) {
    let (mut scales, mut minima) = ([0.0; COLUMNS], [0.0; COLUMNS]);
    for n in 0..COLUMNS {
        (scales[n], minima[n]) = format.scale(block, n);
    }
    let quants = &block[format.head()..];
    // Whole words, as many as a vector holds at a time.
    for (pair, out) in out.chunks_exact_mut(2 * COLUMNS / E::PAIR).take(COLUMNS / 2).enumerate() {
        let (first, second) = out.split_at_mut(COLUMNS);
        for n in 0..COLUMNS {
            let [low, high] = format.pair(quants, n, 2 * pair).map(|quant| scales[n] * quant + minima[n]);
            if E::PAIR == 1 {
                (first[n], second[n]) = (low.to_bits(), high.to_bits());
            } else {
                first[n] = round_pair(low, high);
            }
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
pub(super) fn widen<E: Compute>(out: &mut [f32], values: &[E]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = wide(*value);
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
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, greater);
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane = greater(*lane, *value));
    }
    lanes.into_iter().fold(rest, greater)
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

/// A stored value, exactly.
#[inline(always)]
pub(super) fn wide<E: Compute>(value: E) -> f32 {
    if E::PAIR == 2 {
        f32::from_bits(u32::from(bytemuck::cast::<E, u16>(value)) << 16)
    } else {
        bytemuck::cast(value)
    }
}

#[inline(always)]
pub(super) fn to_bytes<E: Compute>(out: &mut [i8], values: &[E]) -> (f32, i32) {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<16>();
    let mut peaks = [0.0; 16];
    for chunk in chunks {
        peaks.iter_mut().zip(chunk).for_each(|(peak, value)| *peak = greater(*peak, wide(*value).abs()));
    }
    let peak = rest.iter().fold(0.0, |peak, value| greater(peak, wide(*value).abs()));
    let (scale, inverse) = byte_scale(peaks.into_iter().fold(peak, greater));
    let (outs, out_rest) = out.as_chunks_mut::<16>();
    let mut sums = [0; 16];
    for (out, chunk) in outs.iter_mut().zip(chunks) {
        for ((out, value), sum) in out.iter_mut().zip(chunk).zip(&mut sums) {
            *out = nearest(wide(*value) * inverse);
            *sum += i32::from(*out);
        }
    }
    for ((out, value), sum) in out_rest.iter_mut().zip(rest).zip(&mut sums) {
        *out = nearest(wide(*value) * inverse);
        *sum += i32::from(*out);
    }
    (scale, sums.iter().sum())
}

#[inline(always)]
pub(super) fn from_sums(out: &mut [f32], sums: &[i32], start: i32, factor: f32, scales: &[f32]) {
    for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
        *out = (sum - start) as f32 * (factor * scale);
    }
}

#[inline(always)]
pub(super) fn peaks(peaks: &mut [f32; COLUMNS], values: &[f32]) {
    for values in values.as_chunks::<COLUMNS>().0 {
        for (peak, value) in peaks.iter_mut().zip(values) {
            let magnitude = value.abs();
            *peak = if magnitude > *peak { magnitude } else { *peak };
        }
    }
}

#[inline(always)]
pub(super) fn weave_bytes(out: &mut [u32], values: &[f32], factors: &[f32; COLUMNS]) {
    let (outs, values) = (out.as_chunks_mut::<COLUMNS>().0, values.as_chunks::<{ 4 * COLUMNS }>().0);
    for (out, values) in outs.iter_mut().zip(values) {
        for (n, out) in out.iter_mut().enumerate() {
            let byte = |k: usize| {
                let byte = i32::from(nearest(values[k * COLUMNS + n] * factors[n]));
                (byte + OFFSET).cast_unsigned() << (8 * k)
            };
            *out = byte(0) | byte(1) | byte(2) | byte(3);
        }
    }
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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::Element;
    use crate::linear::kernel::{LeftForm, MOST_ROWS, TILE_WORDS};

    fn words(len: usize) -> Vec<u32> {
        let mut state = 1u32;
        let mut half = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            // A bf16 of a magnitude from 1/8 to 1.
            (state >> 16 & 0x807f) | (0x3e00 + (state >> 8 & 0x0180))
        };
        (0..len).map(|_| half() | half() << 16).collect()
    }

    /// Values `[k][column]` of operand words that lie `stride` apart.
    fn values(words: &[u32], pair: usize, stride: usize, depth: usize) -> Vec<u32> {
        let value = |k: usize, c: usize| match (words[k / pair * stride + c], pair, k % 2) {
            (word, 1, _) => word,
            (word, _, 0) => word << 16,
            (word, ..) => word & 0xffff_0000,
        };
        (0..depth).flat_map(|k| (0..stride).map(move |c| value(k, c))).collect()
    }

    /// These kernels against those in use, which the tests of the ops hold to the plain versions. An instruction set
    /// without products of bf16 has the same values in more words.
    fn portable_is_what_is_in_use<E: Element>() {
        let (kernels, pair) = (E::kernels(), E::pair());
        let words = words(4096);
        let from = bytemuck::cast_slice::<u32, E>(&words);
        for (rows, width) in [(1, 32), (5, 16), (7, 32), (12, 32), (16, 32), (17, 16), (32, 32)] {
            if rows > kernels.left.most_rows() {
                continue;
            }
            let operands = |stride: usize, skip: usize| {
                let rows: Vec<&[E]> = (0..stride).map(|r| &from[skip + 90 * r..][..80]).collect();
                let (mut one, mut other) = (vec![0; 80 * stride], vec![0; 80 * stride]);
                for first in (0..stride).step_by(16) {
                    let rows = &rows[first..stride.min(first + 16)];
                    pack(&mut one[first..], stride, rows);
                    (kernels.pack)(&mut other[first..], stride, rows);
                }
                (one, other)
            };
            let (a, b) = (operands(rows, 0), operands(width, 1000));
            let (mut one, mut other) = ([1.0; MOST_ROWS * COLUMNS], [1.0; MOST_ROWS * COLUMNS]);
            let parts = |a: &[u32], b: &[u32], pair: usize| {
                // The second part is short and begins where the first ends.
                let (long, short) = (72 / pair, 80 / pair);
                [(0, long), (long, short)].map(|(from, to)| {
                    (a[from * rows..to * rows].to_vec(), b[from * width..to * width].to_vec())
                })
            };
            let segments = |parts: &[(Vec<u32>, Vec<u32>); 2], run: &mut dyn FnMut(&[Segment<'_>])| {
                run(&parts.each_ref().map(|(a, b)| Segment { a, stride: rows, b, words: a.len() / rows }));
            };
            segments(&parts(&a.0, &b.0, E::PAIR), &mut |s| tile::<E>(&mut one, true, s, rows, width));
            let mut others = parts(&a.1, &b.1, pair);
            let mut strides = [rows; 2];
            if kernels.left == LeftForm::Rows {
                for ((a, _), stride) in others.iter_mut().zip(&mut strides) {
                    let behind = [0; TILE_WORDS];
                    let row = |r| a.iter().skip(r).step_by(rows).chain(&behind).copied();
                    *stride = a.len() / rows + TILE_WORDS;
                    *a = (0..rows).flat_map(row).collect();
                }
            }
            let segments = others.iter().zip(strides).zip([(0, 72), (72, 80)]);
            let segments = segments.map(|(((a, b), stride), (from, to))| Segment {
                a,
                stride,
                b,
                words: (to - from) / pair,
            });
            (kernels.tile)(&mut other, true, &segments.collect::<Vec<_>>(), rows, width);
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
            assert!(one.iter().zip(&other).all(near), "tile of {rows} x {width}");
        }
        for count in [1, 3, 7, 16] {
            for len in [1, 7, 31, 32, 33, 70] {
                let rows: Vec<&[E]> = (0..count).map(|r| &from[r * 100..][..len]).collect();
                let (mut one, mut other) = (vec![1; 17 * 70], vec![1; 17 * 70]);
                pack(&mut one, 17, &rows);
                (kernels.pack)(&mut other, 17, &rows);
                let (one, other) = (values(&one, E::PAIR, 17, len), values(&other, pair, 17, len));
                for (i, (one, other)) in one.iter().zip(&other).enumerate().filter(|(i, _)| i % 17 < count) {
                    assert_eq!(one, other, "pack of {count} x {len}, place {i}");
                }
            }
        }
        for (rows, cols) in [(1, 1), (2, 32), (9, 17), (8, 16)] {
            let (mut one, mut other) = (vec![1; 9 * 32], vec![1; 9 * 32]);
            weave(&mut one, 32, from, 40, rows, cols);
            (kernels.weave)(&mut other, 32, from, 40, rows, cols);
            let (one, other) = (values(&one, E::PAIR, 32, rows), values(&other, pair, 32, rows));
            let same = one.iter().zip(&other).enumerate().all(|(i, (a, b))| i % 32 >= cols || a == b);
            assert!(same, "weave of {rows} x {cols}");
        }
        for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::Nf4] {
            let block = &bytemuck::cast_slice(&words)[..4 * format.words()];
            let (mut one, mut other) = ([0; 1024], [0; 1024]);
            expand::<E>(&mut one, block, format);
            (kernels.expand)(&mut other, block, format);
            let expanded = values(&one, E::PAIR, COLUMNS, COLUMNS);
            assert_eq!(expanded, values(&other, pair, COLUMNS, COLUMNS), "{format:?}");
            let (mut turned, mut other_turned) = ([0; 1024], [0; 1024]);
            turn::<E>(&mut turned, &one);
            (kernels.turn)(&mut other_turned, &other);
            let turned = values(&turned, E::PAIR, COLUMNS, COLUMNS);
            assert_eq!(turned, values(&other_turned, pair, COLUMNS, COLUMNS), "{format:?}, turned");
            for (k, n) in [(0, 5), (31, 0), (17, 30)] {
                assert_eq!(expanded[k * COLUMNS + n], turned[n * COLUMNS + k]);
            }
        }
        let wide = bytemuck::cast_slice::<u32, f32>(&words);
        assert_eq!(max(&wide[..77]).to_bits(), (kernels.max)(&wide[..77]).to_bits());
        let (mut one, mut other) = ([E::default(); 77], [E::default(); 77]);
        narrow(&mut one, &wide[..77]);
        (kernels.narrow)(&mut other, &wide[..77]);
        assert_eq!(one, other);
        let (mut one, mut other) = ([0.0; 77], [0.0; 77]);
        widen(&mut one, &from[..77]);
        (kernels.widen)(&mut other, &from[..77]);
        assert_eq!(one.map(f32::to_bits), other.map(f32::to_bits));
    }

    #[test]
    fn portable_is_what_is_in_use_for_both_types() {
        portable_is_what_is_in_use::<f32>();
        portable_is_what_is_in_use::<bf16>();
    }
}
