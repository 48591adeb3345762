//! Checkpoints: a method marks safe points, this module decides when one is worth writing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dcu_artifact::{Content, Cost, Payload, Provenance, Tensor};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::{Meter, Progress};

/// Beside the checkpoint: the seconds up to it.
const CLOCK: &str = "clock.json";

/// The state of a method at a safe point: where it is, and the tensors it needs to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Where the method is, in its own terms, such as `{"iteration": 3, "epoch": 7}`.
    pub position: Value,
    /// What it needs to go on, by name.
    pub tensors: BTreeMap<String, Tensor>,
}

/// What is written: a state, and what was computed up to it. The latter is in the same file, so that it is never that of another checkpoint.
struct Saved {
    snapshot: Snapshot,
    cost: Cost,
}

impl Payload for Saved {
    const SCHEMA: &'static str = "checkpoint/2";

    fn to_content(&self) -> Content {
        let Snapshot { position, tensors } = &self.snapshot;
        Content { schema: Self::SCHEMA.into(), facts: json!({ "position": position, "cost": self.cost }), tensors: tensors.clone() }
    }

    fn from_content(mut content: Content) -> Result<Self, String> {
        let cost = serde_json::from_value(content.facts["cost"].take()).map_err(|error| format!("its cost does not parse: {error}"))?;
        Ok(Self { snapshot: Snapshot { position: content.facts["position"].take(), tensors: content.tensors }, cost })
    }
}

/// Writes and finds the checkpoint of one run.
#[derive(Debug)]
pub struct Checkpoints {
    file: Option<PathBuf>,
    provenance: Provenance,
    interval: Duration,
    last: Instant,
    progress: Progress,
    clock: Clock,
    meter: Option<Meter>,
    has_failed: bool,
}

impl Checkpoints {
    pub(crate) fn new(
        folder: Option<PathBuf>,
        provenance: Provenance,
        interval: Duration,
        progress: Progress,
        clock: Clock,
        meter: Option<Meter>,
    ) -> Self {
        let file = folder.map(|folder| folder.join("checkpoint.safetensors"));
        Self { file, provenance, interval, last: Instant::now(), progress, clock, meter, has_failed: false }
    }

    /// The state of an interrupted run with the same method, parameters, seed and inputs, whose time and cost count from now on: what a method computes again
    /// beside its state, it computes before it asks. A damaged or foreign checkpoint is ignored.
    #[must_use]
    pub fn resume(&self) -> Option<Snapshot> {
        let file = self.file.as_ref()?;
        let (saved, header) = dcu_artifact::read::<Saved>(file).ok()?;
        if header.provenance != self.provenance {
            return None;
        }
        self.clock.resume(&file.with_file_name(CLOCK));
        if let Some(meter) = self.meter {
            (meter.set)(saved.cost);
        }
        Some(saved.snapshot)
    }

    /// A safe point: writes what `state` gives, if enough time has passed since the last one. A checkpoint that cannot be written is told once, and
    /// the work goes on.
    ///
    /// # Errors
    /// When `state` fails.
    pub fn offer(&mut self, state: impl FnOnce() -> anyhow::Result<Snapshot>) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if self.last.elapsed() < self.interval {
            return Ok(());
        }
        let saved = Saved { snapshot: state()?, cost: self.meter.map(|meter| (meter.read)()).unwrap_or_default() };
        if let Err(error) = self.write(file, &saved)
            && !std::mem::replace(&mut self.has_failed, true)
        {
            self.progress
                .note(&format!("no checkpoint can be written ({error:#}): the work goes on, and starts anew if it is interrupted"));
        }
        self.last = Instant::now();
        Ok(())
    }

    fn write(&self, file: &Path, saved: &Saved) -> anyhow::Result<()> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        dcu_artifact::write(file, saved, &self.provenance)?;
        Ok(self.clock.save(&file.with_file_name(CLOCK))?)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use dcu_artifact::Producer;

    use super::*;

    thread_local! {
        /// What a test has computed.
        static COUNTED: Cell<Cost> = const { Cell::new(Cost { forward: 0, backward: 0, steps: 0, operations: 0, changed: None }) };
    }

    fn checkpoints(folder: &Path) -> (Checkpoints, Clock) {
        let provenance = Provenance {
            producer: Producer { crate_name: "test".into(), method: "test".into(), version: 1 },
            parameters: json!({}),
            seed: Some(1),
            inputs: BTreeMap::new(),
            externals: BTreeMap::new(),
        };
        let clock = Clock::start();
        let meter = Meter { read: || COUNTED.with(Cell::get), set: |cost| COUNTED.with(|counted| counted.set(cost)) };
        let folder = Some(folder.to_owned());
        (Checkpoints::new(folder, provenance, Duration::ZERO, Progress::silent(), clock.clone(), Some(meter)), clock)
    }

    fn snapshot() -> Snapshot {
        let weight = Tensor::F32(dcu_artifact::Array::new(vec![2], vec![1.0, 2.0]));
        Snapshot { position: json!({ "epoch": 3 }), tensors: BTreeMap::from([("weight".into(), weight)]) }
    }

    #[test]
    fn a_resumed_run_counts_the_time_up_to_its_checkpoint() {
        let folder = std::env::temp_dir().join(format!("dcu-checkpoint-{}", std::process::id()));
        let (mut first, clock) = checkpoints(&folder);
        assert!(first.resume().is_none());
        clock.loaded(Duration::from_millis(10));
        std::thread::sleep(Duration::from_millis(100));
        first.offer(|| Ok(snapshot())).unwrap();
        let before = clock.so_far();
        let (second, clock) = checkpoints(&folder);
        assert_eq!(clock.earlier(), crate::clock::Seconds::default());
        assert_eq!(second.resume(), Some(snapshot()));
        let (earlier, now) = (clock.earlier(), clock.so_far());
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(earlier.load == 0.01 && (0.08..=before.compute).contains(&earlier.compute), "{earlier:?}");
        assert!(now.compute >= earlier.compute && now.load == earlier.load, "{now:?}");
    }

    #[test]
    fn a_resumed_run_counts_what_was_computed_up_to_its_checkpoint_and_nothing_twice() {
        let folder = std::env::temp_dir().join(format!("dcu-checkpoint-cost-{}", std::process::id()));
        let compute = |steps: u64| {
            let Cost { forward, backward, steps: done, operations, changed } = COUNTED.get();
            let (forward, backward, operations) = (forward + 30 * steps, backward + 20 * steps, operations + 500 * steps);
            COUNTED.set(Cost { forward, backward, steps: done + steps, operations, changed });
        };
        // Three steps, a checkpoint, two more that are lost.
        let (mut first, _) = checkpoints(&folder);
        compute(3);
        let expected = COUNTED.get();
        first.offer(|| Ok(snapshot())).unwrap();
        compute(2);
        // Another process, which computes one of them before it finds the checkpoint.
        COUNTED.set(Cost::default());
        compute(1);
        let (second, _) = checkpoints(&folder);
        assert_eq!(second.resume(), Some(snapshot()));
        // Time that is not known, as where the run was killed between the two files, does not touch it.
        std::fs::remove_file(folder.join(CLOCK)).unwrap();
        let counted = COUNTED.replace(Cost::default());
        let (third, clock) = checkpoints(&folder);
        assert_eq!(third.resume(), Some(snapshot()));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!((counted, COUNTED.get(), clock.earlier()), (expected, expected, crate::clock::Seconds::default()));
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_does_not_end_the_run() {
        let file = std::env::temp_dir().join(format!("dcu-no-folder-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let (mut checkpoints, _) = checkpoints(&file.join("below"));
        checkpoints.offer(|| Ok(snapshot())).unwrap();
        checkpoints.offer(|| Ok(snapshot())).unwrap();
        let failed = checkpoints.has_failed;
        let error = checkpoints.offer(|| anyhow::bail!("no state")).unwrap_err();
        std::fs::remove_file(&file).unwrap();
        assert!(failed && error.to_string() == "no state");
    }
}
