//! Checkpoints: a method marks safe points, this module decides when one is worth writing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dcu_artifact::{Content, Payload, Provenance, Tensor};
use serde_json::{Value, json};

/// The state of a method at a safe point: where it is, and the tensors it needs to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Where the method is, in its own terms, such as `{"iteration": 3, "epoch": 7}`.
    pub position: Value,
    /// What it needs to go on, by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Payload for Snapshot {
    const SCHEMA: &'static str = "checkpoint/1";

    fn to_content(&self) -> Content {
        Content { schema: Self::SCHEMA.into(), facts: json!({ "position": self.position }), tensors: self.tensors.clone() }
    }

    fn from_content(mut content: Content) -> Result<Self, String> {
        Ok(Self { position: content.facts["position"].take(), tensors: content.tensors })
    }
}

/// Writes and finds the checkpoint of one run.
#[derive(Debug)]
pub struct Checkpoints {
    file: Option<PathBuf>,
    provenance: Provenance,
    interval: Duration,
    last: Instant,
}

impl Checkpoints {
    pub(crate) fn new(folder: Option<PathBuf>, provenance: Provenance, interval: Duration) -> Self {
        Self { file: folder.map(|folder| folder.join("checkpoint.safetensors")), provenance, interval, last: Instant::now() }
    }

    /// The state of an interrupted run with the same method, parameters, seed and inputs. A damaged or foreign checkpoint is ignored.
    #[must_use]
    pub fn resume(&self) -> Option<Snapshot> {
        let (snapshot, header) = dcu_artifact::read::<Snapshot>(self.file.as_ref()?).ok()?;
        (header.provenance == self.provenance).then_some(snapshot)
    }

    /// A safe point: writes what `state` gives, if enough time has passed since the last one.
    ///
    /// # Errors
    /// When the checkpoint cannot be made or written.
    pub fn offer(&mut self, state: impl FnOnce() -> anyhow::Result<Snapshot>) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if self.last.elapsed() < self.interval {
            return Ok(());
        }
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        }
        dcu_artifact::write(file, &state()?, &self.provenance)?;
        self.last = Instant::now();
        Ok(())
    }
}
