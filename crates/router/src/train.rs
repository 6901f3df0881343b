//! A training run from examples to a run folder.

use std::path::Path;
use std::time::{Duration, Instant};

use engine::{
    Adapter, Balance, Body, Head, MemoryPlan, Model, Sampler, Storage, Trainable, Trainer, TrainerOptions,
};
use formats::{BaseModel, Tokenizer, store};
use kernels::{Backend, bf16};
use routing::calibration::{Calibration, Goal, Scored, Thresholds, probabilities, top};
use routing::metrics::Metrics;
use serde_json::json;

use crate::best::Best;
use crate::checkpoint::Checkpoint;
use crate::examples::{Encoded, TrainData};
use crate::linear::train_linear;
use crate::log::Log;
use crate::manifest::{BaseRecord, LabelRecord, Manifest, Measured, ValidationRecord};
use crate::observer::{Observer, Started, Validated};
use crate::plan::{Method, Plan, Recipe, VALIDATIONS};
use crate::prompt::Prompt;
use crate::run::{FromBase, RunFolder, Trained, read_json, write_json};
use crate::scoring::Scoring;
use crate::transfer::transfer;
use crate::{Error, Result};

/// Rows of a pass for each validation row scored between two reports of progress.
const ROWS_A_REPORT: usize = 8;
/// The time between checkpoints is at least this many times what the last one took.
const MOST_OF_CHECKPOINTS: u32 = 20;
const LOG: &str = "train_log.jsonl";

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// The finished folder.
    pub run: RunFolder,
    /// Steps taken by this process.
    pub steps: u64,
    /// Wall time of this process, from the model's loading on.
    pub seconds: f64,
    /// Most bytes of its memory that one of the devices held at a time; `None` where memory is the process's own.
    pub device_bytes: Option<usize>,
}

impl Plan {
    /// The plan of the interrupted run in `out`.
    ///
    /// # Errors
    /// When there is none.
    pub fn of_interrupted(out: &Path) -> Result<Self> {
        let path = Checkpoint::plan_path(out);
        if !path.exists() {
            return Err(Error::NothingToResume { path: out.to_path_buf() });
        }
        read_json(&path)
    }
}

/// Trains on one device, or on several that share each step, and writes the run folder `out`. An interrupted run leaves its last whole checkpoint there; the same call
/// with `resume` goes on from it and ends with the same bytes.
///
/// # Errors
/// When the folder is taken, the data does not suit, or training fails. What was there before is not harmed.
pub fn train<B: Backend>(
    backends: Vec<B>,
    base: BaseModel,
    data: &TrainData,
    plan: &Plan,
    out: &Path,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let begun = Instant::now();
    if RunFolder::is_in(out) {
        return Err(Error::Occupied { path: out.to_path_buf() });
    }
    let recipe = &plan.recipe;
    if recipe.method_for(&base) == Method::Linear {
        return train_linear(data, plan, out, observer);
    }
    let tokenizer = base.tokenizer()?;
    let encoded = Encoded::new(data, &base, &tokenizer, recipe)?;
    let checkpoint = Checkpoint::begin(out, fingerprint(data, &base, &encoded, recipe)?, resume)?;
    let inputs = Inputs { backends, base, tokenizer, data, encoded, plan, out, resume, begun };
    match train_held(inputs, &checkpoint, observer) {
        Ok(outcome) => {
            checkpoint.remove()?;
            Ok(outcome)
        }
        Err(error) => {
            checkpoint.abandon(out);
            Err(error)
        }
    }
}

/// What a run is made of.
struct Inputs<'a, B> {
    backends: Vec<B>,
    base: BaseModel,
    tokenizer: Tokenizer,
    data: &'a TrainData,
    encoded: Encoded,
    plan: &'a Plan,
    out: &'a Path,
    resume: bool,
    begun: Instant,
}

/// [`train()`] in a folder that is this process's own.
fn train_held<B: Backend>(
    inputs: Inputs<'_, B>,
    checkpoint: &Checkpoint,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let Inputs { mut backends, base, tokenizer, data, encoded, plan, out, resume, begun } = inputs;
    let recipe = &plan.recipe;
    let (method, lr) = (recipe.method_for(&base), recipe.lr_for(&base));
    if method == Method::Head {
        // The model only reads each text once.
        backends.truncate(1);
    }
    let (device, devices) = (device_name(&backends), backends.len());
    let state = if resume { checkpoint.load()? } else { None };
    if !resume {
        write_json(&Checkpoint::plan_path(out), plan)?;
    }

    let (storage, body) = what_trains(method, recipe);
    let head_size = encoded.labels.len() * (base.config.hidden_size + 1);
    let head = if base.config.is_encoder() { head_size } else { 0 };
    let sizes = encoded.pass_sizes(recipe, devices);
    let memory = |body| {
        let plan = |backend| MemoryPlan::new(backend, &base, storage, (body, head), sizes);
        let plans = backends.iter().map(plan).collect::<engine::Result<Vec<_>>>()?;
        plans.iter().try_for_each(MemoryPlan::check)?;
        Ok::<_, Error>(plans[0])
    };
    let memory = body.as_ref().map(memory).transpose()?;
    let mut models = Model::load_each(backends, &base, storage)?;
    let longest = encoded.prompt.longest(&encoded.labels);
    for model in &mut models {
        model.set_context(longest);
    }
    let trainable = match body {
        Some(Body::Weights) => Some(Trainable::weights(&base)?),
        Some(Body::Lora(lora)) => Some(Adapter::new(lora, &base.config, recipe.seed).into()),
        None => None,
    };
    let config_json = base.config_json()?;
    let base_record = BaseRecord {
        source: plan.base.clone(),
        name: base.name().to_owned(),
        sha256: base.sha256().to_owned(),
    };
    let config = base.config.clone();
    // The files are mapped; from here on their memory is better used otherwise.
    drop(base);
    let started = Started {
        examples: encoded.train.len(),
        validation: encoded.valid.len(),
        labels: encoded.labels.len(),
        cut: encoded.cut,
        total_steps: 0,
        steps_done: 0,
        trainable: 0,
        devices,
        sums: None,
        memory,
        parameters: config.parameters(),
        shown: encoded.show(&tokenizer, 3)?,
    };
    let (trained, values, taken, steps, best_step, log_probs, device_bytes) =
        if let Some(trainable) = trainable {
            let mut run = Training::new(models, trainable, lr, &encoded, recipe, state.is_some(), observer)?;
            if let Some(state) = state {
                run.trainer.restore(&state.snapshot)?;
                run.best = state.best;
            }
            let before = run.trainer.steps();
            let (total_steps, trainable) = (run.total_steps, run.trainer.parameters());
            let sums = run.trainer.sums();
            run.observer.started(&Started { total_steps, steps_done: before, trainable, sums, ..started });
            let between = Duration::try_from_secs_f32(plan.checkpoint_seconds).unwrap_or(Duration::MAX);
            let mut log = Log::open(&out.join(LOG), before)?;
            run.train_to_the_end(checkpoint, &mut log, between)?;
            let steps = run.trainer.steps();
            let device_bytes = run.trainer.peak_bytes();
            let (trained, best_step, log_probs) = run.finish()?;
            (Trained::Model(trained), trainable, steps - before, steps, best_step, log_probs, device_bytes)
        } else {
            observer.started(&Started { trainable: head_size, ..started });
            let found = transfer(&models[0], &encoded, data.valid_file.is_some(), observer)?;
            (Trained::Head(found.head), head_size, 0, 0, 0, found.log_probs, models[0].backend().peak_bytes())
        };
    let manifest = Manifest {
        method,
        base: base_record,
        prompt: encoded.prompt,
        device,
        trainable: values,
        parameters: config.parameters(),
        steps,
        best_step,
        ..manifest(encoded.labels, &log_probs, &encoded.valid_labels, data, recipe)
    };
    let base = FromBase {
        config: &config,
        config_json: &config_json,
        tokenizer: &tokenizer,
        draft: encoded.draft.as_ref(),
    };
    let seconds = begun.elapsed().as_secs_f64();
    let run = RunFolder::write(out, manifest, &trained, Some(base), measured(seconds))?;
    Ok(Outcome { run, steps: taken, seconds, device_bytes })
}

/// How a method keeps the weights, and what it trains in them.
fn what_trains(method: Method, recipe: &Recipe) -> (Storage, Option<Body>) {
    match method {
        Method::Full => (Storage::Expanded, Some(Body::Weights)),
        Method::Qlora => (Storage::FourBits, Some(Body::Lora(recipe.lora.clone()))),
        Method::Lora => (Storage::AsStored, Some(Body::Lora(recipe.lora.clone()))),
        Method::Head | Method::Linear => (Storage::AsStored, None),
    }
}

/// What runs and how, on one device or on several: `2 x cuda NVIDIA H100 bf16`.
pub fn device_name<B: Backend>(backends: &[B]) -> String {
    let mut names: Vec<String> = backends.iter().map(B::name).collect();
    let count = names.len();
    names.dedup();
    if names.len() == 1 && count > 1 { format!("{count} x {}", names[0]) } else { names.join(" + ") }
}

/// What every run says of itself, whatever its method: how it did on the validation examples, and what follows.
pub(crate) fn manifest(
    labels: Vec<LabelRecord>,
    log_probs: &[Vec<f32>],
    valid_labels: &[usize],
    data: &TrainData,
    recipe: &Recipe,
) -> Manifest {
    let names: Vec<String> = labels.iter().map(|label| label.text.clone()).collect();
    let rows: Vec<usize> = (0..valid_labels.len()).collect();
    let (accuracy, macro_f1) = judge(log_probs, &rows, &names, valid_labels);
    let calibration = Calibration::fit(log_probs, valid_labels);
    let thresholds = choose_thresholds(&names, &calibration, log_probs, valid_labels, recipe);
    Manifest {
        format: crate::manifest::FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        method: Method::Linear,
        base: BaseRecord { source: "none".to_owned(), name: "none".to_owned(), sha256: String::new() },
        labels,
        prompt: Prompt::default(),
        data: data.data.clone(),
        valid: data.valid_file.clone(),
        recipe: recipe.clone(),
        device: String::new(),
        trainable: 0,
        parameters: 0,
        steps: 0,
        best_step: 0,
        validation: ValidationRecord { rows: rows.len(), accuracy, macro_f1 },
        calibration,
        thresholds,
        scope: None,
        calibrated_on: None,
        cascade: None,
        files: std::collections::BTreeMap::new(),
    }
}

pub(crate) fn measured(seconds: f64) -> Measured {
    Measured { seconds, peak_memory_bytes: peak_memory() }
}

/// The process's peak memory in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Of everything that decides the result.
fn fingerprint(data: &TrainData, base: &BaseModel, encoded: &Encoded, recipe: &Recipe) -> Result<String> {
    let all = json!([
        base.sha256(),
        data.data.sha256,
        data.valid_file.as_ref().map(|file| &file.sha256),
        recipe,
        encoded.prompt,
        encoded.labels,
    ]);
    let bytes = serde_json::to_vec(&all)
        .map_err(|source| Error::Json { path: Checkpoint::plan_path(Path::new("")), source })?;
    Ok(store::sha256_hex(&bytes))
}

/// A run at work.
struct Training<'a, B: Backend> {
    trainer: Trainer<B>,
    scoring: Scoring<B>,
    encoded: &'a Encoded,
    recipe: &'a Recipe,
    observer: &'a mut dyn Observer,
    total_steps: u64,
    best: Option<Best>,
}

impl<'a, B: Backend> Training<'a, B> {
    fn new(
        models: Vec<Model<B>>,
        trainable: Trainable,
        lr: f32,
        encoded: &'a Encoded,
        recipe: &'a Recipe,
        resumed: bool,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let labels: Vec<Vec<u32>> = encoded.labels.iter().map(|label| label.ids.clone()).collect();
        let model = &models[0];
        let trainable = if !model.is_encoder() {
            trainable
        } else if resumed {
            // The checkpoint has the head as well.
            trainable.with_head(&Head::zero(encoded.labels.len(), model.config().hidden_size))
        } else {
            // The head begins as the best one on the model as it is (Kumar et al., 2022): what is known already need
            // not be torn down to learn it.
            let found = transfer(model, encoded, true, observer)?;
            trainable.with_head(&found.head.for_length_of(&found.features))
        };
        let draw = (recipe.balance == Balance::Sample).then(|| Balance::factors(&encoded.train_labels));
        let (batch, epochs) = recipe.sized_for(encoded.train.len());
        let sampler = Sampler::new(encoded.train.len(), batch, recipe.seed, draw.as_deref());
        let planned = (f64::from(epochs) * sampler.steps_per_epoch() as f64).ceil() as u64;
        let total_steps = planned.min(recipe.max_steps.unwrap_or(u64::MAX)).max(1);
        let options = TrainerOptions {
            lr,
            optimizer: recipe.optimizer.clone(),
            batch,
            rows_per_pass: recipe.rows_per_pass,
            recompute: recipe.recompute,
            total_steps,
            seed: recipe.seed,
        };
        let prefix = encoded.prompt.shared_ids().to_vec();
        let trainer = Trainer::new(models, trainable, prefix, encoded.train.clone(), sampler, options)?;
        let scoring = match trainer.head() {
            Some(head) => Scoring::head(head, &encoded.prompt),
            None => Scoring::tokens(trainer.model(), &labels, &encoded.prompt, encoded.draft.clone())?,
        };
        Ok(Self { trainer, scoring, encoded, recipe, observer, total_steps, best: None })
    }

    fn train_to_the_end(&mut self, checkpoint: &Checkpoint, log: &mut Log, between: Duration) -> Result<()> {
        let validate_every =
            self.recipe.validate_every.unwrap_or(self.total_steps.div_ceil(VALIDATIONS)).max(1);
        let mut saved = Instant::now();
        let mut between = between;
        while self.trainer.steps() < self.total_steps {
            let report = self.trainer.step()?;
            self.observer.stepped(&report);
            if !self.observer.goes_on() {
                return Err(Error::Stopped);
            }
            log.write(&json!({
                "step": report.step, "loss": report.loss, "lr": report.lr, "gradient_norm": report.gradient_norm,
                "examples": report.examples, "rows": report.rows, "seconds": log.seconds(),
            }))?;
            let last = report.step == self.total_steps;
            if last || report.step.is_multiple_of(validate_every) {
                let validated = self.validate(report.step)?;
                log.write(&json!({
                    "step": report.step, "accuracy": validated.accuracy, "macro_f1": validated.macro_f1,
                    "kept": validated.kept, "seconds": log.seconds(),
                }))?;
                self.observer.validated(&validated);
                let misses = self.best.as_ref().map_or(0, |best| best.misses);
                if self.recipe.patience.is_some_and(|patience| misses >= patience) {
                    return Ok(());
                }
            }
            if saved.elapsed() >= between {
                let begun = Instant::now();
                checkpoint.save(&self.trainer.snapshot(), self.best.as_ref())?;
                saved = Instant::now();
                // Gigabytes are not written more often than is worth their time.
                between = between.max(MOST_OF_CHECKPOINTS * begun.elapsed());
            }
        }
        Ok(())
    }

    /// Judges the current values, on at most [`Recipe::max_validation`] rows spread over all.
    fn validate(&mut self, step: u64) -> Result<Validated> {
        let stride = self.encoded.valid.len().div_ceil(self.recipe.max_validation.max(1)).max(1);
        let rows: Vec<usize> = (0..self.encoded.valid.len()).step_by(stride).collect();
        let log_probs = self.score(&rows)?;
        let names: Vec<String> = self.encoded.labels.iter().map(|label| label.text.clone()).collect();
        let (accuracy, macro_f1) = judge(&log_probs, &rows, &names, &self.encoded.valid_labels);
        let answers = log_probs.iter().map(|row| top(&probabilities(row, 1.0)).0).collect();
        let truth: Vec<usize> = rows.iter().map(|&row| self.encoded.valid_labels[row]).collect();
        let values = || self.trainer.trainable().values;
        let kept = Best::offer(&mut self.best, step, macro_f1, answers, &truth, values);
        Ok(Validated { step, accuracy, macro_f1, kept })
    }

    /// The log-probabilities of validation rows, with the current values.
    fn score(&mut self, rows: &[usize]) -> Result<Vec<Vec<f32>>> {
        self.trainer.rest();
        let model = self.trainer.model();
        self.scoring.reset(model, self.trainer.head());
        let mut log_probs = Vec::with_capacity(rows.len());
        for group in rows.chunks(model.backend().rows_at_once() / ROWS_A_REPORT) {
            let queries: Vec<&[u32]> = group.iter().map(|&row| &self.encoded.valid[row][..]).collect();
            log_probs.extend(self.scoring.score(model, &queries)?.into_iter().map(|scores| scores.log_probs));
            self.observer.scoring(log_probs.len(), rows.len());
        }
        Ok(log_probs)
    }

    /// The best values, their step, and what they say to all validation rows.
    fn finish(mut self) -> Result<(Trainable, u64, Vec<Vec<f32>>)> {
        let mut best = self.best.take().unwrap_or_default();
        if best.values.is_empty() {
            best.values = self.trainer.trainable().values;
        }
        if self.trainer.trains_weights() {
            // What is judged and calibrated is what the file will hold.
            let weights = best.values.len() - self.trainer.head().map_or(0, |head| head.values());
            best.values[..weights].iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
        self.trainer.replace(&best.values);
        let rows: Vec<usize> = (0..self.encoded.valid.len()).collect();
        let log_probs = self.score(&rows)?;
        Ok((self.trainer.trainable(), best.step, log_probs))
    }
}

/// Accuracy and macro-F1 on these validation rows, over the labels that they have.
fn judge(log_probs: &[Vec<f32>], rows: &[usize], names: &[String], valid_labels: &[usize]) -> (f64, f64) {
    let name =
        |label: usize| names.get(label).map_or("(a label that training does not have)", String::as_str);
    let answers: Vec<(&str, &str)> = rows
        .iter()
        .zip(log_probs)
        .map(|(&row, log_probs)| (name(valid_labels[row]), name(top(&probabilities(log_probs, 1.0)).0)))
        .collect();
    let metrics = Metrics::from_names(names, &answers);
    (metrics.accuracy, metrics.macro_avg.f1)
}

fn choose_thresholds(
    names: &[String],
    calibration: &Calibration,
    log_probs: &[Vec<f32>],
    truth: &[usize],
    recipe: &Recipe,
) -> Thresholds {
    let scored = |(row, &truth): (&Vec<f32>, &usize)| {
        let (predicted, probability) = top(&calibration.probabilities(row));
        Scored { predicted, probability, right: predicted == truth, in_scope: true }
    };
    let rows: Vec<Scored> = log_probs.iter().zip(truth).map(scored).collect();
    let goal = Goal::Precision { target: recipe.target_precision };
    Thresholds::choose(names, &rows, &goal, None)
}
