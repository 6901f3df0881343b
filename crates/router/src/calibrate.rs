//! A trained router is calibrated anew: on rows it was not trained on, in the arithmetic that it routes with.

use std::collections::HashMap;
use std::path::Path;

use kernels::Backend;
use routing::calibration::{Calibration, Goal, Scope, ScopeRow, Scored, Thresholds, top};
use routing::{Dataset, Example, ReadOptions};

use crate::cascade::rewrite;
use crate::examples::record;
use crate::manifest::DataRecord;
use crate::router::Router;
use crate::{Error, Result};

/// What is chosen, and for what.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrateOptions {
    /// What thresholds are chosen for.
    pub goal: Goal,
    /// The label that means "out of scope" in the rows, or in the model.
    pub oos_label: Option<String>,
    /// In-scope accuracy to keep while as much as possible out of scope is recognised.
    pub min_in_scope: Option<f64>,
}

/// What was found; [`Calibrated::save`] puts it into the run.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibrated {
    /// The temperature.
    pub calibration: Calibration,
    /// From which probability on a query is routed.
    pub thresholds: Thresholds,
    /// When a query is out of scope; `None` where nothing was asked, or no threshold keeps the in-scope accuracy.
    pub scope: Option<Scope>,
    /// The rows that this was chosen on.
    pub data: DataRecord,
    /// Share of the rows whose top label is the true one.
    pub accuracy: f64,
}

impl<B: Backend> Router<B> {
    /// Chooses temperature, scope rule and thresholds on labelled rows. `scored` hears of progress: rows done, of all.
    ///
    /// Rows that are out of scope say nothing about the temperature, and are wrong wherever they are routed.
    ///
    /// # Errors
    /// When there are no rows, or a query does not fit the model.
    pub fn calibrate(
        &mut self,
        data: &Dataset,
        fields: &ReadOptions,
        options: &CalibrateOptions,
        scored: &mut dyn FnMut(usize, usize),
    ) -> Result<Calibrated> {
        let rows = &data.examples;
        if rows.is_empty() {
            return Err(Error::NoRows { path: data.path.to_path_buf() });
        }
        let names: Vec<String> = self.manifest().labels.iter().map(|label| label.text.clone()).collect();
        let answers = self.route_all(rows, scored)?;
        let log_probs: Vec<Vec<f32>> = answers.into_iter().map(|answer| answer.log_probs).collect();
        let places: HashMap<&str, usize> = names.iter().map(String::as_str).zip(0..).collect();
        let index = |name: &str| places.get(name).copied();
        let nowhere = options.oos_label.as_deref().and_then(index);
        let is_out = |row: &Example| Some(&row.label) == options.oos_label.as_ref();
        // A model that has the label is asked about it as about any other.
        let telling = |row: &Example| nowhere.is_some() || !is_out(row);
        let truth = |row: &Example| index(&row.label).unwrap_or(names.len());
        let (fitted, labels): (Vec<Vec<f32>>, Vec<usize>) = rows
            .iter()
            .zip(&log_probs)
            .filter(|(row, _)| telling(row))
            .map(|(row, log_probs)| (log_probs.clone(), truth(row)))
            .unzip();
        let calibration = Calibration::fit(&fitted, &labels);

        let tops: Vec<(usize, f64)> =
            log_probs.iter().map(|row| top(&calibration.probabilities(row))).collect();
        let right = |row: &Example, label: usize| truth(row) == label;
        let scope = options.oos_label.as_ref().and_then(|name| {
            let scope_row = |(row, &(label, probability)): (&Example, &(usize, f64))| ScopeRow {
                probability,
                named: Some(label) == nowhere,
                right: right(row, label),
                out_of_scope: is_out(row),
            };
            let rows: Vec<ScopeRow> = rows.iter().zip(&tops).map(scope_row).collect();
            Scope::choose(name, &rows, options.min_in_scope)
        });
        let judged: Vec<Scored> = rows
            .iter()
            .zip(&tops)
            .map(|(row, &(predicted, probability))| Scored {
                predicted,
                probability,
                right: right(row, predicted),
                in_scope: scope.as_ref().is_none_or(|scope| scope.admits(&names[predicted], probability)),
            })
            .collect();
        let accuracy = judged.iter().filter(|row| row.right).count() as f64 / judged.len() as f64;
        let thresholds = Thresholds::choose(&names, &judged, &options.goal, nowhere);
        Ok(Calibrated { calibration, thresholds, scope, data: record(data, fields), accuracy })
    }
}

impl Calibrated {
    /// Replaces calibration, thresholds and scope rule in the run folder, whole or not at all. A cascade goes away: its
    /// threshold was about the old probabilities.
    ///
    /// # Errors
    /// When the folder is no finished run, a file of it was changed, or it cannot be written.
    pub fn save(&self, run: &Path) -> Result<()> {
        rewrite(run, |manifest| {
            manifest.calibration = self.calibration.clone();
            manifest.thresholds = self.thresholds.clone();
            manifest.scope.clone_from(&self.scope);
            manifest.calibrated_on = Some(self.data.clone());
            manifest.cascade = None;
        })
    }
}
