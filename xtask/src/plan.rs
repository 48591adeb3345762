//! From stages to instances: matrices, seeds and labels resolved, every connection and parameter checked, in an order in which they can run.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Map, Value};

use crate::catalogue::{Answer, Catalogue, Checked, Method, Output, Rejection, RejectionKind};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, cut, nearest};
use crate::names;
use crate::pipeline::{Links, MOST_INSTANCES, Pipeline, SETTABLE_KEYS, Stage, Work, check_schema, plain_text};

/// A plan holds at most so many connections and values of parameters, over all instances: what they take in memory.
const MOST_PARTS: usize = 2_000_000;
/// The seed of stages whose method is pinned, unless the pipeline gives another.
const PINNED_SEED: u64 = 0;

/// All instances of a pipeline, each after what it needs.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) pipeline: Pipeline,
    pub(crate) instances: Vec<Instance>,
}

/// One run of one stage: a point of its matrix and a seed.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    /// Unique in the plan, such as `evaluate@baseline@retrain#42`.
    pub(crate) name: String,
    pub(crate) stage: String,
    pub(crate) task: Task,
    pub(crate) label: String,
    /// The seed that the process gets.
    pub(crate) seed: Option<u64>,
    /// The seed that this instance belongs to; none where it is the same for all.
    pub(crate) row_seed: Option<u64>,
    pub(crate) coordinates: Vec<Coordinate>,
    /// The parameters as written, locations resolved, what its check has pinned put over them.
    pub(crate) parameters: Value,
    pub(crate) inputs: Vec<(String, Vec<Source>)>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) checked: Checked,
    /// How long its process may run.
    pub(crate) timeout: Option<Duration>,
    /// Why it cannot run: something outside is missing. Then `checked` says nothing.
    pub(crate) problem: Option<Diagnostic>,
}

/// What an instance runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    Method { crate_name: String, method: String, version: u32, timings: bool, uses_device: bool },
    Command { command: Vec<String>, code: Vec<String>, folder: PathBuf },
}

/// A value of a matrix, and the stage whose matrix it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Coordinate {
    pub(crate) stage: String,
    pub(crate) key: String,
    pub(crate) value: String,
}

/// An output of another instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) instance: usize,
    pub(crate) output: String,
}

impl Task {
    /// `train/fit`, or `command`.
    pub(crate) fn uses(&self) -> String {
        match self {
            Self::Method { crate_name, method, .. } => format!("{crate_name}/{method}"),
            Self::Command { .. } => "command".into(),
        }
    }

    /// That of the method.
    pub(crate) fn version(&self) -> Option<u32> {
        match self {
            Self::Method { version, .. } => Some(*version),
            Self::Command { .. } => None,
        }
    }
}

impl Instance {
    /// The instances that it needs, each once.
    pub(crate) fn needs(&self) -> Vec<usize> {
        let mut needs: Vec<usize> = self.inputs.iter().flat_map(|(_, sources)| sources).map(|source| source.instance).collect();
        needs.sort_unstable();
        needs.dedup();
        needs
    }
}

impl Plan {
    /// Resolves and checks a pipeline. That something outside is missing is no error here, but the problem of the instances that read it.
    pub(crate) fn new(pipeline: Pipeline, catalogue: &mut Catalogue) -> anyhow::Result<Self> {
        let mut instances = expand(&pipeline, catalogue)?;
        check_parameters(&pipeline, catalogue, &mut instances)?;
        Ok(Self { pipeline, instances })
    }

    /// The stage crates whose methods a pipeline names.
    pub(crate) fn crates(pipeline: &Pipeline) -> BTreeSet<String> {
        let uses = |stage: &Stage| match &stage.work {
            Work::Method(uses) => points(&stage.matrix).iter().filter_map(|point| substitute(uses, point).ok()).collect(),
            Work::Command { .. } => Vec::new(),
        };
        pipeline.stages.iter().flat_map(uses).filter_map(|uses| Some(uses.split_once('/')?.0.to_owned())).collect()
    }

    /// The instances that a name selects: a stage, or one instance.
    pub(crate) fn select(&self, name: &str) -> anyhow::Result<Vec<usize>> {
        let found = self.named(name);
        if found.is_empty() {
            let names = self
                .pipeline
                .stages
                .iter()
                .map(|stage| stage.name.as_str())
                .chain(self.instances.iter().map(|instance| instance.name.as_str()));
            let (message, help) = (format!("there is no stage or instance `{}`", cut(name)), nearest(name, names));
            return Err(Diagnostics::from(Diagnostic { place: None, message, help }).into());
        }
        Ok(found)
    }

    /// The instances that a name selects, with the one output that it names, if it does: `base`, `data.train`, `evaluate@base#1.metrics`.
    pub(crate) fn select_output<'n>(&self, name: &'n str) -> anyhow::Result<(Vec<usize>, Option<&'n str>)> {
        let split = name.rsplit_once('.').filter(|_| self.named(name).is_empty());
        let Some((stage, output)) = split.filter(|(stage, _)| !self.named(stage).is_empty()) else { return Ok((self.select(name)?, None)) };
        let found = self.named(stage);
        let outputs = || found.iter().flat_map(|&index| &self.instances[index].outputs).map(|output| output.name.as_str());
        if outputs().all(|known| known != output) {
            let mut names: Vec<&str> = outputs().collect();
            names.dedup();
            let (message, help) = (format!("`{stage}` has no output `{}`", cut(output)), nearest(output, names));
            return Err(Diagnostics::from(Diagnostic { place: None, message, help }).into());
        }
        Ok((found, Some(output)))
    }

    fn named(&self, name: &str) -> Vec<usize> {
        (0..self.instances.len()).filter(|&index| self.instances[index].stage == name || self.instances[index].name == name).collect()
    }

    /// The problems of these instances and of all that they rest on, if there are any.
    pub(crate) fn refuse(&self, selected: &[usize]) -> Result<(), Diagnostics> {
        let mut needed = vec![false; self.instances.len()];
        selected.iter().for_each(|&index| needed[index] = true);
        for index in (0..needed.len()).rev() {
            if needed[index] {
                self.instances[index].needs().into_iter().for_each(|need| needed[need] = true);
            }
        }
        let mut problems = Diagnostics::default();
        let needed = self.instances.iter().zip(needed).filter(|(_, needed)| *needed);
        needed.filter_map(|(instance, _)| instance.problem.clone()).for_each(|problem| problems.push(problem));
        problems.into_result()
    }

    /// The place to look at when an instance has failed: the setting that gave it the file which the message speaks of, else its stage.
    pub(crate) fn place_of_failure(&self, instance: &Instance, message: &str) -> Place {
        let stage = instance.stage.as_str();
        let mut given = instance.parameters.as_object().into_iter().flatten();
        let blamed = given.find(|(key, value)| {
            let is_set = self.pipeline.document.is_overridden(&["stages", stage, "with", key]);
            // Locations are resolved to whole paths; nothing else is one.
            is_set && value.as_str().is_some_and(|path| Path::new(path).is_absolute() && speaks_of(message, path))
        });
        match blamed {
            Some((key, _)) => self.pipeline.document.at(&["stages", stage, "with", key]),
            None => self.pipeline.document.at_key(&["stages", stage]),
        }
    }

    /// These instances and all that depend on them.
    pub(crate) fn downstream(&self, of: &[usize]) -> Vec<usize> {
        let mut found = vec![false; self.instances.len()];
        of.iter().for_each(|&index| found[index] = true);
        for index in 0..found.len() {
            found[index] = found[index] || self.instances[index].needs().iter().any(|&need| found[need]);
        }
        (0..found.len()).filter(|&index| found[index]).collect()
    }

    /// All instances that `of` rests on, itself left out, in order.
    pub(crate) fn ancestors(&self, of: usize) -> Vec<usize> {
        let mut found = vec![false; self.instances.len()];
        for index in (0..=of).rev() {
            if index == of || found[index] {
                self.instances[index].needs().into_iter().for_each(|need| found[need] = true);
            }
        }
        (0..of).filter(|&index| found[index]).collect()
    }

    /// The label under which a result is reported: that of the model that it judges, else its own.
    pub(crate) fn row_label(&self, index: usize) -> &str {
        let instance = &self.instances[index];
        let model = instance.inputs.iter().find(|(name, _)| name == "model").and_then(|(_, sources)| sources.first());
        model.map_or(&instance.label, |source| &self.instances[source.instance].label)
    }
}

/// All instances, in an order in which they can run, their connections checked.
fn expand(pipeline: &Pipeline, catalogue: &Catalogue) -> Result<Vec<Instance>, Diagnostics> {
    let mut expansion = Expansion::new(pipeline, catalogue);
    for stage in order(pipeline, catalogue)? {
        expansion.stage(&pipeline.stages[stage]);
    }
    expansion.finish()
}

/// Whether a message names a file or folder: by its path, or by its last part.
fn speaks_of(message: &str, path: &str) -> bool {
    let name = Path::new(path).file_name().and_then(|name| name.to_str());
    name.is_some() && (message.contains(path) || name.is_some_and(|name| name.len() > 2 && message.contains(name)))
}

/// `stage` or `stage.output`.
fn split_link(link: &str) -> (&str, Option<&str>) {
    link.split_once('.').map_or((link, None), |(stage, output)| (stage, Some(output)))
}

/// The stages in an order in which each comes after what it needs, and else as they are written.
fn order(pipeline: &Pipeline, catalogue: &Catalogue) -> Result<Vec<usize>, Diagnostics> {
    let positions: HashMap<&str, usize> =
        pipeline.stages.iter().enumerate().map(|(position, stage)| (stage.name.as_str(), position)).collect();
    let mut parts: usize = 0;
    let mut needs: Vec<Vec<usize>> = Vec::new();
    for stage in &pipeline.stages {
        let points = points(&stage.matrix);
        parts = parts.saturating_add(points.len().saturating_mul(stage.inputs.iter().map(|(_, links)| links.all().len()).sum::<usize>()));
        if parts > MOST_PARTS {
            return Err(too_much(pipeline, &stage.name).into());
        }
        let mut found: HashSet<usize> = HashSet::new();
        for point in &points {
            let method = match &stage.work {
                Work::Method(uses) => substitute(uses, point).ok().and_then(|uses| catalogue.find(&uses).map(|(_, method)| method)),
                Work::Command { .. } => None,
            };
            let read = stage.inputs.iter().filter(|(name, _)| !method.is_some_and(|method| is_unused(method, name)));
            let links = read.flat_map(|(_, links)| links.all()).filter_map(|link| substitute(link, point).ok());
            found.extend(links.filter_map(|link| positions.get(split_link(&link).0).copied()));
        }
        let mut found: Vec<usize> = found.into_iter().collect();
        found.sort_unstable();
        needs.push(found);
    }
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); needs.len()];
    let mut open: Vec<usize> = needs.iter().map(Vec::len).collect();
    needs.iter().enumerate().for_each(|(user, needs)| needs.iter().for_each(|&need| users[need].push(user)));
    let mut free: BinaryHeap<Reverse<usize>> = (0..needs.len()).filter(|&stage| open[stage] == 0).map(Reverse).collect();
    let mut order: Vec<usize> = Vec::new();
    while let Some(Reverse(next)) = free.pop() {
        order.push(next);
        for &user in &users[next] {
            open[user] -= 1;
            if open[user] == 0 {
                free.push(Reverse(user));
            }
        }
    }
    if order.len() < needs.len() {
        return Err(cycle(pipeline, &needs, &order).into());
    }
    Ok(order)
}

fn is_unused(method: &Method, input: &str) -> bool {
    method.inputs.iter().any(|known| known.name == input && known.unused)
}

fn too_much(pipeline: &Pipeline, stage: &str) -> Diagnostic {
    let message = format!("up to `{stage}` the instances have more than {MOST_PARTS} connections and values of parameters between them");
    Diagnostic::new(pipeline.document.at_key(&["stages", stage]), message)
        .help("use fewer seeds or matrix values, or name long lists in a file")
}

fn cycle(pipeline: &Pipeline, needs: &[Vec<usize>], done: &[usize]) -> Diagnostic {
    let done: HashSet<usize> = done.iter().copied().collect();
    let mut walk = vec![(0..needs.len()).find(|stage| !done.contains(stage)).expect("some stage is left")];
    let mut steps = HashMap::from([(walk[0], 0)]);
    loop {
        let last = walk[walk.len() - 1];
        let next = *needs[last].iter().find(|need| !done.contains(need)).expect("a stage that cannot run needs another such stage");
        if let Some(start) = steps.insert(next, walk.len()) {
            let mut names: Vec<&str> = walk[start..].iter().map(|&stage| pipeline.stages[stage].name.as_str()).collect();
            names.push(names[0]);
            let place = pipeline.document.at_key(&["stages", names[0]]);
            return Diagnostic::new(place, format!("stages wait for each other in a cycle: {}", names.join(" needs ")))
                .help("take one of these inputs from another stage");
        }
        walk.push(next);
    }
}

type Point = Vec<(String, Value)>;

/// All combinations of a matrix.
fn points(matrix: &[(String, Vec<Value>)]) -> Vec<Point> {
    let mut points: Vec<Point> = vec![Vec::new()];
    for (key, values) in matrix {
        points = points
            .iter()
            .flat_map(|point| values.iter().map(move |value| [point.as_slice(), &[(key.clone(), value.clone())]].concat()))
            .collect();
    }
    points
}

/// Puts the values of a point where `${key}` stands; an unknown key is the error. `$${` is a plain `${`.
fn substitute(text: &str, point: &Point) -> Result<String, String> {
    let mut output = String::new();
    let mut rest = text;
    while let Some(position) = rest.find("${") {
        let (before, after) = (&rest[..position], &rest[position + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            output.push_str(before);
            output.push_str("${");
            rest = after;
            continue;
        }
        output.push_str(before);
        let (key, after) = after.split_once('}').ok_or("`${` without `}`; where no value is meant, write `$${`")?;
        let value = point.iter().find(|(known, _)| known == key).ok_or_else(|| {
            let help = nearest(key, point.iter().map(|(known, _)| known.as_str())).map_or(String::new(), |help| format!("; {help}"));
            format!("`{}` is no key of this stage's matrix{help}", cut(key))
        })?;
        output.push_str(&plain_text(&value.1).expect("a matrix has plain values"));
        rest = after;
    }
    Ok(output + rest)
}

/// As [`substitute`], for any value; a text that is one `${key}` becomes the value itself.
fn substitute_value(value: &Value, point: &Point) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => {
            let whole = text
                .strip_prefix("${")
                .and_then(|text| text.strip_suffix('}'))
                .and_then(|key| point.iter().find(|(known, _)| known == key));
            match whole {
                Some((_, value)) => value.clone(),
                None => Value::String(substitute(text, point)?),
            }
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| substitute_value(item, point)).collect::<Result<_, _>>()?),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, item)| Ok((key.clone(), substitute_value(item, point)?))).collect::<Result<_, String>>()?)
        }
        other => other.clone(),
    })
}

struct Expansion<'a> {
    pipeline: &'a Pipeline,
    catalogue: &'a Catalogue,
    instances: Vec<Instance>,
    problems: Diagnostics,
    known: HashSet<&'a str>,
    /// The instances of each stage.
    of_stage: HashMap<String, Vec<usize>>,
    names: HashSet<String>,
    /// What links of a schema lead to; a stage has all its instances before another links to it.
    links: HashMap<(Vec<String>, Option<String>), Rc<Sources>>,
    /// Connections that are checked and then dropped, once all instances are there.
    unused: Vec<(&'a Stage, Point, String)>,
    /// Connections and values of parameters so far.
    parts: usize,
    /// It has become too large, which has been told.
    is_full: bool,
}

/// A choice of inputs that agree in seed and coordinates.
#[derive(Clone)]
struct Choice {
    seed: Option<u64>,
    coordinates: Vec<Coordinate>,
    inputs: Vec<(String, Vec<Source>)>,
}

impl Choice {
    fn with(&self, instance: &Instance) -> Self {
        let mut choice = self.clone();
        choice.seed = choice.seed.or(instance.row_seed);
        let new = instance.coordinates.iter().filter(|other| !choice.coordinates.contains(other)).cloned().collect::<Vec<_>>();
        choice.coordinates.extend(new);
        choice
    }
}

/// An input of a stage, its links looked up.
struct Wired {
    input: String,
    many: bool,
    sources: Rc<Sources>,
}

/// A key of a matrix, and the stage whose matrix it is.
type Axis = (String, String);

/// Positions of sources by seed and by values on some axes. No seed stands for all; `Some(None)` is that of instances which are the same for all.
type Table = HashMap<(Option<Option<u64>>, Vec<String>), Vec<usize>>;

/// What an input can be connected to, and a way to find what agrees with a choice without looking at each.
#[derive(Default)]
struct Sources {
    list: Vec<Source>,
    /// Positions of the sources that lie on the same axes.
    groups: Vec<(Vec<Axis>, Vec<usize>)>,
    tables: RefCell<HashMap<(usize, Vec<Axis>), Table>>,
}

impl Sources {
    fn new(list: Vec<Source>, instances: &[Instance]) -> Self {
        let mut groups: Vec<(Vec<Axis>, Vec<usize>)> = Vec::new();
        let mut places: HashMap<Vec<Axis>, usize> = HashMap::new();
        for (position, source) in list.iter().enumerate() {
            let axes: Vec<Axis> = instances[source.instance].coordinates.iter().map(Coordinate::axis).collect();
            let group = *places.entry(axes).or_insert_with_key(|axes| {
                groups.push((axes.clone(), Vec::new()));
                groups.len() - 1
            });
            groups[group].1.push(position);
        }
        Self { list, groups, tables: RefCell::default() }
    }

    /// The sources that have the seed of a choice, or none, and its values on the axes that both have; in order.
    fn fitting(&self, instances: &[Instance], choice: &Choice, any_seed: bool) -> Vec<usize> {
        let mut found = Vec::new();
        let mut tables = self.tables.borrow_mut();
        for (group, (axes, members)) in self.groups.iter().enumerate() {
            let shared: Vec<&Coordinate> = choice.coordinates.iter().filter(|own| axes.contains(&own.axis())).collect();
            let shared_axes: Vec<Axis> = shared.iter().map(|own| own.axis()).collect();
            let table = tables.entry((group, shared_axes)).or_insert_with_key(|(_, axes)| {
                let mut table = Table::new();
                for &position in members {
                    let instance = &instances[self.list[position].instance];
                    let value =
                        |axis: &Axis| instance.coordinates.iter().find(|other| other.axis() == *axis).map(|other| other.value.clone());
                    let values: Vec<String> = axes.iter().filter_map(value).collect();
                    table.entry((None, values.clone())).or_default().push(position);
                    table.entry((Some(instance.row_seed), values)).or_default().push(position);
                }
                table
            });
            let values: Vec<String> = shared.iter().map(|own| own.value.clone()).collect();
            let mut look_up = |seed: Option<Option<u64>>| found.extend(table.get(&(seed, values.clone())).into_iter().flatten());
            match choice.seed.filter(|_| !any_seed) {
                None => look_up(None),
                Some(seed) => {
                    look_up(Some(Some(seed)));
                    look_up(Some(None));
                }
            }
        }
        found.sort_unstable();
        found
    }
}

impl Coordinate {
    fn axis(&self) -> Axis {
        (self.stage.clone(), self.key.clone())
    }
}

/// How many values are in a value.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

impl<'a> Expansion<'a> {
    fn new(pipeline: &'a Pipeline, catalogue: &'a Catalogue) -> Self {
        Self {
            pipeline,
            catalogue,
            instances: Vec::new(),
            problems: Diagnostics::default(),
            known: pipeline.stages.iter().map(|stage| stage.name.as_str()).collect(),
            of_stage: HashMap::new(),
            names: HashSet::new(),
            links: HashMap::new(),
            unused: Vec::new(),
            parts: 0,
            is_full: false,
        }
    }

    fn wrong(&mut self, way: &[&str], message: impl Into<String>) {
        self.problems.push(Diagnostic::new(self.pipeline.document.at(way), message));
    }

    fn stage(&mut self, stage: &'a Stage) {
        for point in points(&stage.matrix) {
            if self.is_full {
                return;
            }
            self.point(stage, &point);
        }
    }

    /// All instances, once the connections that none of them reads are checked too.
    fn finish(mut self) -> Result<Vec<Instance>, Diagnostics> {
        for (stage, point, input) in std::mem::take(&mut self.unused) {
            let links = stage.inputs.iter().find(|(name, _)| *name == input).map(|(_, links)| links);
            let method = match &stage.work {
                Work::Method(uses) => self.method(&stage.name, uses, &point),
                Work::Command { .. } => None,
            };
            let schema =
                method.and_then(|(_, method)| method.inputs.iter().find(|known| known.name == input)).map(|input| input.schema.as_str());
            if let Some(links) = links {
                self.sources(stage, &point, &input, links, schema);
            }
        }
        self.problems.into_result()?;
        Ok(self.instances)
    }

    fn point(&mut self, stage: &'a Stage, point: &Point) {
        let name = stage.name.as_str();
        let method = match &stage.work {
            Work::Command { .. } => None,
            Work::Method(uses) => match self.method(name, uses, point) {
                Some(found) => Some(found),
                None => return,
            },
        };
        let Some(parameters) = self.parameters(stage, method.map(|(_, method)| method), point) else { return };
        let Some(wired) = self.wire(stage, method.map(|(_, method)| method), point) else { return };
        let label = match stage.label.as_deref().map(|label| substitute(label, point)) {
            Some(Ok(label)) => match names::check("label", &label) {
                Ok(()) => label,
                Err(message) => return self.wrong(&["stages", name, "label"], message),
            },
            Some(Err(message)) => return self.wrong(&["stages", name, "label"], message),
            None => method.map_or(name, |(_, method)| method.name.as_str()).to_owned(),
        };
        let (task, outputs) = match (&stage.work, method) {
            (Work::Command { command, code, outputs }, _) => {
                let Some(command) = self.texts(name, "command", command, point) else { return };
                let Some(code) = self.texts(name, "code", code, point) else { return };
                let Some(outputs) = self.outputs(name, outputs, point) else { return };
                (Task::Command { command, code, folder: self.pipeline.folder() }, outputs)
            }
            (_, Some((crate_name, method))) => {
                let (crate_name, version) = (crate_name.to_owned(), method.version);
                let (timings, uses_device) = (method.timings, method.uses_device);
                (Task::Method { crate_name, method: method.name.clone(), version, timings, uses_device }, method.outputs.clone())
            }
            _ => unreachable!("a stage without a command has a method"),
        };
        let uses_seed = method.is_none_or(|(_, method)| method.uses_seed);
        let pinned = stage.seed.or_else(|| method.filter(|(_, method)| method.pinned).map(|_| PINNED_SEED));
        let own: Vec<Coordinate> = point
            .iter()
            .map(|(key, value)| Coordinate {
                stage: name.to_owned(),
                key: key.clone(),
                value: plain_text(value).expect("a matrix has plain values"),
            })
            .collect();
        let size: usize = parameters.values().map(count).sum();
        let Some(choices) = self.choices(stage, own, &wired, uses_seed && pinned.is_none(), size) else { return };
        for choice in choices {
            let values: String = choice.coordinates.iter().map(|coordinate| format!("@{}", names::encode(&coordinate.value))).collect();
            let seed_mark = choice.seed.map_or(String::new(), |seed| format!("#{seed}"));
            let full_name = format!("{name}{values}{seed_mark}");
            if !self.names.insert(full_name.clone()) {
                return self.wrong(&["stages", name, "matrix"], format!("the matrix gives two instances the name `{full_name}`"));
            }
            self.of_stage.entry(name.to_owned()).or_default().push(self.instances.len());
            self.instances.push(Instance {
                name: full_name,
                stage: name.to_owned(),
                task: task.clone(),
                label: label.clone(),
                seed: if uses_seed { pinned.or(choice.seed) } else { None },
                row_seed: choice.seed,
                coordinates: choice.coordinates,
                parameters: Value::Object(parameters.clone()),
                inputs: choice.inputs,
                outputs: outputs.clone(),
                checked: Checked::default(),
                timeout: stage.timeout,
                problem: None,
            });
        }
    }

    fn texts(&mut self, stage: &str, key: &str, texts: &[String], point: &Point) -> Option<Vec<String>> {
        let mut substituted = Vec::new();
        for (position, text) in texts.iter().enumerate() {
            match substitute(text, point) {
                Ok(text) => substituted.push(text),
                Err(message) => self.wrong(&["stages", stage, key, &position.to_string()], message),
            }
        }
        (substituted.len() == texts.len()).then_some(substituted)
    }

    fn outputs(&mut self, stage: &str, outputs: &BTreeMap<String, String>, point: &Point) -> Option<Vec<Output>> {
        let mut declared = Vec::new();
        for (name, schema) in outputs {
            let place = || self.pipeline.document.at(&["stages", stage, "out", name]);
            let schema = substitute(schema, point).map_err(|message| Diagnostic::new(place(), message));
            match schema.and_then(|schema| check_schema(&schema, place).map(|()| schema)) {
                Ok(schema) => declared.push(Output { name: name.clone(), schema }),
                Err(problem) => self.problems.push(problem),
            }
        }
        (declared.len() == outputs.len()).then_some(declared)
    }

    fn method(&mut self, stage: &str, uses: &str, point: &Point) -> Option<(&'a str, &'a Method)> {
        let way = ["stages", stage, "uses"];
        let uses = match substitute(uses, point) {
            Ok(uses) => uses,
            Err(message) => {
                self.wrong(&way, message);
                return None;
            }
        };
        let found = self.catalogue.find(&uses);
        if found.is_none() {
            let names = self.catalogue.names();
            let problem = Diagnostic::new(self.pipeline.document.at(&way), format!("there is no method `{}`", cut(&uses)));
            self.problems.push_nearest(problem, &uses, names.iter().map(String::as_str));
        }
        found
    }

    /// The parameters with their locations resolved: from the file's folder, or from the working directory for those of `--set`.
    fn parameters(&mut self, stage: &Stage, method: Option<&Method>, point: &Point) -> Option<Map<String, Value>> {
        let mut parameters = Map::new();
        let found = self.problems.len();
        for (key, value) in &stage.parameters {
            let way = ["stages", stage.name.as_str(), "with", key.as_str()];
            let is_set = self.pipeline.document.is_overridden(&way);
            if let Some(method) = method
                && !method.parameter_names().any(|name| name == key)
            {
                let place = self.pipeline.document.at_key(&way);
                let problem = Diagnostic::new(place, format!("`{}` has no parameter `{}`", method.name, cut(key)));
                let settable = SETTABLE_KEYS.iter().copied().chain(["in.NAME", "matrix.KEY"]).filter(|_| is_set);
                self.problems.push_nearest(problem, key, method.parameter_names().chain(settable));
                continue;
            }
            let value = match substitute_value(value, point) {
                Ok(value) => value,
                Err(message) => {
                    self.wrong(&way, message);
                    continue;
                }
            };
            let is_location = method.is_some_and(|method| method.is_location(key));
            let base = if is_set { PathBuf::from(".") } else { self.pipeline.folder() };
            parameters.insert(key.clone(), if is_location { resolve_location(&base, value) } else { value });
        }
        (self.problems.len() == found).then_some(parameters)
    }

    fn wire(&mut self, stage: &'a Stage, method: Option<&Method>, point: &Point) -> Option<Vec<Wired>> {
        let name = stage.name.as_str();
        let found = self.problems.len();
        if let Some(method) = method {
            let given: HashSet<&str> = stage.inputs.iter().map(|(given, _)| given.as_str()).collect();
            for input in method.inputs.iter().filter(|input| !input.optional && !input.unused && !given.contains(input.name.as_str())) {
                let place = self.pipeline.document.at_key(&["stages", name]);
                let message = format!("`{name}` needs the input `{}` ({}) of `{}`", input.name, input.schema, method.name);
                self.problems.push(Diagnostic::new(place, message).help(format!("add `in: {{ {}: STAGE }}`", input.name)));
            }
        }
        let mut wired = Vec::new();
        for (input, links) in &stage.inputs {
            let declared = method.map(|method| (method, method.inputs.iter().find(|known| known.name == *input)));
            if let Some((method, None)) = declared {
                let place = self.pipeline.document.at_key(&["stages", name, "in", input]);
                let problem = Diagnostic::new(place, format!("`{}` has no input `{input}`", method.name));
                self.problems.push_nearest(problem, input, method.inputs.iter().map(|known| known.name.as_str()));
                continue;
            }
            let declared = declared.and_then(|(_, input)| input);
            let many = declared.map_or(matches!(links, Links::Many(_)), |declared| declared.many);
            if !many && links.all().len() != 1 {
                self.wrong(&["stages", name, "in", input], format!("the input `{input}` takes one value"));
                continue;
            }
            if declared.is_some_and(|declared| declared.unused) {
                self.unused.push((stage, point.clone(), input.clone()));
                continue;
            }
            if let Some(sources) = self.sources(stage, point, input, links, declared.map(|declared| declared.schema.as_str())) {
                wired.push(Wired { input: input.clone(), many, sources });
            }
        }
        (self.problems.len() == found).then_some(wired)
    }

    /// All instances of the outputs that the links of an input name.
    fn sources(&mut self, stage: &Stage, point: &Point, input: &str, links: &Links, schema: Option<&str>) -> Option<Rc<Sources>> {
        let name = stage.name.as_str();
        let position = |position: usize| position.to_string();
        let way = |position: &str| match links {
            Links::One(_) => vec!["stages".to_owned(), name.to_owned(), "in".to_owned(), input.to_owned()],
            Links::Many(_) => vec!["stages".to_owned(), name.to_owned(), "in".to_owned(), input.to_owned(), position.to_owned()],
        };
        let mut targets = Vec::new();
        for (index, link) in links.all().iter().enumerate() {
            match substitute(link, point) {
                Ok(link) => targets.push(link),
                Err(message) => self.problems.push(Diagnostic::new(self.pipeline.document.at(&way(&position(index))), message)),
            }
        }
        if targets.len() < links.all().len() {
            return None;
        }
        let key = (targets, schema.map(str::to_owned));
        if let Some(known) = self.links.get(&key) {
            return Some(Rc::clone(known));
        }
        let before = self.problems.len();
        let mut list = Vec::new();
        for (index, link) in key.0.iter().enumerate() {
            list.extend(self.link(link, schema, &way(&position(index))).unwrap_or_default());
        }
        if self.problems.len() > before {
            return None;
        }
        let sources = Rc::new(Sources::new(list, &self.instances));
        self.links.insert(key, Rc::clone(&sources));
        Some(sources)
    }

    /// All instances of the output that a link names.
    fn link(&mut self, link: &str, schema: Option<&str>, way: &[String]) -> Option<Vec<Source>> {
        let (stage, output) = split_link(link);
        let place = || self.pipeline.document.at(way);
        if !self.known.contains(stage) {
            let problem = Diagnostic::new(place(), format!("there is no stage `{}`", cut(stage)));
            self.problems.push_nearest(problem, stage, self.pipeline.stages.iter().map(|known| known.name.as_str()));
            return None;
        }
        let mut sources = Vec::new();
        for &index in self.of_stage.get(stage).into_iter().flatten() {
            let outputs = &self.instances[index].outputs;
            let names = || outputs.iter().map(|output| output.name.as_str());
            let found = match output {
                Some(output) => outputs.iter().find(|known| known.name == output),
                None if outputs.len() == 1 => outputs.first(),
                None => {
                    let listed: Vec<String> = names().map(|name| format!("`{stage}.{name}`")).collect();
                    let message = format!("`{stage}` has several outputs; name one: {}", listed.join(", "));
                    self.problems.push(Diagnostic::new(place(), message));
                    return None;
                }
            };
            let Some(found) = found else {
                let wrong = output.unwrap_or_default();
                let problem = Diagnostic::new(place(), format!("`{stage}` has no output `{}`", cut(wrong)));
                self.problems.push_nearest(problem, wrong, names());
                return None;
            };
            if let Some(schema) = schema
                && schema != found.schema
            {
                let message = format!("this input needs {schema}, but `{link}` gives {}", found.schema);
                self.problems.push(Diagnostic::new(place(), message));
                return None;
            }
            sources.push(Source { instance: index, output: found.name.clone() });
        }
        Some(sources)
    }

    /// All agreeing choices of inputs: single inputs are joined on what they have in common, lists gather what agrees. `size` is that of the
    /// parameters of each. None where the plan becomes too large.
    fn choices(&mut self, stage: &Stage, own: Vec<Coordinate>, wired: &[Wired], varies: bool, size: usize) -> Option<Vec<Choice>> {
        let room = MOST_INSTANCES - self.instances.len();
        let mut choices = vec![Choice { seed: None, coordinates: own, inputs: Vec::new() }];
        for wire in wired.iter().filter(|wire| !wire.many) {
            let mut next = Vec::new();
            for choice in &choices {
                let fitting = wire.sources.fitting(&self.instances, choice, false);
                if next.len() + fitting.len() > room {
                    return self.full(stage, next.len() + fitting.len());
                }
                for position in fitting {
                    let source = &wire.sources.list[position];
                    let mut joined = choice.with(&self.instances[source.instance]);
                    joined.inputs.push((wire.input.clone(), vec![source.clone()]));
                    next.push(joined);
                }
            }
            choices = next;
        }
        let mut gathered = wired.iter().filter(|wire| wire.many).flat_map(|wire| &wire.sources.list);
        let gathered_vary = !stage.gathers_seeds && gathered.any(|source| self.instances[source.instance].row_seed.is_some());
        if varies || gathered_vary {
            let seeds = &self.pipeline.seeds;
            let all: usize = choices.iter().map(|choice| if choice.seed.is_some() { 1 } else { seeds.len() }).sum();
            if all > room {
                return self.full(stage, all);
            }
            choices = choices
                .iter()
                .flat_map(|choice| {
                    let seeds = choice.seed.map_or_else(|| seeds.clone(), |seed| vec![seed]);
                    seeds.into_iter().map(|seed| Choice { seed: Some(seed), ..choice.clone() })
                })
                .collect();
        }
        if choices.len() > room {
            return self.full(stage, choices.len());
        }
        for choice in &mut choices {
            self.parts += size;
            for wire in wired.iter().filter(|wire| wire.many) {
                let fitting = wire.sources.fitting(&self.instances, choice, stage.gathers_seeds);
                self.parts += fitting.len();
                if self.parts > MOST_PARTS {
                    break;
                }
                choice.inputs.push((wire.input.clone(), fitting.into_iter().map(|position| wire.sources.list[position].clone()).collect()));
            }
            if self.parts > MOST_PARTS {
                self.is_full = true;
                self.problems.push(too_much(self.pipeline, &stage.name));
                return None;
            }
        }
        Some(choices)
    }

    fn full<T>(&mut self, stage: &Stage, more: usize) -> Option<T> {
        self.is_full = true;
        let (name, before) = (stage.name.as_str(), self.instances.len());
        let message = format!("`{name}` brings the instances to {} at least; a plan has at most {MOST_INSTANCES}", before + more);
        let place = self.pipeline.document.at_key(&["stages", name]);
        self.problems.push(Diagnostic::new(place, message).help("use fewer seeds or matrix values, or several pipelines over one store"));
        None
    }
}

fn resolve_location(base: &Path, value: Value) -> Value {
    match value {
        Value::String(text) => {
            Value::String(std::path::absolute(base.join(&text)).unwrap_or_else(|_| base.join(&text)).display().to_string())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| resolve_location(base, item)).collect()),
        other => other,
    }
}

/// Asks the stage crates whether the parameters of all instances fit. Where a crate names another that does it, that one is asked. A parameter that
/// does not fit is an error; where something outside is missing, that is the problem of the instances that read it.
fn check_parameters(pipeline: &Pipeline, catalogue: &mut Catalogue, instances: &mut [Instance]) -> anyhow::Result<()> {
    let mut problems = Diagnostics::default();
    let mut open: Vec<usize> = (0..instances.len()).collect();
    while !open.is_empty() {
        let mut questions: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
        let mut positions: HashMap<String, usize> = HashMap::new();
        let mut asked: Vec<(usize, String, usize)> = Vec::new();
        for index in open {
            let instance = &mut instances[index];
            let Task::Method { crate_name, method, .. } = &instance.task else {
                instance.checked.parameters = instance.parameters.clone();
                continue;
            };
            let known = questions.entry(crate_name.clone()).or_default();
            let question = format!("{crate_name}/{method} {}", dcu_artifact::canonical_json(&instance.parameters));
            let position = *positions.entry(question).or_insert_with(|| {
                known.push((method.clone(), instance.parameters.clone()));
                known.len() - 1
            });
            asked.push((index, crate_name.clone(), position));
        }
        let answers = catalogue.check(&questions)?;
        let elsewhere = answers.values().flatten().filter_map(|answer| match answer {
            Answer::Elsewhere { elsewhere } => Some(elsewhere.clone()),
            _ => None,
        });
        catalogue.add(&elsewhere.collect())?;
        open = Vec::new();
        for (index, crate_name, position) in asked {
            let instance = &mut instances[index];
            match &answers[&crate_name][position] {
                Answer::Checked(checked) => {
                    instance.checked = checked.clone();
                    if let Some(parameters) = instance.parameters.as_object_mut() {
                        parameters.extend(checked.pinned.clone());
                    }
                }
                Answer::Elsewhere { elsewhere } => {
                    move_to(catalogue, instance, elsewhere)?;
                    open.push(index);
                }
                Answer::Rejected { error } => {
                    let problem = rejection(pipeline, catalogue, instance, error);
                    match error.kind {
                        RejectionKind::Parameter => problems.push(problem),
                        RejectionKind::Outside => instance.problem = Some(problem),
                    }
                }
            }
        }
    }
    Ok(problems.into_result()?)
}

fn rejection(pipeline: &Pipeline, catalogue: &Catalogue, instance: &Instance, error: &Rejection) -> Diagnostic {
    let stage = instance.stage.as_str();
    let place = match error.parameter.as_deref().or_else(|| location_to_blame(pipeline, catalogue, instance, &error.message)) {
        Some(parameter) => {
            let keys = parameter.split(['.', '[', ']']).filter(|key| !key.is_empty());
            let way: Vec<&str> = ["stages", stage, "with"].into_iter().chain(keys).collect();
            pipeline.document.at(&way)
        }
        None => pipeline.document.at_key(&["stages", stage]),
    };
    let message = match &error.parameter {
        Some(parameter) => format!("`{stage}`: parameter `{parameter}`: {}", error.message),
        None => format!("`{stage}`: {}", error.message),
    };
    Diagnostic { place: Some(place), message, help: error.remedy.clone() }
}

/// Has an instance run by the method of the same name of another crate.
fn move_to(catalogue: &Catalogue, instance: &mut Instance, elsewhere: &str) -> anyhow::Result<()> {
    let uses = instance.task.uses();
    let Task::Method { crate_name, method, version, timings, uses_device } = &mut instance.task else { unreachable!("a method was asked") };
    let (_, found) = catalogue
        .find(&format!("{elsewhere}/{method}"))
        .filter(|(_, found)| elsewhere != crate_name.as_str() && found.outputs == instance.outputs)
        .with_context(|| format!("`{uses}` leaves its work to `{elsewhere}`, which has no method `{method}` with the same outputs"))?;
    (*version, *timings, *uses_device) = (found.version, found.timings, found.uses_device);
    elsewhere.clone_into(crate_name);
    Ok(())
}

/// The location that is to blame where an outside file cannot be read: the one that the message speaks of, else the only one that is given or set.
fn location_to_blame<'a>(pipeline: &Pipeline, catalogue: &Catalogue, instance: &'a Instance, message: &str) -> Option<&'a str> {
    let (_, method) = catalogue.find(&instance.task.uses())?;
    let given: Vec<(&String, &Value)> = instance.parameters.as_object()?.iter().filter(|(name, _)| method.is_location(name)).collect();
    let only = |fits: &dyn Fn(&str, &Value) -> bool| {
        let mut fitting = given.iter().filter(|(name, value)| fits(name, value));
        fitting.next().filter(|_| fitting.next().is_none()).map(|(name, _)| name.as_str())
    };
    let is_spoken_of = |_: &str, value: &Value| value.as_str().is_some_and(|path| speaks_of(message, path));
    let is_set = |name: &str, _: &Value| pipeline.document.is_overridden(&["stages", &instance.stage, "with", name]);
    only(&is_spoken_of).or_else(|| only(&|_, _| true)).or_else(|| only(&is_set))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::yaml::Document;

    fn expanded(text: &str, methods: Value) -> Result<(Pipeline, Vec<Instance>), Diagnostics> {
        let text = format!("version: 1\nname: a\n{text}");
        let pipeline = Pipeline::from_document(Document::parse(Path::new("p.yaml"), &text).unwrap())?;
        let catalogue = Catalogue::of("x", serde_json::from_value(methods).unwrap());
        let instances = expand(&pipeline, &catalogue)?;
        Ok((pipeline, instances))
    }

    fn names(instances: &[Instance]) -> Vec<&str> {
        instances.iter().map(|instance| instance.name.as_str()).collect()
    }

    #[test]
    fn ten_thousand_instances_are_planned_at_once_and_one_more_is_refused() {
        let text = |seeds: usize, ways: usize| {
            let seeds: Vec<String> = (0..seeds).map(|seed| seed.to_string()).collect();
            let ways: Vec<String> = (0..ways).map(|way| way.to_string()).collect();
            let (seeds, ways) = (seeds.join(", "), ways.join(", "));
            format!(
                "seeds: [{seeds}]\nstages:\n  a: {{ matrix: {{ k: [{ways}] }}, command: [x], out: {{ o: file/txt }} }}\n  \
                 b: {{ command: [x], in: {{ i: a }}, out: {{ o: file/txt }} }}\n  \
                 c: {{ command: [x], in: {{ i: a, j: b }}, out: {{ o: file/txt }} }}\n  \
                 d: {{ command: [x], in: {{ i: [c] }}, out: {{ o: file/txt }}, gather: seeds, seed: 1 }}\n"
            )
        };
        let begin = Instant::now();
        let (_, instances) = expanded(&text(33, 101), json!([])).unwrap();
        assert_eq!(instances.len(), 3 * 33 * 101 + 1);
        let last = &instances[instances.len() - 1];
        assert_eq!((last.name.as_str(), last.inputs[0].1.len()), ("d", 33 * 101));
        assert_eq!(instances[2 * 33 * 101 + 40].needs(), [40, 33 * 101 + 40]);
        let error = expanded(&text(34, 101), json!([])).unwrap_err().to_string();
        assert!(error.contains("`c` brings the instances to") && error.contains("at most 10000") && error.contains("p.yaml:"), "{error}");
        assert!(begin.elapsed().as_secs() < 20, "it took {:?}", begin.elapsed());
    }

    #[test]
    fn two_thousand_stages_in_a_chain_written_backwards_are_ordered() {
        let chain: String = (1..2000)
            .rev()
            .map(|stage| format!("  s{stage}: {{ command: [x], in: {{ i: s{} }}, out: {{ o: file/txt }} }}\n", stage - 1))
            .collect();
        let begin = Instant::now();
        let (_, instances) = expanded(&format!("stages:\n{chain}  s0: {{ command: [x], out: {{ o: file/txt }} }}\n"), json!([])).unwrap();
        assert_eq!((names(&instances)[0], names(&instances)[1999]), ("s0#42", "s1999#42"));
        let error = expanded(&format!("stages:\n{chain}  s0: {{ command: [x], in: {{ i: s1999 }}, out: {{ o: file/txt }} }}\n"), json!([]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("in a cycle: ") && error.len() < 2000, "{error}");
        assert!(begin.elapsed().as_secs() < 20, "it took {:?}", begin.elapsed());
    }

    #[test]
    fn what_instances_hold_together_is_bounded() {
        let list: Vec<String> = (0..100_000).map(|number| (number % 10).to_string()).collect();
        let seeds: Vec<String> = (0..1000).map(|seed| seed.to_string()).collect();
        let text = format!(
            "seeds: [{}]\nstages:\n  a: {{ command: [x], out: {{ o: file/txt }}, with: {{ p: [{}] }} }}\n",
            seeds.join(","),
            list.join(",")
        );
        let error = expanded(&text, json!([])).unwrap_err().to_string();
        assert!(error.contains("more than 2000000 connections and values"), "{error}");
    }

    #[test]
    fn an_input_that_is_not_read_is_checked_and_dropped() {
        let input =
            |name: &str, unused: bool| json!({ "name": name, "schema": "file/txt", "optional": unused, "many": false, "unused": unused });
        let method = |name: &str, inputs: Value| {
            json!({ "name": name, "version": 1, "summary": "", "uses_seed": true, "parameters": {}, "inputs": inputs,
                "outputs": [{ "name": "o", "schema": "file/txt" }] })
        };
        let methods = json!([method("make", json!([])), method("take", json!([input("one", false), input("two", true)]))]);
        let text = |two: &str| {
            format!(
                "stages:\n  take: {{ uses: x/take, in: {{ one: a, two: {two} }} }}\n  a: {{ uses: x/make }}\n  b: {{ uses: x/make, seed: 3 }}\n  \
                 after: {{ command: [x], in: {{ i: take }}, out: {{ o: file/csv }} }}\n"
            )
        };
        let (_, instances) = expanded(&text("b"), methods.clone()).unwrap();
        assert_eq!(names(&instances), ["a#42", "take#42", "b", "after#42"]);
        assert_eq!(instances[1].inputs, [("one".to_owned(), vec![Source { instance: 0, output: "o".into() }])]);
        // It is no dependency, so that it closes no cycle.
        let error = expanded(&text("after"), methods.clone()).unwrap_err().to_string();
        assert!(error.contains("needs file/txt, but `after` gives file/csv") && error.contains("p.yaml:4:"), "{error}");
        let error = expanded(&text("c"), methods.clone()).unwrap_err().to_string();
        assert!(error.contains("there is no stage `c`"), "{error}");
        let error = expanded(&text("[a, b]"), methods).unwrap_err().to_string();
        assert!(error.contains("takes one value"), "{error}");
    }

    #[test]
    fn an_outside_stage_takes_matrix_values_everywhere() {
        let text = "stages:\n  a: { matrix: { kind: [csv, c/v] }, command: [x, \"$${kind}\"], code: [\"${kind}.py\"], out: { o: \"file/${kind}\" } }\n";
        let error = expanded(text, json!([])).unwrap_err().to_string();
        assert!(error.contains("`file/c/v` is no schema") && error.contains("p.yaml:4:"), "{error}");
        let (_, instances) = expanded(&text.replace("c/v", "json"), json!([])).unwrap();
        assert_eq!(instances[1].outputs, [Output { name: "o".into(), schema: "file/json".into() }]);
        let Task::Command { command, code, .. } = &instances[1].task else { panic!("a command") };
        assert_eq!((command[1].as_str(), code[0].as_str()), ("${kind}", "json.py"));
    }

    #[test]
    fn instances_are_named_after_encoded_values() {
        let text = |values: &str| format!("stages:\n  a: {{ matrix: {{ k: [{values}] }}, command: [x], out: {{ o: file/txt }} }}\n");
        let (_, instances) = expanded(&text("uoft-cs/cifar10, 0.5, \"a#1@b\""), json!([])).unwrap();
        assert_eq!(names(&instances), ["a@uoft-cs%2Fcifar10#42", "a@0.5#42", "a@a%231%40b#42"]);
        assert_eq!(instances[0].coordinates[0].value, "uoft-cs/cifar10");
        let error = expanded(&text("1, \"1\""), json!([])).unwrap_err().to_string();
        assert!(error.contains("two instances the name `a@1#42`"), "{error}");
    }

    #[test]
    fn only_the_problems_of_what_is_needed_count() {
        let text = "stages:\n  a: { command: [x], out: { o: file/txt } }\n  b: { command: [x], in: { i: a }, out: { o: file/txt } }\n  \
             c: { command: [x], out: { o: file/txt } }\n";
        let (pipeline, mut instances) = expanded(text, json!([])).unwrap();
        instances[0].problem = Some(Diagnostic { place: None, message: "a file is missing".into(), help: None });
        let plan = Plan { pipeline, instances };
        assert!(plan.refuse(&[2]).is_ok());
        assert_eq!(plan.refuse(&[1]).unwrap_err().to_string(), "a file is missing");
        assert_eq!(plan.refuse(&[0, 1, 2]).unwrap_err().len(), 1);
        assert_eq!(plan.downstream(&[0]), [0, 1]);
        assert_eq!(plan.select_output("a.o").unwrap(), (vec![0], Some("o")));
        assert_eq!(plan.select_output("a#42.o").unwrap(), (vec![0], Some("o")));
        assert!(plan.select_output("a.p").unwrap_err().to_string().contains("has no output `p`"));
    }

    fn point(pairs: &[(&str, Value)]) -> Point {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }

    #[test]
    fn a_matrix_gives_all_combinations() {
        let matrix = [("a".to_owned(), vec![1.into(), 2.into()]), ("b".to_owned(), vec!["x".into(), Value::Null])];
        let points = points(&matrix);
        assert_eq!(points.len(), 4);
        assert_eq!(points[1], point(&[("a", 1.into()), ("b", Value::Null)]));
    }

    #[test]
    fn values_are_put_in_with_their_type() {
        let point = point(&[("k", 50.into()), ("of", Value::Null)]);
        assert_eq!(substitute_value(&"${k}".into(), &point).unwrap(), Value::from(50));
        assert_eq!(substitute_value(&"a-${k}-${of}".into(), &point).unwrap(), Value::from("a-50-null"));
        assert!(substitute("${nothing}", &point).unwrap_err().contains("`nothing`"));
        assert!(substitute("${k", &point).is_err());
    }

    #[test]
    fn a_doubled_dollar_stands_for_itself() {
        let point = point(&[("k", 50.into())]);
        assert_eq!(substitute("$${k} is ${k}, $$${k} and $5", &point).unwrap(), "${k} is 50, $${k} and $5");
        assert_eq!(substitute_value(&"$${k}".into(), &point).unwrap(), Value::from("${k}"));
    }

    fn instance(seed: Option<u64>, coordinates: &[(&str, &str)]) -> Instance {
        let coordinate = |(axis, value): &(&str, &str)| Coordinate { stage: "s".into(), key: (*axis).into(), value: (*value).into() };
        Instance {
            name: String::new(),
            stage: "s".into(),
            task: Task::Command { command: Vec::new(), code: Vec::new(), folder: PathBuf::new() },
            label: String::new(),
            seed,
            row_seed: seed,
            coordinates: coordinates.iter().map(coordinate).collect(),
            parameters: Value::Null,
            inputs: Vec::new(),
            outputs: Vec::new(),
            checked: Checked::default(),
            timeout: None,
            problem: None,
        }
    }

    #[test]
    fn inputs_are_joined_on_what_they_share() {
        let instances = [
            instance(None, &[]),
            instance(Some(1), &[("a", "x")]),
            instance(Some(1), &[("a", "y")]),
            instance(Some(2), &[("a", "x")]),
            instance(Some(1), &[("b", "x")]),
            instance(None, &[("b", "y"), ("a", "x")]),
        ];
        let list = (0..instances.len()).map(|instance| Source { instance, output: "o".into() }).collect();
        let sources = Sources::new(list, &instances);
        let fitting = |like: &Instance, any_seed: bool| {
            let choice = Choice { seed: like.row_seed, coordinates: like.coordinates.clone(), inputs: Vec::new() };
            sources.fitting(&instances, &choice, any_seed)
        };
        assert_eq!(fitting(&instances[0], false), [0, 1, 2, 3, 4, 5]);
        assert_eq!(fitting(&instances[1], false), [0, 1, 4, 5]);
        assert_eq!(fitting(&instances[1], true), [0, 1, 3, 4, 5]);
        assert_eq!(fitting(&instances[2], false), [0, 2, 4]);
        assert_eq!(fitting(&instance(Some(7), &[("b", "y")]), false), [0, 5]);
        assert_eq!(fitting(&instance(None, &[("a", "x"), ("b", "x")]), false), [0, 1, 3, 4]);
    }
}
