//! Linear support vector machines by dual coordinate descent, as LIBLINEAR trains them (Hsieh et al., 2008):
//! `min_w |w|^2 / 2 + C sum_i max(0, 1 - y_i w.x_i)^2`, with a constant feature for the bias.

use super::{LinearConfig, tfidf::SparseRow};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The weights of each label against the rest: `(labels)(features + 1)`, the bias last.
pub(super) fn train_one_vs_rest(
    rows: &[SparseRow],
    n_features: usize,
    labels: &[usize],
    n_labels: usize,
    config: &LinearConfig,
) -> Vec<Vec<f32>> {
    let squares: Vec<f32> =
        rows.iter().map(|row| 1.0 + row.iter().map(|(_, v)| v * v).sum::<f32>()).collect();
    let passes = passes(rows, n_labels, config.max_passes);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let label = next.fetch_add(1, Ordering::Relaxed);
            if label >= n_labels {
                return done;
            }
            let signs: Vec<f32> = labels.iter().map(|&l| if l == label { 1.0 } else { -1.0 }).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
            // a stream per label, so that neither threads nor their order change the result
            rng.set_stream(label as u64);
            done.push((label, train(rows, &squares, &signs, n_features, passes, config, rng)));
        }
    };
    let mut weights = vec![Vec::new(); n_labels];
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..config.threads.clamp(1, n_labels)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let done = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            for (label, column) in done {
                weights[label] = column;
            }
        }
    });
    weights
}

/// Products of values and weights after which all labels together stop, settled or not: minutes on a processor, for a
/// million rows of many labels.
const MOST_PRODUCTS: f64 = 5e10;
/// Passes that are made in any case.
const FEWEST_PASSES: usize = 3;

/// The passes over the rows that [`MOST_PRODUCTS`] allow. Most problems settle long before.
fn passes(rows: &[SparseRow], n_labels: usize, most: usize) -> usize {
    let values: usize = rows.iter().map(Vec::len).sum();
    let allowed = MOST_PRODUCTS / (values as f64 * n_labels as f64).max(1.0);
    (allowed as usize).max(FEWEST_PASSES).min(most)
}

/// One label's weights; `squares` holds `x.x` of each row, `signs` its `y`.
fn train(
    rows: &[SparseRow],
    squares: &[f32],
    signs: &[f32],
    n_features: usize,
    passes: usize,
    config: &LinearConfig,
    mut rng: ChaCha8Rng,
) -> Vec<f32> {
    let diagonal = (0.5 / config.c) as f32;
    let mut weights = vec![0f32; n_features + 1];
    let mut alpha = vec![0f32; rows.len()];
    let mut active: Vec<usize> = (0..rows.len()).collect();
    let mut n_active = rows.len();
    let mut shrink_above = f32::INFINITY;
    for _ in 0..passes {
        let (mut largest, mut smallest) = (f32::NEG_INFINITY, f32::INFINITY);
        active[..n_active].shuffle(&mut rng);
        let mut at = 0;
        while at < n_active {
            let row = active[at];
            let sign = signs[row];
            let gradient = sign * dot(&weights, &rows[row]) - 1.0 + alpha[row] * diagonal;
            if alpha[row] == 0.0 && gradient > shrink_above {
                // far on the right side: set aside until the others have settled
                n_active -= 1;
                active.swap(at, n_active);
                continue;
            }
            at += 1;
            let projected = if alpha[row] == 0.0 { gradient.min(0.0) } else { gradient };
            largest = largest.max(projected);
            smallest = smallest.min(projected);
            if projected != 0.0 {
                let updated = (alpha[row] - gradient / (squares[row] + diagonal)).max(0.0);
                add_scaled(&mut weights, &rows[row], (updated - alpha[row]) * sign);
                alpha[row] = updated;
            }
        }
        if largest - smallest <= config.tolerance {
            if n_active == rows.len() {
                break;
            }
            // settled without the rows set aside: look at all of them again
            n_active = rows.len();
            shrink_above = f32::INFINITY;
        } else {
            shrink_above = if largest > 0.0 { largest } else { f32::INFINITY };
        }
    }
    weights
}

/// `w.x` with the constant feature 1, whose weight is the last.
fn dot(weights: &[f32], row: &SparseRow) -> f32 {
    // four sums, so that one addition need not wait for the one before
    let (blocks, rest) = row.as_chunks::<4>();
    let mut sums = [0f32; 4];
    for block in blocks {
        for (sum, &(feature, value)) in sums.iter_mut().zip(block) {
            *sum += weights[feature as usize] * value;
        }
    }
    let rest: f32 = rest.iter().map(|&(feature, value)| weights[feature as usize] * value).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest + weights[weights.len() - 1]
}

fn add_scaled(weights: &mut [f32], row: &SparseRow, scale: f32) {
    for &(feature, value) in row {
        weights[feature as usize] += scale * value;
    }
    let bias = weights.len() - 1;
    weights[bias] += scale;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_opposite_points_have_a_known_solution() {
        // x = +1 for yes, -1 for no, C = 1: by symmetry b = 0, and w minimises w^2/2 + 2 (1 - w)^2: w = 0.8
        let rows = [vec![(0, 1.0)], vec![(0, -1.0)]];
        let config = LinearConfig { tolerance: 1e-6, ..LinearConfig::default() };
        let weights = train_one_vs_rest(&rows, 1, &[0, 1], 2, &config);
        assert!((weights[0][0] - 0.8).abs() < 1e-4 && weights[0][1].abs() < 1e-4, "{weights:?}");
        assert!((weights[1][0] + 0.8).abs() < 1e-4, "{weights:?}");
    }

    #[test]
    fn large_problems_get_fewer_passes() {
        let rows = |count: usize| vec![vec![(0, 1.0); 100]; count];
        assert_eq!(passes(&rows(100), 77, 1000), 1000);
        assert_eq!(passes(&rows(10_000), 1000, 1000), 50);
        assert_eq!(passes(&rows(20_000), 100_000, 1000), FEWEST_PASSES);
        assert_eq!(passes(&[], 2, 7), 7);
    }
}
