//! Where the values of every weight lie when all of them train.

use std::ops::Range;

use formats::{BaseModel, ModelConfig, Part};

use crate::Result;
use crate::block::{GATE_UP, QUERY_KEY_VALUE};

/// A tensor of the model and its place in the parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightEntry {
    /// Hugging Face's name.
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Offset of its values, row-major.
    pub at: usize,
}

/// The places of all tensors. Those that run as one product lie in a row, weights before biases, so that the product
/// has one gradient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights {
    /// All tensors, in the order of their places.
    pub entries: Vec<WeightEntry>,
    pub(crate) embedding: usize,
    pub(crate) positions: Option<usize>,
    pub(crate) token_types: Option<usize>,
    /// `None` where the embedding is the head, or there is none.
    pub(crate) head: Option<usize>,
    /// Of the norm outside the blocks.
    pub(crate) norm: Place,
    pub(crate) blocks: Vec<BlockPlaces>,
    len: usize,
}

/// Of a norm or a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) weight: usize,
    pub(crate) bias: Option<usize>,
}

/// Of the layers of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockPlaces {
    pub(crate) norm1: Place,
    pub(crate) qkv: Place,
    pub(crate) out: Place,
    pub(crate) norm2: Place,
    pub(crate) up: Place,
    pub(crate) down: Place,
}

impl Weights {
    /// The places for a model of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        let mut layout = Layout { config, entries: Vec::new(), len: 0 };
        let table = |layout: &mut Layout<'_>, part| config.has(part).then(|| layout.place(&[part], 0).weight);
        let embedding = layout.place(&[Part::Embedding], 0).weight;
        let positions = table(&mut layout, Part::Positions);
        let token_types = table(&mut layout, Part::TokenTypes);
        let blocks = (0..config.layers).map(|layer| BlockPlaces {
            norm1: layout.place(&[Part::Norm1], layer),
            qkv: layout.place(&QUERY_KEY_VALUE, layer),
            out: layout.place(&[Part::Output], layer),
            norm2: layout.place(&[Part::Norm2], layer),
            up: layout.place(&GATE_UP, layer),
            down: layout.place(&[Part::Down], layer),
        });
        let blocks = blocks.collect();
        let post_norm = config.family.traits().post_norm;
        let norm = layout.place(&[if post_norm { Part::EmbeddingNorm } else { Part::FinalNorm }], 0);
        let head = if config.tied_embeddings { None } else { table(&mut layout, Part::Head) };
        let Layout { entries, len, .. } = layout;
        Self { entries, embedding, positions, token_types, head, norm, blocks, len }
    }

    /// Values in all.
    pub fn values(&self) -> usize {
        self.len
    }

    /// All values in stretches, each with how many blocks lie above it: none above the highest block, all of them above
    /// embeddings and the norm outside the blocks.
    pub(crate) fn depths(&self) -> Vec<(Range<usize>, usize)> {
        let starts = self.blocks.iter().map(|places| places.norm1.weight);
        let starts: Vec<usize> = [0].into_iter().chain(starts).chain([self.norm.weight, self.len]).collect();
        let blocks = self.blocks.len();
        let depth = |stretch: usize| if (1..=blocks).contains(&stretch) { blocks - stretch } else { blocks };
        starts.windows(2).enumerate().map(|(i, ends)| (ends[0]..ends[1], depth(i))).collect()
    }

    /// Whether a tensor is a block's.
    pub(crate) fn in_blocks(&self, entry: &WeightEntry) -> bool {
        let first = self.blocks.first().map_or(self.norm.weight, |places| places.norm1.weight);
        (first..self.norm.weight).contains(&entry.at)
    }

    /// The base model's values in their places.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn read(&self, base: &BaseModel) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(self.len);
        for entry in &self.entries {
            values.extend(base.tensor(&entry.name)?.to_f32());
        }
        Ok(values)
    }
}

impl WeightEntry {
    /// Where its values lie.
    pub fn range(&self) -> Range<usize> {
        self.at..self.at + self.shape.iter().product::<usize>()
    }
}

/// Places handed out one after the other.
struct Layout<'a> {
    config: &'a ModelConfig,
    entries: Vec<WeightEntry>,
    len: usize,
}

impl Layout<'_> {
    /// Places for those of the parts that the family has, as one product.
    fn place(&mut self, parts: &[Part], layer: usize) -> Place {
        let has = |part: &&Part| self.config.has(**part);
        let parts: Vec<Part> = parts.iter().filter(has).copied().collect();
        let (weight, mut bias) = (self.len, None);
        for &part in &parts {
            self.add(part, layer, "weight", part.shape(self.config));
        }
        for &part in parts.iter().filter(|&&part| self.config.has_bias(part)) {
            bias = bias.or(Some(self.len));
            self.add(part, layer, "bias", part.shape(self.config)[..1].to_vec());
        }
        Place { weight, bias }
    }

    fn add(&mut self, part: Part, layer: usize, kind: &str, shape: Vec<usize>) {
        let name = format!("{}.{kind}", self.config.name_of(part, layer));
        let entry = WeightEntry { name, shape, at: self.len };
        self.len = entry.range().end;
        self.entries.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_the_depth_of_its_tensor() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/families/bert");
        let base = BaseModel::open(folder).unwrap();
        let (weights, layers) = (Weights::new(&base.config), base.config.layers);
        let depths = weights.depths();
        let ends: Vec<usize> = depths.iter().map(|(range, _)| range.end).collect();
        let starts: Vec<usize> = depths.iter().map(|(range, _)| range.start).collect();
        assert!(starts[0] == 0 && starts[1..] == ends[..ends.len() - 1]);
        assert_eq!(ends.last(), Some(&weights.values()));
        for entry in &weights.entries {
            let (_, depth) = depths.iter().find(|(range, _)| range.contains(&entry.at)).unwrap();
            let layer = entry.name.split_once("layer.").map(|(_, rest)| rest.split('.').next().unwrap());
            let above = layer.map_or(layers, |layer| layers - 1 - layer.parse::<usize>().unwrap());
            assert_eq!(*depth, above, "{}", entry.name);
        }
    }
}
