//! The tensors of each family: their names in both worlds, and the shapes that follow from a configuration.

use crate::{Family, ModelConfig};

/// A place for one tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The Hugging Face name, by which everything else calls the tensor.
    pub name: String,
    /// The name in GGUF files.
    pub gguf_name: String,
    /// The shape, outermost first.
    pub shape: Vec<usize>,
    /// For projections whose rows GGUF files hold in interleaved pairs: the number of heads.
    pub interleaved_heads: Option<usize>,
}

/// A dimension that a configuration fixes.
#[derive(Clone, Copy)]
enum Dim {
    Vocab,
    Hidden,
    Intermediate,
    Query,
    KeyValue,
}

/// How GGUF files order a tensor's rows.
#[derive(Clone, Copy)]
enum Rows {
    InOrder,
    InterleavedQuery,
    InterleavedKey,
}

/// A family's tensor; `{i}` stands for the layer in tensors that every layer has.
struct Row(&'static str, &'static str, &'static [Dim], Rows);

const LLAMA: &[Row] = {
    use Dim::{Hidden, Intermediate, KeyValue, Query, Vocab};
    use Rows::{InOrder, InterleavedKey, InterleavedQuery};
    &[
        Row("model.embed_tokens.weight", "token_embd.weight", &[Vocab, Hidden], InOrder),
        Row("model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", &[Hidden], InOrder),
        Row(
            "model.layers.{i}.self_attn.q_proj.weight",
            "blk.{i}.attn_q.weight",
            &[Query, Hidden],
            InterleavedQuery,
        ),
        Row(
            "model.layers.{i}.self_attn.k_proj.weight",
            "blk.{i}.attn_k.weight",
            &[KeyValue, Hidden],
            InterleavedKey,
        ),
        Row(
            "model.layers.{i}.self_attn.v_proj.weight",
            "blk.{i}.attn_v.weight",
            &[KeyValue, Hidden],
            InOrder,
        ),
        Row(
            "model.layers.{i}.self_attn.o_proj.weight",
            "blk.{i}.attn_output.weight",
            &[Hidden, Query],
            InOrder,
        ),
        Row(
            "model.layers.{i}.post_attention_layernorm.weight",
            "blk.{i}.ffn_norm.weight",
            &[Hidden],
            InOrder,
        ),
        Row(
            "model.layers.{i}.mlp.gate_proj.weight",
            "blk.{i}.ffn_gate.weight",
            &[Intermediate, Hidden],
            InOrder,
        ),
        Row("model.layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", &[Intermediate, Hidden], InOrder),
        Row(
            "model.layers.{i}.mlp.down_proj.weight",
            "blk.{i}.ffn_down.weight",
            &[Hidden, Intermediate],
            InOrder,
        ),
        Row("model.norm.weight", "output_norm.weight", &[Hidden], InOrder),
        Row(LM_HEAD, "output.weight", &[Vocab, Hidden], InOrder),
    ]
};

/// The output head, which models with tied embeddings do not store.
pub(crate) const LM_HEAD: &str = "lm_head.weight";
/// The embedding table, which is also the output head when they are tied.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

/// Every tensor that a model of this configuration stores, in the order of the computation.
pub fn slots(config: &ModelConfig) -> Vec<Slot> {
    let rows = match config.family {
        Family::Llama => LLAMA,
    };
    let dim = |dim: &Dim| match dim {
        Dim::Vocab => config.vocab_size,
        Dim::Hidden => config.hidden_size,
        Dim::Intermediate => config.intermediate_size,
        Dim::Query => config.heads * config.head_dim,
        Dim::KeyValue => config.kv_heads * config.head_dim,
    };
    let slot = |&Row(name, gguf_name, shape, order): &Row, layer: usize| Slot {
        name: name.replace("{i}", &layer.to_string()),
        gguf_name: gguf_name.replace("{i}", &layer.to_string()),
        shape: shape.iter().map(dim).collect(),
        interleaved_heads: match order {
            Rows::InOrder => None,
            Rows::InterleavedQuery => Some(config.heads),
            Rows::InterleavedKey => Some(config.kv_heads),
        },
    };
    let per_layer = |row: &Row| row.0.contains("{i}");
    let mut slots = Vec::new();
    for group in rows.chunk_by(|a, b| per_layer(a) == per_layer(b)) {
        let layers = if per_layer(&group[0]) { config.layers } else { 1 };
        slots.extend((0..layers).flat_map(|layer| group.iter().map(move |row| slot(row, layer))));
    }
    slots.retain(|slot| !(config.tied_embeddings && slot.name == LM_HEAD));
    slots
}
