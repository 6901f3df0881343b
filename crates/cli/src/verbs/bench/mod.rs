//! `frontdesk bench`: the measured speed of training and routing on this machine.

mod head;
mod labels;
mod scaling;
mod synthetic;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use engine::{Model, Storage};
use formats::{BaseModel, ModelConfig};
use kernels::Backend;
use router::{Method, Observer, Plan, Query, Recipe, StepReport, TrainData, peak_memory};
use routing::ReadOptions;
use serde_json::json;

use crate::Done;
use crate::device::{DeviceArgs, on_device, on_devices};
use crate::recipe::RecipeArgs;
use crate::terminal::Output;
use crate::values;
use crate::verbs::{FieldArgs, base_path, open_router};

pub(crate) use head::head_speed;

/// Flags of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is measured.
    #[arg(value_enum)]
    what: What,
    /// Labelled queries: for `train` to train on, for `route` to route.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    fields: FieldArgs,
    /// Run folder of a trained router, for `route`: an untrained one is unsure and searches longer.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Base model, for `train`; `random:SHAPE` needs neither a file nor --data: `random:llama-3.2-1b`,
    /// `random:smollm2-135m:bf16`.
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    base: String,
    /// With a random base, examples of so many tokens that all carry loss, instead of BANKING77's lengths.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    example_tokens: Option<u32>,
    /// Steps, or hundreds of queries, that are timed.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = values::count::<u64>)]
    repeats: u64,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    fn data(&self) -> anyhow::Result<&Path> {
        self.data.as_deref().ok_or_else(|| anyhow::anyhow!("--data FILE is missing"))
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Training steps.
    Train,
    /// One query at a time, then many at once.
    Route,
    /// Three batches and three sizes of the data set, on a random base: how time and memory grow.
    Scaling,
}

/// What the name of a base with random weights begins with.
const RANDOM: &str = "random:";
/// Steps before the clock starts.
const WARM_UP: u64 = 2;

/// Queries routed together for the throughput: 64 on a processor.
fn at_once<B: Backend>(backend: &B) -> usize {
    backend.rows_at_once() / 8
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    match args.what {
        What::Train => on_devices!(args.device.open(), measure_training, args),
        What::Route => on_device!(args.device, measure_routing, args),
        What::Scaling => on_device!(args.device, measure_scaling, args),
    }
}

/// How long single queries took.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn push(&mut self, begun: Instant) {
        self.0.push(begun.elapsed().as_secs_f64() * 1e3);
    }

    /// The milliseconds that so large a share of the queries stayed below.
    fn at(&self, share: f64) -> f64 {
        quantile_of(self.0.clone(), share)
    }
}

/// What a training came to.
struct Timed {
    clock: Clock,
    config: ModelConfig,
    /// Most bytes of a device's own memory.
    device_bytes: Option<usize>,
}

/// Remembers when each step ended.
#[derive(Default)]
struct Clock(Vec<(Instant, StepReport)>);

impl Observer for Clock {
    fn stepped(&mut self, step: &StepReport) {
        self.0.push((Instant::now(), *step));
    }
}

impl Clock {
    /// The steps after the warm-up, each with its seconds.
    fn timed(&self) -> Vec<(f64, StepReport)> {
        let later = self.0.windows(2).skip(WARM_UP as usize - 1);
        later.map(|ends| ((ends[1].0 - ends[0].0).as_secs_f64(), ends[1].1)).collect()
    }

    /// How long a step took, in the median.
    fn seconds_per_step(&self) -> f64 {
        quantile_of(self.timed().into_iter().map(|(seconds, _)| seconds).collect(), 0.5)
    }

    /// So much of something a second, in the median step; `of` says how much of it a step had.
    fn per_second(&self, of: fn(&StepReport) -> usize) -> f64 {
        quantile_of(self.timed().into_iter().map(|(seconds, step)| of(&step) as f64 / seconds).collect(), 0.5)
    }
}

fn quantile_of(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    routing::quantile(&values, share).unwrap_or(0.0)
}

fn measure_training<B: Backend>(backends: Vec<B>, args: &Args) -> anyhow::Result<Done> {
    let (device, devices) = (router::device_name(&backends), backends.len());
    let mut result = training_speed(backends, args)?;
    result["devices"] = json!(devices);
    print(result, &device, args)
}

fn measure_routing<B: Backend>(backend: B, args: &Args) -> anyhow::Result<Done> {
    let device = backend.name();
    let result = match (&args.model, args.base.strip_prefix(RANDOM)) {
        (Some(model), _) => routing_speed(backend, args, model)?,
        (None, Some(shape)) => {
            let (recipe, encoding) = (args.recipe.recipe()?, args.device.encoding());
            labels::routing_speed(backend, shape, &recipe, encoding, args.repeats as usize)?
        }
        (None, None) => anyhow::bail!("--model DIR is missing"),
    };
    print(result, &device, args)
}

fn measure_scaling<B: Backend>(backend: B, args: &Args) -> anyhow::Result<Done> {
    args.device.check_training(Method::Lora)?;
    let (device, shape) = (backend.name(), args.base.strip_prefix(RANDOM).unwrap_or("smollm2-135m"));
    let result = scaling::scaling(backend, shape, &args.recipe.recipe()?, args.repeats)?;
    print(result, &device, args)
}

fn print(mut result: serde_json::Value, device: &str, args: &Args) -> anyhow::Result<Done> {
    result["device"] = json!(device);
    result["peak_memory_bytes"] = json!(peak_memory());
    if args.json {
        writeln!(Output, "{}", serde_json::to_string_pretty(&result)?)?;
    } else {
        for (key, value) in result.as_object().into_iter().flatten() {
            writeln!(Output, "{key:<20} {value}")?;
        }
    }
    Ok(Done::Fully)
}

fn training_speed<B: Backend>(backends: Vec<B>, args: &Args) -> anyhow::Result<serde_json::Value> {
    args.device.check_training(Method::Lora)?;
    let peak = backends.iter().map(B::peak_flops).sum();
    let recipe = args.recipe.recipe()?;
    let (timed, ceiling) = if let Some(shape) = args.base.strip_prefix(RANDOM) {
        anyhow::ensure!(args.data.is_none(), "--data needs a tokenizer, which random weights do not have");
        let tokens = args.example_tokens.map(|tokens| tokens as usize);
        let (backends, ceiling) = linear_ceiling(backends, &BaseModel::random(shape)?)?;
        (synthetic::timed_steps(backends, shape, tokens, &recipe, args.repeats)?, ceiling)
    } else {
        let (base, data) = (base_path(&args.base)?, args.data()?);
        let (backends, ceiling) = linear_ceiling(backends, &BaseModel::open(&base)?)?;
        (timed_steps(backends, data, &args.fields, &base, recipe, args.repeats)?, ceiling)
    };
    Ok(training(&timed, peak, ceiling))
}

/// Rows a second of the linear layers alone on so many devices, as measured on the first.
fn linear_ceiling<B: Backend>(mut backends: Vec<B>, base: &BaseModel) -> anyhow::Result<(Vec<B>, f64)> {
    let devices = backends.len() as f64;
    let model = Model::load(backends.remove(0), base, Storage::AsStored)?;
    let ceiling = devices * model.linear_ceiling();
    backends.insert(0, model.into_backend());
    Ok((backends, ceiling))
}

/// Training examples a second, over this many steps.
pub(crate) fn examples_per_s<B: Backend>(
    backends: Vec<B>,
    data: &Path,
    fields: &FieldArgs,
    base: &Path,
    recipe: Recipe,
    steps: u64,
) -> anyhow::Result<f64> {
    let timed = timed_steps(backends, data, fields, base, recipe, steps)?;
    Ok(timed.clock.per_second(|step| step.examples))
}

/// Trains so many steps after the warm-up.
fn timed_steps<B: Backend>(
    backends: Vec<B>,
    data: &Path,
    fields: &FieldArgs,
    base: &Path,
    mut recipe: Recipe,
    steps: u64,
) -> anyhow::Result<Timed> {
    let folder = tempfile::tempdir()?;
    let model = BaseModel::open(base)?;
    let config = model.config.clone();
    let fields = fields.options();
    recipe.method = recipe.method.or(Some(Method::Lora));
    recipe.max_steps = Some(WARM_UP + steps);
    // Every step is timed alone: no validation in between, and hardly any at the end.
    (recipe.validate_every, recipe.max_validation) = (Some(u64::MAX), 8);
    let rows = TrainData::new(routing::read(data, &fields)?, None, &fields, &recipe)?;
    let plan = plan_of(data, &fields, base, recipe, None);
    let mut clock = Clock::default();
    let out = folder.path().join("run");
    let outcome = router::train(backends, model, &rows, &plan, &out, false, &mut clock)?;
    Ok(Timed { clock, config, device_bytes: outcome.device_bytes })
}

/// A run that is only timed.
fn plan_of(
    data: &Path,
    fields: &ReadOptions,
    base: &Path,
    recipe: Recipe,
    precision: Option<String>,
) -> Plan {
    Plan {
        data: data.to_owned(),
        valid: None,
        text_field: fields.text_field.clone(),
        label_field: fields.label_field.clone(),
        base: base.display().to_string(),
        recipe,
        precision,
        checkpoint_seconds: f32::from(u16::MAX),
    }
}

/// What a training came to; `peak` in operations a second, `ceiling` in rows a second.
fn training(Timed { clock, config, device_bytes }: &Timed, peak: f64, ceiling: f64) -> serde_json::Value {
    let rows_per_s = clock.per_second(|step| step.rows);
    // Forward and input gradient of every frozen linear layer, two operations a weight each.
    let linear = config.parameters()
        - config.vocab_size * config.hidden_size * if config.tied_embeddings { 1 } else { 2 };
    json!({
        "examples_per_s": clock.per_second(|step| step.examples),
        "tokens_per_s": clock.per_second(|step| step.tokens),
        "rows_per_s": rows_per_s,
        "seconds_per_step": clock.seconds_per_step(),
        "ceiling_share": rows_per_s / ceiling,
        "peak_share": 4.0 * linear as f64 * rows_per_s / peak,
        "device_memory_bytes": device_bytes,
    })
}

fn routing_speed<B: Backend>(backend: B, args: &Args, run: &Path) -> anyhow::Result<serde_json::Value> {
    let at_once = at_once(&backend);
    let mut router = open_router(backend, run, None, args.device.encoding())?;
    let data = args.data()?;
    let rows = routing::read(data, &args.fields.options())?.examples;
    let queries: Vec<Query<'_>> = rows.iter().take(100 * args.repeats as usize).map(Query::from).collect();
    anyhow::ensure!(!queries.is_empty(), "{} holds no queries", data.display());
    router.route(&queries[..queries.len().min(8)])?;
    let mut times = Times::default();
    for query in &queries {
        let begun = Instant::now();
        router.route(std::slice::from_ref(query))?;
        times.push(begun);
    }
    let begun = Instant::now();
    for group in queries.chunks(at_once) {
        router.route(group)?;
    }
    let per_second = queries.len() as f64 / begun.elapsed().as_secs_f64();
    Ok(
        json!({ "p50_ms": times.at(0.5), "p95_ms": times.at(0.95), "queries_per_s": per_second, "queries": queries.len() }),
    )
}
