//! A model on a device: frozen weights, and the places where LoRA attaches.

use formats::{BaseModel, DType, ModelConfig};
use kernels::{AttentionShape, Backend, BlockFormat, Linear, Mask, Norm, Slot};

use crate::Result;
use crate::block::Block;
use crate::lora::{Adapter, LoraEntry, Projection};

/// Positions for which rotary angles are kept; longer inputs are refused.
const MAX_POSITIONS: usize = 8192;

/// How frozen weights lie in memory; every answer and gradient is the same either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In the compute type: fastest for single queries.
    Expanded,
    /// In the few bits of the file where it has such: a third of the memory, and as fast for hundreds of rows.
    AsStored,
}

/// A decoder on a device.
pub struct Model<B: Backend> {
    pub(crate) backend: B,
    pub(crate) config: ModelConfig,
    pub(crate) embedding: B::Matrix,
    /// `None` when the embedding serves as the head (tied).
    head: Option<B::Matrix>,
    pub(crate) blocks: Vec<Block<B>>,
    pub(crate) norm: Norm<B>,
    /// `(positions, D)`: cosines, then sines.
    pub(crate) rotary: B::Wide,
    positions: usize,
}

impl<B: Backend> Model<B> {
    /// Reads the base model's weights onto the device.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the config says.
    pub fn load(backend: B, base: &BaseModel, storage: Storage) -> Result<Self> {
        let config = base.config.clone();
        let matrix = |names: &[String]| read_matrix(&backend, base, storage, names);
        let norm = |name: String| -> Result<Norm<B>> {
            let values = base.tensor(&name)?.to_f32();
            let mut weight = backend.wide(values.len());
            backend.upload(&mut weight, 0, &values);
            Ok(Norm { weight, bias: None, eps: config.norm_eps, center: false, width: values.len() })
        };
        let linear = |layer: usize, parts: &[Projection]| -> Result<Linear<B>> {
            let names: Vec<String> =
                parts.iter().map(|part| format!("model.layers.{layer}.{}.weight", part.path())).collect();
            let (matrix, outputs, inputs) = matrix(&names)?;
            Ok(Linear { matrix, bias: None, inputs, outputs, slots: Vec::new(), adapter: None })
        };
        let mut blocks = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            use Projection::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
            blocks.push(Block {
                norm1: norm(format!("model.layers.{layer}.input_layernorm.weight"))?,
                qkv: linear(layer, &[QProj, KProj, VProj])?,
                out: linear(layer, &[OProj])?,
                norm2: norm(format!("model.layers.{layer}.post_attention_layernorm.weight"))?,
                gate_up: linear(layer, &[GateProj, UpProj])?,
                down: linear(layer, &[DownProj])?,
            });
        }
        let (embedding, ..) = matrix(&["model.embed_tokens.weight".into()])?;
        let head = if config.tied_embeddings { None } else { Some(matrix(&["lm_head.weight".into()])?.0) };
        let norm = norm("model.norm.weight".into())?;
        let positions = config.max_positions.min(MAX_POSITIONS);
        let rotary = rotary_table(&backend, &config, positions);
        Ok(Self { backend, config, embedding, head, blocks, norm, rotary, positions })
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
        let all = linears.chain([&self.embedding]).chain(&self.head);
        all.map(|matrix| self.backend.matrix_bytes(matrix)).sum()
    }

    /// Opens a slot for each pair of the adapter and lays out its values.
    pub fn attach(&mut self, adapter: &Adapter) {
        let entries = adapter.lora.entries(&self.config);
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            let of_layer = entries.iter().filter(|entry| entry.layer == layer);
            block.open_slots(of_layer.copied(), adapter.lora.scale());
        }
        let mut parameters = self.backend.wide(adapter.values.len());
        self.backend.upload(&mut parameters, 0, &adapter.values);
        self.refresh(&parameters);
    }

    /// Lays out new parameter values for the products.
    pub fn refresh(&mut self, parameters: &B::Wide) {
        for linear in self.blocks.iter_mut().flat_map(Block::linears_mut) {
            if !linear.slots.is_empty() {
                self.backend.refresh(linear, parameters);
            }
        }
    }

    pub(crate) fn head(&self) -> &B::Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(crate) fn attention_shape(&self) -> AttentionShape {
        let ModelConfig { heads, kv_heads, head_dim, .. } = self.config;
        AttentionShape { heads, kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5), mask: Mask::Causal }
    }
}

impl<B: Backend> Block<B> {
    fn open_slots(&mut self, entries: impl Iterator<Item = LoraEntry>, scale: f32) {
        self.linears_mut().for_each(|linear| linear.slots.clear());
        for entry in entries {
            let (q, kv) = (self.out.inputs, (self.qkv.outputs - self.out.inputs) / 2);
            let (linear, start) = match entry.projection {
                Projection::QProj => (&mut self.qkv, 0),
                Projection::KProj => (&mut self.qkv, q),
                Projection::VProj => (&mut self.qkv, q + kv),
                Projection::OProj => (&mut self.out, 0),
                Projection::GateProj => (&mut self.gate_up, 0),
                Projection::UpProj => (&mut self.gate_up, self.down.inputs),
                Projection::DownProj => (&mut self.down, 0),
            };
            let rows = start..start + entry.outputs;
            linear.slots.push(Slot { rows, rank: entry.rank, scale, a: entry.a, b: entry.b });
        }
    }
}

/// Stacks tensors of one width into one matrix; returns it with its outputs and inputs.
fn read_matrix<B: Backend>(
    backend: &B,
    base: &BaseModel,
    storage: Storage,
    names: &[String],
) -> Result<(B::Matrix, usize, usize)> {
    let tensors = names.iter().map(|name| base.tensor(name)).collect::<formats::Result<Vec<_>>>()?;
    let (rows, cols) = (tensors.iter().map(formats::Tensor::rows).sum(), tensors[0].row_len());
    if let (Storage::AsStored, Some(format)) = (storage, block_format(&tensors, cols)) {
        let raw: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes.iter().copied()).collect();
        return Ok((backend.matrix_from_blocks(format, rows, cols, &raw), rows, cols));
    }
    let matrix = backend.matrix(rows, cols, &mut |mut row, out| {
        for tensor in &tensors {
            if row < tensor.rows() {
                return tensor.dequantize_row(row, out);
            }
            row -= tensor.rows();
        }
    });
    Ok((matrix, rows, cols))
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

fn rotary_table<B: Backend>(backend: &B, config: &ModelConfig, positions: usize) -> B::Wide {
    let frequencies = config.rope.as_ref().map_or_else(Vec::new, |rope| rope.inv_freq(config.head_dim));
    let angles = |p: usize| frequencies.iter().map(move |f| p as f32 * f);
    let values: Vec<f32> = (0..positions)
        .flat_map(|p| angles(p).map(f32::cos).chain(angles(p).map(f32::sin)).collect::<Vec<_>>())
        .collect();
    let mut table = backend.wide(values.len());
    backend.upload(&mut table, 0, &values);
    table
}
