//! `unlearn/gradient-ascent`: steps up the slope of the loss of the forget samples (as in the comparisons of Fan et al., arXiv 2310.12508, and with the settings of theirs).
//!
//! Nothing tells it when to stop: it leaves the network as it was, or destroys it.

use dcu_nn::Network;
use dcu_nn::optimiser::Rule;
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Task, Unlearn, Wires};

pub(crate) struct GradientAscent;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Passes over the forget samples.
    epochs: usize,
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
        Self { epochs: 5, lr: 1e-4, momentum: 0.9, weight_decay: 5e-4, batch: 256 }
    }
}

impl Unlearn for GradientAscent {
    const NAME: &'static str = "gradient-ascent";
    const SUMMARY: &'static str = "Steps up the slope of the loss of the forget samples";
    const WIRES: Wires = Wires::NONE;

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::at_least("epochs", 1, parameters.epochs)?;
        check::positive("lr", parameters.lr)?;
        check::not_negative("momentum", parameters.momentum)?;
        check::not_negative("weight_decay", parameters.weight_decay)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let forget = task.forget.clone();
        let rows: Vec<usize> = (0..forget.len()).collect();
        let network = task.original()?;
        let rule = Rule::Sgd { momentum: parameters.momentum, weight_decay: parameters.weight_decay };
        let course = Course { rule, ..Course::adam(&network, parameters.epochs, parameters.lr) };
        task.teach(network, &course, |pupil, _| {
            pupil.pass("ascent", &forget, &rows, parameters.batch, |_, batch| Ok(batch.cross_entropy()?.neg()?))
        })
    }
}
