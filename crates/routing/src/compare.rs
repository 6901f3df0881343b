//! Is one model better than another? Intervals and a test for two models judged on the same rows.

use crate::metrics::{Metrics, index_names};
use crate::report::count;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The coverage of every interval in this module.
pub const CONFIDENCE: f64 = 0.95;
/// The normal distribution's quantile at `(1 + CONFIDENCE) / 2`.
const Z: f64 = 1.959963984540054;
/// Bootstrap resamples: the ends of an interval then move by about 2% of its width between seeds.
const RESAMPLES: usize = 2000;

/// A range that holds the true value with probability [`CONFIDENCE`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether `value` lies inside, ends included.
    pub fn contains(self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// Wilson's score interval of a share such as an accuracy; `[0, 1]` when there are no rows.
pub fn wilson(right: usize, n: usize) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (share, n) = (right as f64 / n as f64, n as f64);
    let centre = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

/// Two models on the same rows; every difference is the first's value less the second's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The first model's name.
    pub first: String,
    /// The second model's name.
    pub second: String,
    /// Rows judged.
    pub n: usize,
    /// The two accuracies.
    pub accuracies: [f64; 2],
    /// Difference of the accuracies.
    pub accuracy_difference: f64,
    /// Its paired bootstrap interval.
    pub accuracy_interval: Interval,
    /// Difference of the macro F1 scores.
    pub macro_f1_difference: f64,
    /// Its paired bootstrap interval.
    pub macro_f1_interval: Interval,
    /// The exact test on the rows where only one of the two is right.
    pub mcnemar: McNemar,
    /// What follows from the above.
    pub verdict: Verdict,
}

/// McNemar's exact (binomial) test, two-sided.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct McNemar {
    /// Rows that only the first model has right.
    pub only_first: usize,
    /// Rows that only the second model has right.
    pub only_second: usize,
    /// How likely so uneven a split is if both are equally good.
    pub p_value: f64,
}

/// Which model is better, if the rows show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The first model is the more accurate one.
    FirstBetter,
    /// The second model is the more accurate one.
    SecondBetter,
    /// The difference may be chance.
    NoDifferenceShown,
}

/// One model's name and its predicted labels, one per row.
#[derive(Debug, Clone, Copy)]
pub struct Answers<'a> {
    /// The model's name.
    pub name: &'a str,
    /// The predicted labels.
    pub predicted: &'a [&'a str],
}

impl Comparison {
    /// Compares two models' answers to the same rows; equal seeds give equal intervals.
    ///
    /// Macro-F1 is over the labels that are true somewhere: a refusal is an error, and no label.
    ///
    /// A model is called better only when the accuracy's interval excludes zero and McNemar's test agrees
    /// at the same level.
    ///
    /// # Panics
    /// When the three columns differ in length.
    pub fn new(truth: &[&str], first: Answers<'_>, second: Answers<'_>, seed: u64) -> Self {
        let n = truth.len();
        for answers in [first, second] {
            assert_eq!(answers.predicted.len(), n, "`{}` must answer all {n} rows", answers.name);
        }
        let columns = [Column::new(truth, first.predicted), Column::new(truth, second.predicted)];
        let accuracies = columns.each_ref().map(|column| column.metrics.accuracy);
        let (accuracy_interval, macro_f1_interval) = bootstrap(&columns, n, seed);
        let only = |a: usize, b: usize| {
            (0..n).filter(|&row| columns[a].right(row) && !columns[b].right(row)).count()
        };
        let mcnemar = McNemar::new(only(0, 1), only(1, 0));
        let shown = !accuracy_interval.contains(0.0) && mcnemar.p_value < 1.0 - CONFIDENCE;
        let accuracy_difference = accuracies[0] - accuracies[1];
        Self {
            first: first.name.to_owned(),
            second: second.name.to_owned(),
            n,
            accuracies,
            accuracy_difference,
            accuracy_interval,
            macro_f1_difference: columns[0].metrics.macro_avg.f1 - columns[1].metrics.macro_avg.f1,
            macro_f1_interval,
            mcnemar,
            verdict: match (shown, accuracy_difference > 0.0) {
                (false, _) => Verdict::NoDifferenceShown,
                (true, true) => Verdict::FirstBetter,
                (true, false) => Verdict::SecondBetter,
            },
        }
    }

    /// The finding as one English sentence with its numbers.
    pub fn sentence(&self) -> String {
        let Self { first, second, n, .. } = self;
        let verdict = match self.verdict {
            Verdict::FirstBetter => format!("{first} is more accurate than {second}"),
            Verdict::SecondBetter => format!("{first} is less accurate than {second}"),
            Verdict::NoDifferenceShown => format!("No difference shown between {first} and {second}"),
        };
        let [a, b] = self.accuracies.map(|accuracy| accuracy * 100.0);
        let points = |share: f64| share * 100.0;
        let p = match self.mcnemar.p_value {
            p if p < 0.0001 => "p < 0.0001".to_owned(),
            p => format!("p = {p:.4}"),
        };
        format!(
            "{verdict}: {a:.1}% against {b:.1}% on the same {} rows \
             (difference {:+.1} points, {:.0}% interval {:+.1} to {:+.1}; McNemar {p}).",
            count(*n),
            points(self.accuracy_difference),
            points(CONFIDENCE),
            points(self.accuracy_interval.low),
            points(self.accuracy_interval.high),
        )
    }
}

impl McNemar {
    /// The test for the two counts of rows that only one model has right.
    pub fn new(only_first: usize, only_second: usize) -> Self {
        let (n, fewer) = (only_first + only_second, only_first.min(only_second));
        // P(X <= fewer) for X ~ Binomial(n, 1/2); in logs, since 2^-n underflows from n = 1075 on
        let mut log_term = -(n as f64) * std::f64::consts::LN_2;
        let mut tail = log_term.exp();
        for k in 0..fewer {
            log_term += ((n - k) as f64 / (k + 1) as f64).ln();
            tail += log_term.exp();
        }
        Self { only_first, only_second, p_value: (2.0 * tail).min(1.0) }
    }
}

/// One model's answers as indices over its own labels, as its metrics count them.
struct Column {
    metrics: Metrics,
    truth: Vec<usize>,
    predicted: Vec<usize>,
}

impl Column {
    fn new(truth: &[&str], predicted: &[&str]) -> Self {
        let rows: Vec<(&str, &str)> = truth.iter().copied().zip(predicted.iter().copied()).collect();
        let (_, truth, predicted) = index_names(&[], &rows);
        Self { metrics: Metrics::from_names(&[], &rows), truth, predicted }
    }

    fn right(&self, row: usize) -> bool {
        self.truth[row] == self.predicted[row]
    }

    /// Accuracy and macro F1 over the drawn rows, the latter over the labels that occur in them.
    fn judge(&self, drawn: &[usize]) -> (f64, f64) {
        // per name: right, predicted + support
        let mut counts = vec![(0usize, 0usize); self.metrics.confusion.labels.len()];
        for &row in drawn {
            let (truth, predicted) = (self.truth[row], self.predicted[row]);
            counts[truth].1 += 1;
            counts[predicted].1 += 1;
            counts[truth].0 += usize::from(truth == predicted);
        }
        let right: usize = counts.iter().map(|count| count.0).sum();
        // Names behind the labels are none.
        let occurring = counts[..self.metrics.per_label.len()].iter().filter(|count| count.1 > 0);
        let (f1, labels) = occurring.fold((0.0, 0usize), |(sum, labels), &(right, marks)| {
            (sum + 2.0 * right as f64 / marks as f64, labels + 1)
        });
        (right as f64 / drawn.len() as f64, f1 / labels as f64)
    }
}

/// Percentile intervals of the two differences, over resamples that draw the same rows for both models.
fn bootstrap(columns: &[Column; 2], n: usize, seed: u64) -> (Interval, Interval) {
    if n == 0 {
        let unknown = Interval { low: -1.0, high: 1.0 };
        return (unknown, unknown);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut accuracy, mut macro_f1) = (Vec::with_capacity(RESAMPLES), Vec::with_capacity(RESAMPLES));
    let mut drawn = vec![0; n];
    for _ in 0..RESAMPLES {
        drawn.fill_with(|| rng.random_range(0..n));
        let [first, second] = columns.each_ref().map(|column| column.judge(&drawn));
        accuracy.push(first.0 - second.0);
        macro_f1.push(first.1 - second.1);
    }
    (percentiles(accuracy), percentiles(macro_f1))
}

/// The middle [`CONFIDENCE`] of the values, between neighbours linearly, as numpy's `percentile`.
fn percentiles(mut values: Vec<f64>) -> Interval {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let position = share * (values.len() - 1) as f64;
        let (below, above) = (values[position.floor() as usize], values[position.ceil() as usize]);
        below + (above - below) * position.fract()
    };
    Interval { low: at((1.0 - CONFIDENCE) / 2.0), high: at(f64::midpoint(1.0, CONFIDENCE)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred rows of two labels; `wrong` of them answered wrongly, from `start` on.
    fn answers(start: usize, wrong: usize) -> Vec<&'static str> {
        let flip = |row: usize| row.is_multiple_of(2) != (start..start + wrong).contains(&row);
        (0..100).map(|row| if flip(row) { "a" } else { "b" }).collect()
    }

    fn compare(first: &[&str], second: &[&str]) -> Comparison {
        let named = |name, predicted| Answers { name, predicted };
        Comparison::new(&answers(0, 0), named("tuned", first), named("linear", second), 7)
    }

    #[test]
    fn a_large_gap_has_a_winner_either_way_round() {
        let (good, bad) = (answers(0, 5), answers(20, 30));
        let comparison = compare(&good, &bad);
        assert_eq!(comparison.verdict, Verdict::FirstBetter);
        let other_way = compare(&bad, &good);
        assert_eq!(other_way.verdict, Verdict::SecondBetter);
        let sentence = other_way.sentence();
        assert!(
            sentence.starts_with("tuned is less accurate than linear: 70.0% against 95.0%"),
            "{sentence}"
        );
        assert!((comparison.accuracy_difference - 0.25).abs() < 1e-12);
        assert!(comparison.accuracy_interval.contains(0.25));
        let sentence = comparison.sentence();
        assert!(
            sentence.starts_with("tuned is more accurate than linear: 95.0% against 70.0%"),
            "{sentence}"
        );
        assert_eq!(comparison, compare(&good, &bad), "equal seeds give equal intervals");
    }

    #[test]
    fn a_small_gap_is_no_difference() {
        let comparison = compare(&answers(0, 5), &answers(20, 7));
        assert_eq!(comparison.verdict, Verdict::NoDifferenceShown);
        assert!(comparison.sentence().starts_with("No difference shown between tuned and linear"));
    }

    #[test]
    fn no_rows_show_nothing() {
        let empty = Answers { name: "x", predicted: &[] };
        assert_eq!(Comparison::new(&[], empty, empty, 1).verdict, Verdict::NoDifferenceShown);
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }
}
