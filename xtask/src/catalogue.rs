//! What the stage programs say of themselves: their methods, and whether parameters fit.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use dcu_artifact::{Digest, digest_json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::fingerprint::{self, Code, Dependencies};
use crate::programs::{self, Mode, Programs};

/// One method of a stage crate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Method {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) summary: String,
    pub(crate) uses_seed: bool,
    #[serde(default)]
    pub(crate) pinned: bool,
    #[serde(default)]
    pub(crate) timings: bool,
    /// Whether its result depends on the device.
    #[serde(default)]
    pub(crate) uses_device: bool,
    pub(crate) parameters: Value,
    pub(crate) inputs: Vec<Input>,
    pub(crate) outputs: Vec<Output>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) schema: String,
    pub(crate) optional: bool,
    pub(crate) many: bool,
    /// Whether it may be connected, so that methods can be swapped, but is not read.
    #[serde(default)]
    pub(crate) unused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Output {
    pub(crate) name: String,
    pub(crate) schema: String,
}

impl Method {
    /// The names of all parameters.
    pub(crate) fn parameter_names(&self) -> impl Iterator<Item = &str> {
        self.parameters["properties"].as_object().into_iter().flat_map(|properties| properties.keys()).map(String::as_str)
    }

    /// Whether a parameter names a place outside, which is not part of what is computed.
    pub(crate) fn is_location(&self, parameter: &str) -> bool {
        self.parameters["properties"][parameter]["x-location"] == true
    }
}

/// The answer to whether parameters fit.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    Rejected {
        error: Rejection,
    },
    /// This program does not do it with these parameters, but that of this crate, by a method of the same name.
    Elsewhere {
        elsewhere: String,
    },
    Checked(Checked),
}

/// Parameters as they enter the key, and the outside files that a run reads.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Checked {
    pub(crate) parameters: Value,
    pub(crate) externals: Vec<External>,
    /// What is put over the parameters as written before the stage starts.
    #[serde(default)]
    pub(crate) pinned: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct External {
    pub(crate) name: String,
    /// None where only the network could tell, which was not to be asked.
    pub(crate) digest: Option<Digest>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Rejection {
    pub(crate) message: String,
    pub(crate) parameter: Option<String>,
    pub(crate) remedy: Option<String>,
    #[serde(default)]
    pub(crate) kind: RejectionKind,
}

/// What is to blame for a rejection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RejectionKind {
    /// A parameter, whatever lies outside.
    #[default]
    Parameter,
    /// What lies outside: a file that is missing, a server that does not answer.
    Outside,
}

/// The stage crates of the workspace that a command needs.
#[derive(Debug)]
pub(crate) struct Catalogue {
    workspace: PathBuf,
    programs: Programs,
    /// All stage crates that there are.
    stages: BTreeSet<String>,
    /// The methods of those that were needed.
    crates: BTreeMap<String, Vec<Method>>,
    dependencies: BTreeMap<String, Digest>,
    build: Digest,
}

#[derive(Deserialize)]
struct Description {
    methods: Vec<Method>,
}

impl Catalogue {
    /// Makes the programs of the needed stage crates ready and asks each what it can do. Names that are no
    /// stage crate are left out: [`Self::find`] will not find them.
    pub(crate) fn open(
        workspace: &Path,
        store: Option<&Path>,
        needed: &BTreeSet<String>,
        mode: Mode,
        feature: Option<&'static str>,
    ) -> anyhow::Result<Self> {
        let stages = programs::stage_crates(workspace)?;
        let programs = Programs::new(workspace, store, mode, feature)?;
        let needed = needed.intersection(&stages).cloned().collect();
        let profile = programs.profile().to_owned();
        let nothing = digest_json(&Value::Null);
        let mut catalogue = Self {
            workspace: workspace.to_owned(),
            programs,
            stages,
            crates: BTreeMap::new(),
            dependencies: BTreeMap::new(),
            build: nothing,
        };
        catalogue.build = std::thread::scope(|scope| {
            let build = scope.spawn(|| fingerprint::build(workspace, &profile));
            catalogue.add(&needed)?;
            build.join().expect("reading the build's settings does not panic")
        })?;
        Ok(catalogue)
    }

    /// Makes further stage crates ready.
    pub(crate) fn add(&mut self, needed: &BTreeSet<String>) -> anyhow::Result<()> {
        let new: BTreeSet<String> = needed.iter().filter(|name| !self.crates.contains_key(*name)).cloned().collect();
        if let Some(unknown) = new.iter().find(|name| !self.stages.contains(*name)) {
            bail!("there is no stage crate `crates/{unknown}` in this workspace");
        }
        if new.is_empty() {
            return Ok(());
        }
        self.programs.load(&new)?;
        let programs = &self.programs;
        let workspace = &self.workspace;
        let (dependencies, descriptions) = std::thread::scope(|scope| {
            let asking: Vec<_> = new.iter().map(|name| (name, scope.spawn(|| describe(programs.get(name)?.path()?)))).collect();
            let dependencies = Dependencies::read(workspace).and_then(|dependencies| {
                new.iter()
                    .map(|name| Ok((name.clone(), dependencies.digest(name, &programs.get(name)?.packages)?)))
                    .collect::<anyhow::Result<Vec<_>>>()
            });
            let described = asking.into_iter().map(|(name, thread)| Ok((name.clone(), thread.join().expect("describing does not panic")?)));
            (dependencies, described.collect::<anyhow::Result<Vec<_>>>())
        });
        self.dependencies.extend(dependencies?);
        self.crates.extend(descriptions?);
        Ok(())
    }

    /// Whether a question that failed may succeed once the programs are built: they are older than their sources.
    pub(crate) fn is_outdated(&self) -> bool {
        self.programs.outdated()
    }

    /// The same crates, their programs built now.
    pub(crate) fn rebuilt(mut self) -> anyhow::Result<Self> {
        let names: BTreeSet<String> = std::mem::take(&mut self.crates).into_keys().collect();
        self.programs.forget();
        self.add(&names)?;
        Ok(self)
    }

    /// All methods of the needed crates, as `crate/method`.
    pub(crate) fn methods(&self) -> impl Iterator<Item = (String, &Method)> {
        self.crates.iter().flat_map(|(name, methods)| methods.iter().map(move |method| (format!("{name}/{}", method.name), method)))
    }

    /// The names of all methods that there are, for messages: those of crates that were not needed by their files.
    pub(crate) fn names(&self) -> Vec<String> {
        let others = self.stages.iter().filter(|name| !self.crates.contains_key(*name));
        let others =
            others.flat_map(|name| programs::method_files(&self.workspace, name).into_iter().map(move |method| format!("{name}/{method}")));
        let mut names: Vec<String> = self.methods().map(|(name, _)| name).chain(others).collect();
        names.sort();
        names
    }

    /// The method called `crate/method`.
    pub(crate) fn find(&self, uses: &str) -> Option<(&str, &Method)> {
        let (name, method) = uses.split_once('/')?;
        let (name, methods) = self.crates.get_key_value(name)?;
        Some((name, methods.iter().find(|known| known.name == method)?))
    }

    /// The code that a method runs.
    pub(crate) fn code(&self, crate_name: &str, method: &str) -> anyhow::Result<Code> {
        let others: Vec<&str> = self.crates.get(crate_name).into_iter().flatten().map(|method| method.name.as_str()).collect();
        let files = self.programs.get(crate_name)?.sources.of_method(method, &others);
        Ok(Code { files, dependencies: self.dependencies.get(crate_name).cloned(), build: Some(self.build.clone()) })
    }

    /// The program of a stage crate, `train` for `dcu-train`, to be started.
    pub(crate) fn program(&self, crate_name: &str) -> anyhow::Result<PathBuf> {
        Ok(self.programs.get(crate_name)?.path()?.to_owned())
    }

    /// Asks stage crates whether parameters fit, all at once: (method, parameters) by crate.
    pub(crate) fn check(&self, questions: &BTreeMap<String, Vec<(String, Value)>>) -> anyhow::Result<BTreeMap<String, Vec<Answer>>> {
        std::thread::scope(|scope| {
            let asking: Vec<_> =
                questions.iter().map(|(name, questions)| (name, scope.spawn(|| self.check_one(name, questions)))).collect();
            asking.into_iter().map(|(name, thread)| Ok((name.clone(), thread.join().expect("asking does not panic")?))).collect()
        })
    }

    fn check_one(&self, crate_name: &str, questions: &[(String, Value)]) -> anyhow::Result<Vec<Answer>> {
        let program = self.program(crate_name)?;
        let shown = program.display();
        let questions: Vec<Value> =
            questions.iter().map(|(method, parameters)| json!({ "method": method, "parameters": parameters })).collect();
        let mut command = Command::new(&program);
        command.arg("check");
        if self.programs.mode() == Mode::Look {
            command.arg("--look");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        // A program that fails at once does not read; what it says is in its stderr.
        let asked = child.stdin.take().expect("piped").write_all(Value::Array(questions.clone()).to_string().as_bytes());
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{shown} check` failed: {}", said.trim());
        if !said.trim().is_empty() {
            eprintln!("{}", said.trim_end());
        }
        asked.with_context(|| format!("cannot ask `{shown} check`"))?;
        let answers: Vec<Answer> =
            serde_json::from_slice(&output.stdout).with_context(|| format!("`{shown} check` gave no answer that can be read"))?;
        ensure!(answers.len() == questions.len(), "`{shown} check` gave {} answers to {} questions", answers.len(), questions.len());
        Ok(answers)
    }
}

fn describe(program: &Path) -> anyhow::Result<Vec<Method>> {
    let shown = program.display();
    let output = Command::new(program).args(["describe", "--json"]).output().with_context(|| format!("cannot start `{shown}`"))?;
    ensure!(output.status.success(), "`{shown} describe` failed: {}", String::from_utf8_lossy(&output.stderr));
    let description: Description =
        serde_json::from_slice(&output.stdout).with_context(|| format!("`{shown} describe --json` gave no answer that can be read"))?;
    Ok(description.methods)
}

#[cfg(test)]
impl Catalogue {
    /// A catalogue of methods that no program has.
    pub(crate) fn of(crate_name: &str, methods: Vec<Method>) -> Self {
        Self {
            workspace: PathBuf::new(),
            programs: Programs::new(Path::new(""), None, Mode::Look, None).expect("nothing is read"),
            stages: BTreeSet::from([crate_name.to_owned()]),
            crates: BTreeMap::from([(crate_name.to_owned(), methods)]),
            dependencies: BTreeMap::new(),
            build: digest_json(&Value::Null),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_of_answers_are_understood() {
        let read = |text: &str| serde_json::from_str::<Answer>(text).unwrap();
        let Answer::Checked(checked) = read(r#"{"parameters":{"a":1},"externals":[{"name":"b","digest":null}],"pinned":{"c":2}}"#) else {
            panic!("it was checked");
        };
        assert_eq!((checked.externals[0].digest.as_ref(), &checked.pinned["c"]), (None, &json!(2)));
        assert!(matches!(read(r#"{"parameters":{},"externals":[]}"#), Answer::Checked(checked) if checked.pinned.is_empty()));
        assert!(matches!(read(r#"{"elsewhere":"tables"}"#), Answer::Elsewhere { elsewhere } if elsewhere == "tables"));
        let rejected = read(r#"{"error":{"message":"no","parameter":null,"remedy":null}}"#);
        assert!(matches!(rejected, Answer::Rejected { error } if error.message == "no"));
    }
}
