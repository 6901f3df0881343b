//! The threads that all ops share.
//!
//! A pool of [`threads`] (the caller is one of them) that lives as long as the process. A worker waits for work by
//! spinning for some microseconds, then sleeps. Nobody waits for a worker that has not begun: the caller takes jobs
//! like everybody else and leaves when none is unfinished, so a descheduled worker costs nothing.

mod rows;

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

pub(crate) use self::rows::Shared;
pub use self::rows::{RowSplit, Rows, for_each_chunk, for_each_rows};

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
}
