//! Cross-entropy: the plain version against finite differences, the fast one against the plain one.

mod common;

use common::{Random, assert_close};
use kernels::cross_entropy::{forward_backward, log_probs, reference};
use kernels::linear::PackedMatrix;
use kernels::{Element, bf16, pool};
use proptest::prelude::*;

struct Case<E> {
    width: usize,
    h: Vec<E>,
    head: PackedMatrix<E>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    wanted: Vec<(u32, u32)>,
}

impl<E: Element> Case<E> {
    /// Logits of some size, so that the softmax is neither flat nor one-hot.
    fn new(rows: usize, width: usize, vocabulary: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let h = random.vec::<f32>(rows * width).into_iter().map(|v| E::from_f32(4.0 * v)).collect();
        let head = PackedMatrix::new(vocabulary, width, &mut |_, out| {
            out.fill_with(|| 2.0 * random.next());
        });
        let mut random = Random(seed + 1);
        let mut token = || ((random.next() + 0.5) * vocabulary as f32) as u32 % vocabulary as u32;
        let targets: Vec<u32> = (0..rows).map(|_| token()).collect();
        let wanted =
            (0..rows as u32).flat_map(|t| (0..t % 4).map(move |_| t)).map(|t| (t, token())).collect();
        let weights = Random(seed + 2).vec(rows);
        Self { width, h, head, targets, weights, wanted }
    }

    fn run(&self, fast: bool) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (losses, d_h, _, probs) = self.run_with_head(fast);
        (losses, d_h, probs)
    }

    /// With the head's gradient, added to ones.
    fn run_with_head(&self, fast: bool) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<f32>) {
        let rows = self.targets.len();
        let mut d_head = vec![1.0; self.head.rows() * self.width];
        let head_gradient = Some(&mut d_head[..]);
        let (mut losses, mut d_h, mut probs) =
            (vec![0.0; rows], vec![1.0; rows * self.width], vec![0.0; self.wanted.len()]);
        let (h, head, targets, weights) = (&self.h, &self.head, &self.targets, &self.weights);
        if fast {
            forward_backward(&mut losses, Some(&mut d_h), head_gradient, h, head, targets, weights);
            log_probs(&mut probs, h, head, &self.wanted);
        } else {
            reference::forward_backward(
                &mut losses,
                Some(&mut d_h),
                head_gradient,
                h,
                head,
                targets,
                weights,
            );
            reference::log_probs(&mut probs, h, head, &self.wanted);
        }
        (losses, d_h, d_head, probs)
    }

    fn check(&self) {
        self.check_results(self.run(true));
        let ((_, d_h, d_head, _), (_, _, plain, _)) = (self.run_with_head(true), self.run_with_head(false));
        let (mut losses, mut alone) = (vec![0.0; self.targets.len()], vec![1.0; d_h.len()]);
        let (h, head, targets, weights) = (&self.h, &self.head, &self.targets, &self.weights);
        forward_backward(&mut losses, Some(&mut alone), None, h, head, targets, weights);
        assert_eq!(alone, d_h, "the head's gradient is computed beside the others");
        let unit = if E::NAME == "f32" { 1e-5 } else { 1.0 / 256.0 };
        let largest = self.h.iter().fold(0.0f32, |a, h| a.max(h.to_f32().abs()));
        let sum: f32 = self.weights.iter().map(|w| w.abs()).sum();
        assert_close("d_head", &d_head, &plain, &vec![unit * largest * sum + 1e-6; plain.len()]);
    }

    fn check_results(&self, (losses, d_h, probs): (Vec<f32>, Vec<f32>, Vec<f32>)) {
        let (plain_losses, plain_d_h, plain_probs) = self.run(false);
        assert_close("losses", &losses, &plain_losses, &vec![2e-5; losses.len()]);
        assert_close("log probs", &probs, &plain_probs, &vec![2e-5; probs.len()]);
        // The gradients by the logits, of sum at most 2 |weight|, are rounded to E; weights are at most 1.
        let unit = if E::NAME == "f32" { 1e-5 } else { 1.0 / 256.0 };
        let tolerance: Vec<f32> =
            (0..d_h.len()).map(|at| 2.0 * unit * self.weights[at / self.width].abs() + 1e-7).collect();
        assert_close("d_h", &d_h, &plain_d_h, &tolerance);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn fast_is_plain(rows in 1usize..40, width in 1usize..80, vocabulary in 1usize..2500, seed in any::<u32>()) {
        Case::<bf16>::new(rows, width, vocabulary, seed.into()).check();
        Case::<f32>::new(rows, width, vocabulary, seed.into()).check();
    }
}

#[test]
fn batches_longer_than_a_chunk() {
    Case::<bf16>::new(233, 33, 1100, 5).check();
    Case::<f32>::new(0, 33, 1100, 5).check();
}

/// One wrong value of a row must not pass the comparison.
#[test]
#[should_panic(expected = "differs")]
fn a_wrong_value_is_noticed() {
    let case = Case::<bf16>::new(12, 33, 300, 5);
    let mut wrong = Case::<bf16>::new(12, 33, 300, 5);
    wrong.h[100] = bf16::from_f32(wrong.h[100].to_f32() + 0.01);
    case.check_results(wrong.run(true));
}

#[test]
fn rows_stand_alone() {
    let all = Case::<bf16>::new(130, 40, 2100, 9);
    let (losses, d_h, probs) = all.run(true);
    assert_eq!(pool::alone(|| all.run(true)), (losses.clone(), d_h.clone(), probs.clone()));
    for (first, rows) in [(0, 1), (129, 1), (17, 14), (64, 60)] {
        let wanted: Vec<_> =
            all.wanted.iter().filter(|(t, _)| (first..first + rows).contains(&(*t as usize))).collect();
        let part = Case::<bf16> {
            h: all.h[first * 40..][..rows * 40].to_vec(),
            head: all.head.clone(),
            targets: all.targets[first..][..rows].to_vec(),
            weights: all.weights[first..][..rows].to_vec(),
            wanted: wanted.iter().map(|(t, token)| (t - first as u32, *token)).collect(),
            width: 40,
        };
        let (part_losses, part_d_h, part_probs) = part.run(true);
        assert_eq!(part_losses, losses[first..][..rows]);
        assert_eq!(part_d_h, d_h[first * 40..][..rows * 40]);
        let probs = all.wanted.iter().zip(&probs).filter(|(w, _)| wanted.contains(w)).map(|(_, p)| *p);
        assert_eq!(part_probs, probs.collect::<Vec<_>>());
    }
}

#[test]
fn plain_gradient_is_the_finite_difference() {
    let mut case = Case::<f32>::new(3, 7, 50, 4);
    let (_, d_h, _) = case.run(false);
    let objective = |case: &Case<f32>| -> f64 {
        let (losses, ..) = case.run(false);
        losses.iter().zip(&case.weights).map(|(l, w)| f64::from(*l) * f64::from(*w)).sum()
    };
    for (at, gradient) in d_h.into_iter().enumerate() {
        let (middle, step) = (case.h[at], 0.02);
        case.h[at] = middle + step;
        let up = objective(&case);
        case.h[at] = middle - step;
        let down = objective(&case);
        case.h[at] = middle;
        let numeric = (up - down) / (2.0 * f64::from(step));
        assert!((numeric - f64::from(gradient)).abs() < 3e-4, "d_h[{at}] = {gradient}, not {numeric}");
    }
    let (_, _, d_head, _) = case.run_with_head(false);
    let mut values = vec![0.0; 50 * 7];
    (0..50).for_each(|row| case.head.read_row(row, &mut values[row * 7..(row + 1) * 7]));
    for at in (0..values.len()).step_by(11) {
        let mut moved = |by: f32| {
            let mut values = values.clone();
            values[at] += by;
            case.head.refill(&values);
            objective(&case)
        };
        let numeric = (moved(0.02) - moved(-0.02)) / 0.04;
        let gradient = d_head[at] - 1.0;
        assert!((numeric - f64::from(gradient)).abs() < 3e-4, "d_head[{at}] = {gradient}, not {numeric}");
    }
}
