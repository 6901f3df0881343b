//! A calendar date, as chat templates print it.

use std::fmt::Write;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Date {
    /// The day, if there is such a one.
    pub const fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let days = match month {
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => 31,
        };
        let sound = year >= 1 && year <= 9999 && month >= 1 && month <= 12 && day >= 1 && day <= days;
        if sound { Some(Self { year, month, day }) } else { None }
    }

    /// The day in a format of C's `strftime`; the time of day is midnight.
    ///
    /// # Errors
    /// The directive that is not known.
    pub(crate) fn format(self, format: &str) -> Result<String, String> {
        let Self { year, month, day } = self;
        let (month_name, weekday) = (MONTHS[usize::from(month) - 1], WEEKDAYS[self.weekday()]);
        let mut out = String::new();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let directive = characters.next();
            match directive {
                Some('Y') => write!(out, "{year}"),
                Some('y') => write!(out, "{:02}", year % 100),
                Some('m') => write!(out, "{month:02}"),
                Some('d') => write!(out, "{day:02}"),
                Some('e') => write!(out, "{day:2}"),
                Some('B') => write!(out, "{month_name}"),
                Some('b' | 'h') => write!(out, "{}", &month_name[..3]),
                Some('A') => write!(out, "{weekday}"),
                Some('a') => write!(out, "{}", &weekday[..3]),
                Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
                Some('H' | 'M' | 'S') => write!(out, "00"),
                Some('%') => write!(out, "%"),
                Some(other) => return Err(format!("%{other}")),
                None => return Err("%".into()),
            }
            .expect("writing to memory cannot fail");
        }
        Ok(out)
    }

    /// Days since Sunday, by Sakamoto's method.
    fn weekday(self) -> usize {
        const SHIFT: [usize; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = usize::from(self.year) - usize::from(self.month < 3);
        (year + year / 4 - year / 100
            + year / 400
            + SHIFT[usize::from(self.month) - 1]
            + usize::from(self.day))
            % 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_printed_as_strftime_prints_them() {
        let date = Date::new(2024, 7, 6).unwrap();
        assert_eq!(date.format("%d %b %Y").unwrap(), "06 Jul 2024");
        assert_eq!(
            date.format("%A, %B %e, %y (%a) 100%% %F").unwrap(),
            "Saturday, July  6, 24 (Sat) 100% 2024-07-06"
        );
        assert_eq!(Date::new(2000, 2, 29).unwrap().format("%a").unwrap(), "Tue");
        assert_eq!(date.format("%Q"), Err("%Q".into()));
        assert_eq!(date.format("%"), Err("%".into()));
    }

    #[test]
    fn only_real_days_exist() {
        assert!(Date::new(2023, 2, 29).is_none() && Date::new(1900, 2, 29).is_none());
        assert!(
            Date::new(2024, 13, 1).is_none()
                && Date::new(2024, 4, 31).is_none()
                && Date::new(0, 1, 1).is_none()
        );
    }
}
