//! `report/html`: one self-contained page, from what `report/table` reads: the verdict for a reader who knows nothing of machine learning, tables, plots, lineage and definitions.

use dcu_artifact::{Metrics, Request, Retain};
use dcu_stage::{Context, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::page::page;
use crate::report::Read;

pub(crate) struct Html;

/// There is nothing to choose.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {}

/// The page names it.
pub(crate) const VERSION: u32 = 2;

impl Method for Html {
    const NAME: &'static str = "html";
    const VERSION: u32 = VERSION;
    const SUMMARY: &'static str = "A page that can be handed on: verdict, table of methods, plots, lineage, definitions and limits";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[
        Input::many::<Metrics>("metrics"),
        // What `attack/audit` found.
        Input { optional: true, ..Input::many::<Metrics>("audits") },
        // In words; without it only its size is known.
        Input { optional: true, ..Input::many::<Request>("request") },
        // For the grid of condensed images, of which none stands for a forgotten sample.
        Input { optional: true, ..Input::many::<Retain>("retain") },
    ];
    const OUTPUTS: &'static [Output] = &[Output::file("page", "file/html")];
    const TIMINGS: bool = true;

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn run(_: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let read = Read::new(context)?;
        let requests: Vec<Request> = context.read_many("request")?.into_iter().map(|(request, _)| request).collect();
        let sets: Vec<Retain> = context.read_many("retain")?.into_iter().map(|(set, _)| set).collect();
        let judged = read.judged()?;
        let page = page(&read.report(&judged)?, &requests, &sets)?;
        context.write_file("page", "file/html", page.as_bytes())
    }
}
