//! Ops recorded as CUDA graphs: starting a small op costs more than running it.

use std::collections::HashMap;

use cudarc::driver::{result, sys};

use super::device::{Device, Lane};
use super::error::Doing;
use super::side::Side;

/// Rows from which the ops take longer than their starts, so that nothing is gained.
const MOST_ROWS: usize = 2048;
/// Recordings that are kept.
const MOST_GRAPHS: usize = 256;

/// The pass's sizes and addresses, and the version of the scratch.
type Key = ([u64; 10], u64);

/// What was recorded, by what it depends on.
#[derive(Debug, Default)]
pub struct Recording {
    /// `None` for what was met once: it ran as it came, so that scratch is large enough and programs are loaded.
    graphs: HashMap<Key, Option<Graph>>,
}

/// An executable graph.
#[derive(Debug)]
struct Graph(sys::CUgraphExec);

// SAFETY: used by one thread at a time, as `Recording` is borrowed mutably.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`; the driver lets a running graph end.
        unsafe {
            let _ = result::graph::exec_destroy(self.0);
        }
    }
}

impl Recording {
    /// Runs `body`, or replays it.
    pub(super) fn run(
        &mut self,
        (device, side): (&Device, &Side),
        key: Key,
        rows: usize,
        body: impl FnOnce(),
    ) {
        if rows > MOST_ROWS {
            return body();
        }
        if self.graphs.len() >= MOST_GRAPHS {
            self.graphs.clear();
        }
        device.bind();
        // A record begins and ends on the main stream alone.
        side.join();
        match self.graphs.get_mut(&key) {
            None => {
                self.graphs.insert(key, None);
                body();
            }
            Some(graph) => {
                let graph = graph.get_or_insert_with(|| capture(device, side, body));
                // SAFETY: what the graph touches is what the key stands for, and lives as long as the recording.
                unsafe { result::graph::launch(graph.0, device.stream(Lane::Main)) }
                    .certain("replay recorded work");
            }
        }
    }
}

fn capture(device: &Device, side: &Side, body: impl FnOnce()) -> Graph {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream is this device's; nothing else uses it meanwhile.
    unsafe {
        result::stream::begin_capture(device.stream(Lane::Main), mode).certain("begin to record");
        body();
        side.join();
        let graph = result::stream::end_capture(device.stream(Lane::Main)).certain("record");
        let ready = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0))
            .certain("prepare recorded work");
        result::graph::destroy(graph).certain("drop a record");
        Graph(ready)
    }
}
