//! Label scoring: the probability of every label, exactly, without sampling.
//!
//! `P(label | query)` is the product of the probabilities of the label's tokens, its end token included, normalised
//! over the labels. The trie of all labels is searched best first. A pass over the model computes the rows of the
//! most promising tokens of every query at once, as one token tree; then the probabilities of their children are
//! known. The search of a query ends when the labels not yet reached cannot hold more than [`ScorerOptions::epsilon`] of the
//! mass that was found. Where there is a [`Draft`], the first pass computes the label that it guesses as well.

use kernels::{Backend, PassSpec};

use crate::draft::Draft;
use crate::forward::{Kv, Scratch};
use crate::model::Model;
use crate::search::Search;
use crate::tree::TokenTree;
use crate::trie::{LabelTrie, Node, ROOT};
use crate::{Error, Result};

/// How scoring runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScorerOptions {
    /// Largest share of the mass that may stay unexplored: bounds the error of every probability. The top label is
    /// exact in any case.
    pub epsilon: f32,
    /// Trie tokens that a pass may compute on suspicion, over all its queries; changes no answer.
    pub spare_tokens: usize,
    /// Rows of a pass over many queries.
    pub rows_per_pass: usize,
}

impl Default for ScorerOptions {
    fn default() -> Self {
        Self { epsilon: 1e-2, spare_tokens: 12, rows_per_pass: 512 }
    }
}

/// Every label's probability for one query.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelScores {
    /// `ln P(label | query)`, normalised over the labels; where the search did not go, an even share of the rest.
    pub log_probs: Vec<f32>,
    /// No label's probability is off by more than this.
    pub error_bound: f32,
    /// `ln` of the labels' share of all that the model might have said: very low for text unlike the training data.
    pub log_mass: f32,
}

impl LabelScores {
    /// The most probable label and its probability.
    pub fn best(&self) -> (usize, f32) {
        let best = self.log_probs.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        best.map_or((0, 0.0), |(label, log_prob)| (label, log_prob.exp()))
    }
}

/// Scores queries against the labels, with the prompt's beginning computed once.
pub struct Scorer<B: Backend> {
    trie: LabelTrie,
    prefix: Vec<u32>,
    options: ScorerOptions,
    draft: Option<Draft>,
    /// Each block's keys and values: the prefix first.
    caches: Vec<B::Narrow>,
    cache_rows: usize,
    scratch: Option<Scratch<B>>,
    /// The log-probabilities that a pass found.
    found: B::Wide,
    pass: Option<B::Pass>,
    recording: B::Recording,
    /// Passes run so far.
    #[cfg(test)]
    pub(crate) passes: usize,
}

impl<B: Backend> Scorer<B> {
    /// Gets ready; `prefix` is the prompt's beginning that all queries share.
    ///
    /// # Errors
    /// When the prefix is longer than the model's positions.
    pub fn new(model: &Model<B>, trie: LabelTrie, prefix: Vec<u32>, options: ScorerOptions) -> Result<Self> {
        check_length(model, prefix.len())?;
        let mut scorer = Self {
            trie,
            prefix,
            options,
            draft: None,
            caches: Vec::new(),
            cache_rows: 0,
            scratch: None,
            found: model.backend.wide(0),
            pass: None,
            recording: B::Recording::default(),
            #[cfg(test)]
            passes: 0,
        };
        scorer.reset(model);
        Ok(scorer)
    }

    /// Guesses labels with `draft` from now on, which makes the scorer faster and changes no answer.
    ///
    /// # Panics
    /// When it is about more labels than there are.
    pub fn guess_with(&mut self, draft: Draft) {
        assert!(draft.labels() <= self.trie.labels(), "a draft of {} labels", draft.labels());
        self.draft = Some(draft);
    }

    /// The labels.
    pub fn trie(&self) -> &LabelTrie {
        &self.trie
    }

    /// Computes the prefix anew: needed whenever the adapter has changed.
    pub fn reset(&mut self, model: &Model<B>) {
        self.reserve(model, self.prefix.len());
        if self.prefix.is_empty() {
            return;
        }
        let mut tree = TokenTree::default();
        tree.push(None, &self.prefix);
        self.run(model, &tree, &[0], &[(0, 0)]);
    }

    /// Scores each query: the tokens from the end of the prefix to where the label starts.
    ///
    /// # Errors
    /// When a query and the longest label do not fit the model's positions, or a query has no tokens.
    pub fn score(&mut self, model: &Model<B>, queries: &[&[u32]]) -> Result<Vec<LabelScores>> {
        let mut scores = Vec::with_capacity(queries.len());
        let mut rest = queries;
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = rest.iter().take_while(|query| {
                rows += query.len();
                rows <= self.options.rows_per_pass
            });
            let (group, later) = rest.split_at(fits.count().max(1));
            scores.extend(self.score_group(model, group)?);
            rest = later;
        }
        Ok(scores)
    }

    fn score_group(&mut self, model: &Model<B>, queries: &[&[u32]]) -> Result<Vec<LabelScores>> {
        let mut question = Question { kv_row: self.prefix.len(), ..Question::default() };
        let root = self.push_prefix(&mut question.tree);
        let mut searches = Vec::with_capacity(queries.len());
        for (index, query) in queries.iter().enumerate() {
            check_length(model, self.prefix.len() + query.len() + self.trie.depth())?;
            let mut search = Search::new(&self.trie, question.kv_row, query.len());
            let mut parent = question.compute(root, query);
            question.ask(&self.trie, ROOT, index);
            let guessed = self.draft.as_ref().map(|draft| self.trie.path(draft.guess(query)));
            for node in guessed.unwrap_or_default() {
                search.compute(node, question.kv_row);
                parent = question.compute(Some(parent), &[self.trie.nodes[node].token]);
                question.ask(&self.trie, node, index);
            }
            searches.push(search);
        }
        // Few queries leave a pass half empty: its room goes to tokens that may be needed later.
        let tokens = self.options.spare_tokens / queries.len();
        loop {
            self.reserve(model, question.kv_row);
            let found = self.run(model, &question.tree, &question.chosen, &question.wanted);
            for (&(index, node), log_prob) in question.asked.iter().zip(found) {
                searches[index].learn(node, log_prob);
            }
            question.clear();
            let root = self.push_prefix(&mut question.tree);
            for (index, search) in searches.iter_mut().enumerate() {
                let needed = search.advance(&self.trie, self.options.epsilon);
                let mut segments = vec![None; if needed.is_empty() { 0 } else { self.trie.nodes.len() }];
                for node in search.suspect(&self.trie, needed, tokens) {
                    let Node { parent, token, .. } = self.trie.nodes[node];
                    let parent = search.segment(&self.trie, parent, root, &mut segments, &mut question.tree);
                    search.compute(node, question.kv_row);
                    segments[node] = Some(question.compute(Some(parent), &[token]));
                    question.ask(&self.trie, node, index);
                }
            }
            if question.chosen.is_empty() {
                return Ok(searches.iter().map(|search| search.finish(&self.trie)).collect());
            }
        }
    }

    fn push_prefix(&self, tree: &mut TokenTree) -> Option<usize> {
        (!self.prefix.is_empty()).then(|| tree.push_cached(None, 0, self.prefix.len() as u32))
    }

    /// Makes room for `rows` rows in every cache, keeping what is there.
    pub(crate) fn reserve(&mut self, model: &Model<B>, rows: usize) {
        if rows <= self.cache_rows {
            return;
        }
        let rows = rows.next_power_of_two();
        let width = 2 * model.attention_shape(0).kv_width();
        let old = std::mem::take(&mut self.caches);
        self.caches = (0..model.blocks.len()).map(|_| model.backend.narrow(rows * width)).collect();
        for (new, old) in self.caches.iter_mut().zip(&old) {
            model.backend.copy(new, old, self.cache_rows * width);
        }
        self.cache_rows = rows;
        self.recording = B::Recording::default();
    }

    /// One pass: computes the tree's live rows, keeps their keys and values in the caches, and returns the
    /// log-probability of each wanted `(index into chosen, token)`.
    pub(crate) fn run(
        &mut self,
        model: &Model<B>,
        tree: &TokenTree,
        chosen: &[u32],
        wanted: &[(u32, u32)],
    ) -> Vec<f32> {
        #[cfg(test)]
        {
            self.passes += 1;
        }
        let ops = &model.backend;
        let more_wanted = ops.wide_len(&self.found) < wanted.len();
        if more_wanted {
            self.found = ops.wide(wanted.len().next_power_of_two());
        }
        let (scratch, more_rows) = Scratch::at_least(self.scratch.take(), model, tree.rows());
        if more_wanted || more_rows {
            self.recording = B::Recording::default();
        }
        let (found, Scratch { stream, saved, .. }) = (&mut self.found, self.scratch.insert(scratch));
        let pass = ops.pass(&PassSpec { chosen, wanted, ..tree.spec() }, self.pass.take());
        ops.record(&mut self.recording, &pass, || {
            model.embed(stream, &pass);
            for (index, cache) in self.caches.iter_mut().enumerate() {
                model.run_block(index, saved, stream, Kv::Cache(cache), &pass);
            }
            model.finish(stream, &pass);
            ops.log_probs(found, &stream.h, model.head(), &pass);
        });
        let mut log_probs = vec![0.0; wanted.len()];
        ops.download(&mut log_probs, found, 0);
        self.pass = Some(pass);
        log_probs
    }
}

/// A pass: what it computes, and what it is asked.
#[derive(Default)]
struct Question {
    tree: TokenTree,
    /// Where the keys and values of the next row go.
    kv_row: usize,
    /// Rows whose predictions are wanted.
    chosen: Vec<u32>,
    /// `(index into chosen, token)`.
    wanted: Vec<(u32, u32)>,
    /// `(query, trie token)` of each wanted one.
    asked: Vec<(usize, usize)>,
}

impl Question {
    /// Computes tokens below a segment; returns theirs.
    fn compute(&mut self, parent: Option<usize>, tokens: &[u32]) -> usize {
        let segment = self.tree.push_at(parent, tokens, self.kv_row as u32);
        self.kv_row += tokens.len();
        segment
    }

    /// Asks for the probabilities of the children of `node`, which the last row predicts.
    fn ask(&mut self, trie: &LabelTrie, node: usize, query: usize) {
        for &child in &trie.nodes[node].children {
            self.wanted.push((self.chosen.len() as u32, trie.nodes[child].token));
            self.asked.push((query, child));
        }
        self.chosen.push(self.tree.rows() as u32 - 1);
    }

    /// Begins the next pass.
    fn clear(&mut self) {
        self.tree.clear();
        self.chosen.clear();
        self.wanted.clear();
        self.asked.clear();
    }
}

fn check_length<B: Backend>(model: &Model<B>, tokens: usize) -> Result<()> {
    if tokens > model.positions() {
        return Err(Error::TooLong { tokens, limit: model.positions() });
    }
    Ok(())
}
