//! Sharing out mutable slices among jobs: each gets chunks or rows of its own.

use std::marker::PhantomData;
use std::ops::Range;

use super::run;

/// Calls `job(i, chunk)` for every chunk of `len` values (the last may be shorter), on all threads.
///
/// # Panics
/// When `len` is 0 and there are values.
pub fn for_each_chunk<T: Send>(values: &mut [T], len: usize, job: impl Fn(usize, &mut [T]) + Sync) {
    let total = values.len();
    let values = Shared::new(values);
    run(total.div_ceil(len.max(1)), &|i| {
        assert!(len > 0, "chunks of no values");
        // SAFETY: each job has its own i, and chunks of different i do not overlap.
        job(i, unsafe { values.range(i * len..total.min((i + 1) * len)) });
    });
}

/// Calls `job(range, parts)` for ranges of `per_job` of the leading `rows` rows, on all threads; `parts` are the
/// range's rows of `of`: one [`Rows`], an `Option` of one, or a tuple of such.
///
/// # Panics
/// When `of` has fewer rows.
#[allow(clippy::needless_pass_by_value)] // the buffers stay borrowed until the jobs are done
pub fn for_each_rows<S: RowSplit>(
    rows: usize,
    per_job: usize,
    of: S,
    job: impl Fn(Range<usize>, S::Part) + Sync,
) {
    assert!(of.hold(rows), "buffers shorter than {rows} rows");
    let per_job = per_job.max(1);
    run(rows.div_ceil(per_job), &|i| {
        let range = i * per_job..rows.min((i + 1) * per_job);
        // SAFETY: the ranges of different jobs do not overlap and end at `rows`, which `of` holds.
        job(range.clone(), unsafe { of.part(range) });
    });
}

/// The rows of a mutable slice, to be shared out by [`for_each_rows`].
pub struct Rows<'a, T> {
    values: Shared<'a, T>,
    width: usize,
}

impl<'a, T: Send> Rows<'a, T> {
    /// Rows of `width` values.
    pub fn new(values: &'a mut [T], width: usize) -> Self {
        Self { values: Shared::new(values), width }
    }
}

/// What [`for_each_rows`] can share out.
pub trait RowSplit: Sync {
    /// The rows of one job.
    type Part;
    /// Whether there are that many rows.
    fn hold(&self, rows: usize) -> bool;
    /// The rows of a range.
    ///
    /// # Safety
    /// No row may be handed out twice, and `hold(rows.end)` must be true.
    unsafe fn part(&self, rows: Range<usize>) -> Self::Part;
}

impl<'a, T: Send> RowSplit for Rows<'a, T> {
    type Part = &'a mut [T];
    fn hold(&self, rows: usize) -> bool {
        rows * self.width <= self.values.len
    }
    unsafe fn part(&self, rows: Range<usize>) -> &'a mut [T] {
        // SAFETY: by the caller's promise.
        unsafe { self.values.range(rows.start * self.width..rows.end * self.width) }
    }
}

impl<S: RowSplit> RowSplit for Option<S> {
    type Part = Option<S::Part>;
    fn hold(&self, rows: usize) -> bool {
        self.as_ref().is_none_or(|s| s.hold(rows))
    }
    unsafe fn part(&self, rows: Range<usize>) -> Self::Part {
        // SAFETY: by the caller's promise.
        self.as_ref().map(|s| unsafe { s.part(rows) })
    }
}

macro_rules! split_tuple {
    ($($name:ident $index:tt),+) => {
        impl<$($name: RowSplit),+> RowSplit for ($($name,)+) {
            type Part = ($($name::Part,)+);
            fn hold(&self, rows: usize) -> bool {
                $(self.$index.hold(rows))&&+
            }
            unsafe fn part(&self, rows: Range<usize>) -> Self::Part {
                // SAFETY: by the caller's promise.
                unsafe { ($(self.$index.part(rows.clone()),)+) }
            }
        }
    };
}
split_tuple!(A 0, B 1);
split_tuple!(A 0, B 1, C 2);
split_tuple!(A 0, B 1, C 2, D 3);

/// A mutable slice that several jobs write to, each its own ranges.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut` parts of a slice of `T: Send`, disjoint ones by the contract of `range`.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T: Send> Shared<'a, T> {
    pub(crate) fn new(values: &'a mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), life: PhantomData }
    }

    /// # Safety
    /// No two ranges in use at the same time may overlap.
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a range outside of the shared slice");
        // SAFETY: inside of the slice, which is borrowed for 'a; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_rows_cover_everything_once() {
        let mut values = vec![0u32; 103];
        for_each_chunk(&mut values, 10, |i, chunk| chunk.iter_mut().for_each(|v| *v += 1 + i as u32));
        assert!(values.iter().enumerate().all(|(at, &v)| v == 1 + (at / 10) as u32));

        let (mut wide, mut narrow) = (vec![0usize; 21 * 4], vec![0usize; 25]);
        let of = (Rows::new(&mut wide, 4), Rows::new(&mut narrow, 1), None::<Rows<'_, u8>>);
        for_each_rows(21, 5, of, |range, (wide, narrow, none)| {
            assert!(none.is_none());
            for (i, t) in range.enumerate() {
                wide[i * 4..][..4].fill(t + 1);
                narrow[i] = t + 1;
            }
        });
        assert!(wide.iter().enumerate().all(|(at, &v)| v == at / 4 + 1));
        assert!(narrow[..21].iter().enumerate().all(|(at, &v)| v == at + 1) && narrow[21..] == [0; 4]);
    }

    #[test]
    #[should_panic(expected = "buffers shorter than 3 rows")]
    fn short_buffers_are_refused() {
        for_each_rows(3, 1, Rows::new(&mut [0u8; 5], 2), |_, _| {});
    }
}
