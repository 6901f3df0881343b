//! Encoders with a head, and every weight of every family, in training.

mod replicas;

use super::gpu::{cuda, gpu_lock};
use super::*;
use crate::{Head, Trainable, Weights};

const ENCODERS: [&str; 2] = ["../families/bert", "../families/distilbert"];
const DECODERS: [&str; 3] = ["tied", "../families/phi3", "../families/gpt-neo"];
/// A bias of the keys moves no softmax: its gradient is nothing but the rounding of f32, and differs between instruction sets.
const ROUNDING: f32 = 1e-7;

#[derive(Clone, Copy, PartialEq)]
enum What {
    Lora,
    Weights,
}

impl What {
    /// As the fixtures call it.
    fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Weights => "base",
        }
    }
}

impl Case {
    fn trainable<B: Backend>(&self, model: &Model<B>, what: What) -> Trainable {
        let body = match what {
            What::Lora => Trainable::from(self.adapter(model, "adapter")),
            What::Weights => Trainable::weights(&BaseModel::open(&self.folder).unwrap()).unwrap(),
        };
        if !model.is_encoder() {
            return body;
        }
        let (weight, bias) = (self.tensor("head.weight"), self.tensor("head.bias"));
        body.with_head(&Head { weight, bias, unit: false })
    }

    /// Texts with the index of their label.
    fn texts(&self) -> Vec<Example> {
        let texts = self.spec["texts"].as_array().unwrap().iter().map(ids);
        let example = |(query, label)| Example { query, target: vec![label], weight: 1.0 };
        texts.zip(ids(&self.spec["labels"])).map(example).collect()
    }

    fn trainer_of<B: Backend>(&self, backend: B, what: What, rows_per_pass: usize) -> Trainer<B> {
        self.trainer_with(vec![backend], what, rows_per_pass, |options| options)
    }

    /// One replica a backend; each step sees all examples, unless the options say otherwise.
    fn trainer_with<B: Backend>(
        &self,
        backends: Vec<B>,
        what: What,
        rows_per_pass: usize,
        change: impl Fn(TrainerOptions) -> TrainerOptions,
    ) -> Trainer<B> {
        let mut base = BaseModel::open(&self.folder).unwrap();
        base.config.pooling = self.pooling;
        let models = Model::load_each(backends, &base, Storage::Expanded).unwrap();
        let examples = if models[0].is_encoder() { self.texts() } else { self.examples() };
        let trainable = self.trainable(&models[0], what);
        let options = change(options(&self.spec["optimizer"], rows_per_pass, examples.len()));
        let sampler = Sampler::new(examples.len(), options.batch, 0, None);
        Trainer::new(models, trainable, self.prefix.clone(), examples, sampler, options).unwrap()
    }
}

/// The last step's gradients by the names of the fixtures.
fn gradients<B: Backend>(trainer: &Trainer<B>) -> Vec<(String, Vec<f32>)> {
    let all = Trainable { values: trainer.gradients(), ..trainer.trainable() };
    let config = trainer.config();
    let mut named: Vec<(String, Vec<f32>)> = if let Some(adapter) = all.adapter(config) {
        adapter.to_tensors(config).into_iter().map(|(name, (_, values))| (name, values)).collect()
    } else {
        let of = |entry: &crate::WeightEntry| (entry.name.clone(), all.values[entry.range()].to_vec());
        Weights::new(config).entries.iter().map(of).collect()
    };
    if let Some(head) = all.head(config) {
        named.extend([("head.weight".to_owned(), head.weight), ("head.bias".to_owned(), head.bias)]);
    }
    named
}

fn check_first_step(case: &Case, trainer: &mut Trainer<Cpu<f32>>, what: What, name: &str) {
    let report = trainer.step().unwrap();
    let loss = number(&case.spec["loss"][what.name()]);
    assert_close(&[report.loss], &[loss], 2e-5, name);
    for (tensor, found) in gradients(trainer) {
        let expected = case.tensor(&format!("{}.grad.{tensor}", what.name()));
        let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        assert_close(&found, &expected, (GRADIENTS * largest).max(ROUNDING), &format!("{name} {tensor}"));
    }
}

#[test]
fn encoders_learn_as_pytorch_does() {
    for name in ENCODERS {
        for what in [What::Lora, What::Weights] {
            let case = Case::open(name);
            let mut trainer = case.trainer_of(Cpu::<f32>::new(), what, 4096);
            check_first_step(&case, &mut trainer, what, name);
            let steps = case.spec["steps"][what.name()].as_array().unwrap();
            for (step, expected) in steps.iter().enumerate().skip(1) {
                let report = trainer.step().unwrap();
                let what = format!("{name} {} step {step}", what.name());
                assert_close(&[report.loss], &[number(&expected["loss"])], 2e-4, &what);
                assert_like(&[report.gradient_norm], &[number(&expected["grad_norm"])], 1e-3, &what);
            }
        }
    }
}

/// A head on the first output, as BERT's own heads are.
#[test]
fn a_head_on_the_first_output_has_pytorchs_gradients() {
    for name in ENCODERS {
        let case = Case { pooling: Pooling::First, ..Case::open(name) };
        let mut trainer = case.trainer_of(Cpu::<f32>::new(), What::Weights, 4096);
        let examples = case.texts();
        let texts: Vec<&[u32]> = examples.iter().map(|example| &example.query[..]).collect();
        let width = trainer.config().hidden_size;
        let features = Features::new(Vec::new()).compute(trainer.model(), &texts, &mut |_| {}).unwrap();
        for (index, feature) in features.chunks_exact(width).enumerate() {
            let outputs = case.tensor(&format!("base.outputs.{index}"));
            assert_close(feature, &outputs[..width], LOGITS, &format!("{name} {index}"));
        }
        let loss = number(&case.spec["loss"]["first"]);
        assert_close(&[trainer.step().unwrap().loss], &[loss], 2e-5, name);
        let mut compared = 0;
        for (tensor, found) in gradients(&trainer) {
            // Of the weights themselves the fixture holds vectors alone, which is every layer's.
            let Some(expected) = case.find(&format!("first.grad.{tensor}")) else { continue };
            let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            assert_close(&found, &expected, (GRADIENTS * largest).max(ROUNDING), &format!("{name} {tensor}"));
            compared += 1;
        }
        assert_eq!(compared, 2 + 2 * 10 + 2, "{name}");
    }
}

#[test]
fn every_weight_of_a_decoder_has_pytorchs_gradient() {
    for name in DECODERS {
        let case = Case::open(name);
        let mut trainer = case.trainer_of(Cpu::<f32>::new(), What::Weights, 4096);
        check_first_step(&case, &mut trainer, What::Weights, name);
    }
}

/// A fit head on features is where the body's training may begin.
#[test]
fn the_trained_head_reads_what_the_features_are() {
    let case = Case::open(ENCODERS[0]);
    let mut trainer = case.trainer_of(Cpu::<f32>::new(), What::Weights, 4096);
    let mut mean = 0.0;
    let head = trainer.head().unwrap();
    let examples = case.texts();
    let texts: Vec<&[u32]> = examples.iter().map(|example| &example.query[..]).collect();
    let width = trainer.config().hidden_size;
    let features = Features::new(Vec::new()).compute(trainer.model(), &texts, &mut |_| {}).unwrap();
    for (feature, example) in features.chunks_exact(width).zip(&examples) {
        mean -= head.log_probs(feature)[example.target[0] as usize] / examples.len() as f32;
    }
    assert_close(&[trainer.step().unwrap().loss], &[mean], 1e-5, "loss");
}

#[test]
fn passes_and_restarts_change_no_step() {
    for name in [ENCODERS[0], "tied"] {
        let case = Case::open(name);
        let trainer = |rows| case.trainer_of(Cpu::<kernels::bf16>::new(), What::Weights, rows);
        let (mut unbroken, mut resumed) = (trainer(40), trainer(40));
        unbroken.step().unwrap();
        resumed.restore(&unbroken.snapshot()).unwrap();
        for _ in 0..3 {
            assert_eq!(resumed.step().unwrap(), unbroken.step().unwrap());
        }
        assert_eq!(resumed.trainable(), unbroken.trainable());
        let exact = |rows| {
            let mut trainer = case.trainer_of(Cpu::<f32>::new(), What::Weights, rows);
            trainer.step().unwrap();
            gradients(&trainer)
        };
        for ((tensor, whole), (_, parts)) in exact(4096).iter().zip(exact(1)) {
            assert_like(&parts, whole, 3e-5, tensor);
        }
    }
}

/// All gradients of the first step, and the losses of ten, near those of f32.
fn weights_learn_near_f32<B: Backend>(name: &str, backend: B) {
    let case = Case::open(name);
    let mut exact = case.trainer_of(Cpu::<f32>::new(), What::Weights, 4096);
    let mut rounded = case.trainer_of(backend, What::Weights, 4096);
    for step in 0..10 {
        let (expected, found) = (exact.step().unwrap().loss, rounded.step().unwrap().loss);
        // Roundings add up: 7% in the tenth step, when the loss is a hundredth of the first.
        assert!(
            (found - expected).abs() < 0.1 * expected,
            "{name} step {step}: {found}, expected {expected}"
        );
        if step > 0 {
            continue;
        }
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        for ((tensor, expected), (_, found)) in gradients(&exact).iter().zip(gradients(&rounded)) {
            let size = norm(&mut expected.iter().copied());
            let off = norm(&mut found.iter().zip(expected).map(|(f, e)| f - e));
            assert!(off < 0.05 * size || size < 1e-5, "{name} {tensor} of size {size} is off by {off}");
        }
    }
}

#[test]
fn weights_in_bf16_learn_near_f32() {
    for name in ENCODERS.into_iter().chain(DECODERS) {
        weights_learn_near_f32(name, Cpu::<kernels::bf16>::new());
    }
}

#[test]
fn a_gpu_trains_every_weight() {
    let _one_at_a_time = gpu_lock();
    for name in ENCODERS.into_iter().chain(DECODERS) {
        let Some(cuda) = cuda(0) else { return };
        weights_learn_near_f32(name, cuda);
    }
}

#[test]
fn a_gpu_repeats_the_training_of_weights_to_the_bit() {
    let _one_at_a_time = gpu_lock();
    for name in [ENCODERS[0], "tied"] {
        let steps = || {
            let mut trainer = Case::open(name).trainer_of(cuda(0)?, What::Weights, 40);
            let losses: Vec<f32> = (0..6).map(|_| trainer.step().unwrap().loss).collect();
            Some((losses, trainer.trainable()))
        };
        assert_eq!(steps(), steps(), "{name}");
    }
}

/// Three steps with blocks kept and with blocks computed again, in one pass each and in several.
fn recomputing_changes_no_bit<B: Backend>(backend: impl Fn() -> Option<B>) {
    for (name, what) in DECODERS.into_iter().flat_map(|name| [(name, What::Lora), (name, What::Weights)]) {
        let case = Case::open(name);
        for rows in [40, 4096] {
            let (Some(one), Some(other)) = (backend(), backend()) else { return };
            let mut kept = case.trainer_of(one, what, rows);
            let mut recomputed = case.trainer_with(vec![other], what, rows, |options| TrainerOptions {
                recompute: true,
                ..options
            });
            for _ in 0..3 {
                assert_eq!(recomputed.step().unwrap(), kept.step().unwrap(), "{name}");
                assert_eq!(recomputed.gradients(), kept.gradients(), "{name}");
            }
        }
    }
}

#[test]
fn blocks_computed_again_change_no_bit() {
    recomputing_changes_no_bit(|| Some(Cpu::<f32>::new()));
    recomputing_changes_no_bit(|| Some(Cpu::<kernels::bf16>::new()));
}

#[test]
fn a_gpu_computes_blocks_again_to_the_bit() {
    let _one_at_a_time = gpu_lock();
    recomputing_changes_no_bit(|| cuda(0));
}

#[test]
fn an_encoder_is_not_recomputed() {
    let case = Case::open(ENCODERS[0]);
    let model = case.model(Cpu::<f32>::new());
    let trainable = case.trainable(&model, What::Lora);
    let options = TrainerOptions { recompute: true, ..options(&case.spec["optimizer"], 64, 1) };
    let sampler = Sampler::new(1, 1, 0, None);
    let found = Trainer::new([model], trainable, Vec::new(), case.texts(), sampler, options);
    assert!(matches!(found, Err(crate::Error::Recompute)));
}

/// A power of two in front of the loss changes no step.
#[test]
fn scaled_gradients_take_the_same_step() {
    for (name, what) in [(ENCODERS[0], What::Weights), ("tied", What::Lora)] {
        let case = Case::open(name);
        let trainer = || case.trainer_of(Cpu::<f32>::new(), what, 40);
        let (mut plain, mut scaled) = (trainer(), trainer());
        let first = crate::LossScale { factor: 2.0f32.powi(127), steps: 0 };
        scaled.restore(&crate::Snapshot { loss_scale: first, ..scaled.snapshot() }).unwrap();
        assert_eq!(scaled.step().unwrap(), plain.step().unwrap(), "{name}");
        // What is too small for f32 without the factor differs.
        assert_like(&scaled.gradients(), &plain.gradients(), 1e-6, name);
        assert_like(&scaled.trainable().values, &plain.trainable().values, 1e-5, name);
    }
}
