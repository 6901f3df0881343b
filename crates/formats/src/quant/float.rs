//! Floating-point types: a block is one value.

pub(super) fn f32(bytes: [u8; 4]) -> f32 {
    f32::from_le_bytes(bytes)
}

pub(super) fn f16(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

pub(super) fn bf16(bytes: [u8; 2]) -> f32 {
    // Not `half`'s conversion, which makes a signalling NaN quiet: the value is the same bits, shifted.
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}
