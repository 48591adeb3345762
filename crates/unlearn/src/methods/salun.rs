//! `unlearn/salun`: random labels, where only the weights move that matter most for the forget samples (Fan et al., arXiv 2310.12508).
//!
//! The gradient of the loss of all forget samples is summed up with its sign before its size is taken, in eval mode; a weight that may not move is put
//! back after each step, so that neither decay nor momentum moves it.

use dcu_nn::{Gradients, Network};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::random_label::{self, relabel};
use crate::algebra;
use crate::course::check;
use crate::frame::{Task, Unlearn};

pub(crate) struct SalUn;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// The share of the weights that may move, those with the largest gradients.
    pub(crate) saliency: f64,
    /// Passes over forget and retain samples.
    epochs: usize,
    /// The share of the retain set that each of them takes, drawn anew.
    share: f64,
    /// Samples backward, as a share of retraining's. Where it is given, `share` follows from it, and where that is not enough, `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The learning rate of SGD.
    lr: f64,
    /// How much of the last step is kept.
    momentum: f64,
    /// Added to the gradient, times the parameter.
    weight_decay: f64,
    /// Samples in a batch.
    batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        let random_label::Parameters { epochs, share, budget, lr, momentum, weight_decay, batch } = random_label::Parameters::default();
        Self { saliency: 0.5, epochs, share, budget, lr, momentum, weight_decay, batch }
    }
}

impl Parameters {
    pub(crate) fn relabelling(&self) -> random_label::Parameters {
        let Self { epochs, share, budget, lr, momentum, weight_decay, batch, .. } = *self;
        random_label::Parameters { epochs, share, budget, lr, momentum, weight_decay, batch }
    }
}

impl Unlearn for SalUn {
    const NAME: &'static str = "salun";
    const SUMMARY: &'static str = "Random labels, where only the weights move whose gradients on the forget set are largest";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::share("saliency", parameters.saliency)?;
        parameters.relabelling().checked()?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let mask = salient(parameters.saliency, task)?;
        relabel(&parameters.relabelling(), task, Some(mask))
    }
}

/// 1 for the share of the weights with the largest gradients on the forget samples.
///
/// # Errors
/// When the samples do not fit the network.
pub(crate) fn salient(share: f64, task: &Task) -> anyhow::Result<Gradients> {
    algebra::largest(&algebra::gradient(&task.original()?, &task.forget)?, share)
}
