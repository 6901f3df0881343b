//! The threads that all ops share.

/// Number of threads that take part, the caller's included.
pub fn threads() -> usize {
    1
}

/// Calls `job(0)`, `job(1)`, … `job(jobs - 1)`, each once, on all threads, and returns when all are done.
pub fn run(jobs: usize, job: &(dyn Fn(usize) + Sync)) {
    (0..jobs).for_each(job);
}
