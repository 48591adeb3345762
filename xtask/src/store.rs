//! The store: one folder a result, found by its key. A result appears whole, by one rename, or not at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, bail};
use dcu_artifact::{Digest, Header, Provenance, digest_file, digest_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fingerprint::Code;

/// The layout of the store; another layout gets another number, so that neither misreads the other.
const LAYOUT: &str = "v1";
const RECORD: &str = "record.json";
const SCRATCH: &str = "scratch";

/// All that decides a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// `train/fit`, or the command of an outside stage.
    pub(crate) task: Value,
    pub(crate) version: Option<u32>,
    pub(crate) parameters: Value,
    pub(crate) seed: Option<u64>,
    /// Content digests of the inputs, in order.
    pub(crate) inputs: BTreeMap<String, Vec<Digest>>,
    /// Content of the outside files.
    pub(crate) externals: BTreeMap<String, Digest>,
    /// The outputs with their schemas.
    pub(crate) outputs: BTreeMap<String, String>,
    pub(crate) code: Code,
}

/// The digest of the parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Key(Digest);

impl Parts {
    pub(crate) fn key(&self) -> Key {
        Key(digest_json(&serde_json::to_value(self).expect("parts are plain data")))
    }
}

impl Key {
    fn short(&self) -> &str {
        &self.0.as_str()[..16]
    }
}

/// What is known of a finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) key: Key,
    pub(crate) parts: Parts,
    pub(crate) outputs: BTreeMap<String, Made>,
    pub(crate) seconds: Seconds,
    #[serde(default)]
    pub(crate) profile: Profile,
    /// The CPU's features, as far as results depend on them.
    pub(crate) cpu: String,
    pub(crate) threads: usize,
}

/// One output of a finished run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) schema: String,
    pub(crate) digest: Digest,
    pub(crate) file: String,
    stamp: Stamp,
}

/// By which a file that nobody touched is told without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    modified: u128,
}

/// Seconds of wall time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seconds {
    pub(crate) load: f64,
    pub(crate) compute: f64,
    pub(crate) write: f64,
    /// From start to end of the process.
    pub(crate) total: f64,
}

/// Phases of a run and the seconds of each, in the order in which they first began.
pub(crate) type Phases = Vec<(String, f64)>;

/// Where the time of a run went, and how much memory it took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profile {
    /// What the stage announced.
    pub(crate) phases: Phases,
    /// The most memory that it held at once, in bytes, where it says so.
    pub(crate) peak_memory: Option<u64>,
}

impl Profile {
    /// The most memory that it held at once, in GiB.
    pub(crate) fn peak_gibibytes(&self) -> Option<f64> {
        self.peak_memory.map(|bytes| bytes as f64 / f64::from(1 << 30))
    }
}

/// A finished run, and where its outputs are.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    pub(crate) folder: PathBuf,
}

impl Stored {
    pub(crate) fn path(&self, output: &str) -> PathBuf {
        self.folder.join(&self.record.outputs[output].file)
    }
}

/// What the store has under a key.
pub(crate) enum Found {
    Result(Box<Stored>),
    /// There was a result, but it cannot be used: why.
    Damaged(String),
    Nothing,
}

/// A folder of results.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

/// The right to make the result of a key; others wait.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// A folder that a run fills, removed again unless it is published.
#[derive(Debug)]
pub(crate) struct Draft {
    folder: PathBuf,
    published: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

impl Draft {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A folder inside that is not published.
    pub(crate) fn scratch(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join(SCRATCH);
        create_folder(&folder)?;
        Ok(folder)
    }
}

impl Store {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn layout(&self) -> PathBuf {
        self.root.join(LAYOUT)
    }

    fn result(&self, task: &str, key: &Key) -> PathBuf {
        self.layout().join(task).join(key.short())
    }

    /// Where a long run of this key keeps its checkpoints.
    pub(crate) fn checkpoints(&self, key: &Key) -> PathBuf {
        self.layout().join("checkpoints").join(key.short())
    }

    /// Where reports are laid out for people.
    pub(crate) fn reports(&self, pipeline: &str) -> PathBuf {
        self.root.join("reports").join(pipeline)
    }

    /// The result of a key, if its outputs are all there and unharmed.
    pub(crate) fn find(&self, task: &str, key: &Key) -> Found {
        let folder = self.result(task, key);
        let Ok(text) = std::fs::read(folder.join(RECORD)) else { return Found::Nothing };
        let record: Record = match serde_json::from_slice(&text) {
            Ok(record) => record,
            Err(error) => return Found::Damaged(format!("its record cannot be read ({error})")),
        };
        if record.key != *key {
            return Found::Nothing;
        }
        for (name, made) in &record.outputs {
            if let Err(reason) = check_output(&folder.join(&made.file), made) {
                return Found::Damaged(format!("its output `{name}` {reason}"));
            }
        }
        Found::Result(Box::new(Stored { record, folder }))
    }

    /// Waits for the right to make the result of a key.
    pub(crate) fn lock(&self, key: &Key) -> anyhow::Result<Lock> {
        let folder = self.layout().join("locks");
        create_folder(&folder)?;
        let path = folder.join(key.short());
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open `{}`", path.display()))?;
        file.lock().with_context(|| format!("cannot lock `{}`", path.display()))?;
        Ok(Lock { _file: file })
    }

    /// A new folder for the outputs of a key whose lock is held. What an interrupted run left is removed.
    pub(crate) fn draft(&self, key: &Key, _lock: &Lock) -> anyhow::Result<Draft> {
        let folder = self.layout().join("drafts").join(key.short());
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
        }
        create_folder(&folder)?;
        Ok(Draft { folder, published: false })
    }

    /// Describes an output that a run has written. The file of an outside stage is read whole, checked and given its provenance; a method
    /// has just done so itself.
    pub(crate) fn examine(draft: &Draft, file: &str, schema: &str, outside: Option<&Provenance>) -> anyhow::Result<Made> {
        let path = draft.path(file);
        let digest = if schema.starts_with("file/") {
            digest_file(&path)?
        } else {
            let header = outside.map_or_else(|| Header::read(&path), |provenance| dcu_artifact::adopt(&path, provenance))?;
            if header.schema != schema {
                bail!("it was declared as {schema}, but it is {}", header.schema);
            }
            header.digest
        };
        Ok(Made { schema: schema.to_owned(), digest, file: file.to_owned(), stamp: stamp(&path).context("it vanished")? })
    }

    /// Publishes a draft with its record in one step.
    pub(crate) fn publish(&self, task: &str, mut draft: Draft, record: Record) -> anyhow::Result<Stored> {
        let text = serde_json::to_vec_pretty(&record)?;
        let scratch = draft.path(SCRATCH);
        if scratch.exists() {
            std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove `{}`", scratch.display()))?;
        }
        write_durably(&draft.path(RECORD), &text)?;
        let target = self.result(task, &record.key);
        create_folder(target.parent().expect("a result lies in a folder"))?;
        let failed = || format!("cannot move the results to `{}`", target.display());
        if target.exists() {
            let old = draft.folder.with_extension("old");
            std::fs::rename(&target, &old).with_context(failed)?;
            std::fs::rename(&draft.folder, &target).with_context(failed)?;
            std::fs::remove_dir_all(&old).with_context(|| format!("cannot remove `{}`", old.display()))?;
        } else {
            std::fs::rename(&draft.folder, &target).with_context(failed)?;
        }
        draft.published = true;
        #[cfg(unix)]
        if let Some(parent) = target.parent() {
            File::open(parent).and_then(|folder| folder.sync_all()).with_context(failed)?;
        }
        let checkpoints = self.checkpoints(&record.key);
        if checkpoints.exists() {
            std::fs::remove_dir_all(&checkpoints).with_context(|| format!("cannot remove `{}`", checkpoints.display()))?;
        }
        Ok(Stored { record, folder: target })
    }

    /// The parts of the result that an instance of a pipeline had last, to tell what has changed since.
    pub(crate) fn last(&self, pipeline: &str, instance: &str) -> Option<Parts> {
        serde_json::from_slice(&std::fs::read(self.last_path(pipeline, instance)).ok()?).ok()
    }

    pub(crate) fn remember(&self, pipeline: &str, instance: &str, parts: &Parts) -> anyhow::Result<()> {
        if self.last(pipeline, instance).as_ref() == Some(parts) {
            return Ok(());
        }
        let path = self.last_path(pipeline, instance);
        create_folder(path.parent().expect("it lies in a folder"))?;
        Ok(dcu_artifact::replace_file(&path, &serde_json::to_vec(parts)?)?)
    }

    fn last_path(&self, pipeline: &str, instance: &str) -> PathBuf {
        self.layout().join("pipelines").join(pipeline).join(format!("{}.json", crate::names::file_name(instance)))
    }
}

pub(crate) fn create_folder(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot create `{}`", path.display()))
}

fn write_durably(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    Some(Stamp { size: metadata.len(), modified })
}

/// A file with its old size and time is taken as it is, but for its header; any other is read whole.
fn check_output(path: &Path, made: &Made) -> Result<(), String> {
    let now = stamp(path).ok_or("is missing")?;
    let is_file = made.schema.starts_with("file/");
    let digest = match (now == made.stamp, is_file) {
        (true, true) => return Ok(()),
        (true, false) => Header::read(path).map(|header| header.digest),
        (false, true) => digest_file(path),
        (false, false) => dcu_artifact::verify(path).map(|header| header.digest),
    };
    match digest {
        Ok(digest) if digest == made.digest => Ok(()),
        Ok(_) => Err("has been replaced by something else".into()),
        Err(error) => Err(format!("cannot be used: {error}")),
    }
}

/// The features of this CPU that change the last bits of results.
pub(crate) fn cpu_features() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let features = [
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("fma", std::is_x86_feature_detected!("fma")),
        ];
        let present: String = features.iter().filter(|(_, present)| *present).map(|(name, _)| format!("+{name}")).collect();
        format!("x86_64{present}")
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_owned()
}
