//! A base model's tensors on their way to the device.

use std::borrow::Cow;
use std::cell::RefCell;

use formats::{BaseModel, DType, Part};
use kernels::linear::nf4;
use kernels::{Backend, BlockFormat, Images, Linear, Norm};

use crate::block::{Block, GATE_UP, QUERY_KEY_VALUE};
use crate::model::{Model, positions, rotary_table};
use crate::{Error, Result};

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

impl<B: Backend> Model<B> {
    /// Reads the base model's weights onto the device.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the config says.
    pub fn load(backend: B, base: &BaseModel, storage: Storage) -> Result<Self> {
        Self::load_blocks(backend, base, Source::Files(storage), |_, _, _| {})
    }

    /// Loads the model, handing each block over as soon as it is there.
    pub(crate) fn load_blocks(
        backend: B,
        base: &BaseModel,
        source: Source<'_>,
        mut ready: impl FnMut(&B, usize, &mut Block<B>),
    ) -> Result<Self> {
        let config = base.config.clone();
        backend.expect_heads(config.head_dim);
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
