//! Words to the user: data on standard output, everything else on standard error.

use std::fmt::{self, Write as _};
use std::io::Write as _;

/// Standard output cannot take what is written to it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// Whoever read it has gone, as `head` does: nobody is left to tell.
    #[error("nobody reads the output any more")]
    Closed,
    /// For another reason.
    #[error("standard output cannot be written")]
    Failed(#[source] std::io::Error),
}

/// Standard output, for `write!` and `writeln!`.
pub(crate) struct Output;

impl Output {
    /// Writes data; what came from a data file or a query cannot steer the terminal.
    #[allow(clippy::unused_self)] // what `write!` calls is a method
    pub(crate) fn write_fmt(&mut self, data: fmt::Arguments<'_>) -> Result<(), OutputError> {
        let mut out = std::io::stdout().lock();
        out.write_all(tame(data).as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => OutputError::Closed,
            _ => OutputError::Failed(error),
        })
    }
}

/// A line on standard error. Where that is closed or full the words are lost, and the work goes on.
macro_rules! say {
    () => { $crate::terminal::say_line(format_args!("")) };
    ($($words:tt)*) => { $crate::terminal::say_line(format_args!($($words)*)) };
}
pub(crate) use say;

/// What [`say!`] calls.
pub(crate) fn say_line(words: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", tame(words));
}

/// Text without control characters other than line breaks and tabs.
fn tame(words: fmt::Arguments<'_>) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail, and what is shown here does not.
    let _ = text.write_fmt(words);
    if text.contains(steers) { text.replace(steers, "\u{fffd}") } else { text }
}

fn steers(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
}

/// A text on one line, cut after so many characters.
pub(crate) fn on_one_line(text: &str, most: usize) -> String {
    let mut words = String::new();
    for word in text.split_whitespace() {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
        // What is cut away anyway need not be gathered.
        if words.len() > 4 * most {
            break;
        }
    }
    match words.char_indices().nth(most) {
        None => words,
        Some(_) => words.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_cannot_steer_the_terminal() {
        assert_eq!(
            tame(format_args!("a\x1b[31m\x07\u{9b}b\r\n\tc")),
            "a\u{fffd}[31m\u{fffd}\u{fffd}b\u{fffd}\n\tc"
        );
    }

    #[test]
    fn long_texts_are_cut_and_lines_are_joined() {
        assert_eq!(on_one_line(" a\n\tb  c ", 80), "a b c");
        assert_eq!(on_one_line("信用卡信用卡", 4), "信用卡…");
        assert_eq!(on_one_line(&"word ".repeat(9000), 8), "word wo…");
        assert_eq!(on_one_line("exactly8", 8), "exactly8");
    }
}
