//! What a frozen model makes of a text: one vector, for a linear head to read.
//!
//! Of an encoder it is the mean of the outputs over the text's tokens or the output at the first, as its configuration
//! says, of a decoder the final norm's output at the last token, which has seen them all.

use std::ops::Range;

use formats::Pooling;
use kernels::{Backend, PassSpec};

use crate::forward::{Kv, Scratch};
use crate::model::Model;
use crate::tree::TokenTree;
use crate::{Error, Result};

/// Computes features; keeps its buffers between calls.
pub struct Features<B: Backend> {
    /// Tokens that every text of a decoder begins with.
    prefix: Vec<u32>,
    scratch: Option<Scratch<B>>,
    pass: Option<B::Pass>,
}

impl<B: Backend> Features<B> {
    /// `prefix` stands before every text; an encoder's texts come whole.
    pub fn new(prefix: Vec<u32>) -> Self {
        Self { prefix, scratch: None, pass: None }
    }

    /// A vector of the hidden size for each text, one after the other; `progress` is told how many are done.
    ///
    /// # Errors
    /// When a text has no tokens, or more than the model's positions.
    pub fn compute(
        &mut self,
        model: &Model<B>,
        texts: &[&[u32]],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        let width = model.config().hidden_size;
        for text in texts {
            let (tokens, limit) = (self.prefix.len() + text.len(), model.positions());
            if tokens > limit {
                return Err(Error::TooLong { tokens, limit });
            }
            if tokens == 0 {
                return Err(Error::NoTokens);
            }
        }
        // On a processor the values of so few rows stay in its caches; a longer text has a pass of its own.
        let most = model.backend().rows_at_once() / 2;
        let mut features = Vec::with_capacity(texts.len() * width);
        let mut rest = texts;
        let mut tree = TokenTree::default();
        while !rest.is_empty() {
            tree.clear();
            let root = (!self.prefix.is_empty()).then(|| tree.push(None, &self.prefix));
            let mut chosen = Vec::new();
            for text in rest {
                if !chosen.is_empty() && tree.rows() + text.len() > most {
                    break;
                }
                tree.push(root, text);
                chosen.push(tree.rows() as u32 - 1);
            }
            rest = &rest[chosen.len()..];
            self.pass(model, &tree, &chosen, &mut features);
            progress(texts.len() - rest.len());
        }
        Ok(features)
    }

    /// Appends the features of the texts that end at the rows `chosen`.
    fn pass(&mut self, model: &Model<B>, tree: &TokenTree, chosen: &[u32], features: &mut Vec<f32>) {
        let (ops, width) = (model.backend(), model.config().hidden_size);
        let (scratch, _) = Scratch::at_least(self.scratch.take(), model, tree.rows());
        let Scratch { stream, saved, .. } = self.scratch.insert(scratch);
        let pass = ops.pass(&PassSpec { chosen, ..tree.spec() }, self.pass.take());
        model.embed(stream, &pass);
        for index in 0..model.blocks.len() {
            model.run_block(index, saved, stream, Kv::Own, &pass);
        }
        model.finish(stream, &pass);
        if model.is_encoder() {
            let mut outputs = vec![0.0; tree.rows() * width];
            ops.download(&mut outputs, &stream.x, 0);
            features.extend(pooled(&outputs, chosen, width, model.config().pooling));
        } else {
            ops.widen(&mut stream.x, &stream.h, chosen.len() * width);
            let start = features.len();
            features.resize(start + chosen.len() * width, 0.0);
            ops.download(&mut features[start..], &stream.x, 0);
        }
        self.pass = Some(pass);
    }
}

/// The mean or the first row of each text; `ends` are the texts' last rows.
pub(crate) fn pooled(outputs: &[f32], ends: &[u32], width: usize, pooling: Pooling) -> Vec<f32> {
    let mut pooled = vec![0.0; ends.len() * width];
    let mut first = 0;
    for (vector, &end) in pooled.chunks_exact_mut(width).zip(ends) {
        let rows = read_rows(first, end, pooling);
        let share = rows.len() as f32;
        for row in outputs[rows.start * width..rows.end * width].chunks_exact(width) {
            vector.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        for sum in vector {
            *sum /= share;
        }
        first = end as usize + 1;
    }
    pooled
}

/// The rows of a text from row `first` to row `end` whose mean is the text's vector.
pub(crate) fn read_rows(first: usize, end: u32, pooling: Pooling) -> Range<usize> {
    match pooling {
        Pooling::Mean => first..end as usize + 1,
        Pooling::First => first..first + 1,
    }
}
