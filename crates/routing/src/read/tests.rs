//! Files as users write them, and files that are broken in every way.

use std::io::Write;
use std::path::PathBuf;

use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::example::Role;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

fn read_text(name: &str, content: impl AsRef<[u8]>) -> Result<Dataset, Error> {
    let folder = Folder::new();
    read(folder.file(name, content), &ReadOptions::default())
}

/// The error's text without the folder.
fn failure(name: &str, content: impl AsRef<[u8]>) -> String {
    let folder = Folder::new();
    let error = read(folder.file(name, content), &ReadOptions::default()).unwrap_err();
    assert!(!error.hint().is_empty());
    error.to_string().replace(&format!("{}/", folder.0.path().display()), "")
}

fn pairs(data: &Dataset) -> Vec<(&str, &str)> {
    data.examples.iter().map(|example| (example.text.as_str(), example.label.as_str())).collect()
}

fn places(data: &Dataset) -> Vec<String> {
    let places = data.examples.iter().map(|example| example.origin.to_string());
    places.map(|place| place.rsplit('/').next().unwrap().to_owned()).collect()
}

const EXPECTED: [(&str, &str); 2] = [("Where is my card?", "cards"), ("Refund \"now\", please", "refunds")];

#[test]
fn every_text_format_gives_the_same_examples() {
    let conversation = |outer: &str, role: &str, content: &str, user: &str, assistant: &str| {
        let row = |text: &str, label: &str| {
            format!(
                r#"{{"{outer}": [{{"{role}": "{user}", "{content}": {text:?}}}, {{"{role}": "{assistant}", "{content}": "{label}"}}]}}"#
            )
        };
        format!("{}\n{}\n", row(EXPECTED[0].0, EXPECTED[0].1), row(EXPECTED[1].0, EXPECTED[1].1))
    };
    let lines = "{\"text\": \"Where is my card?\", \"label\": \"cards\"}\n\n{\"text\": \"Refund \\\"now\\\", please\", \"label\": \"refunds\"}";
    let quoted = "\"Refund \"\"now\"\", please\"";
    let files = [
        (Format::JsonLines, lines.to_owned()),
        (Format::JsonLines, format!("\u{feff}{lines}\n")),
        (Format::JsonLines, lines.replace('\n', "\r\n")),
        (
            Format::JsonLines,
            lines.replace("\"text\"", "\"user_query\"").replace("\"label\"", "\"department\""),
        ),
        (Format::JsonLines, conversation("conversations", "role", "content", "user", "assistant")),
        (Format::JsonLines, conversation("conversations", "from", "value", "human", "gpt")),
        (Format::JsonLines, conversation("messages", "role", "content", "user", "assistant")),
        (Format::JsonArray, format!(" [{}]\n", lines.replace("\n\n", ","))),
        (Format::JsonArray, format!("\u{feff}[\n {}\n]", lines.replace("\n\n", " ,\n "))),
        (Format::Csv, format!("text,label\nWhere is my card?,cards\n{quoted},refunds\n")),
        (Format::Csv, format!("\u{feff}label;id;query\r\ncards;1;Where is my card?\r\nrefunds;2;{quoted}")),
        (Format::Csv, format!("intent|utterance\ncards|Where is my card?\nrefunds|{quoted}\n\n")),
        (Format::Tsv, format!("text\tlabel\nWhere is my card?\tcards\n{quoted}\trefunds\n")),
    ];
    for (format, content) in files {
        // The name says nothing, or the wrong thing.
        for name in ["rows", "rows.csv"] {
            let data = read_text(name, &content).unwrap_or_else(|error| panic!("{error}\n{content}"));
            assert_eq!(pairs(&data), EXPECTED, "{content}");
            assert_eq!(data.format, format, "{content}");
        }
    }
}

#[test]
fn places_are_the_lines_where_rows_start() {
    let csv = "text,label\n\"two\nlines\",a\nthree,b\n\"four\r\nfive\",c\nsix,d";
    assert_eq!(places(&read_text("t.csv", csv).unwrap()), ["t.csv:2", "t.csv:4", "t.csv:5", "t.csv:7"]);
    let json = "[\n{\"text\": \"a\",\n\"label\": \"x\"}, {\"text\": \"b\", \"label\": \"x\"},\n\n{\"text\": \"c\", \"label\": \"y\"}]";
    assert_eq!(places(&read_text("t.json", json).unwrap()), ["t.json:2", "t.json:3", "t.json:5"]);
}

#[test]
fn system_texts_history_and_odd_values_are_kept() {
    let data = read_text("a.csv", "system,text,label\nRoute.,q,x\n,,3\n").unwrap();
    assert_eq!(data.examples[0].system.as_deref(), Some("Route."));
    assert_eq!((data.examples[1].system.as_ref(), data.examples[1].text.as_str()), (None, ""));
    let data = read_text("a", r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "x"}]}"#).unwrap();
    assert_eq!(pairs(&data), [("c", "x")]);
    assert_eq!(
        data.examples[0].history.iter().map(|turn| turn.role).collect::<Vec<_>>(),
        [Role::User, Role::Assistant]
    );
    assert_eq!(data.text_field, "messages");
}

#[test]
fn the_hash_is_the_files() {
    let data = read_text("a.csv", "text,label\na,b\n").unwrap();
    assert_eq!(data.sha256, "ec6a4a4aa824691f0804aabf5ebd23d51db8334b01e907f0f790bbe42866939a");
}

#[test]
fn named_fields_are_read() {
    let folder = Folder::new();
    let options = ReadOptions { text_field: Some("b".into()), label_field: Some("a".into()) };
    let csv = folder.file("a.csv", "a,b\nx,hello\n");
    assert_eq!(pairs(&read(csv, &options).unwrap()), [("hello", "x")]);
    let options = ReadOptions { text_field: None, label_field: Some("team".into()) };
    let chat =
        folder.file("chat", r#"{"messages": [{"role": "user", "content": "q"}], "team": "x", "label": "y"}"#);
    assert_eq!(pairs(&read(chat, &options).unwrap()), [("q", "x")]);
}

#[test]
fn paths_that_are_no_files() {
    let folder = Folder::new();
    let error = read(folder.0.path().join("none.csv"), &ReadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let error = read(folder.0.path(), &ReadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::IsDirectory { .. }), "{error}");
    #[cfg(unix)]
    assert!(matches!(read("/dev/null", &ReadOptions::default()), Err(Error::NotAFile { .. })));
    let error = read(folder.0.path().join("no/such/file"), &ReadOptions::default()).unwrap_err();
    assert!(error.hint().contains("no folder"), "{}", error.hint());
}

#[test]
fn files_without_rows() {
    for (name, content) in [
        ("a.csv", ""),
        ("a.csv", "\u{feff} \n\n"),
        ("a.csv", "text,label\n"),
        ("a.json", "[ ]"),
        ("a.jsonl", "\n"),
    ] {
        assert_eq!(failure(name, content), format!("{name}: the file holds no rows"), "{content:?}");
    }
}

#[test]
fn files_of_other_kinds() {
    assert!(failure("a.csv", b"\x1f\x8b\x08\x00rest").contains("is a gzip archive"));
    assert!(failure("a.xlsx", b"PK\x03\x04rest").contains("is a zip archive or a spreadsheet"));
    assert!(failure("a.csv", b"text,label\na,b\x00c\n").contains("is a binary file"));
}

#[test]
fn other_encodings() {
    assert_eq!(
        failure("a.csv", b"text,label\n\"two\nlines\",a\ncaf\xe9,b\n"),
        "a.csv: line 4: not UTF-8 at byte 28, it looks like WINDOWS-1252"
    );
    assert_eq!(
        failure("a.csv", b"\xef\xbb\xbftext,label\n\"caf\xe9\",b\n"),
        "a.csv: line 2: not UTF-8 at byte 18, it looks like WINDOWS-1252"
    );
    assert_eq!(
        failure(
            "a.jsonl",
            b"{\"text\": \"a\", \"label\": \"b\"}\n{\"text\": \"caf\xe9\", \"label\": \"b\"}\n"
        ),
        "a.jsonl: line 2: not UTF-8 at byte 41, it looks like WINDOWS-1252"
    );
    let utf16: Vec<u8> = "text,label\na,b\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(failure("a.csv", &utf16).contains("it looks like UTF-16LE"));
    assert!(failure("a.csv", [b"\xff\xfe", &utf16[..]].concat()).contains("it looks like UTF-16LE"));
    assert!(
        read_text("a.csv", b"caf\xe9")
            .unwrap_err()
            .hint()
            .starts_with("Convert it: iconv -f WINDOWS-1252 -t UTF-8")
    );
}

#[test]
fn broken_json_is_located() {
    let good = "{\"text\": \"a\", \"label\": \"b\"}";
    for (content, place) in [
        (format!("{good}\n{{\"text\": \"a\" \"label\": \"b\"}}\n{good}"), "line 2, column 14"),
        (format!("{good}\n{{\"text\": \"a\", \"label\": \"b\"\n{good}"), "line 3, column 1"),
        (format!("{good}\n  {{\"text\": a}}"), "line 2, column 12"),
        (format!("{good}\n{{\"text\": \"a"), "line 2, column"),
        (format!("{good}\nnonsense"), "line 2, column 2"),
        (format!("[{good} {good}]"), "line 1, column 30: broken JSON: expected `,` or `]` after a record"),
        (format!("[{good},\n]"), "line 2, column 1: broken JSON: expected a record after the comma"),
        (format!("[{good},,{good}]"), "line 1, column 30"),
        (format!("[{good}\n"), "line 2, column 1: broken JSON: the file ends inside the array"),
        (format!("[{good}]\n{good}"), "line 2, column 1: broken JSON: something follows"),
        ("text,label".to_owned(), "line 1, column"),
    ] {
        let message = failure("a.json", &content);
        assert!(message.starts_with(&format!("a.json: {place}")), "{message}\n{content}");
    }
}

#[test]
fn rows_of_other_shapes() {
    assert!(
        failure("a.json", "[[\"q\", \"x\"]]").starts_with("a.json:1: the row is a list, expected an object")
    );
    assert!(
        failure("a.json", "[{\"text\": \"a\", \"label\": \"b\"},\n{\"text\": \"a\", \"tag\": \"b\"}]")
            .starts_with("a.json:2: no field \"label\"; found \"text\", \"tag\"")
    );
    assert!(
        failure("a.csv", "Where is my card?,cards\nq,x\n").contains("found \"Where is my card?\", \"cards\"")
    );
    assert_eq!(
        failure("a.csv", "text,label\na,b\n\"c\nd\",e,f\n"),
        "a.csv:3: the row has 3 fields, the header has 2"
    );
    assert_eq!(failure("a.csv", "text,label\na,b\nc\n"), "a.csv:3: the row has 1 fields, the header has 2");
    for open in ["text,label\na,b\nc,\"d\ne,f\n", "text,label\na,b\nc,\"", "text,label\na,b\nc,\"d\"\""] {
        assert_eq!(
            failure("a.csv", open),
            "a.csv:3: a quoted field starts in this row and never ends",
            "{open}"
        );
    }
}

#[test]
fn huge_rows_are_refused_without_reading_them() {
    let folder = Folder::new();
    let huge = "long words ".repeat(5_000_000);
    let line = "{\"text\": \"a\", \"label\": \"b\"}\n";
    for (name, content) in [
        ("lines", format!("{line}{{\"text\": \"{huge}\", \"label\": \"b\"}}\n{line}")),
        ("array", format!("[{line},{{\"text\": \"{huge}\", \"label\": \"b\"}}]")),
        ("csv", format!("text,label\n{huge},b\n")),
        ("open", format!("text,label\n\"{}", "a,b\n".repeat(1_000_000))),
    ] {
        let path = folder.file(name, content);
        let error = read(path, &ReadOptions::default()).unwrap_err();
        assert!(matches!(error, Error::RowTooLarge { limit_bytes: 1_048_576, .. }), "{error}");
        assert!(error.to_string().contains(":2: ") || name == "open", "{error}");
    }
    // A row just under the limit, cut inside no character.
    let text = "é".repeat(ROW_LIMIT_BYTES / 2 - 100);
    let path = folder.file("fits", format!("{{\"text\": \"{text}\", \"label\": \"b\"}}"));
    assert_eq!(read(path, &ReadOptions::default()).unwrap().examples[0].text, text);
}

/// Writes texts and numbered labels, optionally with the labels' names as Hugging Face `datasets` does.
fn parquet_file(codec: Compression, names: bool) -> Vec<u8> {
    let schema = "message rows { optional binary text (UTF8); required int64 label; required int64 id; }";
    let names = names.then(|| {
        let info =
            r#"{"info": {"features": {"label": {"names": ["cards", "refunds"], "_type": "ClassLabel"}}}}"#;
        vec![KeyValue::new("huggingface".to_owned(), info.to_owned())]
    });
    let properties = WriterProperties::builder().set_compression(codec).set_key_value_metadata(names).build();
    let schema = parse_message_type(schema).unwrap().into();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, properties.into()).unwrap();
    for (group, (text_value, _)) in EXPECTED.iter().enumerate() {
        let mut rows = file.next_row_group().unwrap();
        let mut text = rows.next_column().unwrap().unwrap();
        let values = [ByteArray::from(*text_value), ByteArray::from("other")];
        text.typed::<ByteArrayType>().write_batch(&values, Some(&[1, 1]), None).unwrap();
        text.close().unwrap();
        for _ in 0..2 {
            let mut numbers = rows.next_column().unwrap().unwrap();
            numbers.typed::<Int64Type>().write_batch(&[group as i64, 7], None, None).unwrap();
            numbers.close().unwrap();
        }
        rows.close().unwrap();
    }
    file.close().unwrap();
    bytes
}

/// Writes one conversation.
fn parquet_conversation() -> Vec<u8> {
    let schema =
        "message rows { optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); } } } }";
    let schema = parse_message_type(schema).unwrap().into();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, WriterProperties::default().into()).unwrap();
    let mut rows = file.next_row_group().unwrap();
    for values in [["user", "assistant"], ["Where is my card?", "cards"]] {
        let mut column = rows.next_column().unwrap().unwrap();
        let values = values.map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[4, 4]), Some(&[0, 1])).unwrap();
        column.close().unwrap();
    }
    rows.close().unwrap();
    file.close().unwrap();
    bytes
}

#[test]
fn parquet_columns_lists_and_label_names() {
    for codec in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        let data = read_text("a", parquet_file(codec, false)).unwrap();
        let expected = [(EXPECTED[0].0, "0"), ("other", "7"), (EXPECTED[1].0, "1"), ("other", "7")];
        assert_eq!(pairs(&data), expected);
        assert_eq!(places(&data)[3], "a row 4");
    }
    let data = read_text("a", parquet_file(Compression::SNAPPY, true)).unwrap();
    assert_eq!(data.labels(), ["7", "cards", "refunds"]);
    assert_eq!(pairs(&read_text("a", parquet_conversation()).unwrap()), [EXPECTED[0]]);
}

#[test]
fn parquet_that_cannot_be_read() {
    let whole = parquet_file(Compression::UNCOMPRESSED, false);
    assert!(failure("a.parquet", &whole[..whole.len() / 2]).contains("damaged or unsupported Parquet"));
    assert!(failure("a.parquet", "PAR1").contains("damaged or unsupported Parquet"));
}

#[test]
fn parquet_codecs_that_are_not_built_in() {
    // No writer for gzip is built in either, so the codec's number is changed in a file's footer.
    let whole = parquet_file(Compression::SNAPPY, false);
    let footer =
        whole.len() - 8 - u32::from_le_bytes(whole[whole.len() - 8..][..4].try_into().unwrap()) as usize;
    let mut gzip = whole.clone();
    // In a column's metadata the codec is field 4, an i32, straight after the path: 0x15, then zigzag 1 or 2.
    let path = [b"\x18\x04text\x15".as_slice(), b"\x02"].concat();
    let mut changed = 0;
    for at in footer..whole.len() - path.len() {
        if whole[at..].starts_with(&path) {
            gzip[at + path.len() - 1] = 4;
            changed += 1;
        }
    }
    assert!(changed > 0);
    let message = failure("a.parquet", gzip);
    assert_eq!(message, "a.parquet: column \"text\" is compressed with GZIP, expected none, SNAPPY or ZSTD");
}

fn valid_files() -> Vec<Vec<u8>> {
    vec![
        b"[{\"text\": \"a \\u00e9\", \"label\": \"b\"}, {\"text\": \"c\", \"label\": 3}]".to_vec(),
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"x\"}]}\n".repeat(3),
        b"text,label\n\"a \"\"b\"\"\nc\",x\nd,y\n".to_vec(),
        b"query\tintent\na b\tx\n".to_vec(),
        parquet_file(Compression::SNAPPY, true),
        parquet_conversation(),
    ]
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..5_usize) {
        let start: &[u8] = [b"".as_slice(), b"[", b"{", b"PAR1", b"text,label\n"][kind];
        let _ = read_text("a", [start, &bytes].concat());
    }

    #[test]
    fn mutated_files_never_panic(
        which in 0..6_usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
    ) {
        let mut bytes = valid_files().swap_remove(which);
        for (index, byte, edit) in edits {
            let at = index.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        let folder = Folder::new();
        let mut file = std::fs::File::create(folder.0.path().join("a")).unwrap();
        file.write_all(&bytes).unwrap();
        if let Err(error) = read(folder.0.path().join("a"), &ReadOptions::default()) {
            prop_assert!(!error.to_string().is_empty() && !error.hint().is_empty());
        }
    }
}
