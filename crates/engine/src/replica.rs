//! One device's part of a training: a copy of the model, and its share of each step.

use kernels::{Backend, Linear};

use crate::backward::Tape;
use crate::care::{Care, Hiding};
use crate::classifier::Classifier;
use crate::loss_scale::LossScale;
use crate::model::Model;
use crate::optimizer::Optimizer;
use crate::trainable::Trainable;
use crate::trainer::{BESIDE_PASSES, Example, TrainerOptions, most_rows, with_growth};
use crate::tree::{Labelled, TokenTree};
use crate::{Error, Result};

/// All examples of a training, and the beginning that they share.
pub(crate) struct Examples {
    pub(crate) prefix: Vec<u32>,
    pub(crate) all: Vec<Example>,
}

impl Examples {
    /// Rows of each example of a batch, without the shared beginning.
    pub(crate) fn rows<'a>(&'a self, batch: &'a [u32]) -> impl Iterator<Item = usize> + 'a {
        batch.iter().map(|&index| self.all[index as usize].read())
    }
}

/// A model on a device, with all that its training needs there.
pub(crate) struct Replica<B: Backend> {
    pub(crate) model: Model<B>,
    /// The head of an encoder, with the current values.
    pub(crate) classifier: Option<Classifier>,
    pub(crate) optimizer: Optimizer<B>,
    rows_per_pass: usize,
    recompute: bool,
    hiding: Option<Hiding>,
    tape: Option<Tape<B>>,
    tree: TokenTree,
    losses: Vec<f32>,
}

impl<B: Backend> Replica<B> {
    /// Opens the model for what trains.
    pub(crate) fn new(mut model: Model<B>, trainable: &Trainable, options: &TrainerOptions) -> Self {
        match trainable.adapter(model.config()) {
            Some(adapter) => model.attach(&adapter),
            None => model.train_weights(),
        }
        let (width, at) = (model.config().hidden_size, trainable.head_at(model.config()));
        let (pooling, smoothing) = (model.config().pooling, options.care.smoothing);
        let classifier =
            trainable.classes.map(|classes| Classifier::new(at, classes, width, pooling, smoothing));
        let mut optimizer = Optimizer::new(&model.backend, &trainable.values);
        if let (Some(weights), Care { layer_decay, head_rate, .. }) = (&model.weights, options.care) {
            let depths = weights.depths().into_iter();
            let rates = depths.map(|(range, depth)| (range, layer_decay.powi(depth as i32)));
            optimizer.set_rates(rates.chain([(at..trainable.values.len(), head_rate)]));
        }
        let (most, recompute) = (most_rows(&model.backend), options.recompute);
        let fit = || rows_that_fit(&model, recompute).map_or(most, |fit| fit.min(most));
        let rows_per_pass = options.rows_per_pass.unwrap_or_else(fit);
        let (tape, tree, losses) = (None, TokenTree::default(), Vec::new());
        let hiding = options.care.hiding;
        let mut replica =
            Self { model, classifier, optimizer, rows_per_pass, recompute, hiding, tape, tree, losses };
        replica.refresh();
        replica
    }

    /// Takes the optimizer's values into the model and its head.
    pub(crate) fn refresh(&mut self) {
        let parameters = &self.optimizer.parameters;
        self.model.refresh(parameters);
        if let Some(Classifier { at, values, .. }) = &mut self.classifier {
            self.model.backend.download(values, parameters, *at);
        }
    }

    /// Replaces the values that train.
    pub(crate) fn replace(&mut self, values: &[f32]) {
        self.model.backend.upload(&mut self.optimizer.parameters, 0, values);
        self.refresh();
    }

    /// Gives the buffers of the passes back.
    pub(crate) fn rest(&mut self) {
        self.tape = None;
    }

    /// A buffer's values.
    pub(crate) fn host(&self, buffer: &B::Wide) -> Vec<f32> {
        let backend = &self.model.backend;
        let mut values = vec![0.0; backend.wide_len(buffer)];
        backend.download(&mut values, buffer, 0);
        values
    }

    /// The share of some examples in the loss of a batch whose target tokens weigh `total`, the rows that were
    /// computed, and the share in its gradients, times the loss scale, in the optimizer.
    pub(crate) fn add_gradients(
        &mut self,
        examples: &Examples,
        share: &[u32],
        total: f32,
        scale: LossScale,
    ) -> Result<(f64, usize)> {
        self.optimizer.clear_gradients(&self.model.backend);
        if let Some(classifier) = &mut self.classifier {
            classifier.gradients.fill(0.0);
        }
        let scale = scale.factor;
        let (mut loss, mut rows, mut rest) = (0.0f64, 0, share);
        let most = self.rows_of_a_pass(examples, share);
        while !rest.is_empty() {
            let (taken, labelled) = self.plant(examples, rest, scale / total, most);
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
        Ok((loss, rows))
    }

    /// Rows of a pass over these examples, so that the passes are as few as may be, and about as large as each other.
    fn rows_of_a_pass(&self, examples: &Examples, share: &[u32]) -> usize {
        let (most, prefix) = (self.rows_per_pass, examples.prefix.len());
        let rows: usize = examples.rows(share).sum();
        let passes = rows.div_ceil(most.saturating_sub(prefix).max(1));
        let longest = examples.rows(share).max().unwrap_or(0);
        most.min(prefix + rows.div_ceil(passes.max(1)) + longest)
    }

    /// Grows a tree from the first of these examples that fit a pass (at least one): the shared beginning once,
    /// each query with its label below it. Returns how many it took, and the rows that carry loss.
    fn plant(
        &mut self,
        examples: &Examples,
        share: &[u32],
        weight: f32,
        most: usize,
    ) -> (usize, Vec<Labelled>) {
        self.tree.clear();
        let root = (!examples.prefix.is_empty()).then(|| self.tree.push(None, &examples.prefix));
        let (mut taken, mut labelled, mut tokens) = (0, Vec::new(), Vec::new());
        for &index in share {
            let Example { query, target, weight: own } = &examples.all[index as usize];
            // The last label token is predicted, never read.
            let read = &target[..target.len() - 1];
            if taken > 0 && self.tree.rows() + query.len() + read.len() > most {
                break;
            }
            tokens.clear();
            tokens.extend_from_slice(query);
            if let Some(hiding) = self.hiding {
                hiding.hide(&mut tokens, self.optimizer.steps, index);
            }
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
                let (model, recompute) = (&self.model, self.recompute);
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
