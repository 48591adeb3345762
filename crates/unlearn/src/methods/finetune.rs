//! `unlearn/finetune`: training goes on without the forget set, in the hope that it fades (also called catastrophic forgetting).

use dcu_nn::Network;
use dcu_nn::model;
use dcu_nn::recipe::Recipe;
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::check;
use crate::fit::{cut_short, fit};
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct Finetune;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Passes over the retain set; by default as many as the base model was trained for.
    epochs: Option<usize>,
    /// The learning rate; by default the base model's.
    lr: Option<f64>,
}

impl Unlearn for Finetune {
    const NAME: &'static str = "finetune";
    const SUMMARY: &'static str = "Trains the original model on, on the retain set alone";
    const WIRES: Wires = Wires { test: Need::May, holdout: Need::May, ..Wires::RETAIN };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.epochs.map_or(Ok(()), |epochs| check::at_least("epochs", 1, epochs))?;
        parameters.lr.map_or(Ok(()), |lr| check::positive("lr", lr))?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let trained_by = model::recipe(&task.model)?;
        let recipe = Recipe { lr: parameters.lr.unwrap_or(trained_by.lr), ..cut_short(&trained_by, parameters.epochs)? };
        fit(task.original()?, &recipe, task)
    }
}
