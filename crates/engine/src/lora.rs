//! LoRA (Hu et al., 2021): which projections carry a pair of small matrices, and where their values lie.

use std::collections::BTreeMap;
use std::ops::Range;

use formats::ModelConfig;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A linear projection of a block, by the names of Hugging Face.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// Attention output.
    OProj,
    /// Gate of the feed-forward.
    GateProj,
    /// Up-projection of the feed-forward.
    UpProj,
    /// Down-projection of the feed-forward.
    DownProj,
}

impl Projection {
    /// All seven, in the order of a block.
    pub const ALL: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// Those that read the same input run as one product.
    const FUSED: [&[Self]; 4] = [
        &[Self::QProj, Self::KProj, Self::VProj],
        &[Self::OProj],
        &[Self::GateProj, Self::UpProj],
        &[Self::DownProj],
    ];

    /// `q_proj` and so on.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }

    /// The name within a block: `self_attn.q_proj`.
    pub fn path(self) -> String {
        let module = if self <= Self::OProj { "self_attn" } else { "mlp" };
        format!("{module}.{}", self.name())
    }

    /// `(outputs, inputs)` of the projection.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (width, feed_forward) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Self::QProj => (q, width),
            Self::KProj | Self::VProj => (kv, width),
            Self::OProj => (width, q),
            Self::GateProj | Self::UpProj => (feed_forward, width),
            Self::DownProj => (width, feed_forward),
        }
    }
}

/// How LoRA is applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// `R`.
    pub rank: usize,
    /// The update is scaled by `alpha / R`.
    pub alpha: f32,
    /// Scale by `alpha / sqrt(R)` instead (Kalajdzievski, 2023).
    pub rslora: bool,
    /// Which projections, in the order of [`Projection::ALL`].
    pub projections: Vec<Projection>,
}

impl Lora {
    /// `alpha / R` or `alpha / sqrt(R)`.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Where each pair's values lie: for each layer of the model that runs as one product (queries, keys and values;
    /// gate and up), its A matrices in a row, then its B matrices, so that the A matrices stack to one.
    pub fn entries(&self, config: &ModelConfig) -> Vec<LoraEntry> {
        let mut at = 0;
        let mut take = |len| {
            at += len;
            at - len
        };
        let mut entries = Vec::new();
        for layer in 0..config.layers {
            for fused in Projection::FUSED {
                let here = fused.iter().filter(|p| self.projections.contains(p));
                let begin = entries.len();
                for &projection in here {
                    let (outputs, inputs) = projection.shape(config);
                    let (rank, a) = (self.rank, take(self.rank * inputs));
                    entries.push(LoraEntry { layer, projection, rank, inputs, outputs, a, b: 0 });
                }
                for entry in &mut entries[begin..] {
                    entry.b = take(entry.outputs * entry.rank);
                }
            }
        }
        entries
    }
}

/// One pair: A `(R, I)` and B `(O, R)` in the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoraEntry {
    /// Block.
    pub layer: usize,
    /// Projection in the block.
    pub projection: Projection,
    /// `R`.
    pub rank: usize,
    /// `I`.
    pub inputs: usize,
    /// `O`.
    pub outputs: usize,
    /// Offset of A.
    pub a: usize,
    /// Offset of B.
    pub b: usize,
}

impl LoraEntry {
    /// Where A lies.
    pub fn a_range(&self) -> Range<usize> {
        self.a..self.a + self.rank * self.inputs
    }

    /// Where B lies.
    pub fn b_range(&self) -> Range<usize> {
        self.b..self.b + self.outputs * self.rank
    }

    fn name(&self, matrix: char) -> String {
        let path = self.projection.path();
        format!("base_model.model.model.layers.{}.{path}.lora_{matrix}.weight", self.layer)
    }
}

/// LoRA's settings and all its values.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The settings.
    pub lora: Lora,
    /// Laid out as [`Lora::entries`] says.
    pub values: Vec<f32>,
}

impl Adapter {
    /// A fresh adapter as PEFT initialises it: A uniform in `±1/sqrt(I)` (Kaiming with a = √5), B zero.
    pub fn new(lora: Lora, config: &ModelConfig, seed: u64) -> Self {
        let entries = lora.entries(config);
        let mut values = vec![0.0; entries.last().map_or(0, |last| last.b_range().end)];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for entry in &entries {
            let bound = 1.0 / (entry.inputs as f32).sqrt();
            values[entry.a_range()].fill_with(|| rng.random_range(-bound..bound));
        }
        Self { lora, values }
    }

    /// The tensors under the names that PEFT uses, with their shapes.
    pub fn to_tensors(&self, config: &ModelConfig) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let mut tensors = BTreeMap::new();
        for entry in self.lora.entries(config) {
            let (a, b) = (&self.values[entry.a_range()], &self.values[entry.b_range()]);
            tensors.insert(entry.name('A'), (vec![entry.rank, entry.inputs], a.to_vec()));
            tensors.insert(entry.name('B'), (vec![entry.outputs, entry.rank], b.to_vec()));
        }
        tensors
    }

    /// The reverse of [`Adapter::to_tensors`].
    ///
    /// # Errors
    /// When a tensor is missing, has another shape, or is not expected.
    pub fn from_tensors(
        lora: Lora,
        config: &ModelConfig,
        tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    ) -> Result<Self> {
        let entries = lora.entries(config);
        let mut values = vec![0.0; entries.last().map_or(0, |last| last.b_range().end)];
        let mut expected = 0;
        for entry in &entries {
            let a = (entry.name('A'), [entry.rank, entry.inputs], entry.a_range());
            let b = (entry.name('B'), [entry.outputs, entry.rank], entry.b_range());
            for (name, shape, range) in [a, b] {
                let problem = |problem: String| Error::Adapter { tensor: name.clone(), problem };
                let (found, data) = tensors.get(&name).ok_or_else(|| problem("is missing".into()))?;
                if found[..] != shape {
                    return Err(problem(format!("has shape {found:?}, the base model asks for {shape:?}")));
                }
                values[range].copy_from_slice(data);
                expected += 1;
            }
        }
        if tensors.len() > expected {
            let known: Vec<String> = entries.iter().flat_map(|e| [e.name('A'), e.name('B')]).collect();
            let stranger = tensors.keys().find(|name| !known.contains(name)).cloned().unwrap_or_default();
            return Err(Error::Adapter { tensor: stranger, problem: "has no place in this model".into() });
        }
        Ok(Self { lora, values })
    }
}
