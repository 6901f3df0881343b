//! `frontdesk pull`: fetch a base model.

use hub::Hub;

use crate::Done;
use crate::progress::Download;
use crate::terminal::Output;

/// Flags of `pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A name of the catalogue, a Hugging Face id, or a path; without one, the catalogue is listed.
    name: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    let hub = Hub::from_env();
    let Some(name) = &args.name else {
        for entry in hub::catalogue() {
            let here = if hub.find(entry.name)?.is_some() { "here" } else { "" };
            let size = entry.size as f64 / 1e6;
            writeln!(
                Output,
                "{:<14} {size:>6.0} MB  {:<4}  {} ({})",
                entry.name, here, entry.description, entry.licence
            )?;
        }
        return Ok(Done::Fully);
    };
    let pulled = hub.pull(name, &mut Download::default())?;
    writeln!(Output, "{}", pulled.path.display())?;
    Ok(Done::Fully)
}
