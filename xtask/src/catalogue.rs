//! What the stage binaries say of themselves: their methods, and whether parameters fit.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use dcu_artifact::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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
    /// Accepted, but not read: such a wire is checked and left away.
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
    Rejected { error: Rejection },
    Checked(Checked),
}

/// Parameters as they enter the key, and the outside files that a run reads.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Checked {
    pub(crate) parameters: Value,
    pub(crate) externals: Vec<External>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct External {
    pub(crate) name: String,
    pub(crate) digest: Digest,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Rejection {
    pub(crate) message: String,
    pub(crate) parameter: Option<String>,
    pub(crate) remedy: Option<String>,
}

/// All stage crates of the workspace.
#[derive(Debug)]
pub(crate) struct Catalogue {
    folder: PathBuf,
    crates: BTreeMap<String, Vec<Method>>,
}

#[derive(Deserialize)]
struct Description {
    methods: Vec<Method>,
}

/// The binary of a stage crate: `train` is run by `dcu-train`.
fn program(folder: &Path, crate_name: &str) -> PathBuf {
    folder.join(format!("dcu-{crate_name}{}", std::env::consts::EXE_SUFFIX))
}

impl Catalogue {
    /// Builds the workspace's binaries, then asks each stage crate what it can do.
    pub(crate) fn load(workspace: &Path) -> anyhow::Result<Self> {
        let runner = std::env::current_exe().context("cannot tell where this program is")?;
        let folder = runner.parent().context("this program has no folder")?.to_owned();
        let names = stage_crates(workspace)?;
        let is_first = names.iter().any(|name| !program(&folder, name).exists());
        build(workspace, &folder, is_first)?;
        let answers: Vec<anyhow::Result<Vec<Method>>> = std::thread::scope(|scope| {
            let asking: Vec<_> = names.iter().map(|name| scope.spawn(|| describe(&folder, name))).collect();
            asking.into_iter().map(|thread| thread.join().expect("describing does not panic")).collect()
        });
        let crates = names.into_iter().zip(answers).map(|(name, methods)| Ok((name, methods?))).collect::<anyhow::Result<_>>()?;
        Ok(Self { folder, crates })
    }

    /// All methods, as `crate/method`.
    pub(crate) fn methods(&self) -> impl Iterator<Item = (String, &Method)> {
        self.crates.iter().flat_map(|(name, methods)| methods.iter().map(move |method| (format!("{name}/{}", method.name), method)))
    }

    /// The method called `crate/method`.
    pub(crate) fn find(&self, uses: &str) -> Option<(&str, &Method)> {
        let (name, method) = uses.split_once('/')?;
        let (name, methods) = self.crates.get_key_value(name)?;
        Some((name, methods.iter().find(|known| known.name == method)?))
    }

    /// The names of all methods of a crate.
    pub(crate) fn methods_of(&self, crate_name: &str) -> Vec<&str> {
        self.crates.get(crate_name).into_iter().flatten().map(|method| method.name.as_str()).collect()
    }

    /// The binary of a stage crate.
    pub(crate) fn program(&self, crate_name: &str) -> PathBuf {
        program(&self.folder, crate_name)
    }

    /// Asks a stage crate whether parameters fit, many at once: (method, parameters).
    pub(crate) fn check(&self, crate_name: &str, questions: &[(String, Value)]) -> anyhow::Result<Vec<Answer>> {
        let program = self.program(crate_name);
        let questions: Vec<Value> =
            questions.iter().map(|(method, parameters)| json!({ "method": method, "parameters": parameters })).collect();
        let mut child = Command::new(&program)
            .arg("check")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        child.stdin.take().expect("piped").write_all(Value::Array(questions.clone()).to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "`{} check` failed", program.display());
        let answers: Vec<Answer> = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`{} check` gave no answer that can be read", program.display()))?;
        ensure!(
            answers.len() == questions.len(),
            "`{} check` gave {} answers to {} questions",
            program.display(),
            answers.len(),
            questions.len()
        );
        Ok(answers)
    }
}

/// The folders under `crates/` that build a stage binary.
fn stage_crates(workspace: &Path) -> anyhow::Result<Vec<String>> {
    let folder = workspace.join("crates");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("src/main.rs").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Brings the stage binaries beside this program up to date, with the profile that cargo built it with. The first time this takes long, so that
/// cargo shows what it does.
fn build(workspace: &Path, folder: &Path, is_first: bool) -> anyhow::Result<()> {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some(profile) if profile != "debug" => profile,
        _ => "dev",
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--workspace", "--bins", "--profile", profile]).current_dir(workspace);
    if is_first {
        eprintln!("building the stages; later runs do this in a moment");
    } else {
        command.arg("--quiet");
    }
    let status = command.status().context("cannot start cargo to build the stages")?;
    if !status.success() {
        bail!("the stages do not build; see the messages above");
    }
    Ok(())
}

fn describe(folder: &Path, crate_name: &str) -> anyhow::Result<Vec<Method>> {
    let program = program(folder, crate_name);
    let output =
        Command::new(&program).args(["describe", "--json"]).output().with_context(|| format!("cannot start `{}`", program.display()))?;
    ensure!(output.status.success(), "`{} describe` failed: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    let description: Description = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`{} describe --json` gave no answer that can be read", program.display()))?;
    Ok(description.methods)
}
