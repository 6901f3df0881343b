//! What can go wrong in the engine.

use crate::memory::MemoryPlan;

/// The engine's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model's files could not be used.
    #[error("could not load the base model")]
    Model(#[from] formats::Error),
    /// A row does not fit the model's positions.
    #[error("an example has {tokens} tokens with its prompt, the model reads at most {limit}")]
    TooLong {
        /// Tokens from the prompt's first to the label's last.
        tokens: usize,
        /// The model's positions.
        limit: usize,
    },
    /// A text of which nothing is left.
    #[error("a text has no tokens")]
    NoTokens,
    /// Two labels are the same tokens, or one has none.
    #[error("label {first} and label {second} become the same tokens, so no score can tell them apart")]
    SameLabel {
        /// Index of the one.
        first: usize,
        /// Index of the other.
        second: usize,
    },
    /// A label without tokens.
    #[error("label {label} has no tokens")]
    EmptyLabel {
        /// Its index.
        label: usize,
    },
    /// An adapter that does not fit the model.
    #[error("adapter tensor `{tensor}`: {problem}")]
    Adapter {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// The loss is not a number.
    #[error("the loss became {loss} at step {step}: the learning rate is probably too high")]
    Diverged {
        /// The step.
        step: u64,
        /// The loss.
        loss: f32,
    },
    /// There is no room for the training.
    #[error(
        "the training takes {plan}; {:.2} GB are free: {}",
        *free as f64 / 1e9,
        fit.map_or_else(
            || format!("even passes of {} rows, the longest example, do not fit", plan.least),
            |fit| format!("passes of {fit} rows would fit"),
        )
    )]
    Memory {
        /// What it takes.
        plan: Box<MemoryPlan>,
        /// Bytes that are free.
        free: usize,
        /// Rows of the largest pass for which there is room.
        fit: Option<usize>,
    },
    /// There is no room for a pass.
    #[error(
        "a pass of {rows} rows takes {} MiB of device memory, {} MiB are free: {fit} rows would fit",
        needed >> 20,
        free >> 20
    )]
    Room {
        /// Rows of the pass.
        rows: usize,
        /// Bytes that it takes.
        needed: usize,
        /// Bytes that are free.
        free: usize,
        /// Rows of the largest pass for which there is room.
        fit: usize,
    },
    /// An encoder's blocks are not computed again.
    #[error("an encoder's passes are kept whole: recomputing blocks is for decoders")]
    Recompute,
    /// A packed copy that holds something else than the model.
    #[error("the packed copy of the model does not hold its matrix of {rows} x {cols}")]
    Image {
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
    /// A snapshot from another set-up.
    #[error("the checkpoint does not fit: {problem}")]
    Snapshot {
        /// What differs.
        problem: String,
    },
}
