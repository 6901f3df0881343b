//! `frontdesk demo`: the whole job once, on the bundled sample.

use std::path::{Path, PathBuf};

use anyhow::Context;
use formats::{BaseModel, store};
use kernels::{Backend, Encoding};
use router::Query;
use routing::ReadOptions;
use routing::doctor::{CheckOptions, check};

use crate::Done;
use crate::device::{DeviceArgs, on_device};
use crate::recipe::RecipeArgs;
use crate::terminal::{Output, say};
use crate::verbs::{FieldArgs, against, base_path, eval, open_router, route, route::Routed, train};

const TRAIN: &str = include_str!("../../../../examples/insurance/train.json");
const TEST: &str = include_str!("../../../../examples/insurance/test.json");
const MODEL: &str = "smollm2-135m";
/// What is asked of automatic routing: as much as the few held-out rows of the sample can show.
const TARGET_PRECISION: f64 = 0.85;
/// Passes over the sample, fewer than `train` would make of so few rows: the demo shall end in minutes on two cores.
const EPOCHS: f32 = 5.0;
/// In none of the two files.
const QUERIES: [&str; 3] = [
    "someone reversed into my parked car at the supermarket and drove off, what now",
    "why did you take two payments from my account this month??",
    "please stop the policy at the end of the month, I have sold the house",
];

/// Flags of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for the data, the run and the report; an earlier demo's is replaced.
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    let place = |name: &str| args.out.join(name);
    let (train_file, test_file, run) = (place("train.json"), place("test.json"), place("run"));
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("{}: cannot be created", args.out.display()))?;
    if run.exists() {
        std::fs::remove_dir_all(&run).with_context(|| format!("{}: cannot be removed", run.display()))?;
    }
    store::write_atomically(&train_file, TRAIN.as_bytes())?;
    store::write_atomically(&test_file, TEST.as_bytes())?;

    step(1, "the base model", &format!("frontdesk pull {MODEL}"));
    let base = base_path(MODEL)?;
    say!("{}", base.display());

    step(2, "the data", &format!("frontdesk check {} {}", train_file.display(), test_file.display()));
    let read = |file: &Path| routing::read(file, &ReadOptions::default());
    let tokenizer = BaseModel::open(&base)?.tokenizer()?;
    let count = |text: &str| tokenizer.encode_plain(text).map_or(text.len(), |ids| ids.len());
    let diagnosis = check(&[read(&train_file)?, read(&test_file)?], &CheckOptions::default(), Some(&count));
    writeln!(Output, "{}", diagnosis.render())?;

    let train_args = train::Args {
        data: Some(train_file),
        valid: None,
        fields: FieldArgs::default(),
        base: MODEL.to_owned(),
        budget: std::time::Duration::ZERO,
        out: run.clone(),
        resume: false,
        method: None,
        recipe: RecipeArgs {
            epochs: args.recipe.epochs.or(Some(EPOCHS)),
            target_precision: args.recipe.target_precision.or(Some(TARGET_PRECISION)),
            ..args.recipe.clone()
        },
        checkpoint_seconds: 30.0,
        device: args.device.clone(),
    };
    step(
        3,
        "fine-tuning",
        &format!("frontdesk train --data {0}/train.json --out {0}/run --epochs {EPOCHS}", args.out.display()),
    );
    train::train(&train_args)?;

    let eval_args = eval::Args {
        model: run.clone(),
        data: test_file,
        fields: FieldArgs::default(),
        train_data: None,
        base: None,
        report: Some(place("report")),
        predictions: Some(place("predictions.jsonl")),
        limit: None,
        min_accuracy: None,
        oos_label: None,
        cascade: None,
        json: false,
        against: against::Args::default(),
        device: args.device.first(),
    };
    let command = format!(
        "frontdesk eval --model {0}/run --data {0}/test.json --report {0}/report",
        args.out.display()
    );
    step(4, "evaluation", &command);
    eval::run(&eval_args)?;

    step(5, "routing", &format!("frontdesk route --model {} \"…\"", run.display()));
    on_device!(args.device.first(), route_three, &run, args.device.encoding())?;

    say!();
    say!("The report is {}.", place("report").join("report.html").display());
    say!("With your own data: frontdesk check FILE, then frontdesk train --data FILE --out runs/mine.");
    Ok(Done::Fully)
}

fn step(number: u32, what: &str, command: &str) {
    say!("\n── {number}/5 {what} · {command}");
}

fn route_three<B: Backend>(backend: B, run: &Path, encoding: Encoding) -> anyhow::Result<()> {
    let mut router = open_router(backend, run, None, encoding)?;
    let answers = router.route(&QUERIES.map(Query::new))?;
    for (text, answer) in QUERIES.iter().zip(answers) {
        writeln!(Output, "{}", route::to_line(&router, text, &Routed::alone(&router, answer)))?;
    }
    Ok(())
}
