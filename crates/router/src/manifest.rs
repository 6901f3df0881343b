//! `frontdesk.json`: what a run folder says of itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use routing::calibration::{Calibration, Scope, Thresholds};
use routing::cascade::{CascadeGoal, CascadePoint};
use routing::compare::{Interval, wilson};
use serde::{Deserialize, Serialize};

use crate::machine::peak_memory;
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
    /// Values that trained; 0 in runs that did not say.
    #[serde(default)]
    pub trainable: usize,
    /// Weights of the base model; 0 in runs that did not say.
    #[serde(default)]
    pub parameters: usize,
    /// Steps taken.
    pub steps: u64,
    /// The step whose values were kept.
    pub best_step: u64,
    /// How it did on the validation examples.
    pub validation: ValidationRecord,
    /// The temperature.
    pub calibration: Calibration,
    /// From which probability on a query is routed.
    pub thresholds: Thresholds,
    /// When a query is out of scope, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The rows that calibration, thresholds and scope were chosen on, where they are not the validation rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibrated_on: Option<DataRecord>,
    /// The large model that is asked where this one is unsure, if one was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cascade: Option<CascadeRecord>,
    /// SHA-256 of every other file of the folder that the router reads.
    pub files: BTreeMap<String, String>,
}

/// A large model behind the router, and when it is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CascadeRecord {
    /// The large model, as its endpoint knows it.
    pub model: String,
    /// Where it is asked.
    pub endpoint: String,
    /// The environment variable that holds the key, where it is not `OPENAI_API_KEY`. The key itself is kept nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_variable: Option<String>,
    /// The examples in its prompt, in words.
    pub shots: String,
    /// SHA-256 of its prompts as they were judged.
    pub prompt: String,
    /// SHA-256 of the file that makes them again ([`CascadeRecord::prompt_file`]); `None` in runs that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_file: Option<String>,
    /// SHA-256 of the rows that the point was chosen on.
    pub data: String,
    /// What it was chosen for.
    pub goal: CascadeGoal,
    /// The point: queries below its threshold go on to the large model.
    pub point: CascadePoint,
}

impl Manifest {
    /// The method with its settings, and the share of the weights that it trained, for people.
    pub fn method_in_words(&self) -> String {
        let lora = &self.recipe.lora;
        let method = match self.method {
            Method::Lora => format!("LoRA, rank {}, alpha {}", lora.rank, lora.alpha),
            Method::Qlora => format!("QLoRA, rank {}, alpha {}, base in 4 bits", lora.rank, lora.alpha),
            Method::Full => "every weight".to_owned(),
            Method::Head => "linear head on the frozen model".to_owned(),
            Method::Linear => return "linear support vector machines on n-grams, no base model".to_owned(),
        };
        let Some(share) = self.trained_share().filter(|share| *share > 0.0) else { return method };
        let trained = match self.trainable {
            few if few < 100_000 => few.to_string(),
            many => format!("{:.2} million", many as f64 / 1e6),
        };
        let share = 100.0 * share;
        let decimals = if share < 0.95 { 2 } else { 1 };
        let all = self.parameters as f64 / 1e6;
        format!(
            "{method}: {trained} values trained, {share:.decimals$}% of the {all:.1} million of the model"
        )
    }

    /// Values that trained, by the weights of the model; `None` in runs that did not say.
    pub fn trained_share(&self) -> Option<f64> {
        (self.parameters > 0).then(|| self.trainable as f64 / self.parameters as f64)
    }

    /// What decides which rows it was validated on: runs where this is the same can be compared by those figures.
    pub fn validated_on(&self) -> (String, Option<String>, u64) {
        (self.data.sha256.clone(), self.valid.as_ref().map(|valid| valid.sha256.clone()), self.recipe.seed)
    }

    /// The large model that a query with this top probability goes on to.
    pub fn goes_on_to(&self, probability: f64) -> Option<&CascadeRecord> {
        self.cascade.as_ref().filter(|cascade| probability < cascade.point.threshold)
    }
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

/// `measured.json`: what a training took. It differs from run to run, so it is no part of the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Wall time of the process that finished the run, from the model's loading on.
    pub seconds: f64,
    /// Its peak memory, where the system tells.
    pub peak_memory_bytes: Option<u64>,
}

impl Measured {
    /// Of this process, which took so long.
    pub(crate) fn until_now(seconds: f64) -> Self {
        Self { seconds, peak_memory_bytes: peak_memory() }
    }
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

/// The kept values on the validation examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Examples.
    pub rows: usize,
    /// Share that is right.
    pub accuracy: f64,
    /// Macro-F1.
    pub macro_f1: f64,
}

impl ValidationRecord {
    /// The interval of the accuracy.
    pub fn interval(&self) -> Interval {
        wilson((self.accuracy * self.rows as f64).round() as usize, self.rows)
    }
}
