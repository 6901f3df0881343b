//! Llama and Phi-3: decoders with rotary positions.

use super::keys::Keys;
use crate::{Activation, Error, Family, ModelConfig, Pooling, Result, Rope, RopeScaling};

impl Keys<'_> {
    /// Llama and Phi-3.
    pub(super) fn rotary_decoder(&mut self, family: Family) -> Result<ModelConfig> {
        let hidden_size = self.required("hidden_size")?;
        let heads = self.required("num_attention_heads")?;
        let max_positions = self.optional("max_position_embeddings")?.unwrap_or(if family == Family::Phi3 {
            4096
        } else {
            2048
        });
        if family == Family::Phi3 {
            let window: Option<usize> = self.optional("sliding_window")?;
            if let Some(window) = window.filter(|&window| window < max_positions) {
                let supported = format!("at least max_position_embeddings, {max_positions}");
                return Err(Error::unsupported(self.path, "sliding_window", window.to_string(), supported));
            }
            self.whole_heads_rotate()?;
        }
        Ok(ModelConfig {
            family,
            vocab_size: self.required("vocab_size")?,
            hidden_size,
            intermediate_size: self.required("intermediate_size")?,
            layers: self.required("num_hidden_layers")?,
            heads,
            kv_heads: self.optional("num_key_value_heads")?.unwrap_or(heads),
            head_dim: self.head_dim(hidden_size, heads)?,
            max_positions,
            norm_eps: self.optional("rms_norm_eps")?.unwrap_or(if family == Family::Phi3 {
                1e-5
            } else {
                1e-6
            }),
            activation: self.activation("hidden_act", &[("silu", Activation::Silu)])?,
            rope: Some(self.rope(max_positions)?),
            windows: Vec::new(),
            pooling: Pooling::default(),
            token_types: 0,
            tied_embeddings: self.optional("tie_word_embeddings")?.unwrap_or(false),
            bos_token_id: self.optional("bos_token_id")?,
            eos_token_ids: self.ids("eos_token_id")?,
            pad_token_id: self.optional("pad_token_id")?,
        })
    }

    /// The rotary settings: `rope_theta` beside `rope_scaling`, or both in the later `rope_parameters`.
    fn rope(&mut self, max_positions: usize) -> Result<Rope> {
        let mut theta = self.optional("rope_theta")?;
        let original: Option<usize> = self.optional("original_max_position_embeddings")?;
        let mut scaling = None;
        for name in ["rope_scaling", "rope_parameters"] {
            let Some(map) = self.optional(name)? else { continue };
            let mut keys = Keys { path: self.path, map };
            theta = keys.optional("rope_theta")?.or(theta);
            keys.whole_heads_rotate()?;
            let kind: Option<String> = keys.optional("rope_type")?;
            let older_kind: Option<String> = keys.optional("type")?;
            match kind.or(older_kind).as_deref() {
                None | Some("default") => {}
                Some("llama3") => {
                    scaling = Some(RopeScaling::Llama3 {
                        factor: keys.required("factor")?,
                        low_freq_factor: keys.required("low_freq_factor")?,
                        high_freq_factor: keys.required("high_freq_factor")?,
                        original_max_positions: keys.required("original_max_position_embeddings")?,
                    });
                }
                Some("longrope" | "su") => {
                    let within: Option<usize> = keys.optional("original_max_position_embeddings")?;
                    let original_max_positions = within.or(original).unwrap_or(max_positions);
                    scaling = Some(RopeScaling::Long {
                        short: keys.required("short_factor")?,
                        long: keys.required("long_factor")?,
                        original_max_positions,
                        beyond: false,
                        attention_factor: keys.attention_factor(max_positions, original_max_positions)?,
                    });
                }
                Some(other) => {
                    let key = format!("{name}.rope_type");
                    return Err(Error::unsupported(
                        self.path,
                        key,
                        format!("`{other}`"),
                        "`llama3`, `longrope` and `default`",
                    ));
                }
            }
            keys.refuse_the_rest()?;
        }
        Ok(Rope { theta: theta.unwrap_or(10_000.0), scaling })
    }

    fn whole_heads_rotate(&mut self) -> Result<()> {
        let key = "partial_rotary_factor";
        match self.optional::<f64>(key)? {
            Some(share) if (share - 1.0).abs() > 0.0 => {
                Err(Error::unsupported(self.path, key, share.to_string(), "1"))
            }
            _ => Ok(()),
        }
    }

    /// What longrope multiplies cosines and sines by.
    fn attention_factor(&mut self, max_positions: usize, original: usize) -> Result<f32> {
        let named: Option<f32> = self.optional("attention_factor")?;
        let factor: Option<f64> = self.optional("factor")?;
        let factor = factor.unwrap_or(max_positions as f64 / original as f64);
        let by_rule =
            if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() as f32 };
        Ok(named.unwrap_or(by_rule))
    }
}
