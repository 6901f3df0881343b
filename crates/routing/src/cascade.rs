//! A cascade: a small model answers, and the queries it is least sure of go on to a large one. What that would do to
//! accuracy, cost and latency, from answers that both have given already.

use crate::quantile;
use crate::report::Prediction;
use serde::{Deserialize, Serialize};

/// Steps of a curve at most: one for each percent of the queries.
const STEPS: usize = 100;

/// One model of a cascade: its answers to the rows, and what they take.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The model's name.
    pub name: &'a str,
    /// Its answers, one a row.
    pub rows: &'a [Prediction],
    /// USD for 1,000 queries, where it is known.
    pub cost_per_1000: Option<f64>,
    /// Seconds for each row, or one number for all; empty where they are not known.
    pub seconds: &'a [f64],
}

impl Side<'_> {
    fn seconds(&self, row: usize) -> Option<f64> {
        self.seconds.get(row).or_else(|| self.seconds.first().filter(|_| self.seconds.len() == 1)).copied()
    }
}

/// The curve from the small model alone to the large one alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cascade {
    /// The model that answers first.
    pub first: String,
    /// The model that is asked where the first is unsure.
    pub second: String,
    /// By share of the queries that go on, from none to all.
    pub points: Vec<CascadePoint>,
    /// The chosen point.
    pub chosen: usize,
    /// What it was chosen for.
    pub goal: CascadeGoal,
}

/// What happens when the queries below a probability go on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CascadePoint {
    /// Top probabilities below this go on.
    pub threshold: f64,
    /// Share of the queries that goes on.
    pub share: f64,
    /// Share of all queries that is right in the end.
    pub accuracy: f64,
    /// USD for 1,000 queries, all of which the first model answers; `None` where a price is not known.
    pub cost_per_1000: Option<f64>,
    /// Half of the queries are answered within so many seconds.
    pub p50_s: Option<f64>,
    /// 95% of the queries are answered within so many seconds.
    pub p95_s: Option<f64>,
}

/// What a point of the curve is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CascadeGoal {
    /// The highest accuracy, with as few queries going on as that takes.
    Accuracy,
    /// The fewest queries that reach this accuracy.
    AtLeast(f64),
    /// The highest accuracy for so many USD for 1,000 queries.
    AtMostCost(f64),
    /// The highest accuracy with at most this share going on.
    AtMostShare(f64),
}

impl Cascade {
    /// The curve of two models that answered the same rows. `None` when there are no rows, when the first gives no
    /// probabilities, or when no point meets the goal.
    ///
    /// # Panics
    /// When the two have different numbers of rows.
    pub fn new(first: Side<'_>, second: Side<'_>, goal: CascadeGoal) -> Option<Self> {
        assert_eq!(first.rows.len(), second.rows.len(), "both models must have answered the same rows");
        let n = first.rows.len();
        if n == 0 {
            return None;
        }
        let probability: Vec<f64> = first.rows.iter().map(|row| row.probability).collect::<Option<_>>()?;
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| probability[a].total_cmp(&probability[b]));
        let mut right = first.rows.iter().filter(|row| row.is_right()).count();
        let mut points = Vec::new();
        let mut gone = 0;
        let steps = STEPS.min(n);
        for step in 0..=steps {
            let wanted = step * n / steps;
            // rows of equal probability go on together
            while gone < n
                && (gone < wanted || (gone > 0 && probability[order[gone]] <= probability[order[gone - 1]]))
            {
                right -= usize::from(first.rows[order[gone]].is_right());
                right += usize::from(second.rows[order[gone]].is_right());
                gone += 1;
            }
            let share = gone as f64 / n as f64;
            if points.last().is_some_and(|last: &CascadePoint| last.share >= share) {
                continue;
            }
            let (p50_s, p95_s) = latency(first, second, &order, gone);
            points.push(CascadePoint {
                threshold: order.get(gone).map_or(f64::INFINITY, |&row| probability[row]).min(2.0),
                share,
                accuracy: right as f64 / n as f64,
                cost_per_1000: first
                    .cost_per_1000
                    .zip(second.cost_per_1000)
                    .map(|(own, other)| own + share * other),
                p50_s,
                p95_s,
            });
        }
        let chosen = goal.choose(&points)?;
        Some(Self { first: first.name.to_owned(), second: second.name.to_owned(), points, chosen, goal })
    }

    /// The chosen point.
    pub fn point(&self) -> &CascadePoint {
        &self.points[self.chosen]
    }
}

/// Median and 95% quantile of the seconds that rows take when the first `gone` of `order` go on.
fn latency(first: Side<'_>, second: Side<'_>, order: &[usize], gone: usize) -> (Option<f64>, Option<f64>) {
    let total = |(at, &row): (usize, &usize)| {
        let own = first.seconds(row)?;
        if at < gone { Some(own + second.seconds(row)?) } else { Some(own) }
    };
    let Some(mut seconds) = order.iter().enumerate().map(total).collect::<Option<Vec<f64>>>() else {
        return (None, None);
    };
    seconds.sort_by(f64::total_cmp);
    (quantile(&seconds, 0.5), quantile(&seconds, 0.95))
}

impl CascadeGoal {
    /// The point to take; of equally accurate ones the one that sends fewest on.
    fn choose(self, points: &[CascadePoint]) -> Option<usize> {
        let allowed = |point: &CascadePoint| match self {
            Self::Accuracy => true,
            Self::AtLeast(least) => point.accuracy >= least - 1e-12,
            Self::AtMostCost(most) => point.cost_per_1000.is_some_and(|cost| cost <= most),
            Self::AtMostShare(most) => point.share <= most + 1e-12,
        };
        let mut allowed = points.iter().enumerate().filter(|(_, point)| allowed(point));
        if let Self::AtLeast(_) = self {
            return allowed.next().map(|(index, _)| index);
        }
        let better = |best: (usize, &CascadePoint), next: (usize, &CascadePoint)| {
            next.1.accuracy > best.1.accuracy + 1e-12
        };
        let mut best = allowed.next()?;
        for (index, point) in allowed {
            if better((best.0, best.1), (index, point)) {
                best = (index, point);
            }
        }
        Some(best.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten rows, the first model's probability rising from 0.1 to 1; `right` says which rows a model has right.
    fn rows(right: [bool; 10]) -> Vec<Prediction> {
        let row = |index: usize| {
            let label = "a".to_owned();
            let predicted = if right[index] { "a" } else { "b" }.to_owned();
            let probability = Some((index + 1) as f64 / 10.0);
            Prediction { text: String::new(), label, predicted, probability, ..Prediction::default() }
        };
        (0..10).map(row).collect()
    }

    /// The small model is wrong on its three least sure rows and on one sure row; the large one on two others.
    ///
    /// | goes on  | 0   | 1   | 2   | 3   | 4   | 5   | 6   | 7   | 8   | 9   | 10  |
    /// |----------|-----|-----|-----|-----|-----|-----|-----|-----|-----|-----|-----|
    /// | accuracy | 0.6 | 0.7 | 0.8 | 0.9 | 0.8 | 0.8 | 0.8 | 0.8 | 0.8 | 0.9 | 0.8 |
    #[test]
    fn the_written_out_example() {
        let small = rows([false, false, false, true, true, true, true, true, false, true]);
        let large = rows([true, true, true, false, true, true, true, true, true, false]);
        let first = Side { name: "small", rows: &small, cost_per_1000: Some(0.1), seconds: &[0.02] };
        let second = Side { name: "large", rows: &large, cost_per_1000: Some(2.0), seconds: &[1.0; 10] };
        let curve = |goal| Cascade::new(first, second, goal);
        let best = curve(CascadeGoal::Accuracy).unwrap();
        let accuracies: Vec<f64> =
            best.points.iter().map(|point| (point.accuracy * 10.0).round() / 10.0).collect();
        assert_eq!(accuracies, [0.6, 0.7, 0.8, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.9, 0.8]);
        let point = best.point();
        assert!((point.share - 0.3).abs() < 1e-12 && (point.threshold - 0.4).abs() < 1e-12, "{point:?}");
        assert!((point.cost_per_1000.unwrap() - 0.7).abs() < 1e-12);
        assert_eq!((point.p50_s, point.p95_s), (Some(0.02), Some(1.02)));
        let share = |goal| curve(goal).map(|cascade| (cascade.point().share * 10.0).round() / 10.0);
        assert_eq!(share(CascadeGoal::AtLeast(0.75)), Some(0.2));
        assert_eq!(share(CascadeGoal::AtLeast(0.95)), None);
        assert_eq!(share(CascadeGoal::AtMostCost(0.4)), Some(0.1));
        assert_eq!(share(CascadeGoal::AtMostShare(0.25)), Some(0.2));
    }

    fn side(rows: &[Prediction]) -> Side<'_> {
        Side { name: "x", rows, cost_per_1000: None, seconds: &[] }
    }

    #[test]
    fn equal_probabilities_go_together_and_missing_ones_make_no_curve() {
        let mut small = rows([true; 10]);
        let large = small.clone();
        for row in &mut small {
            row.probability = Some(0.5);
        }
        let curve = Cascade::new(side(&small), side(&large), CascadeGoal::Accuracy).unwrap();
        assert_eq!(curve.points.iter().map(|point| point.share).collect::<Vec<_>>(), [0.0, 1.0]);
        assert_eq!((curve.chosen, curve.point().cost_per_1000, curve.point().p95_s), (0, None, None));
        small[3].probability = None;
        assert_eq!(Cascade::new(side(&small), side(&large), CascadeGoal::Accuracy), None);
        assert_eq!(Cascade::new(side(&[]), side(&[]), CascadeGoal::Accuracy), None);
    }
}
