//! Block quantisation as GGUF files store it: values from bytes, and bytes from values.
//!
//! Every type's values equal those of ggml's reference code bit for bit.

mod float;
mod k;
mod k_write;
mod legacy;

use crate::{DType, Error, Result};

/// Writes the values of whole blocks of `dtype` to `out`.
///
/// # Panics
/// When `bytes` are not exactly the blocks of `out.len()` values.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        dtype.row_bytes(out.len()),
        Some(bytes.len()),
        "dequantize: {} bytes of {dtype:?} for {} values",
        bytes.len(),
        out.len()
    );
    match dtype {
        DType::F32 => blocks(bytes, out, |stored, [value]| *value = float::f32(*stored)),
        DType::F16 => blocks(bytes, out, |stored, [value]| *value = float::f16(*stored)),
        DType::BF16 => blocks(bytes, out, |stored, [value]| *value = float::bf16(*stored)),
        DType::Q8_0 => blocks(bytes, out, legacy::q8_0_block),
        DType::Q4_0 => blocks(bytes, out, legacy::q4_0_block),
        DType::Q4_1 => blocks(bytes, out, legacy::q4_1_block),
        DType::Q5_0 => blocks(bytes, out, legacy::q5_0_block),
        DType::Q5_1 => blocks(bytes, out, legacy::q5_1_block),
        DType::Q2K => blocks(bytes, out, k::q2_k_block),
        DType::Q3K => blocks(bytes, out, k::q3_k_block),
        DType::Q4K => blocks(bytes, out, k::q4_k_block),
        DType::Q5K => blocks(bytes, out, k::q5_k_block),
        DType::Q6K => blocks(bytes, out, k::q6_k_block),
    }
}

/// The bytes of `values` in `dtype`: rounded to nearest for floats, ggml's reference quantiser otherwise.
///
/// # Errors
/// [`Error::Tensor`] when the values are not whole blocks, or the type is only ever read here.
pub fn quantize(dtype: DType, values: &[f32]) -> Result<Vec<u8>> {
    let refuse = |reason| Error::Tensor { tensor: format!("{dtype:?}"), reason };
    let Some(len) = dtype.row_bytes(values.len()) else {
        return Err(refuse(format!("{} values are not whole blocks of {}", values.len(), dtype.block_len())));
    };
    let mut bytes = Vec::with_capacity(len);
    match dtype {
        DType::F32 => values.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
        DType::F16 => values.iter().for_each(|&v| bytes.extend(half::f16::from_f32(v).to_le_bytes())),
        DType::BF16 => values.iter().for_each(|&v| bytes.extend(half::bf16::from_f32(v).to_le_bytes())),
        DType::Q8_0 => values.as_chunks().0.iter().for_each(|b| legacy::quantize_q8_0(b, &mut bytes)),
        DType::Q4_0 => values.as_chunks().0.iter().for_each(|b| legacy::quantize_q4_0(b, &mut bytes)),
        DType::Q4_1 => values.as_chunks().0.iter().for_each(|b| legacy::quantize_q4_1(b, &mut bytes)),
        DType::Q5_0 => values.as_chunks().0.iter().for_each(|b| legacy::quantize_q5_0(b, &mut bytes)),
        DType::Q5_1 => values.as_chunks().0.iter().for_each(|b| legacy::quantize_q5_1(b, &mut bytes)),
        DType::Q4K => values.as_chunks().0.iter().for_each(|b| k_write::quantize_q4_k(b, &mut bytes)),
        DType::Q5K => values.as_chunks().0.iter().for_each(|b| k_write::quantize_q5_k(b, &mut bytes)),
        DType::Q6K => values.as_chunks().0.iter().for_each(|b| k_write::quantize_q6_k(b, &mut bytes)),
        DType::Q2K | DType::Q3K => {
            return Err(refuse("can be read but not written; write a type of at least 4 bits".into()));
        }
    }
    Ok(bytes)
}

/// Runs `block` over each block of `B` bytes and its `N` values.
fn blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (bytes, values) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(bytes, values);
    }
}

/// The half-precision number at `at`.
fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WRITTEN: [DType; 11] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
    ];

    /// The largest error of one value, as a share of its block's largest magnitude.
    fn bound(dtype: DType) -> f32 {
        match dtype {
            DType::F32 => 0.0,
            DType::F16 => 1.0 / 2048.0,
            DType::BF16 => 1.0 / 256.0,
            DType::Q8_0 => 0.5 / 127.0 * 1.1,
            // One step of sixteen: a value of the opposite sign at full magnitude is clipped to 7 of 8.
            DType::Q4_0 => 1.0 / 8.0 * 1.01,
            DType::Q5_0 => 1.0 / 16.0 * 1.01,
            // The range is twice the magnitude at most, in fifteen steps, rounded to half a step.
            DType::Q4_1 => 2.0 / 15.0 * 0.51,
            DType::Q5_1 => 2.0 / 31.0 * 0.51,
            // Scales and minimums are rounded too, to a 63rd of the super-block's largest, and the search minds small
            // values less; Q6_K's scales are whole 128ths.
            DType::Q4K => 2.0 / 15.0,
            DType::Q5K => 2.0 / 31.0 * 1.5,
            _ => 1.0 / 32.0 * 1.2,
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_closely(values in proptest::collection::vec(-3f32..3.0, 256)) {
            let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            for dtype in WRITTEN {
                let bytes = quantize(dtype, &values).unwrap();
                let mut back = vec![0.0; values.len()];
                dequantize(dtype, &bytes, &mut back);
                for (value, back) in values.iter().zip(&back) {
                    prop_assert!((value - back).abs() <= bound(dtype) * largest + 1e-6, "{dtype:?} {value} {back}");
                }
            }
        }

        #[test]
        fn any_bytes_give_values(seed in proptest::collection::vec(any::<u8>(), 256)) {
            for dtype in [DType::Q5_0, DType::Q5_1, DType::Q2K, DType::Q3K, DType::Q4K, DType::Q5K, DType::Q6K] {
                let mut out = vec![0.0; dtype.block_len()];
                dequantize(dtype, &seed[..dtype.block_bytes()], &mut out);
            }
        }
    }

    #[test]
    fn a_type_that_is_only_read_says_so() {
        let error = quantize(DType::Q3K, &[0.0; 256]).unwrap_err().to_string();
        assert!(error.contains("Q3K") && error.contains("not written"), "{error}");
        assert!(quantize(DType::Q8_0, &[0.0; 31]).is_err());
    }
}
