//! `frontdesk check`: the data doctor.

use std::path::{Path, PathBuf};

use anyhow::Context;
use formats::{BaseModel, store};
use hub::Hub;
use routing::doctor::{CheckOptions, Severity, check};
use routing::{Dataset, suspects};

use crate::Done;
use crate::terminal::{Output, say};
use crate::values;
use crate::verbs::FieldArgs;

/// Flags of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The files; the first is the one to train on, the others measure.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    fields: FieldArgs,
    /// Base model whose tokens are counted, if it is on this machine.
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    base: String,
    /// Longest query in tokens.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = values::count::<usize>)]
    max_tokens: usize,
    /// Write the rows of the first file whose label may be wrong to this file, a JSON line each, to be corrected: set
    /// `corrected` to the right label, or `remove` to true.
    #[arg(long, value_name = "FILE", conflicts_with = "corrections")]
    suspects: Option<PathBuf>,
    /// A corrected file of suspects: applies it to the one data file and writes the result to --out.
    #[arg(long, value_name = "FILE", requires = "out")]
    corrections: Option<PathBuf>,
    /// Where the corrected data goes, as JSON lines.
    #[arg(long, value_name = "FILE", requires = "corrections")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Exit with code 1 when there is an error among the findings.
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    args.suspects.iter().chain(&args.out).try_for_each(store::check_writable)?;
    let options = args.fields.options();
    let mut datasets =
        args.files.iter().map(|file| routing::read(file, &options)).collect::<Result<Vec<_>, _>>()?;
    if let (Some(corrections), Some(out)) = (&args.corrections, &args.out) {
        return correct(&mut datasets, corrections, out, args.json);
    }
    let tokenizer = match Hub::from_env().find(&args.base)? {
        Some(path) => Some(BaseModel::open(path)?.tokenizer()?),
        None => None,
    };
    let count = tokenizer
        .as_ref()
        .map(|tokenizer| |text: &str| tokenizer.encode_plain(text).map_or(text.len(), |ids| ids.len()));
    let counter = count.as_ref().map(|count| count as &dyn Fn(&str) -> usize);
    let check_options = CheckOptions { max_tokens: args.max_tokens, ..CheckOptions::default() };
    let diagnosis = check(&datasets, &check_options, counter);
    if args.json {
        writeln!(Output, "{}", serde_json::to_string_pretty(&diagnosis)?)?;
    } else {
        write!(Output, "{}", diagnosis.render())?;
    }
    if let Some(path) = &args.suspects {
        write_suspects(&datasets[0], path)?;
    }
    let bad = diagnosis.worst() == Some(Severity::Error);
    Ok(if args.strict && bad { Done::BelowTheBar } else { Done::Fully })
}

fn write_suspects(data: &Dataset, path: &Path) -> anyhow::Result<()> {
    let found = suspects::find(&data.examples, 0)?;
    let mut bytes = Vec::new();
    for suspect in &found {
        serde_json::to_writer(&mut bytes, suspect)?;
        bytes.push(b'\n');
    }
    store::write_atomically(path, &bytes)?;
    say!(
        "{} of {} rows may be labelled wrongly: {}; correct them there, then `frontdesk check {} --corrections {} --out FILE`",
        found.len(),
        data.examples.len(),
        path.display(),
        data.path.display(),
        path.display()
    );
    Ok(())
}

fn correct(datasets: &mut [Dataset], corrections: &Path, out: &Path, as_json: bool) -> anyhow::Result<Done> {
    let [data] = datasets else {
        anyhow::bail!("--corrections needs one data file, found {}", datasets.len())
    };
    let known = data.labels();
    let decided = suspects::read(corrections)?;
    let done = suspects::apply(&mut data.examples, &decided, corrections)?;
    store::write_atomically(out, routing::to_json_lines(&data.examples).as_bytes())
        .with_context(|| format!("{}: the corrected data could not be written", out.display()))?;
    for label in data.labels().iter().filter(|label| !known.contains(label)) {
        say!("`{label}` is a label that the data did not have before");
    }
    if as_json {
        writeln!(Output, "{}", serde_json::to_string_pretty(&done)?)?;
    } else {
        writeln!(
            Output,
            "{}: {} rows, {} relabelled, {} removed, {} suspects left as they were",
            out.display(),
            data.examples.len(),
            done.relabelled,
            done.removed,
            done.kept
        )?;
    }
    Ok(Done::Fully)
}
