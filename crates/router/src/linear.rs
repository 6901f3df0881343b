//! Method `linear`: n-grams alone, in a run like any other.

use std::path::Path;
use std::time::Instant;

use routing::linear::{LinearConfig, LinearModel, StoredLinear};

use crate::checkpoint::Checkpoint;
use crate::examples::TrainData;
use crate::manifest::{LabelRecord, Manifest, Measured};
use crate::observer::{Observer, Started};
use crate::plan::{Method, Plan};
use crate::run::{RunFolder, Trained};
use crate::train::Outcome;
use crate::verdict::judged;
use crate::{Error, Result};

/// Trains a linear model of n-grams, which needs no base model, and writes the run folder `out`. It is judged on the
/// validation examples, and then fitted on all, unless those are in a file of their own.
///
/// # Errors
/// When the folder is taken or the data does not suit.
pub fn train_linear(
    data: &TrainData,
    plan: &Plan,
    out: &Path,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let begun = Instant::now();
    if RunFolder::is_in(out) {
        return Err(Error::Occupied { path: out.to_path_buf() });
    }
    let names = data.label_names();
    let label_of = |example: &routing::Example| names.binary_search(&example.label).unwrap_or(names.len());
    let config = LinearConfig { seed: plan.recipe.seed, ..LinearConfig::default() };
    let fit = |rows: &[&routing::Example]| {
        let texts: Vec<&str> = rows.iter().map(|example| example.text.as_str()).collect();
        let labels: Vec<usize> = rows.iter().map(|example| label_of(example)).collect();
        LinearModel::train(&texts, &labels, names.len(), &config)
    };
    let own: Vec<&routing::Example> = data.train.iter().collect();
    let mut model = fit(&own)?;
    // Only now is there something to write; of an interrupted fit nothing is kept, so there is nothing to tell apart.
    let held = Checkpoint::begin(out, String::new(), false)?;
    let weights = model.n_weights();
    observer.started(&Started {
        examples: own.len(),
        validation: data.valid.len(),
        labels: names.len(),
        cut: 0,
        total_steps: 0,
        steps_done: 0,
        trainable: weights,
        devices: 1,
        sums: None,
        memory: None,
        parameters: weights,
        shown: Vec::new(),
    });
    let log_probs: Vec<Vec<f32>> = data.valid.iter().map(|example| model.log_probs(&example.text)).collect();
    let valid_labels: Vec<usize> = data.valid.iter().map(label_of).collect();
    if data.valid_file.is_none() {
        // A label that training does not have cannot be fitted.
        let known = data.valid.iter().filter(|example| label_of(example) < names.len());
        model = fit(&own.iter().copied().chain(known).collect::<Vec<_>>())?;
    }
    let mut labels: Vec<LabelRecord> =
        names.iter().map(|text| LabelRecord { text: text.clone(), ids: Vec::new(), examples: 0 }).collect();
    data.train.iter().for_each(|example| labels[label_of(example)].examples += 1);
    let manifest = Manifest {
        method: Method::Linear,
        trainable: model.n_weights(),
        parameters: model.n_weights(),
        device: "cpu f32".to_owned(),
        ..judged(labels, &log_probs, &valid_labels, data, &plan.recipe)
    };
    let seconds = begun.elapsed().as_secs_f64();
    let trained = Trained::Linear(StoredLinear::from(&model));
    let run = RunFolder::write(out, manifest, &trained, None, Measured::until_now(seconds))?;
    held.remove()?;
    Ok(Outcome { run, steps: 0, seconds, device_bytes: None })
}
