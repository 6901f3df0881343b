//! When serving a model of one's own is cheaper than asking a large one.

use serde::{Deserialize, Serialize};

const SECONDS_PER_HOUR: f64 = 3600.0;

/// The machine that serves the router.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// USD an hour.
    pub per_hour: f64,
}

impl Hardware {
    /// USD for this many seconds.
    pub fn cost(self, seconds: f64) -> f64 {
        self.per_hour * seconds / SECONDS_PER_HOUR
    }
}

/// A local machine that always runs against a price for every query.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BreakEven {
    /// USD for 1,000 queries on a machine that is never idle.
    pub local_per_1000: f64,
    /// USD for 1,000 queries to the large model.
    pub remote_per_1000: f64,
    /// Queries an hour from which one machine costs less; `None` when it never does, however busy.
    pub queries_per_hour: Option<f64>,
    /// Share of what the machine can answer that this is.
    pub utilisation: Option<f64>,
}

impl BreakEven {
    /// For a machine that answers `queries_per_s` when it is busy, and a large model at `remote_per_1000` USD.
    pub fn new(hardware: Hardware, queries_per_s: f64, remote_per_1000: f64) -> Self {
        let capacity = queries_per_s * SECONDS_PER_HOUR;
        let local_per_1000 = hardware.per_hour / capacity * 1e3;
        // Every machine that is added answers as many queries for as much money, so one decides for all.
        let queries_per_hour = (local_per_1000 <= remote_per_1000 && remote_per_1000 > 0.0)
            .then(|| hardware.per_hour / remote_per_1000 * 1e3);
        Self {
            local_per_1000,
            remote_per_1000,
            queries_per_hour,
            utilisation: queries_per_hour.map(|queries| queries / capacity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn break_even_by_hand() {
        // 0.10 USD an hour and 50 queries a second: 180,000 an hour, 0.000556 USD for 1,000.
        let hardware = Hardware { per_hour: 0.10 };
        let it = BreakEven::new(hardware, 50.0, 2.0);
        assert!((it.local_per_1000 - 0.1 / 180.0).abs() < 1e-12);
        // 0.10 USD buy 50 queries at 2 USD for 1,000.
        assert!((it.queries_per_hour.unwrap() - 50.0).abs() < 1e-9);
        assert!((it.utilisation.unwrap() - 50.0 / 180_000.0).abs() < 1e-12);
        assert!((hardware.cost(1800.0) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn a_slow_machine_or_a_free_model_never_breaks_even() {
        let hardware = Hardware { per_hour: 36.0 };
        assert_eq!(BreakEven::new(hardware, 1.0, 9.0).queries_per_hour, None, "10 USD for 1,000 against 9");
        assert_eq!(BreakEven::new(hardware, 1.0, 0.0).queries_per_hour, None);
        assert_eq!(BreakEven::new(hardware, 0.0, 1.0).queries_per_hour, None);
        assert!(BreakEven::new(hardware, 1.0, 10.0).queries_per_hour.is_some());
    }
}
