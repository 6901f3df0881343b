//! A model on a device: frozen weights, and the places where LoRA attaches.

use std::borrow::Cow;
use std::cell::RefCell;

use formats::{BaseModel, DType, ModelConfig, Part};
use kernels::linear::nf4;
use kernels::{
    Activation, AttentionShape, Backend, BlockFormat, Encoding, Gate, Images, Linear, Mask, Norm, Slot,
};

use crate::block::Block;
use crate::lora::{Adapter, LoraEntry};
use crate::weights::{Place, Weights};
use crate::{Error, Result};

/// Positions for which rotary angles are kept; longer inputs are refused.
const MAX_POSITIONS: usize = 8192;

/// What runs as one product with queries, and with gates; of each what the family has.
pub(crate) const QUERY_KEY_VALUE: [Part; 4] = [Part::Query, Part::Key, Part::Value, Part::QueryKeyValue];
pub(crate) const GATE_UP: [Part; 3] = [Part::Gate, Part::Up, Part::GateUp];

/// How frozen weights lie in memory; but for [`Storage::FourBits`] every answer and gradient is the same either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In the compute type: fastest for single queries.
    Expanded,
    /// In the few bits of the file where it has such: a third of the memory, and as fast for hundreds of rows.
    AsStored,
    /// The products of the blocks in 4 bits: in the file's blocks where those are of 4 bits, else in NF4 with double
    /// quantisation (Dettmers et al., 2023), which rounds the weights. All else as stored.
    FourBits,
}

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
    positions: usize,
}

impl<B: Backend> Model<B> {
    /// Reads the base model's weights onto the device.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the config says.
    pub fn load(backend: B, base: &BaseModel, storage: Storage) -> Result<Self> {
        Self::load_blocks(backend, base, Source::Files(storage), |_, _, _| {})
    }

    /// Reads the base model's weights as [`Model::load`] does, merges the adapter into them, if there is one, and
    /// encodes them and a decoder's output head: for routing, where neither changes any more.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_merged(
        backend: B,
        base: &BaseModel,
        storage: Storage,
        adapter: Option<&Adapter>,
        encoding: Encoding,
    ) -> Result<Self> {
        let merge = Merge::new(adapter, &base.config, encoding);
        // One block after the other, so that what only the merging needs uses the same memory again and again.
        let mut model = Self::load_blocks(backend, base, Source::Files(storage), |backend, layer, block| {
            merge.run(backend, layer, block);
        })?;
        model.encode_head(encoding);
        Ok(model)
    }

    /// Does to a model that was trained what [`Model::load_merged`] does to the files'.
    pub fn merge(&mut self, adapter: &Adapter, encoding: Encoding) {
        let merge = Merge::new(Some(adapter), &self.config, encoding);
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            merge.run(&self.backend, layer, block);
        }
        self.encode_head(encoding);
    }

    fn encode_head(&mut self, encoding: Encoding) {
        if !self.is_encoder() {
            self.head = Some(self.backend.encode(self.head(), encoding));
        }
    }

    /// Loads the model, handing each block over as soon as it is there.
    pub(crate) fn load_blocks(
        backend: B,
        base: &BaseModel,
        source: Source<'_>,
        mut ready: impl FnMut(&B, usize, &mut Block<B>),
    ) -> Result<Self> {
        let config = base.config.clone();
        let traits = config.family.traits();
        let reader = Reader { backend: &backend, base, source };
        let mut blocks = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let linear = |parts: &[Part]| reader.linear(layer, parts);
            let mut block = Block {
                norm1: reader.norm(Part::Norm1, layer)?,
                qkv: linear(&QUERY_KEY_VALUE)?,
                out: linear(&[Part::Output])?,
                norm2: reader.norm(Part::Norm2, layer)?,
                up: linear(&GATE_UP)?,
                down: linear(&[Part::Down])?,
            };
            ready(&backend, layer, &mut block);
            blocks.push(block);
        }
        let embedding = reader.matrix(&[reader.weight(Part::Embedding, 0)])?.0;
        let head = if config.tied_embeddings || config.is_encoder() {
            None
        } else {
            Some(reader.matrix(&[reader.weight(Part::Head, 0)])?.0)
        };
        let norm = reader.norm(if traits.post_norm { Part::EmbeddingNorm } else { Part::FinalNorm }, 0)?;
        let positions = positions(&config);
        let position_table =
            if config.has(Part::Positions) { Some(reader.positions(positions)?) } else { None };
        let rotary =
            config.rope.as_ref().map(|rope| rotary_table(&backend, rope, config.head_dim, positions));
        let weights = None;
        Ok(Self {
            backend,
            config,
            embedding,
            position_table,
            head,
            blocks,
            norm,
            rotary,
            weights,
            positions,
        })
    }

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

/// An adapter on its way into the weights.
struct Merge<'a> {
    adapter: Option<&'a Adapter>,
    entries: Vec<LoraEntry>,
    encoding: Encoding,
}

impl<'a> Merge<'a> {
    fn new(adapter: Option<&'a Adapter>, config: &ModelConfig, encoding: Encoding) -> Self {
        let entries = adapter.map_or_else(Vec::new, |adapter| adapter.lora.entries(config));
        Self { adapter, entries, encoding }
    }

    /// Merges a block's part and encodes its weights.
    fn run<B: Backend>(&self, backend: &B, layer: usize, block: &mut Block<B>) {
        let of_layer = self.entries.iter().filter(|entry| entry.layer == layer).copied();
        let mut entries: Vec<LoraEntry> = of_layer.collect();
        // The block's values alone go to the device, and the offsets count from their first.
        let first = entries.iter().map(|entry| entry.a).min().unwrap_or(0);
        let end = entries.iter().map(|entry| entry.b_range().end).max().unwrap_or(first);
        for entry in &mut entries {
            (entry.a, entry.b) = (entry.a - first, entry.b - first);
        }
        let parameters = self.adapter.map(|adapter| {
            block.open_slots(entries.into_iter(), adapter.lora.scale());
            let mut parameters = backend.wide(end - first);
            backend.upload(&mut parameters, 0, &adapter.values[first..end]);
            parameters
        });
        for linear in block.linears_mut() {
            if let Some(parameters) = &parameters
                && !linear.slots.is_empty()
            {
                backend.refresh(linear, parameters);
            }
            backend.merge(linear, self.encoding);
        }
    }
}

/// What stands between the products of the feed-forward part.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FeedForward {
    Gated(Gate),
    Plain(Activation),
}

impl<B: Backend> Block<B> {
    fn open_slots(&mut self, entries: impl Iterator<Item = LoraEntry>, scale: f32) {
        self.linears_mut().for_each(|linear| linear.slots.clear());
        for entry in entries {
            let (q, kv) = (self.out.inputs, (self.qkv.outputs - self.out.inputs) / 2);
            let (linear, start) = match entry.part {
                Part::Key => (&mut self.qkv, q),
                Part::Value => (&mut self.qkv, q + kv),
                Part::Output => (&mut self.out, 0),
                // Behind the gates, where there are any.
                Part::Up => {
                    let gates = self.up.outputs - self.down.inputs;
                    (&mut self.up, gates)
                }
                Part::Gate | Part::GateUp => (&mut self.up, 0),
                Part::Down => (&mut self.down, 0),
                _ => (&mut self.qkv, 0),
            };
            let rows = start..start + entry.outputs;
            linear.slots.push(Slot { rows, rank: entry.rank, scale, a: entry.a, b: entry.b });
        }
    }
}

/// Where matrices come from; all else always comes from the base's files.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// The base's files.
    Files(Storage),
    /// Images, in the order in which they are asked for.
    Images(&'a RefCell<Images>),
}

/// Brings a base model's tensors to the device.
struct Reader<'a, B> {
    backend: &'a B,
    base: &'a BaseModel,
    source: Source<'a>,
}

impl<B: Backend> Reader<'_, B> {
    fn weight(&self, part: Part, layer: usize) -> String {
        format!("{}.weight", self.base.config.name_of(part, layer))
    }

    /// The values of a part's bias, if it has one.
    fn bias(&self, part: Part, layer: usize) -> Result<Option<Vec<f32>>> {
        let name = format!("{}.bias", self.base.config.name_of(part, layer));
        Ok(if self.base.config.has_bias(part) { Some(self.base.tensor(&name)?.to_f32()) } else { None })
    }

    fn upload(&self, values: &[f32]) -> B::Wide {
        let mut buffer = self.backend.wide(values.len());
        self.backend.upload(&mut buffer, 0, values);
        buffer
    }

    fn norm(&self, part: Part, layer: usize) -> Result<Norm<B>> {
        let config = &self.base.config;
        let weight = self.upload(&self.base.tensor(&self.weight(part, layer))?.to_f32());
        let bias = self.bias(part, layer)?.map(|values| self.upload(&values));
        let center = config.family.traits().layer_norm;
        Ok(Norm { weight, bias, eps: config.norm_eps, center, width: config.hidden_size })
    }

    /// Those of the parts that the family has, as one product.
    fn linear(&self, layer: usize, parts: &[Part]) -> Result<Linear<B>> {
        let parts: Vec<Part> = parts.iter().copied().filter(|&part| self.base.config.has(part)).collect();
        let names: Vec<String> = parts.iter().map(|&part| self.weight(part, layer)).collect();
        let (matrix, outputs, inputs) = self.product(&names)?;
        let biases = parts.iter().map(|&part| self.bias(part, layer)).collect::<Result<Option<Vec<_>>>>()?;
        let bias = biases.map(|biases| self.upload(&biases.concat()));
        Ok(Linear { matrix, bias, inputs, outputs, slots: Vec::new(), adapter: None })
    }

    /// The table of positions; a text is of the first kind, whose row is added to all.
    fn positions(&self, positions: usize) -> Result<B::Matrix> {
        let table = self.base.tensor(&self.weight(Part::Positions, 0))?;
        let kinds = self.base.config.token_types;
        let kind = match kinds {
            0 => vec![0.0; table.row_len()],
            _ => self.base.tensor(&self.weight(Part::TokenTypes, 0))?.to_f32()[..table.row_len()].to_vec(),
        };
        Ok(self.backend.matrix(positions, table.row_len(), &|row, out| {
            table.dequantize_row(row, out);
            out.iter_mut().zip(&kind).for_each(|(value, kind)| *value += kind);
        }))
    }

    /// [`Reader::matrix`] of a block's product.
    fn product(&self, names: &[String]) -> Result<(B::Matrix, usize, usize)> {
        let tensors = names.iter().map(|name| self.base.tensor(name)).collect::<formats::Result<Vec<_>>>()?;
        let cols = tensors[0].row_len();
        let few = matches!(block_format(&tensors, cols), Some(BlockFormat::Q4_0 | BlockFormat::Q4_1));
        if !matches!(self.source, Source::Files(Storage::FourBits)) || few || !cols.is_multiple_of(32) {
            return self.matrix(names);
        }
        let raw: Vec<u8> = tensors.iter().flat_map(|tensor| nf4::quantize(&tensor.to_f32())).collect();
        let rows = tensors.iter().map(formats::Tensor::rows).sum();
        Ok((self.backend.matrix_from_blocks(BlockFormat::Nf4, rows, cols, &raw), rows, cols))
    }

    /// Stacks tensors of one width into one matrix; returns it with its outputs and inputs.
    fn matrix(&self, names: &[String]) -> Result<(B::Matrix, usize, usize)> {
        let tensors = names.iter().map(|name| self.base.tensor(name)).collect::<formats::Result<Vec<_>>>()?;
        let (rows, cols) = (tensors.iter().map(formats::Tensor::rows).sum(), tensors[0].row_len());
        let storage = match self.source {
            Source::Files(storage) => storage,
            Source::Images(images) => {
                let matrix = self.backend.matrix_from_image(rows, cols, &mut images.borrow_mut());
                return Ok((matrix.ok_or(Error::Image { rows, cols })?, rows, cols));
            }
        };
        if let (Storage::AsStored | Storage::FourBits, Some(format)) = (storage, block_format(&tensors, cols))
        {
            let parts: Vec<&[u8]> = tensors.iter().map(|tensor| &tensor.bytes[..]).collect();
            let raw = if let [whole] = parts[..] { Cow::Borrowed(whole) } else { parts.concat().into() };
            return Ok((self.backend.matrix_from_blocks(format, rows, cols, &raw), rows, cols));
        }
        let matrix = self.backend.matrix(rows, cols, &|mut row, out| {
            for tensor in &tensors {
                if row < tensor.rows() {
                    return tensor.dequantize_row(row, out);
                }
                row -= tensor.rows();
            }
        });
        Ok((matrix, rows, cols))
    }
}

/// The block format that all the tensors share, if they do.
fn block_format(tensors: &[formats::Tensor<'_>], cols: usize) -> Option<BlockFormat> {
    let format = match tensors[0].dtype {
        DType::Q4_0 => BlockFormat::Q4_0,
        DType::Q4_1 => BlockFormat::Q4_1,
        DType::Q8_0 => BlockFormat::Q8_0,
        _ => return None,
    };
    let alike = tensors.iter().all(|tensor| tensor.dtype == tensors[0].dtype);
    (alike && cols.is_multiple_of(32)).then_some(format)
}

/// Tokens that fit a model of this configuration.
fn positions(config: &ModelConfig) -> usize {
    let most = config.rope.as_ref().and_then(formats::Rope::most_positions).unwrap_or(MAX_POSITIONS);
    config.max_positions.min(most).min(MAX_POSITIONS)
}

fn rotary_table<B: Backend>(backend: &B, rope: &formats::Rope, head_dim: usize, positions: usize) -> B::Wide {
    let (frequencies, factor) = (rope.inv_freq(head_dim), rope.attention_factor());
    let angles = |p: usize| frequencies.iter().map(move |f| p as f32 * f);
    let row = |p: usize| angles(p).map(f32::cos).chain(angles(p).map(f32::sin)).collect::<Vec<_>>();
    let values: Vec<f32> = (0..positions).flat_map(row).map(|value| value * factor).collect();
    let mut table = backend.wide(values.len());
    backend.upload(&mut table, 0, &values);
    table
}
