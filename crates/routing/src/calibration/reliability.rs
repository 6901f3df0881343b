//! Does "90% sure" mean right nine times in ten? The bins of a reliability diagram and their summary.

use serde::{Deserialize, Serialize};

/// Equal-width bins over `(0, 1]`; bin `i` holds probabilities in `(i / 15, (i + 1) / 15]`.
pub const BINS: usize = 15;

/// Confidence against accuracy, by bin and as one number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// Expected calibration error: the mean gap between confidence and accuracy, weighted by rows.
    pub ece: f64,
    /// All [`BINS`] bins in order, empty ones included.
    pub bins: Vec<ReliabilityBin>,
}

/// The rows whose top probability falls in one bin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// Rows in the bin.
    pub count: usize,
    /// Their mean probability; 0 when there are none.
    pub confidence: f64,
    /// The share of them that is right; 0 when there are none.
    pub accuracy: f64,
}

impl Reliability {
    /// From each row's top probability and whether its label is right.
    pub fn measure(rows: impl IntoIterator<Item = (f64, bool)>) -> Self {
        let mut bins = vec![ReliabilityBin::default(); BINS];
        for (probability, right) in rows {
            let bin = &mut bins[((probability * BINS as f64).ceil() as usize).clamp(1, BINS) - 1];
            bin.count += 1;
            bin.confidence += probability;
            bin.accuracy += f64::from(u8::from(right));
        }
        let total: usize = bins.iter().map(|bin| bin.count).sum();
        let mut ece = 0.0;
        for bin in bins.iter_mut().filter(|bin| bin.count > 0) {
            ece += (bin.confidence - bin.accuracy).abs() / total as f64;
            bin.confidence /= bin.count as f64;
            bin.accuracy /= bin.count as f64;
        }
        Self { ece, bins }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_weighted_by_rows() {
        // three rows at 0.9, two right: gap 0.9 - 2/3; one row at 0.5, right: gap 0.5
        let measured = Reliability::measure([(0.9, true), (0.9, true), (0.9, false), (0.5, true)]);
        let expected = 0.75 * (0.9 - 2.0 / 3.0) + 0.25 * 0.5;
        assert!((measured.ece - expected).abs() < 1e-12, "{measured:?}");
        assert_eq!(measured.bins.iter().map(|bin| bin.count).collect::<Vec<_>>().len(), BINS);
        assert_eq!((measured.bins[13].count, measured.bins[7].count), (3, 1));
    }

    #[test]
    fn the_ends_have_a_bin() {
        let measured = Reliability::measure([(0.0, false), (1.0, true)]);
        assert_eq!((measured.bins[0].count, measured.bins[BINS - 1].count), (1, 1));
        assert!(measured.ece.abs() < 1e-12);
        assert!(Reliability::measure([]).ece.abs() < 1e-12);
    }
}
