//! `frontdesk.json`: what a run folder says of itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use routing::calibration::{Calibration, Thresholds};
use serde::{Deserialize, Serialize};

use crate::plan::{Method, Recipe};
use crate::prompt::Prompt;

/// The version of the run folder's format.
pub(crate) const FORMAT: u32 = 1;

/// Everything that a run folder says of itself. It holds no date and no duration: the same run gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the format, 1.
    pub format: u32,
    /// Version of frontdesk that wrote it.
    pub version: String,
    /// What trained.
    pub method: Method,
    /// The base model.
    pub base: BaseRecord,
    /// The labels in order.
    pub labels: Vec<LabelRecord>,
    /// The frozen prompt.
    pub prompt: Prompt,
    /// The training data.
    pub data: DataRecord,
    /// The validation data; `None` when examples were held out.
    pub valid: Option<DataRecord>,
    /// How it was trained.
    pub recipe: Recipe,
    /// Device and arithmetic: `cpu avx512 bf16`.
    pub device: String,
    /// Steps taken, and the step of the kept adapter.
    pub steps: u64,
    /// The step whose adapter was kept.
    pub best_step: u64,
    /// How it did on the validation examples.
    pub validation: ValidationRecord,
    /// The temperature.
    pub calibration: Calibration,
    /// From which probability on a query is routed.
    pub thresholds: Thresholds,
    /// SHA-256 of every other file of the folder that the router reads.
    pub files: BTreeMap<String, String>,
}

/// The base model of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// As the user named it; `frontdesk pull` understands it.
    pub source: String,
    /// As its files name it.
    pub name: String,
    /// SHA-256 of its weights.
    pub sha256: String,
}

/// One label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelRecord {
    /// As the data spells it.
    pub text: String,
    /// Its tokens with the end token; none where a head tells the labels apart.
    pub ids: Vec<u32>,
    /// Training examples.
    pub examples: usize,
}

/// A data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRecord {
    /// Where it was read, as the user named it.
    pub path: PathBuf,
    /// Field of the text, when it was named.
    pub text_field: Option<String>,
    /// Field of the label, when it was named.
    pub label_field: Option<String>,
    /// Rows used.
    pub rows: usize,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// The kept adapter on the validation examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Examples.
    pub rows: usize,
    /// Share that is right.
    pub accuracy: f64,
    /// Macro-F1.
    pub macro_f1: f64,
}
