//! Training: one epoch over some parts, and the plain fit that base model, retraining and finetuning share.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, bail};
use dcu_artifact::Tensor as Stored;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::architecture::Part;
use crate::evaluate;
use crate::gradients::Gradients;
use crate::network::{self, Mode, Modes, Network, Trainable};
use crate::ops::{self, Statistics};
use crate::optimiser::{Optimiser, Rule};
use crate::rng::Streams;
use crate::samples::Samples;

/// Values that kept outputs of frozen parts may take; beyond it they are computed anew in each epoch, to the same bytes.
const KEPT_VALUES: usize = 1 << 28;

/// An update rule by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OptimiserName {
    /// Adam with betas 0.9 and 0.999.
    Adam,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// How the learning rate changes over the epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// It does not.
    Constant,
    /// From the given rate to 0 along half a cosine.
    Cosine,
}

/// How a network is trained from scratch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Passes over the training set.
    pub epochs: usize,
    /// Samples in a batch; the last, smaller batch counts too.
    pub batch: usize,
    /// The learning rate of the first epoch.
    pub lr: f64,
    /// The update rule.
    pub optimiser: OptimiserName,
    /// How much of the last step SGD keeps.
    pub momentum: f64,
    /// Weight decay, added to the gradient.
    pub weight_decay: f64,
    /// How the learning rate changes over the epochs.
    pub schedule: Schedule,
}

impl Recipe {
    /// The update rule with its numbers.
    #[must_use]
    pub fn rule(&self) -> Rule {
        match self.optimiser {
            OptimiserName::Adam => Rule::Adam { weight_decay: self.weight_decay },
            OptimiserName::Sgd => Rule::Sgd { momentum: self.momentum, weight_decay: self.weight_decay },
        }
    }

    /// The learning rate of an epoch.
    #[must_use]
    pub fn rate(&self, epoch: usize) -> f64 {
        match self.schedule {
            Schedule::Constant => self.lr,
            Schedule::Cosine => self.lr * 0.5 * (1.0 + (std::f64::consts::PI * epoch as f64 / self.epochs as f64).cos()),
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The name of the field to blame, and what would be right.
    pub fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let rules = [
            (self.epochs > 0, "epochs", "at least 1"),
            (self.batch > 1, "batch", "at least 2"),
            (self.lr > 0.0 && self.lr.is_finite(), "lr", "a positive number"),
            ((0.0..1.0).contains(&self.momentum), "momentum", "at least 0 and below 1"),
            (self.weight_decay >= 0.0 && self.weight_decay.is_finite(), "weight_decay", "0 or more"),
        ];
        rules.into_iter().find(|(fits, ..)| !fits).map_or(Ok(()), |(_, name, rule)| Err((name, format!("`{name}` must be {rule}"))))
    }
}

/// What one epoch does.
#[derive(Clone, Copy)]
pub struct Phase<'a> {
    /// The parameters that move.
    pub trainable: &'a Trainable,
    /// The mode of each part.
    pub modes: Modes,
    /// Samples in a batch.
    pub batch: usize,
    /// The random numbers of this phase.
    pub streams: &'a Streams,
    /// What the streams are for, such as `intermediate`.
    pub purpose: &'a str,
}

/// Samples as they enter the first part that is not fixed: the outputs of the frozen parts before it, computed once.
pub struct Prepared<'a> {
    samples: Cow<'a, Samples>,
    parts: Vec<Part>,
}

impl<'a> Prepared<'a> {
    /// Runs the leading parts that are frozen and fixed in this phase, where their outputs fit into memory.
    ///
    /// # Errors
    /// When the samples do not fit the network.
    pub fn new(network: &Network, samples: &'a Samples, phase: Phase<'_>) -> Result<Self> {
        Self::within(KEPT_VALUES, network, samples, phase)
    }

    /// The same, where the outputs are `most` values at most.
    fn within(most: usize, network: &Network, samples: &'a Samples, phase: Phase<'_>) -> Result<Self> {
        let is_trained = |part: &Part| Trainable::parts(network.graph(), &[*part]).iter().any(|name| phase.trainable.contains(name));
        let is_fixed = |part: &Part| !is_trained(part) && network.is_fixed(*part, phase.modes[*part as usize]);
        let fixed = Part::ALL.iter().take_while(|part| is_fixed(part)).count();
        let (before, parts) = Part::ALL.split_at(fixed);
        if fixed == 0 || samples.is_empty() || output_size(network, samples, before)? > most {
            return Ok(Self::all_parts(samples));
        }
        let values = evaluate::outputs(network, samples, before)?;
        let samples = Samples::of_values(values, samples.labels().to_vec())?;
        Ok(Self { samples: Cow::Owned(samples), parts: parts.to_vec() })
    }

    fn all_parts(samples: &'a Samples) -> Self {
        Self { samples: Cow::Borrowed(samples), parts: Part::ALL.to_vec() }
    }

    /// The batches of one pass, in random order.
    fn batches(&self, phase: Phase<'_>, epoch: u64) -> Result<Vec<Vec<usize>>> {
        if self.samples.is_empty() || phase.batch == 0 {
            bail!("there is nothing to train on ({}): {} samples in batches of {}", phase.purpose, self.samples.len(), phase.batch);
        }
        let order = phase.streams.indexed(&format!("{} shuffle", phase.purpose), epoch).permutation(self.samples.len());
        Ok(order.chunks(phase.batch).map(<[usize]>::to_vec).collect())
    }

    /// The mean loss of a batch of these samples.
    fn loss(&self, network: &mut Network, rows: &[usize], phase: Phase<'_>, step: u64) -> Result<Tensor> {
        let (input, labels) = self.samples.batch(rows)?;
        let mut dropout = phase.streams.indexed(&format!("{} dropout", phase.purpose), step);
        let logits = network.forward(&input, &self.parts, phase.modes, phase.trainable, &mut dropout)?;
        ops::cross_entropy(&logits, &labels)
    }
}

fn output_size(network: &Network, samples: &Samples, parts: &[Part]) -> Result<usize> {
    let (input, _) = samples.batch(&[0])?;
    Ok(network.evaluate(&input, parts)?.elem_count().saturating_mul(samples.len()))
}

/// One pass over the samples in random order, one step of the optimiser a batch. Returns the mean loss over the samples.
///
/// # Errors
/// When there are no samples, these do not fit the network, or the loss is no longer finite.
pub fn epoch(
    network: &mut Network,
    prepared: &Prepared<'_>,
    phase: Phase<'_>,
    epoch: u64,
    optimiser: &mut Optimiser,
    rate: f64,
) -> Result<f64> {
    let batches = prepared.batches(phase, epoch)?;
    let mut total = 0.0;
    for (step, rows) in batches.iter().enumerate() {
        let loss = prepared.loss(network, rows, phase, epoch * batches.len() as u64 + step as u64)?;
        total += finite(&loss, phase, epoch, step, rate)? * rows.len() as f64;
        optimiser.step(&network.parameters(phase.trainable), &network.backward(&loss, phase.trainable)?, rate)?;
    }
    Ok(total / prepared.samples.len() as f64)
}

/// One pass that makes a single step, on the mean of the batches' losses; the last, smaller batch counts as much as the others
/// (arXiv 2402.00195, the online phase). Returns that mean.
///
/// # Errors
/// As [`epoch`].
pub fn accumulated_step(
    network: &mut Network,
    prepared: &Prepared<'_>,
    phase: Phase<'_>,
    pass: u64,
    optimiser: &mut Optimiser,
    rate: f64,
) -> Result<f64> {
    let batches = prepared.batches(phase, pass)?;
    let (mut total, mut sum) = (0.0, None::<Gradients>);
    for (step, rows) in batches.iter().enumerate() {
        let loss = prepared.loss(network, rows, phase, pass * batches.len() as u64 + step as u64)?;
        total += finite(&loss, phase, pass, step, rate)?;
        // A batch at a time: its graph holds all that the layers gave.
        let gradients = network.backward(&(loss / batches.len() as f64)?, phase.trainable)?;
        sum = Some(match sum {
            Some(sum) => sum.plus(1.0, &gradients)?,
            None => gradients,
        });
    }
    optimiser.step(&network.parameters(phase.trainable), &sum.unwrap_or_default(), rate)?;
    Ok(total / batches.len() as f64)
}

fn finite(loss: &Tensor, phase: Phase<'_>, epoch: u64, step: usize, rate: f64) -> Result<f64> {
    let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    if !value.is_finite() {
        bail!(
            "the training diverged (`{}`): in epoch {}, step {} the loss is {value}, at the learning rate {rate:?}; give a lower `lr`",
            phase.purpose,
            epoch + 1,
            step + 1
        );
    }
    Ok(value)
}

/// Sets the running averages of a part to mean and variance over all samples, those of one normalisation after the other, with all that lies
/// before it in eval mode: as one batch of all samples has them.
///
/// # Errors
/// When there are no samples, or these do not fit the network.
pub fn recompute_running_averages(network: &mut Network, samples: &Samples, part: Part) -> Result<()> {
    let before: Vec<Part> = Part::ALL.into_iter().filter(|other| *other < part).collect();
    for step in network.batch_norms(part) {
        let mut parts = Vec::new();
        evaluate::for_each_batch(network, samples, |input, _| {
            parts.push(network.statistics(&network.evaluate(&input, &before)?, step)?);
            Ok(())
        })?;
        network.set_averages(step, &Statistics::joined(&parts));
    }
    Ok(())
}

/// A network and its optimiser as tensors, to go on with later.
///
/// # Errors
/// When a tensor cannot be read.
pub fn snapshot(network: &Network, optimiser: &Optimiser) -> Result<BTreeMap<String, Stored>> {
    let mut tensors = network.to_tensors()?;
    tensors.extend(optimiser.to_tensors());
    Ok(tensors)
}

/// The network and optimiser of a [`snapshot`] of a network like `network`.
///
/// # Errors
/// When the snapshot is of another network.
pub fn resume(network: &Network, rule: Rule, tensors: BTreeMap<String, Stored>) -> Result<(Network, Optimiser)> {
    let (state, weights): (BTreeMap<_, _>, BTreeMap<_, _>) = tensors.into_iter().partition(|(name, _)| name.contains('@'));
    let (network, optimiser) = (Network::from_tensors(network.architecture(), &weights)?, Optimiser::from_tensors(rule, &state)?);
    let parameters = network.parameters(&Trainable::all(network.graph()));
    for (name, length) in optimiser.lengths() {
        match parameters.get(name) {
            Some(parameter) if parameter.elem_count() == length => {}
            Some(parameter) => bail!("the snapshot has {length} moments of `{name}`, which has {} values", parameter.elem_count()),
            None => bail!("the snapshot has moments of `{name}`, which is no parameter of the network"),
        }
    }
    Ok((network, optimiser))
}

/// A training of the whole network that can be interrupted between epochs.
pub struct Fit {
    network: Network,
    recipe: Recipe,
    optimiser: Optimiser,
    streams: Streams,
    done: usize,
}

impl Fit {
    /// A training that starts with the weights of `network`.
    #[must_use]
    pub fn new(network: Network, recipe: Recipe, streams: Streams) -> Self {
        Self { optimiser: Optimiser::new(recipe.rule()), network, recipe, streams, done: 0 }
    }

    /// Goes on where a snapshot was taken.
    ///
    /// # Errors
    /// When the snapshot is not of this training.
    pub fn restore(&mut self, done: usize, tensors: BTreeMap<String, Stored>) -> Result<()> {
        (self.network, self.optimiser) = resume(&self.network, self.recipe.rule(), tensors)?;
        self.done = done;
        Ok(())
    }

    /// All that [`Self::restore`] needs, beside the number of epochs done.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Stored>> {
        snapshot(&self.network, &self.optimiser)
    }

    /// The epochs done.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done
    }

    /// Trains for one more epoch, and returns its mean loss; `None` when all are done.
    ///
    /// # Errors
    /// When the samples do not fit the network, or the training diverges.
    pub fn next_epoch(&mut self, samples: &Samples) -> Result<Option<f64>> {
        if self.done == self.recipe.epochs {
            return Ok(None);
        }
        let trainable = Trainable::all(self.network.graph());
        let phase = Phase {
            trainable: &trainable,
            modes: network::all(Mode::TRAIN),
            batch: self.recipe.batch,
            streams: &self.streams,
            purpose: "fit",
        };
        let prepared = Prepared::all_parts(samples);
        let rate = self.recipe.rate(self.done);
        let loss = epoch(&mut self.network, &prepared, phase, self.done as u64, &mut self.optimiser, rate)?;
        self.done += 1;
        Ok(Some(loss))
    }

    /// The trained network.
    #[must_use]
    pub fn finish(self) -> Network {
        self.network
    }
}

#[cfg(test)]
mod tests {
    use dcu_artifact::Array;

    use super::*;
    use crate::architecture::{Architecture, Family};

    /// What is kept of frozen parts does not depend on memory, nor does a result on whether it is kept.
    #[test]
    fn outputs_that_are_kept_and_computed_anew_train_to_the_same_bytes() {
        let streams = Streams::new(1, "test");
        let architecture = Architecture { widths: vec![8, 9], hidden: 10, ..Architecture::of_family(Family::Cnn, [3, 8, 8], 3) };
        let mut stream = streams.stream("images");
        let images = (0..20 * 192).map(|_| stream.normal()).collect();
        let samples = Samples::of_values(Array::new(vec![20, 3, 8, 8], images), (0..20).map(|row| row % 3).collect()).unwrap();
        let train = |part: Part, most: usize| {
            let mut network = Network::initialised(&architecture, &streams).unwrap();
            let trainable = Trainable::parts(network.graph(), &[part]);
            let phase =
                Phase { trainable: &trainable, modes: network::only(part, Mode::TRAIN), batch: 8, streams: &streams, purpose: "test" };
            let prepared = Prepared::within(most, &network, &samples, phase).unwrap();
            let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
            epoch(&mut network, &prepared, phase, 0, &mut optimiser, 1e-3).unwrap();
            (prepared.parts.len(), network.to_tensors().unwrap())
        };
        for (part, kept) in [(Part::Intermediate, 2), (Part::Final, 1)] {
            let ((parts, found), (all_parts, expected)) = (train(part, KEPT_VALUES), train(part, 0));
            assert_eq!((parts, all_parts), (kept, 3));
            assert_eq!(found, expected);
        }
    }
}
