//! Further streams, for work that little waits for: they fill what the chain of ops leaves idle.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::device::{Device, Lane};
use super::error::Doing;

/// What is under way beside the main stream.
#[derive(Debug)]
pub(super) struct Side {
    device: Arc<Device>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order of each stream.
    pending: Vec<Work>,
    /// Events to be used again.
    free: Vec<sys::CUevent>,
}

/// Some work and its end.
#[derive(Debug)]
struct Work {
    lane: Lane,
    end: sys::CUevent,
    reads: Vec<u64>,
    writes: Vec<u64>,
}

// SAFETY: events may be used from any thread that binds their context; the state is behind a lock.
unsafe impl Send for Side {}
// SAFETY: as above.
unsafe impl Sync for Side {}

impl Side {
    pub(super) fn new(device: &Arc<Device>) -> Self {
        Self { device: device.clone(), state: Mutex::default() }
    }

    /// Runs `body`, which starts work on another stream that `reads` and `writes` the buffers of these addresses, after
    /// all that was started before.
    pub(super) fn run(&self, lane: Lane, reads: &[u64], writes: &[u64], body: impl FnOnce()) {
        self.device.bind();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = state.event();
        self.record(begin, Lane::Main);
        self.wait(begin, lane);
        body();
        let end = state.event();
        self.record(end, lane);
        state.free.push(begin);
        state.pending.push(Work { lane, end, reads: reads.to_vec(), writes: writes.to_vec() });
    }

    /// Lets the main stream wait for what must be over before it `reads` and `writes` these buffers.
    pub(super) fn settle(&self, reads: &[u64], writes: &[u64]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let meets = |work: &Work| {
            let among = |some: &[u64], all: &[u64]| some.iter().any(|one| all.contains(one));
            among(&work.writes, reads) || among(&work.writes, writes) || among(&work.reads, writes)
        };
        while let Some(last) = state.pending.iter().rposition(meets) {
            self.wait_for(&mut state, last);
        }
    }

    /// Lets the main stream wait for everything.
    pub(super) fn join(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(last) = state.pending.len().checked_sub(1) {
            self.wait_for(&mut state, last);
        }
    }

    /// What came before it on the same stream has ended with it.
    fn wait_for(&self, state: &mut State, last: usize) {
        self.device.bind();
        let lane = state.pending[last].lane;
        self.wait(state.pending[last].end, Lane::Main);
        let State { pending, free } = state;
        let mut index = 0;
        pending.retain(|work| {
            let over = work.lane == lane && index <= last;
            index += 1;
            if over {
                free.push(work.end);
            }
            !over
        });
    }

    fn record(&self, event: sys::CUevent, lane: Lane) {
        // SAFETY: event and stream are of this device.
        unsafe { result::event::record(event, self.device.stream(lane)) }
            .certain("mark the end of some work");
    }

    fn wait(&self, event: sys::CUevent, lane: Lane) {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream are of this device.
        unsafe { result::stream::wait_event(self.device.stream(lane), event, flags) }
            .certain("wait for some work");
    }
}

impl State {
    fn event(&mut self) -> sys::CUevent {
        let make =
            || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).certain("make an event");
        self.free.pop().unwrap_or_else(make)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let state = std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.device.bind();
        for event in state.free.into_iter().chain(state.pending.into_iter().map(|work| work.end)) {
            // SAFETY: made by `event`, destroyed once; the driver keeps it as long as work waits for it.
            unsafe {
                let _ = result::event::destroy(event);
            }
        }
    }
}
