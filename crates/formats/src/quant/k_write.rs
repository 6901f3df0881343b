//! Writing `Q4_K`, `Q5_K` and `Q6_K`: the search for scales, minimums and integers that ggml's reference code makes.
//!
//! The same bytes come out as there, so sums run in the same order and every step rounds to f32, without fused
//! multiply-adds.

use half::f16;

/// Largest value of the 6-bit scales and minimums of a super-block.
const MOST_SCALE: f32 = 63.0;
/// A group whose magnitudes are all below this is zero.
const NOTHING: f32 = 1e-15;

/// The search of one type with minimums: its integers, and the steps that are tried around the plain range.
struct Search {
    /// Largest integer.
    most: i32,
    /// The range is divided by `most + first + 0.1 i` for `i` in `0..=steps`.
    first: f32,
    steps: u8,
}

const Q4_K: Search = Search { most: 15, first: -1.0, steps: 20 };
const Q5_K: Search = Search { most: 31, first: -0.5, steps: 15 };

/// Appends one `Q4_K` block.
pub(super) fn quantize_q4_k(values: &[f32; 256], bytes: &mut Vec<u8>) {
    let integers = with_minimums(values, &Q4_K, bytes);
    pack_nibbles(&integers, bytes);
}

/// Appends one `Q5_K` block.
pub(super) fn quantize_q5_k(values: &[f32; 256], bytes: &mut Vec<u8>) {
    let integers = with_minimums(values, &Q5_K, bytes);
    let fifth = |j: usize| (0..8).fold(0, |byte, run| byte | ((integers[32 * run + j] >> 4) << run));
    bytes.extend((0..32).map(fifth));
    pack_nibbles(&integers, bytes);
}

/// Appends one `Q6_K` block.
pub(super) fn quantize_q6_k(values: &[f32; 256], bytes: &mut Vec<u8>) {
    let (mut scales, mut integers) = ([0f32; 16], [0u8; 256]);
    let groups = values.as_chunks::<16>().0;
    for ((scale, group), integers) in scales.iter_mut().zip(groups).zip(integers.as_chunks_mut::<16>().0) {
        *scale = symmetric_scale(group, integers);
    }
    let widest =
        scales.iter().fold(0f32, |most: f32, &scale| if scale.abs() > most.abs() { scale } else { most });
    if widest.abs() < NOTHING {
        bytes.extend([0; 210]);
        return;
    }
    let inverse = -128.0 / widest;
    let d = f16::from_f32(1.0 / inverse);
    let scales = scales.map(|scale| nearest(inverse * scale).min(127) as i8);
    for ((&scale, group), integers) in scales.iter().zip(groups).zip(integers.as_chunks_mut::<16>().0) {
        let step = d.to_f32() * f32::from(scale);
        if step != 0.0 {
            for (integer, value) in integers.iter_mut().zip(group) {
                *integer = (nearest(value / step).clamp(-32, 31) + 32) as u8;
            }
        }
    }
    let low = |i: usize| integers[i] & 15;
    for half in [0, 128] {
        bytes.extend((half..half + 64).map(|i| low(i) | (low(i + 64) << 4)));
    }
    for half in [0, 128] {
        let high = |i: usize| (0..4).fold(0, |byte, run| byte | ((integers[i + 32 * run] >> 4) << (2 * run)));
        bytes.extend((half..half + 32).map(high));
    }
    bytes.extend(scales.map(i8::cast_unsigned));
    bytes.extend(d.to_le_bytes());
}

/// Appends scale, minimum and the groups' 6-bit ones; returns the integers.
fn with_minimums(values: &[f32; 256], search: &Search, bytes: &mut Vec<u8>) -> [u8; 256] {
    let (mut scales, mut minimums, mut integers) = ([0f32; 8], [0f32; 8], [0u8; 256]);
    let groups = values.as_chunks::<32>().0;
    for (index, (group, integers)) in groups.iter().zip(integers.as_chunks_mut::<32>().0).enumerate() {
        (scales[index], minimums[index]) = search.scale_and_minimum(group, integers);
    }
    let largest =
        |of: &[f32; 8]| of.iter().fold(0f32, |most, &value| if value > most { value } else { most });
    let (most_scale, most_minimum) = (largest(&scales), largest(&minimums));
    let six_bits = |of: [f32; 8], most: f32| {
        let inverse = if most > 0.0 { MOST_SCALE / most } else { 0.0 };
        // A negative one keeps its lowest byte, as the reference's conversion to a byte does.
        of.map(|value| (nearest(inverse * value) as u8).min(63))
    };
    let (six_scales, six_minimums) = (six_bits(scales, most_scale), six_bits(minimums, most_minimum));
    let (d, d_min) = (f16::from_f32(most_scale / MOST_SCALE), f16::from_f32(most_minimum / MOST_SCALE));
    bytes.extend(d.to_le_bytes());
    bytes.extend(d_min.to_le_bytes());
    for of in [six_scales, six_minimums] {
        bytes.extend((0..4).map(|j| of[j] | ((of[j + 4] >> 4) << 6)));
    }
    bytes.extend((4..8).map(|j| (six_scales[j] & 15) | ((six_minimums[j] & 15) << 4)));

    for (index, (group, integers)) in groups.iter().zip(integers.as_chunks_mut::<32>().0).enumerate() {
        let step = d.to_f32() * f32::from(six_scales[index]);
        let minimum = d_min.to_f32() * f32::from(six_minimums[index]);
        if step != 0.0 {
            for (integer, value) in integers.iter_mut().zip(group) {
                *integer = nearest((value + minimum) / step).clamp(0, search.most) as u8;
            }
        }
    }
    integers
}

impl Search {
    /// The scale and the minimum (as a positive number to subtract) with the smallest weighted square error among
    /// those tried, and the integers that go with them. Each try rounds the values on a slightly different range, then
    /// solves the two normal equations of `scale q + minimum ≈ value` for these integers.
    fn scale_and_minimum(&self, values: &[f32; 32], integers: &mut [u8; 32]) -> (f32, f32) {
        let squares = values.iter().fold(0f32, |sum, value| sum + value * value);
        let level = (squares / 32.0).sqrt();
        let weights = values.map(|value| level + value.abs());

        let (mut low, mut high) = (values[0], values[0]);
        let (mut sum_w, mut sum_x) = (weights[0], weights[0] * values[0]);
        for (&value, &weight) in values.iter().zip(&weights).skip(1) {
            low = if value < low { value } else { low };
            high = if value > high { value } else { high };
            sum_w += weight;
            sum_x += weight * value;
        }
        if low > 0.0 {
            low = 0.0;
        }
        if high <= low {
            integers.fill(0);
            return (0.0, -low);
        }
        let round = |inverse: f32, minimum: f32| {
            values.map(|value| nearest(inverse * (value - minimum)).clamp(0, self.most) as u8)
        };
        let error = |scale: f32, minimum: f32, rounded: &[u8; 32]| {
            let terms = values.iter().zip(rounded).zip(&weights);
            terms.fold(0f32, |sum, ((value, &rounded), weight)| {
                let off = scale * f32::from(rounded) + minimum - value;
                sum + weight * (off * off)
            })
        };
        let inverse = self.most as f32 / (high - low);
        *integers = round(inverse, low);
        let (mut scale, mut minimum) = (1.0 / inverse, low);
        let mut least = error(scale, minimum, integers);
        for step in 0..=self.steps {
            // The best minimum so far takes the place of the lowest value.
            let inverse = (self.first + 0.1 * f32::from(step) + self.most as f32) / (high - minimum);
            let rounded = round(inverse, minimum);
            let (mut sum_q, mut sum_qq, mut sum_xq) = (0f32, 0f32, 0f32);
            for ((&value, &rounded), &weight) in values.iter().zip(&rounded).zip(&weights) {
                let q = f32::from(rounded);
                sum_q += weight * q;
                sum_qq += weight * q * q;
                sum_xq += weight * q * value;
            }
            let determinant = sum_w * sum_qq - sum_q * sum_q;
            if determinant <= 0.0 || determinant.is_nan() {
                continue;
            }
            let mut this_scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
            let mut this_minimum = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
            if this_minimum > 0.0 {
                this_minimum = 0.0;
                this_scale = sum_xq / sum_qq;
            }
            let this = error(this_scale, this_minimum, &rounded);
            if this < least {
                (least, scale, minimum) = (this, this_scale, this_minimum);
                *integers = rounded;
            }
        }
        (scale, -minimum)
    }
}

/// The scale of 6-bit integers around 32 with the smallest square error, weighted by the values' squares, among those
/// tried, and the integers that go with it.
fn symmetric_scale(values: &[f32; 16], integers: &mut [u8; 16]) -> f32 {
    let widest =
        values.iter().fold(0f32, |most: f32, &value| if value.abs() > most.abs() { value } else { most });
    if widest.abs() < NOTHING {
        integers.fill(0);
        return 0.0;
    }
    let round = |inverse: f32| values.map(|value| nearest(inverse * value).clamp(-32, 31));
    let sums = |rounded: &[i32; 16]| {
        values.iter().zip(rounded).fold((0f32, 0f32), |(xq, qq), (&value, &rounded)| {
            let (weight, q) = (value * value, rounded as f32);
            (xq + weight * value * q, qq + weight * q * q)
        })
    };
    let mut best = round(-32.0 / widest);
    let (xq, qq) = sums(&best);
    let mut scale = if qq == 0.0 { 0.0 } else { xq / qq };
    let mut gain = scale * xq;
    for step in (-9i8..=9).filter(|&step| step != 0) {
        let rounded = round(-(32.0 + 0.1 * f32::from(step)) / widest);
        let (xq, qq) = sums(&rounded);
        if qq > 0.0 && xq * xq > gain * qq {
            best = rounded;
            scale = xq / qq;
            gain = scale * xq;
        }
    }
    *integers = best.map(|rounded| (rounded + 32) as u8);
    scale
}

/// The nearest integer, ties to even: adding `1.5 * 2^23` leaves it in the mantissa's last bits.
fn nearest(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Appends 128 bytes: the low four bits of each 32 integers beside those of the next 32.
fn pack_nibbles(integers: &[u8; 256], bytes: &mut Vec<u8>) {
    for pair in integers.as_chunks::<64>().0 {
        bytes.extend((0..32).map(|j| (pair[j] & 15) | ((pair[j + 32] & 15) << 4)));
    }
}
