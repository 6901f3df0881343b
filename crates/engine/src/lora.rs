//! LoRA (Hu et al., 2021): which projections carry a pair of small matrices, and where their values lie.

use std::collections::BTreeMap;
use std::ops::Range;

use formats::{ModelConfig, Part};
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

    /// The tensor that holds it in models of this family: its own, or one fused with others; `None` where there is
    /// no such projection.
    pub fn part(self, config: &ModelConfig) -> Option<Part> {
        let candidates = match self {
            Self::QProj => [Part::Query, Part::QueryKeyValue],
            Self::KProj => [Part::Key, Part::QueryKeyValue],
            Self::VProj => [Part::Value, Part::QueryKeyValue],
            Self::OProj => [Part::Output; 2],
            Self::GateProj => [Part::Gate, Part::GateUp],
            Self::UpProj => [Part::Up, Part::GateUp],
            Self::DownProj => [Part::Down; 2],
        };
        candidates.into_iter().find(|&part| config.has(part))
    }

    /// What PEFT's `target_modules` calls it in models of this family: the last part of its name, and more where
    /// that says nothing (`output.dense`).
    pub fn module(self, config: &ModelConfig) -> Option<String> {
        let name = config.name_of(self.part(config)?, 0);
        let within = name.split_once(".0.").map_or(name.as_str(), |(_, within)| within);
        let last = within.rsplit('.').next().unwrap_or(within);
        Some(if last == "dense" { within } else { last }.to_owned())
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
    /// Which projections; of a tensor that fuses several, one of them is enough.
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
        let mut parts: Vec<Part> = self.projections.iter().filter_map(|p| p.part(config)).collect();
        parts.sort_unstable();
        parts.dedup();
        for layer in 0..config.layers {
            for fused in parts.chunk_by(|a, b| a.product() == b.product()) {
                let begin = entries.len();
                for &part in fused {
                    let shape = part.shape(config);
                    let (rank, outputs, inputs) = (self.rank, shape[0], shape[1]);
                    let a = take(rank * inputs);
                    entries.push(LoraEntry { layer, part, rank, inputs, outputs, a, b: 0 });
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
    /// Tensor of the block.
    pub part: Part,
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

    fn name(&self, config: &ModelConfig, matrix: char) -> String {
        format!("base_model.model.{}.lora_{matrix}.weight", config.name_of(self.part, self.layer))
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

    /// Adds a pair's `scale B A` to one row of its weight, in f32: `weight` is `(I)`, `delta` `(I)` of room.
    ///
    /// # Panics
    /// When the row is not one of the pair's, or a length is not `I`.
    pub fn add_to_row(&self, entry: &LoraEntry, row: usize, weight: &mut [f32], delta: &mut [f32]) {
        assert_eq!(
            (weight.len(), delta.len()),
            (entry.inputs, entry.inputs),
            "add_to_row: rows of {entry:?}"
        );
        let a = &self.values[entry.a_range()];
        let b = &self.values[entry.b_range()][row * entry.rank..][..entry.rank];
        delta.fill(0.0);
        for (b, a) in b.iter().zip(a.chunks_exact(entry.inputs)) {
            delta.iter_mut().zip(a).for_each(|(delta, a)| *delta += b * a);
        }
        let scale = self.lora.scale();
        weight.iter_mut().zip(delta).for_each(|(weight, delta)| *weight += scale * *delta);
    }

    /// The tensors under the names that PEFT uses, with their shapes.
    pub fn to_tensors(&self, config: &ModelConfig) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let mut tensors = BTreeMap::new();
        for entry in self.lora.entries(config) {
            let (a, b) = (&self.values[entry.a_range()], &self.values[entry.b_range()]);
            tensors.insert(entry.name(config, 'A'), (vec![entry.rank, entry.inputs], a.to_vec()));
            tensors.insert(entry.name(config, 'B'), (vec![entry.outputs, entry.rank], b.to_vec()));
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
            let a = (entry.name(config, 'A'), [entry.rank, entry.inputs], entry.a_range());
            let b = (entry.name(config, 'B'), [entry.outputs, entry.rank], entry.b_range());
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
            let known: Vec<String> =
                entries.iter().flat_map(|e| [e.name(config, 'A'), e.name(config, 'B')]).collect();
            let stranger = tensors.keys().find(|name| !known.contains(name)).cloned().unwrap_or_default();
            return Err(Error::Adapter { tensor: stranger, problem: "has no place in this model".into() });
        }
        Ok(Self { lora, values })
    }
}
