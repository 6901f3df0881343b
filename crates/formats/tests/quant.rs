//! Stored blocks of every type against what gguf-py makes of them.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use formats::{DType, Gguf, quant};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/quant/blocks.gguf");

/// The types under the names that the fixture gives them.
const TYPES: [(&str, DType); 12] = [
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("Q8_0", DType::Q8_0),
    ("Q4_0", DType::Q4_0),
    ("Q4_1", DType::Q4_1),
    ("Q5_0", DType::Q5_0),
    ("Q5_1", DType::Q5_1),
    ("Q2_K", DType::Q2K),
    ("Q3_K", DType::Q3K),
    ("Q4_K", DType::Q4K),
    ("Q5_K", DType::Q5K),
    ("Q6_K", DType::Q6K),
];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn values_equal_gguf_py_bit_for_bit() {
    let gguf = Gguf::open(FIXTURE).expect("run tools/parity/quant.py to make the fixture");
    for (name, dtype) in TYPES {
        let stored = gguf.tensor(&format!("{name}.stored")).unwrap();
        let expected = gguf.tensor(&format!("{name}.values")).unwrap().to_f32();
        assert_eq!((stored.dtype, stored.shape.as_slice()), (dtype, [3, 256].as_slice()));
        assert!(
            expected.iter().filter(|value| **value != 0.0).count() > 500,
            "{name}: the fixture is too plain"
        );
        assert_eq!(bits(&stored.to_f32()), bits(&expected), "{name}");
        let mut row = [0.0; 256];
        stored.dequantize_row(2, &mut row);
        assert_eq!(bits(&row), bits(&expected[512..]), "{name}, last row");
    }
}

#[test]
fn written_bytes_equal_gguf_py() {
    let gguf = Gguf::open(FIXTURE).expect("run tools/parity/quant.py to make the fixture");
    let source = gguf.tensor("source").unwrap().to_f32();
    for (name, dtype) in &TYPES[..5] {
        let expected = gguf.tensor(&format!("{name}.stored")).unwrap();
        assert_eq!(quant::quantize(*dtype, &source).unwrap(), *expected.bytes, "{name}");
    }
}
