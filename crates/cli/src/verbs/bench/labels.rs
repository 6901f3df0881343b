//! Routing with random weights of a published shape: labels that the tokens of a query give away, learned for a while
//! so that the search for the best label is as short as with a trained router.

use std::time::Instant;

use engine::{
    Adapter, Care, Example, LabelTrie, Model, Sampler, Scorer, ScorerOptions, Storage, Trainer,
    TrainerOptions,
};
use formats::BaseModel;
use kernels::{Backend, Encoding};
use router::Recipe;
use serde_json::json;

use super::{Times, at_once};
use crate::terminal::say;

/// As many as BANKING77 has.
const LABELS: usize = 77;
/// Labels with the same first token, as many of BANKING77's have the same first word.
const FAMILY: usize = 3;
/// Tokens of a label with its end.
const LABEL_TOKENS: usize = 5;
/// Tokens that give a label away.
const SIGNS: usize = 8;
/// Tokens of the shared prefix, and of a query with the turn's end.
const PREFIX: usize = 46;
const QUERY: usize = 19;
/// Learning rate with which these few steps are enough.
const LR: f32 = 2e-3;
/// Steps of learning, and their batch.
const STEPS: u64 = 300;
const BATCH: usize = 64;

/// Distinct tokens.
fn tokens(kind: usize, index: usize, vocabulary: usize) -> u32 {
    ((1 + kind * 7919 + index * 104_729) % vocabulary) as u32
}

/// The tokens of each label.
fn labels(vocabulary: usize) -> Vec<Vec<u32>> {
    let label = |label: usize| {
        let first = tokens(1, label / FAMILY, vocabulary);
        let middle = (1..LABEL_TOKENS - 1).map(|i| tokens(2, label * LABEL_TOKENS + i, vocabulary));
        std::iter::once(first).chain(middle).chain([0]).collect()
    };
    (0..LABELS).map(label).collect()
}

/// Query `index`, and its label.
fn query(index: usize, vocabulary: usize) -> (Vec<u32>, usize) {
    let label = index * 31 % LABELS;
    let sign = |i: usize| tokens(3, label * SIGNS + (index / LABELS * 5 + i * i) % SIGNS, vocabulary);
    ((0..QUERY).map(sign).collect(), label)
}

/// Milliseconds of single queries and queries a second, after learning.
pub(super) fn routing_speed<B: Backend>(
    backend: B,
    shape: &str,
    recipe: &Recipe,
    encoding: Encoding,
    repeats: usize,
) -> anyhow::Result<serde_json::Value> {
    let base = BaseModel::random(shape)?;
    let config = base.config.clone();
    let (rows, at_once) = (backend.rows_at_once(), at_once(&backend));
    let vocabulary = config.vocab_size;
    let labels = labels(vocabulary);
    let prefix: Vec<u32> = (0..PREFIX).map(|i| tokens(0, i, vocabulary)).collect();
    let examples = (0..BATCH * STEPS as usize).map(|index| {
        let (query, label) = query(index, vocabulary);
        Example { query, target: labels[label].clone(), weight: 1.0 }
    });
    let examples: Vec<Example> = examples.collect();
    let options = TrainerOptions {
        lr: recipe.lr.unwrap_or(LR),
        optimizer: recipe.optimizer.clone(),
        care: Care::default(),
        batch: BATCH,
        rows_per_pass: recipe.rows_per_pass,
        recompute: recipe.recompute,
        total_steps: STEPS,
        seed: recipe.seed,
    };
    let model = Model::load(backend, &base, Storage::AsStored)?;
    let sampler = Sampler::new(examples.len(), BATCH, recipe.seed, None);
    let adapter = Adapter::new(recipe.lora.clone(), &config, recipe.seed);
    let mut trainer = Trainer::new([model], adapter, prefix.clone(), examples, sampler, options)?;
    for _ in 0..STEPS {
        trainer.step()?;
    }
    let adapter = trainer.adapter();
    let mut model = trainer.into_models().swap_remove(0);
    model.merge(&adapter, encoding);

    let options = ScorerOptions { rows_per_pass: rows, ..ScorerOptions::default() };
    let mut scorer = Scorer::new(&model, LabelTrie::new(&labels)?, prefix, options)?;
    // Other mixtures of the same signs than those learned from.
    let asked: Vec<_> = (0..100 * repeats).map(|i| query(BATCH * STEPS as usize + i, vocabulary)).collect();
    let queries: Vec<&[u32]> = asked.iter().map(|(query, _)| &query[..]).collect();
    scorer.score(&model, &queries[..queries.len().min(8)])?;
    let (mut times, mut right) = (Times::default(), 0);
    for (query, (_, label)) in queries.iter().zip(&asked) {
        let begun = Instant::now();
        let scores = scorer.score(&model, &[query])?;
        times.push(begun);
        right += usize::from(scores[0].best().0 == *label);
    }
    // The first round over meets each size for the first time.
    let mut seconds = 0.0;
    for _ in 0..2 {
        let begun = Instant::now();
        for group in queries.chunks(at_once) {
            scorer.score(&model, group)?;
        }
        seconds = begun.elapsed().as_secs_f64();
    }
    if 2 * right < queries.len() {
        say!(
            "note: these weights did not learn the labels, so the times are those of an unsure router that searches longer; try another --rank or --lr",
        );
    }
    Ok(json!({
        "p50_ms": times.at(0.5),
        "p95_ms": times.at(0.95),
        "queries_per_s": queries.len() as f64 / seconds,
        "queries": queries.len(),
        "accuracy": right as f64 / queries.len() as f64,
        "device_memory_bytes": model.backend().peak_bytes(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_differ_and_share_first_tokens() {
        let labels = labels(49_152);
        LabelTrie::new(&labels).unwrap();
        assert_eq!(labels[0][0], labels[1][0]);
        assert_ne!(labels[0][0], labels[FAMILY][0]);
    }

    #[test]
    fn queries_of_a_label_have_its_signs() {
        let (first, second) = (query(5, 49_152), query(5 + LABELS, 49_152));
        assert_eq!(first.1, second.1);
        assert!(first.0.iter().any(|token| second.0.contains(token)));
        assert!(!first.0.iter().any(|token| query(6, 49_152).0.contains(token)));
    }
}
