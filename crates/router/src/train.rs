//! A training run from examples to a run folder: prepare, load, fit, judge, write.

use std::path::Path;
use std::time::Instant;

use engine::{Adapter, Body, MemoryPlan, Model, Storage, Trainable};
use formats::{BaseModel, ModelConfig, Tokenizer, store};
use kernels::{Backend, Encoding};
use serde_json::json;

use crate::checkpoint::Checkpoint;
use crate::examples::{Encoded, TrainData};
use crate::linear::train_linear;
use crate::machine::device_name;
use crate::manifest::{BaseRecord, Manifest, Measured};
use crate::observer::{Observer, Started};
use crate::plan::{Method, Plan, Recipe};
use crate::run::{FromBase, RunFolder, Trained, read_json, write_json};
use crate::training::{Fitted, Training};
use crate::transfer::transfer;
use crate::verdict::judged;
use crate::{Error, Result};

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

/// Trains on one device, or on several that share each step, and writes the run folder `out`. An interrupted run leaves
/// its last whole checkpoint there; the same call with `resume` goes on from it and ends with the same bytes.
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
    let devices = backends.len();
    let int8 = plan.int8()
        && method == Method::Head
        && base.config.is_encoder()
        && backends.iter().all(|backend| backend.image_layout().is_some());
    let device = device_name(&backends) + if int8 { ", features in int8" } else { "" };
    let state = if resume { checkpoint.load()? } else { None };
    if !resume {
        write_json(&Checkpoint::plan_path(out), plan)?;
    }

    let (storage, body) = what_trains(method, recipe);
    let memory =
        body.as_ref().map(|body| memory(&backends, &base, storage, body, &encoded, recipe)).transpose()?;
    let mut models = if int8 {
        let load = |backend| Model::load_merged(backend, &base, storage, None, Encoding::Int8);
        backends.into_iter().map(load).collect::<engine::Result<_>>()?
    } else {
        Model::load_each(backends, &base, storage)?
    };
    let longest = encoded.prompt.longest(&encoded.labels);
    for model in &mut models {
        model.set_context(longest);
    }
    let trainable = match body {
        Some(Body::Weights) => Some(Trainable::weights(&base)?),
        Some(Body::Lora(lora)) => Some(Adapter::new(lora, &base.config, recipe.seed).into()),
        None => None,
    };
    let (config, config_json) = (base.config.clone(), base.config_json()?);
    let (source, name, sha256) = (plan.base.clone(), base.name().to_owned(), base.sha256().to_owned());
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
    let fitted = match trainable {
        Some(trainable) => Training::new(models, trainable, lr, &encoded, recipe, state, observer)?
            .run(checkpoint, plan, out, started)?,
        None => fit_head(&models[0], &encoded, data, started, observer)?,
    };
    let manifest = Manifest {
        method,
        base: BaseRecord { source, name, sha256 },
        prompt: encoded.prompt,
        device,
        trainable: fitted.values,
        parameters: config.parameters(),
        steps: fitted.steps,
        best_step: fitted.best_step,
        ..judged(encoded.labels, &fitted.log_probs, &encoded.valid_labels, data, recipe)
    };
    let base = FromBase {
        config: &config,
        config_json: &config_json,
        tokenizer: &tokenizer,
        draft: encoded.draft.as_ref(),
    };
    let seconds = begun.elapsed().as_secs_f64();
    let run = RunFolder::write(out, manifest, &fitted.trained, Some(base), Measured::until_now(seconds))?;
    Ok(Outcome { run, steps: fitted.taken, seconds, device_bytes: fitted.device_bytes })
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

/// What the training takes on the first device, if every device has room for it.
fn memory<B: Backend>(
    backends: &[B],
    base: &BaseModel,
    storage: Storage,
    body: &Body,
    encoded: &Encoded,
    recipe: &Recipe,
) -> Result<MemoryPlan> {
    let head = if base.config.is_encoder() { head_size(encoded, &base.config) } else { 0 };
    let sizes = encoded.pass_sizes(recipe, backends.len());
    let plan = |backend| MemoryPlan::new(backend, base, storage, (body, head), sizes);
    let plans = backends.iter().map(plan).collect::<engine::Result<Vec<_>>>()?;
    plans.iter().try_for_each(MemoryPlan::check)?;
    Ok(plans[0])
}

/// Transfer learning on the model as it is: no steps.
fn fit_head<B: Backend>(
    model: &Model<B>,
    encoded: &Encoded,
    data: &TrainData,
    started: Started,
    observer: &mut dyn Observer,
) -> Result<Fitted> {
    let values = head_size(encoded, model.config());
    observer.started(&Started { trainable: values, ..started });
    let found = transfer(model, encoded, data.valid_file.is_some(), observer)?;
    Ok(Fitted {
        trained: Trained::Head(found.head),
        values,
        steps: 0,
        taken: 0,
        best_step: 0,
        log_probs: found.log_probs,
        device_bytes: model.backend().peak_bytes(),
    })
}

/// Values of a head on the model's features.
fn head_size(encoded: &Encoded, config: &ModelConfig) -> usize {
    encoded.labels.len() * (config.hidden_size + 1)
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
