//! `unlearn/ssd`: selective synaptic dampening (Foster et al., arXiv 2308.07707). Parameters that matter more for the forget samples than for all of the data are
//! scaled down, by the ratio of the two, and never grow.
//!
//! Its traps: the importances are squares of the gradients of batch means and so depend on the size of a batch; of a random forget set hardly any parameter is selected.

use dcu_nn::{Gradients, Network, Samples};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algebra::Importance;
use crate::course::check;
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct Ssd;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// A parameter is dampened that matters so many times as much for the forget samples as for all.
    pub(crate) alpha: f64,
    /// What is left of it, times the ratio of the two importances.
    pub(crate) lambda: f64,
    /// Samples in a batch whose gradient is squared.
    pub(crate) batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { alpha: 10.0, lambda: 1.0, batch: 1 }
    }
}

impl Parameters {
    pub(crate) fn checked(self) -> Result<Self, Rejected> {
        check::positive("alpha", self.alpha)?;
        check::positive("lambda", self.lambda)?;
        check::at_least("batch", 1, self.batch)?;
        Ok(self)
    }
}

impl Unlearn for Ssd {
    const NAME: &'static str = "ssd";
    const SUMMARY: &'static str = "Scales down the parameters that matter more for the forget samples than for the rest";
    const USES_SEED: bool = false;
    const WIRES: Wires = Wires { weights: Need::May, ..Wires::NONE };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.checked()
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        dampened(Importance::SquaredGradients, parameters, task)
    }
}

/// The original network with what matters for the forget samples dampened. The importances for all data come from `weights`, or are measured anew.
///
/// # Errors
/// When `weights` do not fit.
pub(crate) fn dampened(rule: Importance, parameters: &Parameters, task: &Task) -> anyhow::Result<Network> {
    let mut network = task.original()?;
    let of_all = match &task.weights {
        Some(weights) => rule.read(weights, &network, parameters.batch)?,
        None => rule.measure(&network, &Samples::of_whole_dataset(&task.dataset), parameters.batch)?,
    };
    let of_forget = rule.measure(&network, &task.forget, parameters.batch)?;
    let values = network.parameters(&dcu_nn::Trainable::all(network.graph()));
    let dampened = values.into_iter().map(|(name, value)| {
        let (all, forget) = (of_all.get(name).expect("of this network"), of_forget.get(name).expect("of this network"));
        let factor = ((all * parameters.lambda)? / forget)?.minimum(1.0)?;
        let is_selected = forget.gt(&(all * parameters.alpha)?)?;
        let value = value.as_detached_tensor();
        Ok((name.to_owned(), is_selected.where_cond(&(&value * factor)?, &value)?))
    });
    let dampened: Gradients = dampened.collect::<dcu_nn::Result<_>>()?;
    network.set(&dampened)?;
    Ok(network)
}
