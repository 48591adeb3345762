//! The store: content under its own digest, and records that say which content is the result of which key.
//!
//! Content is never replaced, and a record appears whole by one rename, after all that it names is durable. So whoever reads a result keeps
//! what he reads, whatever other runs do.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use dcu_artifact::{Cost, Digest, Header, Provenance, digest_file, digest_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fingerprint::Code;
use crate::supervise::StageFailure;

/// The layout of the store; another layout gets another number, so that neither misreads the other.
pub(crate) const LAYOUT: &str = "v2";
const SCRATCH: &str = "scratch";
/// A file in each draft whose space the record gets in the end, so that a disk which has filled up meanwhile does not cost a finished result.
const RESERVE: &str = "reserve";
const RESERVED_BYTES: usize = 1 << 18;
/// How often a run that waits for another looks again.
const PATIENCE: Duration = Duration::from_millis(50);

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
    /// Where it was computed, unless on the CPU as usual or the same everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
}

/// The digest of the parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Key(Digest);

impl Parts {
    pub(crate) fn key(&self) -> Key {
        Key(digest_json(&serde_json::to_value(self).expect("parts are plain data")))
    }

    /// What this machine computes such a result on, as far as the result depends on it.
    pub(crate) fn computed_on(&self) -> String {
        match &self.device {
            Some(device) => format!("{} on {device}", cpu_features()),
            None => cpu_features(),
        }
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
    /// What it computed, as far as it is known: a program from outside need not say it.
    #[serde(default)]
    pub(crate) cost: Option<Cost>,
    #[serde(default)]
    pub(crate) profile: Profile,
    /// The CPU's features, as far as results depend on them, and the device if it is unusual.
    pub(crate) cpu: String,
    /// As many threads as the stage said that it had.
    pub(crate) threads: Option<usize>,
}

/// One output of a finished run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) schema: String,
    /// The content digest of an artifact; of a plain file, that of its bytes.
    pub(crate) digest: Digest,
    /// The digest of the file's bytes, by which it is found.
    object: Digest,
    stamp: Stamp,
}

impl Made {
    fn extension(&self) -> &str {
        extension(&self.schema)
    }
}

/// The extension of a file of this schema.
fn extension(schema: &str) -> &str {
    schema.strip_prefix("file/").unwrap_or("safetensors")
}

/// By which a file that nobody touched is told without reading it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    objects: PathBuf,
}

impl Stored {
    /// Where an output lies.
    ///
    /// # Panics
    /// When the run has no such output; a record that is read has all that its parts declare.
    pub(crate) fn path(&self, output: &str) -> PathBuf {
        object_path(&self.objects, &self.record.outputs[output])
    }

    /// Reads an output whole, to see whether its file still has the bytes that it was written with.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(crate) fn check(&self, output: &str) -> Result<(), String> {
        check_bytes(&self.path(output), &self.record.outputs[output])
    }
}

fn object_path(objects: &Path, made: &Made) -> PathBuf {
    let (folder, name) = made.object.as_str().split_at(2);
    objects.join(folder).join(format!("{name}.{}", made.extension()))
}

/// What the store has under a key.
pub(crate) enum Found {
    Result(Box<Stored>),
    /// There was a result, but it cannot be used: why.
    Damaged(String),
    Nothing,
}

/// How closely results are looked at before they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// A file with its old size and time is taken as it is, but for its header; any other is read whole.
    Stamps,
    /// Every file is read whole.
    Bytes,
}

/// A folder of results.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

/// The right to make the result of a key; others wait. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked: whoever waits for this file sees that it is gone, and takes a new one.
        if cfg!(unix) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A folder that one run fills, removed again when that run is done with it.
#[derive(Debug)]
pub(crate) struct Draft {
    folder: PathBuf,
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Draft {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A folder inside for what only this run reads.
    pub(crate) fn scratch(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join(SCRATCH);
        create_folder(&folder)?;
        Ok(folder)
    }

    /// Where the output of a name and schema is to be written.
    pub(crate) fn output(&self, name: &str, schema: &str) -> PathBuf {
        self.path(&format!("{name}.{}", extension(schema)))
    }
}

impl Store {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn layout(&self) -> PathBuf {
        self.root.join(LAYOUT)
    }

    fn objects(&self) -> PathBuf {
        self.layout().join("objects")
    }

    fn record(&self, task: &str, key: &Key) -> PathBuf {
        self.layout().join("results").join(task).join(format!("{}.json", key.short()))
    }

    /// Where a long run of this key keeps its checkpoints.
    pub(crate) fn checkpoints(&self, key: &Key) -> PathBuf {
        self.layout().join("checkpoints").join(key.short())
    }

    /// Where the file of an output lies.
    pub(crate) fn object(&self, made: &Made) -> PathBuf {
        object_path(&self.objects(), made)
    }

    /// Where reports are laid out for people.
    pub(crate) fn reports(&self, pipeline: &str) -> PathBuf {
        self.root.join("reports").join(pipeline)
    }

    /// The result of a key, if its outputs are all there and unharmed, and each says of itself that it was made as `provenance` tells.
    pub(crate) fn find(&self, task: &str, key: &Key, provenance: &Provenance, care: Care) -> Found {
        let path = self.record(task, key);
        let Ok(text) = read_plain_file(&path) else { return Found::Nothing };
        let mut record: Record = match serde_json::from_slice(&text) {
            Ok(record) => record,
            Err(error) => return Found::Damaged(format!("its record cannot be read ({error})")),
        };
        if record.key != *key {
            return Found::Nothing;
        }
        if record.parts.key() != *key {
            return Found::Damaged("its record is not of what its key says".into());
        }
        let made: BTreeMap<&String, &String> = record.outputs.iter().map(|(name, made)| (name, &made.schema)).collect();
        if made != record.parts.outputs.iter().collect() {
            return Found::Damaged("its record has other outputs than were declared".into());
        }
        let mut touched = false;
        for (name, made) in &mut record.outputs {
            match check_output(&object_path(&self.objects(), made), made, provenance, care) {
                Ok(now) => {
                    touched |= now != made.stamp;
                    made.stamp = now;
                }
                Err(reason) => return Found::Damaged(format!("its output `{name}` {reason}")),
            }
        }
        if touched
            && let Ok(new) = serde_json::to_vec_pretty(&record)
            && let Ok(Some(_lock)) = self.try_lock(key.short())
            && read_plain_file(&path).is_ok_and(|now| now == text)
        {
            // So that a copied store is read whole only once; on a read-only one, or while another run is making the result anew, each time.
            let _ = self.put(&path, &new);
        }
        Found::Result(Box::new(Stored { record, objects: self.objects() }))
    }

    /// Waits for the right to make the result of a key; `meanwhile` is called again and again, first with `true`, and may give up by an error.
    pub(crate) fn lock(&self, key: &Key, mut meanwhile: impl FnMut(bool) -> anyhow::Result<()>) -> anyhow::Result<Lock> {
        let mut first = true;
        loop {
            if let Some(lock) = self.try_lock(key.short())? {
                return Ok(lock);
            }
            meanwhile(first)?;
            first = false;
            std::thread::sleep(PATIENCE);
        }
    }

    fn try_lock(&self, name: &str) -> anyhow::Result<Option<Lock>> {
        let folder = self.layout().join("locks");
        create_folder(&folder)?;
        let path = folder.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) if is_still_at(&file, &path) => Ok(Some(Lock { _file: file, path })),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock `{}`", path.display())),
        }
    }

    /// Removes what interrupted runs have left: drafts that nobody fills, files that nobody writes.
    pub(crate) fn sweep(&self) {
        for draft in entries(&self.layout().join("drafts")) {
            let name = draft.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let key = name.split('-').next().unwrap_or_default();
            if let Ok(Some(_lock)) = self.try_lock(key) {
                let _ = std::fs::remove_dir_all(&draft);
            }
        }
        if self.temporary().exists()
            && let Ok(guard) = self.guard()
            && guard.try_lock().is_ok()
        {
            entries(&self.temporary())
                .into_iter()
                .filter(|path| !path.ends_with("guard"))
                .for_each(|path| drop(std::fs::remove_file(path)));
        }
    }

    fn temporary(&self) -> PathBuf {
        self.layout().join("temporary")
    }

    /// Locked by each that writes a temporary file, together with others; alone by the one that removes such files.
    fn guard(&self) -> std::io::Result<File> {
        std::fs::create_dir_all(self.temporary())?;
        File::options().create(true).truncate(false).write(true).open(self.temporary().join("guard"))
    }

    /// Puts a file of the store in place in one step.
    pub(crate) fn put(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let cannot = || format!("cannot write `{}`", path.display());
        create_folder(path.parent().expect("a file of the store lies in a folder"))?;
        let guard = self.guard().with_context(cannot)?;
        guard.lock_shared().with_context(cannot)?;
        Ok(dcu_artifact::replace_file_by_way_of(&self.temporary(), path, bytes)?)
    }

    /// A new folder for the outputs of a key whose lock is held. What interrupted runs of that key have left is removed.
    pub(crate) fn draft(&self, key: &Key, _lock: &Lock) -> anyhow::Result<Draft> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let drafts = self.layout().join("drafts");
        for left in entries(&drafts) {
            if left.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{}-", key.short()))) {
                std::fs::remove_dir_all(&left).with_context(|| format!("cannot remove `{}`", left.display()))?;
            }
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = drafts.join(format!("{}-{}-{count}", key.short(), std::process::id()));
        create_folder(&folder)?;
        let draft = Draft { folder };
        let reserve = draft.path(RESERVE);
        std::fs::write(&reserve, vec![1; RESERVED_BYTES]).with_context(|| format!("cannot write `{}`", reserve.display()))?;
        Ok(draft)
    }

    /// Takes what a run has written for an output into the store. The file of an outside program is checked and given its provenance; a method
    /// has done so itself, and must have been given what `provenance` says.
    pub(crate) fn take_in(
        &self,
        draft: &Draft,
        name: &str,
        schema: &str,
        provenance: &Provenance,
        is_outside: bool,
    ) -> anyhow::Result<Made> {
        let path = draft.output(name, schema);
        // A pipe would be waited for without end, and what a link points to may change.
        let message = match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => None,
            Ok(_) => Some(format!("what it has written as its output `{name}` is no plain file")),
            Err(_) => Some(format!("it ended without writing its output `{name}`")),
        };
        if let Some(message) = message {
            let remedy = Some(format!("write a file to the path that it is given with `--out {name}=PATH`"));
            return Err(StageFailure { message, remedy }.into());
        }
        let content = if schema.starts_with("file/") {
            None
        } else {
            let header = if is_outside { dcu_artifact::adopt(&path, provenance)? } else { Header::read(&path)? };
            if header.schema != schema {
                bail!("it was declared as {schema}, but it is {}", header.schema);
            }
            if let Some(difference) = difference(&header.provenance, provenance) {
                bail!(
                    "{difference}: what the stage read is not what it was to read
  help: run again; if a file outside was being written, wait for its end"
                );
            }
            Some(header.digest)
        };
        let sync = || File::open(&path)?.sync_all();
        sync().with_context(|| format!("cannot write `{}` to disk", path.display()))?;
        let object = digest_file(&path)?;
        let digest = content.unwrap_or_else(|| object.clone());
        let mut made = Made { schema: schema.to_owned(), digest, object, stamp: Stamp::default() };
        let target = object_path(&self.objects(), &made);
        let is_there = target.is_file() && digest_file(&target).is_ok_and(|there| there == made.object);
        if !is_there {
            let folder = target.parent().expect("an object lies in a folder");
            create_folder(folder)?;
            std::fs::rename(&path, &target).with_context(|| format!("cannot move the result to `{}`", target.display()))?;
            sync_folder(folder)?;
        }
        made.stamp = stamp(&target).context("it vanished")?;
        Ok(made)
    }

    /// Makes the result of a key known. All that it names is in the store already.
    pub(crate) fn publish(&self, task: &str, draft: Draft, record: Record) -> anyhow::Result<Stored> {
        let text = serde_json::to_vec_pretty(&record)?;
        let _ = std::fs::remove_file(draft.path(RESERVE));
        self.put(&self.record(task, &record.key), &text)?;
        drop(draft);
        self.remove_checkpoints(&record.key);
        Ok(Stored { record, objects: self.objects() })
    }

    /// Removes the checkpoints of a key. Whatever stays is ignored, so that no result is lost over them.
    pub(crate) fn remove_checkpoints(&self, key: &Key) {
        let _ = std::fs::remove_dir_all(self.checkpoints(key));
    }

    /// Removes what a forced run that was interrupted has left of a result that there is, unless another run is just making it anew.
    pub(crate) fn remove_needless_checkpoints(&self, key: &Key) {
        if self.checkpoints(key).exists()
            && let Ok(Some(_lock)) = self.try_lock(key.short())
        {
            self.remove_checkpoints(key);
        }
    }

    /// Forgets a result whose output turned out to be damaged, the file and what is known of it, unless another run has just mended it.
    pub(crate) fn forget(&self, task: &str, stored: &Stored, output: &str) {
        let key = &stored.record.key;
        if let Ok(Some(_lock)) = self.try_lock(key.short())
            && stored.check(output).is_err()
        {
            let _ = std::fs::remove_file(stored.path(output));
            let _ = std::fs::remove_file(self.record(task, key));
        }
    }

    /// The parts of the result that an instance of a pipeline had last, to tell what has changed since.
    pub(crate) fn last(&self, pipeline: &str, instance: &str) -> Option<Parts> {
        serde_json::from_slice(&read_plain_file(&self.last_path(pipeline, instance)).ok()?).ok()
    }

    pub(crate) fn remember(&self, pipeline: &str, instance: &str, parts: &Parts) -> anyhow::Result<()> {
        if self.last(pipeline, instance).as_ref() == Some(parts) {
            return Ok(());
        }
        self.put(&self.last_path(pipeline, instance), &serde_json::to_vec(parts)?)
    }

    fn last_path(&self, pipeline: &str, instance: &str) -> PathBuf {
        self.layout().join("pipelines").join(pipeline).join(format!("{}.json", crate::names::file_name(instance)))
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Reads a file that must be one: opening a pipe would wait for ever.
fn read_plain_file(path: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is no plain file"));
    }
    std::fs::read(path)
}

pub(crate) fn create_folder(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot create `{}`", path.display()))
}

fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("cannot write `{}` to disk", folder.display()))?;
    }
    Ok(())
}

/// Whether an open file is the one at `path`, not one that was removed in between.
fn is_still_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let (Ok(open), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
        (open.dev(), open.ino()) == (there.dev(), there.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path);
        true
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    Some(Stamp { size: metadata.len(), modified })
}

/// The stamp of an output that can be used, or why it cannot.
fn check_output(path: &Path, made: &Made, provenance: &Provenance, care: Care) -> Result<Stamp, String> {
    let now = stamp(path).ok_or("is missing")?;
    let is_artifact = !made.schema.starts_with("file/");
    if care == Care::Bytes || now != made.stamp {
        check_bytes(path, made)?;
    }
    if is_artifact {
        let header = Header::read(path).map_err(|error| format!("cannot be used: {error}"))?;
        if header.digest != made.digest {
            return Err("has been replaced by something else".into());
        }
        if let Some(difference) = difference(&header.provenance, provenance) {
            return Err(format!("was made otherwise than its record says: {difference}"));
        }
    }
    Ok(now)
}

fn check_bytes(path: &Path, made: &Made) -> Result<(), String> {
    let digest = digest_file(path).map_err(|error| format!("cannot be used: {error}"))?;
    if digest == made.object {
        return Ok(());
    }
    let damage = if made.schema.starts_with("file/") { None } else { dcu_artifact::verify(path).err() };
    Err(damage.map_or_else(|| "has been replaced by something else".into(), |error| format!("cannot be used: {error}")))
}

/// What an artifact says of how it was made that is not as it should be.
fn difference(found: &Provenance, expected: &Provenance) -> Option<String> {
    if found == expected {
        return None;
    }
    if found.producer != expected.producer {
        let name = |producer: &dcu_artifact::Producer| format!("{} {} {}", producer.crate_name, producer.method, producer.version);
        return Some(format!("it says that {} made it, not {}", name(&found.producer), name(&expected.producer)));
    }
    if let Some((name, _)) = expected.externals.iter().find(|(name, digest)| found.externals.get(*name) != Some(digest)) {
        return Some(format!("it says that `{name}` had another content"));
    }
    if let Some((name, _)) = expected.inputs.iter().find(|(name, digests)| found.inputs.get(*name) != Some(digests)) {
        return Some(format!("it says that the input `{name}` had another content"));
    }
    if found.seed != expected.seed {
        let seed = |seed: Option<u64>| seed.map_or_else(|| "none".to_owned(), |seed| seed.to_string());
        return Some(format!("it says that its seed was {}, not {}", seed(found.seed), seed(expected.seed)));
    }
    let same_parameters = digest_json(&found.parameters) == digest_json(&expected.parameters);
    let same_names = found.externals.len() == expected.externals.len() && found.inputs.len() == expected.inputs.len();
    match (same_parameters, same_names) {
        (true, true) => None,
        (true, false) => Some("it names further inputs".into()),
        (false, _) => Some("it says that it had other parameters".into()),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use dcu_artifact::{Holdout, Producer, digest_bytes};
    use serde_json::json;

    use super::*;

    struct Fixture {
        store: Store,
        parts: Parts,
        provenance: Provenance,
        _folder: tempfile::TempDir,
    }

    const TASK: &str = "data-holdout";

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts {
            task: json!("data/holdout"),
            version: Some(1),
            parameters: json!({ "ipc": 1 }),
            seed: Some(3),
            inputs: BTreeMap::from([("train".to_owned(), vec![digest_bytes(b"train")])]),
            externals: BTreeMap::new(),
            outputs: BTreeMap::from([("holdout".to_owned(), "holdout/1".to_owned())]),
            code: Code { files: BTreeMap::new(), dependencies: None, build: None },
            device: None,
        };
        let provenance = Provenance {
            producer: Producer { crate_name: "dcu-data".into(), method: "holdout".into(), version: 1 },
            parameters: parts.parameters.clone(),
            seed: parts.seed,
            inputs: parts.inputs.clone(),
            externals: BTreeMap::new(),
        };
        Fixture { store: Store::new(folder.path()), parts, provenance, _folder: folder }
    }

    impl Fixture {
        fn lock(&self) -> Lock {
            self.store.lock(&self.parts.key(), |_| bail!("somebody holds it")).unwrap()
        }

        /// What a stage does, and the runner after it.
        fn make(&self, ids: &[u64], says: &Provenance) -> anyhow::Result<Stored> {
            let key = self.parts.key();
            let lock = self.lock();
            let draft = self.store.draft(&key, &lock)?;
            let payload = Holdout { train: ids.to_vec(), remembrance: vec![100], validation: vec![], test: vec![101] };
            dcu_artifact::write(&draft.output("holdout", "holdout/1"), &payload, says)?;
            let made = self.store.take_in(&draft, "holdout", "holdout/1", &self.provenance, false)?;
            let record = Record {
                key,
                parts: self.parts.clone(),
                outputs: BTreeMap::from([("holdout".to_owned(), made)]),
                seconds: Seconds::default(),
                cost: Some(Cost { forward: 3, backward: 2, steps: 1, operations: 1 << 60, changed: Some(0.1) }),
                profile: Profile::default(),
                cpu: "x".into(),
                threads: Some(1),
            };
            self.store.publish(TASK, draft, record)
        }

        fn find(&self, care: Care) -> Found {
            self.store.find(TASK, &self.parts.key(), &self.provenance, care)
        }

        fn damage(&self, care: Care) -> String {
            match self.find(care) {
                Found::Damaged(reason) => reason,
                Found::Result(_) => panic!("it was found"),
                Found::Nothing => panic!("there is nothing"),
            }
        }

        fn files(&self, folder: &str) -> Vec<PathBuf> {
            entries(&self.store.layout().join(folder))
        }
    }

    #[test]
    fn a_result_is_found_again_and_leaves_nothing_else_behind() {
        let made = fixture();
        assert!(matches!(made.find(Care::Stamps), Found::Nothing));
        let stored = made.make(&[1, 2], &made.provenance).unwrap();
        let Found::Result(found) = made.find(Care::Bytes) else { panic!("it is there") };
        assert_eq!((found.path("holdout"), &found.record), (stored.path("holdout"), &stored.record));
        assert!(made.files("drafts").is_empty() && made.files("locks").is_empty());
    }

    #[test]
    fn what_an_artifact_says_of_its_making_must_be_the_recipe() {
        let made = fixture();
        type Edit = (fn(&mut Provenance), &'static str);
        let edits: [Edit; 5] = [
            (|says| says.seed = Some(4), "its seed was 4, not 3"),
            (|says| says.parameters = json!({ "ipc": 2 }), "other parameters"),
            (|says| says.producer.version = 2, "dcu-data holdout 2 made it"),
            (|says| drop(says.inputs.insert("train".into(), vec![digest_bytes(b"other")])), "input `train` had another content"),
            (|says| drop(says.externals.insert("ids".into(), digest_bytes(b"ids"))), "further inputs"),
        ];
        for (edit, words) in edits {
            let mut says = made.provenance.clone();
            edit(&mut says);
            let error = made.make(&[1], &says).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert!(matches!(made.find(Care::Stamps), Found::Nothing), "nothing is published");
        }
        // The same artifact, found under the record of another recipe.
        made.make(&[1], &made.provenance).unwrap();
        let other = Provenance { seed: Some(9), ..made.provenance.clone() };
        let found = made.store.find(TASK, &made.parts.key(), &other, Care::Stamps);
        assert!(matches!(found, Found::Damaged(reason) if reason.contains("otherwise than its record says")));
    }

    #[test]
    fn a_record_that_is_not_of_its_key_is_not_believed() {
        let made = fixture();
        let stored = made.make(&[1], &made.provenance).unwrap();
        let path = made.store.record(TASK, &made.parts.key());
        let write = |record: &Record| std::fs::write(&path, serde_json::to_vec(record).unwrap()).unwrap();
        let mut record = stored.record.clone();
        record.parts.seed = Some(4);
        write(&record);
        assert!(made.damage(Care::Stamps).contains("not of what its key says"));
        let mut record = stored.record.clone();
        record.outputs.clear();
        write(&record);
        assert!(made.damage(Care::Stamps).contains("other outputs"));
        std::fs::write(&path, "{").unwrap();
        assert!(made.damage(Care::Stamps).contains("cannot be read"));
    }

    #[test]
    fn a_record_of_before_costs_were_counted_is_read() {
        let made = fixture();
        let stored = made.make(&[1], &made.provenance).unwrap();
        let path = made.store.record(TASK, &made.parts.key());
        let mut record = serde_json::to_value(&stored.record).unwrap();
        assert!(record.as_object_mut().unwrap().remove("cost").is_some());
        std::fs::write(&path, record.to_string()).unwrap();
        let Found::Result(found) = made.find(Care::Stamps) else { panic!("it is there") };
        assert_eq!(found.record, Record { cost: None, ..stored.record });
    }

    #[test]
    fn a_flipped_bit_under_the_old_size_and_time_is_found_by_reading_whole() {
        let made = fixture();
        let stored = made.make(&[1], &made.provenance).unwrap();
        let path = stored.path("holdout");
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        assert!(matches!(made.find(Care::Stamps), Found::Result(_)));
        assert!(stored.check("holdout").is_err());
        assert!(made.damage(Care::Bytes).contains("cannot be used"));
        // Made again, the file is whole again.
        made.make(&[1], &made.provenance).unwrap();
        assert!(matches!(made.find(Care::Bytes), Found::Result(_)));
    }

    #[test]
    fn a_touched_file_is_read_whole_once() {
        let made = fixture();
        let stored = made.make(&[1], &made.provenance).unwrap();
        let path = stored.path("holdout");
        let now = std::time::SystemTime::now() + Duration::from_secs(5);
        File::options().write(true).open(&path).unwrap().set_modified(now).unwrap();
        let Found::Result(found) = made.find(Care::Stamps) else { panic!("it is there") };
        assert_ne!(found.record, stored.record);
        let text = std::fs::read(made.store.record(TASK, &made.parts.key())).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&text).unwrap(), found.record, "the new stamp is kept");
    }

    #[test]
    fn another_content_under_the_same_key_replaces_nothing_that_is_being_read() {
        let made = fixture();
        let first = made.make(&[1], &made.provenance).unwrap();
        let second = made.make(&[2], &made.provenance).unwrap();
        assert_ne!(first.path("holdout"), second.path("holdout"));
        first.check("holdout").unwrap();
        let Found::Result(found) = made.find(Care::Bytes) else { panic!("it is there") };
        assert_eq!(found.record, second.record);
    }

    #[test]
    fn a_lock_is_had_by_one_at_a_time_and_waited_for() {
        let made = fixture();
        let key = made.parts.key();
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let _lock = made.store.lock(&key, |_| Ok(())).unwrap();
                        assert!(!inside.swap(true, Ordering::SeqCst), "two at once");
                        std::thread::sleep(Duration::from_millis(1));
                        inside.store(false, Ordering::SeqCst);
                    }
                });
            }
        });
        let _held = made.lock();
        let error = made.store.lock(&key, |is_first| if is_first { Ok(()) } else { bail!("stopped") }).unwrap_err();
        assert_eq!(error.to_string(), "stopped");
    }

    #[test]
    fn what_interrupted_runs_left_is_swept_and_what_others_fill_is_not() {
        let made = fixture();
        let left = made.store.layout().join("drafts/0123456789abcdef-1-0");
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("model.safetensors"), "half").unwrap();
        std::fs::create_dir_all(made.store.temporary()).unwrap();
        std::fs::write(made.store.temporary().join(".partial-x"), "half").unwrap();
        let lock = made.lock();
        let draft = made.store.draft(&made.parts.key(), &lock).unwrap();
        made.store.sweep();
        assert!(draft.folder.exists() && !left.exists() && !made.store.temporary().join(".partial-x").exists());
    }

    #[test]
    fn checkpoints_of_a_result_that_there_is_are_removed_but_not_from_under_a_run() {
        let made = fixture();
        let key = made.parts.key();
        let checkpoints = made.store.checkpoints(&key);
        std::fs::create_dir_all(&checkpoints).unwrap();
        let lock = made.lock();
        made.store.remove_needless_checkpoints(&key);
        assert!(checkpoints.exists());
        drop(lock);
        made.store.remove_needless_checkpoints(&key);
        assert!(!checkpoints.exists());
    }

    #[test]
    fn only_a_plain_file_is_taken_in() {
        let made = fixture();
        let lock = made.lock();
        let draft = made.store.draft(&made.parts.key(), &lock).unwrap();
        let error = |name: &str| made.store.take_in(&draft, name, "file/txt", &made.provenance, true).unwrap_err().to_string();
        assert!(error("nothing").contains("ended without writing its output `nothing`"));
        std::fs::create_dir(draft.path("folder.txt")).unwrap();
        assert!(error("folder").contains("is no plain file"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/etc/hostname", draft.path("link.txt")).unwrap();
            assert!(error("link").contains("is no plain file"));
        }
    }
}
