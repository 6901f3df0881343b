//! The router: from a data set to a run folder, and from a query to a department.
//!
//! This crate joins the words of `routing` (labels, calibration, thresholds) with the tensors of `engine`. A training
//! run reads examples and writes a [`RunFolder`]; a [`Router`] opens one and answers queries.

mod best;
mod calibrate;
mod cascade;
mod checkpoint;
mod error;
mod examples;
mod export;
mod linear;
mod log;
mod machine;
mod manifest;
mod observer;
mod packed;
mod plan;
mod prompt;
mod router;
mod run;
mod scoring;
mod train;
mod training;
mod transfer;
mod verdict;

pub use calibrate::{CalibrateOptions, Calibrated};
pub use engine::StepReport;
pub use error::{Error, Result};
pub use examples::TrainData;
pub use export::{Accuracy, Card, Export, Flip, Gate, MostFlips, Target};
pub use linear::train_linear;
pub use machine::{device_name, peak_memory};
pub use manifest::{
    BaseRecord, CascadeRecord, DataRecord, LabelRecord, Manifest, Measured, ValidationRecord,
};
pub use observer::{Observer, Started, Validated};
pub use packed::keep_packed;
pub use plan::{Method, Plan, Recipe, VALIDATIONS};
pub use prompt::{DEFAULT_SYSTEM, Prompt, Query};
pub use router::{Answer, Router};
pub use run::{RunFolder, measured};
pub use train::{Outcome, train};
