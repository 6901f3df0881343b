//! Is a query about anything that the labels cover? A threshold on the top probability, chosen on validation rows.

use serde::{Deserialize, Serialize};

/// When a query counts as out of scope, and what that did on the validation rows.
///
/// A query is out of scope when its top label is the one that says so, where the model has such a label, or when
/// its top probability lies below the threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scope {
    /// The label that means "out of scope" in data files, whether the model has it or not.
    pub label: String,
    /// Top probabilities below this are out of scope.
    pub threshold: f64,
    /// The in-scope accuracy that had to be kept; `None` when the best sum of it and the recall was taken.
    pub min_in_scope: Option<f64>,
    /// How the validation rows fared.
    pub validation: ScopeScores,
}

/// What a scope rule does to rows of which some are truly out of scope.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ScopeScores {
    /// Rows truly in scope.
    pub in_scope_rows: usize,
    /// Share of them that got their own label; a row held to be out of scope is wrong.
    pub in_scope_accuracy: f64,
    /// Rows truly out of scope.
    pub out_of_scope_rows: usize,
    /// Share of them that was recognised; 0 when there are none.
    pub recall: f64,
    /// Share of the rows held to be out of scope that truly are; 0 when there are none.
    pub precision: f64,
}

/// One row for choosing or judging a scope rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScopeRow {
    /// The probability of the top label.
    pub probability: f64,
    /// Whether the top label is the one that means "out of scope".
    pub named: bool,
    /// Whether the top label is the true one.
    pub right: bool,
    /// Whether the row is truly out of scope.
    pub out_of_scope: bool,
}

impl Scope {
    /// Chooses the threshold on validation rows.
    ///
    /// With `min_in_scope` it is the highest that keeps this share of the in-scope rows right; in-scope rows alone
    /// are enough for that. Without, it is the one with the largest sum of in-scope accuracy and recall. `None` when
    /// no threshold keeps so much, or when nothing is asked and no row is out of scope.
    pub fn choose(label: &str, rows: &[ScopeRow], min_in_scope: Option<f64>) -> Option<Self> {
        let curve = scope_curve(rows);
        let best = match min_in_scope {
            // rows are integers, so a hair less than asked is rounding
            Some(least) => {
                curve.iter().rev().find(|(_, scores)| scores.in_scope_accuracy >= least - 1e-12)?
            }
            None if rows.iter().any(|row| row.out_of_scope) => {
                let sum = |scores: &ScopeScores| scores.in_scope_accuracy + scores.recall;
                // of equals the first, which holds fewer rows to be out of scope
                curve.iter().reduce(|best, next| if sum(&next.1) > sum(&best.1) { next } else { best })?
            }
            None => return None,
        };
        Some(Self { label: label.to_owned(), threshold: best.0, min_in_scope, validation: best.1 })
    }

    /// Whether a query with this top label and probability is in scope.
    pub fn admits(&self, top_label: &str, probability: f64) -> bool {
        top_label != self.label && probability >= self.threshold
    }
}

impl ScopeScores {
    /// What a threshold does.
    pub fn measure(rows: &[ScopeRow], threshold: f64) -> Self {
        let refused = |row: &&ScopeRow| row.named || row.probability < threshold;
        let out = rows.iter().filter(|row| row.out_of_scope);
        let inside = rows.iter().filter(|row| !row.out_of_scope);
        let kept = inside.clone().filter(|row| row.right && !refused(row)).count();
        let recognised = out.clone().filter(refused).count();
        let ratio = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let (in_scope_rows, out_of_scope_rows) = (inside.count(), out.count());
        Self {
            in_scope_rows,
            in_scope_accuracy: ratio(kept, in_scope_rows),
            out_of_scope_rows,
            recall: ratio(recognised, out_of_scope_rows),
            precision: ratio(recognised, rows.iter().filter(refused).count()),
        }
    }
}

/// What every threshold does, from 0 (only named rows are out of scope) upwards: one threshold half way between each
/// two neighbouring probabilities, and one above all.
pub fn scope_curve(rows: &[ScopeRow]) -> Vec<(f64, ScopeScores)> {
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| a.probability.total_cmp(&b.probability));
    let base = ScopeScores::measure(&rows, 0.0);
    let (inside, outside) = (base.in_scope_rows, base.out_of_scope_rows);
    let ratio = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let mut kept = rows.iter().filter(|row| !row.out_of_scope && row.right && !row.named).count();
    let mut recognised = rows.iter().filter(|row| row.out_of_scope && row.named).count();
    let mut refused = rows.iter().filter(|row| row.named).count();
    let mut curve = vec![(0.0, base)];
    for (index, row) in rows.iter().enumerate() {
        if !row.named {
            refused += 1;
            recognised += usize::from(row.out_of_scope);
            kept -= usize::from(!row.out_of_scope && row.right);
        }
        let next = rows.get(index + 1).map_or(1.0 + row.probability, |next| next.probability);
        if next > row.probability {
            let scores = ScopeScores {
                in_scope_rows: inside,
                in_scope_accuracy: ratio(kept, inside),
                out_of_scope_rows: outside,
                recall: ratio(recognised, outside),
                precision: ratio(recognised, refused),
            };
            curve.push((f64::midpoint(row.probability, next), scores));
        }
    }
    curve
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(probability: f64, right: bool, out_of_scope: bool) -> ScopeRow {
        ScopeRow { probability, named: false, right, out_of_scope }
    }

    /// Five rows in scope (one wrong) and three out of it.
    ///
    /// | probability | 0.2 | 0.3 | 0.4 | 0.5 | 0.6 | 0.7 | 0.8 | 0.9 |
    /// |-------------|-----|-----|-----|-----|-----|-----|-----|-----|
    /// | truly       | out | in  | out | in  | in  | out | in  | in  |
    /// | right       |     | no  |     | yes | yes |     | yes | yes |
    ///
    /// | threshold | in-scope accuracy | recall | sum   |
    /// |-----------|-------------------|--------|-------|
    /// | 0         | 4/5               | 0      | 0.8   |
    /// | 0.25      | 4/5               | 1/3    | 1.133 |
    /// | 0.35      | 4/5               | 1/3    | 1.133 |
    /// | 0.45      | 4/5               | 2/3    | 1.467 |
    /// | 0.55      | 3/5               | 2/3    | 1.267 |
    /// | 0.65      | 2/5               | 2/3    | 1.067 |
    /// | 0.75      | 2/5               | 1      | 1.4   |
    fn rows() -> Vec<ScopeRow> {
        let out = [0.2, 0.4, 0.7].map(|probability| row(probability, false, true));
        let inside = [(0.3, false), (0.5, true), (0.6, true), (0.8, true), (0.9, true)];
        out.into_iter().chain(inside.map(|(probability, right)| row(probability, right, false))).collect()
    }

    #[test]
    fn the_written_out_example() {
        let best = Scope::choose("oos", &rows(), None).unwrap();
        assert!((best.threshold - 0.45).abs() < 1e-12, "{best:?}");
        assert!((best.validation.in_scope_accuracy - 0.8).abs() < 1e-12);
        assert!((best.validation.recall - 2.0 / 3.0).abs() < 1e-12);
        assert!((best.validation.precision - 2.0 / 3.0).abs() < 1e-12, "0.2 and 0.4, and 0.3 beside them");
        let kept = |least| Scope::choose("oos", &rows(), Some(least)).map(|scope| scope.threshold);
        assert!((kept(0.6).unwrap() - 0.55).abs() < 1e-12);
        assert!((kept(0.4).unwrap() - 0.75).abs() < 1e-12);
        assert_eq!(kept(0.81), None, "no threshold makes a wrong row right");
        assert!(best.admits("billing", 0.46) && !best.admits("billing", 0.44) && !best.admits("oos", 0.99));
    }

    #[test]
    fn the_curve_is_what_each_threshold_measures() {
        let mut rows = rows();
        rows.push(ScopeRow { named: true, ..row(0.65, true, true) });
        rows.push(ScopeRow { named: true, ..row(0.6, false, false) });
        let curve = scope_curve(&rows);
        assert_eq!(curve.len(), 10, "nine different probabilities");
        for (threshold, scores) in curve {
            assert_eq!(scores, ScopeScores::measure(&rows, threshold), "{threshold}");
        }
    }

    #[test]
    fn without_rows_out_of_scope_only_a_bar_sets_a_threshold() {
        let inside: Vec<ScopeRow> = rows().into_iter().filter(|row| !row.out_of_scope).collect();
        assert_eq!(Scope::choose("oos", &inside, None), None);
        assert!((Scope::choose("oos", &inside, Some(0.8)).unwrap().threshold - 0.4).abs() < 1e-12);
        assert_eq!(Scope::choose("oos", &[], Some(0.5)), None);
    }
}
