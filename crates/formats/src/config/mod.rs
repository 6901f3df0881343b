//! A model's configuration as plain data, from `config.json` or GGUF keys.

mod gguf;
mod hf;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Rope};

/// A family of models with the same tensors and the same mathematics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2 and 3, SmolLM2 and others: RMSNorm, SwiGLU, rotary positions, grouped-query attention, no
    /// biases.
    Llama,
}

/// Everything about a model that is not a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// The family, which fixes the mathematics.
    pub family: Family,
    /// Tokens in the vocabulary: rows of the embedding table.
    pub vocab_size: usize,
    /// Values per position between layers.
    pub hidden_size: usize,
    /// Values per position inside the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, each shared by `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Values per head; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// The longest context that the model was trained for, in tokens.
    pub max_positions: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether the output head is the embedding table.
    pub tied_embeddings: bool,
    /// The token that begins a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text or a turn; the first is the main one.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills batches in other programs.
    pub pad_token_id: Option<u32>,
}

/// No model comes near these; they keep sizes of a hostile file from overflowing or filling the memory.
const MOST_LAYERS: usize = 4096;
const MOST_VALUES: usize = 1 << 28;

impl ModelConfig {
    /// Weights in all, norms included.
    pub fn parameters(&self) -> usize {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let attention = self.hidden_size * (2 * q + 2 * kv);
        let feed_forward = 3 * self.hidden_size * self.intermediate_size;
        let tables = if self.tied_embeddings { 1 } else { 2 };
        self.layers * (attention + feed_forward + 2 * self.hidden_size)
            + (tables * self.vocab_size + 1) * self.hidden_size
    }

    /// Refuses sizes that cannot be a model's. `path` stands in the error.
    fn check(self, path: &Path) -> Result<Self> {
        let refuse = |key: &str, found: usize, supported: String| {
            Err(Error::unsupported(path, key, found.to_string(), supported))
        };
        let sizes = [
            ("vocabulary size", self.vocab_size, MOST_VALUES),
            ("hidden size", self.hidden_size, MOST_VALUES),
            ("feed-forward size", self.intermediate_size, MOST_VALUES),
            ("number of layers", self.layers, MOST_LAYERS),
            ("number of heads", self.heads, MOST_VALUES),
            ("number of key and value heads", self.kv_heads, MOST_VALUES),
            ("head size", self.head_dim, MOST_VALUES),
            ("number of positions", self.max_positions, usize::MAX),
        ];
        for (key, found, most) in sizes {
            if found == 0 || found > most {
                return refuse(key, found, format!("1 to {most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return refuse(
                "number of key and value heads",
                self.kv_heads,
                format!("a divisor of {}", self.heads),
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse("head size", self.head_dim, "an even number".into());
        }
        let finite = [("rotary base", self.rope.theta), ("norm epsilon", f64::from(self.norm_eps))];
        for (key, found) in finite {
            if !(found.is_finite() && found > 0.0) {
                return Err(Error::unsupported(path, key, found.to_string(), "a positive number"));
            }
        }
        Ok(self)
    }
}
