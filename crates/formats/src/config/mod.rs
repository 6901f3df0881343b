//! A model's configuration as plain data, from `config.json` or GGUF keys.

mod gguf;
mod hf;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::layout::slots;
use crate::{Error, Family, Result, Rope, RopeScaling};

/// What the feed-forward part does to its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Activation {
    /// `z sigmoid(z)`.
    Silu,
    /// `z Φ(z)` (Hendrycks and Gimpel, 2016).
    Gelu,
    /// The same with `Φ` approximated by a tanh.
    GeluTanh,
}

/// How an encoder's outputs become one vector; a decoder is read at its last token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over the text's tokens (Reimers and Gurevych, 2019).
    #[default]
    Mean,
    /// The output at the first token (Devlin et al., 2019).
    First,
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
    /// Added to the mean square or variance in norms.
    pub norm_eps: f32,
    /// Of the feed-forward part.
    pub activation: Activation,
    /// Rotary positions; `None` where positions are a learned table.
    pub rope: Option<Rope>,
    /// Tokens that a layer's attention looks back over, the own one included, where it is not all; one for each
    /// layer, or none at all when every layer sees everything.
    pub windows: Vec<Option<usize>>,
    /// Of an encoder.
    #[serde(default)]
    pub pooling: Pooling,
    /// Kinds of text that the model tells apart (a pair's first and second); 0 where it has no such table.
    pub token_types: usize,
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
        slots(self).iter().map(|slot| slot.shape.iter().product::<usize>()).sum()
    }

    /// Gets ready for texts of up to `tokens` tokens: where they do not fit the context that a longrope model was first
    /// trained with, all texts turn by the divisors of the long context (as vLLM and llama.cpp choose, once a model).
    pub fn set_context(&mut self, tokens: usize) {
        if let Some(Rope {
            scaling: Some(RopeScaling::Long { original_max_positions, beyond, .. }), ..
        }) = &mut self.rope
        {
            *beyond = tokens > *original_max_positions;
        }
    }

    /// Whether every token sees the whole text, so that a text is read by the [`Pooling`] of its outputs.
    pub fn is_encoder(&self) -> bool {
        self.family.traits().bidirectional
    }

    /// What a layer's attention looks back over, when that is not everything.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
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
        if self.rope.is_some() && !self.head_dim.is_multiple_of(2) {
            return refuse("head size", self.head_dim, "an even number".into());
        }
        if let Some(RopeScaling::Long { short, long, original_max_positions, attention_factor, .. }) =
            self.rope.as_ref().and_then(|rope| rope.scaling.as_ref())
        {
            for (key, divisors) in [("short_factor", short), ("long_factor", long)] {
                let sound = divisors.len() == self.head_dim / 2
                    && divisors.iter().all(|divisor| divisor.is_finite() && *divisor > 0.0)
                    && *original_max_positions > 1
                    && attention_factor.is_finite();
                if !sound {
                    let supported = format!("{} positive divisors and a context above 1", self.head_dim / 2);
                    return Err(Error::unsupported(path, key, format!("{divisors:?}"), supported));
                }
            }
        }
        let theta = self.rope.as_ref().map_or(1.0, |rope| rope.theta);
        let finite = [("rotary base", theta), ("norm epsilon", f64::from(self.norm_eps))];
        for (key, found) in finite {
            if !(found.is_finite() && found > 0.0) {
                return Err(Error::unsupported(path, key, found.to_string(), "a positive number"));
            }
        }
        Ok(self)
    }
}
