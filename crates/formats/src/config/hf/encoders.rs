//! BERT, `MiniLM` and DistilBERT.

use super::keys::Keys;
use crate::{Activation, Family, ModelConfig, Pooling, Result};

impl Keys<'_> {
    pub(super) fn bert(&mut self) -> Result<ModelConfig> {
        self.only("position_embedding_type", "absolute")?;
        let known = [("gelu", Activation::Gelu), ("gelu_new", Activation::GeluTanh)];
        let sizes = ["hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers"];
        let eps = self.optional("layer_norm_eps")?.unwrap_or(1e-12);
        let token_types = self.optional("type_vocab_size")?.unwrap_or(2);
        let activation = self.activation("hidden_act", &known)?;
        self.encoder(Family::Bert, sizes, activation, eps, token_types)
    }

    pub(super) fn distilbert(&mut self) -> Result<ModelConfig> {
        // Only how the table of positions was first filled; it is stored like any other.
        self.optional::<bool>("sinusoidal_pos_embds")?;
        let activation = self.activation("activation", &[("gelu", Activation::Gelu)])?;
        self.encoder(Family::DistilBert, ["dim", "n_heads", "hidden_dim", "n_layers"], activation, 1e-12, 0)
    }

    fn encoder(
        &mut self,
        family: Family,
        [width, heads, feed_forward, layers]: [&str; 4],
        activation: Activation,
        norm_eps: f32,
        token_types: usize,
    ) -> Result<ModelConfig> {
        let (hidden_size, heads) = (self.required(width)?, self.required(heads)?);
        // Of the head that predicts masked words, which nothing here computes.
        self.optional::<bool>("tie_word_embeddings")?;
        Ok(ModelConfig {
            family,
            vocab_size: self.required("vocab_size")?,
            hidden_size,
            intermediate_size: self.required(feed_forward)?,
            layers: self.required(layers)?,
            heads,
            kv_heads: heads,
            head_dim: self.head_dim(hidden_size, heads)?,
            max_positions: self.optional("max_position_embeddings")?.unwrap_or(512),
            norm_eps,
            activation,
            rope: None,
            windows: Vec::new(),
            pooling: Pooling::default(),
            token_types,
            tied_embeddings: true,
            bos_token_id: self.optional("bos_token_id")?,
            eos_token_ids: self.ids("eos_token_id")?,
            pad_token_id: self.optional("pad_token_id")?,
        })
    }
}
