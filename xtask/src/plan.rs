//! From stages to instances: matrices, seeds and labels resolved, every connection and parameter checked, in an order in which they can run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::catalogue::{Answer, Catalogue, Checked, Method, Output};
use crate::diagnostic::{Diagnostic, Diagnostics, nearest};
use crate::pipeline::{Links, Pipeline, Stage, Work, plain_text};

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
    /// The parameters as written, locations resolved.
    pub(crate) parameters: Value,
    pub(crate) inputs: Vec<(String, Vec<Source>)>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) checked: Checked,
}

/// What an instance runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    Method { crate_name: String, method: String, version: u32, timings: bool },
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
    /// Resolves and checks a pipeline.
    pub(crate) fn new(pipeline: Pipeline, catalogue: &Catalogue) -> anyhow::Result<Self> {
        let order = order(&pipeline)?;
        let mut expansion = Expansion { pipeline: &pipeline, catalogue, instances: Vec::new(), problems: Vec::new() };
        for stage in order {
            expansion.stage(&pipeline.stages[stage]);
        }
        let Expansion { mut instances, problems, .. } = expansion;
        if !problems.is_empty() {
            return Err(Diagnostics(deduplicated(problems)).into());
        }
        check_parameters(&pipeline, catalogue, &mut instances)?;
        Ok(Self { pipeline, instances })
    }

    /// The instances that a name selects: a stage, or one instance.
    pub(crate) fn select(&self, name: &str) -> anyhow::Result<Vec<usize>> {
        let found: Vec<usize> =
            (0..self.instances.len()).filter(|&index| self.instances[index].stage == name || self.instances[index].name == name).collect();
        if found.is_empty() {
            let names = self
                .pipeline
                .stages
                .iter()
                .map(|stage| stage.name.as_str())
                .chain(self.instances.iter().map(|instance| instance.name.as_str()));
            let help = nearest(name, names);
            return Err(
                Diagnostics::from(Diagnostic { place: None, message: format!("there is no stage or instance `{name}`"), help }).into()
            );
        }
        Ok(found)
    }

    /// These instances and all that depend on them.
    pub(crate) fn downstream(&self, of: &[usize]) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        for index in 0..self.instances.len() {
            if of.contains(&index) || self.instances[index].needs().iter().any(|need| found.contains(need)) {
                found.push(index);
            }
        }
        found
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

fn deduplicated(problems: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let mut kept: Vec<Diagnostic> = Vec::new();
    for problem in problems {
        if !kept.contains(&problem) {
            kept.push(problem);
        }
    }
    kept
}

/// `stage` or `stage.output`.
fn split_link(link: &str) -> (&str, Option<&str>) {
    link.split_once('.').map_or((link, None), |(stage, output)| (stage, Some(output)))
}

/// The stages in an order in which each comes after what it needs.
fn order(pipeline: &Pipeline) -> anyhow::Result<Vec<usize>> {
    let position = |name: &str| pipeline.stages.iter().position(|stage| stage.name == name);
    let needs: Vec<Vec<usize>> = pipeline
        .stages
        .iter()
        .map(|stage| {
            let points = points(&stage.matrix);
            let links = stage.inputs.iter().flat_map(|(_, links)| links.all());
            links
                .flat_map(|link| {
                    points.iter().filter_map(|point| position(split_link(&substitute(link, point).ok()?).0)).collect::<Vec<_>>()
                })
                .collect()
        })
        .collect();
    let mut order: Vec<usize> = Vec::new();
    while order.len() < pipeline.stages.len() {
        let free = |stage: &usize| !order.contains(stage) && needs[*stage].iter().all(|need| order.contains(need));
        let Some(next) = (0..pipeline.stages.len()).find(free) else {
            return Err(Diagnostics::from(cycle(pipeline, &needs, &order)).into());
        };
        order.push(next);
    }
    Ok(order)
}

fn cycle(pipeline: &Pipeline, needs: &[Vec<usize>], done: &[usize]) -> Diagnostic {
    let mut walk = vec![(0..needs.len()).find(|stage| !done.contains(stage)).expect("some stage is left")];
    loop {
        let last = walk[walk.len() - 1];
        let next = *needs[last].iter().find(|need| !done.contains(need)).expect("a stage that cannot run needs another such stage");
        if let Some(start) = walk.iter().position(|&stage| stage == next) {
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

/// Puts the values of a point where `${key}` stands; an unknown key is the error.
fn substitute(text: &str, point: &Point) -> Result<String, String> {
    let mut output = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        output.push_str(before);
        let (key, after) = after.split_once('}').ok_or("`${` without `}`")?;
        let value = point.iter().find(|(known, _)| known == key).ok_or_else(|| format!("`{key}` is no key of this stage's matrix"))?;
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
    problems: Vec<Diagnostic>,
}

/// A choice of inputs that agree in seed and coordinates.
#[derive(Clone)]
struct Choice {
    seed: Option<u64>,
    coordinates: Vec<Coordinate>,
    inputs: Vec<(String, Vec<Source>)>,
}

impl Choice {
    fn fits(&self, instance: &Instance, ignore_seed: bool) -> bool {
        let same_seed = ignore_seed || self.seed.is_none() || instance.row_seed.is_none() || self.seed == instance.row_seed;
        let agrees = |own: &Coordinate| {
            instance.coordinates.iter().all(|other| (&own.stage, &own.key) != (&other.stage, &other.key) || own == other)
        };
        same_seed && self.coordinates.iter().all(agrees)
    }

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
    sources: Vec<Source>,
}

impl Expansion<'_> {
    fn wrong(&mut self, way: &[&str], message: impl Into<String>) {
        self.problems.push(Diagnostic::new(self.pipeline.document.at(way), message));
    }

    fn stage(&mut self, stage: &Stage) {
        for point in points(&stage.matrix) {
            self.point(stage, &point);
        }
    }

    fn point(&mut self, stage: &Stage, point: &Point) {
        let name = stage.name.as_str();
        let method = match &stage.work {
            Work::Command { .. } => None,
            Work::Method(uses) => match self.method(name, uses, point) {
                Some(found) => Some(found),
                None => return,
            },
        };
        let Some(parameters) = self.parameters(stage, method.as_ref().map(|(_, method)| method), point) else { return };
        let Some(wired) = self.wire(stage, method.as_ref().map(|(_, method)| method), point) else { return };
        let label = match stage.label.as_deref().map(|label| substitute(label, point)) {
            Some(Ok(label)) => label,
            Some(Err(message)) => return self.wrong(&["stages", name, "label"], message),
            None => method.as_ref().map_or(name, |(_, method)| method.name.as_str()).to_owned(),
        };
        let task = match (&stage.work, &method) {
            (Work::Command { command, code, .. }, _) => {
                let command = match command.iter().map(|part| substitute(part, point)).collect::<Result<_, _>>() {
                    Ok(command) => command,
                    Err(message) => return self.wrong(&["stages", name, "command"], message),
                };
                Task::Command { command, code: code.clone(), folder: self.pipeline.folder() }
            }
            (_, Some((crate_name, method))) => Task::Method {
                crate_name: crate_name.clone(),
                method: method.name.clone(),
                version: method.version,
                timings: method.timings,
            },
            _ => unreachable!("a stage without a command has a method"),
        };
        let outputs = match &stage.work {
            Work::Command { outputs, .. } => {
                outputs.iter().map(|(name, schema)| Output { name: name.clone(), schema: schema.clone() }).collect()
            }
            Work::Method(_) => method.as_ref().map(|(_, method)| method.outputs.clone()).unwrap_or_default(),
        };
        let uses_seed = method.as_ref().is_none_or(|(_, method)| method.uses_seed);
        let pinned = stage.seed.or_else(|| method.as_ref().filter(|(_, method)| method.pinned).map(|_| PINNED_SEED));
        let own: Vec<Coordinate> = point
            .iter()
            .map(|(key, value)| Coordinate {
                stage: name.to_owned(),
                key: key.clone(),
                value: plain_text(value).expect("a matrix has plain values"),
            })
            .collect();
        for choice in self.choices(stage, own, &wired, uses_seed && pinned.is_none()) {
            let values: String = choice.coordinates.iter().map(|coordinate| format!("@{}", coordinate.value)).collect();
            let seed_mark = choice.seed.map_or(String::new(), |seed| format!("#{seed}"));
            let full_name = format!("{name}{values}{seed_mark}");
            if self.instances.iter().any(|instance| instance.name == full_name) {
                return self.wrong(&["stages", name, "matrix"], format!("the matrix gives two instances the name `{full_name}`"));
            }
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
            });
        }
    }

    fn method(&mut self, stage: &str, uses: &str, point: &Point) -> Option<(String, Method)> {
        let way = ["stages", stage, "uses"];
        let uses = match substitute(uses, point) {
            Ok(uses) => uses,
            Err(message) => {
                self.wrong(&way, message);
                return None;
            }
        };
        if let Some((crate_name, method)) = self.catalogue.find(&uses) {
            return Some((crate_name.to_owned(), method.clone()));
        }
        let names: Vec<String> = self.catalogue.methods().map(|(name, _)| name).collect();
        let problem = Diagnostic::new(self.pipeline.document.at(&way), format!("there is no method `{uses}`"));
        self.problems.push(problem.nearest(&uses, names.iter().map(String::as_str)));
        None
    }

    /// The parameters with their locations resolved: from the file's folder, or from the working directory for those of `--set`.
    fn parameters(&mut self, stage: &Stage, method: Option<&Method>, point: &Point) -> Option<Map<String, Value>> {
        let mut parameters = Map::new();
        let found = self.problems.len();
        for (key, value) in &stage.parameters {
            let way = ["stages", stage.name.as_str(), "with", key.as_str()];
            if let Some(method) = method
                && !method.parameter_names().any(|name| name == key)
            {
                let place = self.pipeline.document.at_key(&way);
                let problem = Diagnostic::new(place, format!("`{}` has no parameter `{key}`", method.name));
                self.problems.push(problem.nearest(key, method.parameter_names()));
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
            let base = if self.pipeline.document.is_overridden(&way) { PathBuf::from(".") } else { self.pipeline.folder() };
            parameters.insert(key.clone(), if is_location { resolve_location(&base, value) } else { value });
        }
        (self.problems.len() == found).then_some(parameters)
    }

    fn wire(&mut self, stage: &Stage, method: Option<&Method>, point: &Point) -> Option<Vec<Wired>> {
        let name = stage.name.as_str();
        let found = self.problems.len();
        if let Some(method) = method {
            for input in method.inputs.iter().filter(|input| !input.optional && !stage.inputs.iter().any(|(given, _)| *given == input.name))
            {
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
                self.problems.push(problem.nearest(input, method.inputs.iter().map(|known| known.name.as_str())));
                continue;
            }
            let declared = declared.and_then(|(_, input)| input);
            let many = declared.map_or(matches!(links, Links::Many(_)), |declared| declared.many);
            if !many && links.all().len() != 1 {
                self.wrong(&["stages", name, "in", input], format!("the input `{input}` takes one value"));
                continue;
            }
            let mut sources = Vec::new();
            for (position, link) in links.all().iter().enumerate() {
                let position = position.to_string();
                let way: Vec<&str> = match links {
                    Links::One(_) => vec!["stages", name, "in", input],
                    Links::Many(_) => vec!["stages", name, "in", input, &position],
                };
                sources.extend(self.link(link, point, declared.map(|declared| declared.schema.as_str()), &way).unwrap_or_default());
            }
            if !declared.is_some_and(|declared| declared.unused) {
                wired.push(Wired { input: input.clone(), many, sources });
            }
        }
        (self.problems.len() == found).then_some(wired)
    }

    /// All instances of the output that a link names.
    fn link(&mut self, link: &str, point: &Point, schema: Option<&str>, way: &[&str]) -> Option<Vec<Source>> {
        let link = match substitute(link, point) {
            Ok(link) => link,
            Err(message) => {
                self.wrong(way, message);
                return None;
            }
        };
        let (stage, output) = split_link(&link);
        if !self.pipeline.stages.iter().any(|known| known.name == stage) {
            let names = self.pipeline.stages.iter().map(|known| known.name.as_str());
            let problem = Diagnostic::new(self.pipeline.document.at(way), format!("there is no stage `{stage}`"));
            self.problems.push(problem.nearest(stage, names));
            return None;
        }
        let mut sources = Vec::new();
        for index in (0..self.instances.len()).filter(|&index| self.instances[index].stage == stage) {
            let outputs = &self.instances[index].outputs;
            let names = || outputs.iter().map(|output| output.name.as_str());
            let found = match output {
                Some(output) => outputs.iter().find(|known| known.name == output),
                None if outputs.len() == 1 => outputs.first(),
                None => {
                    let listed: Vec<String> = names().map(|name| format!("`{stage}.{name}`")).collect();
                    let message = format!("`{stage}` has several outputs; name one: {}", listed.join(", "));
                    self.wrong(way, message);
                    return None;
                }
            };
            let Some(found) = found else {
                let wrong = output.unwrap_or_default();
                let problem =
                    Diagnostic::new(self.pipeline.document.at(way), format!("`{stage}` has no output `{wrong}`")).nearest(wrong, names());
                self.problems.push(problem);
                return None;
            };
            if let Some(schema) = schema
                && schema != found.schema
            {
                let message = format!("this input needs {schema}, but `{link}` gives {}", found.schema);
                self.wrong(way, message);
                return None;
            }
            sources.push(Source { instance: index, output: found.name.clone() });
        }
        Some(sources)
    }

    /// All agreeing choices of inputs: single inputs are joined on what they have in common, lists gather what agrees.
    fn choices(&self, stage: &Stage, own: Vec<Coordinate>, wired: &[Wired], varies: bool) -> Vec<Choice> {
        let mut choices = vec![Choice { seed: None, coordinates: own, inputs: Vec::new() }];
        for wire in wired.iter().filter(|wire| !wire.many) {
            choices = choices
                .iter()
                .flat_map(|choice| {
                    let fitting = wire.sources.iter().filter(|source| choice.fits(&self.instances[source.instance], false));
                    fitting.map(move |source| {
                        let mut next = choice.with(&self.instances[source.instance]);
                        next.inputs.push((wire.input.clone(), vec![source.clone()]));
                        next
                    })
                })
                .collect();
        }
        let gathered_vary = !stage.gathers_seeds
            && wired
                .iter()
                .filter(|wire| wire.many)
                .flat_map(|wire| &wire.sources)
                .any(|source| self.instances[source.instance].row_seed.is_some());
        if varies || gathered_vary {
            choices = choices
                .iter()
                .flat_map(|choice| {
                    let seeds = choice.seed.map_or_else(|| self.pipeline.seeds.clone(), |seed| vec![seed]);
                    seeds.into_iter().map(|seed| Choice { seed: Some(seed), ..choice.clone() })
                })
                .collect();
        }
        for choice in &mut choices {
            for wire in wired.iter().filter(|wire| wire.many) {
                let fitting = wire.sources.iter().filter(|source| choice.fits(&self.instances[source.instance], stage.gathers_seeds));
                choice.inputs.push((wire.input.clone(), fitting.cloned().collect()));
            }
        }
        choices
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

/// Asks the stage crates whether the parameters of all instances fit.
fn check_parameters(pipeline: &Pipeline, catalogue: &Catalogue, instances: &mut [Instance]) -> anyhow::Result<()> {
    let mut questions: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
    let mut asked: Vec<Option<(String, usize)>> = Vec::new();
    for instance in instances.iter_mut() {
        let Task::Method { crate_name, method, .. } = &instance.task else {
            instance.checked.parameters = instance.parameters.clone();
            asked.push(None);
            continue;
        };
        let question = (method.clone(), instance.parameters.clone());
        let known = questions.entry(crate_name.clone()).or_default();
        let position = known.iter().position(|other| *other == question).unwrap_or_else(|| {
            known.push(question);
            known.len() - 1
        });
        asked.push(Some((crate_name.clone(), position)));
    }
    let answers: BTreeMap<&String, Vec<Answer>> =
        questions.iter().map(|(name, questions)| Ok((name, catalogue.check(name, questions)?))).collect::<anyhow::Result<_>>()?;
    let mut problems = Vec::new();
    for (instance, asked) in instances.iter_mut().zip(asked) {
        let Some((crate_name, position)) = asked else { continue };
        match &answers[&crate_name][position] {
            Answer::Checked(checked) => instance.checked = checked.clone(),
            Answer::Rejected { error } => {
                let stage = instance.stage.as_str();
                let place = match error.parameter.as_deref().or_else(|| only_location(catalogue, instance)) {
                    Some(parameter) => {
                        let way: Vec<&str> = ["stages", stage, "with"].into_iter().chain(parameter.split(['.', '['])).collect();
                        pipeline.document.at(&way)
                    }
                    None => pipeline.document.at_key(&["stages", stage]),
                };
                let message = match &error.parameter {
                    Some(parameter) => format!("`{stage}`: parameter `{parameter}`: {}", error.message),
                    None => format!("`{stage}`: {}", error.message),
                };
                problems.push(Diagnostic { place: Some(place), message, help: error.remedy.clone() });
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Diagnostics(deduplicated(problems)).into()) }
}

/// The one location that an instance is given, which is to blame where an outside file cannot be read.
fn only_location<'a>(catalogue: &Catalogue, instance: &'a Instance) -> Option<&'a str> {
    let (_, method) = catalogue.find(&instance.task.uses())?;
    let mut given = instance.parameters.as_object()?.keys().filter(|name| method.is_location(name));
    given.next().filter(|_| given.next().is_none()).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
