//! GGUF files written and read back, and files made to harm.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use formats::gguf::{Array, Value};
use formats::{DType, Error, Gguf, GgufWriter, Tensor};
use proptest::prelude::*;

fn sample() -> GgufWriter<'static> {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama");
    writer.set("text", "Größe 👍");
    writer.set("count", 7u32);
    writer.set("strings", vec!["a".to_owned(), String::new(), "ß".to_owned()]);
    writer.add(Tensor::from_f32("a", vec![2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap());
    writer.add(Tensor::new("b", DType::Q8_0, vec![3, 64], vec![1; 3 * 2 * 34]).unwrap());
    writer.add(Tensor::new("c", DType::F16, vec![1], vec![0, 60]).unwrap());
    writer
}

fn open(bytes: Vec<u8>) -> formats::Result<Gguf> {
    Gguf::from_bytes(bytes, "sample.gguf")
}

fn reason(bytes: Vec<u8>) -> String {
    let error = open(bytes).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. } | Error::Unsupported { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("sample.gguf"), "{text}");
    text
}

#[test]
fn what_is_written_is_read_back() {
    let values: Vec<(&str, Value)> = vec![
        ("u8", 200u8.into()),
        ("i8", (-3i8).into()),
        ("u16", 60_000u16.into()),
        ("i16", (-3i16).into()),
        ("u32", u32::MAX.into()),
        ("i32", i32::MIN.into()),
        ("f32", 0.1f32.into()),
        ("bool", true.into()),
        ("string", "Größe 👍\n".into()),
        ("u64", u64::MAX.into()),
        ("i64", i64::MIN.into()),
        ("f64", 0.1f64.into()),
        ("u8s", vec![1u8, 2].into()),
        ("i32s", vec![-1i32, 2].into()),
        ("f32s", vec![0.5f32].into()),
        ("bools", vec![true, false].into()),
        ("strings", vec!["a".to_owned(), String::new()].into()),
        ("none", Vec::<u64>::new().into()),
    ];
    let mut writer = sample();
    for (key, value) in &values {
        writer.set(*key, value.clone());
    }
    writer.set("count", 8u32);
    let bytes = writer.to_bytes();
    assert_eq!(bytes, writer.to_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.gguf");
    std::fs::write(&path, bytes).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    for (key, value) in &values {
        assert_eq!(gguf.get(key), Some(value), "{key}");
    }
    assert_eq!(gguf.get("count"), Some(&Value::U32(8)));
    assert!(matches!(gguf.get("strings"), Some(Value::Array(Array::String(_)))));
    assert_eq!(gguf.tensor_names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(gguf.tensor("a").unwrap().to_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let b = gguf.tensor("b").unwrap();
    assert_eq!(
        (b.dtype, b.shape.as_slice(), &*b.bytes),
        (DType::Q8_0, [3, 64].as_slice(), [1; 204].as_slice())
    );
    assert_eq!(gguf.tensor("c").unwrap().to_f32(), [1.0]);
    assert!(matches!(gguf.tensor("d"), Err(Error::MissingTensor { .. })));
}

#[test]
fn a_key_of_another_type_is_an_error_that_names_it() {
    let gguf = open(sample().to_bytes()).unwrap();
    assert_eq!(gguf.required("count", Value::as_usize).unwrap(), 7);
    let error = gguf.required("count", Value::as_str).unwrap_err().to_string();
    assert!(error.contains("`count`") && error.contains("unsigned 32-bit"), "{error}");
    let error = gguf.required("nothing", Value::as_str).unwrap_err().to_string();
    assert!(error.contains("`nothing`"), "{error}");
    assert_eq!(gguf.optional("nothing", Value::as_str).unwrap(), None);
}

/// A file spelt out by hand: what the writer refuses to write.
#[derive(Default, Clone)]
struct Forged {
    version: u32,
    tensors: u64,
    keys: u64,
    body: Vec<u8>,
}

impl Forged {
    fn new(tensors: u64, keys: u64) -> Self {
        Self { version: 3, tensors, keys, body: Vec::new() }
    }

    fn u32(mut self, value: u32) -> Self {
        self.body.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.body.extend(value.to_le_bytes());
        self
    }

    fn text(self, text: &[u8]) -> Self {
        let mut longer = self.u64(text.len() as u64);
        longer.body.extend(text);
        longer
    }

    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let named = self.text(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(named, |forged, &dim| forged.u64(dim)).u32(kind).u64(offset)
    }

    fn reason(self) -> String {
        reason(self.bytes(256))
    }

    fn bytes(self, data: usize) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        bytes.extend(self.body);
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        bytes
    }
}

#[test]
fn a_forged_file_that_is_sound_is_read() {
    for version in [2, 3] {
        let mut forged = Forged::new(2, 1).text(b"k").u32(4).u32(9);
        forged = forged.tensor("a", &[8, 2], 0, 64).tensor("b", &[8, 2], 0, 0);
        forged.version = version;
        let gguf = open(forged.bytes(128)).unwrap();
        assert_eq!(gguf.tensor("a").unwrap().shape, [2, 8]);
    }
}

#[test]
fn hostile_headers_are_errors_that_say_what_is_wrong() {
    let huge = u64::MAX;
    let cases = [
        ("number of tensors", Forged::new(huge, 0)),
        ("number of tensors", Forged::new(1 << 40, 0)),
        ("number of keys", Forged::new(0, huge)),
        ("a key ", Forged::new(0, 1).u64(huge)),
        ("a key ", Forged::new(0, 1).u64(1 << 40)),
        ("is not UTF-8", Forged::new(0, 1).text(b"\xff\xfe").u32(4).u32(1)),
        ("key `k`: a string", Forged::new(0, 1).text(b"k").u32(8).u64(huge)),
        ("key `k`: a string at", Forged::new(0, 1).text(b"k").u32(8).text(b"\xc3\x28")),
        ("array's length", Forged::new(0, 1).text(b"k").u32(9).u32(8).u64(huge)),
        ("array's length", Forged::new(0, 1).text(b"k").u32(9).u32(0).u64(1 << 50)),
        ("holds arrays", Forged::new(0, 1).text(b"k").u32(9).u32(9).u64(1)),
        ("unknown type 13", Forged::new(0, 1).text(b"k").u32(13)),
        ("truth value", Forged::new(0, 1).text(b"k").u32(7).u32(2)),
        ("`k` is there twice", Forged::new(0, 2).text(b"k").u32(4).u32(1).text(b"k").u32(4).u32(1)),
        ("general.alignment", Forged::new(0, 1).text(b"general.alignment").u32(4).u32(0)),
        ("general.alignment", Forged::new(0, 1).text(b"general.alignment").u32(4).u32(33)),
        ("general.alignment", Forged::new(0, 1).text(b"general.alignment").u32(4).u32(1 << 31)),
        ("0 dimensions", Forged::new(1, 0).tensor("t", &[], 0, 0)),
        ("5 dimensions", Forged::new(1, 0).tensor("t", &[1; 5], 0, 0)),
        ("empty shape", Forged::new(1, 0).tensor("t", &[4, 0], 0, 0)),
        ("cannot be F32", Forged::new(1, 0).tensor("t", &[huge, huge], 0, 0)),
        ("cannot be Q8_0", Forged::new(1, 0).tensor("t", &[33], 8, 0)),
        ("number 99", Forged::new(1, 0).tensor("t", &[1], 99, 0)),
        ("not a multiple of 32", Forged::new(1, 0).tensor("t", &[1], 0, 4)),
        ("the file ends at", Forged::new(1, 0).tensor("t", &[1], 0, 1 << 20)),
        ("the file ends at", Forged::new(1, 0).tensor("t", &[1], 0, huge - 31)),
        ("the file ends at", Forged::new(1, 0).tensor("t", &[1 << 30], 0, 0)),
        ("`t` is there twice", Forged::new(2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 32)),
        ("overlap", Forged::new(2, 0).tensor("t", &[1], 0, 0).tensor("u", &[1], 0, 0)),
        ("overlap", Forged::new(2, 0).tensor("t", &[16], 0, 0).tensor("u", &[1], 0, 32)),
    ];
    for (expected, forged) in cases {
        let found = forged.reason();
        assert!(found.contains(expected), "expected `{expected}`, found: {found}");
    }
    for (version, expected) in [(1, "version"), (4, "version"), (3u32.swap_bytes(), "big-endian")] {
        let found = Forged { version, ..Forged::default() }.reason();
        assert!(found.contains(expected), "{found}");
    }
    assert!(reason(b"GGML\0\0\0\0".to_vec()).contains("begin with `GGUF`"));
    assert!(reason(Vec::new()).contains("magic number"));
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let bytes = sample().to_bytes();
    let last_value = bytes.len() - 30; // the last tensor is two bytes and its padding
    for len in 0..last_value {
        assert!(open(bytes[..len].to_vec()).is_err(), "{len} of {} bytes", bytes.len());
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = sample().to_bytes();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(gguf) = open(bytes) {
            for name in gguf.tensor_names() {
                gguf.tensor(name).unwrap().to_f32();
            }
        }
    }

    #[test]
    fn noise_after_the_magic_number_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(noise);
        let _ = open(bytes);
    }

    #[test]
    fn any_strings_and_tensors_survive(
        text in ".*",
        strings in proptest::collection::vec(".{0,9}", 0..9),
        values in proptest::collection::vec(any::<f32>(), 1..99),
    ) {
        let mut writer = GgufWriter::new();
        writer.set("text", text.clone());
        writer.set("strings", strings.clone());
        writer.add(Tensor::from_f32("t", vec![values.len()], &values).unwrap());
        let gguf = open(writer.to_bytes()).unwrap();
        prop_assert_eq!(gguf.get("text"), Some(&Value::String(text)));
        prop_assert_eq!(gguf.get("strings"), Some(&Value::from(strings)));
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&gguf.tensor("t").unwrap().to_f32()), bits(&values));
    }
}
