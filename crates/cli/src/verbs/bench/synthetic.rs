//! Training steps on random weights of a published shape: no file, no tokenizer, no text.

use engine::{Adapter, Example, Model, Sampler, Storage, Trainer, TrainerOptions};
use formats::BaseModel;
use kernels::Backend;
use router::{Observer, Recipe};

use super::{Clock, Timed, WARM_UP};

/// Tokens that all prompts of BANKING77 share in Llama 3.2's chat template.
const PREFIX: usize = 46;
/// Tokens of a query there, in 20 classes of equal size (on average 13.7), without the turn's end.
const QUERIES: [usize; 20] = [6, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 14, 15, 17, 22, 30, 42];
/// Tokens between the query and the label.
const TURN: usize = 5;
/// Tokens of a label with its end, in 10 classes of equal size.
const LABELS: [usize; 10] = [3, 4, 4, 4, 5, 5, 6, 6, 7, 8];

/// Examples of random tokens, and the beginning that they share.
///
/// With `tokens`, examples of so many tokens that all carry loss and share nothing; otherwise as long as BANKING77's
/// in the template of Llama 3.2.
fn examples(count: usize, tokens: Option<usize>, vocabulary: usize) -> (Vec<u32>, Vec<Example>) {
    let mut state = 1u32;
    let mut random = |count: usize| -> Vec<u32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % vocabulary as u32
        };
        (0..count).map(|_| next()).collect()
    };
    let prefix = if tokens.is_some() { Vec::new() } else { random(PREFIX) };
    let examples = (0..count).map(|i| {
        // 7 and 3 have no divisor with the lengths in common, so a few consecutive examples cover all classes.
        let banking = (QUERIES[7 * i % QUERIES.len()] + TURN, LABELS[3 * i % LABELS.len()]);
        let (query, target) = tokens.map_or(banking, |tokens| (1, tokens));
        Example { query: random(query), target: random(target), weight: 1.0 }
    });
    let examples = examples.collect();
    (prefix, examples)
}

/// Trains so many steps after the warm-up.
pub(super) fn timed_steps<B: Backend>(
    backend: B,
    shape: &str,
    tokens: Option<usize>,
    recipe: &Recipe,
    steps: u64,
) -> anyhow::Result<Timed> {
    let base = BaseModel::random(shape)?;
    let config = base.config.clone();
    let total_steps = WARM_UP + steps;
    let batch = recipe.batch.unwrap_or(32);
    let (prefix, examples) = examples(batch * total_steps as usize, tokens, config.vocab_size);
    let sampler = Sampler::new(examples.len(), batch, recipe.seed, None);
    let options = TrainerOptions {
        lr: recipe.lr_for(&base),
        optimizer: recipe.optimizer.clone(),
        batch,
        rows_per_pass: recipe.rows_per_pass,
        total_steps,
        seed: recipe.seed,
    };
    let model = Model::load(backend, &base, Storage::AsStored)?;
    let adapter = Adapter::new(recipe.lora.clone(), &config, recipe.seed);
    let mut trainer = Trainer::new(model, adapter, prefix, examples, sampler, options)?;
    let mut clock = Clock::default();
    for _ in 0..total_steps {
        clock.stepped(&trainer.step()?);
    }
    let device_bytes = trainer.model().backend().peak_bytes();
    Ok(Timed { clock, config, device_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_data_set() {
        let (prefix, examples) = examples(2000, None, 1000);
        let mean = |of: fn(&Example) -> usize| examples.iter().map(of).sum::<usize>() as f64 / 2000.0;
        let tokens = prefix.len() as f64 + mean(|e| e.query.len()) + mean(|e| e.target.len());
        assert!((tokens - 69.9).abs() < 0.05, "{tokens} tokens an example");
        assert!((mean(|e| e.target.len()) - 5.2).abs() < 0.05);
    }
}
