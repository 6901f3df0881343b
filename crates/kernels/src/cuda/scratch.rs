//! Memory that ops use while they run. There is one stream, so one of each kind serves all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::device::{Device, Memory};

/// What it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A matrix of few bits, expanded.
    Expanded,
    /// Logits, then their gradients; after them, what gates leave to be added up.
    Logits,
    /// The log-sum-exp of each row of logits.
    LogSums,
    /// `sum d_out * out` of each row and head.
    Delta,
    /// The parts of keys' and values' gradients.
    Parts,
    /// Partial sums of squares.
    Squares,
    /// Parts of the sums of columns.
    ColumnSums,
}

const KINDS: usize = 7;

/// All scratch of a device.
#[derive(Debug)]
pub(super) struct Scratch {
    device: Arc<Device>,
    memory: Mutex<[Option<Memory>; KINDS]>,
    version: AtomicU64,
}

impl Scratch {
    pub(super) fn new(device: &Arc<Device>) -> Self {
        Self { device: device.clone(), memory: Mutex::default(), version: AtomicU64::new(0) }
    }

    /// The address of at least so many bytes.
    pub(super) fn take(&self, kind: Kind, bytes: usize) -> u64 {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut memory[kind as usize];
        match slot {
            Some(memory) if memory.bytes >= bytes => memory.address,
            _ => {
                // The old one first: both might not fit.
                *slot = None;
                self.version.fetch_add(1, Ordering::Relaxed);
                slot.insert(Memory::new(&self.device, bytes.next_multiple_of(1 << 20))).address
            }
        }
    }

    /// Copies what `take` gave back to the host.
    pub(super) fn download<T: bytemuck::Pod>(&self, kind: Kind, out: &mut [T]) {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = &memory[kind as usize] {
            memory.download(out, 0);
        }
    }

    /// Changes whenever an address may have changed.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }
}
