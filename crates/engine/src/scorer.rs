//! Label scoring: the probability of every label, exactly, without sampling.
//!
//! `P(label | query)` is the product of the probabilities of the label's tokens, its end token included, normalised
//! over the labels. The trie of all labels is searched best first. A pass over the model computes the rows of the
//! most promising tokens of every query at once, as one token tree; then the probabilities of their children are
//! known. The search ends when the labels not yet reached cannot hold more than [`ScorerOptions::epsilon`] of the
//! mass that was found.

use kernels::Backend;

use crate::block::Saved;
use crate::forward::{Kv, Stream};
use crate::model::Model;
use crate::tree::TokenTree;
use crate::trie::{LabelTrie, ROOT};
use crate::{Error, Result};

/// How scoring runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScorerOptions {
    /// Largest share of the mass that may stay unexplored; bounds the error of every probability.
    pub epsilon: f32,
    /// Trie tokens a query may add to one pass.
    pub tokens_per_pass: usize,
    /// Rows of a pass over many queries.
    pub rows_per_pass: usize,
}

impl Default for ScorerOptions {
    fn default() -> Self {
        Self { epsilon: 1e-4, tokens_per_pass: 16, rows_per_pass: 512 }
    }
}

/// Every label's probability for one query.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelScores {
    /// `ln P(label | query)`, normalised over the labels; minus infinity where the search did not go.
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

/// The search for one query.
struct Search {
    /// Known log-probability of each reached node; the root's is 0.
    reached: Vec<Option<f32>>,
    /// Where an expanded node's keys and values lie; `None` before.
    kv_row: Vec<Option<u32>>,
    query_row: u32,
    query_len: u32,
    labels: Vec<f32>,
}

/// Scores queries against the labels, with the prompt's beginning computed once.
pub struct Scorer<B: Backend> {
    trie: LabelTrie,
    prefix: Vec<u32>,
    options: ScorerOptions,
    /// Each block's keys and values: the prefix first.
    caches: Vec<B::Narrow>,
    cache_rows: usize,
    scratch: Option<(Stream<B>, Saved<B>, usize)>,
}

impl<B: Backend> Scorer<B> {
    /// Gets ready; `prefix` is the prompt's beginning that all queries share.
    ///
    /// # Errors
    /// When the prefix is longer than the model's positions.
    pub fn new(model: &Model<B>, trie: LabelTrie, prefix: Vec<u32>, options: ScorerOptions) -> Result<Self> {
        check_length(model, prefix.len())?;
        let mut scorer = Self { trie, prefix, options, caches: Vec::new(), cache_rows: 0, scratch: None };
        scorer.reset(model);
        Ok(scorer)
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
        self.run(model, &tree, 0, &[0], &[(0, 0)]);
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
        let mut tree = TokenTree::default();
        let root = self.push_prefix(&mut tree);
        let mut kv_row = self.prefix.len();
        let (mut chosen, mut wanted, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        let mut searches = Vec::with_capacity(queries.len());
        for (index, query) in queries.iter().enumerate() {
            check_length(model, self.prefix.len() + query.len() + self.trie.tokens().min(64))?;
            tree.push_at(root, query, kv_row as u32);
            self.ask(ROOT, chosen.len(), index, &mut wanted, &mut asked);
            chosen.push(tree.rows() as u32 - 1);
            searches.push(Search::new(&self.trie, kv_row, query.len()));
            kv_row += query.len();
        }
        self.reserve(model, kv_row);
        let mut found = self.run(model, &tree, self.prefix.len(), &chosen, &wanted);
        loop {
            for (&(index, node), log_prob) in asked.iter().zip(&found) {
                searches[index].reach(&self.trie, node, *log_prob);
            }
            tree.clear();
            chosen.clear();
            wanted.clear();
            asked.clear();
            let root = self.push_prefix(&mut tree);
            let at = kv_row;
            for (index, search) in searches.iter_mut().enumerate() {
                let expand = search.choose(&self.trie, &self.options);
                if expand.is_empty() {
                    continue;
                }
                let query = tree.push_cached(root, search.query_row, search.query_len);
                let mut segments = vec![None; self.trie.nodes.len()];
                segments[ROOT] = Some(query);
                for (parent, node) in expand {
                    let parent = search.segment(&self.trie, parent, &mut segments, &mut tree);
                    segments[node] =
                        Some(tree.push_at(Some(parent), &[self.trie.nodes[node].token], kv_row as u32));
                    search.kv_row[node] = Some(kv_row as u32);
                    kv_row += 1;
                    self.ask(node, chosen.len(), index, &mut wanted, &mut asked);
                    chosen.push(tree.rows() as u32 - 1);
                }
            }
            if chosen.is_empty() {
                return Ok(searches.iter().map(|search| search.finish(&self.trie)).collect());
            }
            self.reserve(model, kv_row);
            found = self.run(model, &tree, at, &chosen, &wanted);
        }
    }

    fn push_prefix(&self, tree: &mut TokenTree) -> Option<usize> {
        (!self.prefix.is_empty()).then(|| tree.push_cached(None, 0, self.prefix.len() as u32))
    }

    /// Asks for the probabilities of a node's children, which chosen row `row` predicts.
    fn ask(
        &self,
        node: usize,
        row: usize,
        search: usize,
        wanted: &mut Vec<(u32, u32)>,
        asked: &mut Vec<(usize, usize)>,
    ) {
        for &child in &self.trie.nodes[node].children {
            wanted.push((row as u32, self.trie.nodes[child].token));
            asked.push((search, child));
        }
    }

    /// Makes room for `rows` rows in every cache, keeping what is there.
    pub(crate) fn reserve(&mut self, model: &Model<B>, rows: usize) {
        if rows <= self.cache_rows {
            return;
        }
        let rows = rows.next_power_of_two();
        let width = 2 * model.attention_shape().kv_width();
        let kept: Vec<u32> = (0..self.cache_rows as u32).collect();
        let old = std::mem::take(&mut self.caches);
        self.caches = (0..model.blocks.len()).map(|_| model.backend.narrow(rows * width)).collect();
        for (new, old) in self.caches.iter_mut().zip(&old) {
            model.backend.gather_narrow(new, old, &kept, width);
        }
        self.cache_rows = rows;
    }

    /// One pass: computes the tree's live rows, keeps their keys and values from row `at` of the caches on, and
    /// returns the log-probability of each wanted `(index into chosen, token)`.
    pub(crate) fn run(
        &mut self,
        model: &Model<B>,
        tree: &TokenTree,
        at: usize,
        chosen: &[u32],
        wanted: &[(u32, u32)],
    ) -> Vec<f32> {
        let rows = tree.rows();
        if self.scratch.as_ref().is_none_or(|(.., capacity)| *capacity < rows) {
            let capacity = rows.next_power_of_two();
            let saved = Saved::new(&model.backend, &model.blocks[0], model.config.heads, capacity);
            self.scratch = Some((Stream::new(model, capacity), saved, capacity));
        }
        let Some((stream, saved, _)) = &mut self.scratch else { return Vec::new() };
        let last = model.blocks.len() - 1;
        model.embed(stream, tree);
        for (index, (block, cache)) in model.blocks.iter().zip(&mut self.caches).enumerate() {
            let chosen = (index == last).then_some(chosen);
            model.run_block(block, saved, stream, Kv::Cache(cache, at), tree, chosen);
        }
        model.finish(stream, chosen.len());
        let mut found = vec![0.0; wanted.len()];
        model.backend.log_probs(&mut found, &stream.h, chosen.len(), model.head(), wanted);
        found
    }
}

impl Search {
    fn new(trie: &LabelTrie, query_row: usize, query_len: usize) -> Self {
        let nodes = trie.nodes.len();
        let mut reached = vec![None; nodes];
        reached[ROOT] = Some(0.0);
        let (query_row, query_len) = (query_row as u32, query_len as u32);
        let labels = vec![f32::NEG_INFINITY; trie.labels()];
        Self { reached, kv_row: vec![None; nodes], query_row, query_len, labels }
    }

    /// Takes note of the probability of `node` given its parent, which must be reached already.
    fn reach(&mut self, trie: &LabelTrie, node: usize, log_prob: f32) {
        let sum = self.reached[trie.nodes[node].parent].unwrap_or(f32::NEG_INFINITY) + log_prob;
        self.reached[node] = Some(sum);
        if let Some(label) = trie.nodes[node].label {
            self.labels[label] = sum;
        }
    }

    /// Reached tokens that are not expanded: the mass of all labels below them is not known yet.
    fn frontier<'a>(&'a self, trie: &'a LabelTrie) -> impl Iterator<Item = (usize, f32)> + 'a {
        let open =
            |node: usize| node != ROOT && self.kv_row[node].is_none() && trie.nodes[node].label.is_none();
        let reached = self.reached.iter().enumerate();
        reached.filter(move |(node, _)| open(*node)).filter_map(|(node, p)| p.map(|p| (node, p)))
    }

    /// The mass of the labels found and the mass that is still open, both as multiples of `exp` of the third value.
    fn masses(&self, trie: &LabelTrie) -> (f64, f64, f32) {
        let open = || self.frontier(trie).map(|(_, p)| p);
        let top = self.labels.iter().copied().chain(open()).fold(f32::NEG_INFINITY, f32::max);
        let top = if top.is_finite() { top } else { 0.0 };
        let exp = |log_prob: f32| f64::from(log_prob - top).exp();
        (self.labels.iter().copied().map(exp).sum(), open().map(exp).sum(), top)
    }

    /// The tokens to expand next as `(parent, node)`, parents first: best first among those reached, and below them
    /// by the share of labels, since their own probability is known only after the pass. Empty when done.
    fn choose(&self, trie: &LabelTrie, options: &ScorerOptions) -> Vec<(usize, usize)> {
        let (found, open, top) = self.masses(trie);
        if open <= f64::from(options.epsilon) * found {
            return Vec::new();
        }
        let mut candidates: Vec<(f32, usize)> = self.frontier(trie).map(|(node, p)| (p, node)).collect();
        let mut chosen = Vec::new();
        // What is this much less likely than all that is open would not change the answer.
        let floor =
            top + (open.ln() + f64::from(options.epsilon).ln() - (trie.nodes.len() as f64).ln()) as f32;
        while chosen.len() < options.tokens_per_pass {
            let best = candidates
                .iter()
                .enumerate()
                .max_by(|(_, a), (_, b)| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            let Some((index, &(mass, node))) = best else { break };
            if mass < floor && !chosen.is_empty() {
                break;
            }
            candidates.swap_remove(index);
            chosen.push((trie.nodes[node].parent, node));
            let below = trie.nodes[node].children.iter().filter(|&&child| trie.nodes[child].label.is_none());
            candidates.extend(below.map(|&child| {
                let share = trie.nodes[child].share / trie.nodes[node].share;
                (mass + share.ln(), child)
            }));
        }
        chosen
    }

    /// The tree's segment of an expanded node, pushing cached ones down to it where they are missing.
    fn segment(
        &self,
        trie: &LabelTrie,
        node: usize,
        segments: &mut [Option<usize>],
        tree: &mut TokenTree,
    ) -> usize {
        if let Some(segment) = segments[node] {
            return segment;
        }
        let parent = self.segment(trie, trie.nodes[node].parent, segments, tree);
        let row = self.kv_row[node].unwrap_or_default();
        let segment = tree.push_cached(Some(parent), row, 1);
        segments[node] = Some(segment);
        segment
    }

    fn finish(&self, trie: &LabelTrie) -> LabelScores {
        let (found, open, top) = self.masses(trie);
        let log_mass = top + found.ln() as f32;
        let log_probs = self.labels.iter().map(|p| p - log_mass).collect();
        LabelScores { log_probs, error_bound: (open / (found + open)) as f32, log_mass }
    }
}

fn check_length<B: Backend>(model: &Model<B>, tokens: usize) -> Result<()> {
    if tokens > model.positions() {
        return Err(Error::TooLong { tokens, limit: model.positions() });
    }
    Ok(())
}
