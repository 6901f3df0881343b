//! CSV and TSV with a header line.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use csv::{ByteRecord, ReaderBuilder};

use super::fields::Layout;
use super::{BOM, ROW_LIMIT_BYTES, ReadOptions, Rows, not_utf8, open_text};
use crate::Error;
use crate::example::{Example, Origin};

/// A last row put behind the file: when the row before swallows it, a quote was left open.
const END: &[u8] = b"\x04";

/// Reads all rows of a table.
pub(super) fn read(path: &Arc<Path>, head: &[u8], options: &ReadOptions) -> Result<Rows, Error> {
    let (file, bom) = open_text(path)?;
    let mut table = Table::new(path, file.chain(&b"\n\x04\n"[..]), delimiter(head), bom);
    let Some((at, header)) = table.next_row()? else { return Ok(None) };
    let columns: Vec<String> = header.into_iter().map(|name| name.trim().to_owned()).collect();
    let layout = Layout::choose(&at, &columns, |_| false, options)?;
    let index = |field: &str| columns.iter().position(|column| column == field);
    let (text, label) = (index(layout.text_field()), index(layout.label_field()));
    let system = match &layout {
        Layout::Fields { system: Some(system), .. } => index(system),
        _ => None,
    };
    let mut examples = Vec::new();
    while let Some((at, mut row)) = table.next_row()? {
        if row.len() != columns.len() {
            return Err(Error::Ragged { at, expected: columns.len(), found: row.len() });
        }
        let mut cell = |index: Option<usize>| index.map(|index| std::mem::take(&mut row[index]));
        let label = cell(label).unwrap_or_default();
        let mut example = Example::new(cell(text).unwrap_or_default(), label.trim(), at);
        example.system = cell(system).filter(|text| !text.is_empty());
        examples.push(example);
    }
    Ok((!examples.is_empty()).then_some((layout, examples)))
}

/// The separator that cuts the header into the most fields; the earlier of equals.
pub(super) fn delimiter(head: &[u8]) -> u8 {
    let head = head.strip_prefix(BOM).unwrap_or(head);
    let fields = |delimiter: u8| {
        let mut header = ByteRecord::new();
        let mut reader = ReaderBuilder::new().has_headers(false).delimiter(delimiter).from_reader(head);
        // Reading from memory cannot fail.
        reader.read_byte_record(&mut header).map_or(0, |_| header.len())
    };
    let mut best = (b',', fields(b','));
    for delimiter in [b'\t', b';', b'|'] {
        let found = fields(delimiter);
        if found > best.1 {
            best = (delimiter, found);
        }
    }
    best.0
}

struct Table<R> {
    path: Arc<Path>,
    reader: csv::Reader<Bounded<R>>,
    unread: Rc<Cell<usize>>,
    row: ByteRecord,
    bom: u64,
}

impl<R: Read> Table<R> {
    fn new(path: &Arc<Path>, file: R, delimiter: u8, bom: u64) -> Self {
        let unread = Rc::new(Cell::new(0));
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .from_reader(Bounded { inner: file, unread: Rc::clone(&unread) });
        Self { path: Arc::clone(path), reader, unread, row: ByteRecord::new(), bom }
    }

    /// The next row and where it starts; none after the last.
    fn next_row(&mut self) -> Result<Option<(Origin, Vec<String>)>, Error> {
        self.unread.set(0);
        let start = self.reader.position().clone();
        let at = Origin::line(&self.path, start.line());
        match self.reader.read_byte_record(&mut self.row) {
            Ok(true) => {}
            Ok(false) => return Err(Error::UnclosedQuote { at }),
            Err(error) => {
                return Err(match error.into_kind() {
                    csv::ErrorKind::Io(source) if source.kind() == io::ErrorKind::FileTooLarge => {
                        Error::RowTooLarge { at, limit_bytes: ROW_LIMIT_BYTES }
                    }
                    csv::ErrorKind::Io(source) => Error::io(&self.path, source),
                    other => Error::io(&self.path, io::Error::other(format!("{other:?}"))),
                });
            }
        }
        if self.row.len() == 1 && &self.row[0] == END {
            return Ok(None);
        }
        if self.row.iter().next_back().is_some_and(|cell| cell.ends_with(b"\n\x04\n")) {
            return Err(Error::UnclosedQuote { at });
        }
        let mut cells = Vec::with_capacity(self.row.len());
        for cell in &self.row {
            match std::str::from_utf8(cell) {
                Ok(text) => cells.push(text.to_owned()),
                Err(_) => return Err(self.locate_not_utf8(start.line(), start.byte())),
            }
        }
        Ok(Some((at, cells)))
    }

    /// Finds the first wrong byte of a row by reading the file again from the row's start, since cells have
    /// lost their quotes.
    fn locate_not_utf8(&self, line: u64, offset: u64) -> Error {
        use std::io::{Seek, SeekFrom};
        let start = offset + self.bom;
        let mut bytes = Vec::new();
        let read = std::fs::File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(start))?;
            file.take(2 * ROW_LIMIT_BYTES as u64).read_to_end(&mut bytes)
        });
        if let Err(source) = read {
            return Error::io(&self.path, source);
        }
        let position = std::str::from_utf8(&bytes).map_or_else(|error| error.valid_up_to(), str::len);
        not_utf8(&self.path, &bytes, position, line, start)
    }
}

/// Stops reading when one row has taken too many bytes.
struct Bounded<R> {
    inner: R,
    /// Bytes handed out since the row began.
    unread: Rc<Cell<usize>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unread.get() > ROW_LIMIT_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let count = self.inner.read(buffer)?;
        self.unread.set(self.unread.get() + count);
        Ok(count)
    }
}
