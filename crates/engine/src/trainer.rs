//! The training loop's one step: batch, token tree, gradients, optimizer.

use formats::ModelConfig;
use kernels::{Backend, Linear};
use serde::{Deserialize, Serialize};

use crate::backward::Tape;
use crate::classifier::Classifier;
use crate::head::Head;
use crate::lora::Adapter;
use crate::loss_scale::LossScale;
use crate::model::Model;
use crate::optimizer::{Optimizer, OptimizerOptions};
use crate::sampler::Sampler;
use crate::trainable::{Body, Trainable};
use crate::tree::{Labelled, TokenTree};
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
    /// Examples a step.
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
    /// Rows computed: each example's own tokens, and the shared beginning once a pass.
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

/// A model in training.
pub struct Trainer<B: Backend> {
    model: Model<B>,
    body: Body,
    /// The head of an encoder, with the current values.
    classifier: Option<Classifier>,
    optimizer: Optimizer<B>,
    loss_scale: LossScale,
    /// Of the last step's gradients.
    gradients_scale: f32,
    options: TrainerOptions,
    rows_per_pass: usize,
    sampler: Sampler,
    prefix: Vec<u32>,
    examples: Vec<Example>,
    tape: Option<Tape<B>>,
    tree: TokenTree,
    losses: Vec<f32>,
}

impl<B: Backend> Trainer<B> {
    /// Opens the model for what trains, an adapter or more, and gets ready for the first step.
    ///
    /// # Errors
    /// When an example does not fit the model's positions, or an encoder shall be recomputed.
    ///
    /// # Panics
    /// When an encoder has no head.
    pub fn new(
        mut model: Model<B>,
        trainable: impl Into<Trainable>,
        prefix: Vec<u32>,
        examples: Vec<Example>,
        sampler: Sampler,
        options: TrainerOptions,
    ) -> Result<Self> {
        let longest = examples.iter().map(|e| e.query.len() + e.target.len()).max().unwrap_or(0);
        let (tokens, limit) = (prefix.len() + longest, model.positions());
        if tokens > limit {
            return Err(Error::TooLong { tokens, limit });
        }
        if options.recompute && model.is_encoder() {
            return Err(Error::Recompute);
        }
        let trainable = trainable.into();
        assert_eq!(model.is_encoder(), trainable.classes.is_some(), "an encoder trains with a head");
        match trainable.adapter(model.config()) {
            Some(adapter) => model.attach(&adapter),
            None => model.train_weights(),
        }
        let (width, at) = (model.config().hidden_size, trainable.head_at(model.config()));
        let classifier = trainable.classes.map(|classes| Classifier::new(at, classes, width));
        let optimizer = Optimizer::new(model.backend(), &trainable.values);
        let (tree, losses, tape) = (TokenTree::default(), Vec::new(), None);
        let body = trainable.body;
        let most = most_rows(&model.backend);
        let rows_per_pass = options
            .rows_per_pass
            .unwrap_or_else(|| rows_that_fit(&model, options.recompute).map_or(most, |fit| fit.min(most)));
        let loss_scale = LossScale::new(&model.backend);
        let mut trainer = Self {
            model,
            body,
            classifier,
            optimizer,
            loss_scale,
            gradients_scale: 1.0,
            options,
            rows_per_pass,
            sampler,
            prefix,
            examples,
            tape,
            tree,
            losses,
        };
        trainer.refresh();
        Ok(trainer)
    }

    /// Takes the optimizer's values into the model and its head.
    fn refresh(&mut self) {
        let parameters = &self.optimizer.parameters;
        self.model.refresh(parameters);
        if let Some(Classifier { at, values, .. }) = &mut self.classifier {
            self.model.backend.download(values, parameters, *at);
        }
    }

    /// The model with its current values.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps
    }

    /// Values that train.
    pub fn parameters(&self) -> usize {
        self.model.backend.wide_len(&self.optimizer.parameters)
    }

    /// Takes one step.
    ///
    /// # Errors
    /// When the loss is no longer a finite number.
    pub fn step(&mut self) -> Result<StepReport> {
        let step = self.optimizer.steps;
        let batch = self.sampler.batch(step).to_vec();
        let of = |&index: &u32| &self.examples[index as usize];
        let total: f32 = batch.iter().map(of).map(|e| e.weight * e.target.len() as f32).sum();
        let tokens = batch.iter().map(of).map(|e| self.prefix.len() + e.read()).sum();

        let (loss, rows, gradient_norm) = loop {
            let (loss, rows) = self.add_gradients(&batch, total)?;
            if !loss.is_finite() {
                return Err(Error::Diverged { step: step + 1, loss });
            }
            let norm = self.optimizer.norm(self.model.backend(), self.loss_scale.factor);
            if norm.is_finite() || !self.loss_scale.halve() {
                break (loss, rows, norm);
            }
        };
        let (backend, options) = (&self.model.backend, &self.options);
        let norm = (gradient_norm, self.loss_scale.factor);
        let lr = self.optimizer.step(backend, &options.optimizer, norm, options.lr, options.total_steps);
        self.gradients_scale = self.loss_scale.factor;
        self.loss_scale.went_well(backend);
        self.refresh();
        Ok(StepReport { step: step + 1, loss, gradient_norm, lr, examples: batch.len(), rows, tokens })
    }

    /// The loss of a batch whose target tokens weigh `total`, the rows that were computed, and its gradients, times the
    /// loss scale, in the optimizer.
    fn add_gradients(&mut self, batch: &[u32], total: f32) -> Result<(f32, usize)> {
        self.optimizer.clear_gradients(self.model.backend());
        if let Some(classifier) = &mut self.classifier {
            classifier.gradients.fill(0.0);
        }
        let scale = self.loss_scale.factor;
        let (mut loss, mut rows, mut rest) = (0.0f64, 0, batch);
        let most = self.rows_of_a_pass(batch);
        while !rest.is_empty() {
            let (taken, labelled) = self.plant(rest, scale / total, most);
            rows += self.tree.rows();
            self.pass(&labelled)?;
            let weighted =
                self.losses.iter().zip(&labelled).map(|(loss, l)| f64::from(*loss) * f64::from(l.weight));
            loss += weighted.sum::<f64>() / f64::from(scale);
            rest = &rest[taken..];
        }
        if let Some(Classifier { at, gradients, .. }) = &self.classifier {
            self.model.backend.upload(&mut self.optimizer.gradients, *at, gradients);
        }
        Ok((loss as f32, rows))
    }

    /// Gives the buffers of the passes back until the next step: room for something else.
    pub fn rest(&mut self) {
        self.tape = None;
    }

    /// Replaces the values that train; for after the last step, as the optimizer's state is left alone.
    ///
    /// # Panics
    /// When there are more or fewer of them.
    pub fn replace(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.parameters(), "one value for each parameter");
        self.model.backend.upload(&mut self.optimizer.parameters, 0, values);
        self.refresh();
    }

    /// What trains, with its current values.
    pub fn trainable(&self) -> Trainable {
        let classes = self.classifier.as_ref().map(|classifier| classifier.classes);
        Trainable { body: self.body.clone(), classes, values: self.host(&self.optimizer.parameters) }
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
        self.classifier.as_ref().map(Classifier::head)
    }

    /// The gradients of the last step, laid out as the values that train.
    pub fn gradients(&self) -> Vec<f32> {
        let scaled = self.host(&self.optimizer.gradients);
        scaled.into_iter().map(|gradient| gradient / self.gradients_scale).collect()
    }

    /// Everything that changes during training.
    pub fn snapshot(&self) -> Snapshot {
        let Optimizer { parameters, first, second, steps, .. } = &self.optimizer;
        let [parameters, first, second] = [parameters, first, second].map(|buffer| self.host(buffer));
        Snapshot { parameters, first, second, steps: *steps, loss_scale: self.loss_scale }
    }

    /// Goes on from a snapshot as if nothing had happened since.
    ///
    /// # Errors
    /// When the snapshot is of something else.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        let (backend, optimizer) = (&self.model.backend, &mut self.optimizer);
        let (found, expected) = (snapshot.parameters.len(), backend.wide_len(&optimizer.parameters));
        if found != expected || snapshot.first.len() != expected || snapshot.second.len() != expected {
            return Err(Error::Snapshot {
                problem: format!("it has {found} parameters, this run {expected}"),
            });
        }
        backend.upload(&mut optimizer.parameters, 0, &snapshot.parameters);
        backend.upload(&mut optimizer.first, 0, &snapshot.first);
        backend.upload(&mut optimizer.second, 0, &snapshot.second);
        optimizer.steps = snapshot.steps;
        self.loss_scale = snapshot.loss_scale;
        self.refresh();
        Ok(())
    }

    /// The model, when training is over.
    pub fn into_model(self) -> Model<B> {
        self.model
    }

    /// The model's sizes.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Rows of a pass over this batch, so that its passes are as few as may be, and about as large as each other.
    fn rows_of_a_pass(&self, batch: &[u32]) -> usize {
        let (most, prefix) = (self.rows_per_pass, self.prefix.len());
        let own = |&index: &u32| self.examples[index as usize].read();
        let rows: usize = batch.iter().map(own).sum();
        let passes = rows.div_ceil(most.saturating_sub(prefix).max(1));
        let longest = batch.iter().map(own).max().unwrap_or(0);
        most.min(prefix + rows.div_ceil(passes.max(1)) + longest)
    }

    /// Grows a tree from the first examples of `batch` that fit a pass (at least one): the shared beginning once,
    /// each query with its label below it. Returns how many it took, and the rows that carry loss.
    fn plant(&mut self, batch: &[u32], weight: f32, most: usize) -> (usize, Vec<Labelled>) {
        self.tree.clear();
        let root = (!self.prefix.is_empty()).then(|| self.tree.push(None, &self.prefix));
        let (mut taken, mut labelled, mut tokens) = (0, Vec::new(), Vec::new());
        for &index in batch {
            let Example { query, target, weight: own } = &self.examples[index as usize];
            // The last label token is predicted, never read.
            let read = &target[..target.len() - 1];
            if taken > 0 && self.tree.rows() + query.len() + read.len() > most {
                break;
            }
            tokens.clear();
            tokens.extend_from_slice(query);
            tokens.extend_from_slice(read);
            let first = self.tree.rows() + query.len() - 1;
            self.tree.push(root, &tokens);
            labelled.extend(target.iter().enumerate().map(|(i, &target)| Labelled {
                row: (first + i) as u32,
                target,
                weight: weight * own,
            }));
            taken += 1;
        }
        (taken, labelled)
    }

    fn pass(&mut self, labelled: &[Labelled]) -> Result<()> {
        let rows = self.tree.rows();
        let tape = match self.tape.take() {
            Some(tape) if tape.capacity() >= rows => tape,
            smaller => {
                drop(smaller);
                let (model, recompute) = (&self.model, self.options.recompute);
                if let (Some(fit), Some(free)) = (rows_that_fit(model, recompute), model.backend.free_bytes())
                    && fit < rows
                {
                    let needed = BESIDE_PASSES + rows * row_bytes(model, recompute);
                    return Err(Error::Room { rows, needed, free, fit });
                }
                let room = with_growth(rows).min(rows.max(self.rows_per_pass));
                Tape::new(model, model.backend.room(room), recompute)
            }
        };
        let tape = self.tape.insert(tape);
        let (gradients, classifier) = (&mut self.optimizer.gradients, self.classifier.as_mut());
        let (losses, tree) = (&mut self.losses, &self.tree);
        self.model.loss_and_gradients(gradients, classifier, losses, tape, tree, labelled);
        Ok(())
    }

    fn host(&self, buffer: &B::Wide) -> Vec<f32> {
        let backend = self.model.backend();
        let mut values = vec![0.0; backend.wide_len(buffer)];
        backend.download(&mut values, buffer, 0);
        values
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

/// Rows of the largest pass for which the device has room, where it has a memory of its own.
fn rows_that_fit<B: Backend>(model: &Model<B>, recompute: bool) -> Option<usize> {
    let free = model.backend.free_bytes()?.saturating_sub(BESIDE_PASSES);
    // A pass is rounded up, with some room to grow: less than a sixteenth together.
    Some(free / row_bytes(model, recompute) * 15 / 16)
}

fn row_bytes<B: Backend>(model: &Model<B>, recompute: bool) -> usize {
    let block = &model.blocks[0];
    let mids = [&block.qkv, &block.out, &block.up, &block.down].map(Linear::mid_width);
    Tape::<B>::row_bytes(model.config(), mids, model.backend.narrow_size(), recompute)
}
