//! GPT-Neo: learned positions, and layers that see a window.

use super::keys::Keys;
use crate::{Activation, Error, Family, ModelConfig, Pooling, Result};

impl Keys<'_> {
    pub(super) fn gpt_neo(&mut self) -> Result<ModelConfig> {
        let hidden_size = self.required("hidden_size")?;
        let heads = self.required("num_heads")?;
        let layers = self.required("num_layers")?;
        let known = [("gelu_new", Activation::GeluTanh), ("gelu", Activation::Gelu)];
        Ok(ModelConfig {
            family: Family::GptNeo,
            vocab_size: self.required("vocab_size")?,
            hidden_size,
            intermediate_size: self
                .optional("intermediate_size")?
                .unwrap_or_else(|| 4usize.saturating_mul(hidden_size)),
            layers,
            heads,
            kv_heads: heads,
            head_dim: self.head_dim(hidden_size, heads)?,
            max_positions: self.optional("max_position_embeddings")?.unwrap_or(2048),
            norm_eps: self.optional("layer_norm_epsilon")?.unwrap_or(1e-5),
            activation: self.activation("activation_function", &known)?,
            rope: None,
            windows: self.windows(layers)?,
            pooling: Pooling::default(),
            token_types: 0,
            tied_embeddings: self.optional("tie_word_embeddings")?.unwrap_or(true),
            bos_token_id: self.optional("bos_token_id")?,
            eos_token_ids: self.ids("eos_token_id")?,
            pad_token_id: self.optional("pad_token_id")?,
        })
    }

    /// GPT-Neo's windows: a pattern with repetitions in `attention_types`, or layer by layer in `attention_layers`.
    fn windows(&mut self, layers: usize) -> Result<Vec<Option<usize>>> {
        let window: usize = self.optional("window_size")?.unwrap_or(256);
        let listed: Option<Vec<String>> = self.optional("attention_layers")?;
        let types: Option<Vec<(Vec<String>, usize)>> = self.optional("attention_types")?;
        let repeated = |types: Vec<(Vec<String>, usize)>| {
            types.into_iter().flat_map(|(kinds, times)| {
                let len = kinds.len().saturating_mul(times);
                kinds.into_iter().cycle().take(len)
            })
        };
        // One more than there should be tells a list that is too long, however often it repeats.
        let kinds = listed.or_else(|| Some(repeated(types?).take(layers.saturating_add(1)).collect()));
        let kinds = kinds.ok_or_else(|| Error::MissingKey {
            path: self.path.to_owned(),
            key: "attention_layers".into(),
        })?;
        if kinds.len() != layers {
            let supported = format!("one kind for each of {layers} layers");
            return Err(Error::unsupported(self.path, "attention_layers", format!("{kinds:?}"), supported));
        }
        let window_of = |kind: &String| match kind.as_str() {
            "global" => Ok(None),
            "local" if window > 0 => Ok(Some(window)),
            _ => Err(Error::unsupported(
                self.path,
                "attention_layers",
                format!("`{kind}` with window_size {window}"),
                "`global`, or `local` with a window above 0",
            )),
        };
        kinds.iter().map(window_of).collect()
    }
}
