//! NF4 with double quantisation (Dettmers et al., 2023), as bitsandbytes computes it.
//!
//! The tensor, row-major, is cut into blocks of 64 values. A block is scaled by its largest magnitude, and each value
//! becomes the nearest of 16 levels. The magnitudes, less their mean, are cut into groups of 256; a group is scaled by
//! its own largest magnitude, and each becomes the nearest of 256 levels, which lie denser towards zero.

use super::BlockFormat;

/// The levels of a value: quantiles of a normal distribution, with an exact zero.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Values that share a magnitude.
const BLOCK: usize = 64;
/// Magnitudes that share a scale.
const GROUP: usize = 256;
/// Values of a block of [`BlockFormat::Nf4`].
const STORED: usize = 32;

/// Quantises a tensor to blocks of [`BlockFormat::Nf4`]. Every 32 values become 20 bytes: their magnitude as it is after its own quantisation (f32), and
/// the level of each value, of the first 16 in the lower four bits and of the others in the upper.
///
/// # Panics
/// When the values are no whole blocks of 32.
pub fn quantize(values: &[f32]) -> Vec<u8> {
    assert!(values.len().is_multiple_of(STORED), "{} values are no whole blocks of {STORED}", values.len());
    let peaks: Vec<f32> =
        values.chunks(BLOCK).map(|block| block.iter().fold(0.0f32, |peak, v| peak.max(v.abs()))).collect();
    let kept = quantize_peaks(&peaks);
    let mut bytes = Vec::with_capacity(values.len() / STORED * BlockFormat::Nf4.bytes());
    for (index, half) in values.chunks_exact(STORED).enumerate() {
        let block = index * STORED / BLOCK;
        bytes.extend(kept[block].to_le_bytes());
        let inverse = if peaks[block] > 0.0 { 1.0 / peaks[block] } else { 0.0 };
        let level = |value: &f32| nearest(&LEVELS, value * inverse) as u8;
        let (low, high) = half.split_at(STORED / 2);
        bytes.extend(low.iter().zip(high).map(|(low, high)| level(low) | level(high) << 4));
    }
    bytes
}

/// What the magnitudes are after their own quantisation.
fn quantize_peaks(peaks: &[f32]) -> Vec<f32> {
    let levels = fine_levels();
    let mean = (peaks.iter().map(|&peak| f64::from(peak)).sum::<f64>() / peaks.len().max(1) as f64) as f32;
    let mut kept = Vec::with_capacity(peaks.len());
    for group in peaks.chunks(GROUP) {
        let scale = group.iter().fold(0.0f32, |most, peak| most.max((peak - mean).abs()));
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        kept.extend(
            group.iter().map(|peak| levels[nearest(&levels, (peak - mean) * inverse)] * scale + mean),
        );
    }
    kept
}

/// The 256 levels of a magnitude, ascending: in each of seven powers of ten from 1e-6 to 1 twice as many as in the one
/// below, of either sign; also 0 and 1.
fn fine_levels() -> Vec<f32> {
    let mut levels = vec![0.0, 1.0];
    for power in 0..7i32 {
        let count = 1 << power;
        let size = 10f64.powi(power - 6);
        for i in 0..count {
            let edge = |i: i32| 0.1 + 0.9 * f64::from(i) / f64::from(count);
            let middle = (size * (edge(i) + edge(i + 1)) / 2.0) as f32;
            levels.extend([middle, -middle]);
        }
    }
    levels.sort_by(f32::total_cmp);
    levels
}

/// The index of the level nearest to `value`; of two equally near the lower.
fn nearest(levels: &[f32], value: f32) -> usize {
    let above = levels.partition_point(|&level| level < value);
    match above {
        0 => 0,
        above if above == levels.len() => above - 1,
        above if value - levels[above - 1] <= levels[above] - value => above - 1,
        above => above,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that stored blocks stand for.
    fn values(bytes: &[u8]) -> Vec<f32> {
        let block = |bytes: &[u8]| {
            let peak = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let quants = bytes[4..].to_vec();
            (0..STORED).map(move |i| peak * LEVELS[usize::from(quants[i % 16] >> (i / 16 * 4) & 15)])
        };
        bytes.chunks_exact(BlockFormat::Nf4.bytes()).flat_map(block).collect()
    }

    #[test]
    fn levels_are_as_published() {
        let fine = fine_levels();
        assert_eq!(fine.len(), 256);
        assert!(fine.is_sorted_by(|a, b| a < b));
        let near = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        near(fine[0], -0.992_968_75);
        near(fine[255], 1.0);
        near(fine[254], 0.992_968_75);
        near(fine[128], 5.5e-7);
        assert_eq!(fine[127].to_bits(), 0);
    }

    #[test]
    fn what_lies_on_levels_comes_back() {
        // One block's magnitudes are one level, so their own quantisation loses nothing.
        let original: Vec<f32> = (0..4 * BLOCK).map(|i| 0.5 * LEVELS[(7 * i + i / BLOCK) % 16]).collect();
        assert_eq!(values(&quantize(&original)), original);
        assert_eq!(values(&quantize(&[0.0; 32])), [0.0; 32]);
    }

    #[test]
    fn errors_are_bounded_by_the_gaps() {
        let wave = |i: usize| ((i as f32 * 0.37).sin() + (i as f32 * 0.011).cos()) * (1.0 + (i / 640) as f32);
        let original: Vec<f32> = (0..64 * 300 + 32).map(wave).collect();
        let found = values(&quantize(&original));
        let peak = |block: &[f32]| block.iter().fold(0.0f32, |peak, v| peak.max(v.abs()));
        let peaks: Vec<f32> = original.chunks(BLOCK).map(peak).collect();
        let mean = peaks.iter().sum::<f32>() / peaks.len() as f32;
        let widest = peaks.iter().fold(0.0f32, |widest, peak| widest.max((peak - mean).abs()));
        for ((block, found), peak) in original.chunks(BLOCK).zip(found.chunks(BLOCK)).zip(peaks) {
            for (value, found) in block.iter().zip(found) {
                // Half the widest gap between levels, and half the widest between those of the magnitudes.
                let bound = 0.1522 * peak + 0.0071 * widest;
                assert!((value - found).abs() <= bound, "{value} {found}, more than {bound} apart");
            }
        }
    }
}
