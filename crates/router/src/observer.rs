//! What a training run tells while it works.

use engine::{MemoryPlan, StepReport};

/// The run before its first step.
#[derive(Debug, Clone)]
pub struct Started {
    /// Training examples.
    pub examples: usize,
    /// Validation examples.
    pub validation: usize,
    /// Labels.
    pub labels: usize,
    /// Queries that were cut to the longest length.
    pub cut: usize,
    /// Steps in all.
    pub total_steps: u64,
    /// Steps already taken, in a resumed run.
    pub steps_done: u64,
    /// Values that train.
    pub trainable: usize,
    /// Devices that share each step.
    pub devices: usize,
    /// How their gradients are summed, where there are several.
    pub sums: Option<String>,
    /// What the training takes, on the first of several devices; `None` where it is no more than the model itself.
    pub memory: Option<MemoryPlan>,
    /// Parameters of the base model.
    pub parameters: usize,
    /// Examples as the model sees them: the pieces of text and whether they carry loss.
    pub shown: Vec<Vec<(String, bool)>>,
}

/// A validation during training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Validated {
    /// Steps taken.
    pub step: u64,
    /// Accuracy on the validation examples.
    pub accuracy: f64,
    /// Macro-F1 on them.
    pub macro_f1: f64,
    /// Whether its values are those to keep, unless later ones replace them.
    pub kept: bool,
}

/// Listens to a training run; every method may be left empty.
pub trait Observer {
    /// Everything is read and checked; training starts.
    fn started(&mut self, _run: &Started) {}
    /// A step was taken.
    fn stepped(&mut self, _step: &StepReport) {}
    /// Validation rows `done` of `total` are scored.
    fn scoring(&mut self, _done: usize, _total: usize) {}
    /// Asked now and then: whether the training shall go on. When not, it ends with [`crate::Error::Stopped`].
    fn goes_on(&mut self) -> bool {
        true
    }
    /// A validation is over.
    fn validated(&mut self, _validated: &Validated) {}
}

/// Hears nothing.
impl Observer for () {}
