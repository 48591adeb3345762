//! The pipeline file: what the user wrote, checked for form. What the stages can do is not known here yet.

use std::collections::{BTreeMap, HashSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, Diagnostics, Place, cut, nearest};
use crate::yaml::{self, Document};
use crate::{files, names};

const TOP_KEYS: [&str; 4] = ["version", "name", "seeds", "stages"];
const STAGE_KEYS: [&str; 11] = ["uses", "command", "code", "in", "out", "with", "matrix", "label", "seed", "gather", "timeout"];
/// The keys of a stage that `--set STAGE.KEY=VALUE` reaches, beside `in.NAME`, `matrix.KEY` and `with.PARAMETER`; every other key is one of its
/// parameters.
pub(crate) const SETTABLE_KEYS: [&str; 5] = ["uses", "label", "seed", "gather", "timeout"];

/// A pipeline file has at most so many bytes.
const LONGEST_FILE: u64 = 1 << 20;
const MOST_STAGES: usize = 2_000;
const MOST_SEEDS: usize = 10_000;
/// A plan has at most so many instances.
pub(crate) const MOST_INSTANCES: usize = 10_000;

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
        let text = read_text(file).map_err(Diagnostics::from)?;
        let mut document = Document::parse(file, &text).map_err(Diagnostics::from)?;
        for setting in settings {
            set(&mut document, setting).map_err(Diagnostics::from)?;
        }
        Ok(Self::from_document(document)?)
    }

    pub(crate) fn from_document(document: Document) -> Result<Self, Diagnostics> {
        let mut reader = Reader { document: &document, problems: Diagnostics::default() };
        let pipeline = reader.pipeline();
        reader.problems.into_result()?;
        let (name, seeds, stages) = pipeline.expect("what is not whole has a problem");
        Ok(Self { document, name, seeds, stages })
    }

    /// The folder that paths in the file start from.
    pub(crate) fn folder(&self) -> PathBuf {
        match self.document.file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        }
    }
}

fn read_text(file: &Path) -> Result<String, Diagnostic> {
    let problem = |message: String, help: Option<String>| Diagnostic { place: None, message, help };
    let opened = files::open(file).map_err(|message| {
        let help = match file.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder }).map(Path::read_dir)
        {
            Some(Ok(entries)) if !file.exists() => {
                let folder = file.parent().unwrap_or(Path::new(""));
                let names: Vec<String> = entries
                    .flatten()
                    .map(|entry| folder.join(entry.file_name()).display().to_string())
                    .filter(|name| name.ends_with(".yaml"))
                    .collect();
                nearest(&file.display().to_string(), names.iter().map(String::as_str))
            }
            _ => None,
        };
        problem(message, help.or_else(|| Some("give the path of a pipeline file, such as `pipelines/quickstart.yaml`".into())))
    })?;
    let mut bytes = Vec::new();
    opened
        .take(LONGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| problem(format!("cannot read `{}`: {error}", file.display()), None))?;
    if bytes.len() as u64 > LONGEST_FILE {
        let message = format!("`{}` is longer than {LONGEST_FILE} bytes, which no pipeline file is", file.display());
        return Err(problem(message, Some("give the path of a pipeline file; long lists belong into files that it names".into())));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.iter().take(4).any(|&byte| byte == 0) {
        let message = format!("`{}` is no text in UTF-8: it begins like UTF-16 or UTF-32", file.display());
        return Err(problem(message, Some("save it with the encoding UTF-8".into())));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
        let message = format!("`{}` is no text in UTF-8: line {line} has a byte that belongs to another encoding", file.display());
        problem(message, Some("save it with the encoding UTF-8".into()))
    })
}

/// Applies `seeds=[1, 2]`, `STAGE.uses=unlearn/finetune`, `STAGE.in.NAME=LINK` or `STAGE.PARAMETER=VALUE` (docs/contracts.md).
fn set(document: &mut Document, setting: &str) -> Result<(), Diagnostic> {
    let argument = format!("--set {setting}");
    let wrong = |message: String| Diagnostic::new(Place::Argument(argument.clone()), message);
    let (target, text) =
        setting.split_once('=').ok_or_else(|| wrong("write `--set STAGE.PARAMETER=VALUE` or `--set seeds=[1, 2]`".into()))?;
    let value = yaml::parse_value(text).map_err(|message| wrong(format!("the value of this setting: {message}")))?;
    if TOP_KEYS.contains(&target) && target != "stages" {
        return document.set(&[target], value, &argument).map_err(wrong);
    }
    let mut keys = target.split('.');
    let stage = keys.next().unwrap_or_default();
    let keys: Vec<&str> = keys.collect();
    let stages = document.value.get("stages").and_then(Value::as_object);
    if !stages.is_some_and(|stages| stages.contains_key(stage)) {
        let names = stages.into_iter().flat_map(Map::keys).map(String::as_str);
        let top = TOP_KEYS.iter().copied().filter(|key| *key != "stages" && keys.is_empty());
        return Err(wrong(format!("there is no stage `{}`", cut(stage))).nearest(stage, top.chain(names)));
    }
    let way: Vec<&str> = match keys.as_slice() {
        [] => return Err(wrong(format!("name a parameter: `--set {stage}.PARAMETER=VALUE`"))),
        [key] if SETTABLE_KEYS.contains(key) => vec![key],
        ["in", _] | ["matrix", _] => keys,
        ["in", ..] => {
            return Err(wrong(format!(
                "name an input: `--set {stage}.in.NAME=LINK`, where the link is `STAGE`, `STAGE.OUTPUT` or a list of these"
            )));
        }
        ["matrix", ..] => return Err(wrong(format!("name a key of the matrix: `--set {stage}.matrix.KEY=[VALUE, VALUE]`"))),
        ["with"] => return Err(wrong(format!("name a parameter: `--set {stage}.with.PARAMETER=VALUE`"))),
        ["with", ..] => keys,
        [key] if STAGE_KEYS.contains(key) => {
            let message = format!("`{key}` cannot be set from the command line");
            return Err(wrong(message).help(format!("write it into the file; if it is a parameter, set `{stage}.with.{key}`")));
        }
        _ => ["with"].into_iter().chain(keys).collect(),
    };
    document.set(&[&["stages", stage], way.as_slice()].concat(), value, &argument).map_err(wrong)
}

/// Checks the schema of an output of an outside stage.
pub(crate) fn check_schema(schema: &str, place: impl FnOnce() -> Place) -> Result<(), Diagnostic> {
    if dcu_artifact::schema_is_known(schema) || names::is_file_schema(schema) {
        return Ok(());
    }
    let known: Vec<String> = dcu_artifact::known_schemas().collect();
    let message = match schema.starts_with("file/") {
        true => format!("`{}` is no schema: the extension of a plain file has 1 to 16 letters and digits, as in `file/csv`", cut(schema)),
        false => format!("`{}` is no schema; one is a schema of an artifact or `file/EXTENSION`", cut(schema)),
    };
    let problem = Diagnostic::new(place(), message);
    Err(if schema.starts_with("file/") { problem } else { problem.nearest(schema, known.iter().map(String::as_str)) })
}

/// Reads the form of a document and collects all that is wrong with it.
struct Reader<'a> {
    document: &'a Document,
    problems: Diagnostics,
}

impl Reader<'_> {
    fn wrong<S: AsRef<str>>(&mut self, way: &[S], message: impl Into<String>) {
        self.problems.push(Diagnostic::new(self.document.at(way), message));
    }

    fn unknown_keys(&mut self, map: &Map<String, Value>, way: &[&str], known: &[&str]) {
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let place = self.document.at_key(&[way, &[key.as_str()]].concat());
            self.problems.push_nearest(Diagnostic::new(place, format!("unknown key `{}`", cut(key))), key, known.iter().copied());
        }
    }

    /// Checks the name at the end of `way`.
    fn name(&mut self, kind: &str, name: &str, way: &[&str]) {
        if let Err(message) = names::check(kind, name) {
            self.problems.push(Diagnostic::new(self.document.at_key(way), message).help("give it another name"));
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
            Some(version) => {
                self.wrong(&["version"], format!("this release reads pipeline files of version 1, not {}", cut(&version.to_string())));
            }
            None => self.wrong::<&str>(&[], "the key `version` is missing; write `version: 1`"),
        }
        let name = top.get("name").and_then(plain_text);
        match &name {
            Some(name) => self.name("pipeline", name, &["name"]),
            None => self.wrong(&["name"], "a pipeline needs a `name` of letters, digits, `-` and `_`"),
        }
        let seeds = self.seeds(top.get("seeds"));
        let stages = match top.get("stages") {
            Some(Value::Object(stages)) if stages.len() > MOST_STAGES => {
                self.wrong(&["stages"], format!("there are {} stages; a pipeline has at most {MOST_STAGES}", stages.len()));
                &nothing
            }
            Some(Value::Object(stages)) if !stages.is_empty() => stages,
            _ => {
                self.wrong(&["stages"], "`stages` must be a mapping with one stage at least");
                &nothing
            }
        };
        let stages: Vec<Stage> = stages.iter().filter_map(|(name, stage)| self.stage(name, stage)).collect();
        self.sizes(&stages);
        Some((name.unwrap_or_default(), seeds, stages))
    }

    fn seeds(&mut self, value: Option<&Value>) -> Vec<u64> {
        let Some(value) = value else { return vec![42] };
        let items = match value.as_array() {
            Some(items) if items.len() > MOST_SEEDS => {
                self.wrong(&["seeds"], format!("there are {} seeds; a pipeline has at most {MOST_SEEDS}", items.len()));
                return Vec::new();
            }
            Some(items) if !items.is_empty() => items,
            _ => {
                self.wrong(&["seeds"], "`seeds` is a list of different whole numbers, such as [42]");
                return Vec::new();
            }
        };
        let (mut seeds, mut seen) = (Vec::new(), HashSet::new());
        for (position, item) in items.iter().enumerate() {
            let position = position.to_string();
            let way = ["seeds", position.as_str()];
            match item.as_u64() {
                None => self.wrong(&way, format!("`seeds` is a list of different whole numbers from 0 to {}, such as [42]", u64::MAX)),
                Some(seed) if !seen.insert(seed) => {
                    self.wrong(&way, format!("`seeds` is a list of different whole numbers, and {seed} is in it twice"));
                }
                Some(seed) => seeds.push(seed),
            }
        }
        seeds
    }

    /// Refuses matrices of too many points while they are no more than a product.
    fn sizes(&mut self, stages: &[Stage]) {
        let size = |stage: &Stage| stage.matrix.iter().try_fold(1_usize, |product, (_, values)| product.checked_mul(values.len()));
        let mut all: usize = 0;
        for stage in stages {
            match size(stage) {
                Some(size) if size <= MOST_INSTANCES => all += size,
                size => {
                    let size = size.map_or_else(|| "more than can be counted".into(), |size| size.to_string());
                    let message = format!("this matrix makes {size} instances; a pipeline has at most {MOST_INSTANCES}");
                    self.wrong(&["stages", &stage.name, "matrix"], message);
                    return;
                }
            }
        }
        if all > MOST_INSTANCES {
            self.wrong(&["stages"], format!("the stages and their matrices make {all} instances; a pipeline has at most {MOST_INSTANCES}"));
        }
    }

    fn stage(&mut self, name: &str, value: &Value) -> Option<Stage> {
        let way = ["stages", name];
        self.name("stage", name, &way);
        let Some(map) = value.as_object() else {
            self.wrong(&way, format!("the stage `{}` must be a mapping with `uses:` or `command:`", cut(name)));
            return None;
        };
        self.unknown_keys(map, &way, &STAGE_KEYS);
        let work = self.work(name, map)?;
        let nothing = Map::new();
        let inputs = self.mapping(map, name, "in").unwrap_or(&nothing);
        inputs.keys().for_each(|input| self.name("input", input, &["stages", name, "in", input]));
        let inputs = inputs.iter().filter_map(|(input, links)| Some((input.clone(), self.links(name, input, links)?))).collect();
        let parameters = self.mapping(map, name, "with").cloned().unwrap_or_default();
        let matrix = self.mapping(map, name, "matrix").unwrap_or(&nothing);
        matrix.keys().for_each(|key| self.name("matrix key", key, &["stages", name, "matrix", key]));
        let matrix = matrix.iter().filter_map(|(key, values)| Some((key.clone(), self.matrix_values(name, key, values)?))).collect();
        let label = map.get("label").and_then(|label| {
            let label = plain_text(label);
            match &label {
                Some(label) if label.contains("${") => {}
                Some(label) => self.name("label", label, &["stages", name, "label"]),
                None => self.wrong(&["stages", name, "label"], "`label` is a text"),
            }
            label
        });
        let seed = map.get("seed").and_then(|seed| {
            if seed.as_u64().is_none() {
                let message = format!("`seed` is a whole number from 0 to {} that pins the seed of this stage", u64::MAX);
                self.wrong(&["stages", name, "seed"], message);
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
                let outputs = self.outputs(name, map);
                if command.is_empty() || !map.contains_key("out") {
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
                self.wrong(&["stages", name], format!("the stage `{}` {what}", cut(name)));
                None
            }
        }
    }

    /// The outputs of an outside stage: each becomes a file of its own, on any file system.
    fn outputs(&mut self, stage: &str, map: &Map<String, Value>) -> BTreeMap<String, String> {
        let mut outputs: BTreeMap<String, String> = BTreeMap::new();
        let nothing = Map::new();
        let given = self.mapping(map, stage, "out").unwrap_or(&nothing);
        if given.is_empty() && map.contains_key("out") {
            self.wrong(&["stages", stage, "out"], "`out` names one output at least, with its schema");
        }
        let mut small: HashSet<String> = HashSet::new();
        for (output, schema) in given {
            let way = ["stages", stage, "out", output];
            self.name("output", output, &way);
            if !small.insert(output.to_lowercase()) {
                let message =
                    format!("another output differs from `{}` only in capitals, which some file systems do not tell apart", cut(output));
                self.problems.push(Diagnostic::new(self.document.at_key(&way), message).help("give it another name"));
            }
            let text = schema.as_str().unwrap_or_default();
            match check_schema(text, || self.document.at(&way)) {
                Err(problem) if !text.contains("${") => self.problems.push(problem),
                _ => {
                    outputs.insert(output.clone(), text.to_owned());
                }
            }
        }
        outputs
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
        assert_eq!(read(text).unwrap_err().len(), 6, "{message}");
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
        set(&mut document, "base.in.dataset=data.train").unwrap();
        set(&mut document, "base.in.more=[a, b.c]").unwrap();
        set(&mut document, "base.seed=7").unwrap();
        set(&mut document, "base.label=x").unwrap();
        set(&mut document, "base.gather=seeds").unwrap();
        set(&mut document, "base.matrix.k=[1, 2]").unwrap();
        set(&mut document, "base.with.label=3").unwrap();
        set(&mut document, "seeds=[1, 2]").unwrap();
        let pipeline = Pipeline::from_document(document).unwrap();
        assert_eq!(pipeline.seeds, [1, 2]);
        let stage = &pipeline.stages[0];
        assert_eq!(Value::Object(stage.parameters.clone()), serde_json::json!({ "epochs": 3, "label": 3 }));
        let inputs: Vec<(&str, &[String])> = stage.inputs.iter().map(|(name, links)| (name.as_str(), links.all())).collect();
        assert_eq!(inputs, [("dataset", ["data.train".to_owned()].as_slice()), ("more", ["a".to_owned(), "b.c".to_owned()].as_slice())]);
        assert_eq!((stage.seed, stage.label.as_deref(), stage.gathers_seeds, stage.matrix[0].1.len()), (Some(7), Some("x"), true, 2));
    }

    #[test]
    fn a_setting_that_reaches_nothing_says_what_would() {
        let refused = |setting: &str, expected: &str| {
            let mut document = Document::parse(Path::new("p.yaml"), "version: 1\nname: a\nstages:\n  base: { uses: train/fit }\n").unwrap();
            let error = set(&mut document, setting).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(&format!("--> --set {setting}")), "{setting}: {error}");
        };
        refused("seed=[1]", "did you mean `seeds`?");
        refused("base=3", "`--set base.PARAMETER=VALUE`");
        refused("base.in=data", "name an input");
        refused("base.in.a.b=data", "name an input");
        refused("base.matrix=[1]", "name a key of the matrix");
        refused("base.with=3", "name a parameter");
        refused("base.command=[sh]", "set `base.with.command`");
        refused("base.uses=[", "the value of this setting: this is no YAML");
    }

    #[test]
    fn names_are_checked_wherever_they_stand() {
        let refused = |text: &str, expected: &str| {
            let error = read(&format!("version: 1\nname: a\nstages:\n{text}")).unwrap_err();
            let message = error.to_string();
            assert!(error.len() == 1 && message.contains(expected) && message.contains("p.yaml:"), "no `{expected}` in:\n{message}");
        };
        let outside = |out: &str| format!("  a: {{ command: [x], out: {out} }}\n");
        refused("  \"a#1\": { uses: train/fit }\n", "cannot be the name of this stage");
        refused(&format!("  {}: {{ uses: train/fit }}\n", "a".repeat(300)), "300 characters");
        refused("  a: { uses: train/fit, in: { \"m=x\": b } }\n", "name of this input");
        refused("  a: { uses: train/fit, matrix: { \"k}\": [1] } }\n", "name of this matrix key");
        refused("  a: { uses: train/fit, label: \"a/b\" }\n", "name of this label");
        refused(&outside("{ \"../../x\": file/txt }"), "name of this output");
        refused(&outside("{ /etc/x: file/txt }"), "name of this output");
        refused(&outside("{ x: file/ }"), "1 to 16 letters and digits");
        refused(&outside("{ x: file/. }"), "1 to 16 letters and digits");
        refused(&outside("{ x: file/json/../x }"), "1 to 16 letters and digits");
        refused(&outside("{ x: modle/1 }"), "did you mean `model/1`?");
        refused(&outside("{ Model: model/1, model: file/txt }"), "only in capitals");
        refused(&outside("{}"), "names one output at least");
        read(&format!("version: 1\nname: a\nstages:\n{}", outside("{ x: \"${of}\" }"))).unwrap();
    }

    #[test]
    fn what_is_too_much_is_refused_before_it_is_made() {
        let refused = |text: &str, expected: &str| {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(expected) && message.len() < 20_000, "no `{expected}` in:\n{message}");
        };
        let list = |count: usize| format!("[{}]", (0..count).map(|number| number.to_string()).collect::<Vec<_>>().join(", "));
        let head = "version: 1\nname: a\n";
        let values = list(200);
        let matrix = format!("matrix: {{ a: {values}, b: {values}, c: {values}, d: {values} }}");
        refused(&format!("{head}stages:\n  x: {{ uses: a/b, {matrix} }}\n"), "makes 1600000000 instances; a pipeline has at most 10000");
        let many: String = (0..9).map(|key| format!("k{key}: {values}, ")).collect();
        refused(&format!("{head}stages:\n  x: {{ uses: a/b, matrix: {{ {many} }} }}\n"), "more than can be counted");
        let stages: String = (0..2001).map(|number| format!("  s{number}: {{ uses: a/b }}\n")).collect();
        refused(&format!("{head}stages:\n{stages}"), "there are 2001 stages; a pipeline has at most 2000");
        refused(&format!("{head}seeds: {}\nstages:\n  x: {{ uses: a/b }}\n", list(10_001)), "there are 10001 seeds");
        refused(&format!("{head}seeds: [18446744073709551616]\nstages:\n  x: {{ uses: a/b }}\n"), "and 18446744073709551615");
        refused(&format!("{head}stages:\n  x: {{ uses: a/b, seed: -1 }}\n"), "from 0 to 18446744073709551615");
        let unknown: String = (0..50_000).map(|number| format!("k{number}: 1\n")).collect();
        refused(&format!("{head}{unknown}stages:\n  x: {{ uses: a/b }}\n"), "... and 49980 more");
    }
}
