//! The pipeline file: what the user wrote, checked for form. What the stages can do is not known here yet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::yaml::{self, Document};

const TOP_KEYS: [&str; 4] = ["version", "name", "seeds", "stages"];
const STAGE_KEYS: [&str; 11] = ["uses", "command", "code", "in", "out", "with", "matrix", "label", "seed", "gather", "timeout"];
/// The keys of a stage that `--set STAGE.KEY=VALUE` reaches; every other key is one of its parameters.
const SETTABLE_KEYS: [&str; 4] = ["uses", "label", "seed", "timeout"];

/// A pipeline file.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) document: Document,
    pub(crate) name: String,
    pub(crate) seeds: Vec<u64>,
    pub(crate) stages: Vec<Stage>,
}

/// A stage as written: `${...}` stands where a matrix puts its values.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) work: Work,
    pub(crate) inputs: Vec<(String, Links)>,
    pub(crate) parameters: Map<String, Value>,
    pub(crate) matrix: Vec<(String, Vec<Value>)>,
    pub(crate) label: Option<String>,
    pub(crate) seed: Option<u64>,
    pub(crate) gathers_seeds: bool,
    /// How long its process may run. Not part of what decides the result.
    pub(crate) timeout: Option<Duration>,
}

/// What a stage runs.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// A method of a stage crate, `train/fit`.
    Method(String),
    /// A program from outside that keeps the contract of a stage.
    Command { command: Vec<String>, code: Vec<String>, outputs: BTreeMap<String, String> },
}

/// What an input is connected to.
#[derive(Debug, Clone)]
pub(crate) enum Links {
    One(String),
    Many(Vec<String>),
}

impl Links {
    pub(crate) fn all(&self) -> &[String] {
        match self {
            Self::One(link) => std::slice::from_ref(link),
            Self::Many(links) => links,
        }
    }
}

impl Pipeline {
    /// Reads a pipeline file and applies `--set` arguments.
    pub(crate) fn read(file: &Path, settings: &[String]) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let help = match file.parent().filter(|folder| !folder.as_os_str().is_empty()).map(Path::read_dir) {
                Some(Ok(entries)) => {
                    let names: Vec<String> =
                        entries.flatten().map(|entry| entry.path().display().to_string()).filter(|name| name.ends_with(".yaml")).collect();
                    crate::diagnostic::nearest(&file.display().to_string(), names.iter().map(String::as_str))
                }
                _ => Some("give the path of a pipeline file, such as `pipelines/quickstart.yaml`".into()),
            };
            Diagnostics::from(Diagnostic { place: None, message: format!("cannot read `{}`: {error}", file.display()), help })
        })?;
        let mut document = Document::parse(file, &text).map_err(Diagnostics::from)?;
        for setting in settings {
            set(&mut document, setting).map_err(Diagnostics::from)?;
        }
        Ok(Self::from_document(document)?)
    }

    fn from_document(document: Document) -> Result<Self, Diagnostics> {
        let mut reader = Reader { document: &document, problems: Vec::new() };
        let pipeline = reader.pipeline();
        let problems = reader.problems;
        match pipeline {
            Some((name, seeds, stages)) if problems.is_empty() => Ok(Self { document, name, seeds, stages }),
            _ => Err(Diagnostics(problems)),
        }
    }

    /// The folder that paths in the file start from.
    pub(crate) fn folder(&self) -> PathBuf {
        match self.document.file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        }
    }
}

/// Applies `seeds=[1, 2]`, `STAGE.uses=unlearn/finetune` or `STAGE.PARAMETER=VALUE`.
fn set(document: &mut Document, setting: &str) -> Result<(), Diagnostic> {
    let argument = format!("--set {setting}");
    let wrong = |message: String| Diagnostic::new(Place::Argument(argument.clone()), message);
    let (target, text) =
        setting.split_once('=').ok_or_else(|| wrong("write `--set STAGE.PARAMETER=VALUE` or `--set seeds=[1, 2]`".into()))?;
    let value = yaml::parse_value(text).map_err(|message| wrong(format!("the value is no YAML: {message}")))?;
    if TOP_KEYS.contains(&target) && target != "stages" {
        document.set(&[target], value, &argument);
        return Ok(());
    }
    let mut keys = target.split('.');
    let stage = keys.next().unwrap_or_default();
    let keys: Vec<&str> = keys.collect();
    let stages = document.value.get("stages").and_then(Value::as_object);
    if !stages.is_some_and(|stages| stages.contains_key(stage)) {
        let names = stages.into_iter().flat_map(Map::keys).map(String::as_str);
        return Err(wrong(format!("there is no stage `{stage}`")).nearest(stage, names));
    }
    let mut way = vec!["stages", stage];
    match keys.as_slice() {
        [] => return Err(wrong(format!("name a parameter: `--set {stage}.PARAMETER=VALUE`"))),
        [key] if SETTABLE_KEYS.contains(key) => way.push(key),
        _ => {
            way.push("with");
            way.extend(&keys);
        }
    }
    document.set(&way, value, &argument);
    Ok(())
}

/// Reads the form of a document and collects all that is wrong with it.
struct Reader<'a> {
    document: &'a Document,
    problems: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn wrong<S: AsRef<str>>(&mut self, way: &[S], message: impl Into<String>) {
        self.problems.push(Diagnostic::new(self.document.at(way), message));
    }

    fn unknown_keys(&mut self, map: &Map<String, Value>, way: &[&str], known: &[&str]) {
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let place = self.document.at_key(&[way, &[key.as_str()]].concat());
            self.problems.push(Diagnostic::new(place, format!("unknown key `{key}`")).nearest(key, known.iter().copied()));
        }
    }

    fn pipeline(&mut self) -> Option<(String, Vec<u64>, Vec<Stage>)> {
        let nothing = Map::new();
        let Some(top) = self.document.value.as_object() else {
            self.wrong::<&str>(&[], "a pipeline file is a mapping with the keys `version`, `name`, `seeds` and `stages`");
            return None;
        };
        self.unknown_keys(top, &[], &TOP_KEYS);
        match top.get("version") {
            Some(version) if version == 1 => {}
            Some(version) => self.wrong(&["version"], format!("this release reads pipeline files of version 1, not {version}")),
            None => self.wrong::<&str>(&[], "the key `version` is missing; write `version: 1`"),
        }
        let name = top.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let plain = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
        if name.is_empty() || !name.chars().all(plain) {
            self.wrong(&["name"], "a pipeline needs a `name` of letters, digits, `-` and `_`");
        }
        let seeds: Option<Vec<u64>> = match top.get("seeds") {
            None => Some(vec![42]),
            Some(seeds) => seeds.as_array().filter(|seeds| !seeds.is_empty()).and_then(|seeds| seeds.iter().map(Value::as_u64).collect()),
        };
        if !seeds.as_ref().is_some_and(|seeds| (1..seeds.len()).all(|position| !seeds[..position].contains(&seeds[position]))) {
            self.wrong(&["seeds"], "`seeds` is a list of different whole numbers, such as [42]");
        }
        let stages = match top.get("stages") {
            Some(Value::Object(stages)) if !stages.is_empty() => stages,
            _ => {
                self.wrong(&["stages"], "`stages` must be a mapping with one stage at least");
                &nothing
            }
        };
        let stages = stages.iter().filter_map(|(name, stage)| self.stage(name, stage)).collect();
        Some((name, seeds.unwrap_or_default(), stages))
    }

    fn stage(&mut self, name: &str, value: &Value) -> Option<Stage> {
        let way = ["stages", name];
        let plain = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
        if name.is_empty() || !name.chars().all(plain) {
            let place = self.document.at_key(&way);
            self.problems.push(Diagnostic::new(place, format!("the stage name `{name}` may have letters, digits, `-` and `_` only")));
        }
        let Some(map) = value.as_object() else {
            self.wrong(&way, format!("the stage `{name}` must be a mapping with `uses:` or `command:`"));
            return None;
        };
        self.unknown_keys(map, &way, &STAGE_KEYS);
        let work = self.work(name, map)?;
        let nothing = Map::new();
        let inputs = self.mapping(map, name, "in").unwrap_or(&nothing);
        let inputs = inputs.iter().filter_map(|(input, links)| Some((input.clone(), self.links(name, input, links)?))).collect();
        let parameters = self.mapping(map, name, "with").cloned().unwrap_or_default();
        let matrix = self.mapping(map, name, "matrix").unwrap_or(&nothing);
        let matrix = matrix.iter().filter_map(|(key, values)| Some((key.clone(), self.matrix_values(name, key, values)?))).collect();
        let label = map.get("label").and_then(|label| {
            let label = plain_text(label);
            if label.is_none() {
                self.wrong(&["stages", name, "label"], "`label` is a text");
            }
            label
        });
        let seed = map.get("seed").and_then(|seed| {
            if seed.as_u64().is_none() {
                self.wrong(&["stages", name, "seed"], "`seed` is a whole number that pins the seed of this stage");
            }
            seed.as_u64()
        });
        let gathers_seeds = match map.get("gather") {
            None => false,
            Some(gather) if gather == "seeds" => true,
            Some(_) => {
                self.wrong(&["stages", name, "gather"], "`gather` can only be `seeds`");
                false
            }
        };
        let timeout = map.get("timeout").and_then(|timeout| {
            let seconds = timeout.as_f64().filter(|seconds| *seconds > 0.0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            if seconds.is_none() {
                self.wrong(&["stages", name, "timeout"], "`timeout` is a number of seconds above 0, after which the stage is ended");
            }
            seconds
        });
        Some(Stage { name: name.to_owned(), work, inputs, parameters, matrix, label, seed, gathers_seeds, timeout })
    }

    fn work(&mut self, name: &str, map: &Map<String, Value>) -> Option<Work> {
        match (map.get("uses"), map.get("command")) {
            (Some(Value::String(uses)), None) => {
                for key in ["code", "out"].iter().filter(|key| map.contains_key(**key)) {
                    let place = self.document.at_key(&["stages", name, key]);
                    self.problems.push(Diagnostic::new(place, format!("`{key}` goes with `command:`; a method declares it by itself")));
                }
                Some(Work::Method(uses.clone()))
            }
            (None, Some(command)) => {
                let command = self.texts(name, "command", command)?;
                let code = map.get("code").map_or(Some(Vec::new()), |code| self.texts(name, "code", code))?;
                let mut outputs = BTreeMap::new();
                for (output, schema) in self.mapping(map, name, "out").cloned().unwrap_or_default() {
                    match schema.as_str() {
                        Some(schema) if dcu_artifact::schema_is_known(schema) || schema.starts_with("file/") => {
                            outputs.insert(output, schema.to_owned());
                        }
                        _ => {
                            let known: Vec<String> = dcu_artifact::known_schemas().collect();
                            let wrong = schema.as_str().unwrap_or_default();
                            let place = self.document.at(&["stages", name, "out", &output]);
                            let message = format!("`{wrong}` is no schema; one is a schema of an artifact or `file/EXTENSION`");
                            self.problems.push(Diagnostic::new(place, message).nearest(wrong, known.iter().map(String::as_str)));
                        }
                    }
                }
                if command.is_empty() || outputs.is_empty() {
                    self.wrong(&["stages", name], "an outside stage needs a `command:` and an `out:` with the schema of each output");
                    return None;
                }
                Some(Work::Command { command, code, outputs })
            }
            (Some(_), None) => {
                self.wrong(&["stages", name, "uses"], "`uses` is the name of a method, such as `train/fit`");
                None
            }
            (uses, _) => {
                let what = if uses.is_some() { "has both `uses:` and `command:`; keep one" } else { "needs `uses:` or `command:`" };
                self.wrong(&["stages", name], format!("the stage `{name}` {what}"));
                None
            }
        }
    }

    fn mapping<'v>(&mut self, map: &'v Map<String, Value>, stage: &str, key: &str) -> Option<&'v Map<String, Value>> {
        match map.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::Object(inner)) => Some(inner),
            Some(_) => {
                self.wrong(&["stages", stage, key], format!("`{key}` is a mapping, such as {{ key: value }}"));
                None
            }
        }
    }

    fn texts(&mut self, stage: &str, key: &str, value: &Value) -> Option<Vec<String>> {
        let texts = value.as_array().and_then(|items| items.iter().map(plain_text).collect());
        if texts.is_none() {
            self.wrong(&["stages", stage, key], format!("`{key}` is a list of texts"));
        }
        texts
    }

    fn links(&mut self, stage: &str, input: &str, value: &Value) -> Option<Links> {
        let links = match value {
            Value::Array(items) => items.iter().map(plain_text).collect::<Option<Vec<_>>>().map(Links::Many),
            single => plain_text(single).map(Links::One),
        };
        if links.is_none() {
            self.wrong(&["stages", stage, "in", input], "an input names a stage, `stage.output`, or a list of these");
        }
        links
    }

    fn matrix_values(&mut self, stage: &str, key: &str, value: &Value) -> Option<Vec<Value>> {
        match value.as_array() {
            Some(items) if !items.is_empty() && items.iter().all(|item| !item.is_array() && !item.is_object()) => Some(items.clone()),
            _ => {
                self.wrong(&["stages", stage, "matrix", key], "a key of `matrix` has a list of plain values");
                None
            }
        }
    }
}

/// A scalar as the user wrote it; YAML takes a bare `null` for nothing, but here it is a name like any other.
pub(crate) fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("null".into()),
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Pipeline, Diagnostics> {
        Pipeline::from_document(Document::parse(Path::new("p.yaml"), text).map_err(Diagnostics::from)?)
    }

    #[test]
    fn a_stage_called_null_is_a_stage() {
        let pipeline = read("version: 1\nname: a\nstages:\n  null: { uses: train/fit, label: null }\n").unwrap();
        assert_eq!((pipeline.stages[0].name.as_str(), pipeline.stages[0].label.as_deref()), ("null", Some("null")));
        assert_eq!(pipeline.seeds, [42]);
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let text = "version: 2\nname: a b\nseeds: [1, 1]\nstages:\n  base: { use: train/fit }\n  other: { uses: 3, gather: all }\n";
        let message = read(text).unwrap_err().to_string();
        for part in [
            "version 1, not 2",
            "letters, digits",
            "different whole numbers",
            "unknown key `use`",
            "did you mean `uses`?",
            "such as `train/fit`",
        ] {
            assert!(message.contains(part), "no `{part}` in:\n{message}");
        }
    }

    #[test]
    fn a_setting_for_an_unknown_stage_is_refused() {
        let mut document = Document::parse(Path::new("p.yaml"), "version: 1\nname: a\nstages:\n  base: { uses: train/fit }\n").unwrap();
        let error = set(&mut document, "bose.epochs=3").unwrap_err();
        assert_eq!(error.help.as_deref(), Some("did you mean `base`?"));
        set(&mut document, "base.epochs=3").unwrap();
        set(&mut document, "base.uses=train/import").unwrap();
        set(&mut document, "seeds=[1, 2]").unwrap();
        let pipeline = Pipeline::from_document(document).unwrap();
        assert_eq!(pipeline.seeds, [1, 2]);
        assert_eq!(pipeline.stages[0].parameters["epochs"], 3);
    }
}
