//! The kernels of Arm: a tile of four rows by sixteen columns, whose left operand is read once for all columns. bf16
//! is widened in the loop; bytes go through `sdot`, which is assembly here until Rust has a stable intrinsic for it.

#![allow(clippy::wildcard_imports)] // intrinsics name themselves

use std::arch::aarch64::*;
use std::arch::asm;

use bytemuck::Zeroable;

use super::bytes::OFFSET;
use super::kernel::{COLUMNS, Compute, Multiply, ROWS, Segment};

// The compiler turns these into vectors as they are: the target has them always.
pub(super) use super::portable::{
    add, exp, expand, from_sums, max, narrow, pack, peaks, scale, to_bytes, turn, weave, weave_bytes, widen,
};

/// Rows whose sums are in registers at a time: four words of `a` fill a vector.
const LEFT: usize = 4;
/// Vectors across.
const ACROSS: usize = 4;
/// Columns whose sums are in registers at a time.
const RIGHT: usize = 4 * ACROSS;

pub(super) fn tile<M: Multiply>(
    c: &mut [M::Sum],
    add: bool,
    segments: &[Segment<'_>],
    rows: usize,
    width: usize,
) {
    const { assert!(size_of::<M::Sum>() == size_of::<u32>()) };
    assert!((1..=ROWS).contains(&rows) && (width == RIGHT || width == COLUMNS));
    assert!(segments.iter().all(|s| s.a.len() >= s.words * rows && s.b.len() >= s.words * width));
    let c = &mut c[..rows * COLUMNS];
    if !add {
        c.fill(M::Sum::zeroed());
    }
    let c: &mut [u32] = bytemuck::cast_slice_mut(c);
    for segment in segments {
        for half in (0..width).step_by(RIGHT) {
            for row in (0..rows).step_by(LEFT) {
                let corner = Corner { c: &mut c[row * COLUMNS + half..], segment, row, rows, half, width };
                // SAFETY: this table is only in use on processors with these instructions; the slices are as long as
                // the tile needs, as checked above.
                unsafe { part::<M>(corner) };
            }
        }
    }
}

/// A part of a tile: from `row` of `rows` on, from `half` of `width` columns on. `c` begins at its first value.
struct Corner<'a> {
    c: &'a mut [u32],
    segment: &'a Segment<'a>,
    row: usize,
    rows: usize,
    half: usize,
    width: usize,
}

/// # Safety
/// The processor has NEON and its dot products; the segment holds `words * rows` words of `a` and `words * width` of
/// `b`; `row < rows` and `half + RIGHT <= width`.
#[target_feature(enable = "neon,dotprod")]
unsafe fn part<M: Multiply>(at: Corner<'_>) {
    let Corner { c, segment, row, rows, half, width } = at;
    let here = (rows - row).min(LEFT);
    let mut sums = [[vdupq_n_u32(0); ACROSS]; LEFT];
    for (sums, c) in sums.iter_mut().zip(c.chunks(COLUMNS)).take(here) {
        for (sum, c) in sums.iter_mut().zip(c.as_chunks::<4>().0) {
            // SAFETY: four values are there.
            *sum = unsafe { vld1q_u32(c.as_ptr()) };
        }
    }
    // What `OFFSET` adds to the sums of bytes, for each row.
    let mut total = vdupq_n_u32(0);
    let ones = vreinterpretq_u32_u8(vdupq_n_u8(1));
    for k in 0..segment.words {
        // SAFETY: the caller's promise; where fewer than four rows are left, only those are read.
        let (left, right) = unsafe {
            let right = segment.b.as_ptr().add(k * width + half);
            (
                left(segment.a.as_ptr().add(k * rows + row), here),
                [0, 4, 8, 12].map(|n| vld1q_u32(right.add(n))),
            )
        };
        match M::PAIR {
            1 => multiply_add(&mut sums, left, right),
            2 => {
                multiply_add(&mut sums, vshlq_n_u32::<16>(left), right.map(|b| vshlq_n_u32::<16>(b)));
                let high = vdupq_n_u32(0xffff_0000);
                multiply_add(&mut sums, vandq_u32(left, high), right.map(|b| vandq_u32(b, high)));
            }
            _ => {
                let sign = vreinterpretq_u32_u8(vdupq_n_u8(OFFSET as u8));
                dot_bytes(&mut sums, left, right.map(|b| veorq_u32(b, sign)));
                total = dot::<0>(total, left, ones);
            }
        }
    }
    if M::PAIR == 4 {
        let total = vmulq_n_u32(total, OFFSET.cast_unsigned());
        let totals = [
            vdupq_laneq_u32::<0>(total),
            vdupq_laneq_u32::<1>(total),
            vdupq_laneq_u32::<2>(total),
            vdupq_laneq_u32::<3>(total),
        ];
        for (sums, total) in sums.iter_mut().zip(totals) {
            *sums = sums.map(|sum| vaddq_u32(sum, total));
        }
    }
    for (sums, c) in sums.iter().zip(c.chunks_mut(COLUMNS)).take(here) {
        for (sum, c) in sums.iter().zip(c.as_chunks_mut::<4>().0) {
            // SAFETY: four values are there.
            unsafe { vst1q_u32(c.as_mut_ptr(), *sum) };
        }
    }
}

/// The words of four rows; zero in the rows past the last.
///
/// # Safety
/// `rows` words are readable at `a`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn left(a: *const u32, rows: usize) -> uint32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        if rows == LEFT {
            return vld1q_u32(a);
        }
        let mut words = [0; LEFT];
        for (r, word) in words.iter_mut().enumerate().take(rows) {
            *word = a.add(r).read();
        }
        vld1q_u32(words.as_ptr())
    }
}

/// The same for each of the four rows, whose lane must be a constant.
macro_rules! each_row {
    ($sums:ident, $right:ident, |$sum:ident, $column:ident| <$($row:literal),*> $op:expr) => {
        $(for ($sum, $column) in $sums[$row].iter_mut().zip($right) {
            const LANE: i32 = $row;
            *$sum = $op;
        })*
    };
}

#[inline]
#[target_feature(enable = "neon")]
fn multiply_add(sums: &mut [[uint32x4_t; ACROSS]; LEFT], left: uint32x4_t, right: [uint32x4_t; ACROSS]) {
    let (left, value) = (vreinterpretq_f32_u32(left), vreinterpretq_f32_u32);
    each_row!(sums, right, |sum, column| <0, 1, 2, 3> {
        vreinterpretq_u32_f32(vfmaq_laneq_f32::<LANE>(value(*sum), value(column), left))
    });
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_bytes(sums: &mut [[uint32x4_t; ACROSS]; LEFT], left: uint32x4_t, right: [uint32x4_t; ACROSS]) {
    each_row!(sums, right, |sum, column| <0, 1, 2, 3> dot::<LANE>(*sum, column, left));
}

/// To each lane of `sum` the dot product of four signed bytes of `a` with the four in lane `LANE` of `b`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const LANE: i32>(mut sum: uint32x4_t, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
    // SAFETY: the instruction works on registers alone, and the function demands the feature that it belongs to.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
            sum = inlateout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

pub(super) fn spin<E: Compute>(rounds: usize) -> usize {
    #[target_feature(enable = "neon")]
    fn wide(rounds: usize) -> usize {
        let one = vdupq_n_f32(std::hint::black_box(1.0));
        let mut sums = [vdupq_n_f32(0.0); 16];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = vfmaq_f32(*sum, one, one);
            }
        }
        std::hint::black_box(sums);
        rounds * sums.len() * 4 * 2
    }
    // SAFETY: this table is only in use on processors with these instructions.
    unsafe { wide(rounds) }
}
