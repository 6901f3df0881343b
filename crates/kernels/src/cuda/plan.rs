//! The attention of a pass as lists of work, made on the host from the tree.
//!
//! A row stands at a *place*: the number of tokens before it in its chain of segments. The keys that a segment looks
//! at are its ancestors' and its own, one after the other, so the key of place `j` is the `j`-th of them, and causal
//! masks and windows compare places. Where these keys lie is a list of ranges. The other way round, the rows that
//! look at a segment's keys are its own and its descendants', again a list of ranges.

use crate::{Segment, TreeLayout};

/// Tokens of a query item, at most.
pub(super) const QUERY_TILE: usize = 32;
/// Keys of a key item, at most.
pub(super) const KEY_TILE: usize = 64;
/// Blocks of `attention_sum` for an item and key/value head.
pub(super) const SUM_SLICES: usize = 32;
/// Words of an item: 8 of its own, and the first ranges of its list, zeros where there are less.
pub(super) const ITEM_WORDS: usize = 8 + 2 * ITEM_RANGES;
/// Ranges that stand in the item itself, so that short lists need no further look.
const ITEM_RANGES: usize = 4;
/// An index that stands for nothing.
const NONE: u32 = u32::MAX;
/// Pieces that all rows looking at keys are cut into, more or less; a tile of keys seen by few rows is not cut.
const CHUNKS: usize = 64;
/// Rows that a chunk is a multiple of.
const CHUNK_ROWS: usize = 64;

/// The kernels that need dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    /// `attention_forward`.
    Forward,
    /// `attention_backward_query`.
    BackwardQuery,
    /// `attention_backward_key`.
    BackwardKey,
}

/// Dynamic shared memory of a block, in bytes.
pub(super) fn shared_bytes(kernel: Kernel, head_dim: usize) -> usize {
    // Rows are padded by 16 bytes, so that eight of them lie in different banks.
    let tile = KEY_TILE * (2 * head_dim + 16);
    match kernel {
        // Keys and values do not fit into registers.
        Kernel::BackwardKey if head_dim > 96 => 6 * tile,
        Kernel::Forward | Kernel::BackwardQuery | Kernel::BackwardKey => 4 * tile,
    }
}

/// Lists of a pass, each as long as a bucket; what is idle is skipped by the kernels.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Items of [`ITEM_WORDS`]: first query row, tokens, place of the first, keys in all, first of its
    /// `key_ranges`, how many; those with the most keys first. Rows without a segment are items without keys.
    pub(super) queries: Vec<u32>,
    /// Pairs: first key/value row, rows.
    pub(super) key_ranges: Vec<u32>,
    /// Items of [`ITEM_WORDS`] for the backward pass: first row of the keys, keys, place of the first, first of its
    /// `row_ranges`, how many, query rows in all, how many of them come before the keys, and which part of the
    /// scratch takes the sums, or `u32::MAX` when they are the gradient itself; those with the most rows first.
    /// Empty when some keys lie elsewhere than their queries.
    pub(super) keys: Vec<u32>,
    /// Pairs: first query row, rows.
    pub(super) row_ranges: Vec<u32>,
    /// The place of each row.
    pub(super) places: Vec<u32>,
    /// Items of [`ITEM_WORDS`]: first row of the keys, keys, first part, parts to be added in order.
    pub(super) sums: Vec<u32>,
    /// Parts of the scratch, each for the keys and values of [`KEY_TILE`] rows.
    pub(super) parts: usize,
    /// Keys that a row looks at under a causal mask, on average.
    pub(super) mean_keys: usize,
    /// The key/value row of each query row; `u32::MAX` for rows without a segment.
    pub(super) kv_rows: Vec<u32>,
}

impl Plan {
    /// Makes the lists for `rows` rows, of which the first belong to `layout`. What is idle in a list costs next to
    /// nothing, while few lengths let recorded passes be replayed.
    pub(super) fn fill(&mut self, layout: &TreeLayout, rows: usize) {
        let bucket = |len: usize| len.next_multiple_of((len.next_power_of_two() / 4).max(8));
        let segments = &layout.segments;
        let mut starts = vec![0; segments.len()];
        for (index, segment) in segments.iter().enumerate() {
            starts[index] =
                segment.parent.map_or(0, |parent| starts[parent as usize] + segments[parent as usize].len);
        }
        self.list_rows(layout, &starts, rows);
        self.list_queries(layout, &starts, rows);
        for list in [&mut self.keys, &mut self.row_ranges, &mut self.sums] {
            list.clear();
        }
        self.parts = 0;
        if segments.iter().all(|segment| segment.q_row == Some(segment.kv_row)) {
            self.list_keys(layout, &starts, rows);
        }
        self.parts = bucket(self.parts);
        for (list, words) in [
            (&mut self.queries, ITEM_WORDS),
            (&mut self.key_ranges, 2),
            (&mut self.keys, ITEM_WORDS),
            (&mut self.row_ranges, 2),
            (&mut self.sums, ITEM_WORDS),
        ] {
            list.resize(bucket(list.len() / words) * words, 0);
        }
    }

    fn list_rows(&mut self, layout: &TreeLayout, starts: &[u32], rows: usize) {
        self.places.clear();
        self.kv_rows.clear();
        for (index, segment) in layout.live() {
            self.places.extend(starts[index]..starts[index] + segment.len);
            self.kv_rows.extend(segment.kv_row..segment.kv_row + segment.len);
        }
        let keys: usize = self.places.iter().map(|&place| place as usize + 1).sum();
        self.mean_keys = keys / self.places.len().max(1);
        self.places.resize(rows, 0);
        self.kv_rows.resize(rows, NONE);
    }

    fn list_queries(&mut self, layout: &TreeLayout, starts: &[u32], rows: usize) {
        self.key_ranges.clear();
        let mut items = Vec::new();
        for (index, segment) in layout.live() {
            let (start, total) = (starts[index], starts[index] + segment.len);
            let first = self.key_ranges.len() / 2;
            for ancestor in layout.ancestors(index) {
                push_range(&mut self.key_ranges, first, key_range(&layout.segments[ancestor]));
            }
            push_range(&mut self.key_ranges, first, key_range(segment));
            let count = (self.key_ranges.len() / 2 - first) as u32;
            let row = segment.q_row.unwrap_or(0);
            for from in (0..segment.len).step_by(QUERY_TILE) {
                let tokens = (segment.len - from).min(QUERY_TILE as u32);
                let words = [row + from, tokens, start + from, total, first as u32, count, 0, 0];
                items.push(item(words, &self.key_ranges[2 * first..]));
            }
        }
        items.sort_by_key(|item| std::cmp::Reverse(item[2] + item[1]));
        for from in (layout.rows()..rows).step_by(QUERY_TILE) {
            items.push(item([from as u32, (rows - from).min(QUERY_TILE) as u32, 0, 0, 0, 0, 0, 0], &[]));
        }
        self.queries.clear();
        self.queries.extend(items.as_flattened());
    }

    fn list_keys(&mut self, layout: &TreeLayout, starts: &[u32], rows: usize) {
        let segments = &layout.segments;
        let mut lookers: Vec<Vec<u32>> = vec![Vec::new(); segments.len()];
        for (index, segment) in segments.iter().enumerate() {
            let mut next = Some(index as u32);
            while let Some(at) = next {
                push_range(&mut lookers[at as usize], 0, key_range(segment));
                next = segments[at as usize].parent;
            }
        }
        let count = |ranges: &[u32]| ranges.chunks_exact(2).map(|range| range[1]).sum::<u32>();
        let mut work = 0;
        for (segment, ranges) in segments.iter().zip(&lookers) {
            let total = count(ranges) as usize;
            // Under a causal mask the rows before the keys do not count.
            work += (0..segment.len as usize).step_by(KEY_TILE).map(|from| total - from).sum::<usize>();
        }
        let chunk = (work / CHUNKS).next_multiple_of(CHUNK_ROWS).max(CHUNK_ROWS) as u32;
        let (mut items, mut sums) = (Vec::new(), Vec::new());
        for (index, segment) in segments.iter().enumerate() {
            let total = count(&lookers[index]);
            for from in (0..segment.len).step_by(KEY_TILE) {
                let keys = (segment.len - from).min(KEY_TILE as u32);
                let (row, place) = (segment.kv_row + from, starts[index] + from);
                // Few rows would not be worth the sum of their parts.
                let chunks =
                    if total - from <= 2 * CHUNK_ROWS as u32 { 1 } else { (total - from).div_ceil(chunk) };
                for i in 0..chunks {
                    let begin = if i == 0 { 0 } else { from + i * chunk };
                    let end = if i + 1 == chunks { total } else { from + (i + 1) * chunk };
                    let first = self.row_ranges.len() / 2;
                    push_slice(&mut self.row_ranges, first, &lookers[index], begin, end);
                    let ranges = (self.row_ranges.len() / 2 - first) as u32;
                    let (skip, part) = (
                        if i == 0 { from } else { 0 },
                        if chunks > 1 { self.parts as u32 + i } else { NONE },
                    );
                    let words = [row, keys, place, first as u32, ranges, end - begin, skip, part];
                    items.push(item(words, &self.row_ranges[2 * first..]));
                }
                if chunks > 1 {
                    sums.push(item([row, keys, self.parts as u32, chunks, 0, 0, 0, 0], &[]));
                    self.parts += chunks as usize;
                }
            }
        }
        items.sort_by_key(|item| std::cmp::Reverse(item[5] - item[6]));
        for from in (layout.rows()..rows).step_by(KEY_TILE) {
            items.push(item([from as u32, (rows - from).min(KEY_TILE) as u32, 0, 0, 0, 0, 0, NONE], &[]));
        }
        self.keys.extend(items.as_flattened());
        self.sums.extend(sums.as_flattened());
    }
}

/// An item of its words and its list of ranges.
fn item(words: [u32; 8], ranges: &[u32]) -> [u32; ITEM_WORDS] {
    let mut item = [0; ITEM_WORDS];
    item[..8].copy_from_slice(&words);
    let inner = ranges.len().min(2 * ITEM_RANGES);
    item[8..8 + inner].copy_from_slice(&ranges[..inner]);
    item
}

fn key_range(segment: &Segment) -> [u32; 2] {
    [segment.kv_row, segment.len]
}

/// Adds a range to the list that begins with pair `first`, to the last one where it goes on from there.
fn push_range(list: &mut Vec<u32>, first: usize, [row, len]: [u32; 2]) {
    let end = list.len();
    if len == 0 {
        return;
    }
    if end > 2 * first && list[end - 2] + list[end - 1] == row {
        list[end - 1] += len;
    } else {
        list.extend([row, len]);
    }
}

/// Adds the rows `begin..end` of a list of ranges.
fn push_slice(list: &mut Vec<u32>, first: usize, ranges: &[u32], begin: u32, end: u32) {
    let mut at = 0;
    for range in ranges.chunks_exact(2) {
        let (from, to) = (begin.max(at), end.min(at + range[1]));
        if from < to {
            push_range(list, first, [range[0] + from - at, to - from]);
        }
        at += range[1];
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// A tree of `(parent, len, cached)`; parents are taken modulo what is there.
    fn tree(parts: &[(usize, u32, bool)]) -> TreeLayout {
        let (mut segments, mut q_row) = (Vec::<Segment>::new(), 0);
        let mut kv_row = 0;
        for (index, &(parent, len, cached)) in parts.iter().enumerate() {
            let parent = (parent % (index + 1)).checked_sub(1).map(|parent| parent as u32);
            segments.push(Segment { parent, kv_row, q_row: (!cached).then_some(q_row), len });
            kv_row += len;
            q_row += if cached { 0 } else { len };
        }
        TreeLayout { segments }
    }

    fn items(list: &[u32]) -> Vec<[u32; ITEM_WORDS]> {
        list.chunks_exact(ITEM_WORDS).map(|item| std::array::from_fn(|i| item[i])).collect()
    }

    fn rows_of(ranges: &[u32], first: u32, count: u32) -> Vec<u32> {
        let ranges = &ranges[2 * first as usize..2 * (first + count) as usize];
        ranges.chunks_exact(2).flat_map(|range| range[0]..range[0] + range[1]).collect()
    }

    /// What an item repeats of its list.
    fn inner(ranges: &[u32], first: u32, count: u32) -> [u32; 2 * ITEM_RANGES] {
        let list = &ranges[2 * first as usize..2 * (first + count) as usize];
        std::array::from_fn(|i| list.get(i).copied().unwrap_or(0))
    }

    /// All `(row, key row)` that a causal or full mask lets through, by walking up from each row.
    fn seen(layout: &TreeLayout, causal: bool) -> BTreeSet<(u32, u32)> {
        let mut pairs = BTreeSet::new();
        for (index, segment) in layout.live() {
            for i in 0..segment.len {
                let row = segment.q_row.unwrap() + i;
                let own = if causal { i + 1 } else { segment.len };
                pairs.extend((0..own).map(|j| (row, segment.kv_row + j)));
                for ancestor in layout.ancestors(index) {
                    let Segment { kv_row, len, .. } = layout.segments[ancestor];
                    pairs.extend((kv_row..kv_row + len).map(|key| (row, key)));
                }
            }
        }
        pairs
    }

    fn parts() -> impl Strategy<Value = Vec<(usize, u32, bool)>> {
        prop::collection::vec((0usize..9, prop_oneof![1u32..40, 60u32..200], any::<bool>()), 1..9)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn query_items_see_what_the_tree_says(parts in parts(), causal in any::<bool>(), idle in 0usize..70) {
            let layout = tree(&parts);
            let rows = layout.rows() + idle;
            let mut plan = Plan::default();
            plan.fill(&layout, rows);
            let (mut covered, mut pairs) = (Vec::new(), Vec::new());
            for item in items(&plan.queries) {
                let [row, tokens, place, total, first, count, ..] = item;
                prop_assert_eq!(&item[8..], &inner(&plan.key_ranges, first, count)[..]);
                prop_assert!(tokens as usize <= QUERY_TILE);
                let keys = rows_of(&plan.key_ranges, first, count);
                prop_assert_eq!(keys.len(), total as usize);
                for i in 0..tokens {
                    covered.push(row + i);
                    if total > 0 {
                        prop_assert_eq!(plan.places[(row + i) as usize], place + i);
                        let end = if causal { place + i + 1 } else { total };
                        pairs.extend(keys[..end as usize].iter().map(|&key| (row + i, key)));
                    }
                }
            }
            covered.sort_unstable();
            prop_assert_eq!(covered, (0..rows as u32).collect::<Vec<_>>(), "each row is in one item");
            let set: BTreeSet<_> = pairs.iter().copied().collect();
            prop_assert_eq!(set.len(), pairs.len(), "a key is seen twice");
            prop_assert_eq!(set, seen(&layout, causal));
        }

        #[test]
        fn key_items_are_seen_by_what_the_tree_says(parts in parts(), causal in any::<bool>(), idle in 0usize..140) {
            let live: Vec<_> = parts.iter().map(|&(parent, len, _)| (parent, len, false)).collect();
            let layout = tree(&live);
            let rows = layout.rows() + idle;
            let mut plan = Plan::default();
            plan.fill(&layout, rows);
            let (mut pairs, mut written) = (Vec::new(), Vec::new());
            let mut parts = BTreeMap::new();
            for item in items(&plan.keys) {
                let [row, keys, place, first, count, total, skip, part, ..] = item;
                prop_assert_eq!(&item[8..], &inner(&plan.row_ranges, first, count)[..]);
                prop_assert!(keys as usize <= KEY_TILE);
                let lookers = rows_of(&plan.row_ranges, first, count);
                prop_assert_eq!(lookers.len(), total as usize);
                let lookers = &lookers[if causal { skip as usize } else { 0 }..];
                for j in 0..keys {
                    let mask = |looker: &&u32| !causal || plan.places[**looker as usize] >= place + j;
                    pairs.extend(lookers.iter().filter(mask).map(|&looker| (looker, row + j)));
                }
                if keys > 0 && part == u32::MAX {
                    written.extend(row..row + keys);
                } else if keys > 0 {
                    prop_assert!(parts.insert(part, (row, keys)).is_none(), "part {} is taken twice", part);
                }
            }
            for [row, keys, first, count, ..] in items(&plan.sums) {
                written.extend(row..row + keys);
                for part in first..first + count {
                    prop_assert!((part as usize) < plan.parts);
                    prop_assert_eq!(parts.remove(&part), Some((row, keys)));
                }
            }
            prop_assert!(parts.is_empty(), "parts that nobody adds up: {:?}", parts);
            written.sort_unstable();
            prop_assert_eq!(written, (0..rows as u32).collect::<Vec<_>>(), "each row is written once");
            let set: BTreeSet<_> = pairs.iter().copied().collect();
            prop_assert_eq!(set.len(), pairs.len(), "a pair is counted twice");
            prop_assert_eq!(set, seen(&layout, causal));
        }
    }

    #[test]
    fn a_shared_root_is_cut_and_its_children_are_not() {
        let parts: Vec<_> =
            std::iter::once((0, 46, false)).chain(std::iter::repeat_n((1, 24, false), 256)).collect();
        let mut plan = Plan::default();
        plan.fill(&tree(&parts), 46 + 256 * 24);
        let cut = items(&plan.sums).iter().filter(|item| item[1] > 0).count();
        assert_eq!(cut, 1, "only the root is seen by many rows");
        assert!(plan.parts >= 16, "{} parts", plan.parts);
    }

    #[test]
    fn cached_segments_have_no_backward_pass() {
        let mut plan = Plan::default();
        plan.fill(&tree(&[(0, 30, true), (1, 5, false)]), 5);
        assert!(plan.keys.is_empty() && plan.row_ranges.is_empty() && plan.sums.is_empty());
        assert_eq!(plan.kv_rows, [30, 31, 32, 33, 34]);
    }

    #[test]
    fn the_device_knows_the_same_sizes() {
        let source = include_str!("source/attention.cu");
        let sum_keys = KEY_TILE / SUM_SLICES;
        for (name, value) in [
            ("QUERY_TILE", QUERY_TILE),
            ("KEY_TILE", KEY_TILE),
            ("ITEM_WORDS", ITEM_WORDS),
            ("SUM_KEYS", sum_keys),
            ("ITEM_RANGES", ITEM_RANGES),
        ] {
            assert!(source.contains(&format!("constexpr u32 {name} = {value};")), "{name}");
        }
    }
}
