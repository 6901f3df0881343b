//! The training loop's one step: batch, token tree, gradients, optimizer.

use formats::ModelConfig;
use kernels::Backend;
use serde::{Deserialize, Serialize};

use crate::care::Care;
use crate::classifier::Classifier;
use crate::head::Head;
use crate::lora::Adapter;
use crate::loss_scale::LossScale;
use crate::model::Model;
use crate::optimizer::{Optimizer, OptimizerOptions};
use crate::replica::{Examples, Replica};
use crate::replicas::Replicas;
use crate::sampler::Sampler;
use crate::trainable::{Body, Trainable};
use crate::{Error, Result};

/// One example as tokens; the shared beginning of the prompt is not in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// From the end of the shared beginning to where the label starts; at least one token.
    pub query: Vec<u32>,
    /// What is predicted: the label's tokens with its end token; of an encoder the label's index alone.
    pub target: Vec<u32>,
    /// Factor of its loss.
    pub weight: f32,
}

impl Example {
    /// Rows of a pass that it takes: the last token of the target is predicted, never read.
    pub fn read(&self) -> usize {
        self.query.len() + self.target.len() - 1
    }
}

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerOptions {
    /// Learning rate at its highest.
    pub lr: f32,
    /// The optimizer's other settings.
    pub optimizer: OptimizerOptions,
    /// What is done in a training of every weight of an encoder.
    pub care: Care,
    /// Examples a step, over all replicas.
    pub batch: usize,
    /// Rows a pass; a step whose tree is larger takes several passes and gives the same gradient. `None`: twice what
    /// keeps the device busy, or what its memory has room for.
    pub rows_per_pass: Option<usize>,
    /// Keeps only the input of each block of a decoder, and computes the rest once more in the backward pass: less
    /// memory, more time, the same bits.
    pub recompute: bool,
    /// Steps in all; the schedule ends with them.
    pub total_steps: u64,
    /// Of the sampling order.
    pub seed: u64,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Count from 1.
    pub step: u64,
    /// Mean loss of the labelled tokens, before the update.
    pub loss: f32,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
    /// Learning rate of the step.
    pub lr: f32,
    /// Examples seen.
    pub examples: usize,
    /// Rows computed, over all replicas: each example's own tokens, and the shared beginning once a pass.
    pub rows: usize,
    /// Tokens that padding-free but unshared training would have computed.
    pub tokens: usize,
}

/// Everything that changes during training, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The values that train.
    pub parameters: Vec<f32>,
    /// First moments.
    pub first: Vec<f32>,
    /// Second moments.
    pub second: Vec<f32>,
    /// Steps taken.
    pub steps: u64,
    /// Of the next step.
    pub loss_scale: LossScale,
}

/// A model in training, on one device or as replicas on several.
pub struct Trainer<B: Backend> {
    replicas: Replicas<B>,
    body: Body,
    loss_scale: LossScale,
    /// Of the last step's gradients.
    gradients_scale: f32,
    options: TrainerOptions,
    sampler: Sampler,
    examples: Examples,
}

impl<B: Backend> Trainer<B> {
    /// Opens the models, replicas of one that lie on a device each, for what trains, an adapter or more, and gets
    /// ready for the first step. Several learn what one would with the whole batch, but for the rounding of sums.
    ///
    /// # Errors
    /// When an example does not fit the model's positions, or an encoder shall be recomputed.
    ///
    /// # Panics
    /// When there is no model, or an encoder has no head.
    pub fn new(
        models: impl Into<Vec<Model<B>>>,
        trainable: impl Into<Trainable>,
        prefix: Vec<u32>,
        examples: Vec<Example>,
        sampler: Sampler,
        options: TrainerOptions,
    ) -> Result<Self> {
        let (models, trainable) = (models.into(), trainable.into());
        let longest = examples.iter().map(|e| e.query.len() + e.target.len()).max().unwrap_or(0);
        for model in &models {
            let (tokens, limit) = (prefix.len() + longest, model.positions());
            if tokens > limit {
                return Err(Error::TooLong { tokens, limit });
            }
            if options.recompute && model.is_encoder() {
                return Err(Error::Recompute);
            }
            assert_eq!(model.is_encoder(), trainable.classes.is_some(), "an encoder trains with a head");
        }
        let replicas = Replicas::new(models, &trainable, &options);
        let loss_scale = LossScale::new(&replicas.first().model.backend);
        Ok(Self {
            replicas,
            body: trainable.body,
            loss_scale,
            gradients_scale: 1.0,
            options,
            sampler,
            examples: Examples { prefix, all: examples },
        })
    }

    /// How the replicas' gradients are summed, where there are several.
    pub fn sums(&self) -> Option<String> {
        self.replicas.sums()
    }

    /// The model with its current values, on the first device.
    pub fn model(&self) -> &Model<B> {
        &self.replicas.first().model
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.replicas.first().optimizer.steps
    }

    /// Values that train.
    pub fn parameters(&self) -> usize {
        self.model().backend.wide_len(&self.replicas.first().optimizer.parameters)
    }

    /// Most bytes that one of the devices held at a time; `None` where memory is the process's own.
    pub fn peak_bytes(&self) -> Option<usize> {
        self.replicas.all().iter().filter_map(|replica| replica.model.backend.peak_bytes()).max()
    }

    /// Takes one step.
    ///
    /// # Errors
    /// When the loss is no longer a finite number.
    pub fn step(&mut self) -> Result<StepReport> {
        let step = self.steps();
        let batch = self.sampler.batch(step);
        let of = |&index: &u32| &self.examples.all[index as usize];
        let total: f32 = batch.iter().map(of).map(|e| e.weight * e.target.len() as f32).sum();
        let tokens = batch.iter().map(of).map(|e| self.examples.prefix.len() + e.read()).sum();

        let (loss, rows, gradient_norm) = loop {
            let (loss, rows) = self.replicas.add_gradients(&self.examples, batch, total, self.loss_scale)?;
            if !loss.is_finite() {
                return Err(Error::Diverged { step: step + 1, loss });
            }
            let Replica { optimizer, model, .. } = self.replicas.first();
            let norm = optimizer.norm(&model.backend, self.loss_scale.factor);
            if norm.is_finite() || !self.loss_scale.halve() {
                break (loss, rows, norm);
            }
        };
        let (options, norm) = (&self.options, (gradient_norm, self.loss_scale.factor));
        let lr = self.replicas.each(|replica| {
            let Replica { optimizer, model, .. } = replica;
            let lr =
                optimizer.step(&model.backend, &options.optimizer, norm, options.lr, options.total_steps);
            replica.refresh();
            lr
        });
        self.gradients_scale = self.loss_scale.factor;
        self.loss_scale.went_well(&self.replicas.first().model.backend);
        Ok(StepReport { step: step + 1, loss, gradient_norm, lr, examples: batch.len(), rows, tokens })
    }

    /// Gives the buffers of the first device's passes back until the next step: room for something else.
    pub fn rest(&mut self) {
        self.replicas.first_mut().rest();
    }

    /// Replaces the values that train; for after the last step, as the optimizer's state is left alone.
    ///
    /// # Panics
    /// When there are more or fewer of them.
    pub fn replace(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.parameters(), "one value for each parameter");
        self.replicas.each(|replica| replica.replace(values));
    }

    /// What trains, with its current values.
    pub fn trainable(&self) -> Trainable {
        let Replica { classifier, optimizer, .. } = self.replicas.first();
        let classes = classifier.as_ref().map(|classifier| classifier.classes);
        let values = self.replicas.first().host(&optimizer.parameters);
        Trainable { body: self.body.clone(), classes, values }
    }

    /// The current adapter.
    ///
    /// # Panics
    /// When it is the weights that train.
    pub fn adapter(&self) -> Adapter {
        self.trainable().adapter(self.config()).expect("LoRA is what trains")
    }

    /// Whether every weight trains.
    pub fn trains_weights(&self) -> bool {
        self.body == Body::Weights
    }

    /// The current head of an encoder.
    pub fn head(&self) -> Option<Head> {
        self.replicas.first().classifier.as_ref().map(Classifier::head)
    }

    /// The gradients of the last step, laid out as the values that train.
    pub fn gradients(&self) -> Vec<f32> {
        let replica = self.replicas.first();
        let scaled = replica.host(&replica.optimizer.gradients);
        scaled.into_iter().map(|gradient| gradient / self.gradients_scale).collect()
    }

    /// Everything that changes during training.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_of(self.replicas.first())
    }

    fn snapshot_of(&self, replica: &Replica<B>) -> Snapshot {
        let Optimizer { parameters, first, second, steps, .. } = &replica.optimizer;
        let [parameters, first, second] = [parameters, first, second].map(|buffer| replica.host(buffer));
        Snapshot { parameters, first, second, steps: *steps, loss_scale: self.loss_scale }
    }

    /// Of each replica.
    #[cfg(test)]
    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        self.replicas.all().iter().map(|replica| self.snapshot_of(replica)).collect()
    }

    /// Goes on from a snapshot as if nothing had happened since.
    ///
    /// # Errors
    /// When the snapshot is of something else.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        let (found, expected) = (snapshot.parameters.len(), self.parameters());
        if found != expected || snapshot.first.len() != expected || snapshot.second.len() != expected {
            return Err(Error::Snapshot {
                problem: format!("it has {found} parameters, this run {expected}"),
            });
        }
        self.replicas.each(|replica| {
            let (backend, optimizer) = (&replica.model.backend, &mut replica.optimizer);
            backend.upload(&mut optimizer.first, 0, &snapshot.first);
            backend.upload(&mut optimizer.second, 0, &snapshot.second);
            optimizer.steps = snapshot.steps;
            replica.replace(&snapshot.parameters);
        });
        self.loss_scale = snapshot.loss_scale;
        Ok(())
    }

    /// The models, when training is over, in the order of their devices.
    pub fn into_models(self) -> Vec<Model<B>> {
        self.replicas.into_models()
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        self.model().config()
    }
}

/// Bytes that a device needs beside the buffers of a pass: logits, most of all.
pub(crate) const BESIDE_PASSES: usize = 768 << 20;

/// Rows of a pass, where they were not asked for.
pub(crate) fn most_rows<B: Backend>(backend: &B) -> usize {
    2 * backend.rows_at_once()
}

/// Some rows more, so that a slightly longer batch does not allocate everything anew.
pub(crate) fn with_growth(rows: usize) -> usize {
    rows + rows / 64
}
