//! A plan together with a store: what is done, what is stale and why, what waits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Context as _;
use dcu_artifact::{Digest, Producer, Provenance, digest_json};
use serde_json::{Map, Value, json};

use crate::catalogue::Catalogue;
use crate::device::Device;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::fingerprint::{self, Code};
use crate::pipeline::Pipeline;
use crate::plan::{Instance, Plan, Task};
use crate::programs::Mode;
use crate::reasons::{Reason, differences};
use crate::store::{Care, Found, Parts, Store, Stored};

/// A pipeline, resolved against the code as it is, and the store that its results are in.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) plan: Plan,
    pub(crate) store: Store,
    pub(crate) catalogue: Catalogue,
    /// How closely results are looked at before they are used.
    pub(crate) care: Care,
    /// Where networks compute.
    pub(crate) device: Device,
    codes: Vec<Code>,
}

/// Where an instance stands.
#[derive(Debug)]
pub(crate) enum State {
    Cached(Box<Stored>),
    Stale(Vec<Reason>),
    /// Its key is unknown until these have run.
    Waits(Vec<usize>),
}

/// What the runner's timings are called among the outside files; no artifact names them.
const TIMINGS: &str = "timings";

/// What is known of each instance of a plan.
pub(crate) type Known = Vec<Option<Stored>>;

/// The folder of the workspace: that which cargo runs this program for, else that which it was built from. They differ where two checkouts share
/// a build folder.
pub(crate) fn workspace() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&package).parent().expect("xtask lies in the workspace").to_owned()
    })
}

/// The store that is used unless `--store` names another.
pub(crate) fn default_store() -> PathBuf {
    workspace().join("artifacts")
}

impl Session {
    /// Reads and checks a pipeline whole; nothing has run when this fails.
    pub(crate) fn open(file: &Path, settings: &[String], store: Option<&Path>, mode: Mode, device: &Device) -> anyhow::Result<Self> {
        let store = store.map_or_else(default_store, Path::to_owned);
        let (plan, catalogue) = plan(file, settings, &store, mode, device)?;
        let codes = plan.instances.iter().map(|instance| code(&plan, instance, &catalogue)).collect::<anyhow::Result<_>>()?;
        Ok(Self { plan, store: Store::new(&store), catalogue, care: Care::Stamps, device: device.clone(), codes })
    }

    pub(crate) fn pipeline_name(&self) -> &str {
        &self.plan.pipeline.name
    }

    /// All that decides the result of an instance, or the instances that must run before it is known.
    pub(crate) fn parts(&self, index: usize, known: &Known) -> Result<Parts, Vec<usize>> {
        if self.plan.instances[index].problem.is_some() {
            return Err(vec![index]);
        }
        self.parts_as_checked(index, known)
    }

    fn parts_as_checked(&self, index: usize, known: &Known) -> Result<Parts, Vec<usize>> {
        let instance = &self.plan.instances[index];
        let missing: Vec<usize> = instance.needs().into_iter().filter(|&need| known[need].is_none()).collect();
        if !missing.is_empty() {
            return Err(missing);
        }
        let digest = |source: &crate::plan::Source| {
            known[source.instance].as_ref().map(|stored| stored.record.outputs[&source.output].digest.clone())
        };
        let inputs = instance.inputs.iter().map(|(name, sources)| (name.clone(), sources.iter().filter_map(digest).collect()));
        let mut externals: BTreeMap<String, Digest> = instance
            .checked
            .externals
            .iter()
            .map(|external| (external.name.clone(), external.digest.clone().unwrap_or_else(|| digest_json(&Value::Null))))
            .collect();
        if let Some(timings) = self.timings(index, known) {
            externals.insert(TIMINGS.into(), digest_json(&timings));
        }
        let (task, version) = match &instance.task {
            Task::Method { version, .. } => (Value::String(instance.task.uses()), Some(*version)),
            Task::Command { command, .. } => (json!(command), None),
        };
        Ok(Parts {
            task,
            version,
            parameters: instance.checked.parameters.clone(),
            seed: instance.seed,
            inputs: inputs.collect(),
            externals,
            outputs: instance.outputs.iter().map(|output| (output.name.clone(), output.schema.clone())).collect(),
            code: self.codes[index].clone(),
            device: self.device_of(index).map(str::to_owned),
        })
    }

    /// The device that an instance must be told of: where its method computes with networks, and not on the CPU as usual.
    pub(crate) fn device_of(&self, index: usize) -> Option<&str> {
        let uses_device = matches!(self.plan.instances[index].task, Task::Method { uses_device: true, .. });
        self.device.unusual().filter(|_| uses_device)
    }

    /// What an artifact of an instance must say of how it was made.
    pub(crate) fn provenance(&self, index: usize, parts: &Parts) -> Provenance {
        let instance = &self.plan.instances[index];
        let (producer, externals) = match &instance.task {
            Task::Method { crate_name, method, version, .. } => {
                let producer = Producer { crate_name: format!("dcu-{crate_name}"), method: method.clone(), version: *version };
                let mut externals = parts.externals.clone();
                externals.remove(TIMINGS);
                (producer, externals)
            }
            Task::Command { .. } => {
                let producer = Producer { crate_name: "outside".into(), method: instance.stage.clone(), version: 0 };
                (producer, parts.code.files.clone())
            }
        };
        Provenance { producer, parameters: parts.parameters.clone(), seed: parts.seed, inputs: parts.inputs.clone(), externals }
    }

    /// The files of an outside stage as they are now.
    pub(crate) fn code_of_outside(&self, index: usize) -> anyhow::Result<Option<Code>> {
        match &self.plan.instances[index].task {
            Task::Method { .. } => Ok(None),
            Task::Command { .. } => code(&self.plan, &self.plan.instances[index], &self.catalogue).map(Some),
        }
    }

    /// The folder of the store in which results of an instance's task lie.
    pub(crate) fn task_folder(&self, index: usize) -> String {
        match &self.plan.instances[index].task {
            Task::Method { crate_name, method, .. } => format!("{crate_name}-{method}"),
            Task::Command { .. } => format!("command-{}", self.plan.instances[index].stage),
        }
    }

    /// Where an instance stands, given what its inputs are.
    pub(crate) fn state(&self, index: usize, known: &Known) -> State {
        if let Some(problem) = &self.plan.instances[index].problem {
            return State::Stale(vec![Reason::Outside(problem.message.clone())]);
        }
        let unknown = self.plan.instances[index].checked.externals.iter().find(|external| external.digest.is_none());
        if let Some(external) = unknown {
            return State::Stale(vec![Reason::NotAsked(external.name.clone())]);
        }
        let parts = match self.parts(index, known) {
            Ok(parts) => parts,
            Err(missing) => return State::Waits(missing),
        };
        match self.store.find(&self.task_folder(index), &parts.key(), &self.provenance(index, &parts), self.care) {
            Found::Result(stored) => State::Cached(stored),
            Found::Damaged(reason) => State::Stale(vec![Reason::Damaged(reason)]),
            Found::Nothing => {
                let last = self.store.last(self.pipeline_name(), &self.plan.instances[index].name);
                State::Stale(last.map_or_else(|| vec![Reason::NeverRan], |last| differences(&last, &parts)))
            }
        }
    }

    /// The result that an instance had last, if nothing has changed but what lies outside, which cannot be asked, and the parameters, which are not known without it.
    pub(crate) fn last_result(&self, index: usize, known: &Known) -> Option<Stored> {
        let last = self.store.last(self.pipeline_name(), &self.plan.instances[index].name)?;
        let now = self.parts_as_checked(index, known).ok()?;
        let now = Parts { parameters: last.parameters.clone(), externals: last.externals.clone(), ..now };
        if now != last {
            return None;
        }
        match self.store.find(&self.task_folder(index), &last.key(), &self.provenance(index, &last), self.care) {
            Found::Result(stored) => Some(*stored),
            Found::Damaged(_) | Found::Nothing => None,
        }
    }

    /// Where every instance stands.
    pub(crate) fn states(&self) -> (Vec<State>, Known) {
        let mut known: Known = vec![None; self.plan.instances.len()];
        let mut states = Vec::new();
        for index in 0..self.plan.instances.len() {
            let state = self.state(index, &known);
            if let State::Cached(stored) = &state {
                known[index] = Some((**stored).clone());
            }
            states.push(state);
        }
        (states, known)
    }

    /// The timings of all that an instance rests on, if its method wants them and they are known (docs/contracts.md).
    pub(crate) fn timings(&self, index: usize, known: &Known) -> Option<Value> {
        if !matches!(self.plan.instances[index].task, Task::Method { timings: true, .. }) {
            return None;
        }
        let instances = self.plan.ancestors(index).into_iter().map(|ancestor| {
            let instance = &self.plan.instances[ancestor];
            let record = &known[ancestor].as_ref()?.record;
            let names = |sources: &Vec<crate::plan::Source>| sources.iter().map(|source| self.plan.instances[source.instance].name.clone()).collect::<Vec<_>>();
            let inputs: Map<String, Value> = instance.inputs.iter().map(|(name, sources)| (name.clone(), json!(names(sources)))).collect();
            let outputs: Map<String, Value> =
                record.outputs.iter().map(|(name, made)| (name.clone(), json!({ "schema": made.schema, "digest": made.digest }))).collect();
            Some(json!({
                "stage": instance.stage, "instance": instance.name, "uses": instance.task.uses(), "version": instance.task.version(), "label": instance.label, "seed": instance.row_seed,
                "coordinates": coordinates(instance), "parameters": record.parts.parameters, "seconds": record.seconds, "cost": record.cost,
                "inputs": inputs, "outputs": outputs,
            }))
        });
        Some(json!({ "pipeline": self.pipeline_name(), "instances": instances.collect::<Option<Vec<_>>>()? }))
    }
}

/// The coordinates by key; keys that two stages share carry the stage's name.
pub(crate) fn coordinates(instance: &Instance) -> Map<String, Value> {
    let shared = |key: &str| instance.coordinates.iter().filter(|coordinate| coordinate.key == key).count() > 1;
    let name = |coordinate: &crate::plan::Coordinate| match shared(&coordinate.key) {
        true => format!("{}.{}", coordinate.stage, coordinate.key),
        false => coordinate.key.clone(),
    };
    instance.coordinates.iter().map(|coordinate| (name(coordinate), Value::String(coordinate.value.clone()))).collect()
}

/// Resolves a pipeline with the programs that it needs. Programs that are only looked at are built where they are older than their sources and
/// something does not fit.
fn plan(file: &Path, settings: &[String], store: &Path, mode: Mode, device: &Device) -> anyhow::Result<(Plan, Catalogue)> {
    let pipeline = Pipeline::read(file, settings)?;
    let mut catalogue = Catalogue::open(workspace(), Some(store), &Plan::crates(&pipeline), mode, device.feature())?;
    match Plan::new(pipeline, &mut catalogue) {
        Ok(plan) => Ok((plan, catalogue)),
        Err(_) if catalogue.is_outdated() => {
            eprintln!("the programs are older than their code, and something does not fit: asking cargo");
            let mut catalogue = catalogue.rebuilt()?;
            let plan = Plan::new(Pipeline::read(file, settings)?, &mut catalogue)?;
            Ok((plan, catalogue))
        }
        Err(error) => Err(error),
    }
}

fn code(plan: &Plan, instance: &Instance, catalogue: &Catalogue) -> anyhow::Result<Code> {
    match &instance.task {
        Task::Method { crate_name, method, .. } => catalogue.code(crate_name, method),
        Task::Command { command, code, folder } => {
            if let Some((position, name)) = code.iter().enumerate().find(|(_, name)| !folder.join(name).is_file()) {
                let position = position.to_string();
                let place = plan.pipeline.document.at(&["stages", instance.stage.as_str(), "code", &position]);
                return Err(Diagnostics::from(Diagnostic::new(place, format!("there is no file `{}`", folder.join(name).display()))).into());
            }
            fingerprint::outside(folder, command, code, &instance.parameters).context("cannot read the files of an outside stage")
        }
    }
}
