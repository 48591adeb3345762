//! `unlearn/finetune`: training goes on without the forget set, in the hope that it fades (also called catastrophic forgetting).

use dcu_nn::Network;
use dcu_nn::model;
use dcu_nn::recipe::Recipe;
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::check;
use crate::fit::{Length, fit};
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct Finetune;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Passes over the retain set; by default as many as the base model was trained for.
    epochs: Option<usize>,
    /// Samples backward, as a share of retraining's: whole passes over the retain set, or one over a random part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The learning rate; by default the base model's.
    lr: Option<f64>,
}

impl Parameters {
    fn length(&self) -> Length {
        Length { epochs: self.epochs, budget: self.budget }
    }
}

impl Unlearn for Finetune {
    const NAME: &'static str = "finetune";
    const SUMMARY: &'static str = "Trains the original model on, on the retain set alone";
    const WIRES: Wires = Wires { test: Need::May, holdout: Need::May, ..Wires::RETAIN };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.length().check()?;
        parameters.lr.map_or(Ok(()), |lr| check::positive("lr", lr))?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let (recipe, share) = parameters.length().of(&model::recipe(&task.model)?, task)?;
        let recipe = Recipe { lr: parameters.lr.unwrap_or(recipe.lr), ..recipe };
        fit(task.original()?, (&recipe, share), task)
    }
}
