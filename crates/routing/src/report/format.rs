//! Numbers as people read them.

/// `0.9313` as `93.1%`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// `12889` as `12,889`.
pub(crate) fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `83.4` as `1 min 23 s`; a dash where nothing was timed.
pub(super) fn seconds(seconds: Option<f64>) -> String {
    match seconds {
        None => "–".to_owned(),
        Some(s) if s < 0.000_95 => format!("{:.2} ms", s * 1000.0),
        Some(s) if s < 0.0095 => format!("{:.1} ms", s * 1000.0),
        Some(s) if s < 0.995 => format!("{:.0} ms", s * 1000.0),
        Some(s) if s < 59.5 => format!("{s:.1} s"),
        Some(s) => {
            let whole = s.round() as u64;
            let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
            if hours > 0 { format!("{hours} h {minutes} min") } else { format!("{minutes} min {rest} s") }
        }
    }
}

/// A price as `2.10 USD`, small ones with two digits that count: `0.00056 USD`.
pub fn usd(price: f64) -> String {
    if price.abs() >= 0.995 || price == 0.0 {
        return format!("{price:.2} USD");
    }
    let decimals = (1.0 - price.abs().log10().floor()).clamp(2.0, 9.0) as usize;
    format!("{price:.decimals$} USD")
}

/// At most `most` characters, the last one an ellipsis where some were cut.
pub(super) fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_written() {
        assert_eq!(percent(0.93125), "93.1%");
        assert_eq!((count(7), count(1234), count(1234567)), ("7".into(), "1,234".into(), "1,234,567".into()));
        let times =
            [None, Some(0.00003), Some(0.004), Some(0.25), Some(4.04), Some(59.6), Some(83.4), Some(7322.0)];
        assert_eq!(
            times.map(seconds),
            ["–", "0.03 ms", "4.0 ms", "250 ms", "4.0 s", "1 min 0 s", "1 min 23 s", "2 h 2 min"]
        );
        assert_eq!(
            [2.1, 0.25, 0.000556, 0.0, 12.345].map(usd),
            ["2.10 USD", "0.25 USD", "0.00056 USD", "0.00 USD", "12.35 USD"]
        );
        assert_eq!((shorten("déjà", 4), shorten("déjà vu", 6)), ("déjà".into(), "déjà…".into()));
    }
}
