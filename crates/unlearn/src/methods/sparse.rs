//! `unlearn/sparse`: finetuning on the retain samples with a penalty on the size of all weights, which fades (Jia et al., arXiv 2304.04934).
//!
//! As in public code the penalty counts biases and normalisation too. Its size is to be chosen for each network.

use dcu_nn::optimiser::Rule;
use dcu_nn::{Network, Tensor, Trainable};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Task, Unlearn};

pub(crate) struct Sparse;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How much the sum of all sizes counts in the first epoch; it falls evenly, to 0 for the last `tail` epochs.
    gamma: f64,
    /// Epochs at the end without a penalty.
    tail: usize,
    /// Passes over the retain samples.
    epochs: usize,
    /// The share of the retain set that each pass takes, drawn anew.
    share: f64,
    /// Samples backward, as a share of retraining's. Where it is given, `share` follows from it.
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
        Self { gamma: 1e-4, tail: 1, epochs: 10, share: 1.0, budget: None, lr: 0.01, momentum: 0.9, weight_decay: 5e-4, batch: 256 }
    }
}

impl Unlearn for Sparse {
    const NAME: &'static str = "sparse";
    const SUMMARY: &'static str = "Finetunes on the retain samples with a penalty on the size of all weights";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::not_negative("gamma", parameters.gamma)?;
        check::at_least("epochs", 1, parameters.epochs)?;
        Rejected::unless(parameters.tail < parameters.epochs, "tail", "`tail` must be below `epochs`")?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::positive("lr", parameters.lr)?;
        check::not_negative("momentum", parameters.momentum)?;
        check::not_negative("weight_decay", parameters.weight_decay)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let retain = task.retain.clone();
        let (epochs, share) = task.length(parameters.budget, (parameters.epochs, parameters.share), [0.0, 1.0], [0, retain.len()])?;
        let network = task.original()?;
        let rule = Rule::Sgd { momentum: parameters.momentum, weight_decay: parameters.weight_decay };
        let course = Course { rule, ..Course::adam(&network, epochs, parameters.lr) };
        task.teach(network, &course, |pupil, epoch| {
            let fading = 1.0 - epoch as f64 / (parameters.epochs - parameters.tail) as f64;
            let gamma = parameters.gamma * fading.max(0.0);
            let drawn = pupil.drawn("draw", retain.len(), share);
            pupil.pass("sparse", &retain, &drawn, parameters.batch, |network, batch| {
                Ok((batch.cross_entropy()? + (size(network)? * gamma)?)?)
            })
        })
    }
}

/// The sum of the sizes of all parameters.
pub(crate) fn size(network: &Network) -> dcu_nn::Result<Tensor> {
    let parameters = network.parameters(&Trainable::all(network.graph()));
    let sizes = parameters.values().map(|value| value.abs()?.sum_all()).collect::<dcu_nn::Result<Vec<_>>>()?;
    Tensor::stack(&sizes, 0)?.sum_all()
}
