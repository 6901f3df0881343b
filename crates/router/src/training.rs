//! The loop of a training: step, validate, save, and at the end take the best.

use std::path::Path;
use std::time::{Duration, Instant};

use engine::{Balance, Body, Care, Head, Model, Sampler, Trainable, Trainer, TrainerOptions};
use kernels::{Backend, bf16};
use routing::calibration::{probabilities, top};
use serde_json::json;

use crate::best::Best;
use crate::checkpoint::{Checkpoint, State};
use crate::examples::Encoded;
use crate::log::Log;
use crate::observer::{Observer, Started, Validated};
use crate::plan::{Plan, Recipe, VALIDATIONS};
use crate::run::Trained;
use crate::scoring::Scoring;
use crate::transfer::transfer;
use crate::verdict::judge;
use crate::{Error, Result};

/// Rows of a pass for each validation row scored between two reports of progress.
const ROWS_A_REPORT: usize = 8;
/// The time between checkpoints is at least this many times what the last one took.
const MOST_OF_CHECKPOINTS: u32 = 20;
const LOG: &str = "train_log.jsonl";

/// What a training found, whatever its method.
pub(crate) struct Fitted {
    pub(crate) trained: Trained,
    /// Values that trained.
    pub(crate) values: usize,
    /// Steps in all.
    pub(crate) steps: u64,
    /// Steps taken by this process.
    pub(crate) taken: u64,
    /// The step whose values were kept.
    pub(crate) best_step: u64,
    /// What it says to each validation example.
    pub(crate) log_probs: Vec<Vec<f32>>,
    /// Most bytes of its memory that one of the devices held at a time.
    pub(crate) device_bytes: Option<usize>,
}

/// A run at work.
pub(crate) struct Training<'a, B: Backend> {
    trainer: Trainer<B>,
    scoring: Scoring<B>,
    encoded: &'a Encoded,
    recipe: &'a Recipe,
    observer: &'a mut dyn Observer,
    total_steps: u64,
    best: Option<Best>,
}

impl<'a, B: Backend> Training<'a, B> {
    /// Gets a run ready for its first step, or for the one after `state`.
    pub(crate) fn new(
        models: Vec<Model<B>>,
        trainable: Trainable,
        lr: f32,
        encoded: &'a Encoded,
        recipe: &'a Recipe,
        state: Option<State>,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let labels: Vec<Vec<u32>> = encoded.labels.iter().map(|label| label.ids.clone()).collect();
        let model = &models[0];
        let trainable = if !model.is_encoder() {
            trainable
        } else if state.is_some() {
            // The checkpoint has the head as well.
            trainable.with_head(&Head::zero(encoded.labels.len(), model.config().hidden_size))
        } else {
            // The head begins as the best one on the model as it is (Kumar et al., 2022): what is known already need
            // not be torn down to learn it.
            let found = transfer(model, encoded, true, observer)?;
            trainable.with_head(&found.head.for_length_of(&found.features))
        };
        let draw = (recipe.balance == Balance::Sample).then(|| Balance::factors(&encoded.train_labels));
        let whole_encoder = model.is_encoder() && trainable.body == Body::Weights;
        let (batch, epochs) = recipe.sized_for(encoded.train.len(), whole_encoder);
        let sampler = Sampler::new(encoded.train.len(), batch, recipe.seed, draw.as_deref());
        let planned = (f64::from(epochs) * sampler.steps_per_epoch() as f64).ceil() as u64;
        let total_steps = planned.min(recipe.max_steps.unwrap_or(u64::MAX)).max(1);
        let options = TrainerOptions {
            lr,
            optimizer: recipe.optimizer.clone(),
            care: if whole_encoder { recipe.care(encoded.mask) } else { Care::default() },
            batch,
            rows_per_pass: recipe.rows_per_pass,
            recompute: recipe.recompute,
            total_steps,
            seed: recipe.seed,
        };
        let prefix = encoded.prompt.shared_ids().to_vec();
        let mut trainer = Trainer::new(models, trainable, prefix, encoded.train.clone(), sampler, options)?;
        let mut best = None;
        if let Some(state) = state {
            trainer.restore(&state.snapshot)?;
            best = state.best;
        }
        let scoring = match trainer.head() {
            Some(head) => Scoring::head(head, &encoded.prompt),
            None => Scoring::tokens(trainer.model(), &labels, &encoded.prompt, encoded.draft.clone())?,
        };
        Ok(Self { trainer, scoring, encoded, recipe, observer, total_steps, best })
    }

    /// Trains to the last step and finds what the best values say to the validation examples.
    pub(crate) fn run(
        mut self,
        checkpoint: &Checkpoint,
        plan: &Plan,
        out: &Path,
        started: Started,
    ) -> Result<Fitted> {
        let (before, values) = (self.trainer.steps(), self.trainer.parameters());
        self.observer.started(&Started {
            total_steps: self.total_steps,
            steps_done: before,
            trainable: values,
            sums: self.trainer.sums(),
            ..started
        });
        let mut log = Log::open(&out.join(LOG), before)?;
        let between = Duration::try_from_secs_f32(plan.checkpoint_seconds).unwrap_or(Duration::MAX);
        self.train_to_the_end(checkpoint, &mut log, between)?;
        let steps = self.trainer.steps();
        let device_bytes = self.trainer.peak_bytes();
        let (trained, best_step, log_probs) = self.finish()?;
        let (trained, taken) = (Trained::Model(trained), steps - before);
        Ok(Fitted { trained, values, steps, taken, best_step, log_probs, device_bytes })
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
