//! What a method declares of itself.

use anyhow::Context as _;
use dcu_artifact::{Digest, Payload};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{Context, Failure, Rejected};

/// A named input.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Input {
    /// The name, as in `--in NAME=PATH`.
    pub name: &'static str,
    /// The schema of what is read there.
    pub schema: &'static str,
    /// Whether it may be left out.
    pub optional: bool,
    /// Whether it takes any number of values, one at least.
    pub many: bool,
    /// Whether it is accepted, so that methods can be exchanged for one another, but not read: nothing of it enters the result.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unused: bool,
}

impl Input {
    /// An input that must be given once.
    #[must_use]
    pub const fn one<P: Payload>(name: &'static str) -> Self {
        Self { name, schema: P::SCHEMA, optional: false, many: false, unused: false }
    }

    /// An input that may be left out.
    #[must_use]
    pub const fn optional<P: Payload>(name: &'static str) -> Self {
        Self { name, schema: P::SCHEMA, optional: true, many: false, unused: false }
    }

    /// An input of one value or more, in order.
    #[must_use]
    pub const fn many<P: Payload>(name: &'static str) -> Self {
        Self { name, schema: P::SCHEMA, optional: false, many: true, unused: false }
    }

    /// An input that may be given, of this schema, and is not read.
    #[must_use]
    pub const fn unused<P: Payload>(name: &'static str) -> Self {
        Self { name, schema: P::SCHEMA, optional: true, many: false, unused: true }
    }
}

/// A named output.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Output {
    /// The name, as in `--out NAME=PATH`.
    pub name: &'static str,
    /// The schema of what is written there, or `file/EXTENSION`.
    pub schema: &'static str,
}

impl Output {
    /// An artifact.
    #[must_use]
    pub const fn artifact<P: Payload>(name: &'static str) -> Self {
        Self { name, schema: P::SCHEMA }
    }

    /// A plain file; `schema` is `file/EXTENSION`.
    #[must_use]
    pub const fn file(name: &'static str, schema: &'static str) -> Self {
        Self { name, schema }
    }
}

/// An outside file that a method reads, by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct External {
    /// A name without folders that are the user's own.
    pub name: String,
    /// The digest of its content, or of the commit that fixes it; none where only the network could tell, and [`crate::is_looking`].
    pub digest: Option<Digest>,
}

/// Puts what a method computes on the device of this name; otherwise says what is wrong and what to do.
pub type ChooseDevice = fn(&str) -> Result<(), (String, String)>;

/// One method of a stage crate.
pub trait Method {
    /// The name after the crate's, as in `uses: train/NAME`.
    const NAME: &'static str;
    /// Raised whenever the same inputs give another result on purpose.
    const VERSION: u32;
    /// One line for `cargo xtask list`.
    const SUMMARY: &'static str;
    /// Whether the seed changes the result.
    const USES_SEED: bool;
    /// Whether the runner holds the seed fixed unless the pipeline gives one: the choice of data is the same for all seeds of an experiment.
    const PINNED: bool = false;
    /// The named inputs.
    const INPUTS: &'static [Input];
    /// The named outputs.
    const OUTPUTS: &'static [Output];
    /// Whether it needs the runner's timings.
    const TIMINGS: bool = false;
    /// How it is put on a device, where its result depends on that. Without, it computes on the CPU, whatever the device of the run.
    const DEVICE: Option<ChooseDevice> = None;

    /// The parameters as the user writes them: every field with a default and a docstring, unknown fields denied. A field that is a
    /// location carries `#[schemars(extend("x-location" = true))]`.
    type Parameters: DeserializeOwned + JsonSchema;
    /// The parameters after the check. What it serialises to enters the cache key and the provenance: locations are skipped.
    type Checked: Serialize;

    /// Checks ranges and combinations.
    ///
    /// # Errors
    /// Names the parameter and what would be right.
    fn check(parameters: Self::Parameters) -> Result<Self::Checked, Rejected>;

    /// The stage crate whose program does it with these parameters, where this crate's does not: it has a method of the same name, with the same
    /// inputs and outputs.
    fn elsewhere(_parameters: &Self::Checked) -> Option<&'static str> {
        None
    }

    /// Parameters whose value stands for something that moves (a branch), with the value that it has now (a commit). They replace what the user wrote,
    /// for the whole run.
    ///
    /// # Errors
    /// When it cannot be told what they stand for.
    fn pin(_parameters: &Self::Checked) -> anyhow::Result<Map<String, Value>> {
        Ok(Map::new())
    }

    /// The outside files that a run would read.
    ///
    /// # Errors
    /// When one cannot be found or read.
    fn externals(_parameters: &Self::Checked) -> anyhow::Result<Vec<External>> {
        Ok(Vec::new())
    }

    /// Does the work: reads inputs from the context, writes every declared output to it.
    ///
    /// # Errors
    /// Whatever went wrong, with context; see [`crate::Failure`] for a remedy.
    fn run(parameters: &Self::Checked, context: &mut Context) -> anyhow::Result<()>;
}

/// A method with its types erased, as the registry of a crate holds it.
pub struct Entry {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) summary: &'static str,
    pub(crate) uses_seed: bool,
    pub(crate) pinned: bool,
    pub(crate) inputs: &'static [Input],
    pub(crate) outputs: &'static [Output],
    pub(crate) timings: bool,
    pub(crate) device: Option<ChooseDevice>,
    pub(crate) schema: fn() -> Value,
    pub(crate) check: fn(Value) -> anyhow::Result<Answer>,
    pub(crate) run: fn(Value, &mut Context) -> anyhow::Result<()>,
}

/// What a check gives.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    /// Parameters for the key, what is to be put over those that were given, and the outside files.
    Checked {
        parameters: Value,
        #[serde(skip_serializing_if = "Map::is_empty")]
        pinned: Map<String, Value>,
        externals: Vec<External>,
    },
    /// Another crate's program does it.
    Elsewhere { elsewhere: &'static str },
}

/// The registry's entry of a method.
#[must_use]
pub fn entry<M: Method>() -> Entry {
    Entry {
        name: M::NAME,
        version: M::VERSION,
        summary: M::SUMMARY,
        uses_seed: M::USES_SEED,
        pinned: M::PINNED,
        inputs: M::INPUTS,
        outputs: M::OUTPUTS,
        timings: M::TIMINGS,
        device: M::DEVICE,
        schema: || schemars::schema_for!(M::Parameters).to_value(),
        check: |value| {
            let checked = M::check(parse::<M::Parameters>(value.clone())?)?;
            if let Some(elsewhere) = M::elsewhere(&checked) {
                return Ok(Answer::Elsewhere { elsewhere });
            }
            let (checked, pinned) = pinned::<M>(value, checked)?;
            let externals = M::externals(&checked)?;
            Ok(Answer::Checked { parameters: serde_json::to_value(&checked)?, pinned, externals })
        },
        run: |value, context| {
            let checked = M::check(parse::<M::Parameters>(value.clone())?)?;
            if let Some(elsewhere) = M::elsewhere(&checked) {
                let message = format!("with these parameters another program does it: `dcu-{elsewhere}`");
                return Err(Failure::new(message, format!("run `dcu-{elsewhere} {}` with the same arguments", M::NAME)).into());
            }
            let (checked, _) = pinned::<M>(value, checked)?;
            let externals = M::externals(&checked)?;
            context.set_provenance(M::NAME, M::VERSION, M::USES_SEED, serde_json::to_value(&checked)?, &externals)?;
            M::run(&checked, context)?;
            M::externals(&checked).and_then(|after| unchanged(&externals, &after)).inspect_err(|_| context.discard())
        },
    }
}

/// The parameters with what they stand for now in place of names that move.
fn pinned<M: Method>(mut value: Value, checked: M::Checked) -> anyhow::Result<(M::Checked, Map<String, Value>)> {
    let pinned = M::pin(&checked)?;
    if pinned.is_empty() {
        return Ok((checked, pinned));
    }
    for (name, known) in &pinned {
        value[name] = known.clone();
    }
    Ok((M::check(parse::<M::Parameters>(value)?)?, pinned))
}

/// Refuses outside files that are no longer what they were before they were read.
fn unchanged(before: &[External], after: &[External]) -> anyhow::Result<()> {
    let names =
        |of: &[External], other: &[External]| of.iter().find(|external| !other.contains(external)).map(|external| external.name.clone());
    match names(before, after).or_else(|| names(after, before)) {
        Some(name) => Err(Failure::new(format!("`{name}` changed while it was read"), "run again, once nothing writes to it").into()),
        None => Ok(()),
    }
}

impl Entry {
    pub(crate) fn describe(&self) -> Value {
        json!({
            "name": self.name, "version": self.version, "summary": self.summary, "uses_seed": self.uses_seed, "pinned": self.pinned,
            "timings": self.timings, "uses_device": self.device.is_some(), "parameters": (self.schema)(),
            "inputs": self.inputs, "outputs": self.outputs,
        })
    }
}

fn parse<P: DeserializeOwned>(value: Value) -> anyhow::Result<P> {
    let value = if value.is_null() { json!({}) } else { value };
    serde_path_to_error::deserialize(&value)
        .map_err(|error| {
            let path = error.path().to_string();
            Rejected { parameter: (path != ".").then_some(path), message: error.into_inner().to_string(), remedy: None }
        })
        .context("the parameters do not fit")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;
    use std::time::Duration;

    use dcu_artifact::{Cost, Request, RequestFacts, digest_file};
    use schemars::JsonSchema;
    use serde::Deserialize;

    use super::*;
    use crate::Meter;
    use crate::context::Arguments;
    use crate::progress::{Progress, Style};

    thread_local! {
        /// What the method does to its file while it runs.
        static MEANWHILE: RefCell<Option<(PathBuf, &'static str)>> = const { RefCell::new(None) };
    }

    /// A method with an outside file, and a parameter that stands for a commit.
    struct Reader;

    #[derive(Debug, Default, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Parameters {
        file: PathBuf,
        revision: String,
        program: bool,
    }

    #[derive(Debug, Serialize)]
    struct Known {
        #[serde(skip)]
        file: PathBuf,
        revision: String,
        #[serde(skip)]
        program: bool,
    }

    impl Method for Reader {
        const NAME: &'static str = "reader";
        const VERSION: u32 = 1;
        const SUMMARY: &'static str = "";
        const USES_SEED: bool = false;
        const INPUTS: &'static [Input] = &[Input::unused::<Request>("request")];
        const OUTPUTS: &'static [Output] = &[Output::artifact::<Request>("request")];

        type Parameters = Parameters;
        type Checked = Known;

        fn check(Parameters { file, revision, program }: Parameters) -> Result<Known, Rejected> {
            Ok(Known { file, revision, program })
        }

        fn elsewhere(known: &Known) -> Option<&'static str> {
            known.program.then_some("other")
        }

        fn pin(known: &Known) -> anyhow::Result<Map<String, Value>> {
            let moves = known.revision == "main";
            Ok(moves.then(|| ("revision".to_owned(), json!("0123"))).into_iter().collect())
        }

        fn externals(known: &Known) -> anyhow::Result<Vec<External>> {
            Ok(vec![External { name: "ids".into(), digest: Some(digest_file(&known.file)?) }])
        }

        fn run(_: &Known, context: &mut Context) -> anyhow::Result<()> {
            let facts = RequestFacts { scenario: "ids".into(), classes: Vec::new(), cumulative: false };
            context.write("request", &Request { forget: vec![1], retain: vec![2], earlier: Vec::new(), facts })?;
            context.changed(0.25);
            if let Some((file, text)) = MEANWHILE.take() {
                std::fs::write(file, text)?;
            }
            Ok(())
        }
    }

    const COUNTED: Cost = Cost { forward: 5, backward: 4, steps: 2, operations: 90, changed: None };
    const METER: Meter = Meter { read: || COUNTED, set: |_| {} };

    fn run(parameters: Value, output: PathBuf) -> anyhow::Result<Value> {
        let arguments = Arguments {
            seed: None,
            device: None,
            inputs: vec![("request".into(), "nowhere".into())],
            outputs: vec![("request".into(), output)],
            timings: None,
            checkpoint: None,
            checkpoint_interval: Duration::from_secs(30),
            progress: Progress::new(Style::Text),
        };
        let (mut context, entry) = (Context::new("dcu-test", arguments, Some(METER)), entry::<Reader>());
        context.check(entry.inputs, entry.outputs, entry.uses_seed)?;
        (entry.run)(parameters, &mut context)?;
        context.finish(entry.outputs)
    }

    #[test]
    fn a_result_says_what_was_computed_and_what_the_method_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, output) = (folder.path().join("ids.csv"), folder.path().join("request.safetensors"));
        std::fs::write(&file, "id\n1\n").unwrap();
        let result = run(json!({ "file": file }), output).unwrap();
        assert_eq!(result["cost"], json!({ "forward": 5, "backward": 4, "steps": 2, "operations": 90, "changed": 0.25 }));
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_fails_the_stage_and_leaves_no_output() {
        let folder = tempfile::tempdir().unwrap();
        let (file, output) = (folder.path().join("ids.csv"), folder.path().join("request.safetensors"));
        std::fs::write(&file, "id\n1\n").unwrap();
        run(json!({ "file": file }), output.clone()).unwrap();
        assert!(output.exists());
        MEANWHILE.set(Some((file.clone(), "id\n2\n")));
        let error = run(json!({ "file": file }), output.clone()).unwrap_err();
        assert!(error.to_string().contains("`ids` changed while it was read"), "{error}");
        assert!(!output.exists(), "what was read is not known");
    }

    #[test]
    fn an_input_that_is_not_read_is_accepted_and_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let (file, output) = (folder.path().join("ids.csv"), folder.path().join("request.safetensors"));
        std::fs::write(&file, "id\n1\n").unwrap();
        run(json!({ "file": file }), output.clone()).unwrap();
        let header = dcu_artifact::Header::read(&output).unwrap();
        assert!(header.provenance.inputs.is_empty(), "{:?}", header.provenance.inputs);
        let described = entry::<Reader>().describe();
        assert_eq!(
            described["inputs"][0],
            json!({ "name": "request", "schema": "request/1", "optional": true, "many": false, "unused": true })
        );
    }

    #[test]
    fn a_name_that_moves_is_replaced_by_what_it_stands_for() {
        let folder = tempfile::tempdir().unwrap();
        let (file, output) = (folder.path().join("ids.csv"), folder.path().join("request.safetensors"));
        std::fs::write(&file, "id\n1\n").unwrap();
        let answer = |revision: &str| {
            serde_json::to_value((entry::<Reader>().check)(json!({ "file": file, "revision": revision })).unwrap()).unwrap()
        };
        let (by_name, by_commit) = (answer("main"), answer("0123"));
        assert_eq!(by_name["pinned"], json!({ "revision": "0123" }));
        assert_eq!((&by_name["parameters"], by_commit.get("pinned")), (&by_commit["parameters"], None));
        run(json!({ "file": file, "revision": "main" }), output.clone()).unwrap();
        assert_eq!(dcu_artifact::Header::read(&output).unwrap().provenance.parameters, json!({ "revision": "0123" }));
    }

    #[test]
    fn another_program_is_named_for_what_this_one_does_not_do() {
        let answer = (entry::<Reader>().check)(json!({ "program": true })).unwrap();
        assert_eq!(serde_json::to_value(answer).unwrap(), json!({ "elsewhere": "other" }));
        let error = run(json!({ "program": true }), "nowhere".into()).unwrap_err();
        assert!(error.to_string().contains("`dcu-other`"), "{error}");
    }
}
