//! Which tensor gets which type: the mixes that llama.cpp's quantiser writes under these names.

use serde::{Deserialize, Serialize};

use super::GgufWriter;
use crate::layout::{Part, Slot};
use crate::{DType, ModelConfig};

/// How a model's weights are stored. Norms and biases stay in f32 in GGUF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileType {
    /// 16-bit floats with 11 bits of precision.
    #[serde(rename = "f16")]
    F16,
    /// 16-bit floats with the range of 32-bit ones and 8 bits of precision.
    #[serde(rename = "bf16")]
    BF16,
    /// 8.5 bits a weight.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4.5 bits for most weights, 6.6 for those that suffer most.
    #[serde(rename = "q4_k_m")]
    Q4KM,
    /// 5.5 bits for most weights, 6.6 for those that suffer most.
    #[serde(rename = "q5_k_m")]
    Q5KM,
}

impl FileType {
    /// The name in use.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4KM => "q4_k_m",
            Self::Q5KM => "q5_k_m",
        }
    }

    /// Sets the keys that name the mix, with the numbers that llama.cpp gives them.
    pub fn to_gguf(self, writer: &mut GgufWriter<'_>) {
        let number: u32 = match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::BF16 => 32,
        };
        writer.set("general.file_type", number);
        writer.set("general.quantization_version", 2u32);
    }

    /// The type of a tensor, as llama.cpp chooses it for Llama models without an importance matrix.
    ///
    /// In the mixes the output head, and the value and down projections of an eighth of the layers at either end and
    /// of every third between, get `Q6_K`. A tensor whose rows are not whole blocks gets the next larger type of
    /// blocks of 32, and f16 where that does not fit either.
    pub fn dtype(self, slot: &Slot, config: &ModelConfig) -> DType {
        let &[_, cols] = &slot.shape[..] else { return DType::F32 };
        let most = match self {
            Self::F16 => return DType::F16,
            Self::BF16 => return DType::BF16,
            Self::Q8_0 => DType::Q8_0,
            Self::Q4KM => DType::Q4K,
            Self::Q5KM => DType::Q5K,
        };
        let head = if config.tied_embeddings { Part::Embedding } else { Part::Head };
        let mixed = most != DType::Q8_0;
        let more_bits = mixed && slot.layer.is_some_and(|layer| gets_more_bits(layer, config.layers));
        let wanted = match slot.part {
            part if part == head && mixed => DType::Q6K,
            Part::Value | Part::Down if more_bits => DType::Q6K,
            // 80 layers that share keys and values among heads: its value projections are small.
            Part::Value if most == DType::Q4K && config.layers == 80 && config.heads != config.kv_heads => {
                DType::Q5K
            }
            _ => most,
        };
        let fitting = match wanted {
            wanted if cols.is_multiple_of(wanted.block_len()) => return wanted,
            DType::Q4K => DType::Q5_0,
            DType::Q5K => DType::Q5_1,
            _ => DType::Q8_0,
        };
        if cols.is_multiple_of(fitting.block_len()) { fitting } else { DType::F16 }
    }
}

fn gets_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}
