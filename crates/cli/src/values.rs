//! Values of flags, with what is expected where they are wrong.

use std::str::FromStr;

/// A number that flags are given as.
pub(crate) trait Number: FromStr + Into<f64> + Copy {}
impl Number for f32 {}
impl Number for f64 {}

fn number<T: Number>(text: &str, fits: impl Fn(f64) -> bool, expected: &str) -> Result<T, String> {
    let number: Option<T> = text.trim().parse().ok();
    number.filter(|&number| fits(number.into())).ok_or_else(|| format!("expected {expected}"))
}

/// A share from 0 to 1.
pub(crate) fn share<T: Number>(text: &str) -> Result<T, String> {
    number(text, |share| (0.0..=1.0).contains(&share), "a share from 0 to 1, such as 0.9")
}

/// A number above 0.
pub(crate) fn above_zero<T: Number>(text: &str) -> Result<T, String> {
    number(text, |number| number > 0.0 && number.is_finite(), "a number above 0")
}

/// A number from 0 on.
pub(crate) fn from_zero<T: Number>(text: &str) -> Result<T, String> {
    number(text, |number| number >= 0.0 && number.is_finite(), "a number from 0 on")
}

/// Seconds that a clock can count.
pub(crate) fn seconds(text: &str) -> Result<f32, String> {
    number(text, |number| (0.0..=1e9).contains(&number), "seconds from 0 to 1000000000")
}

/// A whole number from 1 on.
pub(crate) fn count<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    let count: Option<T> = text.trim().parse().ok();
    count.filter(|count| *count >= T::from(1)).ok_or_else(|| "expected a whole number from 1 on".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_in_their_bounds() {
        for text in ["-0.1", "1.1", "nan", "inf", "x", ""] {
            assert!(share::<f64>(text).unwrap_err().contains("from 0 to 1"), "{text}");
        }
        assert_eq!(share("1"), Ok(1.0_f32));
        for text in ["0", "-1", "nan", "inf", "1e39"] {
            assert!(above_zero::<f32>(text).is_err(), "{text}");
        }
        assert_eq!((from_zero("0"), from_zero::<f64>("-1").is_err()), (Ok(0.0_f64), true));
        for text in ["inf", "nan", "1e30", "-1"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        for text in ["0", "-1", "1.5", "99999999999999999999"] {
            assert!(count::<u64>(text).is_err(), "{text}");
        }
        assert_eq!(count("3"), Ok(3_usize));
    }
}
