//! How a trained model scores the labels: along their tokens, or by a head on its features.

use engine::{Draft, Features, Head, LabelScores, LabelTrie, Model, Scorer, ScorerOptions};
use kernels::Backend;

use crate::Result;
use crate::prompt::Prompt;

/// What turns queries into label scores.
pub(crate) enum Scoring<B: Backend> {
    /// The probabilities of the labels' tokens, as a decoder predicts them.
    Tokens(Scorer<B>),
    /// A linear head on the model's features.
    Head(Head, Features<B>),
}

impl<B: Backend> Scoring<B> {
    pub(crate) fn tokens(
        model: &Model<B>,
        labels: &[Vec<u32>],
        prompt: &Prompt,
        draft: Option<Draft>,
    ) -> Result<Self> {
        let (trie, prefix) = (LabelTrie::new(labels)?, prompt.shared_ids().to_vec());
        let options =
            ScorerOptions { rows_per_pass: model.backend().rows_at_once(), ..ScorerOptions::default() };
        let mut scorer = Scorer::new(model, trie, prefix, options)?;
        if let Some(draft) = draft {
            scorer.guess_with(draft);
        }
        Ok(Self::Tokens(scorer))
    }

    pub(crate) fn head(head: Head, prompt: &Prompt) -> Self {
        Self::Head(head, Features::new(prompt.shared_ids().to_vec()))
    }

    /// Scores each query. After the model has changed, [`Scoring::reset`] comes first.
    pub(crate) fn score(&mut self, model: &Model<B>, queries: &[&[u32]]) -> Result<Vec<LabelScores>> {
        match self {
            Self::Tokens(scorer) => Ok(scorer.score(model, queries)?),
            Self::Head(head, features) => {
                let found = features.compute(model, queries, &mut |_| {})?;
                let scores = |features: &[f32]| LabelScores {
                    log_probs: head.log_probs(features),
                    error_bound: 0.0,
                    log_mass: 0.0,
                };
                Ok(found.chunks_exact(model.config().hidden_size).map(scores).collect())
            }
        }
    }

    /// Forgets what was computed with the model as it was; `head` is the current one where there is one.
    pub(crate) fn reset(&mut self, model: &Model<B>, head: Option<Head>) {
        match (self, head) {
            (Self::Tokens(scorer), _) => scorer.reset(model),
            (Self::Head(old, _), Some(head)) => *old = head,
            (Self::Head(..), None) => {}
        }
    }
}
