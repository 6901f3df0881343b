//! The trade between routing more queries and being right about them.

use serde::{Deserialize, Serialize};

/// Points of a curve at most; more cannot be told apart on a page.
const POINTS: usize = 200;

/// What happens when only the queries at or above a probability are routed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CoveragePoint {
    /// The least probability routed.
    pub threshold: f64,
    /// Share of all rows that is routed.
    pub coverage: f64,
    /// Share of the routed rows that is right.
    pub accuracy: f64,
}

/// The curve over all thresholds, from few sure rows to all rows, from each row's top probability and
/// whether its label is right.
pub fn coverage_curve(mut rows: Vec<(f64, bool)>) -> Vec<CoveragePoint> {
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut right = 0;
    let mut points = Vec::new();
    for (index, &(threshold, is_right)) in rows.iter().enumerate() {
        right += usize::from(is_right);
        let routed = index + 1;
        // rows of equal probability are routed together: no threshold lies between them
        if rows.get(routed).is_none_or(|next| next.0 < threshold) {
            let share = |part: usize, whole: usize| part as f64 / whole as f64;
            points.push(CoveragePoint {
                threshold,
                coverage: share(routed, rows.len()),
                accuracy: share(right, routed),
            });
        }
    }
    thin(points)
}

/// Evenly spaced points, the first and the last among them.
pub(super) fn thin<T: Copy>(points: Vec<T>) -> Vec<T> {
    if points.len() <= POINTS {
        return points;
    }
    (0..POINTS).map(|at| points[at * (points.len() - 1) / (POINTS - 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surer_rows_come_first() {
        let curve = coverage_curve(vec![(0.5, false), (0.9, true), (0.5, true), (0.8, false)]);
        let shape: Vec<(f64, f64, f64)> =
            curve.iter().map(|point| (point.threshold, point.coverage, point.accuracy)).collect();
        assert_eq!(shape, [(0.9, 0.25, 1.0), (0.8, 0.5, 0.5), (0.5, 1.0, 0.5)]);
    }

    #[test]
    fn long_curves_keep_both_ends() {
        let curve = coverage_curve((0..5000).map(|row| (f64::from(row), row % 2 == 0)).collect());
        assert_eq!(curve.len(), POINTS);
        assert!((curve[0].coverage - 1.0 / 5000.0).abs() < 1e-12);
        assert!((curve[POINTS - 1].coverage - 1.0).abs() < 1e-12);
    }
}
