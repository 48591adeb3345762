//! `unlearn/boundary-expand`: the model learns one more class, to which all forget samples go, and loses it again (Chen et al., Boundary Unlearning, CVPR 2023).
//!
//! A trap: published code leaves the additional row in the model; here it is taken out, and what is judged has as many classes as before. Retain samples have no part in it.

use std::collections::BTreeMap;

use dcu_artifact::{Array, Tensor as Stored};
use dcu_nn::optimiser::Rule;
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Network};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Task, Unlearn, Wires};
use crate::targets::one_hot;

pub(crate) struct BoundaryExpand;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Passes over the forget samples.
    epochs: usize,
    /// Samples backward, as a share of retraining's. Where it is given, there are no more `epochs` than it pays for, but one.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The learning rate of SGD.
    lr: f64,
    /// How much of the last step is kept.
    momentum: f64,
    /// Samples in a batch.
    batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { epochs: 10, budget: None, lr: 1e-5, momentum: 0.9, batch: 64 }
    }
}

impl Unlearn for BoundaryExpand {
    const NAME: &'static str = "boundary-expand";
    const SUMMARY: &'static str = "Teaches a class of their own for the forget samples, which is then taken out of the model";
    const WIRES: Wires = Wires::NONE;

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::at_least("epochs", 1, parameters.epochs)?;
        check::budget(parameters.budget)?;
        check::positive("lr", parameters.lr)?;
        check::not_negative("momentum", parameters.momentum)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let original = task.original()?;
        let (forget, classes) = (task.forget.len(), original.architecture().classes);
        let epochs = task.length(parameters.budget, (parameters.epochs, 0.0), [1.0, 0.0], [forget, 0])?.0;
        let targets = (0..forget).flat_map(|_| one_hot(classes as u32, classes + 1)).collect();
        let samples = task.forget.clone().with_targets(Array::new(vec![forget, classes + 1], targets))?;
        let network = expanded(&original, &task.streams)?;
        let rule = Rule::Sgd { momentum: parameters.momentum, weight_decay: 0.0 };
        let course = Course { rule, ..Course::adam(&network, epochs, parameters.lr) };
        let all: Vec<usize> = (0..forget).collect();
        let network = task
            .teach(network, &course, |pupil, _| pupil.pass("expand", &samples, &all, parameters.batch, |_, batch| batch.cross_entropy()))?;
        let rows = |array: Array<f32>| array.select(&(0..classes).collect::<Vec<_>>());
        with_classes(&network, classes, &head(&original), |_, array| rows(array))
    }
}

/// The network with one more class, whose row is a fresh one.
fn expanded(network: &Network, streams: &Streams) -> anyhow::Result<Network> {
    let classes = network.architecture().classes;
    let fresh = Network::initialised(&of_classes(network, classes + 1), streams)?.to_tensors()?;
    with_classes(network, classes + 1, &head(network), |name, mut array| {
        if let Stored::F32(fresh) = &fresh[name] {
            array.data.extend(fresh.row(classes));
            array.shape[0] += 1;
        }
        array
    })
}

/// The network for so many classes, with what `change` makes of the last layer's tensors.
fn with_classes(
    network: &Network,
    classes: usize,
    head: &[String],
    change: impl Fn(&str, Array<f32>) -> Array<f32>,
) -> anyhow::Result<Network> {
    let changed = |(name, stored): (String, Stored)| match stored {
        Stored::F32(array) if head.contains(&name) => (name.clone(), Stored::F32(change(&name, array))),
        other => (name, other),
    };
    let tensors: BTreeMap<String, Stored> = network.to_tensors()?.into_iter().map(changed).collect();
    Ok(Network::from_tensors(&of_classes(network, classes), &tensors)?)
}

fn of_classes(network: &Network, classes: usize) -> Architecture {
    Architecture { classes, ..network.architecture().clone() }
}

fn head(network: &Network) -> Vec<String> {
    network.graph().head().into_iter().flat_map(|step| &step.slots).map(|slot| slot.name.clone()).collect()
}
