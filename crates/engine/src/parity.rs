//! The engine against transformers and PEFT: small random models of odd sizes, and SmolLM2's real weights.
//! The fixtures are made by `tools/parity/llama.py` and `smollm2.py`, in f64.

#![allow(clippy::float_cmp)] // Promises of equal bits are tested as such.

mod decoders;
mod features;
mod gpu;
mod itself;
mod nf4;
mod scores;
mod smollm2;
mod training;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use formats::{BaseModel, Pooling};
use kernels::{Backend, Cpu, Encoding};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::tree::TokenTree;
use crate::{
    Adapter, Care, Example, Features, LabelTrie, Lora, Model, OptimizerOptions, Projection, Sampler,
    Schedule, Scorer, ScorerOptions, Storage, Trainer, TrainerOptions,
};

/// f32 sums of at most a few hundred products against f64.
const LOGITS: f32 = 2e-5;
/// Relative to the largest value of the tensor.
const GRADIENTS: f32 = 2e-5;

fn fixtures(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

/// One small model with everything that PyTorch says of it.
struct Case {
    folder: PathBuf,
    pooling: Pooling,
    /// Tokens that the longest text may have.
    context: usize,
    spec: Value,
    tensors: Vec<u8>,
    prefix: Vec<u32>,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = fixtures(name);
        let spec = json(&folder.join("case.json"));
        // Encoders have no prompt.
        let prefix = if spec["prefix"].is_array() { ids(&spec["prefix"]) } else { Vec::new() };
        let tensors = std::fs::read(folder.join("case.safetensors")).unwrap();
        Self { tensors, spec, prefix, folder, pooling: Pooling::Mean, context: 0 }
    }

    fn model<B: Backend>(&self, backend: B) -> Model<B> {
        let mut base = BaseModel::open(&self.folder).unwrap();
        base.config.pooling = self.pooling;
        let mut model = Model::load(backend, &base, Storage::Expanded).unwrap();
        model.set_context(self.context);
        model
    }

    /// With the adapter beside the weights, or merged into them.
    fn with_adapter<B: Backend>(&self, backend: B, merged: Option<Encoding>) -> Model<B> {
        let mut model = self.model(backend);
        let adapter = self.adapter(&model, "adapter");
        let Some(encoding) = merged else {
            model.attach(&adapter);
            return model;
        };
        let base = BaseModel::open(&self.folder).unwrap();
        Model::load_merged(model.backend, &base, Storage::Expanded, Some(&adapter), encoding).unwrap()
    }

    fn adapter<B: Backend>(&self, model: &Model<B>, folder: &str) -> Adapter {
        let peft = formats::Adapter::read(self.folder.join(folder)).unwrap();
        let lora = Lora {
            rank: peft.config.r,
            alpha: peft.config.lora_alpha as f32,
            rslora: peft.config.use_rslora,
            projections: Projection::ALL.to_vec(),
        };
        Adapter::from_tensors(lora, model.config(), &peft.tensors).unwrap()
    }

    fn sequences(&self) -> impl Iterator<Item = (Vec<u32>, usize)> {
        let all = self.spec["sequences"].as_array().unwrap();
        all.iter().map(|s| (ids(&s["ids"]), s["prompt"].as_u64().unwrap() as usize))
    }

    fn examples(&self) -> Vec<Example> {
        self.sequences().map(|sequence| self.example(sequence)).collect()
    }

    fn example(&self, (ids, prompt): (Vec<u32>, usize)) -> Example {
        let (query, target) = (ids[self.prefix.len()..prompt].to_vec(), ids[prompt..].to_vec());
        Example { query, target, weight: 1.0 }
    }

    fn trainer<B: Backend>(&self, backend: B, rows_per_pass: usize, batch: usize) -> Trainer<B> {
        let model = self.model(backend);
        let adapter = self.adapter(&model, "adapter");
        let examples = self.examples();
        let sampler = Sampler::new(examples.len(), batch, 0, None);
        let optimizer = &self.spec["optimizer"];
        let options = options(optimizer, rows_per_pass, batch);
        Trainer::new([model], adapter, self.prefix.clone(), examples, sampler, options).unwrap()
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        self.find(name).unwrap_or_else(|| panic!("the fixture has no `{name}`"))
    }

    fn find(&self, name: &str) -> Option<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let bytes = tensors.tensor(name).ok()?.data();
        Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    fn trie(&self) -> LabelTrie {
        let end = self.spec["end"].as_u64().unwrap() as u32;
        let labels = self.spec["labels"].as_array().unwrap();
        let with_end = |label: &Value| ids(label).into_iter().chain([end]).collect();
        LabelTrie::new(&labels.iter().map(with_end).collect::<Vec<_>>()).unwrap()
    }
}

fn options(optimizer: &Value, rows_per_pass: usize, batch: usize) -> TrainerOptions {
    TrainerOptions {
        lr: number(&optimizer["lr"]),
        optimizer: OptimizerOptions {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: number(&optimizer["weight_decay"]),
            clip: number(&optimizer["max_grad_norm"]),
            warm_up: 0.0,
            schedule: Schedule::Linear,
        },
        care: Care::default(),
        batch,
        rows_per_pass: Some(rows_per_pass),
        recompute: false,
        total_steps: optimizer["steps"].as_u64().unwrap(),
        seed: 0,
    }
}

/// Log-probabilities of every token at every row of one sequence.
fn all_log_probs<B: Backend>(model: &Model<B>, sequence: &[u32]) -> Vec<f32> {
    let trie = LabelTrie::new(&[vec![1]]).unwrap();
    let mut scorer = Scorer::new(model, trie, Vec::new(), ScorerOptions::default()).unwrap();
    let mut tree = TokenTree::default();
    let half = tree.push_at(None, &sequence[..sequence.len() / 2], 0);
    tree.push_at(Some(half), &sequence[sequence.len() / 2..], (sequence.len() / 2) as u32);
    let rows: Vec<u32> = (0..sequence.len() as u32).collect();
    let vocabulary = model.config().vocab_size as u32;
    let wanted: Vec<_> =
        rows.iter().flat_map(|&row| (0..vocabulary).map(move |token| (row, token))).collect();
    scorer.reserve(model, sequence.len());
    scorer.run(model, &tree, &rows, &wanted)
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|z| f64::from(z - max).exp()).sum();
    logits.iter().map(|z| z - max - sum.ln() as f32).collect()
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance, "{what}[{i}]: found {f}, expected {e}");
    }
}

/// Within a tolerance relative to the tensor's largest value.
fn assert_like(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    assert_close(found, expected, tolerance * largest, what);
}

fn named_gradients<B: Backend>(trainer: &Trainer<B>) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    Adapter { values: trainer.gradients(), ..trainer.adapter() }.to_tensors(trainer.config())
}

/// The decoders of `tools/parity/families.py`.
const OTHER_DECODERS: [&str; 2] = ["../families/phi3", "../families/gpt-neo"];
