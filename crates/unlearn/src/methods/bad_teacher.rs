//! `unlearn/bad-teacher`: of the forget samples the network learns what a network with random weights says, of retain samples what it said itself (Chundawat et al.,
//! arXiv 2205.08096).
//!
//! Public code takes the mean of the divergence over classes too, which divides the loss by their number; to Adam the size of a loss makes no difference. A trap of the
//! rule: what a random network says is no better known of forgotten than of unseen samples, but another thing.

use dcu_nn::{Network, Samples, Tensor, Trainable, ops};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Task, Unlearn};

pub(crate) struct BadTeacher;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Passes over the forget samples.
    pub(crate) epochs: usize,
    /// The share of the retain set that goes along in each of them, drawn anew.
    pub(crate) share: f64,
    /// Samples backward, as a share of retraining's. Where it is given, `share` follows from it, and where that is not enough, `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The temperature of all distributions.
    temperature: f64,
    /// The learning rate of Adam.
    lr: f64,
    /// Samples in a batch.
    pub(crate) batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { epochs: 1, share: 0.3, budget: None, temperature: 1.0, lr: 1e-4, batch: 256 }
    }
}

impl Unlearn for BadTeacher {
    const NAME: &'static str = "bad-teacher";
    const SUMMARY: &'static str = "Learns of the forget samples what a random network says, of retain samples what the original says";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::at_least("epochs", 1, parameters.epochs)?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::positive("temperature", parameters.temperature)?;
        check::positive("lr", parameters.lr)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let bad = task.fresh()?;
        taught_by(&bad, parameters, task)
    }
}

/// The original network, taught by this one and by itself.
///
/// # Errors
/// When the training diverges.
pub(crate) fn taught_by(bad: &Network, parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
    let (forget, retain, good, none) = (task.forget.len(), task.retain.len(), task.original()?, Trainable::none());
    let together = Samples::joined(&[&task.forget, &task.retain])?;
    let (epochs, share) = task.length(parameters.budget, (parameters.epochs, parameters.share), [1.0, 1.0], [forget, retain])?;
    let network = task.original()?;
    let course = Course::adam(&network, epochs, parameters.lr);
    task.teach(network, &course, |pupil, _| {
        let rows = pupil.all_and_drawn(forget, retain, share);
        pupil.pass("bad teacher", &together, &rows, parameters.batch, |_, batch| {
            let is_forgotten: Vec<u8> = batch.rows.iter().map(|&row| u8::from(row < forget)).collect();
            let is_forgotten = Tensor::from_vec(is_forgotten, (batch.rows.len(), 1), batch.logits.device())?;
            let (bad, good) = (bad.judge(batch.images, &none)?, good.judge(batch.images, &none)?);
            let said = is_forgotten.broadcast_as(good.dims())?.where_cond(&bad, &good)?;
            Ok(ops::kl_divergence(batch.logits, &said, parameters.temperature)?)
        })
    })
}
