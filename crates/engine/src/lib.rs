//! The training and scoring engine: token trees, the block, LoRA, the optimizer, the trainer and the label scorer.
//!
//! It knows tokens and tensors, not departments. Everything runs over a [`TokenTree`]: shared beginnings are computed
//! once and nothing is padded. The mathematics is the list of ops in [`kernels::Backend`].

mod backward;
mod block;
mod care;
mod ceiling;
mod classifier;
mod draft;
mod error;
mod features;
mod forward;
mod head;
mod image;
mod load;
mod lora;
mod loss_scale;
mod memory;
mod merge;
mod model;
mod optimizer;
#[cfg(test)]
mod parity;
mod replica;
mod replicas;
mod sampler;
mod scorer;
mod search;
mod trainable;
mod trainer;
mod tree;
mod trie;
mod weights;

pub use care::{Care, Hiding};
pub use draft::{Draft, DraftEntry};
pub use error::{Error, Result};
pub use features::Features;
pub use head::{Head, HeadFit, HeadProblem};
pub use load::Storage;
pub use lora::{Adapter, Lora, LoraEntry, Projection};
pub use loss_scale::LossScale;
pub use memory::{MemoryPlan, PassSizes};
pub use model::Model;
pub use optimizer::{OptimizerOptions, Schedule};
pub use sampler::{Balance, Sampler};
pub use scorer::{LabelScores, Scorer, ScorerOptions};
pub use trainable::{Body, Trainable};
pub use trainer::{Example, Snapshot, StepReport, Trainer, TrainerOptions};
pub use tree::{Labelled, TokenTree};
pub use trie::LabelTrie;
pub use weights::{WeightEntry, Weights};
