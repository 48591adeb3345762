//! `unlearn/distillation`: a student learns from the retain samples and from what the original, its teacher, says of them; of the forget samples it never hears (the
//! baseline of arXiv 2402.00195 with a fresh student, of arXiv 2507.09786 with the original as the student).
//!
//! The published teacher was left in train mode, with dropout and statistics of the batch; here it is in eval mode. What it says of retain samples comes from the
//! forget samples too.

use dcu_nn::{Network, Trainable, model, ops};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Task, Unlearn};

pub(crate) struct Distillation;

/// What the student is before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Student {
    /// A network with fresh weights.
    Fresh,
    /// The original.
    Original,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// What the student is before.
    student: Student,
    /// Passes over the retain samples; by default as many as the base model was trained for.
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<usize>,
    /// The share of the retain set that each pass takes, drawn anew.
    share: f64,
    /// Samples backward, as a share of retraining's. Where it is given, `share` follows from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// How much the divergence from the teacher counts beside the cross-entropy.
    weight: f64,
    /// The temperature of both distributions.
    temperature: f64,
    /// The learning rate of Adam.
    lr: f64,
    /// Samples in a batch.
    batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { student: Student::Fresh, epochs: None, share: 1.0, budget: None, weight: 0.1, temperature: 4.0, lr: 1e-3, batch: 256 }
    }
}

impl Unlearn for Distillation {
    const NAME: &'static str = "distillation";
    const SUMMARY: &'static str = "Trains a student on the retain samples, with the original as its teacher";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.epochs.map_or(Ok(()), |epochs| check::at_least("epochs", 1, epochs))?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::not_negative("weight", parameters.weight)?;
        check::positive("temperature", parameters.temperature)?;
        check::positive("lr", parameters.lr)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let (retain, teacher, none) = (task.retain.clone(), task.original()?, Trainable::none());
        let epochs = match parameters.epochs {
            Some(epochs) => epochs,
            None => model::recipe(&task.model)?.epochs,
        };
        let (epochs, share) = task.length(parameters.budget, (epochs, parameters.share), [0.0, 1.0], [0, retain.len()])?;
        let network = match parameters.student {
            Student::Fresh => task.fresh()?,
            Student::Original => task.original()?,
        };
        let course = Course::adam(&network, epochs, parameters.lr);
        task.teach(network, &course, |pupil, _| {
            let drawn = pupil.drawn("draw", retain.len(), share);
            pupil.pass("distillation", &retain, &drawn, parameters.batch, |_, batch| {
                let divergence = ops::kl_divergence(batch.logits, &teacher.judge(batch.images, &none)?, parameters.temperature)?;
                Ok((batch.cross_entropy()? + (divergence * parameters.weight)?)?)
            })
        })
    }
}
