//! A pass on the device: its words lie at addresses that depend on its sizes alone, so that recorded ops can be
//! replayed for other passes of the same sizes.

use std::sync::Arc;

use super::device::{Device, Memory};
use super::plan::{ITEM_WORDS, Plan};
use crate::PassSpec;

/// Rounds a size up: by a sixteenth at most, so that few sizes are met, and to whole tiles where that costs little.
pub(super) fn bucket(len: usize) -> usize {
    len.next_multiple_of((len.next_power_of_two() / 16).clamp(8, 128))
}

/// Words on the device.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Section {
    pub(super) address: u64,
    /// Entries, whatever their words.
    pub(super) count: usize,
}

/// A pass on the device.
#[derive(Debug)]
pub struct Pass {
    memory: Memory,
    plan: Plan,
    words: Vec<u32>,
    /// Rows that ops touch.
    pub(super) rows: usize,
    /// Chosen rows that ops touch.
    pub(super) chosen: usize,
    pub(super) tokens: Section,
    pub(super) positions: Section,
    pub(super) kv_rows: Section,
    pub(super) places: Section,
    /// The row of each chosen one; `u32::MAX` for idle ones.
    pub(super) chosen_rows: Section,
    /// The place of each row among the chosen ones, or `u32::MAX`.
    pub(super) places_of_chosen: Section,
    pub(super) targets: Section,
    pub(super) weights: Section,
    pub(super) wanted: Section,
    pub(super) queries: Section,
    pub(super) key_ranges: Section,
    pub(super) keys: Section,
    pub(super) row_ranges: Section,
    pub(super) sums: Section,
    /// Parts of the attention's scratch.
    pub(super) parts: usize,
    /// Keys that a row looks at, on average.
    pub(super) mean_keys: usize,
}

impl Pass {
    pub(super) fn new(device: &Arc<Device>, spec: &PassSpec<'_>, reuse: Option<Self>) -> Self {
        spec.layout.assert_valid();
        let (memory, mut plan, mut words) = reuse.map_or_else(
            || (Memory::new(device, 0), Plan::default(), Vec::new()),
            |old| (old.memory, old.plan, old.words),
        );
        let (rows, chosen) = (bucket(spec.tokens.len()), bucket(spec.chosen.len()));
        plan.fill(spec.layout, rows);
        let mut inverse = vec![u32::MAX; rows];
        for (place, &row) in spec.chosen.iter().enumerate() {
            inverse[row as usize] = place as u32;
        }
        words.clear();
        let mut layout = Layout { words: &mut words };
        let tokens = layout.fill(spec.tokens.iter().copied(), rows, 0, 1);
        let positions = layout.fill(spec.positions.iter().copied(), rows, 0, 1);
        let kv_rows = layout.fill(plan.kv_rows.iter().copied(), rows, u32::MAX, 1);
        let places = layout.fill(plan.places.iter().copied(), rows, 0, 1);
        let chosen_rows = layout.fill(spec.chosen.iter().copied(), chosen, u32::MAX, 1);
        let places_of_chosen = layout.fill(inverse, rows, u32::MAX, 1);
        let targets = layout.fill(spec.targets.iter().copied(), chosen, 0, 1);
        let weights = layout.fill(spec.weights.iter().map(|weight| weight.to_bits()), chosen, 0, 1);
        let pairs = spec.wanted.iter().flat_map(|&(index, token)| [index, token]);
        let wanted = layout.fill(pairs, bucket(spec.wanted.len()), u32::MAX, 2);
        let mut list =
            |list: &[u32], width: usize| layout.fill(list.iter().copied(), list.len() / width, 0, width);
        let queries = list(&plan.queries, ITEM_WORDS);
        let key_ranges = list(&plan.key_ranges, 2);
        let keys = list(&plan.keys, ITEM_WORDS);
        let row_ranges = list(&plan.row_ranges, 2);
        let sums = list(&plan.sums, ITEM_WORDS);
        let bytes = 4 * words.len();
        // The old memory may still be read: it is freed when that is done.
        let mut memory =
            if memory.bytes >= bytes { memory } else { Memory::new(device, bytes.next_power_of_two()) };
        memory.upload(0, &words);
        let place = |section: Section| Section { address: memory.address + section.address, ..section };
        Self {
            rows,
            chosen,
            tokens: place(tokens),
            positions: place(positions),
            kv_rows: place(kv_rows),
            places: place(places),
            chosen_rows: place(chosen_rows),
            places_of_chosen: place(places_of_chosen),
            targets: place(targets),
            weights: place(weights),
            wanted: place(wanted),
            queries: place(queries),
            key_ranges: place(key_ranges),
            keys: place(keys),
            row_ranges: place(row_ranges),
            sums: place(sums),
            parts: plan.parts,
            mean_keys: plan.mean_keys,
            memory,
            plan,
            words,
        }
    }

    /// What recorded ops depend on: equal keys, equal launches.
    pub(super) fn key(&self) -> [u64; 10] {
        [
            self.memory.address,
            self.rows as u64,
            self.chosen as u64,
            self.wanted.count as u64,
            self.queries.count as u64,
            self.key_ranges.count as u64,
            self.keys.count as u64,
            self.row_ranges.count as u64,
            self.sums.count as u64,
            self.parts as u64,
        ]
    }
}

/// Sections one after the other, each at a multiple of 16 bytes.
struct Layout<'a> {
    words: &'a mut Vec<u32>,
}

impl Layout<'_> {
    /// Adds `count` entries of `width` words, those not given being `idle`; the address counts from the beginning.
    fn fill(
        &mut self,
        values: impl IntoIterator<Item = u32>,
        count: usize,
        idle: u32,
        width: usize,
    ) -> Section {
        let at = self.words.len();
        self.words.extend(values);
        assert!(self.words.len() - at <= count * width, "more words than the section holds");
        self.words.resize(at + count * width, idle);
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        Section { address: 4 * at as u64, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_few_and_never_much_larger() {
        assert_eq!((bucket(0), bucket(1), bucket(9), bucket(430)), (0, 8, 16, 448));
        for len in 1..5000 {
            assert!(bucket(len) >= len && bucket(len) < len + (len / 8).max(8), "{len}: {}", bucket(len));
            assert!(bucket(len) <= bucket(len + 1) && bucket(bucket(len)) == bucket(len), "{len}");
        }
        let sizes: std::collections::BTreeSet<_> = (1..=4096).map(bucket).collect();
        assert!(sizes.len() < 80, "{}", sizes.len());
    }
}
