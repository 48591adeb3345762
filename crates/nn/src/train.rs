//! Training: one epoch over some parts, and the plain fit that base model, retraining and finetuning share.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Error, Result, Tensor, bail};
use dcu_artifact::{Array, Dataset, Holdout, Tensor as Stored};

use crate::architecture::Part;
use crate::augment::Augmentation;
use crate::average::{self, Average, Weighting};
use crate::evaluate;
use crate::gradients::Gradients;
use crate::graph::Role;
use crate::network::{self, Mode, Modes, Network, Trainable};
use crate::ops::{self, Statistics};
use crate::optimiser::{Optimiser, Rule};
use crate::recipe::{Decay, Keep, Watch};
pub use crate::recipe::{OptimiserName, Recipe, Schedule};
use crate::rng::Streams;
use crate::samples::Samples;

/// Values that kept outputs of frozen parts may take; beyond it they are computed anew in each epoch, to the same bytes.
const KEPT_VALUES: usize = 1 << 28;

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
        if fixed == 0 || samples.is_empty() || output_size(network, samples, before) > most {
            return Ok(Self::all_parts(samples));
        }
        let values = evaluate::outputs(network, samples, before)?;
        Ok(Self { samples: Cow::Owned(samples.with_values(values)?), parts: parts.to_vec() })
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
    fn loss(&self, network: &mut Network, rows: &[usize], phase: Phase<'_>, place: Place, treatment: Treatment<'_>) -> Result<Tensor> {
        let (input, _) = match treatment.augmentation {
            Some(augmentation) => augmentation.batch(&self.samples, rows, phase.streams, phase.purpose, place.epoch)?,
            None => self.samples.batch(rows)?,
        };
        let mut dropout = phase.streams.indexed(&format!("{} dropout", phase.purpose), place.step);
        if treatment.reconstruction == 0.0 {
            let logits = network.forward(&input, &self.parts, phase.modes, phase.trainable, &mut dropout)?;
            return self.samples.loss(&logits, rows, treatment.smoothing);
        }
        let (logits, decoded) = network.forward_with_reconstruction(&input, phase.modes, phase.trainable, &mut dropout)?;
        let input = input.to_dtype(decoded.dtype())?.to_device(decoded.device())?;
        let reconstruction = ops::squared_error(&decoded, &input)?;
        self.samples.loss(&logits, rows, treatment.smoothing)? + reconstruction * treatment.reconstruction
    }
}

/// Where in a training a batch is.
#[derive(Clone, Copy)]
struct Place {
    epoch: u64,
    /// Steps since the beginning of the training.
    step: u64,
}

/// What becomes of a batch beside what the network does with it.
#[derive(Clone, Copy, Default)]
struct Treatment<'a> {
    augmentation: Option<&'a Augmentation>,
    /// The share of a label that is spread evenly over all classes.
    smoothing: f64,
    /// The weight of the mean squared error between decoded images and the images that entered the network; where it is not 0, all parts are gone through.
    reconstruction: f64,
}

/// The values that some leading parts give for all samples.
fn output_size(network: &Network, samples: &Samples, parts: &[Part]) -> usize {
    let end = parts.last().map_or(0, |&part| network.graph().range(part).end);
    network.graph().shape(end).iter().product::<usize>().saturating_mul(samples.len())
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
    pass(network, prepared, phase, epoch, Treatment::default(), optimiser, |_, _| rate, |_| Ok(()))
}

/// The same with batches that are treated, the rate of each step out of how many, and something to do after each.
#[allow(clippy::too_many_arguments, reason = "those of an epoch and what a recipe adds to it")]
fn pass(
    network: &mut Network,
    prepared: &Prepared<'_>,
    phase: Phase<'_>,
    epoch: u64,
    treatment: Treatment<'_>,
    optimiser: &mut Optimiser,
    rate: impl Fn(usize, usize) -> f64,
    mut after_step: impl FnMut(&Network) -> Result<()>,
) -> Result<f64> {
    let batches = prepared.batches(phase, epoch)?;
    let mut total = 0.0;
    for (step, rows) in batches.iter().enumerate() {
        let (place, rate) = (Place { epoch, step: epoch * batches.len() as u64 + step as u64 }, rate(step, batches.len()));
        let loss = prepared.loss(network, rows, phase, place, treatment)?;
        total += finite(&loss, phase, epoch, step, rate)? * rows.len() as f64;
        optimiser.step(&network.parameters(phase.trainable), &network.backward(&loss, phase.trainable)?, rate)?;
        after_step(network)?;
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
        let place = Place { epoch: pass, step: pass * batches.len() as u64 + step as u64 };
        let loss = prepared.loss(network, rows, phase, place, Treatment::default())?;
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
    for step in network.batch_norms(part) {
        let mut parts = Vec::new();
        evaluate::for_each_batch(network, samples, |input, _| {
            parts.push(network.statistics(&input, step)?);
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
    let (network, optimiser) = (network.with_tensors(&weights)?, Optimiser::from_tensors(rule, &state)?);
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

/// The validation samples of a holdout, which are images of `test`; with `labels`, those alone whose class is among them.
///
/// # Errors
/// When there are none, or `test` does not hold them.
pub fn validation_samples(test: &Dataset, holdout: &Holdout, labels: Option<&[u32]>) -> Result<Samples> {
    let Ok(rows) = test.rows_of(&holdout.validation) else {
        bail!("a validation sample of the holdout is not in the test set; make the holdout from the same test set")
    };
    let known: Option<BTreeSet<u32>> = labels.map(|labels| labels.iter().copied().collect());
    let is_known = |row: &usize| known.as_ref().is_none_or(|known| known.contains(&test.labels[*row]));
    let rows: Vec<usize> = rows.into_iter().filter(is_known).collect();
    if rows.is_empty() {
        bail!("the holdout has no validation samples of these classes; give `data/holdout` a `validation_per_class`");
    }
    Ok(Samples::of_dataset(test, &rows))
}

/// The names of a snapshot's tensors of the best epoch end with this.
const BEST: &str = "@best";
/// How many epochs were done when the best one was, and how good it was.
const BEST_EPOCH: &str = "validation@epoch";
const BEST_SCORE: &str = "validation@score";

/// The best epoch so far on the validation samples.
#[derive(Debug, Clone)]
struct Best {
    /// The epochs done when it was over.
    done: usize,
    /// The larger, the better.
    score: f64,
    /// Its weights, where they are to be kept.
    tensors: BTreeMap<String, Stored>,
}

impl Best {
    fn to_tensors(&self) -> BTreeMap<String, Stored> {
        let named = self.tensors.iter().map(|(name, tensor)| (format!("{name}{BEST}"), tensor.clone()));
        let facts = [
            (BEST_EPOCH.to_owned(), Stored::U64(Array::vector(vec![self.done as u64]))),
            (BEST_SCORE.to_owned(), Stored::F64(Array::vector(vec![self.score]))),
        ];
        named.chain(facts).collect()
    }

    /// Takes the state out of a snapshot.
    fn take_from(snapshot: &mut BTreeMap<String, Stored>) -> Result<Self> {
        match (snapshot.remove(BEST_EPOCH), snapshot.remove(BEST_SCORE)) {
            (Some(Stored::U64(done)), Some(Stored::F64(score))) if done.data.len() == 1 && score.data.len() == 1 => {
                Ok(Self { done: done.data[0] as usize, score: score.data[0], tensors: average::take_ending(snapshot, BEST) })
            }
            _ => bail!("`{BEST_EPOCH}` or `{BEST_SCORE}` is missing, or not one U64 and one F64"),
        }
    }
}

/// A training of the whole network by a recipe, which can be interrupted between epochs.
pub struct Fit {
    network: Network,
    recipe: Recipe,
    optimiser: Optimiser,
    streams: Streams,
    validation: Option<Samples>,
    done: usize,
    average: Option<Average>,
    best: Option<Best>,
}

impl Fit {
    /// A training that starts with the weights of `network`.
    #[must_use]
    pub fn new(network: Network, recipe: Recipe, streams: Streams) -> Self {
        let optimiser = as_in_recipe(Optimiser::new(recipe.rule()), &recipe, &network);
        let average = weighting(&recipe).map(Average::new);
        Self { optimiser, network, recipe, streams, validation: None, done: 0, average, best: None }
    }

    /// The same with the samples by which a recipe with `patience` or `keep: best` stops or chooses; others do not look at them.
    #[must_use]
    pub fn validated_on(self, validation: Option<Samples>) -> Self {
        Self { validation, ..self }
    }

    /// Goes on where a snapshot was taken.
    ///
    /// # Errors
    /// When the snapshot is not of this training.
    pub fn restore(&mut self, done: usize, mut tensors: BTreeMap<String, Stored>) -> Result<()> {
        let best = (self.recipe.needs_validation() && done > 0).then(|| Best::take_from(&mut tensors)).transpose()?;
        let is_over = is_over(&self.recipe, done, best.as_ref());
        let average = match weighting(&self.recipe) {
            Some(weighting) if !is_over => Some(Average::take_from(weighting, &mut tensors)?),
            _ => None,
        };
        let (network, optimiser) = resume(&self.network, self.recipe.rule(), tensors)?;
        for tensors in
            average.iter().map(Average::tensors).chain(best.iter().map(|best| &best.tensors)).filter(|tensors| !tensors.is_empty())
        {
            network.with_tensors(tensors)?;
        }
        if self.recipe.keep == Keep::Best && !is_over && best.as_ref().is_some_and(|best| best.tensors.is_empty()) {
            bail!("the snapshot has no weights of the best epoch");
        }
        self.optimiser = as_in_recipe(optimiser, &self.recipe, &network);
        (self.network, self.average, self.best, self.done) = (network, average, best, done);
        Ok(())
    }

    /// All that [`Self::restore`] needs, beside the number of epochs done.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Stored>> {
        let mut tensors = snapshot(&self.network, &self.optimiser)?;
        tensors.extend(self.average.iter().flat_map(Average::to_tensors));
        tensors.extend(self.best.iter().flat_map(Best::to_tensors));
        Ok(tensors)
    }

    /// The network as it is.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The epochs done.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done
    }

    /// Trains for one more epoch, and returns its mean loss; `None` when all are done, or none was better for as long as the recipe's patience lasts.
    /// After the last one the network has the weights that the recipe keeps.
    ///
    /// # Errors
    /// When the samples do not fit the network or the recipe, the recipe needs validation samples and there are none, or the training diverges.
    pub fn next_epoch(&mut self, samples: &Samples) -> Result<Option<f64>> {
        if self.is_over() {
            return Ok(None);
        }
        if self.recipe.needs_validation() && self.validation.is_none() {
            bail!("the recipe stops or chooses by validation samples (`patience`, `keep: best`), and none were given");
        }
        self.recipe.check_network(self.network.graph()).map_err(Error::Msg)?;
        let trainable = Trainable::all(self.network.graph());
        let phase = Phase {
            trainable: &trainable,
            modes: network::all(Mode::TRAIN),
            batch: self.recipe.batch,
            streams: &self.streams,
            purpose: "fit",
        };
        let augmentation = self.recipe.augmentation();
        let Recipe { smoothing, reconstruction, .. } = self.recipe;
        let treatment = Treatment { augmentation: augmentation.as_ref(), smoothing, reconstruction };
        let (recipe, done, average) = (&self.recipe, self.done, &mut self.average);
        let after_step = |network: &Network| match average {
            Some(average) if recipe.ema > 0.0 => average.add(network),
            _ => Ok(()),
        };
        let (prepared, rate) = (Prepared::all_parts(samples), |step, steps| recipe.rate(done, step, steps));
        let loss = pass(&mut self.network, &prepared, phase, done as u64, treatment, &mut self.optimiser, rate, after_step)?;
        self.done += 1;
        if self.done + self.recipe.average_last > self.recipe.epochs
            && let Some(average) = self.average.as_mut().filter(|_| self.recipe.average_last > 0)
        {
            average.add(&self.network)?;
        }
        if self.recipe.needs_validation() {
            self.validate()?;
        }
        if self.is_over() {
            self.settle(samples)?;
        }
        Ok(Some(loss))
    }

    /// Whether no epoch is left.
    fn is_over(&self) -> bool {
        is_over(&self.recipe, self.done, self.best.as_ref())
    }

    /// Judges what the training would end with now, and remembers it where it is the best.
    fn validate(&mut self) -> Result<()> {
        let Some(validation) = &self.validation else { return Ok(()) };
        let averaged = self.average.as_ref().map(|average| self.network.with_tensors(average.tensors())).transpose()?;
        let network = averaged.as_ref().unwrap_or(&self.network);
        let judgement = evaluate::judge(network, validation)?;
        let score = match self.recipe.watch {
            Watch::Accuracy => judgement.accuracy(validation.labels(), 0..validation.len()).unwrap_or(0.0),
            Watch::Loss => -judgement.losses.iter().sum::<f64>() / validation.len() as f64,
        };
        if self.best.as_ref().is_none_or(|best| score > best.score) {
            let tensors = if self.recipe.keep == Keep::Best { network.to_tensors()? } else { BTreeMap::new() };
            self.best = Some(Best { done: self.done, score, tensors });
        }
        Ok(())
    }

    /// Gives the network the weights that the recipe keeps.
    fn settle(&mut self, samples: &Samples) -> Result<()> {
        let average = self.average.take();
        let kept = self.best.as_mut().map(|best| std::mem::take(&mut best.tensors)).filter(|tensors| !tensors.is_empty());
        if let Some(tensors) = kept.or_else(|| average.map(|average| average.tensors().clone())) {
            self.network = self.network.with_tensors(&tensors)?;
        }
        if self.recipe.average_last > 0 {
            for part in Part::ALL {
                recompute_running_averages(&mut self.network, samples, part)?;
            }
        }
        Ok(())
    }

    /// The trained network.
    #[must_use]
    pub fn finish(self) -> Network {
        self.network
    }
}

fn is_over(recipe: &Recipe, done: usize, best: Option<&Best>) -> bool {
    done >= recipe.epochs || recipe.patience > 0 && best.is_some_and(|best| done - best.done.min(done) >= recipe.patience)
}

/// How a recipe averages weights, where it does.
fn weighting(recipe: &Recipe) -> Option<Weighting> {
    if recipe.average_last > 0 { Some(Weighting::Even) } else { (recipe.ema > 0.0).then_some(Weighting::Decaying(recipe.ema)) }
}

/// An optimiser that clips and spares as a recipe says.
fn as_in_recipe(optimiser: Optimiser, recipe: &Recipe, network: &Network) -> Optimiser {
    let optimiser = if recipe.clip > 0.0 { optimiser.clipped(recipe.clip) } else { optimiser };
    match recipe.decay {
        Decay::All => optimiser,
        Decay::Weights => optimiser.sparing(without_weights(network)),
    }
}

/// The names of all parameters but the weights of convolutions and linear layers.
fn without_weights(network: &Network) -> BTreeSet<String> {
    let spared = Trainable::which(network.graph(), |_, slot| slot.role != Role::Weight);
    spared.iter().map(str::to_owned).collect()
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

    #[test]
    fn a_sample_left_over_that_cannot_be_normalised_is_refused_with_what_to_change() {
        let streams = Streams::new(1, "test");
        let architecture = Architecture { widths: vec![2; 4], ..Architecture::of_family(Family::Resnet18, [3, 8, 8], 3) };
        let images = (0..5 * 192).map(|value| (value as f32).sin()).collect();
        let samples = Samples::of_values(Array::new(vec![5, 3, 8, 8], images), vec![0, 1, 2, 0, 1]).unwrap();
        let fit = |batch: usize| {
            let network = Network::initialised(&architecture, &streams).unwrap();
            Fit::new(network, Recipe { batch, ..Recipe::default() }, streams.clone()).next_epoch(&samples)
        };
        assert!(fit(3).unwrap().is_some());
        let error = fit(4).unwrap_err().to_string();
        assert!(error.contains("`layer4.0.bn1` is to normalise a batch by a single value") && error.contains("another `batch`"), "{error}");
    }
}
