//! Tiles of AMX: a panel of up to 32 rows by 32 columns in four registers of 16 by 16, sixteen words of `k` at a time.
//!
//! `tdpbf16ps` adds, for every row and column, the products of the two bf16 in a word, in f32; it takes denormals as zero,
//! as `vdpbf16ps` does. `tdpbsud` adds those of four bytes, signed times unsigned, exactly. Registers 0 and 1 hold the
//! two halves of the columns of C's first sixteen rows, 2 and 3 those of its other rows, 4 and 5 rows of A, 6 and 7
//! columns of B.

use std::arch::asm;
use std::cell::Cell;

use super::kernel::{COLUMNS, MOST_ROWS, Multiply, Segment, TILE_WORDS};

/// Most rows of a register.
const HALF: usize = 16;
/// Bytes from one row of C to the next.
const C_STRIDE: usize = 4 * COLUMNS;

/// What `ldtilecfg` reads (Intel's manual, volume 1, 18.3): the shape of each register.
#[repr(C, align(64))]
#[derive(Default)]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    /// Rows of C that this thread's registers are set to.
    static ROWS_SET: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn tile<M: Multiply>(
    c: &mut [M::Sum],
    add: bool,
    segments: &[Segment<'_>],
    rows: usize,
    width: usize,
) {
    const { assert!(size_of::<M::Sum>() == size_of::<f32>() && MOST_ROWS == 2 * HALF) };
    assert!((1..=MOST_ROWS).contains(&rows) && (width == HALF || width == COLUMNS));
    assert!(c.len() >= rows * COLUMNS);
    let read = |s: &Segment<'_>| (rows - 1) * s.stride + s.words.next_multiple_of(TILE_WORDS);
    assert!(segments.iter().all(|s| (s.words == 0 || s.a.len() >= read(s)) && s.b.len() >= s.words * width));
    let wide = width == COLUMNS;
    let c = c.as_mut_ptr().cast::<f32>();
    // SAFETY: this table is only in use on processors with these instructions, in a process that may use them; all
    // operands are as long as the tile needs, as just checked.
    unsafe {
        set_rows(rows);
        load(c, add, rows, wide);
        for segment in segments {
            let (stride, chunks) = (segment.stride, segment.words / TILE_WORDS);
            let add = |from| if M::PAIR == 4 { sum_bytes(from, rows) } else { sum_pairs(from, rows) };
            if chunks > 0 {
                add(Operands { a: segment.a.as_ptr(), stride, b: segment.b.as_ptr(), width, chunks });
            }
            let whole = chunks * TILE_WORDS;
            if whole < segment.words {
                // What A has behind these words meets zeros.
                let mut rest = [0; TILE_WORDS * COLUMNS];
                let b = &segment.b[whole * width..segment.words * width];
                rest[..b.len()].copy_from_slice(b);
                add(Operands {
                    a: segment.a.as_ptr().add(whole),
                    stride,
                    b: rest.as_ptr(),
                    width,
                    chunks: 1,
                });
            }
        }
        store(c, rows, wide);
    }
}

/// Sets the registers' shapes for so many rows of C.
///
/// # Safety
/// The processor has tiles, and the process may use them.
unsafe fn set_rows(rows: usize) {
    if ROWS_SET.get() == rows {
        return;
    }
    let mut config = Config { palette: 1, ..Config::default() };
    let [low, high] = [rows.min(HALF), rows.saturating_sub(HALF)];
    for (register, rows) in [low, low, high, high, low, high, TILE_WORDS, TILE_WORDS].into_iter().enumerate()
    {
        config.rows[register] = rows as u8;
        config.row_bytes[register] = if rows > 0 { 64 } else { 0 };
    }
    // SAFETY: the caller's promise; no register has more than 16 rows of 64 bytes.
    unsafe { configure(&config) };
    ROWS_SET.set(rows);
}

/// Empties the registers and sets their shapes.
///
/// # Safety
/// As for [`set_rows`]; the processor accepts the configuration.
unsafe fn configure(config: &Config) {
    // SAFETY: 64 bytes are read.
    unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, readonly)) };
}

macro_rules! each_of_c {
    ($c:expr, $rows:expr, $wide:expr, $move:ident) => {{
        $move!($c, "0", "");
        if $wide {
            $move!($c, "1", " + 64");
        }
        if $rows > HALF {
            $move!($c.add(HALF * COLUMNS), "2", "");
            if $wide {
                $move!($c.add(HALF * COLUMNS), "3", " + 64");
            }
        }
    }};
}

/// Fills C's registers from memory, or with zeros.
///
/// # Safety
/// As for [`set_rows`], which was called with these rows; `c` holds them.
unsafe fn load(c: *mut f32, add: bool, rows: usize, wide: bool) {
    macro_rules! read {
        ($c:expr, $register:literal, $half:literal) => {
            asm!(
                concat!("tileloadd tmm", $register, ", [{c} + {s}*1", $half, "]"),
                c = in(reg) $c, s = in(reg) C_STRIDE, options(nostack, readonly),
            )
        };
    }
    macro_rules! zero {
        ($c:expr, $register:literal, $half:literal) => {
            asm!(concat!("tilezero tmm", $register), options(nostack, nomem))
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        if add {
            each_of_c!(c, rows, wide, read);
        } else {
            each_of_c!(c, rows, wide, zero);
        }
    }
}

/// Writes C's registers.
///
/// # Safety
/// As for [`load`].
unsafe fn store(c: *mut f32, rows: usize, wide: bool) {
    macro_rules! write {
        ($c:expr, $register:literal, $half:literal) => {
            asm!(
                concat!("tilestored [{c} + {s}*1", $half, "], tmm", $register),
                c = in(reg) $c, s = in(reg) C_STRIDE, options(nostack),
            )
        };
    }
    // SAFETY: the caller's promise.
    unsafe { each_of_c!(c, rows, wide, write) };
}

/// A loop over chunks of `k` of these lines.
macro_rules! chunks {
    ($from:ident, $($line:expr),*) => {
        asm!(
            "2:",
            $($line,)*
            "add {a}, 64",
            "add {high}, 64",
            "add {b}, {b_chunk}",
            "dec {n}",
            "jnz 2b",
            a = inout(reg) $from.a => _,
            high = inout(reg) $from.a.wrapping_add(HALF * $from.stride) => _,
            b = inout(reg) $from.b => _,
            n = inout(reg) $from.chunks => _,
            a_row = in(reg) 4 * $from.stride,
            b_row = in(reg) 4 * $from.width,
            b_chunk = in(reg) 4 * TILE_WORDS * $from.width,
            options(nostack, readonly),
        )
    };
}

/// Chunks of [`TILE_WORDS`] words of `k` of one panel of A and one of B.
#[derive(Clone, Copy)]
struct Operands {
    a: *const u32,
    stride: usize,
    b: *const u32,
    width: usize,
    /// At least one.
    chunks: usize,
}

macro_rules! sum {
    ($(#[$doc:meta])* $name:ident, $dot:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// As for [`load`]; `a` and `b` hold the chunks.
        unsafe fn $name(from: Operands, rows: usize) {
            // SAFETY: the caller's promise: sixteen words of each row of A and sixteen rows of B are read at a time.
            unsafe {
                match (rows > HALF, from.width == COLUMNS) {
                    (false, false) => chunks!(
                        from,
                        "tileloadd tmm6, [{b} + {b_row}*1]",
                        "tileloadd tmm4, [{a} + {a_row}*1]",
                        concat!($dot, " tmm0, tmm4, tmm6")
                    ),
                    (false, true) => chunks!(
                        from,
                        "tileloadd tmm6, [{b} + {b_row}*1]",
                        "tileloadd tmm4, [{a} + {a_row}*1]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{b} + {b_row}*1 + 64]",
                        concat!($dot, " tmm1, tmm4, tmm7")
                    ),
                    (true, false) => chunks!(
                        from,
                        "tileloadd tmm6, [{b} + {b_row}*1]",
                        "tileloadd tmm4, [{a} + {a_row}*1]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm5, [{high} + {a_row}*1]",
                        concat!($dot, " tmm2, tmm5, tmm6")
                    ),
                    (true, true) => chunks!(
                        from,
                        "tileloadd tmm6, [{b} + {b_row}*1]",
                        "tileloadd tmm4, [{a} + {a_row}*1]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{b} + {b_row}*1 + 64]",
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        "tileloadd tmm5, [{high} + {a_row}*1]",
                        concat!($dot, " tmm2, tmm5, tmm6"),
                        concat!($dot, " tmm3, tmm5, tmm7")
                    ),
                }
            }
        }
    };
}

sum! {
    /// Adds the products of words of two bf16.
    sum_pairs, "tdpbf16ps"
}
sum! {
    /// Adds the products of words of four bytes, those of A signed, those of B not.
    sum_bytes, "tdpbsud"
}

/// See [`super::kernel::Kernels::spin`].
pub(super) fn spin(rounds: usize) -> usize {
    const ONES: u32 = 0x3f80_3f80;
    let (ones, rounds) = (std::hint::black_box([[ONES; TILE_WORDS]; HALF]), rounds.max(1));
    // SAFETY: this table is only in use where the process may use tiles; the operands are one register of ones.
    unsafe {
        set_rows(MOST_ROWS);
        asm!(
            "tileloadd tmm4, [{ones} + {row}*1]",
            "tileloadd tmm6, [{ones} + {row}*1]",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm4, tmm6",
            "tdpbf16ps tmm3, tmm4, tmm6",
            "dec {n}",
            "jnz 2b",
            ones = in(reg) ones.as_ptr(), row = in(reg) 4 * TILE_WORDS, n = inout(reg) rounds => _,
            options(nostack, readonly),
        );
    }
    rounds * 4 * HALF * HALF * TILE_WORDS * 2 * 2
}
