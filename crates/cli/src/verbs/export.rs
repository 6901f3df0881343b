//! `frontdesk export`: a trained router in the files of other programs, behind a parity gate.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use formats::store::StagedFolder;
use formats::{BaseModel, FileType};
use kernels::{Backend, Encoding};
use router::{Answer, Card, Export, Gate, Manifest, MostFlips, Router, RunFolder, Target, TrainData};
use routing::Example;
use serde_json::json;

use crate::Done;
use crate::device::{DeviceArgs, Precision, on_device};
use crate::progress;
use crate::terminal::{Output, say};
use crate::values;
use crate::verbs::{FieldArgs, open_base};

/// Flags of `export`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run folder of a trained router.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What the export is for.
    #[arg(long, value_enum)]
    to: To,
    /// How it stores its weights; the usual way of its form when not given.
    #[arg(long, value_enum)]
    quant: Option<Quant>,
    /// Folder of the export; it must not be there yet, or be empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Base model, when it is elsewhere than the run says.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Labelled queries that run and export both answer; the run's own validation rows when not given.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    fields: FieldArgs,
    /// Answer only the first N rows.
    #[arg(long, value_name = "N", value_parser = values::count::<usize>)]
    limit: Option<usize>,
    /// Rows whose top label may change: a number, or a share such as 0.01 or 1%; with more the exit code is 1 and
    /// nothing is left. 3% for 4 and 5 bits, otherwise 1%, when not given.
    #[arg(long, value_name = "N")]
    max_flips: Option<MostFlips>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Names of [`Target`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum To {
    /// A Hugging Face folder with the adapter merged into the weights.
    Merged,
    /// One GGUF file with the adapter merged into the weights, for llama.cpp.
    Gguf,
    /// The same beside a Modelfile with the frozen prompt, for Ollama.
    Ollama,
    /// The adapter alone, for PEFT.
    Peft,
    /// The adapter alone, for llama.cpp.
    GgufLora,
}

/// Names of [`FileType`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Quant {
    /// 16-bit floats.
    F16,
    /// 16-bit floats with the range of 32-bit ones, and less precise.
    Bf16,
    /// 8.5 bits a weight.
    #[value(name = "q8_0")]
    Q8,
    /// About 5 bits a weight.
    #[value(name = "q4_k_m")]
    Q4,
    /// About 6 bits a weight.
    #[value(name = "q5_k_m")]
    Q5,
}

/// Flips that are shown.
const SHOWN: usize = 5;
/// Share of flips that is allowed when the user does not say: of weights in few bits, and of all others.
const FEW_BITS: MostFlips = MostFlips::Share(0.03);
const MANY_BITS: MostFlips = MostFlips::Share(0.01);

impl Args {
    fn export(&self) -> anyhow::Result<Export> {
        let target = match self.to {
            To::Merged => Target::Merged,
            To::Gguf => Target::Gguf,
            To::Ollama => Target::Ollama,
            To::Peft => Target::Peft,
            To::GgufLora => Target::GgufLora,
        };
        let quant = self.quant.map(|quant| match quant {
            Quant::F16 => FileType::F16,
            Quant::Bf16 => FileType::BF16,
            Quant::Q8 => FileType::Q8_0,
            Quant::Q4 => FileType::Q4KM,
            Quant::Q5 => FileType::Q5KM,
        });
        Ok(Export::new(target, quant)?)
    }

    /// The gate asks what the files hold, so both sides compute in floats unless the user says otherwise.
    fn encoding(&self) -> Encoding {
        match self.device.precision {
            Some(Precision::Int8) => Encoding::Int8,
            _ => Encoding::Compute,
        }
    }

    /// Where the rows come from, in words.
    fn rows_from(&self) -> String {
        let name =
            |path: &PathBuf| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        self.data
            .as_ref()
            .map_or_else(|| "the run's validation rows".to_owned(), |path| format!("`{}`", name(path)))
    }

    fn rows(&self, manifest: &Manifest) -> anyhow::Result<Vec<Example>> {
        let mut rows = if let Some(path) = &self.data {
            routing::read(path, &self.fields.options())?.examples
        } else {
            let data = TrainData::of_run(manifest).context(
                "the run's validation rows cannot be read again; name rows to compare on with --data",
            )?;
            data.valid().to_vec()
        };
        rows.truncate(self.limit.unwrap_or(usize::MAX));
        anyhow::ensure!(!rows.is_empty(), "there are no rows to compare on; name some with --data");
        Ok(rows)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    let export = args.export()?;
    let run = RunFolder::open(&args.model)?;
    let base = open_base(&run, args.base.as_deref())?;
    let rows = args.rows(&run.manifest)?;
    let folder = StagedFolder::begin(&args.out)?;
    say!("writing {} ({export})", args.out.display());
    export.write(&run, &base, folder.path())?;
    let manifest = run.manifest.clone();
    let before = on_device!(args.device, original, args, run, &base, &rows)?;
    let after = on_device!(args.device, exported, args, export, &folder, &manifest, &base, &rows)?;
    let labels: Vec<String> = manifest.labels.iter().map(|label| label.text.clone()).collect();
    let gate = Gate::judge(&rows, &labels, &before, &after);
    let usual = if matches!(args.quant, Some(Quant::Q4 | Quant::Q5)) { FEW_BITS } else { MANY_BITS };
    let passed = args.max_flips.unwrap_or(usual).allows(&gate);
    let card = Card {
        export,
        manifest: &manifest,
        gate: &gate,
        rows: &args.rows_from(),
        licence: licence(&manifest.base.source),
    };
    card.write(folder.path())?;
    let bytes = folder_bytes(&folder)?;
    if passed {
        folder.put_in_place()?;
    }
    print(args, export, &gate, bytes, passed)?;
    Ok(if passed { Done::Fully } else { Done::BelowTheBar })
}

fn original<B: Backend>(
    backend: B,
    args: &Args,
    run: RunFolder,
    base: &BaseModel,
    rows: &[Example],
) -> anyhow::Result<Vec<Answer>> {
    answer("original", &mut Router::open(backend, run, base, args.encoding())?, rows)
}

fn exported<B: Backend>(
    backend: B,
    args: &Args,
    export: Export,
    folder: &StagedFolder,
    manifest: &Manifest,
    base: &BaseModel,
    rows: &[Example],
) -> anyhow::Result<Vec<Answer>> {
    answer("export", &mut export.open(backend, folder.path(), manifest, base, args.encoding())?, rows)
}

fn answer<B: Backend>(what: &str, router: &mut Router<B>, rows: &[Example]) -> anyhow::Result<Vec<Answer>> {
    let bar = progress::rows(what, rows.len());
    let answers = router.route_all(rows, &mut |done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(answers)
}

/// The licence of a model with a name of its own.
fn licence(base: &str) -> Option<&'static str> {
    hub::catalogue().iter().find(|entry| entry.name == base).map(|entry| entry.licence)
}

/// What the export takes on disk.
fn folder_bytes(folder: &StagedFolder) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder.path())? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

fn print(args: &Args, export: Export, gate: &Gate, bytes: u64, passed: bool) -> anyhow::Result<()> {
    let mut out = Output;
    if args.json {
        let json = json!({
            "out": passed.then_some(&args.out), "to": export.target(), "quant": export.quant(), "bytes": bytes,
            "passed": passed, "accuracy_change": gate.accuracy_change(), "gate": gate,
        });
        writeln!(out, "{json:#}")?;
    } else if passed {
        writeln!(out, "{}", args.out.display())?;
    }
    say!(
        "{} rows: {} flipped labels; accuracy {} before, {} after; no probability moved by more than {:.4}",
        gate.rows,
        gate.flips.len(),
        gate.original,
        gate.export,
        gate.largest_change,
    );
    for flip in gate.flips.iter().take(SHOWN) {
        say!("  {} -> {}  «{}»", flip.original, flip.export, flip.text);
    }
    if passed {
        say!("{:.1} MB in {}", bytes as f64 / 1e6, args.out.display());
    } else {
        say!("more flips than --max-flips allows: nothing was written to {}", args.out.display());
    }
    Ok(())
}
