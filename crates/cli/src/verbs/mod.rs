//! One file per verb.

pub(crate) mod against;
pub(crate) mod auto;
pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod plan;
pub(crate) mod pull;
pub(crate) mod route;
pub(crate) mod train;

use std::path::{Path, PathBuf};

use formats::BaseModel;
use hub::Hub;
use kernels::{Backend, Encoding};
use router::{Method, Router, RunFolder};
use routing::ReadOptions;

use crate::progress::Download;

/// Fields of a data file.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct FieldArgs {
    /// Field or column of the text; found by its usual names when not given.
    #[arg(long, value_name = "NAME")]
    text_field: Option<String>,
    /// Field or column of the label; found by its usual names when not given.
    #[arg(long, value_name = "NAME")]
    label_field: Option<String>,
}

impl FieldArgs {
    fn options(&self) -> ReadOptions {
        ReadOptions { text_field: self.text_field.clone(), label_field: self.label_field.clone() }
    }
}

/// Where a base model is on this machine, fetching it first when it is not.
fn base_path(name: &str) -> anyhow::Result<PathBuf> {
    Ok(Hub::from_env().pull(name, &mut Download::default())?.path)
}

/// Opens a run with its base model: the one it names, or the one the user does.
fn open_router<B: Backend>(
    backend: B,
    run: &Path,
    base: Option<&str>,
    encoding: Encoding,
) -> anyhow::Result<Router<B>> {
    let run = RunFolder::open(run)?;
    if run.manifest.method == Method::Linear {
        return Ok(Router::open_linear(run)?);
    }
    let base = open_base(&run, base)?;
    Ok(Router::open(backend, run, &base, encoding)?)
}

/// The model that a run belongs to: its own, the one the user names, or the one the run does.
fn open_base(run: &RunFolder, base: Option<&str>) -> anyhow::Result<BaseModel> {
    anyhow::ensure!(
        run.manifest.method != Method::Linear,
        "{}: a run of n-grams has no base model; its folder is all there is, copy it as it is",
        run.path.display()
    );
    let path = match run.own_model() {
        Some(own) => own.to_owned(),
        None => base_path(base.unwrap_or(&run.manifest.base.source))?,
    };
    Ok(BaseModel::open(path)?)
}
