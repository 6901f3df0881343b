//! What a training run will do: everything that decides its result.

use std::path::PathBuf;

use engine::{Balance, Care, Hiding, Lora, OptimizerOptions, Projection, Schedule};
use formats::BaseModel;
use serde::{Deserialize, Serialize};

use crate::prompt::DEFAULT_SYSTEM;

/// What trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Small matrices beside the frozen weights (Hu et al., 2021).
    Lora,
    /// The same beside weights that stay in 4 bits, in training and in routing (Dettmers et al., 2023).
    Qlora,
    /// Every weight.
    Full,
    /// A linear head on the features of the frozen model: transfer learning.
    Head,
    /// A linear model of n-grams, without any base model.
    Linear,
}

impl Method {
    /// Whether LoRA's matrices are what it trains.
    pub fn has_adapter(self) -> bool {
        matches!(self, Self::Lora | Self::Qlora)
    }

    /// Whether every example is read once, and not in passes over the data.
    pub fn reads_once(self) -> bool {
        matches!(self, Self::Head | Self::Linear)
    }

    /// `lora` and so on.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Qlora => "qlora",
            Self::Full => "full",
            Self::Head => "head",
            Self::Linear => "linear",
        }
    }
}

/// Validations in a run, unless the recipe says otherwise; the kept values are scored once more at its end.
pub const VALIDATIONS: u64 = 4;

/// How to train, whatever the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// What trains; `None`: LoRA in a decoder, a head on an encoder.
    pub method: Option<Method>,
    /// How LoRA is applied.
    pub lora: Lora,
    /// Learning rate at its highest; `None`: see [`Recipe::lr_for`].
    #[serde(default)]
    pub lr: Option<f32>,
    /// The optimizer's other settings.
    pub optimizer: OptimizerOptions,
    /// Passes over the training examples; `None`: see [`Recipe::sized_for`].
    pub epochs: Option<f32>,
    /// Stop after this many steps, whatever the epochs.
    pub max_steps: Option<u64>,
    /// Examples a step, over all devices; `None`: see [`Recipe::sized_for`].
    pub batch: Option<usize>,
    /// Rows computed at once, which bounds the memory; `None`: twice what keeps the device busy, or what its
    /// memory has room for.
    pub rows_per_pass: Option<usize>,
    /// Blocks of a decoder are computed once more in the backward pass: less memory, more time, the same result.
    #[serde(default)]
    pub recompute: bool,
    /// Of everything random.
    pub seed: u64,
    /// What is done about rare labels.
    pub balance: Balance,
    /// Steps between validations; `None`: four times in the run.
    pub validate_every: Option<u64>,
    /// Validations without a better macro-F1 after which training stops; `None`: never.
    pub patience: Option<u32>,
    /// Validation examples to hold out when no file is given: this share of the data, but at most
    /// [`Recipe::max_validation`].
    pub validation_share: f64,
    /// At most this many validation examples are held out, and scored while training goes on.
    pub max_validation: usize,
    /// The system message, when the data brings none.
    pub system: String,
    /// Longest query in tokens, earlier turns included.
    pub max_tokens: usize,
    /// Share of the automatically routed queries that must be right.
    pub target_precision: f64,
}

impl Default for Recipe {
    /// The defaults, found on three data sets (`docs/log.md`).
    fn default() -> Self {
        Self {
            method: None,
            lora: Lora { rank: 64, alpha: 64.0, rslora: false, projections: Projection::ALL.to_vec() },
            lr: None,
            optimizer: OptimizerOptions {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
                clip: 1.0,
                warm_up: 0.06,
                schedule: Schedule::Linear,
            },
            epochs: None,
            max_steps: None,
            batch: None,
            rows_per_pass: None,
            recompute: false,
            seed: 0,
            balance: Balance::Weight,
            validate_every: None,
            patience: None,
            validation_share: 0.1,
            max_validation: 500,
            system: DEFAULT_SYSTEM.to_owned(),
            max_tokens: 512,
            target_precision: 0.97,
        }
    }
}

impl Recipe {
    /// What trains in this base model.
    pub fn method_for(&self, base: &BaseModel) -> Method {
        self.method.unwrap_or(if base.config.is_encoder() { Method::Head } else { Method::Lora })
    }

    /// The highest learning rate with which this method trains this base model.
    pub fn lr_for(&self, base: &BaseModel) -> f32 {
        let found = match (self.method_for(base), base.config.is_encoder()) {
            (Method::Full, true) => FULL_ENCODER_LR,
            (Method::Full, false) => FULL_DECODER_LR,
            (_, true) => LORA_ENCODER_LR,
            (_, false) => LORA_DECODER_LR,
        };
        self.lr.unwrap_or(found)
    }

    /// What is done in a training of every weight of an encoder, where `mask` is its token for a hidden one.
    pub(crate) fn care(&self, mask: Option<u32>) -> Care {
        let hiding = mask.map(|token| Hiding { share: HIDDEN, token, seed: self.seed });
        Care { smoothing: SMOOTHING, layer_decay: LAYER_DECAY, head_rate: HEAD_RATE, hiding }
    }

    /// Examples a step and passes over the data for a training set of this size; `whole_encoder`: every weight of an
    /// encoder trains, which takes ten passes, as its tokens are hidden now and then.
    ///
    /// Three passes in steps of 32 are enough for thousands of examples. A few hundred learn better in more and
    /// smaller steps: 16 examples a step, and as many passes as give 300 steps, at most 10.
    pub fn sized_for(&self, examples: usize, whole_encoder: bool) -> (usize, f32) {
        let small = examples < 32 * (FEWEST_STEPS as usize) / 3;
        let batch = self.batch.unwrap_or(if small { 16 } else { 32 });
        let fewest = if whole_encoder { MOST_EPOCHS } else { FEWEST_EPOCHS };
        let wanted = FEWEST_STEPS * batch as f32 / examples.max(1) as f32;
        (batch, self.epochs.unwrap_or(wanted.clamp(fewest, MOST_EPOCHS)))
    }
}

/// Learning rates, as `docs/log.md` found them.
const LORA_DECODER_LR: f32 = 7e-4;
const LORA_ENCODER_LR: f32 = 1e-3;
const FULL_DECODER_LR: f32 = 3e-4;
const FULL_ENCODER_LR: f32 = 2e-4;
/// The care for an encoder, as `docs/log.md` found it.
const SMOOTHING: f32 = 0.1;
const LAYER_DECAY: f32 = 0.85;
const HEAD_RATE: f32 = 5.0;
const HIDDEN: f32 = 0.1;
/// Steps below which more passes are made.
const FEWEST_STEPS: f32 = 300.0;
/// Passes over a large data set.
const FEWEST_EPOCHS: f32 = 3.0;
/// Passes over the smallest.
const MOST_EPOCHS: f32 = 10.0;

/// A run's inputs, kept in its folder so that `--resume` needs nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The training file.
    pub data: PathBuf,
    /// The validation file; without one, examples are held out.
    pub valid: Option<PathBuf>,
    /// Field of the text, when it was named.
    pub text_field: Option<String>,
    /// Field of the label, when it was named.
    pub label_field: Option<String>,
    /// The base model as the user named it.
    pub base: String,
    /// How to train.
    pub recipe: Recipe,
    /// The arithmetic as the user named it; `None`: what the device does best.
    #[serde(default)]
    pub precision: Option<String>,
    /// Seconds between checkpoints; changes nothing in the result.
    pub checkpoint_seconds: f32,
}

impl Plan {
    /// Whether the features that a head on an encoder is fitted on come from 8-bit products, where the device has such:
    /// the same that it will read. All else trains in the device's compute type.
    pub(crate) fn int8(&self) -> bool {
        self.precision.as_deref().is_none_or(|name| name == "int8")
    }
}
