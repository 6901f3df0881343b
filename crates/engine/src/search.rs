//! The best-first search for one query's labels, apart from any model.
//!
//! Two things are kept apart. *Computed* are the tokens whose row a pass has produced, so that the probabilities of
//! their children are known; a pass may compute tokens on suspicion. *Expanded* are the tokens that the search itself
//! has asked for. The answer depends on the expanded ones alone, so neither suspicion nor the other queries of a
//! pass can change it.

use crate::scorer::LabelScores;
use crate::tree::TokenTree;
use crate::trie::{LabelTrie, ROOT};

/// The search for one query.
pub(crate) struct Search {
    /// `ln P(token | path)` of every token whose parent is computed.
    given: Vec<f32>,
    /// `ln P(path)` of every token whose parent is expanded.
    mass: Vec<f32>,
    /// Where a computed token's keys and values lie.
    kv_row: Vec<Option<u32>>,
    /// Reached tokens that are neither expanded nor the end of a label: the mass below them is open.
    frontier: Vec<usize>,
    labels: Vec<f32>,
    query_row: u32,
    query_len: u32,
}

impl Search {
    /// A search whose query's keys and values begin at row `query_row`.
    pub(crate) fn new(trie: &LabelTrie, query_row: usize, query_len: usize) -> Self {
        let nodes = trie.nodes.len();
        Self {
            given: vec![f32::NEG_INFINITY; nodes],
            mass: vec![0.0; nodes],
            kv_row: vec![None; nodes],
            frontier: vec![ROOT],
            labels: vec![f32::NEG_INFINITY; trie.labels()],
            query_row: query_row as u32,
            query_len: query_len as u32,
        }
    }

    /// Takes note of the probability of a token whose parent was computed.
    pub(crate) fn learn(&mut self, node: usize, log_prob: f32) {
        self.given[node] = log_prob;
    }

    /// Takes note that a token's row will be computed with its keys and values at `kv_row`.
    pub(crate) fn compute(&mut self, node: usize, kv_row: usize) {
        self.kv_row[node] = Some(kv_row as u32);
    }

    /// Expands what is most probable until the rest cannot matter, or until rows are needed that no pass has
    /// computed: those are returned. Empty: the search is over.
    pub(crate) fn advance(&mut self, trie: &LabelTrie, epsilon: f32) -> Vec<usize> {
        loop {
            let (found, open, top) = self.masses();
            // Nothing that is open may change a probability noticeably, nor be the top label.
            let best = self.labels.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            if open <= f64::from(epsilon) * found && open <= f64::from(best - top).exp() {
                return Vec::new();
            }
            self.frontier.sort_by(|&a, &b| self.mass[b].total_cmp(&self.mass[a]).then(a.cmp(&b)));
            let (mut rest, enough) = (open, 0.5 * f64::from(epsilon) * (found + open));
            let needed = self.frontier.iter().take_while(|&&node| {
                let more = rest > enough;
                rest -= f64::from(self.mass[node] - top).exp();
                more
            });
            let needed: Vec<usize> = needed.copied().collect();
            let missing: Vec<usize> =
                needed.iter().copied().filter(|&node| node != ROOT && self.kv_row[node].is_none()).collect();
            if !missing.is_empty() || needed.is_empty() {
                return missing;
            }
            self.frontier.drain(..needed.len());
            for node in needed {
                self.expand(trie, node);
            }
        }
    }

    fn expand(&mut self, trie: &LabelTrie, node: usize) {
        for &child in &trie.nodes[node].children {
            self.mass[child] = self.mass[node] + self.given[child];
            match trie.nodes[child].label {
                Some(label) => self.labels[label] = self.mass[child],
                None => self.frontier.push(child),
            }
        }
    }

    /// Adds tokens below the needed ones that the next pass might as well compute: only children always, since their
    /// turn comes for sure, and others, likeliest first by the share of labels below, up to `tokens` in all. Parents
    /// come before children.
    pub(crate) fn suspect(&self, trie: &LabelTrie, needed: Vec<usize>, tokens: usize) -> Vec<usize> {
        let mut chosen = needed;
        let mut candidates: Vec<Suspect> =
            chosen.iter().flat_map(|&node| self.below(trie, node, self.mass[node], true)).collect();
        loop {
            let best = candidates.iter().enumerate().max_by(|(_, a), (_, b)| a.order(b));
            let Some(index) = best.map(|(index, _)| index) else { return chosen };
            let Suspect { node, mass, sure } = candidates.swap_remove(index);
            if !sure && chosen.len() >= tokens {
                return chosen;
            }
            chosen.push(node);
            candidates.extend(self.below(trie, node, mass, sure));
        }
    }

    /// The children of a token that are not computed and not the end of a label.
    fn below<'a>(
        &'a self,
        trie: &'a LabelTrie,
        node: usize,
        mass: f32,
        sure: bool,
    ) -> impl Iterator<Item = Suspect> + 'a {
        let parent = &trie.nodes[node];
        let sure = sure && parent.children.len() == 1;
        let open = move |&child: &usize| trie.nodes[child].label.is_none() && self.kv_row[child].is_none();
        parent.children.iter().copied().filter(open).map(move |child| {
            let share = trie.nodes[child].share / parent.share;
            Suspect { node: child, mass: mass + share.ln(), sure }
        })
    }

    /// The tree's segment of a computed token, or of the query; pushes it and those above it where they are missing.
    pub(crate) fn segment(
        &self,
        trie: &LabelTrie,
        node: usize,
        root: Option<usize>,
        segments: &mut [Option<usize>],
        tree: &mut TokenTree,
    ) -> usize {
        if let Some(segment) = segments[node] {
            return segment;
        }
        let segment = if node == ROOT {
            tree.push_cached(root, self.query_row, self.query_len)
        } else {
            let parent = self.segment(trie, trie.nodes[node].parent, root, segments, tree);
            tree.push_cached(Some(parent), self.kv_row[node].unwrap_or_default(), 1)
        };
        segments[node] = Some(segment);
        segment
    }

    /// The mass of the labels found and the mass that is still open, both as multiples of `exp` of the third value.
    fn masses(&self) -> (f64, f64, f32) {
        let open = || self.frontier.iter().map(|&node| self.mass[node]);
        let top = self.labels.iter().copied().chain(open()).fold(f32::NEG_INFINITY, f32::max);
        let top = if top.is_finite() { top } else { 0.0 };
        let exp = |log_prob: f32| f64::from(log_prob - top).exp();
        (self.labels.iter().copied().map(exp).sum(), open().map(exp).sum(), top)
    }

    /// Every label's probability, normalised over what was found and what is open. The labels that were not reached
    /// share the open mass above them evenly: far below any that was found, but not impossible, which matters to
    /// whoever takes a logarithm.
    pub(crate) fn finish(&self, trie: &LabelTrie) -> LabelScores {
        let (found, open, top) = self.masses();
        let log_mass = top + (found + open).ln() as f32;
        let mut log_probs: Vec<f32> = self.labels.iter().map(|p| p - log_mass).collect();
        for &node in &self.frontier {
            let labels = trie.labels_below(node);
            let share = self.mass[node] - log_mass - (labels.len() as f32).ln();
            for label in labels {
                log_probs[label] = share;
            }
        }
        LabelScores { log_probs, error_bound: (open / (found + open)) as f32, log_mass }
    }
}

/// A token that may be needed later.
struct Suspect {
    node: usize,
    /// Its expected log-probability.
    mass: f32,
    /// Whether it is needed for sure once the tokens above it are.
    sure: bool,
}

impl Suspect {
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        self.sure.cmp(&other.sure).then(self.mass.total_cmp(&other.mass)).then(other.node.cmp(&self.node))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)]

    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Runs the search with made-up probabilities, room for `tokens` a pass and a guessed label's tokens computed with
    /// the first; returns the scores and the passes after that.
    fn run(
        trie: &LabelTrie,
        given: &HashMap<usize, f32>,
        epsilon: f32,
        tokens: usize,
        guess: Option<usize>,
    ) -> (LabelScores, usize) {
        let mut search = Search::new(trie, 0, 1);
        let mut passes = 0;
        let learn = |search: &mut Search, node: usize| {
            for &child in &trie.nodes[node].children {
                search.learn(child, given[&child]);
            }
        };
        learn(&mut search, ROOT);
        for node in guess.map(|label| trie.path(label)).unwrap_or_default() {
            search.compute(node, node);
            learn(&mut search, node);
        }
        loop {
            let needed = search.advance(trie, epsilon);
            if needed.is_empty() {
                return (search.finish(trie), passes);
            }
            passes += 1;
            for node in search.suspect(trie, needed, tokens) {
                assert!(search.kv_row[node].is_none(), "nothing is computed twice");
                let parent = trie.nodes[node].parent;
                assert!(parent == ROOT || search.kv_row[parent].is_some(), "parents come first");
                search.compute(node, node);
                learn(&mut search, node);
            }
        }
    }

    fn labels() -> impl Strategy<Value = Vec<Vec<u32>>> {
        let label = proptest::collection::vec(1u32..4, 1..5).prop_map(|mut tokens| {
            tokens.push(9);
            tokens
        });
        proptest::collection::btree_set(label, 2..12).prop_map(|set| set.into_iter().collect())
    }

    #[test]
    fn a_right_guess_saves_the_passes_along_the_label() {
        let trie = LabelTrie::new(&[vec![1, 2, 3, 9], vec![1, 4, 9], vec![5, 6, 9]]).unwrap();
        let likely = trie.path(0);
        let end = trie.nodes[likely[2]].children[0];
        let given = (1..trie.nodes.len())
            .map(|node| (node, if likely.contains(&node) || node == end { -1e-5 } else { -12.0 }))
            .collect();
        let (plain, passes) = run(&trie, &given, 1e-2, 0, None);
        // Tokens 2 and 3: the first has a sibling, so that only the second comes with it for sure.
        assert_eq!((plain.best().0, passes), (0, 2));
        assert_eq!(run(&trie, &given, 1e-2, 0, Some(0)), (plain.clone(), 0));
        assert_eq!(run(&trie, &given, 1e-2, 0, Some(2)), (plain, 2));
    }

    proptest! {
        #[test]
        fn suspicion_changes_passes_but_not_answers(labels in labels(), seed in 0usize..1000) {
            let trie = LabelTrie::new(&labels).unwrap();
            // The children of a token share at most all of its probability.
            let made_up = |node: usize| {
                let siblings = trie.nodes[trie.nodes[node].parent].children.len() as f32;
                -(((node * 7919 + seed * 104_729) % 1000) as f32) / 60.0 - siblings.ln()
            };
            let given = (1..trie.nodes.len()).map(|node| (node, made_up(node))).collect();
            let (plain, passes) = run(&trie, &given, 1e-3, 0, None);
            let (eager, fewer) = run(&trie, &given, 1e-3, 1000, None);
            prop_assert_eq!(&plain, &eager);
            prop_assert!(fewer <= passes, "{} passes with suspicion, {} without", fewer, passes);
            for label in 0..trie.labels() {
                let (guessed, after) = run(&trie, &given, 1e-3, 0, Some(label));
                prop_assert_eq!(&plain, &guessed);
                prop_assert!(after <= passes, "{} passes after a guess, {} without", after, passes);
            }
            let (exact, _) = run(&trie, &given, 0.0, 4, None);
            prop_assert_eq!(exact.error_bound, 0.0);
            let sum: f32 = plain.log_probs.iter().map(|p| p.exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-4 && plain.log_probs.iter().all(|p| p.is_finite()), "{}", sum);
            prop_assert_eq!(exact.best().0, plain.best().0, "the top label is exact whatever epsilon");
            for (e, p) in exact.log_probs.iter().zip(&plain.log_probs) {
                prop_assert!((e.exp() - p.exp()).abs() <= plain.error_bound + 1e-5);
            }
        }
    }
}
