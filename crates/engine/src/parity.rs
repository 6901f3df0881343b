//! The engine against transformers and PEFT: small random models of odd sizes, and SmolLM2's real weights.
//! The fixtures are made by `tools/parity/llama.py` and `smollm2.py`, in f64.

#![allow(clippy::float_cmp)] // Promises of equal bits are tested as such.

mod draft;
mod nf4;
mod training;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use formats::BaseModel;
use kernels::{Backend, Cpu, Encoding};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::tree::TokenTree;
use crate::{
    Adapter, Example, Features, LabelTrie, Lora, Model, OptimizerOptions, Projection, Sampler, Schedule,
    Scorer, ScorerOptions, Storage, Trainer, TrainerOptions,
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
        Self { tensors: std::fs::read(folder.join("case.safetensors")).unwrap(), spec, prefix, folder }
    }

    fn model<B: Backend>(&self, backend: B) -> Model<B> {
        Model::load(backend, &BaseModel::open(&self.folder).unwrap(), Storage::Expanded).unwrap()
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
        let split = |(ids, prompt): (Vec<u32>, usize)| Example {
            query: ids[self.prefix.len()..prompt].to_vec(),
            target: ids[prompt..].to_vec(),
            weight: 1.0,
        };
        self.sequences().map(split).collect()
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

#[test]
fn logits_equal_transformers() {
    for name in ["tied", "scaled"].into_iter().chain(OTHER_DECODERS) {
        let case = Case::open(name);
        let mut model = case.model(Cpu::<f32>::new());
        let vocabulary = model.config().vocab_size;
        for (kind, folder) in [("base", None), ("lora", Some("adapter")), ("rslora", Some("rslora"))] {
            if folder.is_some_and(|folder| !case.folder.join(folder).exists()) {
                continue;
            }
            if let Some(folder) = folder {
                model.attach(&case.adapter(&model, folder));
            }
            for (index, (sequence, _)) in case.sequences().enumerate() {
                let tensor = format!("{kind}.logits.{index}");
                // The rsLoRA adapter has one sequence only.
                let Some(logits) = case.find(&tensor) else { continue };
                let expected: Vec<f32> = logits.chunks_exact(vocabulary).flat_map(log_softmax).collect();
                let found = all_log_probs(&model, &sequence);
                assert_close(&found, &expected, LOGITS, &format!("{name} {tensor}"));
            }
        }
    }
}

#[test]
fn loss_gradients_and_ten_steps_equal_peft() {
    for name in ["tied", "scaled"] {
        let case = Case::open(name);
        let mut trainer = case.trainer(Cpu::<f32>::new(), 4096, 6);
        for (step, expected) in case.spec["steps"].as_array().unwrap().iter().enumerate() {
            let report = trainer.step().unwrap();
            let what = format!("{name} step {step}");
            assert_close(&[report.loss], &[number(&expected["loss"])], 5e-5, &what);
            assert_like(&[report.gradient_norm], &[number(&expected["grad_norm"])], 1e-4, &what);
            if step == 0 {
                for (tensor, (_, found)) in named_gradients(&trainer) {
                    let expected = case.tensor(&format!("lora.grad.{tensor}"));
                    assert_like(&found, &expected, GRADIENTS, &format!("{name} {tensor}"));
                }
            }
        }
        for (tensor, (_, found)) in trainer.adapter().to_tensors(trainer.config()) {
            let expected = case.tensor(&format!("lora.trained.{tensor}"));
            assert_like(&found, &expected, 2e-3, &format!("{name} trained {tensor}"));
        }
    }
}

#[test]
fn loss_and_gradients_of_the_other_decoders_equal_peft() {
    for name in OTHER_DECODERS {
        let case = Case::open(name);
        let mut trainer = case.trainer(Cpu::<f32>::new(), 4096, 6);
        let report = trainer.step().unwrap();
        assert_close(&[report.loss], &[number(&case.spec["loss"]["lora"])], 2e-5, name);
        for (tensor, (_, found)) in named_gradients(&trainer) {
            let expected = case.tensor(&format!("lora.grad.{tensor}"));
            assert_like(&found, &expected, GRADIENTS, &format!("{name} {tensor}"));
        }
    }
}

#[test]
fn features_of_encoders_are_the_mean_of_what_transformers_gives() {
    for name in ["../families/bert", "../families/distilbert"] {
        let case = Case::open(name);
        let mut model = case.model(Cpu::<f32>::new());
        let width = model.config().hidden_size;
        let texts: Vec<Vec<u32>> = case.spec["texts"].as_array().unwrap().iter().map(ids).collect();
        let texts: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
        for kind in ["base", "lora"] {
            if kind == "lora" {
                model.attach(&case.adapter(&model, "adapter"));
            }
            let mut computer = Features::new(Vec::new());
            let found = computer.compute(&model, &texts, &mut |_| {}).unwrap();
            let alone = computer.compute(&model, &texts[2..3], &mut |_| {}).unwrap();
            assert_eq!(alone, found[2 * width..3 * width], "depends on the texts around");
            for (index, found) in found.chunks_exact(width).enumerate() {
                let outputs = case.tensor(&format!("{kind}.outputs.{index}"));
                let rows = outputs.len() / width;
                let mean = |c: usize| outputs.iter().skip(c).step_by(width).sum::<f32>() / rows as f32;
                let expected: Vec<f32> = (0..width).map(mean).collect();
                assert_close(found, &expected, LOGITS, &format!("{name} {kind} {index}"));
            }
        }
    }
}

#[test]
fn features_of_a_decoder_are_read_at_the_last_token_behind_the_prefix() {
    let case = Case::open("tied");
    let model = case.model(Cpu::<f32>::new());
    let width = model.config().hidden_size;
    let sequences: Vec<Vec<u32>> = case.sequences().map(|(ids, _)| ids).collect();
    let whole: Vec<&[u32]> = sequences.iter().map(|ids| &ids[..]).collect();
    let expected = Features::new(Vec::new()).compute(&model, &whole, &mut |_| {}).unwrap();
    let behind: Vec<&[u32]> = whole.iter().map(|ids| &ids[case.prefix.len()..]).collect();
    let found = Features::new(case.prefix.clone()).compute(&model, &behind, &mut |_| {}).unwrap();
    assert_close(&found, &expected, LOGITS, "behind the prefix");
    // The output head on these vectors gives the last row of the logits.
    let tensor = BaseModel::open(&case.folder).unwrap();
    let table = tensor.tensor("lm_head.weight").unwrap().to_f32();
    for (index, feature) in found.chunks_exact(width).enumerate() {
        let dot = |row: &[f32]| row.iter().zip(feature).map(|(a, b)| a * b).sum::<f32>();
        let logits: Vec<f32> = table.chunks_exact(width).map(dot).collect();
        let expected = case.tensor(&format!("base.logits.{index}"));
        assert_close(&logits, &expected[expected.len() - logits.len()..], LOGITS, "logits");
    }
}

#[test]
fn minilm_is_what_transformers_says_of_it() {
    let Some(folder) = std::env::var_os("FRONTDESK_MINILM") else {
        eprintln!("skipped: set FRONTDESK_MINILM to the folder that `frontdesk pull minilm-l6` prints");
        return;
    };
    let base = BaseModel::open(folder).unwrap();
    let spec = json(&fixtures("../families/minilm.json"));
    let texts: Vec<Vec<u32>> =
        spec["texts"].as_array().unwrap().iter().map(|text| ids(&text["ids"])).collect();
    let texts: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
    let exact = Model::load(Cpu::<f32>::new(), &base, Storage::Expanded).unwrap();
    let exact = Features::new(Vec::new()).compute(&exact, &texts, &mut |_| {}).unwrap();
    let fast = Model::load(Cpu::<kernels::bf16>::new(), &base, Storage::Expanded).unwrap();
    let fast = Features::new(Vec::new()).compute(&fast, &texts, &mut |_| {}).unwrap();
    for (index, text) in spec["texts"].as_array().unwrap().iter().enumerate() {
        let expected: Vec<f32> = text["mean"].as_array().unwrap().iter().map(number).collect();
        let at = index * expected.len()..(index + 1) * expected.len();
        assert_close(&exact[at.clone()], &expected, 2e-5, &format!("text {index}"));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let size = |a: &[f32]| dot(a, a).sqrt();
        let fast = &fast[at];
        assert!(dot(fast, &expected) > 0.9995 * size(fast) * size(&expected), "text {index} in bf16");
    }
}

#[test]
fn label_scores_equal_transformers() {
    for (name, merged) in [("tied", false), ("scaled", false), ("tied", true), ("scaled", true)] {
        let case = Case::open(name);
        let model = case.with_adapter(Cpu::<f32>::new(), merged.then_some(Encoding::Compute));
        let options = ScorerOptions { epsilon: 0.0, spare_tokens: 3, ..ScorerOptions::default() };
        let mut scorer = Scorer::new(&model, case.trie(), case.prefix.clone(), options).unwrap();
        let examples = case.examples();
        let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
        let scores = scorer.score(&model, &queries).unwrap();
        let expected = case.tensor("lora.label_logprobs");
        for (row, (scores, expected)) in scores.iter().zip(expected.chunks_exact(9)).enumerate() {
            let raw: Vec<f32> = scores.log_probs.iter().map(|p| p + scores.log_mass).collect();
            assert_close(&raw, expected, 5e-5, &format!("{name} query {row}"));
            assert_eq!(scores.error_bound, 0.0);
        }
    }
}

#[test]
fn the_error_bound_holds() {
    let case = Case::open("tied");
    let mut model = case.model(Cpu::<f32>::new());
    model.attach(&case.adapter(&model, "adapter"));
    let examples = case.examples();
    let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
    let score = |epsilon| {
        let options = ScorerOptions { epsilon, spare_tokens: 0, ..ScorerOptions::default() };
        let mut scorer = Scorer::new(&model, case.trie(), case.prefix.clone(), options).unwrap();
        scorer.score(&model, &queries).unwrap()
    };
    let (exact, rough) = (score(0.0), score(0.5));
    assert!(rough.iter().any(|s| s.error_bound > 0.0), "the search should have stopped early somewhere");
    for (exact, rough) in exact.iter().zip(&rough) {
        assert!(rough.error_bound < 0.34, "half the found mass at most: {}", rough.error_bound);
        for (e, r) in exact.log_probs.iter().zip(&rough.log_probs) {
            assert!((e.exp() - r.exp()).abs() <= rough.error_bound + 1e-6, "{e} {r} {}", rough.error_bound);
        }
    }
}

#[test]
fn an_answer_does_not_depend_on_the_batch() {
    fn bits<B: Backend>(backend: B, encoding: Option<Encoding>) {
        let case = Case::open("scaled");
        let model = case.with_adapter(backend, encoding);
        let examples = case.examples();
        let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
        let mut scorer =
            Scorer::new(&model, case.trie(), case.prefix.clone(), ScorerOptions::default()).unwrap();
        let together = scorer.score(&model, &queries).unwrap();
        for (query, together) in queries.iter().zip(&together) {
            assert_eq!(&scorer.score(&model, &[query]).unwrap()[0], together);
        }
    }
    for encoding in [None, Some(Encoding::Compute), Some(Encoding::Int8)] {
        bits(Cpu::<f32>::new(), encoding);
        bits(Cpu::<kernels::bf16>::new(), encoding);
    }
}

#[test]
fn a_shared_prefix_and_separate_sequences_give_the_same_step() {
    let case = Case::open("tied");
    let mut shared = case.trainer(Cpu::<f32>::new(), 4096, 6);
    let mut separate = case.trainer(Cpu::<f32>::new(), 1, 6);
    let (one, six) = (shared.step().unwrap(), separate.step().unwrap());
    assert_eq!((one.rows - case.prefix.len(), one.tokens), (six.rows - 6 * case.prefix.len(), six.tokens));
    assert_close(&[one.loss], &[six.loss], 1e-5, "loss");
    let separate = named_gradients(&separate);
    for (tensor, (_, found)) in named_gradients(&shared) {
        assert_like(&found, &separate[&tensor].1, 1e-5, &tensor);
    }
}

#[test]
fn a_restored_run_ends_with_the_same_bytes() {
    let case = Case::open("scaled");
    let trainer = || case.trainer(Cpu::<kernels::bf16>::new(), 60, 4);
    let mut unbroken = trainer();
    let mut losses = Vec::new();
    let mut snapshot = None;
    for step in 0..8 {
        if step == 3 {
            snapshot = Some(unbroken.snapshot());
        }
        losses.push(unbroken.step().unwrap().loss);
    }
    let mut resumed = trainer();
    resumed.restore(&snapshot.unwrap()).unwrap();
    for loss in &losses[3..] {
        assert_eq!(resumed.step().unwrap().loss, *loss);
    }
    assert_eq!(resumed.adapter(), unbroken.adapter());
    let other = trainer().snapshot();
    let wrong = crate::Snapshot { parameters: vec![0.0; 3], ..other };
    assert!(resumed.restore(&wrong).is_err());
}

#[test]
fn bf16_stays_near_f32() {
    stays_near_f32("tied", kernels::Cpu::<kernels::bf16>::new());
}

/// The first step's loss and gradients, and the losses of those that follow.
fn stays_near_f32<B: Backend>(name: &str, backend: B) {
    let case = Case::open(name);
    let mut exact = case.trainer(Cpu::<f32>::new(), 4096, 6);
    let mut rounded = case.trainer(backend, 4096, 6);
    for step in 0..5 {
        let (e, r) = (exact.step().unwrap(), rounded.step().unwrap());
        assert!((e.loss - r.loss).abs() < 0.02 * e.loss, "{name} step {step}: {} {}", e.loss, r.loss);
        assert_ne!(e.loss, r.loss, "bf16 must round somewhere");
        if step == 0 {
            near_in_norm(&exact, &rounded, name);
        }
    }
}

/// Each tensor's gradient, by the norm of the difference.
fn near_in_norm<A: Backend, B: Backend>(exact: &Trainer<A>, rounded: &Trainer<B>, name: &str) {
    let exact = named_gradients(exact);
    for (tensor, (_, found)) in named_gradients(rounded) {
        let expected = &exact[&tensor].1;
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        let off = norm(&mut found.iter().zip(expected).map(|(f, e)| f - e));
        let size = norm(&mut expected.iter().copied());
        assert!(off <= 0.05 * size, "{name} {tensor} of size {size} is off by {off}");
    }
}

/// Held by each test of the GPU: one thread's allocations may break another's recording.
fn gpu_lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The GPU of this number, or `None` with a message.
fn cuda(index: usize) -> Option<kernels::Cuda> {
    let f16 = std::env::var("FRONTDESK_CUDA").is_ok_and(|asked| asked == "f16");
    let open = if f16 { kernels::Cuda::open_f16 } else { kernels::Cuda::open };
    open(index, Some(std::env::temp_dir().join("frontdesk-kernels")))
        .inspect_err(|error| eprintln!("skipped: {error}"))
        .ok()
}

#[test]
fn a_gpu_stays_near_f32() {
    let _one_at_a_time = gpu_lock();
    for name in ["tied", "scaled"].into_iter().chain(OTHER_DECODERS) {
        let Some(cuda) = cuda(0) else { return };
        stays_near_f32(name, cuda);
    }
}

/// Llama 3.2 and Phi-3.5 at their published sizes, which `tools/parity/full_size.py` makes on the same machine.
#[test]
fn a_gpu_computes_full_sizes_as_peft_does() {
    let _one_at_a_time = gpu_lock();
    let Some(folder) = std::env::var_os("FRONTDESK_FULL_SIZE") else {
        eprintln!("skipped: FRONTDESK_FULL_SIZE does not name what tools/parity/full_size.py wrote");
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        let Some(cuda) = cuda(0) else { return };
        let path = entry.unwrap().path();
        let name = path.to_str().unwrap();
        let case = Case::open(name);
        let mut trainer = case.trainer(cuda, 4096, case.examples().len());
        let (loss, expected) = (trainer.step().unwrap().loss, number(&case.spec["loss"]["lora"]));
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        let off = named_gradients(&trainer).into_iter().map(|(tensor, (_, found))| {
            let expected = case.tensor(&format!("lora.grad.{tensor}"));
            norm(&mut found.iter().zip(&expected).map(|(f, e)| f - e)) / norm(&mut expected.iter().copied())
        });
        let worst = off.fold(0.0, f32::max);
        let theirs = number(&case.spec["deviation_bf16"]["gradients"]);
        eprintln!(
            "{name}: loss {loss}, in f32 {expected}; worst gradient off by {worst}, PyTorch's by {theirs}"
        );
        assert!((loss - expected).abs() < 0.005 * expected, "{name}: loss {loss}, expected {expected}");
        assert!(worst < 1.5 * theirs, "{name}: a gradient is off by {worst}, in PyTorch's bf16 by {theirs}");
    }
}

#[test]
fn a_gpu_scores_labels_as_transformers_does() {
    let _one_at_a_time = gpu_lock();
    for (name, merged) in [("tied", false), ("scaled", false), ("scaled", true)] {
        let Some(cuda) = cuda(0) else { return };
        let case = Case::open(name);
        let mut model = case.model(cuda);
        let adapter = case.adapter(&model, "adapter");
        if merged {
            model.merge(&adapter, Encoding::Int8);
        } else {
            model.attach(&adapter);
        }
        let options = ScorerOptions { epsilon: 0.0, spare_tokens: 3, ..ScorerOptions::default() };
        let mut scorer = Scorer::new(&model, case.trie(), case.prefix.clone(), options).unwrap();
        let examples = case.examples();
        let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
        let expected = case.tensor("lora.label_logprobs");
        let first = scorer.score(&model, &queries).unwrap();
        for (row, (scores, expected)) in first.iter().zip(expected.chunks_exact(9)).enumerate() {
            let raw: Vec<f32> = scores.log_probs.iter().map(|p| p + scores.log_mass).collect();
            for (label, (found, expected)) in raw.iter().zip(expected).enumerate() {
                let most = 0.05 + 0.01 * expected.abs();
                let near = (found - expected).abs() < most;
                assert!(near, "{name} query {row} label {label}: {found}, expected {expected} within {most}");
            }
        }
        // The second time work is recorded, the third time it is replayed.
        for _ in 0..2 {
            assert_eq!(scorer.score(&model, &queries).unwrap(), first);
        }
    }
}

#[test]
fn a_gpu_makes_the_same_features() {
    let _one_at_a_time = gpu_lock();
    for name in ["../families/bert", "../families/distilbert", "tied"] {
        let Some(cuda) = cuda(0) else { return };
        let case = Case::open(name);
        let texts: Vec<Vec<u32>> = match &case.spec["texts"] {
            Value::Array(texts) => texts.iter().map(ids).collect(),
            _ => case.sequences().map(|(ids, _)| ids).collect(),
        };
        let texts: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
        let exact =
            Features::new(Vec::new()).compute(&case.model(Cpu::<f32>::new()), &texts, &mut |_| {}).unwrap();
        let found = Features::new(Vec::new()).compute(&case.model(cuda), &texts, &mut |_| {}).unwrap();
        assert_like(&found, &exact, 0.03, name);
    }
}

#[test]
fn a_gpu_repeats_itself_to_the_bit() {
    let _one_at_a_time = gpu_lock();
    let steps = || {
        let case = Case::open("scaled");
        let mut trainer = case.trainer(cuda(0)?, 60, 4);
        let losses: Vec<f32> = (0..8).map(|_| trainer.step().unwrap().loss).collect();
        Some((losses, trainer.adapter()))
    };
    assert_eq!(steps(), steps());
}

/// The real model's file, or `None` with a message.
fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("FRONTDESK_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: FRONTDESK_SMOLLM2 does not name SmolLM2's GGUF file");
    }
    path
}

#[test]
fn smollm2_equals_transformers_and_peft() {
    let Some(path) = smollm2() else { return };
    let spec = json(&fixtures("smollm2.json"));
    let base = BaseModel::open(path).unwrap();
    let model = Model::load(Cpu::<f32>::new(), &base, Storage::AsStored).unwrap();
    let vocabulary = model.config().vocab_size;
    for prompt in spec["next_tokens"].as_array().unwrap() {
        let found = all_log_probs(&model, &ids(&prompt["ids"]));
        let last = &found[found.len() - vocabulary..];
        for (id, expected) in ids(&prompt["top_ids"]).iter().zip(prompt["top_logprobs"].as_array().unwrap()) {
            assert_close(&[last[*id as usize]], &[number(expected)], 1e-3, "top token");
        }
    }

    let training = &spec["training"];
    let lora = Lora { rank: 4, alpha: 8.0, rslora: false, projections: Projection::ALL.to_vec() };
    let mut adapter = Adapter::new(lora, model.config(), 0);
    for entry in adapter.lora.entries(model.config()) {
        let place = Projection::ALL.iter().position(|p| p.part(model.config()) == Some(entry.part)).unwrap();
        let m = (7 * entry.layer + place) as f64;
        let (a, b) = (entry.a_range(), entry.b_range());
        (0..a.len()).for_each(|i| adapter.values[a.start + i] = ((0.37 * i as f64 + m).sin() * 0.02) as f32);
        (0..b.len()).for_each(|i| adapter.values[b.start + i] = ((0.53 * i as f64 + m).cos() * 0.02) as f32);
    }
    let rows = training["examples"].as_array().unwrap();
    let sequences: Vec<_> =
        rows.iter().map(|e| (ids(&e["ids"]), e["prompt"].as_u64().unwrap() as usize)).collect();
    let shared =
        (0..sequences[0].1).take_while(|&i| sequences.iter().all(|(s, _)| s[i] == sequences[0].0[i])).count();
    let prefix = sequences[0].0[..shared].to_vec();
    let split = |(ids, prompt): &(Vec<u32>, usize)| Example {
        query: ids[shared..*prompt].to_vec(),
        target: ids[*prompt..].to_vec(),
        weight: 1.0,
    };
    let examples: Vec<Example> = sequences.iter().map(split).collect();
    let sampler = Sampler::new(examples.len(), examples.len(), 0, None);
    let options = options(&training["optimizer"], 4096, examples.len());
    let mut trainer = Trainer::new([model], adapter, prefix, examples, sampler, options).unwrap();
    for (step, expected) in training["steps"].as_array().unwrap().iter().enumerate() {
        let report = trainer.step().unwrap();
        assert_close(&[report.loss], &[number(&expected["loss"])], 1e-3, &format!("loss of step {step}"));
        if step == 0 {
            for (tensor, (_, found)) in named_gradients(&trainer) {
                let expected: Vec<f32> =
                    training["gradients"][&tensor].as_array().unwrap().iter().map(number).collect();
                let norm = found.iter().map(|v| v * v).sum::<f32>().sqrt();
                assert_like(&[norm], &expected[..1], 1e-3, &tensor);
                assert_close(&found[..8], &expected[1..], 1e-3 * expected[0], &tensor);
            }
        }
    }
}

#[test]
fn weights_in_few_bits_give_the_same_bytes() {
    let Some(path) = smollm2() else { return };
    let base = BaseModel::open(path).unwrap();
    let score = |storage| {
        let model = Model::load(Cpu::<kernels::bf16>::new(), &base, storage).unwrap();
        (all_log_probs(&model, &[1, 9690, 198, 2683, 359, 253]), model.weight_bytes())
    };
    let ((expanded, large), (stored, small)) = (score(Storage::Expanded), score(Storage::AsStored));
    assert!(expanded == stored, "the storage must not change a bit");
    assert!(small * 5 < large * 2, "{small} bytes in few bits, {large} expanded");
}
