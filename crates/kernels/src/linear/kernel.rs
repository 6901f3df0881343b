//! What a processor's instruction set gives to the products: one table of functions for each element type.
//!
//! Everything packed is made of 32-bit words: one f32, two bf16 or four bytes that follow each other along the summed
//! dimension `k` (the lowest bits first). Where an instruction set has no products of bf16, operands of that type may be
//! f32 too, widened when they are packed: [`Compute::pair`] says so. A product is `C = A B`: rows of `A` come in panels
//! of up to [`MOST_ROWS`], packed as [`LeftForm`] says; columns of `B` in panels of [`COLUMNS`], packed `[k words][COLUMNS]`.
//! Each value of `C` is one chain of multiply-adds along `k`, whatever stands in the other rows: that is why a row's
//! result does not depend on its neighbours.

use half::bf16;

use super::blocks::BlockFormat;
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};
use crate::{Isa, isa};

/// Most rows of a panel of `A` that is woven.
pub(crate) const ROWS: usize = 12;
/// Most rows of a panel of `A`, whatever its form.
pub(crate) const MOST_ROWS: usize = 32;
/// Columns of a panel of `B`.
pub(crate) const COLUMNS: usize = 32;

/// How a panel of `A` is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftForm {
    /// `[k words][rows]`: the words that meet one row of `B` lie together.
    Woven,
    /// `[rows][k words]`, as tiles of AMX read them. Behind the last word of a row lie at least [`TILE_WORDS`] that may
    /// be read and are finite.
    Rows,
}

/// Words of `k` that a register of AMX holds of a row.
pub(crate) const TILE_WORDS: usize = 16;

impl LeftForm {
    /// Most rows of a panel.
    pub(crate) fn most_rows(self) -> usize {
        match self {
            Self::Woven => ROWS,
            Self::Rows => MOST_ROWS,
        }
    }
}

/// A stretch of `k` of one panel of `A` and one of `B`.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    pub(crate) a: &'a [u32],
    /// Words from one k word of `a` to the next, or from one of its rows to the next, whatever the form puts apart.
    pub(crate) stride: usize,
    pub(crate) b: &'a [u32],
    /// Number of `k` words.
    pub(crate) words: usize,
}

/// `c = sum over segments of a b`, or `c +=`. Arguments: `c` `[rows][COLUMNS]`, whether to add, the segments, rows
/// (1 to [`LeftForm::most_rows`]), columns of `b`'s panel (16 or [`COLUMNS`]).
pub(crate) type Tile<S> = fn(&mut [S], bool, &[Segment<'_>], usize, usize);

/// What a word holds and how two words multiply.
pub trait Multiply {
    /// Values that fit a 32-bit word.
    const PAIR: usize;
    /// What products are summed in.
    type Sum: bytemuck::Pod;
    /// `sum + a b`, over the values of two words in order.
    fn multiply_add(sum: Self::Sum, a: u32, b: u32) -> Self::Sum;
    /// The tile of the instruction set in use.
    fn tile() -> Tile<Self::Sum>;
    /// The form of the left operand that it takes.
    fn left() -> LeftForm;
}

/// The functions of one instruction set for one element type.
pub struct Kernels<E> {
    /// See [`Compute::pair`].
    pub(crate) pair: usize,
    /// See [`Tile`].
    pub(crate) tile: Tile<f32>,
    /// See [`Multiply::left`].
    pub(crate) left: LeftForm,
    /// `out[k word][row]` from up to 16 rows of values along `k`; the second argument is the distance of k words.
    pub(crate) pack: fn(&mut [u32], usize, &[&[E]]),
    /// `out[k word][column]` from `k` rows of values along the columns. Arguments: `out`, the distance of its k words,
    /// the values, the distance of their rows, the number of rows, the number of columns.
    pub(crate) weave: fn(&mut [u32], usize, &[E], usize, usize, usize),
    /// Transposes a block of 32 columns by 32 `k`.
    pub(crate) turn: fn(&mut [u32], &[u32]),
    /// Expands a stored block to `[k word][COLUMNS]`.
    pub(crate) expand: fn(&mut [u32], &[u8], BlockFormat),
    /// Rounds.
    pub(crate) narrow: fn(&mut [E], &[f32]),
    /// The same values, exactly.
    pub(crate) widen: fn(&mut [f32], &[E]),
    /// Adds the second to the first.
    pub(crate) add: fn(&mut [f32], &[f32]),
    /// Multiplies by a factor.
    pub(crate) scale: fn(&mut [f32], f32),
    /// The greatest value.
    pub(crate) max: fn(&[f32]) -> f32,
    /// The exponentials of `values - shift`, and their sum.
    pub(crate) exp: fn(&mut [f32], f32) -> f32,
    /// Rounds values to bytes; returns their scale and the sum of the bytes.
    pub(crate) to_bytes: fn(&mut [i8], &[E]) -> (f32, i32),
    /// `out = factor * scales * (sums - start)`. Arguments: `out`, `sums`, `start`, `factor`, `scales`.
    pub(crate) from_sums: fn(&mut [f32], &[i32], i32, f32, &[f32]),
    /// The greatest magnitude in each of [`COLUMNS`] columns, or what is there if it is greater.
    pub(crate) peaks: fn(&mut [f32; COLUMNS], &[f32]),
    /// Rounds values `[k][COLUMNS]`, times each column's factor, to bytes with an offset, `[k word][COLUMNS]`.
    pub(crate) weave_bytes: fn(&mut [u32], &[f32], &[f32; COLUMNS]),
    /// Multiply-adds in registers only: `tile`'s arithmetic without its memory. Returns the number of operations.
    pub(crate) spin: fn(usize) -> usize,
}

/// What the products need to know of an element type.
pub trait Compute: Multiply<Sum = f32> + bytemuck::Pod + Default {
    /// The functions of the instruction set in use.
    fn kernels() -> &'static Kernels<Self>;
    /// Values in a word of an operand: [`Multiply::PAIR`], or one where the instruction set multiplies f32 alone.
    fn pair() -> usize {
        Self::kernels().pair
    }
    /// Rounds to nearest, ties to even, without branches.
    fn round(value: f32) -> Self;
}

/// Compiles loops of [`portable`] for an instruction set.
#[cfg(target_arch = "x86_64")]
macro_rules! widened {
    ($features:literal: $(fn $name:ident $(<$e:ident>)? ($($arg:ident: $type:ty),*) $(-> $out:ty)?;)*) => {
        $(pub(super) fn $name$(<$e: Compute>)?($($arg: $type),*) $(-> $out)? {
            #[target_feature(enable = $features)]
            fn wide$(<$e: Compute>)?($($arg: $type),*) $(-> $out)? {
                super::portable::$name$(::<$e>)?($($arg),*)
            }
            // SAFETY: this table is only in use on processors with these instructions.
            unsafe { wide$(::<$e>)?($($arg),*) }
        })*
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use widened;

macro_rules! kernels {
    ($element:ty, $module:ident, $operand:ty) => {
        Kernels::<$element> {
            pair: <$operand>::PAIR,
            tile: $module::tile::<$operand>,
            left: LeftForm::Woven,
            pack: $module::pack::<$element>,
            weave: $module::weave::<$element>,
            turn: $module::turn::<$operand>,
            expand: $module::expand::<$element>,
            narrow: $module::narrow::<$element>,
            widen: $module::widen::<$element>,
            add: $module::add,
            scale: $module::scale,
            max: $module::max,
            exp: $module::exp,
            to_bytes: $module::to_bytes::<$element>,
            from_sums: $module::from_sums,
            peaks: $module::peaks,
            weave_bytes: $module::weave_bytes,
            spin: $module::spin::<$element>,
        }
    };
}

macro_rules! choose {
    ($element:ty, $tiles:expr) => {
        match isa::current() {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => &const { $tiles },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => &const { kernels!($element, avx512, $element) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &const { kernels!($element, avx2, f32) },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &const { kernels!($element, neon, $element) },
            _ => &const { kernels!($element, portable, $element) },
        }
    };
}

impl Multiply for f32 {
    const PAIR: usize = 1;
    type Sum = f32;
    fn multiply_add(sum: f32, a: u32, b: u32) -> f32 {
        Self::from_bits(a).mul_add(Self::from_bits(b), sum)
    }
    fn tile() -> Tile<f32> {
        Self::kernels().tile
    }
    fn left() -> LeftForm {
        Self::kernels().left
    }
}

impl Compute for f32 {
    fn kernels() -> &'static Kernels<Self> {
        choose!(f32, kernels!(f32, avx512, f32))
    }
    fn round(value: f32) -> Self {
        value
    }
}

impl Multiply for bf16 {
    const PAIR: usize = 2;
    type Sum = f32;
    fn multiply_add(sum: f32, a: u32, b: u32) -> f32 {
        let sum = f32::from_bits(a << 16).mul_add(f32::from_bits(b << 16), sum);
        f32::from_bits(a & 0xffff_0000).mul_add(f32::from_bits(b & 0xffff_0000), sum)
    }
    fn tile() -> Tile<f32> {
        Self::kernels().tile
    }
    fn left() -> LeftForm {
        Self::kernels().left
    }
}

impl Compute for bf16 {
    fn kernels() -> &'static Kernels<Self> {
        choose!(bf16, {
            let vectors = kernels!(bf16, avx512, bf16);
            Kernels { tile: amx::tile::<bf16>, left: LeftForm::Rows, spin: amx::spin, ..vectors }
        })
    }
    fn round(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        Self::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }
}

/// The value of place `k` along the sum in the operand word that holds it.
pub(super) fn operand_value<E: Compute>(word: u32, k: usize) -> f32 {
    // Whatever the type, a word of its own holds f32.
    if E::pair() == 1 { f32::from_bits(word) } else { f32::from_bits(word >> (k % 2 * 16) << 16) }
}

/// Two values rounded to a word of bf16.
#[inline(always)]
#[allow(clippy::inline_always)] // into functions compiled for wider instruction sets
pub(super) fn round_pair(low: f32, high: f32) -> u32 {
    let round = |value: f32| {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        if value.is_nan() { bits | 0x0040_0000 } else { rounded }
    };
    round(low) >> 16 | round(high) & 0xffff_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        for high in (0..=0xffffu32).step_by(7) {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(high << 16 | low);
                assert_eq!(
                    <bf16 as Compute>::round(value).to_bits(),
                    bf16::from_f32(value).to_bits(),
                    "{value:e}"
                );
                let pair = super::round_pair(value, -value).to_le_bytes();
                let half = [value, -value].map(|value| bf16::from_f32(value).to_bits().to_le_bytes());
                assert_eq!(pair, *half.as_flattened(), "{value:e}");
            }
        }
    }
}
