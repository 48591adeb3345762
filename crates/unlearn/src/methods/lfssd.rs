//! `unlearn/lfssd`: selective synaptic dampening without labels (Foster et al., arXiv 2402.19308). How much a parameter matters is how much the squared norm of the logits
//! moves with it; what is done with it is SSD's rule.
//!
//! Its traps: those of SSD; in a batch of several samples signs cancel before sizes are taken; the last layer moves the norm most. The default of `alpha` is ours: this
//! importance is a first power where SSD's is a square, and 3 is about the root of its 10.

use dcu_nn::Network;
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ssd::{self, dampened};
use crate::algebra::Importance;
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct LossFreeSsd;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// A parameter is dampened that matters so many times as much for the forget samples as for all.
    alpha: f64,
    /// What is left of it, times the ratio of the two importances.
    lambda: f64,
    /// Samples in a batch of which the size of the gradient is taken.
    batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { alpha: 3.0, lambda: 1.0, batch: 1 }
    }
}

impl Parameters {
    fn dampening(&self) -> ssd::Parameters {
        ssd::Parameters { alpha: self.alpha, lambda: self.lambda, batch: self.batch }
    }
}

impl Unlearn for LossFreeSsd {
    const NAME: &'static str = "lfssd";
    const SUMMARY: &'static str = "Scales down the parameters to which the logits of the forget samples are more sensitive, without labels";
    const USES_SEED: bool = false;
    const WIRES: Wires = Wires { weights: Need::May, ..Wires::NONE };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.dampening().checked()?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        dampened(Importance::OutputSensitivity, &parameters.dampening(), task)
    }
}
