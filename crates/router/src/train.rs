//! A training run from examples to a run folder.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use engine::{Adapter, Balance, Model, Sampler, Scorer, Storage, Trainer, TrainerOptions};
use formats::{BaseModel, store};
use kernels::Backend;
use routing::calibration::{Calibration, Scored, Thresholds, top};
use routing::metrics::Metrics;
use serde_json::json;

use crate::checkpoint::{Best, Checkpoint};
use crate::examples::{Encoded, TrainData};
use crate::manifest::{BaseRecord, Manifest, ValidationRecord};
use crate::observer::{Observer, Started, Validated};
use crate::plan::{Plan, Recipe};
use crate::run::{MANIFEST, RunFolder, read_json, write_json};
use crate::{Error, Result, router};

/// Validations in a run, unless the recipe says otherwise.
const VALIDATIONS: u64 = 4;
/// Validation rows scored between two reports of progress.
const SCORED_AT_ONCE: usize = 64;
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

/// Trains and writes the run folder `out`. An interrupted run leaves its last whole checkpoint there; the same call
/// with `resume` goes on from it and ends with the same bytes.
///
/// # Errors
/// When the folder is taken, the data does not suit, or training fails. What was there before is not harmed.
pub fn train<B: Backend>(
    backend: B,
    base: BaseModel,
    data: &TrainData,
    plan: &Plan,
    out: &Path,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let begun = Instant::now();
    if out.join(MANIFEST).exists() || (!resume && Checkpoint::plan_path(out).exists()) {
        return Err(Error::Occupied { path: out.to_path_buf() });
    }
    let recipe = &plan.recipe;
    let tokenizer = base.tokenizer()?;
    let encoded = Encoded::new(data, &base, &tokenizer, recipe)?;
    let checkpoint = Checkpoint::hold(out, fingerprint(data, &base, &encoded, recipe)?)?;
    let state = if resume { checkpoint.load()? } else { None };
    if !resume {
        write_json(&Checkpoint::plan_path(out), plan)?;
    }

    let device = backend.name();
    let model = Model::load(backend, &base, Storage::AsStored)?;
    let base_record = BaseRecord {
        source: plan.base.clone(),
        name: base.name().to_owned(),
        sha256: base.sha256().to_owned(),
    };
    let config = base.config.clone();
    // The files are mapped; from here on their memory is better used otherwise.
    drop(base);
    let mut run = Training::new(model, &encoded, recipe, observer)?;
    if let Some(state) = state {
        run.trainer.restore(&state.snapshot)?;
        run.best = state.best;
    }
    let steps_before = run.trainer.steps();
    run.observer.started(&Started {
        examples: encoded.train.len(),
        validation: encoded.valid.len(),
        labels: encoded.labels.len(),
        cut: encoded.cut,
        total_steps: run.total_steps,
        steps_done: steps_before,
        trainable: run.trainer.parameters(),
        parameters: config.parameters(),
        shown: encoded.show(&tokenizer, 3)?,
    });
    let mut log = Log::open(&out.join(LOG), steps_before)?;
    run.train_to_the_end(&checkpoint, &mut log, Duration::from_secs_f32(plan.checkpoint_seconds))?;
    let steps = run.trainer.steps();
    let (adapter, best, log_probs) = run.finish()?;

    let names: Vec<String> = encoded.labels.iter().map(|label| label.text.clone()).collect();
    let calibration = Calibration::fit(&log_probs, &encoded.valid_labels);
    let thresholds = choose_thresholds(&names, &calibration, &log_probs, &encoded.valid_labels, recipe);
    let rows = encoded.valid.len();
    let manifest = Manifest {
        format: crate::manifest::FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        method: "lora".to_owned(),
        base: base_record,
        labels: encoded.labels,
        prompt: encoded.prompt,
        data: data.data.clone(),
        valid: data.valid_file.clone(),
        recipe: recipe.clone(),
        device,
        steps,
        best_step: best.step,
        validation: ValidationRecord { rows, accuracy: best.accuracy, macro_f1: best.macro_f1 },
        calibration,
        thresholds,
        files: std::collections::BTreeMap::new(),
    };
    let run = RunFolder::write(out, manifest, &adapter, &config, &tokenizer)?;
    checkpoint.remove()?;
    Ok(Outcome { run, steps: steps - steps_before, seconds: begun.elapsed().as_secs_f64() })
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
    scorer: Scorer<B>,
    encoded: &'a Encoded,
    recipe: &'a Recipe,
    observer: &'a mut dyn Observer,
    total_steps: u64,
    best: Option<Best>,
}

impl<'a, B: Backend> Training<'a, B> {
    fn new(
        model: Model<B>,
        encoded: &'a Encoded,
        recipe: &'a Recipe,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let labels: Vec<Vec<u32>> = encoded.labels.iter().map(|label| label.ids.clone()).collect();
        let draw = (recipe.balance == Balance::Sample).then(|| Balance::factors(&encoded.train_labels));
        let (batch, epochs) = recipe.sized_for(encoded.train.len());
        let sampler = Sampler::new(encoded.train.len(), batch, recipe.seed, draw.as_deref());
        let planned = (f64::from(epochs) * sampler.steps_per_epoch() as f64).ceil() as u64;
        let total_steps = planned.min(recipe.max_steps.unwrap_or(u64::MAX)).max(1);
        let options = TrainerOptions {
            optimizer: recipe.optimizer.clone(),
            batch,
            rows_per_pass: recipe.rows_per_pass,
            total_steps,
            seed: recipe.seed,
        };
        let adapter = Adapter::new(recipe.lora.clone(), model.config(), recipe.seed);
        let prefix = encoded.prompt.shared_ids().to_vec();
        let trainer = Trainer::new(model, adapter, prefix, encoded.train.clone(), sampler, options)?;
        let scorer = router::scorer(trainer.model(), &labels, &encoded.prompt)?;
        Ok(Self { trainer, scorer, encoded, recipe, observer, total_steps, best: None })
    }

    fn train_to_the_end(&mut self, checkpoint: &Checkpoint, log: &mut Log, between: Duration) -> Result<()> {
        let validate_every =
            self.recipe.validate_every.unwrap_or(self.total_steps.div_ceil(VALIDATIONS)).max(1);
        let mut saved = Instant::now();
        while self.trainer.steps() < self.total_steps {
            let report = self.trainer.step()?;
            self.observer.stepped(&report);
            log.write(&json!({
                "step": report.step, "loss": report.loss, "lr": report.lr, "gradient_norm": report.gradient_norm,
                "examples": report.examples, "rows": report.rows, "seconds": log.seconds(),
            }))?;
            let last = report.step == self.total_steps;
            if last || report.step.is_multiple_of(validate_every) {
                let validated = self.validate(report.step)?;
                log.write(&json!({
                    "step": report.step, "accuracy": validated.accuracy, "macro_f1": validated.macro_f1,
                    "best": validated.best, "seconds": log.seconds(),
                }))?;
                self.observer.validated(&validated);
                let misses = self.best.as_ref().map_or(0, |best| best.misses);
                if self.recipe.patience.is_some_and(|patience| misses >= patience) {
                    return Ok(());
                }
            }
            if saved.elapsed() >= between {
                checkpoint.save(&self.trainer.snapshot(), self.best.as_ref())?;
                saved = Instant::now();
            }
        }
        Ok(())
    }

    fn validate(&mut self, step: u64) -> Result<Validated> {
        let log_probs = self.score()?;
        let (accuracy, macro_f1) = judge(&log_probs, self.encoded);
        // Of equals the later one: its learning rate has fallen further.
        let better = self.best.as_ref().is_none_or(|best| macro_f1 >= best.macro_f1);
        if better {
            let values = self.trainer.adapter().values;
            self.best = Some(Best { step, macro_f1, accuracy, misses: 0, values });
        } else if let Some(best) = &mut self.best {
            best.misses += 1;
        }
        Ok(Validated { step, accuracy, macro_f1, best: better })
    }

    /// The log-probabilities of every validation row, with the current adapter.
    fn score(&mut self) -> Result<Vec<Vec<f32>>> {
        let model = self.trainer.model();
        self.scorer.reset(model);
        let mut log_probs = Vec::with_capacity(self.encoded.valid.len());
        for rows in self.encoded.valid.chunks(SCORED_AT_ONCE) {
            let queries: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            log_probs.extend(self.scorer.score(model, &queries)?.into_iter().map(|scores| scores.log_probs));
            self.observer.scoring(log_probs.len(), self.encoded.valid.len());
        }
        Ok(log_probs)
    }

    /// The best adapter, and what it says to the validation rows.
    fn finish(mut self) -> Result<(Adapter, Best, Vec<Vec<f32>>)> {
        let mut snapshot = self.trainer.snapshot();
        let mut best = self.best.take().unwrap_or_default();
        if !best.values.is_empty() {
            snapshot.parameters = std::mem::take(&mut best.values);
            self.trainer.restore(&snapshot)?;
        }
        let log_probs = self.score()?;
        Ok((self.trainer.adapter(), best, log_probs))
    }
}

/// Accuracy and macro-F1 over the labels that the validation rows have.
fn judge(log_probs: &[Vec<f32>], encoded: &Encoded) -> (f64, f64) {
    let names: Vec<&str> = encoded.labels.iter().map(|label| label.text.as_str()).collect();
    let name = |label: usize| names.get(label).copied().unwrap_or("(a label that training does not have)");
    let predicted = |row: &Vec<f32>| {
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        best.map_or(0, |(label, _)| label)
    };
    let rows: Vec<(&str, &str)> = encoded
        .valid_labels
        .iter()
        .zip(log_probs)
        .map(|(&truth, row)| (name(truth), name(predicted(row))))
        .collect();
    let known: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let metrics = Metrics::from_names(&known, &rows);
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
        Scored { predicted, probability, right: predicted == truth }
    };
    let rows: Vec<Scored> = log_probs.iter().zip(truth).map(scored).collect();
    Thresholds::choose(names, &rows, recipe.target_precision)
}

/// `train_log.jsonl`: a line a step and a validation.
struct Log {
    file: std::fs::File,
    path: std::path::PathBuf,
    begun: Instant,
}

impl Log {
    /// Opens the log; of a resumed run, the lines after its checkpoint are dropped.
    fn open(path: &Path, steps: u64) -> Result<Self> {
        let step_of = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
        let old = std::fs::read_to_string(path).unwrap_or_default();
        let kept: String = old
            .lines()
            .filter(|line| step_of(line).is_some_and(|step| step <= steps))
            .flat_map(|line| [line, "\n"])
            .collect();
        store::write_atomically(path, kept.as_bytes())?;
        let failed = |source| Error::Io { path: path.to_path_buf(), action: "written", source };
        let file = std::fs::OpenOptions::new().append(true).open(path).map_err(failed)?;
        Ok(Self { file, path: path.to_path_buf(), begun: Instant::now() })
    }

    /// Since this process began, to the millisecond.
    fn seconds(&self) -> f64 {
        (self.begun.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
    }

    fn write(&mut self, line: &serde_json::Value) -> Result<()> {
        writeln!(self.file, "{line}").map_err(|source| Error::Io {
            path: self.path.clone(),
            action: "written",
            source,
        })
    }
}
