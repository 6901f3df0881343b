//! How sure the model must be before a query is routed without a person looking at it.

use serde::{Deserialize, Serialize};

use super::Goal;

/// What happens to one query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The label is sure enough: send the query there.
    Route,
    /// It is not: a person (or a fallback model) decides.
    Triage,
}

/// One validation row: what the model said, how sure it was, and whether it was right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Index of the predicted label.
    pub predicted: usize,
    /// Its calibrated probability.
    pub probability: f64,
    /// Whether it is the true label.
    pub right: bool,
    /// Whether the row is held to be in scope; the others go to triage whatever the thresholds.
    pub in_scope: bool,
}

/// The least probability at which each label is routed, chosen on validation rows.
///
/// For a share that must be right, a threshold is the lowest probability at which the rows at or above it meet the
/// target with one more error added: `errors + 1 <= (1 - target) * (rows + 1)`. The added error pays for having
/// looked for the best place, and lets no target pass on a handful of rows: 97% takes at least 33, all right.
///
/// For costs it is [`super::Costs::threshold`], which needs no rows but calibrated probabilities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// What they were chosen for.
    #[serde(flatten)]
    pub goal: Goal,
    /// The threshold of labels without one of their own; `None` when no threshold meets the target.
    pub global: Option<f64>,
    /// One entry per label of the model, in its order.
    pub per_label: Vec<LabelThreshold>,
    /// Share of the validation rows that these thresholds route.
    pub coverage: f64,
    /// Share of those that is right; 0 when none is routed.
    pub precision: f64,
    /// What a validation row costs with these thresholds, where the goal is the least cost.
    #[serde(default)]
    pub cost_per_query: Option<f64>,
}

/// The threshold of one predicted label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelThreshold {
    /// The label's name.
    pub label: String,
    /// Routed from this probability on; `None` sends every such query to triage.
    pub threshold: Option<f64>,
    /// Where the threshold comes from.
    pub source: ThresholdSource,
    /// Validation rows predicted as this label.
    pub rows: usize,
}

/// Where a label's threshold comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdSource {
    /// From the label's own rows.
    Label,
    /// From all rows: the label has too few to show the target even if all were right.
    Global,
    /// From what a mistake and a look cost.
    Cost,
    /// The label means "out of scope": nobody is there to be routed to.
    OutOfScope,
}

impl Thresholds {
    /// Chooses thresholds for `goal`. Queries predicted as `nowhere`, an index, are never routed.
    ///
    /// For a share, each label with enough rows has its own; the others share the global one. Where that mix would
    /// miss the target on the validation rows, every label takes the global threshold.
    ///
    /// # Panics
    /// When a row's predicted label is not below `labels.len()`.
    pub fn choose(labels: &[String], rows: &[Scored], goal: &Goal, nowhere: Option<usize>) -> Self {
        let departments = |row: &&Scored| row.in_scope && Some(row.predicted) != nowhere;
        let global = match goal {
            Goal::Precision { target } => lowest(rows.iter().filter(departments).copied(), *target),
            Goal::Cost { cost, .. } => Some(cost.threshold()),
        };
        let choose = |(index, label): (usize, &String)| {
            let own: Vec<Scored> =
                rows.iter().filter(departments).copied().filter(|row| row.predicted == index).collect();
            let (source, threshold) = match (goal, goal.costs(label)) {
                _ if Some(index) == nowhere => (ThresholdSource::OutOfScope, None),
                (_, Some(costs)) => (ThresholdSource::Cost, Some(costs.threshold())),
                (Goal::Precision { target }, _) if enough(0, own.len(), *target) => {
                    (ThresholdSource::Label, lowest(own.iter().copied(), *target))
                }
                _ => (ThresholdSource::Global, global),
            };
            LabelThreshold { label: label.clone(), threshold, source, rows: own.len() }
        };
        let mut per_label: Vec<LabelThreshold> = labels.iter().enumerate().map(choose).collect();
        let (mut routed, mut right) = count_routed(&per_label, rows);
        if let Goal::Precision { target } = goal
            && routed > 0
            && (right as f64) < target * routed as f64
        {
            for label in per_label.iter_mut().filter(|label| label.source == ThresholdSource::Label) {
                (label.threshold, label.source) = (global, ThresholdSource::Global);
            }
            (routed, right) = count_routed(&per_label, rows);
        }
        let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let mut chosen = Self {
            goal: goal.clone(),
            global,
            per_label,
            coverage: share(routed, rows.len()),
            precision: share(right, routed),
            cost_per_query: None,
        };
        chosen.cost_per_query = chosen.cost(rows);
        chosen
    }

    /// What these rows cost on average; `None` when the goal is a share, or there are no rows.
    fn cost(&self, rows: &[Scored]) -> Option<f64> {
        let cost = |row: &Scored| {
            let costs = self.goal.costs(&self.per_label[row.predicted].label)?;
            Some(match is_routed(&self.per_label, row) {
                false => costs.triage,
                true if row.right => 0.0,
                true => costs.wrong,
            })
        };
        let total: f64 = rows.iter().map(cost).sum::<Option<f64>>()?;
        (!rows.is_empty()).then(|| total / rows.len() as f64)
    }

    /// What to do with a query predicted as `label` (an index) with this probability.
    ///
    /// # Panics
    /// When `label` is not below the number of labels.
    pub fn decide(&self, label: usize, probability: f64) -> Decision {
        decide(&self.per_label[label], probability)
    }
}

fn decide(label: &LabelThreshold, probability: f64) -> Decision {
    match label.threshold {
        Some(threshold) if probability >= threshold => Decision::Route,
        _ => Decision::Triage,
    }
}

fn is_routed(per_label: &[LabelThreshold], row: &Scored) -> bool {
    row.in_scope && decide(&per_label[row.predicted], row.probability) == Decision::Route
}

fn count_routed(per_label: &[LabelThreshold], rows: &[Scored]) -> (usize, usize) {
    let routed = rows.iter().filter(|row| is_routed(per_label, row));
    routed.fold((0, 0), |(routed, right), row| (routed + 1, right + usize::from(row.right)))
}

/// Whether so many errors in so many rows show the target, with one error added.
fn enough(errors: usize, rows: usize, target: f64) -> bool {
    // the slack is for targets such as 0.9, whose 1 - 0.9 is a hair less than a tenth
    (errors + 1) as f64 <= (1.0 - target) * (rows + 1) as f64 + 1e-9
}

/// The lowest probability from which on the rows show the target.
fn lowest(rows: impl Iterator<Item = Scored>, target: f64) -> Option<f64> {
    let mut rows: Vec<Scored> = rows.collect();
    rows.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    let (mut found, mut errors) = (None, 0);
    for (index, row) in rows.iter().enumerate() {
        errors += usize::from(!row.right);
        // rows of equal probability are routed together or not at all
        let last_of_equals = rows.get(index + 1).is_none_or(|next| next.probability < row.probability);
        if last_of_equals && enough(errors, index + 1, target) {
            found = Some(row.probability);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(predicted: usize, scored: &[(f64, bool)]) -> Vec<Scored> {
        scored
            .iter()
            .map(|&(probability, right)| Scored { predicted, probability, right, in_scope: true })
            .collect()
    }

    fn share(target: f64) -> Goal {
        Goal::Precision { target }
    }

    fn labels() -> Vec<String> {
        ["billing", "claims", "rare"].map(String::from).to_vec()
    }

    /// Target 75%: of every four routed, at most one may be wrong, with one error added for caution.
    ///
    /// | row | probability | right | errors + 1 | 25% of rows + 1 | shown |
    /// |-----|-------------|-------|------------|-----------------|-------|
    /// | 1   | 0.99        | yes   | 1          | 0.50            | no    |
    /// | 2   | 0.95        | yes   | 1          | 0.75            | no    |
    /// | 3   | 0.90        | yes   | 1          | 1.00            | yes   |
    /// | 4   | 0.80        | no    | 2          | 1.25            | no    |
    /// | 5-7 | 0.70 to 0.60| yes   | 2          | 2.00 at row 7   | yes   |
    /// | 8   | 0.50        | no    | 3          | 2.25            | no    |
    ///
    /// So the threshold is 0.60: 7 of 8 rows are routed and 6 of those 7 are right.
    #[test]
    fn the_written_out_example() {
        let billing = [
            (0.99, true),
            (0.95, true),
            (0.90, true),
            (0.80, false),
            (0.70, true),
            (0.65, true),
            (0.60, true),
            (0.50, false),
        ];
        let thresholds = Thresholds::choose(&labels(), &rows(0, &billing), &share(0.75), None);
        assert_eq!(thresholds.per_label[0].threshold, Some(0.60));
        assert_eq!(thresholds.per_label[0].source, ThresholdSource::Label);
        assert_eq!(thresholds.global, Some(0.60));
        assert!((thresholds.coverage - 7.0 / 8.0).abs() < 1e-12);
        assert!((thresholds.precision - 6.0 / 7.0).abs() < 1e-12);
        assert_eq!(thresholds.decide(0, 0.60), Decision::Route);
        assert_eq!(thresholds.decide(0, 0.59), Decision::Triage);
        assert_eq!(thresholds.per_label[2].source, ThresholdSource::Global, "no rows of its own");
    }

    #[test]
    fn a_target_of_97_percent_takes_33_right_rows() {
        let right = |n: usize| rows(0, &vec![(0.9, true); n]);
        assert_eq!(Thresholds::choose(&labels(), &right(32), &share(0.97), None).global, None);
        assert_eq!(Thresholds::choose(&labels(), &right(33), &share(0.97), None).global, Some(0.9));
    }

    #[test]
    fn a_label_that_is_never_good_enough_goes_to_triage_alone() {
        let mut all = rows(0, &vec![(0.8, true); 400]);
        all.extend(rows(1, &[(0.95, false), (0.9, true)].repeat(50)));
        let thresholds = Thresholds::choose(&labels(), &all, &share(0.97), None);
        assert_eq!(thresholds.per_label[0].threshold, Some(0.8));
        assert_eq!(thresholds.per_label[1].threshold, None);
        assert_eq!(thresholds.decide(1, 1.0), Decision::Triage);
        assert!((thresholds.precision - 1.0).abs() < 1e-12);
    }

    /// A mistake costs 10, a look 1, so routing pays from 90% on; a wrong claim costs 40, so there from 97.5% on.
    ///
    /// | predicted | probability | right | decision | cost |
    /// |-----------|-------------|-------|----------|------|
    /// | billing   | 0.95        | yes   | route    | 0    |
    /// | billing   | 0.92        | no    | route    | 10   |
    /// | billing   | 0.85        | yes   | triage   | 1    |
    /// | claims    | 0.95        | yes   | triage   | 1    |
    /// | claims    | 0.99        | yes   | route    | 0    |
    ///
    /// 12 over five rows: 2.4 a query.
    #[test]
    fn the_written_out_costs() {
        let costs = |wrong, triage| crate::calibration::Costs { wrong, triage };
        let cost_of = std::collections::BTreeMap::from([("claims".to_owned(), costs(40.0, 1.0))]);
        let goal = Goal::Cost { cost: costs(10.0, 1.0), cost_of };
        let mut all = rows(0, &[(0.95, true), (0.92, false), (0.85, true)]);
        all.extend(rows(1, &[(0.95, true), (0.99, true)]));
        let thresholds = Thresholds::choose(&labels(), &all, &goal, Some(2));
        assert_eq!(thresholds.per_label[0].threshold, Some(0.9));
        assert_eq!(thresholds.per_label[1].threshold, Some(0.975));
        assert_eq!(thresholds.decide(2, 1.0), Decision::Triage, "there is nobody to route to");
        assert!((thresholds.cost_per_query.unwrap() - 2.4).abs() < 1e-12, "{thresholds:?}");
        assert!((thresholds.coverage - 0.6).abs() < 1e-12);
        all[0].in_scope = false;
        let refused = Thresholds::choose(&labels(), &all, &goal, Some(2));
        assert!((refused.cost_per_query.unwrap() - 2.6).abs() < 1e-12, "a look instead of a right answer");
        assert!((refused.coverage - 0.4).abs() < 1e-12);
    }

    #[test]
    fn equal_probabilities_are_routed_together() {
        let mut all = rows(0, &[(0.9, true); 40]);
        all.extend(rows(0, &[(0.9, false); 10]));
        assert_eq!(Thresholds::choose(&labels(), &all, &share(0.97), None).global, None);
    }

    #[test]
    fn no_rows_route_nothing() {
        let thresholds = Thresholds::choose(&labels(), &[], &share(0.97), None);
        assert_eq!(thresholds.decide(0, 1.0), Decision::Triage);
        assert!(thresholds.coverage.abs() < 1e-12 && thresholds.precision.abs() < 1e-12);
    }
}
