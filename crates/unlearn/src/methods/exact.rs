//! `unlearn/exact`: takes the samples of a request out of the sums that the last layer was solved from, and solves again. The layer is that of training without them, up to rounding.
//!
//! The other layers stay: where they saw the forgotten samples (`trunk_saw_training_data`), only the last one forgets exactly. The sums that were given hold what is forgotten
//! still; whoever serves a deletion makes them anew without it, by `condense/statistics` with the `request`.

use std::collections::HashSet;

use dcu_artifact::{Dataset, Ensemble, Holdout, Model, Reduced, Request, Statistics};
use dcu_nn::model;
use dcu_nn::ridge::{self, Trunk};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct Exact;

/// What becomes of the forget samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Instead {
    /// They are taken out.
    #[default]
    Remove,
    /// They stay, under the labels that they had before `data/poison`.
    Relabel,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// What becomes of the forget samples.
    instead: Instead,
}

impl Method for Exact {
    const NAME: &'static str = "exact";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Takes the forget samples out of the sums that the last layer was solved from, and solves again";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[
        Input::one::<Model>("model"),
        Input::one::<Dataset>("dataset"),
        Input::one::<Request>("request"),
        Input::one::<Statistics>("statistics"),
        Input::unused::<Reduced>("reduced"),
        Input::unused::<Ensemble>("ensemble"),
        Input::unused::<Dataset>("test"),
        Input::unused::<Holdout>("holdout"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (base, dataset, request): (Model, Dataset, Request) =
            (context.read("model")?, context.read("dataset")?, context.read("request")?);
        let mut statistics: Statistics = context.read("statistics")?;
        model::check_fit(&base, &dataset)?;
        let ids = counted(&request, &statistics)?;
        let trunk = Trunk::new(&base, !statistics.facts.trunk_saw_training_data)?;
        context.progress().phase("take back");
        match parameters.instead {
            Instead::Remove => trunk.take_back(&dataset, &ids, &mut statistics)?,
            Instead::Relabel => trunk.relabel(&dataset, &ids, &mut statistics)?,
        }
        context.progress().phase("solve");
        let solution = ridge::solve(&statistics, statistics.facts.lambda)?;
        context.progress().note(&format!(
            "{} of the {} samples in the sums forward, none backward",
            ids.len(),
            ids.len() + request.retain.len()
        ));
        context.write("model", &trunk.with_head(&base, &solution)?)
    }
}

/// What is to be taken out of the sums: the forget samples, and those of earlier requests that are still in.
///
/// # Errors
/// When they are not the sums over what was to be kept before.
fn counted(request: &Request, statistics: &Statistics) -> Result<Vec<u64>, Failure> {
    let known: HashSet<u64> = statistics.ids.iter().copied().collect();
    let earlier = request.earlier.iter().filter(|id| known.contains(id));
    let ids: Vec<u64> = request.forget.iter().chain(earlier).copied().collect();
    if ids.len() + request.retain.len() != known.len() || !request.forget.iter().chain(&request.retain).all(|id| known.contains(id)) {
        let message = format!(
            "the sums are over {} samples, which are not the {} that the request keeps and the {} that it forgets",
            known.len(),
            request.retain.len(),
            ids.len()
        );
        return Err(Failure::new(message, "make `statistics` and `request` from the same dataset"));
    }
    Ok(ids)
}
