//! JSON arrays and JSON lines, read one record at a time.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::fields::{Layout, kind};
use super::{ROW_LIMIT_BYTES, ReadOptions, Rows, not_utf8, open_text};
use crate::Error;
use crate::example::Origin;

/// Reads all records of a file.
pub(super) fn read(path: &Arc<Path>, options: &ReadOptions) -> Result<Rows, Error> {
    let (file, bom) = open_text(path)?;
    let mut records = Records::new(path, file, bom);
    let (mut layout, mut examples) = (None, Vec::new());
    while let Some((at, record)) = records.next_record()? {
        if layout.is_none() {
            let columns: Vec<String> = record.keys().cloned().collect();
            let is_list = |column: &str| record.get(column).is_some_and(Value::is_array);
            layout = Some(Layout::choose(&at, &columns, is_list, options)?);
        }
        if let Some(layout) = &layout {
            examples.push(layout.example(&record, at)?);
        }
    }
    Ok(layout.map(|layout| (layout, examples)))
}

/// A row and where it starts.
type Record = (Origin, Map<String, Value>);

/// Where the reading stands: between which records, and how they are separated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// Inside the file's one array; `first` before any record.
    Array {
        first: bool,
    },
    /// Records follow each other.
    Lines,
    /// After the array.
    End,
}

/// The records of a JSON text, whether they stand in an array or follow each other.
///
/// A record's end is found by counting brackets, so that no more than one record is held and its size is
/// bounded before it is parsed.
struct Records<R> {
    path: Arc<Path>,
    input: R,
    state: State,
    place: Position,
    record: Vec<u8>,
}

/// A place in the file: line and column from 1, offset from 0.
#[derive(Clone, Copy)]
struct Position {
    line: u64,
    column: u64,
    offset: u64,
}

impl Position {
    fn advance(&mut self, byte: u8) {
        self.offset += 1;
        if byte == b'\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
    }
}

impl<R: BufRead> Records<R> {
    fn new(path: &Arc<Path>, input: R, offset: u64) -> Self {
        let place = Position { line: 1, column: 1, offset };
        Self { path: Arc::clone(path), input, state: State::Start, place, record: Vec::new() }
    }

    fn next_record(&mut self) -> Result<Option<Record>, Error> {
        let mut next = self.skip_space()?;
        if self.state == State::Start {
            if next == Some(b'[') {
                self.take()?;
                next = self.skip_space()?;
                self.state = State::Array { first: true };
            } else {
                self.state = State::Lines;
            }
        }
        if let State::Array { first } = self.state {
            match next {
                Some(b']') => {
                    self.take()?;
                    self.state = State::End;
                    next = self.skip_space()?;
                }
                Some(b',') if !first => {
                    self.take()?;
                    next = self.skip_space()?;
                    if matches!(next, None | Some(b']' | b',')) {
                        return Err(self.broken(self.place, "expected a record after the comma"));
                    }
                }
                Some(_) if first => {}
                Some(_) => return Err(self.broken(self.place, "expected `,` or `]` after a record")),
                None => return Err(self.broken(self.place, "the file ends inside the array")),
            }
        }
        match (self.state, next) {
            (_, None) => Ok(None),
            (State::End, Some(_)) => Err(self.broken(self.place, "something follows the array's end")),
            (_, Some(first)) => {
                self.state = match self.state {
                    State::Array { .. } => State::Array { first: false },
                    other => other,
                };
                self.parse_record(first).map(Some)
            }
        }
    }

    fn parse_record(&mut self, first: u8) -> Result<Record, Error> {
        let start = self.place;
        let at = Origin::line(&self.path, start.line);
        let complete = self.scan_record(first)?;
        if let Err(error) = std::str::from_utf8(&self.record) {
            // A cut at the size limit may fall inside a character, which is no mistake of the file.
            if complete || error.error_len().is_some() {
                let position = error.valid_up_to();
                return Err(not_utf8(&self.path, &self.record, position, start.line, start.offset));
            }
        }
        match serde_json::from_slice(&self.record) {
            Ok(Value::Object(record)) => Ok((at, record)),
            Ok(other) => Err(Error::NotAnObject { at, found: kind(&other) }),
            Err(error) if !complete && !error.is_syntax() => {
                Err(Error::RowTooLarge { at, limit_bytes: ROW_LIMIT_BYTES })
            }
            Err(error) => {
                let (line, column) = (error.line() as u64, error.column() as u64);
                let column = if line <= 1 { start.column + column.saturating_sub(1) } else { column };
                let text = error.to_string();
                let message = text.split(" at line ").next().unwrap_or_default();
                let place = Position { line: start.line + line.saturating_sub(1), column, offset: 0 };
                Err(self.broken(place, message))
            }
        }
    }

    /// Gathers the bytes of the record that starts here; false when it was cut at the size limit.
    fn scan_record(&mut self, first: u8) -> Result<bool, Error> {
        self.record.clear();
        let nested = matches!(first, b'{' | b'[');
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        loop {
            let buffer = self.input.fill_buf().map_err(|source| Error::io(&self.path, source))?;
            if buffer.is_empty() {
                return Ok(true);
            }
            let (mut used, mut done) = (0, false);
            for &byte in buffer {
                if !nested && !in_string && (byte.is_ascii_whitespace() || matches!(byte, b',' | b']')) {
                    done = true;
                    break;
                }
                used += 1;
                self.place.advance(byte);
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    b'{' | b'[' if !in_string => depth += 1,
                    b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
                    _ => {}
                }
                done = nested && !in_string && depth == 0;
                if done || self.record.len() + used > ROW_LIMIT_BYTES {
                    break;
                }
            }
            self.record.extend_from_slice(&buffer[..used]);
            self.input.consume(used);
            if done {
                return Ok(true);
            }
            if self.record.len() > ROW_LIMIT_BYTES {
                return Ok(false);
            }
        }
    }

    /// Skips white space and returns the byte after it, which stays unread.
    fn skip_space(&mut self) -> Result<Option<u8>, Error> {
        loop {
            let buffer = self.input.fill_buf().map_err(|source| Error::io(&self.path, source))?;
            match buffer.first() {
                Some(byte) if byte.is_ascii_whitespace() => self.take()?,
                next => return Ok(next.copied()),
            }
        }
    }

    /// Takes one byte.
    fn take(&mut self) -> Result<(), Error> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).map_err(|source| Error::io(&self.path, source))?;
        self.place.advance(byte[0]);
        Ok(())
    }

    fn broken(&self, place: Position, message: &str) -> Error {
        Error::Json {
            path: self.path.to_path_buf(),
            line: place.line,
            column: place.column,
            message: message.to_owned(),
        }
    }
}
