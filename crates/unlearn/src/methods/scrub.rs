//! `unlearn/scrub`: the network moves away from its teacher, the original, on the forget samples, and keeps to it on the retain samples (Kurmanji et al., arXiv 2302.09880).
//! SCRUB+R goes back to the epoch whose error on the forget samples is nearest to that on unseen ones.
//!
//! Public code has made one pass away from the teacher too many (`epoch <= M`, counted from 0), or trained the teacher in place of the student.

use std::collections::BTreeMap;

use dcu_artifact::Tensor as Stored;
use dcu_nn::optimiser::Rule;
use dcu_nn::{Network, Samples, Trainable, evaluate, ops};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct Scrub;

/// Published settings, for what is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preset {
    /// Of the paper's small experiments (Adam).
    #[default]
    Small,
    /// Of its large ones (SGD).
    Large,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Published settings, for what is not given below.
    preset: Preset,
    /// Passes over the retain samples.
    epochs: Option<usize>,
    /// In how many of them, from the first on, a pass over the forget samples goes before.
    max_epochs: Option<usize>,
    /// The share of the retain set that each pass takes, drawn anew; by default all.
    share: Option<f64>,
    /// Samples backward, as a share of retraining's. Where it is given, `share` follows from it.
    budget: Option<f64>,
    /// The learning rate.
    lr: Option<f64>,
    /// The temperature of both distributions.
    temperature: Option<f64>,
    /// How much the cross-entropy of the retain samples counts.
    gamma: Option<f64>,
    /// How much their divergence from the teacher counts.
    alpha: Option<f64>,
    /// Retain samples in a batch.
    batch: Option<usize>,
    /// Forget samples in a batch.
    forget_batch: Option<usize>,
    /// Whether it goes back to the epoch whose error on the forget samples is nearest to that of the last one on validation samples of their classes (SCRUB+R).
    rewind: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    rule: Rule,
    epochs: usize,
    max_epochs: usize,
    share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    lr: f64,
    temperature: f64,
    gamma: f64,
    alpha: f64,
    batch: usize,
    forget_batch: usize,
    rewind: bool,
}

impl Parameters {
    fn filled_in(self) -> Checked {
        let (rule, epochs, max_epochs, lr, temperature, gamma, alpha) = match self.preset {
            Preset::Small => (Rule::Adam { weight_decay: 0.1 }, 10, 3, 5e-4, 2.0, 1.0, 0.5),
            Preset::Large => (Rule::Sgd { momentum: 0.9, weight_decay: 5e-4 }, 3, 2, 5e-4, 4.0, 0.99, 1e-3),
        };
        Checked {
            rule,
            epochs: self.epochs.unwrap_or(epochs),
            max_epochs: self.max_epochs.unwrap_or(max_epochs),
            share: self.share.unwrap_or(1.0),
            budget: self.budget,
            lr: self.lr.unwrap_or(lr),
            temperature: self.temperature.unwrap_or(temperature),
            gamma: self.gamma.unwrap_or(gamma),
            alpha: self.alpha.unwrap_or(alpha),
            batch: self.batch.unwrap_or(128),
            forget_batch: self.forget_batch.unwrap_or(32),
            rewind: self.rewind,
        }
    }
}

impl Unlearn for Scrub {
    const NAME: &'static str = "scrub";
    const SUMMARY: &'static str = "Moves away from the original on the forget samples, and keeps to it on the retain samples";
    const WIRES: Wires = Wires { test: Need::May, holdout: Need::May, ..Wires::RETAIN };

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        let checked = parameters.filled_in();
        check::at_least("epochs", 1, checked.epochs)?;
        let fits = checked.max_epochs < checked.epochs;
        Rejected::unless(fits, "max_epochs", "`max_epochs` must be below `epochs`: the last pass is over the retain samples alone")?;
        check::share("share", checked.share)?;
        check::budget(checked.budget)?;
        for (name, value) in [("lr", checked.lr), ("temperature", checked.temperature)] {
            check::positive(name, value)?;
        }
        for (name, value) in [("gamma", checked.gamma), ("alpha", checked.alpha)] {
            check::not_negative(name, value)?;
        }
        check::at_least("batch", 2, checked.batch)?;
        check::at_least("forget_batch", 2, checked.forget_batch)?;
        Ok(checked)
    }

    fn unlearn(parameters: &Checked, task: &mut Task) -> anyhow::Result<Network> {
        let (forget, retain, teacher, none) = (task.forget.clone(), task.retain.clone(), task.original()?, Trainable::none());
        let (temperature, gamma, alpha) = (parameters.temperature, parameters.gamma, parameters.alpha);
        let forget_passes = parameters.max_epochs as f64 / parameters.epochs as f64;
        let length = (parameters.epochs, parameters.share);
        let (epochs, share) = task.length(parameters.budget, length, [forget_passes, 1.0], [forget.len(), retain.len()])?;
        // They must not be the forget samples' own: the model never saw them.
        let unseen = if parameters.rewind { Some(task.unseen("`rewind` compares with unseen samples")?) } else { None };
        if unseen.is_some() {
            // An epoch that may be gone back to must not be lost with a process.
            task.checkpoints = None;
        }
        let mut epochs_seen: Vec<(f64, BTreeMap<String, Stored>)> = Vec::new();
        let network = task.original()?;
        let course = Course { rule: parameters.rule, ..Course::adam(&network, epochs, parameters.lr) };
        let all: Vec<usize> = (0..forget.len()).collect();
        let network = task.teach(network, &course, |pupil, epoch| {
            if epoch < parameters.max_epochs {
                pupil.pass("max", &forget, &all, parameters.forget_batch, |_, batch| {
                    Ok(ops::kl_divergence(batch.logits, &teacher.judge(batch.images, &none)?, temperature)?.neg()?)
                })?;
            }
            let drawn = pupil.drawn("draw", retain.len(), share);
            pupil.pass("min", &retain, &drawn, parameters.batch, |_, batch| {
                let divergence = ops::kl_divergence(batch.logits, &teacher.judge(batch.images, &none)?, temperature)?;
                Ok(((batch.cross_entropy()? * gamma)? + (divergence * alpha)?)?)
            })?;
            if unseen.is_some() {
                epochs_seen.push((accuracy(&pupil.network, &forget)?, pupil.network.to_tensors()?));
            }
            Ok(())
        })?;
        let Some(unseen) = unseen else { return Ok(network) };
        let wanted = accuracy(&network, &unseen)?;
        let nearest = epochs_seen.iter().min_by(|left, right| (left.0 - wanted).abs().total_cmp(&(right.0 - wanted).abs()));
        Ok(Network::from_tensors(network.architecture(), &nearest.expect("one epoch at least").1)?)
    }
}

fn accuracy(network: &Network, samples: &Samples) -> anyhow::Result<f64> {
    let judged = evaluate::judge(network, samples)?;
    judged.accuracy(samples.labels(), 0..samples.len()).ok_or_else(|| anyhow::anyhow!("there are no samples to judge by"))
}
