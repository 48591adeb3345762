//! `unlearn/prune`: most weights are set to 0 for good, and the others are trained on without the forget samples, as arXiv 2402.00195 compares with it.
//!
//! Weights of convolutions and linear layers are pruned all together, in rounds that each leave the same share of what the round before left. By SynFlow (Tanaka et al., arXiv
//! 2006.05467) a weight's score is `|∂ Σ logits / ∂w · w|` for an image of ones, in the network with the absolute values of all that it holds.
//!
//! A trap: the published code meant SynFlow and pruned by magnitude; it also trains in eval mode.

use std::collections::BTreeMap;

use dcu_artifact::{Array, Tensor as Stored};
use dcu_nn::graph::Role;
use dcu_nn::network::{self, ModeRule};
use dcu_nn::{DType, Gradients, Mode, Network, Place, Tensor, Trainable};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algebra;
use crate::course::{Course, check};
use crate::frame::{Task, Unlearn};

pub(crate) struct Prune;

/// By what weights are pruned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Score {
    /// The size of a weight, as in the published code.
    Magnitude,
    /// SynFlow, as the paper means.
    Synflow,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// By what weights are pruned.
    score: Score,
    /// The share of the weights of convolutions and linear layers that is left.
    density: f64,
    /// Rounds of pruning.
    rounds: usize,
    /// Passes over the retain samples.
    epochs: usize,
    /// The share of the retain set that each of them takes, drawn anew.
    share: f64,
    /// Samples backward, as a share of retraining's. Where it is given, `share` follows from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The learning rate of Adam.
    lr: f64,
    /// Samples in a batch.
    batch: usize,
    /// In which mode it is trained: `corrected` in train mode, `published` in eval mode.
    modes: ModeRule,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            score: Score::Synflow,
            density: 0.05,
            rounds: 100,
            epochs: 30,
            share: 1.0,
            budget: None,
            lr: 1e-3,
            batch: 256,
            modes: ModeRule::Corrected,
        }
    }
}

impl Unlearn for Prune {
    const NAME: &'static str = "prune";
    const SUMMARY: &'static str = "Sets most weights to 0 for good, and trains the others on the retain samples";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::share("density", parameters.density)?;
        Rejected::unless(parameters.density > 0.0, "density", "`density` must be above 0: a network without weights learns nothing")?;
        check::at_least("rounds", 1, parameters.rounds)?;
        check::at_least("epochs", 1, parameters.epochs)?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::positive("lr", parameters.lr)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let mut network = task.original()?;
        let mask = pruned(&mut network, parameters)?;
        let retain = task.retain.clone();
        let (epochs, share) = task.length(parameters.budget, (parameters.epochs, parameters.share), [0.0, 1.0], [0, retain.len()])?;
        let modes = network::all(if parameters.modes == ModeRule::Published { Mode::EVAL } else { Mode::TRAIN });
        // What is not pruned at all may move.
        let may_move = algebra::values(&network, &Trainable::all(network.graph()))?
            .map(|name, value| mask.get(name).map_or_else(|| value.ones_like(), |mask| Ok(mask.clone())))?;
        let course = Course { modes, mask: Some(may_move), ..Course::adam(&network, epochs, parameters.lr) };
        task.teach(network, &course, |pupil, _| {
            let drawn = pupil.drawn("draw", retain.len(), share);
            pupil.pass("retrain", &retain, &drawn, parameters.batch, |_, batch| batch.cross_entropy())
        })
    }
}

/// Prunes a network and gives 1 for the weights of convolutions and linear layers that are left, 0 for the others.
fn pruned(network: &mut Network, parameters: &Parameters) -> anyhow::Result<Gradients> {
    let weights = Trainable::which(network.graph(), |_, slot| slot.role == Role::Weight);
    let original = algebra::values(network, &weights)?;
    let mut mask = original.map(|_, value| value.ones_like())?;
    // A magnitude does not depend on what is pruned already.
    let rounds = if parameters.score == Score::Magnitude { 1 } else { parameters.rounds };
    for round in 1..=rounds {
        let scores = match parameters.score {
            Score::Magnitude => original.map(|_, value| value.abs())?,
            Score::Synflow => synflow(network, &weights)?,
        };
        // What is gone stays behind all that is left, were its score 0.
        let scores = scores.map(|name, score| {
            let is_left = mask.get(name).expect("of this network").ne(0.0)?;
            is_left.where_cond(score, &(score.ones_like()? * -1.0)?)
        })?;
        let left = parameters.density.powf(round as f64 / rounds as f64);
        mask = algebra::first(&scores, left)?.map(|_, mask| mask.to_dtype(DType::F32))?;
        network.set(&original.masked(&mask)?)?;
    }
    Ok(mask)
}

/// SynFlow's score of each weight, in f64: products over all layers are soon large.
fn synflow(network: &Network, weights: &Trainable) -> anyhow::Result<Gradients> {
    let absolute = |stored: Stored| match stored {
        Stored::F32(array) => Stored::F32(Array::new(array.shape, array.data.into_iter().map(f32::abs).collect())),
        other => other,
    };
    let tensors: BTreeMap<String, Stored> = network.to_tensors()?.into_iter().map(|(name, stored)| (name, absolute(stored))).collect();
    let place = Place { dtype: DType::F64, ..network.place().clone() };
    let linear = Network::at(place.clone(), network.architecture(), &tensors)?;
    let [channels, height, width] = network.graph().input();
    let ones = Tensor::ones((1, channels, height, width), DType::F64, &place.device)?;
    let gradient = linear.backward(&linear.judge(&ones, weights)?.sum_all()?, weights)?;
    Ok(gradient.masked(&algebra::values(&linear, weights)?)?.map(|_, score| score.abs())?)
}
