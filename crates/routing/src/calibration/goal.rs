//! What thresholds are chosen for: a share that must be right, or what a mistake costs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What thresholds are chosen for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Goal {
    /// This share of the automatically routed queries must be right, between 0 and 1.
    Precision {
        /// The share.
        target: f64,
    },
    /// Mistakes and triage cost something, and their expected sum must be least.
    Cost {
        /// For every label that `cost_of` does not name.
        cost: Costs,
        /// For single labels.
        #[serde(default)]
        cost_of: BTreeMap<String, Costs>,
    },
}

/// What happens to a query costs, in any unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// A query that was sent to this label and belongs elsewhere.
    pub wrong: f64,
    /// A query that a person looks at first.
    pub triage: f64,
}

impl Costs {
    /// The probability from which routing is expected to cost no more than triage (Chow, 1970): where
    /// `(1 - p) wrong = triage`.
    pub fn threshold(self) -> f64 {
        if self.triage >= self.wrong { 0.0 } else { 1.0 - self.triage / self.wrong }
    }

    /// Whether both are numbers from 0 on.
    pub fn are_valid(self) -> bool {
        [self.wrong, self.triage].iter().all(|cost| cost.is_finite() && *cost >= 0.0)
    }
}

impl Goal {
    /// What queries predicted as `label` cost; `None` when the goal is a share.
    pub fn costs(&self, label: &str) -> Option<Costs> {
        match self {
            Self::Precision { .. } => None,
            Self::Cost { cost, cost_of } => Some(cost_of.get(label).copied().unwrap_or(*cost)),
        }
    }

    /// In words, after "thresholds for".
    pub fn describe(&self) -> String {
        match self {
            Self::Precision { target } => format!("{:.0}% right", 100.0 * target),
            Self::Cost { cost, cost_of } if cost_of.is_empty() => {
                format!("the least cost (wrong {}, triage {})", cost.wrong, cost.triage)
            }
            Self::Cost { cost, cost_of } => format!(
                "the least cost (wrong {}, triage {}, {} of their own)",
                cost.wrong,
                cost.triage,
                if cost_of.len() == 1 { "one label".to_owned() } else { format!("{} labels", cost_of.len()) }
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_where_both_cost_the_same() {
        let threshold = |wrong, triage| Costs { wrong, triage }.threshold();
        // a mistake at 10, a look at 1: routing pays from 90% on
        assert!((threshold(10.0, 1.0) - 0.9).abs() < 1e-12);
        assert!(threshold(1.0, 2.0).abs() < 1e-12, "a look dearer than a mistake never pays");
        assert!((threshold(5.0, 0.0) - 1.0).abs() < 1e-12, "a free look pays wherever there is doubt");
    }

    #[test]
    fn a_share_is_written_as_it_always_was() {
        let share = Goal::Precision { target: 0.97 };
        assert_eq!(serde_json::to_string(&share).unwrap(), r#"{"target":0.97}"#);
        let cost_of = BTreeMap::from([("claims".to_owned(), Costs { wrong: 40.0, triage: 2.0 })]);
        let cost = Goal::Cost { cost: Costs { wrong: 10.0, triage: 1.0 }, cost_of };
        for goal in [share, cost] {
            let json = serde_json::to_string(&goal).unwrap();
            assert_eq!(serde_json::from_str::<Goal>(&json).unwrap(), goal);
        }
    }
}
