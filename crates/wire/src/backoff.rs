//! How long to wait before another try.

use std::time::{Duration, SystemTime};

use rand::RngExt;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// How failed requests are tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    /// Tries in all, at least one.
    pub tries: u32,
    /// The wait after the first failure; it doubles with each further one, less up to half at random, so that many
    /// requests that failed together do not come back together.
    pub first: Duration,
    /// The longest wait, also for one that the server asks for.
    pub longest: Duration,
}

impl Backoff {
    /// The wait after this many failures, from 1.
    pub fn wait(&self, failures: u32) -> Duration {
        let full = self.first.saturating_mul(1 << (failures - 1).min(20)).min(self.longest);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// The wait that a server asks for: `retry-after-ms`, or `Retry-After` in seconds or as a date.
pub fn asked_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse().ok().filter(|wait: &f64| *wait >= 0.0);
    let milliseconds = text("retry-after-ms").and_then(number).map(|wait| wait / 1e3);
    let seconds = || text(RETRY_AFTER.as_str()).and_then(number);
    if let Some(wait) = milliseconds.or_else(seconds) {
        return Duration::try_from_secs_f64(wait).ok();
    }
    let date = httpdate::parse_http_date(text(RETRY_AFTER.as_str())?).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff =
            Backoff { tries: 9, first: Duration::from_millis(100), longest: Duration::from_millis(350) };
        for (failures, full) in [(1, 100), (2, 200), (3, 350), (40, 350)] {
            let wait = backoff.wait(failures);
            assert!(
                wait <= Duration::from_millis(full) && wait >= Duration::from_millis(full / 2),
                "{wait:?}"
            );
        }
    }

    #[test]
    fn servers_ask_in_three_ways() {
        let now = httpdate::parse_http_date("Tue, 24 Nov 2026 08:00:00 GMT").unwrap();
        let asked = |name: &'static str, value: &'static str| {
            let headers = [(name, value)].map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()));
            asked_wait(&HeaderMap::from_iter(headers), now).map(|wait| wait.as_millis())
        };
        assert_eq!(asked("retry-after", "3"), Some(3000));
        assert_eq!(asked("retry-after", "0.5"), Some(500));
        assert_eq!(asked("retry-after-ms", "40"), Some(40));
        assert_eq!(asked("retry-after", "Tue, 24 Nov 2026 08:01:30 GMT"), Some(90_000));
        assert_eq!(asked("retry-after", "Tue, 24 Nov 2026 07:00:00 GMT"), Some(0), "the date has passed");
        for none in ["soon", "-1", "inf", ""] {
            assert_eq!(asked("retry-after", none), None, "{none}");
        }
    }
}
