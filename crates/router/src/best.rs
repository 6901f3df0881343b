//! Which of a run's validations is kept.
//!
//! The learning rate falls to zero, so the last values are the best guess before anything is measured, and a few
//! hundred validation rows measure with noise: on rare labels one row can move macro-F1 by points. A later validation
//! therefore replaces an earlier one unless the rows show that it is worse.

use routing::compare::{Answers, Comparison};
use serde::{Deserialize, Serialize};

/// The values that are kept so far, and the validation that others are measured by.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    /// Steps after which the kept values were taken.
    pub(crate) step: u64,
    #[serde(skip)]
    pub(crate) values: Vec<f32>,
    /// The highest macro-F1 so far.
    macro_f1: f64,
    /// What the values with the highest macro-F1 answered: a label's index for each row.
    answers: Vec<usize>,
    /// Validations since the highest macro-F1.
    pub(crate) misses: u32,
}

impl Best {
    /// Takes in a validation, whose values `values` reads when they are to be kept. Whether they are.
    pub(crate) fn offer(
        best: &mut Option<Self>,
        step: u64,
        macro_f1: f64,
        answers: Vec<usize>,
        truth: &[usize],
        values: impl FnOnce() -> Vec<f32>,
    ) -> bool {
        match best {
            Some(best) if macro_f1 < best.macro_f1 => {
                best.misses += 1;
                let kept = !shown_worse(truth, &answers, &best.answers);
                if kept {
                    (best.step, best.values) = (step, values());
                }
                kept
            }
            _ => {
                *best = Some(Self { step, values: values(), macro_f1, answers, misses: 0 });
                true
            }
        }
    }
}

/// Whether the paired bootstrap interval of the macro-F1 difference leaves no doubt.
fn shown_worse(truth: &[usize], answers: &[usize], than: &[usize]) -> bool {
    let named = |indices: &[usize]| indices.iter().map(usize::to_string).collect::<Vec<_>>();
    let [truth, answers, than] = [truth, answers, than].map(named);
    let [truth, answers, than] =
        [&truth, &answers, &than].map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
    let side = |name, predicted| Answers { name, predicted };
    let seed = 0;
    Comparison::new(&truth, side("earlier", &than), side("later", &answers), seed).macro_f1_interval.low > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 rows of four labels, of which the first `wrong` get another label than theirs.
    fn rows(wrong: usize) -> (Vec<usize>, Vec<usize>) {
        let truth: Vec<usize> = (0..100).map(|row| row % 4).collect();
        let answers =
            truth.iter().enumerate().map(|(row, &label)| if row < wrong { (label + 1) % 4 } else { label });
        (answers.collect(), truth)
    }

    fn offer(best: &mut Option<Best>, step: u64, wrong: usize) -> bool {
        let (answers, truth) = rows(wrong);
        Best::offer(best, step, 1.0 - wrong as f64 / 100.0, answers, &truth, || vec![step as f32])
    }

    #[test]
    fn the_later_one_is_kept_unless_it_is_shown_to_be_worse() {
        let mut best = None;
        assert!(offer(&mut best, 1, 10));
        assert!(offer(&mut best, 2, 5), "a better one");
        assert!(offer(&mut best, 3, 6), "one row of a hundred shows nothing");
        assert!(!offer(&mut best, 4, 30), "25 rows show it");
        let best = best.unwrap();
        assert_eq!((best.step, best.values, best.misses), (3, vec![3.0], 2));
    }

    #[test]
    fn small_losses_do_not_add_up() {
        let mut best = None;
        for (step, wrong) in (1..).zip([2, 3, 4, 5]) {
            assert!(offer(&mut best, step, wrong));
        }
        assert!(!offer(&mut best, 5, 14), "compared with the best, not with the one before");
        assert_eq!(best.unwrap().step, 4);
    }
}
