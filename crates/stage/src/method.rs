//! What a method declares of itself.

use anyhow::Context as _;
use dcu_artifact::{Digest, Payload};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Context, Rejected};

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
}

impl Input {
    /// An input that must be given once.
    #[must_use]
    pub const fn one<P: Payload>(name: &'static str) -> Self {
        Self { name, schema: P::SCHEMA, optional: false, many: false }
    }

    /// An input that may be left out.
    #[must_use]
    pub const fn optional<P: Payload>(name: &'static str) -> Self {
        Self { name, schema: P::SCHEMA, optional: true, many: false }
    }

    /// An input of one value or more, in order.
    #[must_use]
    pub const fn many<P: Payload>(name: &'static str) -> Self {
        Self { name, schema: P::SCHEMA, optional: false, many: true }
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
    /// The digest of its content, or of the commit that fixes it.
    pub digest: Digest,
}

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
    /// Whether parameters can name outside files.
    const READS_FILES: bool = false;
    /// Whether it needs the runner's timings.
    const TIMINGS: bool = false;

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
    pub(crate) reads_files: bool,
    pub(crate) timings: bool,
    pub(crate) schema: fn() -> Value,
    pub(crate) check: fn(Value) -> anyhow::Result<Checked>,
    pub(crate) run: fn(Value, &mut Context) -> anyhow::Result<()>,
}

/// What a check gives: parameters for the key, and the outside files.
#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    pub(crate) parameters: Value,
    pub(crate) externals: Vec<External>,
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
        reads_files: M::READS_FILES,
        timings: M::TIMINGS,
        schema: || schemars::schema_for!(M::Parameters).to_value(),
        check: |value| {
            let checked = M::check(parse::<M::Parameters>(value)?)?;
            let externals = M::externals(&checked)?;
            Ok(Checked { parameters: serde_json::to_value(&checked)?, externals })
        },
        run: |value, context| {
            let checked = M::check(parse::<M::Parameters>(value)?)?;
            let externals = M::externals(&checked)?;
            context.set_provenance(M::NAME, M::VERSION, M::USES_SEED, serde_json::to_value(&checked)?, &externals);
            M::run(&checked, context)
        },
    }
}

impl Entry {
    pub(crate) fn describe(&self) -> Value {
        json!({
            "name": self.name, "version": self.version, "summary": self.summary, "uses_seed": self.uses_seed, "pinned": self.pinned,
            "reads_files": self.reads_files, "timings": self.timings, "parameters": (self.schema)(),
            "inputs": self.inputs, "outputs": self.outputs,
        })
    }
}

fn parse<P: DeserializeOwned>(value: Value) -> anyhow::Result<P> {
    let value = if value.is_null() { json!({}) } else { value };
    serde_path_to_error::deserialize(&value)
        .map_err(|error| {
            let path = error.path().to_string();
            Rejected { parameter: (path != ".").then_some(path), message: error.into_inner().to_string() }
        })
        .context("the parameters do not fit")
}
