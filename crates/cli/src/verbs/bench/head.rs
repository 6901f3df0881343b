//! How long a linear head takes, by fitting one on a sample of the data.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use formats::BaseModel;
use kernels::Backend;
use router::{Method, Observer, Recipe, Started, TrainData};
use routing::Dataset;

use super::plan_of;
use crate::device::DeviceArgs;
use crate::verbs::FieldArgs;

/// Texts of the sample; of each label at least as many as can be held out and trained on.
const TEXTS: usize = 256;
const OF_A_LABEL: usize = 4;

/// What the stages of a head's training took.
pub(crate) struct HeadSpeed {
    /// Texts that the model reads a second.
    pub(crate) texts_per_s: f64,
    /// Seconds of fitting, for each text.
    pub(crate) fit_per_text: f64,
}

/// When the model began to read the texts, and when it had read how many.
#[derive(Default)]
struct Reading {
    begun: Option<Instant>,
    read: Option<(Instant, usize)>,
}

impl Observer for Reading {
    fn started(&mut self, _run: &Started) {
        self.begun = Some(Instant::now());
    }

    fn scoring(&mut self, done: usize, _total: usize) {
        self.read = Some((Instant::now(), done));
    }
}

/// Fits a head on a sample.
pub(crate) fn head_speed<B: Backend>(
    backends: Vec<B>,
    base: &Path,
    data: &Path,
    (fields, device): (&FieldArgs, &DeviceArgs),
    recipe: Recipe,
) -> anyhow::Result<HeadSpeed> {
    let fields = fields.options();
    let recipe = Recipe { method: Some(Method::Head), ..recipe };
    let rows = TrainData::new(sample(routing::read(data, &fields)?), None, &fields, &recipe)?;
    let folder = tempfile::tempdir()?;
    let plan = plan_of(data, &fields, base, recipe, device.named_precision());
    let mut reading = Reading::default();
    router::train(
        backends,
        BaseModel::open(base)?,
        &rows,
        &plan,
        &folder.path().join("run"),
        false,
        &mut reading,
    )?;
    let (Some(begun), Some((read, texts))) = (reading.begun, reading.read) else {
        anyhow::bail!("no text of {} was read", data.display());
    };
    Ok(HeadSpeed {
        texts_per_s: texts as f64 / (read - begun).as_secs_f64(),
        fit_per_text: read.elapsed().as_secs_f64() / texts as f64,
    })
}

/// The first rows of every label.
fn sample(mut data: Dataset) -> Dataset {
    let each = TEXTS.div_ceil(data.labels().len().max(1)).max(OF_A_LABEL);
    let mut taken: HashMap<String, usize> = HashMap::new();
    data.examples.retain(|row| {
        let taken = taken.entry(row.label.clone()).or_default();
        *taken += 1;
        *taken <= each
    });
    data
}
