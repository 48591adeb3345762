//! `unlearn/top-k`: the weights with the largest gradients on the forget samples get noise, and short training on the retain samples repairs what that broke. After the abstract of
//! arXiv 2401.04385, since no code is public: what goes beyond "perturb few weights, then keep the utility" is ours.
//!
//! Its traps: a comparison with `finetune` at the same passes says what the noise adds; running averages are no parameters and get none.

use dcu_nn::{Gradients, Network, Trainable};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algebra;
use crate::course::{Course, check};
use crate::frame::{Task, Unlearn};

pub(crate) struct TopK;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// The share of the weights that get noise.
    pub(crate) selected: f64,
    /// The standard deviation of the noise, as a share of the root mean square of the weights in a tensor.
    pub(crate) strength: f64,
    /// Whether only the weights that got noise are repaired.
    pub(crate) only_selected: bool,
    /// Passes over the retain samples; 0 repairs nothing.
    pub(crate) epochs: usize,
    /// The share of the retain set that each of them takes, drawn anew.
    pub(crate) share: f64,
    /// Samples backward of the repair, as a share of retraining's. Where it is given, `share` follows from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<f64>,
    /// The learning rate of Adam.
    pub(crate) lr: f64,
    /// Samples in a batch.
    pub(crate) batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { selected: 0.01, strength: 0.5, only_selected: false, epochs: 1, share: 1.0, budget: None, lr: 1e-3, batch: 256 }
    }
}

impl Parameters {
    pub(crate) fn checked(self) -> Result<Self, Rejected> {
        check::share("selected", self.selected)?;
        check::not_negative("strength", self.strength)?;
        check::share("share", self.share)?;
        check::budget(self.budget)?;
        check::positive("lr", self.lr)?;
        check::at_least("batch", 2, self.batch)?;
        Ok(self)
    }
}

impl Unlearn for TopK {
    const NAME: &'static str = "top-k";
    const SUMMARY: &'static str = "Adds noise to the weights that matter most for the forget samples, and repairs on the retain samples";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.checked()
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let gradient = algebra::gradient(&task.original()?, &task.forget)?;
        perturbed(parameters, task, &algebra::largest(&gradient, parameters.selected)?)
    }
}

/// The original network with noise where `mask` is 1, repaired.
///
/// # Errors
/// When the training diverges.
pub(crate) fn perturbed(parameters: &Parameters, task: &mut Task, mask: &Gradients) -> anyhow::Result<Network> {
    let mut network = task.original()?;
    let values = algebra::values(&network, &Trainable::all(network.graph()))?;
    let noise = algebra::drawn(&values, &task.streams, "noise", dcu_nn::rng::Stream::normal)?;
    let scaled = noise.map(|name, noise| {
        let size = values.get(name).expect("of this network").sqr()?.mean_all()?.sqrt()?;
        noise.broadcast_mul(&(size * parameters.strength)?)
    })?;
    algebra::shift(&mut network, 1.0, &scaled.masked(mask)?)?;
    let retain = task.retain.clone();
    let (epochs, share) = task.length(parameters.budget, (parameters.epochs, parameters.share), [0.0, 1.0], [0, retain.len()])?;
    let mask = parameters.only_selected.then(|| mask.clone());
    let course = Course { mask, ..Course::adam(&network, epochs, parameters.lr) };
    task.teach(network, &course, |pupil, _| {
        let drawn = pupil.drawn("draw", retain.len(), share);
        pupil.pass("repair", &retain, &drawn, parameters.batch, |_, batch| batch.cross_entropy())
    })
}
