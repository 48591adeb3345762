//! `unlearn/retrain`: training from scratch without the forget set, which is what every other method is judged by. A last layer that was solved for is solved for anew.

use dcu_nn::ridge::{self, Trunk};
use dcu_nn::{Network, model};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fit::{Length, fit};
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct Retrain;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Another number gives an independent retraining with the same seed; the second is the null of the first.
    replicate: u32,
    /// Passes over the retain set; by default as many as the base model was trained for. Fewer are the control for what is said to be faster than retraining.
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<usize>,
    /// Samples backward, as a share of retraining's: whole passes over the retain set, or one over a random part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
}

impl Parameters {
    fn length(&self) -> Length {
        Length { epochs: self.epochs, budget: self.budget }
    }
}

impl Default for Parameters {
    fn default() -> Self {
        Self { replicate: 1, epochs: None, budget: None }
    }
}

impl Unlearn for Retrain {
    const NAME: &'static str = "retrain";
    const SUMMARY: &'static str = "Trains from scratch on the retain set, by the base model's architecture and recipe, never its weights but those that the training set had no part in";
    const WIRES: Wires = Wires { test: Need::May, holdout: Need::May, ..Wires::RETAIN };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.replicate > 0, "replicate", "`replicate` counts from 1")?;
        parameters.length().check()?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        task.streams = task.streams.clone().replicate(parameters.replicate);
        let ridge = task.model.facts.ridge.clone();
        // A trunk that never saw the training set is no part of what was trained.
        let network = if ridge.as_ref().is_none_or(|ridge| ridge.trunk_saw_training_data) {
            let (recipe, share) = parameters.length().of(&model::recipe(&task.model)?, task)?;
            fit(task.fresh()?, (&recipe, share), task)?
        } else {
            task.original()?
        };
        match ridge {
            Some(ridge) => solved_for(ridge.lambda, &network, task),
            None => Ok(network),
        }
    }
}

/// The network with a last layer that is solved for anew, from the retain set alone.
fn solved_for(lambda: f64, network: &Network, task: &Task) -> anyhow::Result<Network> {
    task.progress.phase("features");
    if task.retain.len() != task.request.retain.len() {
        let message = "a last layer that is solved for needs the whole retain set, not rows in its place";
        return Err(Failure::new(message, "leave out `retain` and `budget`").into());
    }
    let trained = model::with_facts_of(network, &task.model)?;
    let trunk = Trunk::new(&trained, false)?;
    let statistics = trunk.statistics(&task.dataset, &task.retain, task.request.retain.clone(), lambda)?;
    Ok(model::to_network(&trunk.with_head(&trained, &ridge::solve(&statistics, lambda)?)?)?)
}
