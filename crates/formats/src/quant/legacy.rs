//! The types with blocks of 32 values: a scale `d`, for the `_1` types a minimum `m`, and integers `q`.
//!
//! Value `i` is `d * (q[i] - zero)` for the `_0` types and `d * q[i] + m` for the `_1` types. The low four
//! bits of values `i` and `i + 16` share byte `i`; the fifth bits of the Q5 types stand in one 32-bit word.

use half::f16;

use super::f16_at;

const HALF: usize = 16;

pub(super) fn q8_0_block(bytes: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(bytes, 0);
    for (value, &q) in out.iter_mut().zip(&bytes[2..]) {
        *value = f32::from(q.cast_signed()) * d;
    }
}

pub(super) fn q4_0_block(bytes: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(bytes, 0);
    for (i, &q) in bytes[2..].iter().enumerate() {
        out[i] = d * (f32::from(q & 15) - 8.0);
        out[i + HALF] = d * (f32::from(q >> 4) - 8.0);
    }
}

pub(super) fn q4_1_block(bytes: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(bytes, 0), f16_at(bytes, 2));
    for (i, &q) in bytes[4..].iter().enumerate() {
        out[i] = d * f32::from(q & 15) + m;
        out[i + HALF] = d * f32::from(q >> 4) + m;
    }
}

pub(super) fn q5_0_block(bytes: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(bytes, 0);
    let fifth = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
    for (i, &q) in bytes[6..].iter().enumerate() {
        out[i] = d * (f32::from((q & 15) | fifth_bit(fifth, i)) - 16.0);
        out[i + HALF] = d * (f32::from((q >> 4) | fifth_bit(fifth, i + HALF)) - 16.0);
    }
}

pub(super) fn q5_1_block(bytes: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(bytes, 0), f16_at(bytes, 2));
    let fifth = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    for (i, &q) in bytes[8..].iter().enumerate() {
        out[i] = d * f32::from((q & 15) | fifth_bit(fifth, i)) + m;
        out[i + HALF] = d * f32::from((q >> 4) | fifth_bit(fifth, i + HALF)) + m;
    }
}

fn fifth_bit(word: u32, i: usize) -> u8 {
    (((word >> i) & 1) << 4) as u8
}

/// Appends one `Q8_0` block.
pub(super) fn quantize_q8_0(values: &[f32; 32], bytes: &mut Vec<u8>) {
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let d = largest / 127.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend(values.iter().map(|v| ((v * inverse).round() as i8).cast_unsigned()));
}

/// Appends one `Q4_0` block; the value of largest magnitude becomes exactly -8 steps.
pub(super) fn quantize_q4_0(values: &[f32; 32], bytes: &mut Vec<u8>) {
    let largest = values.iter().fold(0f32, |m: f32, &v| if v.abs() > m.abs() { v } else { m });
    let d = largest / -8.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    pack(values, bytes, |v| v * inverse + 8.5);
}

/// Appends one `Q4_1` block.
pub(super) fn quantize_q4_1(values: &[f32; 32], bytes: &mut Vec<u8>) {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 15.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend(f16::from_f32(min).to_le_bytes());
    pack(values, bytes, |v| (v - min) * inverse + 0.5);
}

/// Appends one `Q5_0` block; the value of largest magnitude becomes exactly -16 steps.
pub(super) fn quantize_q5_0(values: &[f32; 32], bytes: &mut Vec<u8>) {
    let largest = values.iter().fold(0f32, |m: f32, &v| if v.abs() > m.abs() { v } else { m });
    let d = largest / -16.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    pack_five(values, bytes, |v| v * inverse + 16.5);
}

/// Appends one `Q5_1` block.
pub(super) fn quantize_q5_1(values: &[f32; 32], bytes: &mut Vec<u8>) {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 31.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend(f16::from_f32(min).to_le_bytes());
    pack_five(values, bytes, |v| (v - min) * inverse + 0.5);
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Appends 16 bytes of nibbles; `step` gives the integer plus a fraction that is cut off.
fn pack(values: &[f32; 32], bytes: &mut Vec<u8>, step: impl Fn(f32) -> f32) {
    let nibble = |v: f32| (step(v) as u8).min(15);
    bytes.extend((0..HALF).map(|i| nibble(values[i]) | (nibble(values[i + HALF]) << 4)));
}

/// Appends the fifth bits as a word, then 16 bytes of the other four.
fn pack_five(values: &[f32; 32], bytes: &mut Vec<u8>, step: impl Fn(f32) -> f32) {
    let integers = values.map(|v| (step(v) as u8).min(31));
    let fifth = (0..32).fold(0u32, |word, i| word | (u32::from(integers[i] >> 4) << i));
    bytes.extend(fifth.to_le_bytes());
    bytes.extend((0..HALF).map(|i| (integers[i] & 15) | ((integers[i + HALF] & 15) << 4)));
}
