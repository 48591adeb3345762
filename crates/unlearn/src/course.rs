//! Passes over samples, a step of an optimiser a batch: what nearly all methods that train are made of.

use dcu_nn::network::{self, Mode, Modes};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::{Gradients, Network, Samples, Tensor, Trainable, train};
use dcu_stage::{Failure, Rejected, Snapshot};
use serde_json::json;

use crate::frame::Task;

/// How a network is taught.
#[derive(Debug, Clone)]
pub(crate) struct Course {
    pub(crate) rule: Rule,
    pub(crate) epochs: usize,
    pub(crate) lr: f64,
    pub(crate) fall: Fall,
    pub(crate) modes: Modes,
    pub(crate) trainable: Trainable,
    /// 1 for the values that may move, 0 for those that stay.
    pub(crate) mask: Option<Gradients>,
}

/// The share of a course over which the rate of [`Fall::Cycle`] rises.
const RISE: f64 = 0.15;

/// How the learning rate goes over a course.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fall {
    /// It stays.
    Constant,
    /// It falls evenly, to 0 behind the last step.
    Linear,
    /// It falls along half a cosine, to 0 behind the last step.
    Cosine,
    /// It rises evenly from 0 over the first 15 % of the course, and falls evenly to 0 behind the last step. A single step has all of it.
    Cycle,
}

impl Fall {
    /// The share of the rate that is left for a step, counted from 0, of so many.
    fn left(self, step: u64, steps: usize) -> f64 {
        let gone = step as f64 / steps as f64;
        match self {
            Self::Constant => 1.0,
            Self::Cycle if steps == 1 => 1.0,
            Self::Linear => 1.0 - gone,
            Self::Cosine => f64::midpoint(1.0, (std::f64::consts::PI * gone).cos()),
            Self::Cycle if gone < RISE => gone / RISE,
            Self::Cycle => (1.0 - gone) / (1.0 - RISE),
        }
    }
}

impl Course {
    /// All of the network by Adam in train mode, at a constant rate.
    pub(crate) fn adam(network: &Network, epochs: usize, lr: f64) -> Self {
        Self {
            rule: Rule::Adam { weight_decay: 0.0 },
            epochs,
            lr,
            fall: Fall::Constant,
            modes: network::all(Mode::TRAIN),
            trainable: Trainable::all(network.graph()),
            mask: None,
        }
    }
}

/// A network in the middle of a course.
pub(crate) struct Pupil<'a> {
    pub(crate) network: Network,
    optimiser: Optimiser,
    course: &'a Course,
    streams: &'a Streams,
    epoch: usize,
}

/// What a loss is made of.
pub(crate) struct Batch<'a> {
    pub(crate) samples: &'a Samples,
    /// Which of the samples these are.
    pub(crate) rows: &'a [usize],
    /// [n, C, H, W].
    pub(crate) images: &'a Tensor,
    /// What the network says of them, [n, K].
    pub(crate) logits: &'a Tensor,
}

impl Batch<'_> {
    /// The mean cross-entropy with what there is to learn of each sample.
    pub(crate) fn cross_entropy(&self) -> anyhow::Result<Tensor> {
        Ok(self.samples.loss(self.logits, self.rows, 0.0)?)
    }
}

impl Task {
    /// The epochs of a course and the share of the retain rows in each: as given, or as [`within_budget`] where there is a budget, as a share of retraining's samples backward.
    ///
    /// # Errors
    /// When there is a budget, but no recipe of a retraining.
    pub(crate) fn length(
        &self,
        budget: Option<f64>,
        (epochs, share): (usize, f64),
        passes: [f64; 2],
        samples: [usize; 2],
    ) -> anyhow::Result<(usize, f64)> {
        let Some(budget) = budget else { return Ok((epochs, share)) };
        Ok(within_budget(budget * self.retraining()? as f64, epochs, passes, samples))
    }

    /// The share of the retain rows in each of so many epochs, as [`Self::length`] has it, where each batch of them has so many other rows beside it, whatever these are.
    ///
    /// # Errors
    /// As [`Self::length`].
    pub(crate) fn share_beside(&self, budget: Option<f64>, given: (usize, f64), [batch, beside]: [usize; 2]) -> anyhow::Result<f64> {
        let passes = 1.0 + beside as f64 / batch as f64;
        Ok(self.length(budget, given, [0.0, passes], [0, self.retain.len()])?.1)
    }

    /// Takes `network` through a course: `epoch` is called for each epoch, makes passes and is told its number. Between epochs are safe points.
    ///
    /// # Errors
    /// The first of `epoch`, or when a checkpoint is not of this course.
    pub(crate) fn teach(
        &mut self,
        network: Network,
        course: &Course,
        mut epoch: impl FnMut(&mut Pupil<'_>, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Network> {
        let streams = self.streams.clone();
        let mut pupil = Pupil { network, optimiser: Optimiser::new(course.rule), course, streams: &streams, epoch: 0 };
        let mut first = 0;
        if let Some(snapshot) = self.checkpoints.as_ref().and_then(dcu_stage::Checkpoints::resume) {
            first = serde_json::from_value(snapshot.position)?;
            (pupil.network, pupil.optimiser) = train::resume(&pupil.network, course.rule, snapshot.tensors)?;
        }
        self.progress.phase("passes");
        for done in first..course.epochs {
            pupil.epoch = done;
            epoch(&mut pupil, done)?;
            self.progress.step("epochs", done + 1, course.epochs);
            if let Some(checkpoints) = &mut self.checkpoints {
                checkpoints
                    .offer(|| Ok(Snapshot { position: json!(done + 1), tensors: train::snapshot(&pupil.network, &pupil.optimiser)? }))?;
            }
        }
        Ok(pupil.network)
    }
}

impl Pupil<'_> {
    /// One pass over the samples at `rows` in random order, a step a batch, down the slope of `loss`.
    ///
    /// # Errors
    /// The first of `loss`, or when it is no longer finite.
    pub(crate) fn pass(
        &mut self,
        purpose: &str,
        samples: &Samples,
        rows: &[usize],
        batch: usize,
        mut loss: impl FnMut(&Network, &Batch<'_>) -> anyhow::Result<Tensor>,
    ) -> anyhow::Result<()> {
        let rows = shuffled(self.streams, purpose, self.epoch, rows);
        self.steps(purpose, samples, &batches(&rows, batch), &mut loss)
    }

    /// A step for each of these batches, which are rows of the samples; as many in each epoch.
    ///
    /// # Errors
    /// As [`Self::pass`].
    pub(crate) fn steps<B: AsRef<[usize]>>(
        &mut self,
        purpose: &str,
        samples: &Samples,
        batches: &[B],
        mut loss: impl FnMut(&Network, &Batch<'_>) -> anyhow::Result<Tensor>,
    ) -> anyhow::Result<()> {
        for (step, rows) in batches.iter().enumerate() {
            let (rows, index) = (rows.as_ref(), (self.epoch * batches.len() + step) as u64);
            let (images, _) = samples.batch(rows)?;
            let mut dropout = self.streams.indexed(&format!("{purpose} dropout"), index);
            let (modes, trainable) = (self.course.modes, &self.course.trainable);
            let logits = self.network.forward(&images, &dcu_nn::Part::ALL, modes, trainable, &mut dropout)?;
            let value = loss(&self.network, &Batch { samples, rows, images: &images, logits: &logits })?;
            let left = self.course.fall.left(index, self.course.epochs * batches.len());
            self.step(&value, self.course.lr * left, purpose)?;
        }
        Ok(())
    }

    /// One step down the slope of a loss.
    ///
    /// # Errors
    /// When the loss is not finite, or does not depend on what is trained.
    pub(crate) fn step(&mut self, loss: &Tensor, rate: f64, purpose: &str) -> anyhow::Result<()> {
        let value = loss.to_dtype(dcu_nn::DType::F64)?.to_scalar::<f64>()?;
        if !value.is_finite() {
            let message = format!("the training diverged (`{purpose}`): in epoch {} the loss is {value}", self.epoch + 1);
            return Err(Failure::new(message, "give a lower `lr`").into());
        }
        let gradients = self.network.backward(loss, &self.course.trainable)?;
        let parameters = self.network.parameters(&self.course.trainable);
        let Some(mask) = &self.course.mask else { return Ok(self.optimiser.step(&parameters, &gradients, rate)?) };
        let before: Gradients = parameters
            .iter()
            .map(|(name, value)| Ok(((*name).to_owned(), value.as_detached_tensor().copy()?)))
            .collect::<dcu_nn::Result<_>>()?;
        self.optimiser.step(&parameters, &gradients.masked(mask)?, rate)?;
        // Decay and momentum move what has no gradient as well.
        let after: Gradients = parameters.iter().map(|(name, value)| ((*name).to_owned(), value.as_detached_tensor())).collect();
        let kept = after.chosen(mask, &before)?;
        Ok(self.network.set(&kept)?)
    }

    /// Of forget samples that retain samples follow: all of the former and a share of the latter, drawn anew in each epoch.
    pub(crate) fn all_and_drawn(&self, forget: usize, retain: usize, share: f64) -> Vec<usize> {
        let drawn = self.drawn("draw", retain, share);
        (0..forget).chain(drawn.into_iter().map(|row| forget + row)).collect()
    }

    /// Random rows, a share of so many, drawn anew in each epoch.
    pub(crate) fn drawn(&self, purpose: &str, of: usize, share: f64) -> Vec<usize> {
        drawn(self.streams, purpose, self.epoch, of, share)
    }
}

/// The rows in the random order of a pass.
pub(crate) fn shuffled(streams: &Streams, purpose: &str, epoch: usize, rows: &[usize]) -> Vec<usize> {
    let order = streams.indexed(&format!("{purpose} shuffle"), epoch as u64).permutation(rows.len());
    order.into_iter().map(|place| rows[place]).collect()
}

/// As [`Pupil::drawn`].
pub(crate) fn drawn(streams: &Streams, purpose: &str, epoch: usize, of: usize, share: f64) -> Vec<usize> {
    let mut rows = streams.indexed(purpose, epoch as u64).permutation(of);
    rows.truncate((share * of as f64).round() as usize);
    rows
}

/// Batches of so many rows. A single row that would be left, of which batch normalisation has no statistics, goes with those before it.
pub(crate) fn batches(rows: &[usize], size: usize) -> Vec<&[usize]> {
    let mut batches: Vec<&[usize]> = rows.chunks(size).collect();
    if batches.len() > 1 && rows.len() % size == 1 {
        batches.truncate(batches.len() - 2);
        batches.push(&rows[batches.len() * size..]);
    }
    batches
}

/// How many epochs, and which share of the retain rows in each, spend a budget.
///
/// An epoch goes `forget_passes` times through `forget` samples and `retain_passes` times through a share of `retain` rows. `budget`, samples backward, is kept to by a smaller
/// share; where the forget samples alone take more than it, by fewer epochs, but for one at least.
fn within_budget(budget: f64, epochs: usize, [forget_passes, retain_passes]: [f64; 2], [forget, retain]: [usize; 2]) -> (usize, f64) {
    let (once_forget, once_retain) = (forget_passes * forget as f64, retain_passes * retain as f64);
    let most = if once_forget > 0.0 { (budget / once_forget).floor().max(1.0) as usize } else { epochs };
    let epochs = epochs.min(most).max(1);
    let share = if once_retain > 0.0 { ((budget / epochs as f64 - once_forget) / once_retain).clamp(0.0, 1.0) } else { 0.0 };
    (epochs, share)
}

/// Refuses rates, shares and sizes that mean nothing.
pub(crate) mod check {
    use super::Rejected;

    pub(crate) fn positive(name: &str, value: f64) -> Result<(), Rejected> {
        Rejected::unless(value > 0.0 && value.is_finite(), name, format!("`{name}` must be a positive number"))
    }

    pub(crate) fn not_negative(name: &str, value: f64) -> Result<(), Rejected> {
        Rejected::unless(value >= 0.0 && value.is_finite(), name, format!("`{name}` must be 0 or a positive number"))
    }

    pub(crate) fn share(name: &str, value: f64) -> Result<(), Rejected> {
        Rejected::unless((0.0..=1.0).contains(&value), name, format!("`{name}` must be from 0 to 1"))
    }

    pub(crate) fn at_least(name: &str, least: usize, value: usize) -> Result<(), Rejected> {
        Rejected::unless(value >= least, name, format!("`{name}` must be at least {least}"))
    }

    /// A budget, as a share of retraining's samples backward.
    pub(crate) fn budget(value: Option<f64>) -> Result<(), Rejected> {
        value.map_or(Ok(()), |value| positive("budget", value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::tests::task;

    #[test]
    fn a_cycle_rises_and_falls_but_for_a_single_step() {
        assert_eq!(Fall::Cycle.left(0, 1), 1.0);
        for steps in [2, 3, 20, 700] {
            for step in 0..steps {
                let gone = step as f64 / steps as f64;
                let expected = if gone < 0.15 { gone / 0.15 } else { (1.0 - gone) / (1.0 - 0.15) };
                assert_eq!(Fall::Cycle.left(step as u64, steps).to_bits(), expected.to_bits(), "{step} of {steps}");
            }
        }
        assert_eq!(
            [Fall::Linear, Fall::Cosine, Fall::Constant].map(|fall| fall.left(1, 2)),
            [0.5, f64::midpoint(1.0, (std::f64::consts::PI * 0.5).cos()), 1.0]
        );
    }

    #[test]
    fn no_batch_has_one_row() {
        let rows: Vec<usize> = (0..9).collect();
        let sizes = |count: usize, size: usize| batches(&rows[..count], size).into_iter().map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(9, 4), [4, 5]);
        assert_eq!(sizes(8, 4), [4, 4]);
        assert_eq!(sizes(5, 4), [5]);
        assert_eq!(sizes(1, 4), [1]);
        assert_eq!(batches(&rows, 4).concat(), rows);
    }

    #[test]
    fn a_budget_is_kept_to() {
        let spent = |(epochs, share): (usize, f64), [forget, retain]: [f64; 2]| epochs as f64 * (forget * 100.0 + retain * share * 900.0);
        for (budget, passes, expected) in [(2700.0, [1.0, 1.0], 2700.0), (1000.0, [2.0, 1.0], 1000.0), (150.0, [1.0, 1.0], 150.0)] {
            let plan = within_budget(budget, 8, passes, [100, 900]);
            assert!((spent(plan, passes) - expected).abs() < 1e-6, "{plan:?}");
        }
        // No more than the whole set in an epoch, and one epoch at least.
        assert_eq!(within_budget(1e9, 8, [1.0, 1.0], [100, 900]), (8, 1.0));
        assert_eq!(within_budget(10.0, 8, [1.0, 1.0], [100, 900]), (1, 0.0));
    }

    #[test]
    fn what_is_masked_out_stays_through_decay_and_momentum() {
        let mut task = task();
        let network = task.original().unwrap();
        let before = network.to_tensors().unwrap();
        let trainable = Trainable::all(network.graph());
        let half = |tensor: &Tensor| {
            let values = (0..tensor.elem_count()).map(|place| (place % 2) as f32).collect();
            Tensor::from_vec(values, tensor.dims(), tensor.device())
        };
        let parameters: Gradients =
            network.parameters(&trainable).into_iter().map(|(name, value)| (name.to_owned(), value.as_detached_tensor())).collect();
        let mask = parameters.map(|_, tensor| half(tensor)).unwrap();
        let rule = Rule::Sgd { momentum: 0.9, weight_decay: 0.1 };
        let course = Course { rule, mask: Some(mask), ..Course::adam(&network, 3, 0.1) };
        let samples = task.retain.clone();
        let after =
            task.teach(network, &course, |pupil, _| pupil.pass("test", &samples, &[0, 1], 2, |_, batch| batch.cross_entropy())).unwrap();
        let after = after.to_tensors().unwrap();
        for (name, tensor) in &before {
            let (dcu_artifact::Tensor::F32(before), dcu_artifact::Tensor::F32(after)) = (tensor, &after[name]) else { continue };
            for (place, (before, after)) in before.data.iter().zip(&after.data).enumerate() {
                assert!(place % 2 == 1 || before == after, "`{name}` at {place}");
            }
            assert_ne!(before.data, after.data, "`{name}`");
        }
    }

    #[test]
    fn there_is_nothing_to_learn_of_what_the_model_says_itself() {
        let mut task = task();
        let network = task.original().unwrap();
        let said = dcu_nn::evaluate::judge(&network, &task.forget).unwrap().logits;
        let own = crate::targets::probabilities(&said, &[]);
        let before = network.to_tensors().unwrap();
        let samples = task.forget.clone().with_targets(own).unwrap();
        let course = Course { rule: Rule::Sgd { momentum: 0.0, weight_decay: 0.0 }, ..Course::adam(&network, 5, 0.1) };
        let network =
            task.teach(network, &course, |pupil, _| pupil.pass("test", &samples, &[0, 1], 2, |_, batch| batch.cross_entropy())).unwrap();
        for (name, tensor) in network.to_tensors().unwrap() {
            let (dcu_artifact::Tensor::F32(before), dcu_artifact::Tensor::F32(after)) = (&before[&name], tensor) else { continue };
            before.data.iter().zip(&after.data).for_each(|(before, after)| assert!((before - after).abs() < 1e-6, "`{name}`"));
        }
    }
}
