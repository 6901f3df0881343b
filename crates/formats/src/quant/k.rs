//! The K types: super-blocks of 256 values in groups with their own small scales.
//!
//! A group's scale is `d` times a small integer; `Q2_K`, `Q4_K` and `Q5_K` also subtract a minimum made the
//! same way.

use super::f16_at;

/// 16 groups of 16; 4-bit scales and minimums; 2-bit values.
pub(super) fn q2_k_block(bytes: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, q) = (&bytes[..16], &bytes[16..80]);
    let (d, d_min) = (f16_at(bytes, 80), f16_at(bytes, 82));
    for (i, value) in out.iter_mut().enumerate() {
        let scale = scales[i / 16];
        let (step, min) = (d * f32::from(scale & 15), d_min * f32::from(scale >> 4));
        *value = step * f32::from(two_bits(q, i)) - min;
    }
}

/// 16 groups of 16; signed 6-bit scales; 2-bit values, minus 4 where the mask's bit is clear.
pub(super) fn q3_k_block(bytes: &[u8; 110], out: &mut [f32; 256]) {
    let (mask, q, scales) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
    let d = f16_at(bytes, 108);
    for (i, value) in out.iter_mut().enumerate() {
        let group = i / 16;
        let low = (scales[group % 8] >> (4 * (group / 8))) & 15;
        let high = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
        let step = d * (f32::from(low | (high << 4)) - 32.0);
        let offset = if one_bit(mask, i) == 1 { 0.0 } else { 4.0 };
        *value = step * (f32::from(two_bits(q, i)) - offset);
    }
}

/// 8 groups of 32; 6-bit scales and minimums; 4-bit values.
pub(super) fn q4_k_block(bytes: &[u8; 144], out: &mut [f32; 256]) {
    let (d, d_min) = (f16_at(bytes, 0), f16_at(bytes, 2));
    let (scales, q) = (&bytes[4..16], &bytes[16..144]);
    for (group, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(scales, group);
        let (step, min) = (d * f32::from(scale), d_min * f32::from(min));
        for (j, value) in values.iter_mut().enumerate() {
            *value = step * f32::from(four_bits(q, 32, 32 * group + j)) - min;
        }
    }
}

/// As `Q4_K`, with a fifth bit.
pub(super) fn q5_k_block(bytes: &[u8; 176], out: &mut [f32; 256]) {
    let (d, d_min) = (f16_at(bytes, 0), f16_at(bytes, 2));
    let (scales, fifth, q) = (&bytes[4..16], &bytes[16..48], &bytes[48..176]);
    for (group, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(scales, group);
        let (step, min) = (d * f32::from(scale), d_min * f32::from(min));
        for (j, value) in values.iter_mut().enumerate() {
            let i = 32 * group + j;
            *value = step * f32::from(four_bits(q, 32, i) | (one_bit(fifth, i) << 4)) - min;
        }
    }
}

/// 16 groups of 16; signed 8-bit scales; 6-bit values around 32.
pub(super) fn q6_k_block(bytes: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
    let d = f16_at(bytes, 208);
    for (i, value) in out.iter_mut().enumerate() {
        let step = d * f32::from(scales[i / 16].cast_signed());
        let q = four_bits(low, 64, i) | (two_bits(high, i) << 4);
        *value = step * (f32::from(q) - 32.0);
    }
}

/// Bit `i` of a mask whose byte `i % 32` holds one bit of each of the eight runs of 32 values.
fn one_bit(bytes: &[u8], i: usize) -> u8 {
    (bytes[i % 32] >> (i / 32)) & 1
}

/// Two bits of value `i`: 32 bytes hold four runs of 32 values.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    (bytes[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32))) & 3
}

/// Four bits of value `i`: `run` bytes hold two runs of `run` values.
fn four_bits(bytes: &[u8], run: usize, i: usize) -> u8 {
    (bytes[run * (i / (2 * run)) + i % run] >> (4 * (i % (2 * run) / run))) & 15
}

/// The 6-bit scale and minimum of one of eight groups, packed into 12 bytes.
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    let j = group % 4;
    if group < 4 {
        (packed[j] & 63, packed[4 + j] & 63)
    } else {
        let both = packed[8 + j];
        ((both & 15) | ((packed[j] >> 2) & 0x30), (both >> 4) | ((packed[4 + j] >> 2) & 0x30))
    }
}
