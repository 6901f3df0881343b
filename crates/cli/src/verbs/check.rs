//! `frontdesk check`: the data doctor.

use std::path::PathBuf;

use formats::BaseModel;
use hub::Hub;
use routing::doctor::{CheckOptions, Severity, check};

use crate::Done;
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
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Exit with code 1 when there is an error among the findings.
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    let options = args.fields.options();
    let datasets =
        args.files.iter().map(|file| routing::read(file, &options)).collect::<Result<Vec<_>, _>>()?;
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
        println!("{}", serde_json::to_string_pretty(&diagnosis)?);
    } else {
        print!("{}", diagnosis.render());
    }
    let bad = diagnosis.worst() == Some(Severity::Error);
    Ok(if args.strict && bad { Done::BelowTheBar } else { Done::Fully })
}
