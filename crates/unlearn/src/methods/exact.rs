//! `unlearn/exact`: takes the samples of a request out of the sums that the last layer was solved from, and solves again. The layer is that of training without them, up to rounding.
//!
//! The other layers stay: where they saw the forgotten samples (`trunk_saw_training_data`), only the last one forgets exactly. The sums that were given hold what is forgotten
//! still; whoever serves a deletion makes them anew without it, by `condense/statistics` with the `request`.

use std::collections::HashSet;

use dcu_artifact::{Request, Statistics};
use dcu_nn::ridge::{self, Trunk};
use dcu_nn::{Network, model};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::frame::{Need, Task, Unlearn, Wires};

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

impl Unlearn for Exact {
    const NAME: &'static str = "exact";
    const SUMMARY: &'static str = "Takes the forget samples out of the sums that the last layer was solved from, and solves again";
    const USES_SEED: bool = false;
    const WIRES: Wires = Wires { statistics: Need::Must, ..Wires::NONE };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let mut statistics = task.statistics.take().expect("checked by the frame");
        let ids = counted(&task.request, &statistics)?;
        let trunk = Trunk::new(&task.model, !statistics.facts.trunk_saw_training_data)?;
        task.progress.phase("take back");
        match parameters.instead {
            Instead::Remove => trunk.take_back(&task.dataset, &ids, &mut statistics)?,
            Instead::Relabel => trunk.relabel(&task.dataset, &ids, &mut statistics)?,
        }
        task.progress.phase("solve");
        let solution = ridge::solve(&statistics, statistics.facts.lambda)?;
        Ok(model::to_network(&trunk.with_head(&task.model, &solution)?)?)
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
