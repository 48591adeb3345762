//! `unlearn/random-label`: in each epoch the model takes the forget samples with random labels, then the retain samples with their own (RL in the comparisons of
//! Fan et al., arXiv 2310.12508, whose settings for CIFAR-10 and ResNet-18 are the defaults).
//!
//! A trap of it: a model that gives forgotten samples lower probabilities than unseen ones tells them by that.

use dcu_artifact::Array;
use dcu_nn::optimiser::Rule;
use dcu_nn::rng::Streams;
use dcu_nn::{Gradients, Network};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Task, Unlearn};
use crate::targets::one_hot;

pub(crate) struct RandomLabel;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Passes over forget and retain samples.
    pub(crate) epochs: usize,
    /// The share of the retain set that each of them takes, drawn anew.
    pub(crate) share: f64,
    /// Samples backward, as a share of retraining's. Where it is given, `share` follows from it, and where that is not enough, `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<f64>,
    /// The learning rate of SGD.
    pub(crate) lr: f64,
    /// How much of the last step is kept.
    pub(crate) momentum: f64,
    /// Added to the gradient, times the parameter.
    pub(crate) weight_decay: f64,
    /// Samples in a batch.
    pub(crate) batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { epochs: 10, share: 1.0, budget: None, lr: 0.013, momentum: 0.9, weight_decay: 5e-4, batch: 256 }
    }
}

impl Parameters {
    pub(crate) fn checked(self) -> Result<Self, Rejected> {
        check::at_least("epochs", 1, self.epochs)?;
        check::share("share", self.share)?;
        check::budget(self.budget)?;
        check::positive("lr", self.lr)?;
        check::not_negative("momentum", self.momentum)?;
        check::not_negative("weight_decay", self.weight_decay)?;
        check::at_least("batch", 2, self.batch)?;
        Ok(self)
    }
}

impl Unlearn for RandomLabel {
    const NAME: &'static str = "random-label";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str =
        "Trains on with random labels of the forget samples, drawn anew in each epoch, and those of the retain samples";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.checked()
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        relabel(parameters, task, None)
    }
}

/// Trains the original network on random labels, where a mask lets it move.
///
/// # Errors
/// When the training diverges.
pub(crate) fn relabel(parameters: &Parameters, task: &mut Task, mask: Option<Gradients>) -> anyhow::Result<Network> {
    // Under one name, so that a mask that lets everything move changes nothing.
    let streams = Streams::new(task.streams.seed(), "unlearn/random-label");
    task.streams = streams.clone();
    let (count, classes) = (task.forget.len(), task.dataset.classes());
    relabel_as(parameters, task, mask, |epoch| {
        let mut stream = streams.indexed("labels", epoch as u64);
        (0..count).map(|_| stream.below(classes) as u32).collect()
    })
}

/// The same with given labels of the forget samples in each epoch.
///
/// # Errors
/// When the training diverges.
pub(crate) fn relabel_as(
    parameters: &Parameters,
    task: &mut Task,
    mask: Option<Gradients>,
    labels: impl Fn(usize) -> Vec<u32>,
) -> anyhow::Result<Network> {
    let (forget, retain, classes) = (task.forget.clone(), task.retain.clone(), task.dataset.classes());
    let (epochs, share) =
        task.length(parameters.budget, (parameters.epochs, parameters.share), [1.0, 1.0], [forget.len(), retain.len()])?;
    let network = task.original()?;
    let rule = Rule::Sgd { momentum: parameters.momentum, weight_decay: parameters.weight_decay };
    let course = Course { rule, mask, ..Course::adam(&network, epochs, parameters.lr) };
    task.teach(network, &course, |pupil, epoch| {
        let targets = labels(epoch).into_iter().flat_map(|label| one_hot(label, classes)).collect();
        let relabelled = forget.clone().with_targets(Array::new(vec![forget.len(), classes], targets))?;
        let rows: Vec<usize> = (0..forget.len()).collect();
        pupil.pass("forget", &relabelled, &rows, parameters.batch, |_, batch| batch.cross_entropy())?;
        let drawn = pupil.drawn("draw", retain.len(), share);
        pupil.pass("retain", &retain, &drawn, parameters.batch, |_, batch| batch.cross_entropy())
    })
}
