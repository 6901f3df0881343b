//! Quantiles, defined once: times, lengths and latencies all mean the same by "p95".

/// The smallest of ascending values that at least this share of them does not exceed (nearest rank); `None` without
/// values.
pub fn quantile<T: Copy>(ascending: &[T], share: f64) -> Option<T> {
    let rank = (share * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let values = [10, 20, 30, 40];
        let at = |share| quantile(&values, share);
        assert_eq!(
            (at(0.0), at(0.25), at(0.26), at(0.5), at(0.95), at(1.0)),
            (Some(10), Some(10), Some(20), Some(20), Some(40), Some(40))
        );
        assert_eq!(quantile::<f64>(&[], 0.5), None);
    }
}
