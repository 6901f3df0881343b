//! How time and memory grow: a step's time with the tokens of its tree, memory with the size of the data set.

use formats::BaseModel;
use kernels::Backend;
use router::{Recipe, peak_memory};
use serde_json::{Value, json};

use super::synthetic::{Training, load};

/// Examples a step.
const BATCHES: [usize; 3] = [8, 16, 32];
/// Examples of the data set, the smallest first, as peaks of memory only rise.
const DATA_SETS: [usize; 3] = [1_000, 10_000, 100_000];

/// Trains on random weights of this shape with three batches and three sizes of the data set.
pub(super) fn scaling<B: Backend>(
    backend: B,
    shape: &str,
    recipe: &Recipe,
    steps: u64,
) -> anyhow::Result<Value> {
    let base = BaseModel::random(shape)?;
    let mut models = load(vec![backend], &base)?;
    let (mut data_sets, mut batches) = (Vec::new(), Vec::new());
    for examples in DATA_SETS {
        let plan = Training { examples, batch: BATCHES[0], tokens: None, steps: 1 };
        let (trained, _) = plan.run(models, &base, recipe)?;
        data_sets.push(json!({ "examples": examples, "peak_memory_bytes": peak_memory() }));
        models = trained;
    }
    for batch in BATCHES {
        let plan = Training { examples: DATA_SETS[0], batch, tokens: None, steps };
        let (trained, clock) = plan.run(models, &base, recipe)?;
        let seconds = clock.seconds_per_step();
        let rows = seconds * clock.per_second(|step| step.rows);
        batches.push(json!({
            "examples": batch,
            "rows": rows.round(),
            "seconds_per_step": seconds,
            "milliseconds_per_row": 1e3 * seconds / rows,
        }));
        models = trained;
    }
    Ok(json!({ "data_sets": data_sets, "batches": batches }))
}
