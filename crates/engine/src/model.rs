//! A model on a device: its weights, which may train, and the places where LoRA attaches.

use formats::ModelConfig;
use kernels::{Activation, AttentionShape, Backend, Gate, Mask, Norm};

use crate::block::Block;
use crate::lora::Adapter;
use crate::weights::{Place, Weights};

/// Positions for which rotary angles are kept; longer inputs are refused.
const MAX_POSITIONS: usize = 8192;

/// A decoder or an encoder on a device.
pub struct Model<B: Backend> {
    pub(crate) backend: B,
    pub(crate) config: ModelConfig,
    pub(crate) embedding: B::Matrix,
    /// A row for each position, added to the tokens'; `None` where positions are rotary.
    pub(crate) position_table: Option<B::Matrix>,
    /// `None` when the embedding serves as the head (tied).
    pub(crate) head: Option<B::Matrix>,
    pub(crate) blocks: Vec<Block<B>>,
    /// The norm outside the blocks: after the last one, or, where norms follow the sums, that of the embeddings.
    pub(crate) norm: Norm<B>,
    /// `(positions, D)`: cosines, then sines; `None` where positions are a learned table.
    pub(crate) rotary: Option<B::Wide>,
    /// Where the weights lie in the parameters, when they train.
    pub(crate) weights: Option<Weights>,
    pub(crate) positions: usize,
}

impl<B: Backend> Model<B> {
    /// Gets ready for texts of up to `tokens` tokens; see [`ModelConfig::set_context`].
    pub fn set_context(&mut self, tokens: usize) {
        let before = self.config.rope.clone();
        self.config.set_context(tokens);
        if let Some(rope) = self.config.rope.as_ref().filter(|rope| Some(*rope) != before.as_ref()) {
            self.positions = positions(&self.config);
            self.rotary = Some(rotary_table(&self.backend, rope, self.config.head_dim, self.positions));
        }
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Tokens that fit from the prompt's first to the label's last.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Bytes of frozen weights on the device.
    pub fn weight_bytes(&self) -> usize {
        let linears = self.blocks.iter().flat_map(Block::linears).map(|linear| &linear.matrix);
        let all = linears.chain([&self.embedding]).chain(&self.head).chain(&self.position_table);
        all.map(|matrix| self.backend.matrix_bytes(matrix)).sum()
    }

    /// Opens a slot for each pair of the adapter and lays out its values.
    pub fn attach(&mut self, adapter: &Adapter) {
        let parameters = self.open_slots(adapter);
        self.refresh(&parameters);
    }

    /// Lets every weight train; from here on [`Model::refresh`] takes all of them from the parameters.
    pub fn train_weights(&mut self) {
        self.weights = Some(Weights::new(&self.config));
    }

    /// Opens a slot for each pair of the adapter; returns its values on the device.
    fn open_slots(&mut self, adapter: &Adapter) -> B::Wide {
        let entries = adapter.lora.entries(&self.config);
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let of_layer = entries.iter().filter(|entry| entry.layer == layer);
            block.open_slots(of_layer.copied(), adapter.lora.scale());
        }
        let mut parameters = self.backend.wide(adapter.values.len());
        self.backend.upload(&mut parameters, 0, &adapter.values);
        parameters
    }

    /// Lays out new parameter values for the products.
    pub fn refresh(&mut self, parameters: &B::Wide) {
        let linears = self.blocks.iter_mut().flat_map(Block::linears_mut);
        let mut with_slots: Vec<_> = linears.filter(|linear| !linear.slots.is_empty()).collect();
        self.backend.refresh_all(&mut with_slots, parameters);
        if let Some(weights) = self.weights.take() {
            self.repack(&weights, parameters);
            self.weights = Some(weights);
        }
    }

    /// Takes every weight from the parameters.
    fn repack(&mut self, weights: &Weights, parameters: &B::Wide) {
        let ops = &self.backend;
        ops.repack(&mut self.embedding, parameters, weights.embedding, None);
        if let (Some(head), Some(at)) = (&mut self.head, weights.head) {
            ops.repack(head, parameters, at, None);
        }
        if let (Some(table), Some(at)) = (&mut self.position_table, weights.positions) {
            // Every row is of the first kind.
            ops.repack(table, parameters, at, weights.token_types);
        }
        let vectors = |weight: &mut B::Wide, bias: &mut Option<B::Wide>, place: Place| {
            ops.take(weight, parameters, place.weight);
            if let (Some(bias), Some(at)) = (bias, place.bias) {
                ops.take(bias, parameters, at);
            }
        };
        vectors(&mut self.norm.weight, &mut self.norm.bias, weights.norm);
        for (block, places) in self.blocks.iter_mut().zip(&weights.blocks) {
            for (norm, place) in [(&mut block.norm1, places.norm1), (&mut block.norm2, places.norm2)] {
                vectors(&mut norm.weight, &mut norm.bias, place);
            }
            let places = [places.qkv, places.out, places.up, places.down];
            for (linear, place) in block.linears_mut().zip(places) {
                ops.repack(&mut linear.matrix, parameters, place.weight, None);
                if let (Some(bias), Some(at)) = (&mut linear.bias, place.bias) {
                    ops.take(bias, parameters, at);
                }
            }
        }
    }

    pub(crate) fn head(&self) -> &B::Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Whether every token sees the whole text, so that a text is read by the pooling of its outputs.
    pub fn is_encoder(&self) -> bool {
        self.config.is_encoder()
    }

    /// The heads of a layer's attention, and what they see.
    pub(crate) fn attention_shape(&self, layer: usize) -> AttentionShape {
        let ModelConfig { family, heads, kv_heads, head_dim, .. } = self.config;
        let traits = family.traits();
        AttentionShape {
            heads,
            kv_heads,
            head_dim,
            scale: if traits.scaled_attention { (head_dim as f32).powf(-0.5) } else { 1.0 },
            mask: if traits.bidirectional { Mask::Full } else { Mask::Causal },
            window: self.config.window(layer),
        }
    }

    /// What the feed-forward part does between its two products.
    pub(crate) fn feed_forward(&self) -> FeedForward {
        match (self.config.family.traits().gated, self.config.activation) {
            (true, _) => FeedForward::Gated(Gate::Silu),
            (false, formats::Activation::GeluTanh) => FeedForward::Plain(Activation::GeluTanh),
            (false, _) => FeedForward::Plain(Activation::Gelu),
        }
    }
}

/// What stands between the products of the feed-forward part.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FeedForward {
    Gated(Gate),
    Plain(Activation),
}

/// Tokens that fit a model of this configuration.
pub(crate) fn positions(config: &ModelConfig) -> usize {
    let most = config.rope.as_ref().and_then(formats::Rope::most_positions).unwrap_or(MAX_POSITIONS);
    config.max_positions.min(most).min(MAX_POSITIONS)
}

/// Cosines, then sines, of each position: `(positions, D)`.
pub(crate) fn rotary_table<B: Backend>(
    backend: &B,
    rope: &formats::Rope,
    head_dim: usize,
    positions: usize,
) -> B::Wide {
    let (frequencies, factor) = (rope.inv_freq(head_dim), rope.attention_factor());
    let angles = |p: usize| frequencies.iter().map(move |f| p as f32 * f);
    let row = |p: usize| angles(p).map(f32::cos).chain(angles(p).map(f32::sin)).collect::<Vec<_>>();
    let values: Vec<f32> = (0..positions).flat_map(row).map(|value| value * factor).collect();
    let mut table = backend.wide(values.len());
    backend.upload(&mut table, 0, &values);
    table
}
