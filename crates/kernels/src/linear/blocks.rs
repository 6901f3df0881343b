//! Weights kept in 4 or 8 bits, in the block formats of ggml and in NF4: 32 values along a row share a scale.
//!
//! A stored block is 32 rows by 32 columns: the rows' scales (f16, for NF4 f32), for `Q4_1` their minima (f16), then the quants
//! `[column][row]`, two columns to a byte in 4 bits. It is expanded to words when a product needs it, each value
//! rounded just as if the matrix had been expanded before.

use super::kernel::{COLUMNS, Compute};
use super::nf4::LEVELS;

/// A block format of ggml, or NF4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// `d (q - 8)`, 4 bits: 18 bytes for 32 values.
    Q4_0,
    /// `d q + m`, 4 bits: 20 bytes for 32 values.
    Q4_1,
    /// `d q`, signed 8 bits: 34 bytes for 32 values.
    Q8_0,
    /// `d level[q]` with a scale in f32, 4 bits (Dettmers et al., 2023): 20 bytes for 32 values, quants as in `Q4_0`.
    Nf4,
}

impl BlockFormat {
    /// Bytes of 32 values, as in a file.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 | Self::Nf4 => 20,
            Self::Q8_0 => 34,
        }
    }

    /// Words of a stored block.
    pub(super) const fn words(self) -> usize {
        self.bytes() * COLUMNS / 4
    }

    /// Bytes before the quants.
    pub(super) const fn head(self) -> usize {
        if matches!(self, Self::Q4_1 | Self::Nf4) { 4 * COLUMNS } else { 2 * COLUMNS }
    }

    /// Writes row `n` of a block, given as in a file.
    pub(super) fn store(self, block: &mut [u8], n: usize, raw: &[u8]) {
        let scale = if self == Self::Nf4 { 4 } else { 2 };
        block[scale * n..][..scale].copy_from_slice(&raw[..scale]);
        let (head, quants) = (self.head(), &raw[self.head() / COLUMNS..]);
        if self == Self::Q4_1 {
            block[2 * (COLUMNS + n)..][..2].copy_from_slice(&raw[2..4]);
        }
        if self == Self::Q8_0 {
            for (k, q) in quants.iter().enumerate() {
                block[head + k * COLUMNS + n] = *q;
            }
        } else {
            // ggml keeps the first half of the values in the lower four bits of 16 bytes, the second in the upper.
            let quants = u128::from_le_bytes(quants[..16].try_into().expect("32 values of 4 bits"));
            let column = &mut block[head + n..];
            for (half, quants) in [quants, quants >> 4].into_iter().enumerate() {
                let quants = quants & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f;
                // Two neighbours in one byte, at the even places.
                let pairs = (quants | quants >> 4).to_le_bytes();
                for pair in 0..8 {
                    column[(8 * half + pair) * COLUMNS] = pairs[2 * pair];
                }
            }
        }
    }

    /// The scale and minimum of row `n` of a stored block.
    #[inline(always)] // into functions compiled for wider instruction sets
    #[allow(clippy::inline_always)]
    pub(super) fn scale(self, block: &[u8], n: usize) -> (f32, f32) {
        let half = |at: usize| widen_half(u16::from_le_bytes([block[2 * at], block[2 * at + 1]]));
        let d = half(n);
        match self {
            Self::Nf4 => {
                let bytes = &block[4 * n..];
                (f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), 0.0)
            }
            Self::Q4_0 => (d, -8.0 * d),
            Self::Q4_1 => (d, half(COLUMNS + n)),
            Self::Q8_0 => (d, 0.0),
        }
    }

    /// What the quants of columns `k` and `k + 1` of row `n` stand for before their scale, for an even `k`.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    pub(super) fn pair(self, quants: &[u8], n: usize, k: usize) -> [f32; 2] {
        if self == Self::Q8_0 {
            return [0, 1].map(|i| f32::from(quants[(k + i) * COLUMNS + n] as i8));
        }
        let both = quants[k / 2 * COLUMNS + n];
        let pair = [both & 15, both >> 4];
        if self == Self::Nf4 { pair.map(|quant| LEVELS[usize::from(quant)]) } else { pair.map(f32::from) }
    }

    /// Row `n` of a stored block, rounded to `E`.
    pub(super) fn read<E: Compute>(self, block: &[u8], n: usize) -> [E; COLUMNS] {
        let ((d, m), quants) = (self.scale(block, n), &block[self.head()..]);
        let mut values = [0.0; COLUMNS];
        for (pair, values) in values.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *values = self.pair(quants, n, 2 * pair).map(|quant| d * quant + m);
        }
        let mut out = [E::default(); COLUMNS];
        (E::kernels().narrow)(&mut out, &values);
        out
    }
}

/// A 16-bit float's value, exactly. Without branches or calls, so that loops over it become vector code.
#[inline(always)]
#[allow(clippy::inline_always)]
fn widen_half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // The exponent of 32-bit floats counts from 112 further down; the product is exact, denormals included.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let infinite = magnitude | 0x7f80_0000;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { infinite } else { finite })
}

#[cfg(test)]
mod tests {
    #[test]
    fn halves_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (super::widen_half(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
        }
    }
}
