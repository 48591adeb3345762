//! What a running method sees of the world: its inputs, outputs, seed, progress and checkpoints.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dcu_artifact::{Cost, Digest, Header, Payload, Producer, Provenance};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::progress::Progress;
use crate::{Checkpoints, External, Input, Meter, Output};

/// The surroundings of one run.
#[derive(Debug)]
pub struct Context {
    pub(crate) crate_name: &'static str,
    pub(crate) seed: Option<u64>,
    pub(crate) device: Option<String>,
    pub(crate) inputs: BTreeMap<String, Vec<PathBuf>>,
    pub(crate) outputs: BTreeMap<String, PathBuf>,
    pub(crate) timings: Option<PathBuf>,
    pub(crate) checkpoint: Option<PathBuf>,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) progress: Progress,
    provenance: Option<Provenance>,
    written: BTreeMap<String, Value>,
    clock: Clock,
    meter: Option<Meter>,
    changed: Option<f64>,
}

/// The arguments of a run, as the command line gives them.
pub(crate) struct Arguments {
    pub(crate) seed: Option<u64>,
    /// Where it computes; by default on the CPU.
    pub(crate) device: Option<String>,
    pub(crate) inputs: Vec<(String, PathBuf)>,
    pub(crate) outputs: Vec<(String, PathBuf)>,
    pub(crate) timings: Option<PathBuf>,
    pub(crate) checkpoint: Option<PathBuf>,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) progress: Progress,
}

impl Context {
    pub(crate) fn new(crate_name: &'static str, arguments: Arguments, meter: Option<Meter>) -> Self {
        let mut inputs: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for (name, path) in arguments.inputs {
            inputs.entry(name).or_default().push(path);
        }
        Self {
            crate_name,
            seed: arguments.seed,
            device: arguments.device,
            inputs,
            outputs: arguments.outputs.into_iter().collect(),
            timings: arguments.timings,
            checkpoint: arguments.checkpoint,
            checkpoint_interval: arguments.checkpoint_interval,
            progress: arguments.progress,
            provenance: None,
            written: BTreeMap::new(),
            clock: Clock::start(),
            meter,
            changed: None,
        }
    }

    /// Checks the given inputs and outputs against the declaration, before anything runs, and puts aside the inputs that are not read.
    pub(crate) fn check(&mut self, inputs: &[Input], outputs: &[Output], uses_seed: bool) -> anyhow::Result<()> {
        for input in inputs {
            let count = self.inputs.get(input.name).map_or(0, Vec::len);
            ensure!(input.optional || count > 0, "the input `{0}` is missing; give `--in {0}=PATH`", input.name);
            ensure!(input.many || count <= 1, "the input `{}` takes one value, not {count}", input.name);
        }
        for name in self.inputs.keys() {
            let known = || inputs.iter().map(|input| input.name).collect::<Vec<_>>().join("`, `");
            ensure!(inputs.iter().any(|input| input.name == name), "there is no input `{name}`; the inputs are `{}`", known());
        }
        for output in outputs {
            ensure!(self.outputs.contains_key(output.name), "the output `{0}` is missing; give `--out {0}=PATH`", output.name);
        }
        for name in self.outputs.keys() {
            let known = || outputs.iter().map(|output| output.name).collect::<Vec<_>>().join("`, `");
            ensure!(outputs.iter().any(|output| output.name == name), "there is no output `{name}`; the outputs are `{}`", known());
        }
        ensure!(!uses_seed || self.seed.is_some(), "this method uses the seed; give `--seed N`");
        self.inputs.retain(|name, _| !inputs.iter().any(|input| input.name == name && input.unused));
        Ok(())
    }

    pub(crate) fn set_provenance(
        &mut self,
        method: &str,
        version: u32,
        uses_seed: bool,
        parameters: Value,
        externals: &[External],
    ) -> anyhow::Result<()> {
        let producer = Producer { crate_name: self.crate_name.to_owned(), method: method.to_owned(), version };
        let digests = |paths: &Vec<PathBuf>| paths.iter().filter_map(|path| Header::read(path).ok()).map(|header| header.digest).collect();
        let digest_of = |external: &External| {
            let digest = external.digest.clone().with_context(|| format!("the content of `{}` is not known", external.name))?;
            Ok((external.name.clone(), digest))
        };
        self.provenance = Some(Provenance {
            producer,
            parameters,
            seed: self.seed.filter(|_| uses_seed),
            inputs: self.inputs.iter().map(|(name, paths)| (name.clone(), digests(paths))).collect(),
            externals: externals.iter().map(digest_of).collect::<anyhow::Result<_>>()?,
        });
        Ok(())
    }

    /// Takes back what was written, where it turns out that it must not be used.
    pub(crate) fn discard(&self) {
        for name in self.written.keys() {
            if let Some(path) = self.outputs.get(name) {
                std::fs::remove_file(path).ok();
            }
        }
    }

    /// The seed of this run.
    ///
    /// # Panics
    /// In a method that does not declare to use the seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        let uses_seed = self.provenance.as_ref().is_some_and(|provenance| provenance.seed.is_some());
        assert!(uses_seed, "only a method with USES_SEED may ask for the seed");
        self.seed.expect("checked before the run")
    }

    /// Reads and checks the input `name`.
    ///
    /// # Errors
    /// When it was not given or is no sound artifact of its schema.
    pub fn read<P: Payload>(&mut self, name: &str) -> anyhow::Result<P> {
        self.read_optional(name)?.with_context(|| format!("the input `{name}` is missing"))
    }

    /// Reads and checks the input `name`, where it is given.
    ///
    /// # Errors
    /// When it is no sound artifact of its schema.
    pub fn read_optional<P: Payload>(&mut self, name: &str) -> anyhow::Result<Option<P>> {
        Ok(self.read_many(name)?.pop().map(|(payload, _)| payload))
    }

    /// Reads and checks all values of the input `name`, in order, each with its content digest.
    ///
    /// # Errors
    /// When one is no sound artifact of its schema.
    pub fn read_many<P: Payload>(&mut self, name: &str) -> anyhow::Result<Vec<(P, Digest)>> {
        let begin = Instant::now();
        let paths = self.inputs.get(name).map_or(&[][..], Vec::as_slice);
        let values = paths.iter().map(|path| {
            let (payload, header) = dcu_artifact::read::<P>(path).with_context(|| format!("cannot use the input `{name}`"))?;
            Ok((payload, header.digest))
        });
        let values = values.collect::<anyhow::Result<Vec<_>>>();
        self.clock.loaded(begin.elapsed());
        values
    }

    /// The runner's timings, as docs/contracts.md describes them; `None` where a method is run by hand without them.
    ///
    /// # Errors
    /// When the file cannot be read or is no JSON.
    pub fn timings(&self) -> anyhow::Result<Option<Value>> {
        let Some(path) = &self.timings else { return Ok(None) };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("`{}` is no JSON", path.display()))
    }

    /// Writes the output `name`.
    ///
    /// # Errors
    /// When the payload breaks a rule of its schema or cannot be written.
    pub fn write<P: Payload>(&mut self, name: &str, payload: &P) -> anyhow::Result<()> {
        self.progress.phase("write");
        let begin = Instant::now();
        let path = self.output(name)?;
        let provenance = self.provenance.as_ref().context("a method ran outside of its entry")?;
        let digest = dcu_artifact::write(&path, payload, provenance).with_context(|| format!("cannot write the output `{name}`"))?;
        self.written.insert(name.to_owned(), json!({ "schema": P::SCHEMA, "digest": digest }));
        self.clock.wrote(begin.elapsed());
        Ok(())
    }

    /// Writes the output `name` as a plain file of the schema `file/EXTENSION`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_file(&mut self, name: &str, schema: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.progress.phase("write");
        let begin = Instant::now();
        let path = self.output(name)?;
        dcu_artifact::replace_file(&path, bytes).with_context(|| format!("cannot write the output `{name}`"))?;
        self.written.insert(name.to_owned(), json!({ "schema": schema, "digest": dcu_artifact::digest_bytes(bytes) }));
        self.clock.wrote(begin.elapsed());
        Ok(())
    }

    /// Records, beside what was computed, the share of a model's parameters that the method changed, from 0 to 1.
    pub fn changed(&mut self, share: f64) {
        self.changed = Some(share);
    }

    fn output(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.outputs.get(name).cloned().with_context(|| format!("the output `{name}` was not asked for"))
    }

    /// Where to report what is being done.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The checkpoints of this run.
    ///
    /// # Panics
    /// Outside of a run.
    #[must_use]
    pub fn checkpoints(&self) -> Checkpoints {
        let mut provenance = self.provenance.clone().expect("a method runs inside its entry");
        if let Some(device) = &self.device {
            // What one device began another must not end.
            provenance.producer.method.push_str(&format!(" on {device}"));
        }
        Checkpoints::new(self.checkpoint.clone(), provenance, self.checkpoint_interval, self.progress, self.clock.clone(), self.meter)
    }

    /// The result for stdout. Every declared output must have been written.
    pub(crate) fn finish(self, outputs: &[Output]) -> anyhow::Result<Value> {
        if let Some(output) = outputs.iter().find(|output| !self.written.contains_key(output.name)) {
            bail!("the method ended without writing its output `{}`; this is a bug", output.name);
        }
        let (seconds, earlier) = (self.clock.so_far(), self.clock.earlier());
        let cost = Cost { changed: self.changed, ..self.meter.map(|meter| (meter.read)()).unwrap_or_default() };
        Ok(json!({
            "outputs": self.written, "seconds": seconds, "earlier": earlier, "cost": cost, "peak_memory": crate::memory::peak_memory(),
            "threads": rayon::current_num_threads(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use crate::Snapshot;

    use super::*;

    #[test]
    fn what_one_device_began_another_does_not_go_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = |device: Option<&str>| {
            let arguments = Arguments {
                seed: None,
                device: device.map(str::to_owned),
                inputs: Vec::new(),
                outputs: Vec::new(),
                timings: None,
                checkpoint: Some(folder.path().to_owned()),
                checkpoint_interval: Duration::ZERO,
                progress: Progress::silent(),
            };
            let mut context = Context::new("dcu-test", arguments);
            context.set_provenance("fit", 1, false, json!({}), &[]).unwrap();
            context.checkpoints()
        };
        let snapshot = || Snapshot { position: json!(3), tensors: BTreeMap::new() };
        for (device, others) in [(None, [Some("cpu-composed"), Some("cuda:0")]), (Some("cuda:0"), [None, Some("cuda:1")])] {
            checkpoints(device).offer(|| Ok(snapshot())).unwrap();
            assert_eq!(checkpoints(device).resume(), Some(snapshot()), "{device:?}");
            for other in others {
                assert_eq!(checkpoints(other).resume(), None, "{device:?} {other:?}");
            }
        }
    }
}
