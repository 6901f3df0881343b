//! `frontdesk train`: labelled queries in, a run folder out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use engine::{Balance, Projection, Schedule};
use formats::BaseModel;
use kernels::Backend;
use router::{Method, Outcome, Plan, Recipe, RunFolder, TrainData, peak_memory};
use routing::ReadOptions;

use crate::Done;
use crate::device::{DeviceArgs, on_device};
use crate::progress::Training;
use crate::terminal::{Output, say};
use crate::values;
use crate::verbs::{FieldArgs, auto, base_path};

/// The base that stands for several.
const AUTO: &str = "auto";

/// Flags of `train`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Labelled queries: JSON, JSON lines, CSV, TSV or Parquet.
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    pub(crate) data: Option<PathBuf>,
    /// Labelled queries to validate on; without it some of the data is held out.
    #[arg(long, value_name = "FILE")]
    pub(crate) valid: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fields: FieldArgs,
    /// Base model: a name of the catalogue, a Hugging Face id, or a path; `auto` tries several and keeps the best.
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    pub(crate) base: String,
    /// Time for `--base auto`, as 90s, 10m or 2h; a candidate that would take longer is given up.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub(crate) budget: Duration,
    /// Folder to write; it must not hold a run yet.
    #[arg(long, value_name = "DIR", default_value = "runs/latest")]
    pub(crate) out: PathBuf,
    /// Go on with the interrupted run in --out, with the settings it was started with.
    #[arg(long)]
    pub(crate) resume: bool,
    /// What trains; by default lora in a decoder, a head on an encoder.
    #[arg(long, value_enum)]
    pub(crate) method: Option<MethodArg>,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Seconds between checkpoints; changes nothing in the result.
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = values::seconds)]
    pub(crate) checkpoint_seconds: f32,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// What trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodArg {
    /// Small matrices beside the frozen weights.
    Lora,
    /// The same beside weights that stay in 4 bits, in training and in routing.
    Qlora,
    /// Every weight.
    Full,
    /// A linear head on what the frozen model makes of a query: seconds.
    Head,
    /// A linear model of n-grams, without any base model.
    Linear,
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScheduleArg {
    /// It does not.
    Constant,
    /// In a straight line to zero.
    Linear,
    /// Half a cosine to zero.
    Cosine,
}

/// What is done about rare labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BalanceArg {
    /// Nothing.
    None,
    /// Their examples weigh more in the loss.
    Weight,
    /// Their examples are drawn more often.
    Sample,
}

/// How to train; what is not given has a default that works on every data set tried.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct RecipeArgs {
    /// Rank of the LoRA matrices.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) rank: Option<u32>,
    /// The update is scaled by alpha / rank; the rank by default.
    #[arg(long, value_name = "A", value_parser = values::above_zero::<f32>)]
    pub(crate) alpha: Option<f32>,
    /// Scale by alpha / sqrt(rank) instead.
    #[arg(long)]
    pub(crate) rslora: bool,
    /// Projections that train, by name; all seven by default.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
    /// Passes over the examples; 3, and up to 10 where there are few.
    #[arg(long, value_name = "N", value_parser = values::above_zero::<f32>)]
    pub(crate) epochs: Option<f32>,
    /// Stop after this many steps.
    #[arg(long, value_name = "N", value_parser = values::count::<u64>)]
    pub(crate) max_steps: Option<u64>,
    /// Learning rate at its highest.
    #[arg(long, value_name = "X", value_parser = values::above_zero::<f32>)]
    pub(crate) lr: Option<f32>,
    /// How the learning rate falls.
    #[arg(long, value_enum)]
    pub(crate) schedule: Option<ScheduleArg>,
    /// Share of the steps in which the learning rate rises.
    #[arg(long, value_name = "X", value_parser = values::share::<f32>)]
    pub(crate) warm_up: Option<f32>,
    /// Weight decay.
    #[arg(long, value_name = "X", value_parser = values::from_zero::<f32>)]
    pub(crate) weight_decay: Option<f32>,
    /// Examples a step; 32, or 16 where there are few.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: Option<u32>,
    /// Tokens computed at once; lower it to save memory, the result stays the same.
    #[arg(long, value_name = "N", value_parser = values::count::<usize>)]
    pub(crate) rows_per_pass: Option<usize>,
    /// Keep only the input of each block of a decoder and compute the rest again in the backward pass: less memory,
    /// more time, the same result.
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Seed of everything random.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// What is done about rare labels.
    #[arg(long, value_enum)]
    pub(crate) balance: Option<BalanceArg>,
    /// Steps between validations.
    #[arg(long, value_name = "N", value_parser = values::count::<u64>)]
    pub(crate) validate_every: Option<u64>,
    /// Stop after this many validations without a better macro-F1.
    #[arg(long, value_name = "N", value_parser = values::count::<u32>)]
    pub(crate) patience: Option<u32>,
    /// System message before every query, when the data has none of its own.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Longest query in tokens; more is cut off.
    #[arg(long, value_name = "N", value_parser = values::count::<usize>)]
    pub(crate) max_tokens: Option<usize>,
    /// Share of the automatically routed queries that must be right.
    #[arg(long, value_name = "X", value_parser = values::share::<f64>)]
    pub(crate) target_precision: Option<f64>,
}

impl RecipeArgs {
    pub(crate) fn recipe(&self) -> anyhow::Result<Recipe> {
        let mut recipe = Recipe::default();
        let set = |target: &mut f32, value: Option<f32>| *target = value.unwrap_or(*target);
        if let Some(rank) = self.rank {
            recipe.lora.alpha = recipe.lora.alpha / recipe.lora.rank as f32 * rank as f32;
            recipe.lora.rank = rank as usize;
        }
        set(&mut recipe.lora.alpha, self.alpha);
        recipe.lora.rslora |= self.rslora;
        if !self.targets.is_empty() {
            recipe.lora.projections = projections(&self.targets)?;
        }
        recipe.epochs = self.epochs.or(recipe.epochs);
        recipe.lr = self.lr.or(recipe.lr);
        set(&mut recipe.optimizer.warm_up, self.warm_up);
        set(&mut recipe.optimizer.weight_decay, self.weight_decay);
        recipe.max_steps = self.max_steps.or(recipe.max_steps);
        recipe.batch = self.batch.map(|batch| batch as usize).or(recipe.batch);
        recipe.rows_per_pass = self.rows_per_pass.or(recipe.rows_per_pass);
        recipe.recompute = self.recompute;
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        recipe.validate_every = self.validate_every.or(recipe.validate_every);
        recipe.patience = self.patience.or(recipe.patience);
        recipe.max_tokens = self.max_tokens.unwrap_or(recipe.max_tokens);
        recipe.target_precision = self.target_precision.unwrap_or(recipe.target_precision);
        if let Some(system) = &self.system {
            recipe.system.clone_from(system);
        }
        if let Some(schedule) = self.schedule {
            recipe.optimizer.schedule = match schedule {
                ScheduleArg::Constant => Schedule::Constant,
                ScheduleArg::Linear => Schedule::Linear,
                ScheduleArg::Cosine => Schedule::Cosine,
            };
        }
        if let Some(balance) = self.balance {
            recipe.balance = match balance {
                BalanceArg::None => Balance::None,
                BalanceArg::Weight => Balance::Weight,
                BalanceArg::Sample => Balance::Sample,
            };
        }
        Ok(recipe)
    }
}

/// A time such as `90s`, `10m` or `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; write it as 90s, 10m or 2h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        _ => return Err(wrong()),
    };
    let count: f64 = text[..text.len() - 1].trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(count * seconds).map_err(|_| wrong())
}

fn projections(names: &[String]) -> anyhow::Result<Vec<Projection>> {
    let known = || Projection::ALL.map(Projection::name).join(", ");
    for name in names {
        let found = Projection::ALL.iter().any(|p| p.name() == name);
        anyhow::ensure!(found, "--targets names `{name}`, expected some of {}", known());
    }
    Ok(Projection::ALL.into_iter().filter(|p| names.iter().any(|name| name == p.name())).collect())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    if args.resume
        && let Some(run) = RunFolder::finished(&args.out)?
    {
        say!("this run is finished already");
        writeln!(Output, "{}", run.path.display())?;
        return Ok(Done::Fully);
    }
    let outcome = train(args)?;
    say!(
        "next: frontdesk eval --model {0} --data TEST_FILE, or frontdesk route --model {0} \"a query\"",
        outcome.run.path.display()
    );
    writeln!(Output, "{}", outcome.run.path.display())?;
    Ok(Done::Fully)
}

/// Trains as the flags say and reports the result on stderr.
pub(crate) fn train(args: &Args) -> anyhow::Result<Outcome> {
    args.device.check_training()?;
    let outcome = if args.base == AUTO && !args.resume { auto::run(args, args.budget)? } else { one(args)? };
    let (manifest, seconds) = (&outcome.run.manifest, outcome.seconds);
    let memory = |what: &str, bytes: Option<u64>| {
        bytes.map_or_else(String::new, |bytes| format!(", peak {what} {:.2} GB", bytes as f64 / 1e9))
    };
    let memory =
        memory("memory", peak_memory()) + &memory("device memory", outcome.device_bytes.map(|b| b as u64));
    let did = match manifest.method {
        Method::Lora | Method::Qlora | Method::Full => {
            format!("trained {} step{}", outcome.steps, if outcome.steps == 1 { "" } else { "s" })
        }
        Method::Head => "fitted a head".to_owned(),
        Method::Linear => "fitted a linear model".to_owned(),
    };
    let kept = match manifest.method {
        Method::Lora | Method::Qlora | Method::Full => format!("kept step {}: ", manifest.best_step),
        Method::Head | Method::Linear => String::new(),
    };
    say!(
        "{did} in {seconds:.1} s on {}{memory}; {kept}validation accuracy {:.1}%, macro-F1 {:.3}",
        manifest.device,
        100.0 * manifest.validation.accuracy,
        manifest.validation.macro_f1,
    );
    Ok(outcome)
}

/// Trains the base that is named.
fn one(args: &Args) -> anyhow::Result<Outcome> {
    let plan = if args.resume { Plan::of_interrupted(&args.out)? } else { plan(args)? };
    let data = data(&plan)?;
    if plan.recipe.method == Some(Method::Linear) {
        return Ok(router::train_linear(&data, &plan, &args.out, &mut Training::new())?);
    }
    let base = BaseModel::open(base_path(&plan.base)?)?;
    on_device!(args.device, start, base, &data, &plan, &args.out, args.resume)
}

/// The examples of a plan.
pub(crate) fn data(plan: &Plan) -> anyhow::Result<TrainData> {
    let fields = ReadOptions { text_field: plan.text_field.clone(), label_field: plan.label_field.clone() };
    let data = routing::read(&plan.data, &fields)?;
    let valid = plan.valid.as_ref().map(|valid| routing::read(valid, &fields)).transpose()?;
    Ok(TrainData::new(data, valid, &fields, &plan.recipe)?)
}

fn start<B: Backend>(
    backend: B,
    base: BaseModel,
    data: &TrainData,
    plan: &Plan,
    out: &Path,
    resume: bool,
) -> anyhow::Result<Outcome> {
    Ok(router::train(backend, base, data, plan, out, resume, &mut Training::new())?)
}

/// The plan that the flags ask for.
pub(crate) fn plan(args: &Args) -> anyhow::Result<Plan> {
    let fields = args.fields.options();
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let method = args.method.map(|method| match method {
        MethodArg::Lora => Method::Lora,
        MethodArg::Qlora => Method::Qlora,
        MethodArg::Full => Method::Full,
        MethodArg::Head => Method::Head,
        MethodArg::Linear => Method::Linear,
    });
    let data = args.data.as_ref().ok_or_else(|| anyhow::anyhow!("--data FILE is missing"))?;
    Ok(Plan {
        data: absolute(data),
        valid: args.valid.as_ref().map(absolute),
        text_field: fields.text_field,
        label_field: fields.label_field,
        base: args.base.clone(),
        recipe: Recipe { method, ..args.recipe.recipe()? },
        checkpoint_seconds: args.checkpoint_seconds,
    })
}
