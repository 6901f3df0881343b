//! `frontdesk train`: labelled queries in, a run folder out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use formats::BaseModel;
use kernels::Backend;
use router::{Method, Outcome, Plan, Recipe, RunFolder, TrainData, peak_memory};
use routing::ReadOptions;

use crate::Done;
use crate::device::{DeviceArgs, on_devices};
use crate::progress::Training;
use crate::recipe::RecipeArgs;
use crate::terminal::{Output, say};
use crate::values;
use crate::verbs::{FieldArgs, auto, base_path};

/// The base that stands for several.
const AUTO: &str = "auto";
/// The base where none is named.
const DEFAULT_BASE: &str = "smollm2-135m";

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
    #[arg(long, value_name = "MODEL", default_value = DEFAULT_BASE)]
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

impl From<MethodArg> for Method {
    fn from(method: MethodArg) -> Self {
        match method {
            MethodArg::Lora => Self::Lora,
            MethodArg::Qlora => Self::Qlora,
            MethodArg::Full => Self::Full,
            MethodArg::Head => Self::Head,
            MethodArg::Linear => Self::Linear,
        }
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
    let outcome = if args.base == AUTO && !args.resume {
        args.device.check_training(Method::Lora)?;
        auto::run(args, args.budget)?
    } else {
        one(args)?
    };
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
    let plan = if args.resume { interrupted(args)? } else { plan(args)? };
    if plan.recipe.method == Some(Method::Linear) {
        return Ok(router::train_linear(&data(&plan)?, &plan, &args.out, &mut Training::new())?);
    }
    let device = args.device.in_precision(plan.precision.as_deref())?;
    // To open a GPU takes about as long as to read what it is to learn.
    let (opened, read) = std::thread::scope(|scope| {
        let opening = scope.spawn(|| device.open());
        let read = (|| {
            // First what costs nothing to find wrong: a base may have to be downloaded.
            let data = data(&plan)?;
            let base = BaseModel::open(base_path(&plan.base)?)?;
            device.check_training(plan.recipe.method_for(&base))?;
            base.sha256();
            anyhow::Ok((data, base))
        })();
        (opening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), read)
    });
    let (data, base) = read?;
    on_devices!(opened, start, base, &data, &plan, &args.out, args.resume)
}

/// The plan of the interrupted run, which other flags must not contradict: it goes on as it began.
fn interrupted(args: &Args) -> anyhow::Result<Plan> {
    let begun = Plan::of_interrupted(&args.out)?;
    let method = args.method.map(Method::from).or(begun.recipe.method);
    let base = if args.base == DEFAULT_BASE { begun.base.clone() } else { args.base.clone() };
    let asked = Plan {
        data: args.data.as_ref().map_or_else(|| begun.data.clone(), |data| absolute(data)),
        valid: args.valid.as_ref().map(|valid| absolute(valid)).or_else(|| begun.valid.clone()),
        recipe: Recipe { method, ..args.recipe.over(begun.recipe.clone())? },
        precision: args.device.named_precision().or_else(|| begun.precision.clone()),
        base,
        ..begun.clone()
    };
    if asked != begun {
        let (was, is) = (serde_json::to_value(&begun)?, serde_json::to_value(&asked)?);
        anyhow::bail!(
            "{}: the run began with {}: leave those flags out to go on, or start another run with them",
            args.out.display(),
            differences(&was, &is).join(", ")
        );
    }
    Ok(begun)
}

/// What differs between two settings, as `name value, not other value`.
fn differences(was: &serde_json::Value, is: &serde_json::Value) -> Vec<String> {
    let fields = |value: &serde_json::Value| value.as_object().cloned().unwrap_or_default();
    let (was, is) = (fields(was), fields(is));
    let pairs = was.iter().filter_map(|(name, was)| Some((name, was, is.get(name)?)));
    pairs
        .filter(|(_, was, is)| was != is)
        .flat_map(|(name, was, is)| {
            let inner = differences(was, is);
            if inner.is_empty() { vec![format!("{name} {was}, not {is}")] } else { inner }
        })
        .collect()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The examples of a plan.
pub(crate) fn data(plan: &Plan) -> anyhow::Result<TrainData> {
    let fields = ReadOptions { text_field: plan.text_field.clone(), label_field: plan.label_field.clone() };
    let data = routing::read(&plan.data, &fields)?;
    let valid = plan.valid.as_ref().map(|valid| routing::read(valid, &fields)).transpose()?;
    Ok(TrainData::new(data, valid, &fields, &plan.recipe)?)
}

fn start<B: Backend>(
    backends: Vec<B>,
    base: BaseModel,
    data: &TrainData,
    plan: &Plan,
    out: &Path,
    resume: bool,
) -> anyhow::Result<Outcome> {
    Ok(router::train(backends, base, data, plan, out, resume, &mut Training::new())?)
}

/// The plan that the flags ask for.
pub(crate) fn plan(args: &Args) -> anyhow::Result<Plan> {
    let fields = args.fields.options();
    let method = args.method.map(Method::from);
    let data = args.data.as_ref().ok_or_else(|| anyhow::anyhow!("--data FILE is missing"))?;
    Ok(Plan {
        data: absolute(data),
        valid: args.valid.as_ref().map(|valid| absolute(valid)),
        text_field: fields.text_field,
        label_field: fields.label_field,
        base: args.base.clone(),
        recipe: Recipe { method, ..args.recipe.recipe()? },
        precision: args.device.named_precision(),
        checkpoint_seconds: args.checkpoint_seconds,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        args: Args,
    }

    fn flags(words: &[&str]) -> Args {
        Flags::parse_from(["train"].iter().chain(words)).args
    }

    #[test]
    fn an_interrupted_run_goes_on_as_it_began_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        std::fs::create_dir_all(out.join("checkpoint")).unwrap();
        let begun = ["--data", "a.csv", "--rank", "12", "--lr", "0.01", "--precision", "f32"];
        let begun = plan(&flags(&begun)).unwrap();
        std::fs::write(out.join("checkpoint/plan.json"), serde_json::to_vec(&begun).unwrap()).unwrap();
        let out = out.to_str().unwrap();
        let resume = |more: &[&str]| interrupted(&flags(&[&["--resume", "--out", out], more].concat()));
        for same in [&[][..], &["--data", "a.csv"], &["--rank", "12"], &["--base", DEFAULT_BASE]] {
            assert_eq!(resume(same).unwrap(), begun, "{same:?}");
        }
        for (other, named) in [
            (&["--rank", "16"][..], "rank 12, not 16"),
            (&["--epochs", "9"], "epochs null, not 9.0"),
            (&["--data", "b.csv"], "b.csv"),
            (&["--method", "head"], "method null, not \"head\""),
            (&["--base", "distilbert"], "not \"distilbert\""),
            (&["--precision", "bf16"], "precision \"f32\", not \"bf16\""),
        ] {
            let error = resume(other).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("leave those flags out"), "{error}");
        }
    }
}
