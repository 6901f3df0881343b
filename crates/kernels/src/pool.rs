//! The threads that all ops share.
//!
//! A pool of [`threads`] (the caller is one of them) that lives as long as the process. A worker waits for work by
//! spinning for some microseconds, then sleeps. Nobody waits for a worker that has not begun: the caller takes jobs
//! like everybody else and leaves when none is unfinished, so a descheduled worker costs nothing.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

/// Number of threads that take part, the caller's included: the processor's, or `KERNELS_THREADS`. Within a job or
/// [`alone`] it is 1.
///
/// # Panics
/// When `KERNELS_THREADS` is not a number from 1 to 256.
pub fn threads() -> usize {
    if ALONE.get() { 1 } else { configured() }
}

/// Calls `job(0)`, `job(1)`, … `job(jobs - 1)`, each once, on all threads, and returns when all are done.
///
/// Within a job, or while another thread of the program uses the pool, the jobs run on the calling thread. A panic
/// of a job reaches the caller; jobs that nobody has begun by then are dropped.
pub fn run(jobs: usize, job: &(dyn Fn(usize) + Sync)) {
    if jobs > 1 && threads() > 1 {
        let pool = POOL.get_or_init(Pool::start);
        if let Ok(owner) = pool.owner.try_lock() {
            let panic = alone(|| pool.run(jobs, job));
            drop(owner);
            if let Some(panic) = panic {
                resume_unwind(panic);
            }
            return;
        }
    }
    alone(|| (0..jobs).for_each(job));
}

/// Calls `work` with every [`run`] inside it kept on this thread.
pub fn alone<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _restore = Restore(ALONE.replace(true));
    work()
}

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

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

static POOL: OnceLock<&'static Pool> = OnceLock::new();

fn configured() -> usize {
    static CONFIGURED: OnceLock<usize> = OnceLock::new();
    *CONFIGURED.get_or_init(|| match std::env::var("KERNELS_THREADS") {
        Ok(text) => match text.parse() {
            Ok(threads @ 1..=256) => threads,
            _ => panic!("KERNELS_THREADS is `{text}`; expected a number from 1 to 256"),
        },
        Err(_) => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    })
}

/// About 30 microseconds: longer than the gaps between the ops of a step.
const SPINS: u32 = 2000;
/// While set, workers may begin. Below it the number of workers at work, above it the number of the run.
const OPEN: u64 = 1 << 16;
const RUN: u64 = OPEN << 1;

type Job<'a> = &'a (dyn Fn(usize) + Sync);

struct Pool {
    /// Held by the thread that calls `run`.
    owner: Mutex<()>,
    state: AtomicU64,
    work: UnsafeCell<(usize, Job<'static>)>,
    next: AtomicUsize,
    sleepers: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    workers: OnceLock<Vec<Thread>>,
}

// SAFETY: `work` is written only by the owner while no worker is at work and none may begin (`state` without OPEN
// and with no workers counted), and read only by workers counted in `state`.
unsafe impl Sync for Pool {}

impl Pool {
    fn start() -> &'static Self {
        let pool: &'static Self = Box::leak(Box::new(Self {
            owner: Mutex::new(()),
            state: AtomicU64::new(0),
            work: UnsafeCell::new((0, &|_| {})),
            next: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            panic: Mutex::new(None),
            workers: OnceLock::new(),
        }));
        // A system that refuses threads still gets its answer, from fewer of them.
        let spawn = |i| {
            let builder = std::thread::Builder::new().name(format!("kernels-{i}"));
            builder.spawn(|| pool.work_forever()).ok()
        };
        let workers = (1..configured()).map_while(spawn).map(|handle| handle.thread().clone()).collect();
        pool.workers.get_or_init(|| workers);
        pool
    }

    fn run(&self, jobs: usize, job: Job<'_>) -> Option<Box<dyn Any + Send>> {
        // SAFETY: only the lifetime changes; no worker holds the job when this function returns.
        let job: Job<'static> = unsafe { std::mem::transmute(job) };
        // SAFETY: this thread owns the pool and the last run has ended: nobody reads.
        unsafe { *self.work.get() = (jobs, job) };
        self.next.store(0, Ordering::Relaxed);
        let open = (self.state.load(Ordering::Relaxed) & !(RUN - 1)).wrapping_add(RUN) | OPEN;
        self.state.store(open, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.workers.get().into_iter().flatten().for_each(Thread::unpark);
        }
        self.take_jobs(jobs, job);
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.state.load(Ordering::Acquire) & (OPEN - 1) > 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn take_jobs(&self, jobs: usize, job: Job<'_>) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Ordering::Relaxed);
                if i >= jobs {
                    break;
                }
                job(i);
            }
        }));
        if let Err(panic) = result {
            self.next.store(jobs, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    fn work_forever(&self) {
        ALONE.set(true);
        let mut done = 0;
        loop {
            let state = self.wait_for_run(done);
            if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: counted in `state`, so the owner waits before it writes again.
            let (jobs, job) = unsafe { *self.work.get() };
            self.take_jobs(jobs, job);
            done = state / RUN;
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// The state of a run that may be joined and is not `done`.
    fn wait_for_run(&self, done: u64) -> u64 {
        let ready = || Some(self.state.load(Ordering::SeqCst)).filter(|s| s & OPEN > 0 && s / RUN != done);
        for _ in 0..SPINS {
            if let Some(state) = ready() {
                return state;
            }
            std::hint::spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let state = loop {
            if let Some(state) = ready() {
                break state;
            }
            std::thread::park();
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        state
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_job_runs_once() {
        for jobs in [0, 1, 2, 3, 17, 1000] {
            let counts: Vec<AtomicU32> = (0..jobs).map(|_| AtomicU32::new(0)).collect();
            run(jobs, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{jobs} jobs");
        }
    }

    #[test]
    fn many_short_runs_and_callers_do_not_mix() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2000 {
                        let sum = AtomicUsize::new(0);
                        run(8, &|i| {
                            sum.fetch_add(i + round, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 28 + 8 * round);
                    }
                });
            }
        });
    }

    #[test]
    fn nested_runs_stay_on_their_thread() {
        run(4, &|_| {
            let me = std::thread::current().id();
            assert_eq!(threads(), 1);
            run(4, &|_| assert_eq!(std::thread::current().id(), me));
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for _ in 0..20 {
            let caught = catch_unwind(|| run(64, &|i| assert!(i != 5, "job five")));
            let message = caught.unwrap_err().downcast::<&str>().map(|m| m.to_string());
            assert_eq!(message.ok().as_deref(), Some("job five"));
            every_job_runs_once();
        }
    }

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
