//! The only clock of a stage: how long it loads, computes and writes, over all processes that one run takes.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Seconds of one run. They go to the run record, never into an artifact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seconds {
    pub(crate) load: f64,
    pub(crate) compute: f64,
    pub(crate) write: f64,
}

/// Runs from the start of the process; its copies show the same time.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    started: Instant,
    times: Arc<Mutex<Times>>,
}

#[derive(Debug, Default)]
struct Times {
    load: Duration,
    write: Duration,
    earlier: Seconds,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), times: Arc::default() }
    }

    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().expect("adding up does not panic")
    }

    pub(crate) fn loaded(&self, time: Duration) {
        self.times().load += time;
    }

    pub(crate) fn wrote(&self, time: Duration) {
        self.times().write += time;
    }

    /// What the processes before this one took, whose work goes on here.
    pub(crate) fn earlier(&self) -> Seconds {
        self.times().earlier
    }

    /// All processes so far.
    pub(crate) fn so_far(&self) -> Seconds {
        let times = self.times();
        let compute = self.started.elapsed().saturating_sub(times.load + times.write);
        Seconds {
            load: times.earlier.load + times.load.as_secs_f64(),
            compute: times.earlier.compute + compute.as_secs_f64(),
            write: times.earlier.write + times.write.as_secs_f64(),
        }
    }

    /// Goes on from the time that a checkpoint was written at. Where that is not known, it counts as no time.
    pub(crate) fn resume(&self, file: &Path) {
        let read = std::fs::read(file).ok().and_then(|text| serde_json::from_slice::<Seconds>(&text).ok());
        self.times().earlier = read.unwrap_or_default();
    }

    pub(crate) fn save(&self, file: &Path) -> dcu_artifact::Result<()> {
        let text = serde_json::to_vec(&self.so_far()).expect("seconds are plain numbers");
        dcu_artifact::replace_file(file, &text)
    }
}
