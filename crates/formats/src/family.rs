//! The families of models: what is the same in all models of one, as rows of a table.

use serde::{Deserialize, Serialize};

use crate::layout::Part;

/// A family of models with the same tensors and the same mathematics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2 and 3, SmolLM2 and others: RMSNorm, SwiGLU, rotary positions, grouped-query attention, no
    /// biases.
    Llama,
    /// Phi-3 and 3.5: Llama's mathematics with fused tensors and rotary frequencies of their own.
    Phi3,
    /// GPT-Neo: LayerNorm, GELU, learned positions, unscaled attention, of which some layers see a window.
    GptNeo,
    /// BERT, MiniLM and other encoders: LayerNorm after each sum, GELU, learned positions, full attention.
    Bert,
    /// DistilBERT: BERT without token types, under other names.
    DistilBert,
}

/// What the models of a family have in common.
#[allow(clippy::struct_excessive_bools)] // each is a choice of its own; their combinations are the families
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traits {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class of transformers with a language-modelling head (of encoders: without), for `config.json`.
    pub architecture: &'static str,
    /// LayerNorm (mean and bias) instead of RMSNorm.
    pub layer_norm: bool,
    /// The norms follow the sums (encoders) instead of preceding the layers they feed; the first of all is then
    /// that of the embeddings, and there is none after the last block.
    pub post_norm: bool,
    /// Every token sees the whole text; the model is an encoder, read by the pooling of its outputs.
    pub bidirectional: bool,
    /// The feed-forward part multiplies its activation by a second projection.
    pub gated: bool,
    /// Attention scores are divided by the root of the head size.
    pub scaled_attention: bool,
    /// What files of models with a head of some kind put before every name.
    pub prefix: &'static str,
    /// Tensors in files that no computation here needs: heads of other tasks, and tables that follow from the
    /// configuration; by the parts of names that mark them.
    pub unused: &'static [&'static str],
    pub(crate) rows: &'static [Row],
}

/// A family's tensor; `{i}` stands for the layer in tensors that every layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) part: Part,
    /// Hugging Face's name without `.weight` or `.bias`.
    pub(crate) name: &'static str,
    /// The name in GGUF files, likewise; empty where the format does not know the family.
    pub(crate) gguf_name: &'static str,
    /// Whether there is a bias beside the weight.
    pub(crate) bias: bool,
}

const fn plain(part: Part, name: &'static str, gguf_name: &'static str) -> Row {
    Row { part, name, gguf_name, bias: false }
}

const fn biased(part: Part, name: &'static str, gguf_name: &'static str) -> Row {
    Row { part, name, gguf_name, bias: true }
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Phi3, Self::GptNeo, Self::Bert, Self::DistilBert];

    /// The family's row of the table.
    pub fn traits(self) -> &'static Traits {
        match self {
            Self::Llama => &LLAMA,
            Self::Phi3 => &PHI3,
            Self::GptNeo => &GPT_NEO,
            Self::Bert => &BERT,
            Self::DistilBert => &DISTILBERT,
        }
    }
}

const LLAMA: Traits = Traits {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    layer_norm: false,
    post_norm: false,
    bidirectional: false,
    gated: true,
    scaled_attention: true,
    prefix: "",
    unused: &["rope_freqs.weight", ".rotary_emb.inv_freq"],
    rows: &[
        plain(Part::Embedding, "model.embed_tokens", "token_embd"),
        plain(Part::Norm1, "model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        plain(Part::Query, "model.layers.{i}.self_attn.q_proj", "blk.{i}.attn_q"),
        plain(Part::Key, "model.layers.{i}.self_attn.k_proj", "blk.{i}.attn_k"),
        plain(Part::Value, "model.layers.{i}.self_attn.v_proj", "blk.{i}.attn_v"),
        plain(Part::Output, "model.layers.{i}.self_attn.o_proj", "blk.{i}.attn_output"),
        plain(Part::Norm2, "model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        plain(Part::Gate, "model.layers.{i}.mlp.gate_proj", "blk.{i}.ffn_gate"),
        plain(Part::Up, "model.layers.{i}.mlp.up_proj", "blk.{i}.ffn_up"),
        plain(Part::Down, "model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down"),
        plain(Part::FinalNorm, "model.norm", "output_norm"),
        plain(Part::Head, "lm_head", "output"),
    ],
};

const PHI3: Traits = Traits {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    rows: &[
        plain(Part::Embedding, "model.embed_tokens", "token_embd"),
        plain(Part::Norm1, "model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        plain(Part::QueryKeyValue, "model.layers.{i}.self_attn.qkv_proj", "blk.{i}.attn_qkv"),
        plain(Part::Output, "model.layers.{i}.self_attn.o_proj", "blk.{i}.attn_output"),
        plain(Part::Norm2, "model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        plain(Part::GateUp, "model.layers.{i}.mlp.gate_up_proj", "blk.{i}.ffn_up"),
        plain(Part::Down, "model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down"),
        plain(Part::FinalNorm, "model.norm", "output_norm"),
        plain(Part::Head, "lm_head", "output"),
    ],
    ..LLAMA
};

const GPT_NEO: Traits = Traits {
    model_type: "gpt_neo",
    architecture: "GPTNeoForCausalLM",
    layer_norm: true,
    post_norm: false,
    bidirectional: false,
    gated: false,
    scaled_attention: false,
    prefix: "",
    unused: &[".attn.attention.bias", ".attn.attention.masked_bias"],
    rows: &[
        plain(Part::Embedding, "transformer.wte", ""),
        plain(Part::Positions, "transformer.wpe", ""),
        biased(Part::Norm1, "transformer.h.{i}.ln_1", ""),
        plain(Part::Query, "transformer.h.{i}.attn.attention.q_proj", ""),
        plain(Part::Key, "transformer.h.{i}.attn.attention.k_proj", ""),
        plain(Part::Value, "transformer.h.{i}.attn.attention.v_proj", ""),
        biased(Part::Output, "transformer.h.{i}.attn.attention.out_proj", ""),
        biased(Part::Norm2, "transformer.h.{i}.ln_2", ""),
        biased(Part::Up, "transformer.h.{i}.mlp.c_fc", ""),
        biased(Part::Down, "transformer.h.{i}.mlp.c_proj", ""),
        biased(Part::FinalNorm, "transformer.ln_f", ""),
        plain(Part::Head, "lm_head", ""),
    ],
};

const BERT: Traits = Traits {
    model_type: "bert",
    architecture: "BertModel",
    layer_norm: true,
    post_norm: true,
    bidirectional: true,
    gated: false,
    scaled_attention: true,
    prefix: "bert.",
    unused: &["embeddings.position_ids", "pooler.dense.", "cls.", "classifier."],
    rows: &[
        plain(Part::Embedding, "embeddings.word_embeddings", "token_embd"),
        plain(Part::Positions, "embeddings.position_embeddings", "position_embd"),
        plain(Part::TokenTypes, "embeddings.token_type_embeddings", "token_types"),
        biased(Part::EmbeddingNorm, "embeddings.LayerNorm", "token_embd_norm"),
        biased(Part::Query, "encoder.layer.{i}.attention.self.query", "blk.{i}.attn_q"),
        biased(Part::Key, "encoder.layer.{i}.attention.self.key", "blk.{i}.attn_k"),
        biased(Part::Value, "encoder.layer.{i}.attention.self.value", "blk.{i}.attn_v"),
        biased(Part::Output, "encoder.layer.{i}.attention.output.dense", "blk.{i}.attn_output"),
        biased(Part::Norm1, "encoder.layer.{i}.attention.output.LayerNorm", "blk.{i}.attn_output_norm"),
        biased(Part::Up, "encoder.layer.{i}.intermediate.dense", "blk.{i}.ffn_up"),
        biased(Part::Down, "encoder.layer.{i}.output.dense", "blk.{i}.ffn_down"),
        biased(Part::Norm2, "encoder.layer.{i}.output.LayerNorm", "blk.{i}.layer_output_norm"),
    ],
};

const DISTILBERT: Traits = Traits {
    model_type: "distilbert",
    architecture: "DistilBertModel",
    prefix: "distilbert.",
    unused: &["embeddings.position_ids", "vocab_", "pre_classifier.", "classifier."],
    rows: &[
        plain(Part::Embedding, "embeddings.word_embeddings", ""),
        plain(Part::Positions, "embeddings.position_embeddings", ""),
        biased(Part::EmbeddingNorm, "embeddings.LayerNorm", ""),
        biased(Part::Query, "transformer.layer.{i}.attention.q_lin", ""),
        biased(Part::Key, "transformer.layer.{i}.attention.k_lin", ""),
        biased(Part::Value, "transformer.layer.{i}.attention.v_lin", ""),
        biased(Part::Output, "transformer.layer.{i}.attention.out_lin", ""),
        biased(Part::Norm1, "transformer.layer.{i}.sa_layer_norm", ""),
        biased(Part::Up, "transformer.layer.{i}.ffn.lin1", ""),
        biased(Part::Down, "transformer.layer.{i}.ffn.lin2", ""),
        biased(Part::Norm2, "transformer.layer.{i}.output_layer_norm", ""),
    ],
    ..BERT
};
