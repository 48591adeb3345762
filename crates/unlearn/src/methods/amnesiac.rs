//! `unlearn/amnesiac`: the model learns a wrong label of each forget sample, drawn once, beside the right ones of a share of the retain set (after Graves et al.,
//! arXiv 2010.10981, as public comparisons run it; the steps on the forget set are not taken back here).
//!
//! A trap of it: a model that gives forgotten samples lower probabilities than unseen ones tells them by that.

use dcu_artifact::Array;
use dcu_nn::{Network, Samples};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Task, Unlearn};
use crate::targets::one_hot;

pub(crate) struct Amnesiac;

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
    /// The learning rate of Adam.
    lr: f64,
    /// Samples in a batch.
    pub(crate) batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { epochs: 3, share: 1.0, budget: None, lr: 1e-4, batch: 128 }
    }
}

impl Unlearn for Amnesiac {
    const NAME: &'static str = "amnesiac";
    const SUMMARY: &'static str = "Teaches the model a wrong label of each forget sample, among retain samples with their own";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::at_least("epochs", 1, parameters.epochs)?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::positive("lr", parameters.lr)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let (forget, retain) = (task.forget.len(), task.retain.len());
        let together = Samples::joined(&[&task.forget.clone().with_targets(wrong_labels(task)?)?, &task.retain])?;
        let (epochs, share) = task.length(parameters.budget, (parameters.epochs, parameters.share), [1.0, 1.0], [forget, retain])?;
        let network = task.original()?;
        let course = Course::adam(&network, epochs, parameters.lr);
        task.teach(network, &course, |pupil, _| {
            let rows = pupil.all_and_drawn(forget, retain, share);
            pupil.pass("amnesiac", &together, &rows, parameters.batch, |_, batch| batch.cross_entropy())
        })
    }
}

/// For each forget sample a class that is neither its own nor forgotten whole, [F, K].
pub(crate) fn wrong_labels(task: &Task) -> anyhow::Result<Array<f32>> {
    let (gone, classes) = (task.classes_gone(), task.dataset.classes());
    let (mut stream, mut targets) = (task.streams.stream("labels"), Vec::with_capacity(task.forget.len() * classes));
    for &own in task.forget.labels() {
        let wrong: Vec<u32> = (0..classes as u32).filter(|class| *class != own && !gone.contains(class)).collect();
        if wrong.is_empty() {
            return Err(Failure::new("no class is left for a wrong label", "forget fewer classes").into());
        }
        targets.extend(one_hot(wrong[stream.below(wrong.len())], classes));
    }
    Ok(Array::new(vec![task.forget.len(), classes], targets))
}
