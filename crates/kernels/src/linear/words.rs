//! Memory for packed operands: 32-bit words that begin on a cache line.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

pub(crate) const LINE: usize = 16;

// SAFETY: sixteen u32 without padding; all bit patterns are valid.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// An aligned vector of words.
#[derive(Debug, Clone, Default)]
pub(crate) struct Words {
    lines: Vec<Line>,
    len: usize,
}

impl Words {
    pub(crate) fn zeros(len: usize) -> Self {
        // Zeroed by the system, page by page as they are touched.
        Self { lines: bytemuck::zeroed_vec(len.div_ceil(LINE)), len }
    }
}

impl Deref for Words {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// Asks for words to be brought to the second-level cache.
pub(crate) fn prefetch(words: &[u32]) {
    #[cfg(target_arch = "x86_64")]
    for line in words.chunks(LINE) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 has the instruction, and it may be given any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = words;
}

/// Words of unspecified content, given back for the next user when dropped.
pub(crate) struct Scratch(Words);

static FREE: Mutex<Vec<Words>> = Mutex::new(Vec::new());

impl Scratch {
    /// The smallest free piece that is long enough, or else the longest, made longer.
    pub(crate) fn take(len: usize) -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |words: &Words| words.lines.len() * LINE >= len;
        let choice = free.iter().enumerate().min_by_key(|(_, words)| {
            let size = words.lines.len();
            if fits(words) { (false, size) } else { (true, usize::MAX - size) }
        });
        let mut words = choice.map(|(at, _)| at).map(|at| free.swap_remove(at)).unwrap_or_default();
        drop(free);
        if !fits(&words) {
            words = Words::zeros(len);
        }
        words.len = len;
        Self(words)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.0));
    }
}

impl Deref for Scratch {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.0
    }
}
