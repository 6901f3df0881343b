//! Training steps on random weights of a published shape: no file, no tokenizer, no text.

use engine::{Adapter, Care, Example, Model, Sampler, Storage, Trainer, TrainerOptions};
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

/// Random weights of a shape, on each device.
pub(super) fn load<B: Backend>(backends: Vec<B>, base: &BaseModel) -> anyhow::Result<Vec<Model<B>>> {
    Ok(Model::load_each(backends, base, Storage::AsStored)?)
}

/// A training on random weights.
pub(super) struct Training {
    /// Size of the data set.
    pub(super) examples: usize,
    /// Examples a step.
    pub(super) batch: usize,
    /// See [`examples`].
    pub(super) tokens: Option<usize>,
    /// Steps after the warm-up.
    pub(super) steps: u64,
}

impl Training {
    /// Runs it, and gives the replicas of the model back.
    pub(super) fn run<B: Backend>(
        &self,
        models: Vec<Model<B>>,
        base: &BaseModel,
        recipe: &Recipe,
    ) -> anyhow::Result<(Vec<Model<B>>, Clock)> {
        let (prefix, examples) = examples(self.examples, self.tokens, base.config.vocab_size);
        let sampler = Sampler::new(examples.len(), self.batch, recipe.seed, None);
        let options = TrainerOptions {
            lr: recipe.lr_for(base),
            optimizer: recipe.optimizer.clone(),
            care: Care::default(),
            batch: self.batch,
            rows_per_pass: recipe.rows_per_pass,
            recompute: recipe.recompute,
            total_steps: WARM_UP + self.steps,
            seed: recipe.seed,
        };
        let adapter = Adapter::new(recipe.lora.clone(), &base.config, recipe.seed);
        let mut trainer = Trainer::new(models, adapter, prefix, examples, sampler, options)?;
        let mut clock = Clock::default();
        for _ in 0..WARM_UP + self.steps {
            clock.stepped(&trainer.step()?);
        }
        Ok((trainer.into_models(), clock))
    }
}

/// Trains so many steps after the warm-up.
pub(super) fn timed_steps<B: Backend>(
    backends: Vec<B>,
    shape: &str,
    tokens: Option<usize>,
    recipe: &Recipe,
    steps: u64,
) -> anyhow::Result<Timed> {
    let base = BaseModel::random(shape)?;
    let batch = recipe.batch.unwrap_or(32);
    let plan = Training { examples: batch * (WARM_UP + steps) as usize, batch, tokens, steps };
    let (models, clock) = plan.run(load(backends, &base)?, &base, recipe)?;
    let device_bytes = models.iter().filter_map(|model| model.backend().peak_bytes()).max();
    Ok(Timed { clock, config: base.config.clone(), device_bytes })
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
