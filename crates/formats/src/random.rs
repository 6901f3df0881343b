//! Base models of named shapes with random weights: for measuring speed and memory where no file is at hand.

use std::path::Path;

use crate::{DType, Error, Family, ModelConfig, Result, Rope, RopeScaling, Slot, Tensor};

/// Standard deviation of the weights, as transformers initialises them.
const DEVIATION: f32 = 0.02;

/// The sizes of a published model.
struct Shape {
    name: &'static str,
    family: Family,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    max_positions: usize,
    theta: f64,
    scaling: Option<RopeScaling>,
    tied_embeddings: bool,
}

const LLAMA_3_2_1B: Shape = Shape {
    name: "llama-3.2-1b",
    family: Family::Llama,
    vocab_size: 128_256,
    hidden_size: 2048,
    intermediate_size: 8192,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    max_positions: 131_072,
    theta: 500_000.0,
    scaling: Some(RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    }),
    tied_embeddings: true,
};

const LLAMA_3_2_3B: Shape =
    Shape { name: "llama-3.2-3b", hidden_size: 3072, layers: 28, heads: 24, head_dim: 128, ..LLAMA_3_2_1B };

/// Within the context before its rotary scaling.
const PHI_3_5_MINI: Shape = Shape {
    name: "phi-3.5-mini",
    family: Family::Phi3,
    vocab_size: 32_064,
    hidden_size: 3072,
    intermediate_size: 8192,
    layers: 32,
    heads: 32,
    kv_heads: 32,
    head_dim: 96,
    max_positions: 4096,
    theta: 10_000.0,
    scaling: None,
    tied_embeddings: false,
};

const SMOLLM2_135M: Shape = Shape {
    name: "smollm2-135m",
    family: Family::Llama,
    vocab_size: 49_152,
    hidden_size: 576,
    intermediate_size: 1536,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    max_positions: 8192,
    theta: 100_000.0,
    scaling: None,
    tied_embeddings: true,
};

const SHAPES: [Shape; 4] = [LLAMA_3_2_1B, LLAMA_3_2_3B, PHI_3_5_MINI, SMOLLM2_135M];

/// How the matrices can be stored, by name; the first is what a name alone stands for.
const STORED: [(&str, DType); 3] = [("q4_1", DType::Q4_1), ("q8_0", DType::Q8_0), ("bf16", DType::BF16)];

/// Reads `shape` or `shape:storage`.
///
/// # Errors
/// [`Error::Unsupported`] with the known names.
pub(crate) fn parse(spec: &str) -> Result<(ModelConfig, DType)> {
    let (name, stored) = spec.split_once(':').unwrap_or((spec, STORED[0].0));
    let unknown = |key: &str, found: &str, known: Vec<&str>| {
        Error::unsupported(Path::new("random weights"), key, format!("`{found}`"), known.join(", "))
    };
    let shape = SHAPES
        .iter()
        .find(|shape| shape.name == name)
        .ok_or_else(|| unknown("shape", name, SHAPES.iter().map(|shape| shape.name).collect()))?;
    let (_, dtype) = STORED
        .iter()
        .find(|(known, _)| *known == stored)
        .ok_or_else(|| unknown("storage", stored, STORED.iter().map(|(known, _)| *known).collect()))?;
    Ok((shape.config(), *dtype))
}

impl Shape {
    fn config(&self) -> ModelConfig {
        ModelConfig {
            family: self.family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            max_positions: self.max_positions,
            norm_eps: 1e-5,
            activation: crate::Activation::Silu,
            rope: Some(Rope { theta: self.theta, scaling: self.scaling.clone() }),
            windows: Vec::new(),
            pooling: crate::Pooling::default(),
            token_types: 0,
            tied_embeddings: self.tied_embeddings,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
        }
    }
}

/// The weights of a slot, the same at every call: ones in norms, else uniform with a standard deviation of 0.02.
pub(crate) fn tensor(slot: &Slot, dtype: DType) -> Result<Tensor<'static>> {
    let values: usize = slot.shape.iter().product();
    if slot.shape.len() == 1 {
        return Tensor::from_f32(slot.name.clone(), slot.shape.clone(), &vec![1.0; values]);
    }
    let mut random = SplitMix::new(&slot.name);
    let mut bytes = vec![0; dtype.tensor_bytes(&slot.shape).unwrap_or(0)];
    let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
    match dtype {
        // Sixteen levels `d q - 7.5 d`, whose deviation is `d sqrt((16^2 - 1) / 12)`.
        DType::Q4_1 => {
            let d = DEVIATION / (255.0f32 / 12.0).sqrt();
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                block[..2].copy_from_slice(&half(d));
                block[2..4].copy_from_slice(&half(-7.5 * d));
                random.fill(&mut block[4..]);
            }
        }
        DType::Q8_0 => {
            let d = DEVIATION / (65_535.0f32 / 12.0).sqrt();
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                block[..2].copy_from_slice(&half(d));
                random.fill(&mut block[2..]);
            }
        }
        _ => {
            random.fill(&mut bytes);
            let bound = DEVIATION * 3.0f32.sqrt();
            for value in bytes.as_chunks_mut::<2>().0 {
                let uniform = f32::from(i16::from_le_bytes(*value)) / 32_768.0;
                *value = half::bf16::from_f32(bound * uniform).to_le_bytes();
            }
        }
    }
    Tensor::new(slot.name.clone(), dtype, slot.shape.clone(), bytes)
}

/// `SplitMix64` (Steele, Lea and Flood, 2014).
struct SplitMix(u64);

impl SplitMix {
    /// A stream for each name.
    fn new(name: &str) -> Self {
        Self(name.bytes().fold(0, |sum, byte| sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte)))
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            piece.copy_from_slice(&(z ^ z >> 31).to_le_bytes()[..piece.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{BaseModel, DType};

    #[test]
    fn values_have_the_deviation_and_are_the_same_at_every_call() {
        for (spec, dtype) in [
            ("smollm2-135m", DType::Q4_1),
            ("smollm2-135m:q8_0", DType::Q8_0),
            ("phi-3.5-mini:bf16", DType::BF16),
        ] {
            let model = BaseModel::random(spec).unwrap();
            let name = model.tensor_names().into_iter().find(|name| name.contains("down_proj")).unwrap();
            let tensor = model.tensor(name).unwrap();
            assert_eq!(tensor.dtype, dtype);
            assert_eq!(model.tensor(name).unwrap(), tensor);
            let values = tensor.to_f32();
            let mean = |power: i32| {
                values.iter().map(|v| f64::from(*v).powi(power)).sum::<f64>() / values.len() as f64
            };
            assert!(mean(1).abs() < 3e-4, "{spec}: mean {}", mean(1));
            assert!((mean(2).sqrt() - 0.02).abs() < 2e-4, "{spec}: deviation {}", mean(2).sqrt());
        }
    }

    #[test]
    fn shapes_are_those_of_the_published_models() {
        let millions = |spec| BaseModel::random(spec).unwrap().config.parameters() / 1_000_000;
        assert_eq!(
            ["llama-3.2-1b", "llama-3.2-3b", "phi-3.5-mini", "smollm2-135m"].map(millions),
            [1235, 3212, 3821, 134]
        );
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = BaseModel::random("llama-9").unwrap_err().to_string();
        assert!(error.contains("`llama-9`") && error.contains("phi-3.5-mini"), "{error}");
        let error = BaseModel::random("smollm2-135m:q3").unwrap_err().to_string();
        assert!(error.contains("`q3`") && error.contains("q4_1"), "{error}");
    }
}
