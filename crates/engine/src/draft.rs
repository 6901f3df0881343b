//! A guess at a query's label before the model has read it.
//!
//! The guessed label's tokens are computed beside the query, in the pass that would come anyway: where the guess is
//! right, the search mostly ends there. It is speculative decoding with a model that costs nothing (multinomial naive
//! Bayes over a query's tokens; Manning, Raghavan, Schütze, 2008, chapter 13), and it changes no answer.

/// Added to every count, so that a token which a label has not seen excludes nothing.
const SMOOTHING: f32 = 0.05;
/// Tokens of examples that are counted at most: more make the file longer and the guess hardly better.
const MOST_TOKENS: usize = 200_000;

/// In how many examples of a label a token occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftEntry {
    /// The token.
    pub token: u32,
    /// The label's index.
    pub label: u32,
    /// At least one.
    pub count: u32,
}

/// Guesses labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// By token, then by label.
    entries: Vec<DraftEntry>,
    /// `ln` of each label's smoothed sum of counts.
    totals: Vec<f32>,
}

impl Draft {
    /// Counts the tokens of examples, `(query, label)`; of many examples it takes some, evenly spread.
    pub fn fit<'a>(labels: usize, examples: impl Iterator<Item = (&'a [u32], usize)> + Clone) -> Self {
        let tokens: usize = examples.clone().map(|(query, _)| query.len()).sum();
        let mut seen = Vec::with_capacity(tokens.min(MOST_TOKENS));
        for (query, label) in examples.step_by(tokens.div_ceil(MOST_TOKENS).max(1)) {
            seen.extend(distinct(query).into_iter().map(|token| (token, label as u32)));
        }
        seen.sort_unstable();
        let same = seen.chunk_by(|a, b| a == b);
        let entry = |group: &[(u32, u32)]| DraftEntry {
            token: group[0].0,
            label: group[0].1,
            count: group.len() as u32,
        };
        Self::new(labels, same.map(entry).collect())
    }

    /// What [`Draft::entries`] gave; `None` when they are not in order or name a label that is not there.
    pub fn from_entries(labels: usize, entries: Vec<DraftEntry>) -> Option<Self> {
        let in_order = entries.is_sorted_by(|a, b| (a.token, a.label) < (b.token, b.label));
        let known = |entry: &DraftEntry| (entry.label as usize) < labels && entry.count > 0;
        (labels > 0 && in_order && entries.iter().all(known)).then(|| Self::new(labels, entries))
    }

    fn new(labels: usize, entries: Vec<DraftEntry>) -> Self {
        let tokens = entries.chunk_by(|a, b| a.token == b.token).count();
        let mut totals = vec![SMOOTHING * tokens as f32; labels];
        for entry in &entries {
            totals[entry.label as usize] += entry.count as f32;
        }
        for total in &mut totals {
            *total = total.max(SMOOTHING).ln();
        }
        Self { entries, totals }
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        self.totals.len()
    }

    /// What there is to store.
    pub fn entries(&self) -> &[DraftEntry] {
        &self.entries
    }

    /// The label that a query's tokens speak for.
    pub fn guess(&self, query: &[u32]) -> usize {
        let mut scores = vec![0.0; self.totals.len()];
        for token in distinct(query) {
            let first = self.entries.partition_point(|entry| entry.token < token);
            let known = self.entries[first..].iter().take_while(|entry| entry.token == token);
            let mut seen = false;
            for entry in known {
                // Every label has the smoothing in common; it is left out.
                scores[entry.label as usize] += (1.0 + entry.count as f32 / SMOOTHING).ln();
                seen = true;
            }
            if seen {
                scores.iter_mut().zip(&self.totals).for_each(|(score, total)| *score -= total);
            }
        }
        let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        best.map_or(0, |(label, _)| label)
    }
}

fn distinct(query: &[u32]) -> Vec<u32> {
    let mut tokens = query.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLES: [(&[u32], usize); 4] =
        [(&[7, 1, 2, 9], 0), (&[1, 1, 3, 9], 0), (&[4, 2, 9], 1), (&[4, 5, 9], 1)];

    #[test]
    fn the_written_out_example_is_guessed() {
        let draft = Draft::fit(2, EXAMPLES.into_iter());
        // Tokens 1 to 5, 7 and 9 in all; label 0 has seven counts, label 1 six.
        assert_eq!(draft.totals, [(7.0 * SMOOTHING + 7.0).ln(), (7.0 * SMOOTHING + 6.0).ln()]);
        let count = |token, label| {
            draft.entries.iter().find(|e| (e.token, e.label) == (token, label)).map_or(0, |e| e.count)
        };
        assert_eq!((count(1, 0), count(9, 1), count(4, 0)), (2, 2, 0), "once an example");
        assert_eq!(draft.guess(&[1, 9]), 0);
        assert_eq!(draft.guess(&[4, 9]), 1);
        // Both have seen token 2 once, label 1 among fewer.
        assert_eq!(draft.guess(&[2]), 1);
        assert_eq!(draft.guess(&[100]), 0, "nothing is known: any label will do");
        assert_eq!(draft.guess(&[]), 0);
    }

    #[test]
    fn entries_are_all_there_is_to_keep() {
        let draft = Draft::fit(2, EXAMPLES.into_iter());
        assert_eq!(Draft::from_entries(2, draft.entries().to_vec()), Some(draft.clone()));
        assert_eq!(Draft::from_entries(1, draft.entries().to_vec()), None, "label 1 is not there");
        let mut twisted = draft.entries().to_vec();
        twisted.swap(0, 1);
        assert_eq!(Draft::from_entries(2, twisted), None);
        assert_eq!(Draft::from_entries(0, Vec::new()), None);
    }

    #[test]
    fn many_examples_are_not_all_counted() {
        let query: Vec<u32> = (0..1000).collect();
        let examples = (0..1000).map(|i| (&query[..], i % 2));
        let draft = Draft::fit(2, examples);
        let counted: u32 = draft.entries().iter().map(|entry| entry.count).sum();
        assert_eq!(counted as usize, MOST_TOKENS);
    }
}
