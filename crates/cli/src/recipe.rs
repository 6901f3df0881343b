//! Flags that say how to train.

use clap::ValueEnum;
use engine::{Balance, Projection, Schedule};
use router::Recipe;

use crate::values;

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScheduleArg {
    /// It does not.
    Constant,
    /// In a straight line to zero.
    Linear,
    /// Half a cosine to zero.
    Cosine,
}

/// What is done about rare labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BalanceArg {
    /// Nothing.
    None,
    /// Their examples weigh more in the loss.
    Weight,
    /// Their examples are drawn more often.
    Sample,
}

/// How to train; what is not given has a default that works on every data set tried.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct RecipeArgs {
    /// Rank of the LoRA matrices.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) rank: Option<u32>,
    /// The update is scaled by alpha / rank; the rank by default.
    #[arg(long, value_name = "A", value_parser = values::above_zero::<f32>)]
    pub(crate) alpha: Option<f32>,
    /// Scale by alpha / sqrt(rank) instead.
    #[arg(long)]
    pub(crate) rslora: bool,
    /// Projections that train, by name; all seven by default.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) targets: Vec<String>,
    /// Passes over the examples; 3, and up to 10 where there are few.
    #[arg(long, value_name = "N", value_parser = values::above_zero::<f32>)]
    pub(crate) epochs: Option<f32>,
    /// Stop after this many steps.
    #[arg(long, value_name = "N", value_parser = values::count::<u64>)]
    pub(crate) max_steps: Option<u64>,
    /// Learning rate at its highest.
    #[arg(long, value_name = "X", value_parser = values::above_zero::<f32>)]
    pub(crate) lr: Option<f32>,
    /// How the learning rate falls.
    #[arg(long, value_enum)]
    pub(crate) schedule: Option<ScheduleArg>,
    /// Share of the steps in which the learning rate rises.
    #[arg(long, value_name = "X", value_parser = values::share::<f32>)]
    pub(crate) warm_up: Option<f32>,
    /// Weight decay.
    #[arg(long, value_name = "X", value_parser = values::from_zero::<f32>)]
    pub(crate) weight_decay: Option<f32>,
    /// Examples a step; 32, or 16 where there are few.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: Option<u32>,
    /// Tokens computed at once; lower it to save memory, the result stays the same.
    #[arg(long, value_name = "N", value_parser = values::count::<usize>)]
    pub(crate) rows_per_pass: Option<usize>,
    /// Keep only the input of each block of a decoder and compute the rest again in the backward pass: less memory,
    /// more time, the same result.
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Seed of everything random.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// What is done about rare labels.
    #[arg(long, value_enum)]
    pub(crate) balance: Option<BalanceArg>,
    /// Steps between validations.
    #[arg(long, value_name = "N", value_parser = values::count::<u64>)]
    pub(crate) validate_every: Option<u64>,
    /// Stop after this many validations without a better macro-F1.
    #[arg(long, value_name = "N", value_parser = values::count::<u32>)]
    pub(crate) patience: Option<u32>,
    /// System message before every query, when the data has none of its own.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Longest query in tokens; a longer text loses its end, a longer conversation its oldest turns.
    #[arg(long, value_name = "N", value_parser = values::count::<usize>)]
    pub(crate) max_tokens: Option<usize>,
    /// Share of the automatically routed queries that must be right.
    #[arg(long, value_name = "X", value_parser = values::share::<f64>)]
    pub(crate) target_precision: Option<f64>,
}

impl RecipeArgs {
    pub(crate) fn recipe(&self) -> anyhow::Result<Recipe> {
        self.over(Recipe::default())
    }

    /// The recipe with what these flags say in its place.
    pub(crate) fn over(&self, mut recipe: Recipe) -> anyhow::Result<Recipe> {
        let set = |target: &mut f32, value: Option<f32>| *target = value.unwrap_or(*target);
        if let Some(rank) = self.rank.filter(|rank| *rank as usize != recipe.lora.rank) {
            recipe.lora.alpha = recipe.lora.alpha / recipe.lora.rank as f32 * rank as f32;
            recipe.lora.rank = rank as usize;
        }
        set(&mut recipe.lora.alpha, self.alpha);
        recipe.lora.rslora |= self.rslora;
        if !self.targets.is_empty() {
            recipe.lora.projections = projections(&self.targets)?;
        }
        recipe.epochs = self.epochs.or(recipe.epochs);
        recipe.lr = self.lr.or(recipe.lr);
        set(&mut recipe.optimizer.warm_up, self.warm_up);
        set(&mut recipe.optimizer.weight_decay, self.weight_decay);
        recipe.max_steps = self.max_steps.or(recipe.max_steps);
        recipe.batch = self.batch.map(|batch| batch as usize).or(recipe.batch);
        recipe.rows_per_pass = self.rows_per_pass.or(recipe.rows_per_pass);
        recipe.recompute |= self.recompute;
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        recipe.validate_every = self.validate_every.or(recipe.validate_every);
        recipe.patience = self.patience.or(recipe.patience);
        recipe.max_tokens = self.max_tokens.unwrap_or(recipe.max_tokens);
        recipe.target_precision = self.target_precision.unwrap_or(recipe.target_precision);
        if let Some(system) = &self.system {
            recipe.system.clone_from(system);
        }
        if let Some(schedule) = self.schedule {
            recipe.optimizer.schedule = match schedule {
                ScheduleArg::Constant => Schedule::Constant,
                ScheduleArg::Linear => Schedule::Linear,
                ScheduleArg::Cosine => Schedule::Cosine,
            };
        }
        if let Some(balance) = self.balance {
            recipe.balance = match balance {
                BalanceArg::None => Balance::None,
                BalanceArg::Weight => Balance::Weight,
                BalanceArg::Sample => Balance::Sample,
            };
        }
        Ok(recipe)
    }
}

fn projections(names: &[String]) -> anyhow::Result<Vec<Projection>> {
    let known = || Projection::ALL.map(Projection::name).join(", ");
    for name in names {
        let found = Projection::ALL.iter().any(|p| p.name() == name);
        anyhow::ensure!(found, "--targets names `{name}`, expected some of {}", known());
    }
    Ok(Projection::ALL.into_iter().filter(|p| names.iter().any(|name| name == p.name())).collect())
}
