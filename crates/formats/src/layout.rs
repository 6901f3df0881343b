//! The tensors of a model: their names in both worlds, and the shapes that follow from a configuration.

use crate::family::Row;
use crate::{DType, ModelConfig, TensorSpec};

/// What a tensor is for, whatever its family calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A row for each token.
    Embedding,
    /// A row for each position, added to the tokens'.
    Positions,
    /// A row for each kind of text, of which a single text uses the first.
    TokenTypes,
    /// Norm of the embeddings' sum.
    EmbeddingNorm,
    /// Norm around the attention.
    Norm1,
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// The three as one tensor.
    QueryKeyValue,
    /// Attention output.
    Output,
    /// Norm around the feed-forward part.
    Norm2,
    /// Gate of the feed-forward part.
    Gate,
    /// Up-projection of the feed-forward part.
    Up,
    /// The two as one tensor.
    GateUp,
    /// Down-projection of the feed-forward part.
    Down,
    /// Norm after the last block.
    FinalNorm,
    /// A row for each token, to score it; models with tied embeddings do not store it.
    Head,
}

impl Part {
    /// The first of the parts that read the same input, and run with it as one product.
    #[must_use]
    pub fn product(self) -> Self {
        match self {
            Self::Query | Self::Key | Self::Value | Self::QueryKeyValue => Self::Query,
            Self::Gate | Self::Up | Self::GateUp => Self::Gate,
            other => other,
        }
    }

    /// The shape of its weight; a bias has the first of it.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let (width, feed_forward) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Self::Embedding | Self::Head => vec![config.vocab_size, width],
            Self::Positions => vec![config.max_positions, width],
            Self::TokenTypes => vec![config.token_types, width],
            Self::EmbeddingNorm | Self::Norm1 | Self::Norm2 | Self::FinalNorm => vec![width],
            Self::Query => vec![q, width],
            Self::Key | Self::Value => vec![kv, width],
            Self::QueryKeyValue => vec![q + 2 * kv, width],
            Self::Output => vec![width, q],
            Self::Gate | Self::Up => vec![feed_forward, width],
            Self::GateUp => vec![2 * feed_forward, width],
            Self::Down => vec![width, feed_forward],
        }
    }
}

/// A place for one tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// What it is for.
    pub part: Part,
    /// Its layer, for tensors that every layer has.
    pub layer: Option<usize>,
    /// Whether it is the bias of its part, not the weight.
    pub bias: bool,
    /// The Hugging Face name, by which everything else calls the tensor.
    pub name: String,
    /// The name in GGUF files; empty where the format does not know the family.
    pub gguf_name: String,
    /// The shape, outermost first.
    pub shape: Vec<usize>,
    /// For projections whose rows GGUF files hold in interleaved pairs: the number of heads.
    pub interleaved_heads: Option<usize>,
}

impl Slot {
    /// The tensor as a Hugging Face folder holds it, to be written in a type.
    pub fn spec(&self, dtype: DType) -> TensorSpec {
        TensorSpec { name: self.name.clone(), dtype, shape: self.shape.clone() }
    }

    /// The row, in Hugging Face's order, that stands at `row` of a GGUF file: there the two rows that one rotation
    /// pairs are neighbours, here the first members of all pairs of a head come before the second ones.
    pub fn row_of_gguf(&self, row: usize) -> usize {
        let Some(heads) = self.interleaved_heads else { return row };
        let head_rows = self.shape[0] / heads;
        let (head, within) = (row / head_rows, row % head_rows);
        head * head_rows + (within % 2) * (head_rows / 2) + within / 2
    }
}

/// Every tensor that a model of this configuration stores, in the order of the computation.
pub fn slots(config: &ModelConfig) -> Vec<Slot> {
    let rows = config.family.traits().rows;
    let per_layer = |row: &Row| row.name.contains("{i}");
    let mut slots = Vec::new();
    for group in rows.chunk_by(|a, b| per_layer(a) == per_layer(b)) {
        let layers: Vec<Option<usize>> =
            if per_layer(&group[0]) { (0..config.layers).map(Some).collect() } else { vec![None] };
        for layer in layers {
            slots.extend(group.iter().flat_map(|row| row.slots(config, layer)));
        }
    }
    slots.retain(|slot| !(config.tied_embeddings && slot.part == Part::Head));
    slots
}

impl ModelConfig {
    /// Whether the family has this part, as a tensor of its own.
    pub fn has(&self, part: Part) -> bool {
        self.row(part).is_some()
    }

    /// Whether this part has a bias beside its weight.
    pub fn has_bias(&self, part: Part) -> bool {
        self.row(part).is_some_and(|row| row.bias)
    }

    /// The Hugging Face name of a part without `.weight` or `.bias`; empty when the family has no such part.
    pub fn name_of(&self, part: Part, layer: usize) -> String {
        self.row(part).map_or_else(String::new, |row| row.name.replace("{i}", &layer.to_string()))
    }

    fn row(&self, part: Part) -> Option<&'static Row> {
        self.family.traits().rows.iter().find(|row| row.part == part)
    }
}

impl Row {
    /// The weight, and the bias if there is one.
    fn slots(&self, config: &ModelConfig, layer: Option<usize>) -> impl Iterator<Item = Slot> {
        let of_layer =
            |name: &str| layer.map_or_else(|| name.to_owned(), |i| name.replace("{i}", &i.to_string()));
        let (name, gguf_name) = (of_layer(self.name), of_layer(self.gguf_name));
        let shape = self.part.shape(config);
        // llama.cpp turns neighbouring pairs, Hugging Face halves; the converter moves rows for Llama alone.
        let interleaved_heads = match (config.family, self.part) {
            (crate::Family::Llama, Part::Query) => Some(config.heads),
            (crate::Family::Llama, Part::Key) => Some(config.kv_heads),
            _ => None,
        };
        let part = self.part;
        let slot = move |bias: bool| {
            let kind = if bias { "bias" } else { "weight" };
            Slot {
                part,
                layer,
                bias,
                name: format!("{name}.{kind}"),
                gguf_name: if gguf_name.is_empty() { String::new() } else { format!("{gguf_name}.{kind}") },
                shape: if bias { shape[..1].to_vec() } else { shape.clone() },
                interleaved_heads,
            }
        };
        [Some(false), self.bias.then_some(true)].into_iter().flatten().map(slot)
    }
}
