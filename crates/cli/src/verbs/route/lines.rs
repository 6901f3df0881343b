//! Queries from standard input, a line each.

use std::io::{BufRead, BufReader, Read};

use anyhow::Context;

/// Lines that are answered together.
const AT_ONCE: usize = 32;

/// Lines of text, many together where they come fast, alone where somebody waits for the answer.
pub(super) struct Lines<R> {
    input: BufReader<R>,
    read: u64,
}

/// Lines to be answered, and why there are no more where something is wrong.
pub(super) struct Batch {
    pub(super) texts: Vec<String>,
    pub(super) wrong: Option<anyhow::Error>,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input: BufReader::new(input), read: 0 }
    }

    /// Waits for one line, and takes with it those that have already come; none at the end.
    pub(super) fn next_batch(&mut self) -> Batch {
        let mut batch = Batch { texts: Vec::new(), wrong: None };
        while batch.texts.is_empty() || (batch.texts.len() < AT_ONCE && self.input.buffer().contains(&b'\n'))
        {
            match self.next_line() {
                Ok(Some(line)) => batch.texts.push(line),
                Ok(None) => break,
                Err(error) => {
                    batch.wrong = Some(error);
                    break;
                }
            }
        }
        batch
    }

    fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        let mut line = Vec::new();
        // One byte more than may be there tells a line that is too long.
        let most = routing::ROW_LIMIT_BYTES as u64 + 1;
        let read = self.input.by_ref().take(most).read_until(b'\n', &mut line);
        self.read += 1;
        let place = || format!("standard input, line {}", self.read);
        if read.with_context(|| format!("{}: cannot be read", place()))? == 0 {
            return Ok(None);
        }
        anyhow::ensure!(
            line.len() <= routing::ROW_LIMIT_BYTES,
            "{}: has more than {} bytes; one query a line is expected",
            place(),
            routing::ROW_LIMIT_BYTES
        );
        let line = String::from_utf8(line).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            anyhow::anyhow!(
                "{}: not UTF-8 at byte {at}; convert it, for example with iconv -t UTF-8",
                place()
            )
        })?;
        Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out its pieces one a read, as a pipe does.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            assert!(!self.0.is_empty(), "more was read than was needed to answer");
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn lines(pieces: &[&'static [u8]]) -> Lines<Pieces> {
        Lines::new(Pieces(pieces.to_vec()))
    }

    #[test]
    fn whoever_waits_is_answered_before_writing_more() {
        let mut lines = lines(&[b"a\nb\r\n\nha", b"lf\n", b"end", b""]);
        assert_eq!(lines.next_batch().texts, ["a", "b", ""]);
        assert_eq!(lines.next_batch().texts, ["half"]);
        assert_eq!(lines.next_batch().texts, ["end"]);
    }

    #[test]
    fn what_stands_before_a_wrong_line_is_answered() {
        let mut lines = lines(&[b"fine\n\xff wrong\nlater\n"]);
        let Batch { texts, wrong } = lines.next_batch();
        assert_eq!(texts, ["fine"]);
        assert!(wrong.unwrap().to_string().starts_with("standard input, line 2: not UTF-8 at byte 0"));
    }

    #[test]
    fn a_line_without_end_is_refused_in_bounded_memory() {
        let mut lines = Lines::new(std::io::repeat(b'x'));
        assert!(lines.next_batch().wrong.unwrap().to_string().contains("line 1: has more than"));
    }
}
