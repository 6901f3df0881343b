//! Reads labelled files: the format is found from the content, the fields from their names.

mod fields;
mod json;
mod parquet;
mod table;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::Error;
use crate::example::{Dataset, Format};

/// The most bytes a row may take in its file: many times the longest query a small model can read.
pub const ROW_LIMIT_BYTES: usize = 1 << 20;

/// How much of a file is looked at to find its format.
const HEAD_BYTES: usize = 1 << 16;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Which fields to read; fields that are not named are found by their usual names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// The field that holds the text, or the list of messages.
    pub text_field: Option<String>,
    /// The field that holds the label.
    pub label_field: Option<String>,
}

/// Reads a file of labelled examples: JSON, JSON lines, CSV, TSV or Parquet.
///
/// Memory holds the examples and one row besides. Rows with an empty text or label are kept, so that
/// [`check`](crate::doctor::check) can list them.
///
/// # Errors
/// The first thing in the file that cannot be read, with its line or row.
pub fn read(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Dataset, Error> {
    let path: Arc<Path> = path.as_ref().into();
    let metadata = std::fs::metadata(&path).map_err(|source| Error::io(&path, source))?;
    if metadata.is_dir() {
        return Err(Error::IsDirectory { path: path.to_path_buf() });
    }
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.to_path_buf() });
    }
    let mut head = Vec::new();
    open(&path)?.take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(|source| Error::io(&path, source))?;
    let format = sniff(&path, &head)?;
    let rows = match format {
        Format::JsonArray | Format::JsonLines => json::read(&path, options)?,
        Format::Csv | Format::Tsv => table::read(&path, &head, options)?,
        Format::Parquet => parquet::read(&path, options)?,
    };
    let Some((layout, examples)) = rows else {
        return Err(Error::Empty { path: path.to_path_buf() });
    };
    Ok(Dataset {
        format,
        text_field: layout.text_field().to_owned(),
        label_field: layout.label_field().to_owned(),
        examples,
        sha256: sha256(&path)?,
        path,
    })
}

/// The rows of a file with their layout; none when there are no rows.
type Rows = Option<(fields::Layout, Vec<crate::example::Example>)>;

fn open(path: &Path) -> Result<BufReader<File>, Error> {
    File::open(path).map(BufReader::new).map_err(|source| Error::io(path, source))
}

/// Opens a text file after its byte order mark; also returns the mark's length.
fn open_text(path: &Path) -> Result<(BufReader<File>, u64), Error> {
    use std::io::BufRead;
    let mut file = open(path)?;
    let marked = file.fill_buf().map_err(|source| Error::io(path, source))?.starts_with(BOM);
    let length = if marked { BOM.len() } else { 0 };
    file.consume(length);
    Ok((file, length as u64))
}

fn sha256(path: &Path) -> Result<String, Error> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut open(path)?, &mut hasher).map_err(|source| Error::io(path, source))?;
    Ok(format!("{:x}", hasher.finalize()))
}

/// Finds the format from a file's first bytes; its name decides only what the content leaves open.
fn sniff(path: &Path, head: &[u8]) -> Result<Format, Error> {
    const KNOWN: [(&[u8], &str); 7] = [
        (b"\x1f\x8b", "a gzip archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
        (b"PK\x03\x04", "a zip archive or a spreadsheet"),
        (b"\xd0\xcf\x11\xe0", "an old spreadsheet"),
        (b"%PDF", "a PDF document"),
        (b"ARROW1", "an Arrow file"),
        (b"SQLite format 3", "an SQLite database"),
    ];
    if head.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    let unknown = |found| Error::UnknownFormat { path: path.to_owned(), found };
    if let Some((_, found)) = KNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(unknown(found));
    }
    let utf16 = |guess| Error::NotUtf8 { path: path.to_owned(), line: 1, offset: 0, guess };
    match head {
        [0xff, 0xfe, ..] => return Err(utf16("UTF-16LE")),
        [0xfe, 0xff, ..] => return Err(utf16("UTF-16BE")),
        [first, 0, second, 0, ..] if *first != 0 && *second != 0 => return Err(utf16("UTF-16LE")),
        [0, first, 0, second, ..] if *first != 0 && *second != 0 => return Err(utf16("UTF-16BE")),
        _ if head.contains(&0) => return Err(unknown("a binary file")),
        _ => {}
    }
    let text = head.strip_prefix(BOM).unwrap_or(head).trim_ascii_start();
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match (text.first(), extension.to_ascii_lowercase().as_str()) {
        (None, _) => Err(Error::Empty { path: path.to_owned() }),
        (Some(b'['), _) => Ok(Format::JsonArray),
        (Some(b'{'), _) | (_, "json" | "jsonl" | "ndjson") => Ok(Format::JsonLines),
        _ if table::delimiter(head) == b'\t' => Ok(Format::Tsv),
        _ => Ok(Format::Csv),
    }
}

/// The error for bytes that are not UTF-8, `position` bytes into a text that starts at `line` and `offset`.
fn not_utf8(path: &Path, bytes: &[u8], position: usize, line: u64, offset: u64) -> Error {
    let newlines = bytes[..position].split(|&byte| byte == b'\n').count() as u64 - 1;
    Error::NotUtf8 {
        path: path.to_owned(),
        line: line + newlines,
        offset: offset + position as u64,
        guess: "WINDOWS-1252",
    }
}

#[cfg(test)]
mod tests;
