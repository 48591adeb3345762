//! `unlearn/match`: the model learns of each forget sample what models say that never saw it, and on retain samples keeps to what it says itself. This is oracle matching (Georgiev et al.,
//! arXiv 2410.23232) towards cross-fitted models, which are trained once, before any request; both kinds of logits are matched by their squared error, in steps that are made orthogonal
//! (Muon), which reach the targets in a fraction of the passes that Adam needs.
//!
//! Its limits: those models saw the other forget samples, and less of the rest than a retraining sees, so that single samples can tell what they say from what a retraining would say;
//! outputs match, weights need not; and a judge must use other models than these.

use dcu_artifact::{Array, SampleId};
use dcu_nn::network::{self, Mode};
use dcu_nn::optimiser::Rule;
use dcu_nn::rng::Streams;
use dcu_nn::{Network, Samples, Tensor, evaluate, ops};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, Fall, check};
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct Match;

/// What a retain sample is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Keep {
    /// What the original model says of it.
    Logits,
    /// Its label.
    Labels,
}

/// By what rule a step is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Steps {
    /// Nesterov's momentum made orthogonal for each layer's weights; biases and normalisation stay.
    Muon,
    /// Adam, on all parameters.
    Adam,
}

/// What normalisation goes by during the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Statistics {
    /// The statistics of each batch, which move the running averages, and dropout drops.
    Batch,
    /// The running averages of the original, and nothing is dropped.
    Running,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Samples backward, as a share of retraining's. The passes over the forget samples follow from it.
    budget: f64,
    /// Forget samples in a batch; fewer where there are fewer.
    forget_batch: usize,
    /// Retain samples in a batch, one after the other in random order.
    retain_batch: usize,
    /// By what rule a step is made.
    steps: Steps,
    /// The largest learning rate, after 15 % of the steps; it rises evenly from 0 and falls evenly to 0. A single step has this rate.
    lr: f64,
    /// What a retain sample is held to.
    keep: Keep,
    /// What normalisation goes by during the steps.
    statistics: Statistics,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            budget: 0.1,
            forget_batch: 32,
            retain_batch: 32,
            steps: Steps::Muon,
            lr: 0.03,
            keep: Keep::Logits,
            statistics: Statistics::Batch,
        }
    }
}

impl Unlearn for Match {
    const NAME: &'static str = "match";
    const VERSION: u32 = 4;
    const SUMMARY: &'static str =
        "Teaches the model, of each forget sample, the prediction of models that never saw it (an ensemble by folds)";
    const WIRES: Wires = Wires { ensemble: Need::Must, ..Wires::RETAIN };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::positive("budget", parameters.budget)?;
        check::at_least("forget_batch", 1, parameters.forget_batch)?;
        check::at_least("retain_batch", 1, parameters.retain_batch)?;
        check::positive("lr", parameters.lr)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let (forget, retain, classes) = (task.forget.len(), task.retain.len(), task.dataset.classes());
        let network = task.original()?;
        let together = Samples::joined(&[&task.forget, &task.retain])?;
        let mut wanted = targets(task)?.data;
        // What the original says of retain samples, computed once.
        wanted.extend(evaluate::judge(&network, &task.retain)?.logits.data);
        let wanted = centred(Array::new(vec![forget + retain, classes], wanted), &task.classes_gone());
        let (own, beside) = (parameters.forget_batch.min(forget), parameters.retain_batch.min(retain));
        let steps = forget.div_ceil(own);
        let a_pass = (forget + steps * beside) as f64;
        let passes = (parameters.budget * task.retraining()? as f64 / a_pass).round().max(1.0) as usize;
        let rule = match parameters.steps {
            Steps::Muon => Rule::Muon { momentum: 0.9, others: 0.0 },
            Steps::Adam => Rule::Adam { weight_decay: 0.0 },
        };
        let modes = network::all(if parameters.statistics == Statistics::Batch { Mode::TRAIN } else { Mode::EVAL });
        let course = Course { rule, fall: Fall::Cycle, modes, ..Course::adam(&network, passes, parameters.lr) };
        let streams = task.streams.clone();
        task.teach(network, &course, |pupil, pass| {
            let order = streams.indexed("forget", pass as u64).permutation(forget);
            let mut others = turns(&streams, retain, pass * steps * beside);
            let batches: Vec<Vec<usize>> = order
                .chunks(own)
                .map(|own| own.iter().copied().chain(others.by_ref().take(beside).map(|row| forget + row)).collect())
                .collect();
            pupil.steps("match", &together, &batches, |_, batch| loss(parameters.keep, forget, &wanted, batch))
        })
    }
}

/// An endless order of so many samples from a place in it on, in which all have their turn, in another order each time.
fn turns(streams: &Streams, samples: usize, from: usize) -> impl Iterator<Item = usize> {
    let order = move |turn: usize| streams.indexed("retain", turn as u64).permutation(samples);
    (from / samples..).flat_map(order).skip(from % samples)
}

/// The mean over a batch of the squared error of centred logits, times [`SCALE`], for forget samples, and for retain samples the same or their cross-entropy.
fn loss(keep: Keep, forget: usize, wanted: &Array<f32>, batch: &crate::course::Batch<'_>) -> anyhow::Result<Tensor> {
    let rows = batch.rows.len();
    let wanted = wanted.select(batch.rows);
    let wanted = Tensor::from_vec(wanted.data, wanted.shape, batch.logits.device())?;
    let centred = batch.logits.broadcast_sub(&batch.logits.mean_keepdim(1)?)?;
    let count = batch.rows.iter().take_while(|&&row| row < forget).count();
    let matched = if keep == Keep::Logits { rows } else { count };
    let parts = [&centred, &wanted].map(|tensor| tensor.narrow(0, 0, matched));
    let [own, wanted] = parts;
    let error = (ops::squared_error(&own?.contiguous()?, &wanted?.contiguous()?)? * (SCALE * matched as f64 / rows as f64))?;
    if matched == rows {
        return Ok(error);
    }
    let others = batch.logits.narrow(0, count, rows - count)?.contiguous()?;
    let labels = batch.samples.loss(&others, &batch.rows[count..], 0.0)?;
    Ok((error + (labels * ((rows - count) as f64 / rows as f64))?)?)
}

/// How much a squared error of logits counts.
const SCALE: f64 = 0.3;

/// Logits less their mean over the classes, [n, K]. A class that is gone has the least of the others' logits in its place, less [`BELOW`]: the models that the targets come from saw other
/// samples of it, a retraining none.
fn centred(mut logits: Array<f32>, gone: &[u32]) -> Array<f32> {
    let classes = logits.row_len();
    for row in logits.data.chunks_exact_mut(classes) {
        let left = row.iter().enumerate().filter(|(class, _)| !gone.contains(&(*class as u32))).map(|(_, &logit)| logit);
        let least = left.fold(f32::INFINITY, f32::min);
        gone.iter().for_each(|&class| row[class as usize] = least - BELOW);
        let mean = row.iter().sum::<f32>() / classes as f32;
        row.iter_mut().for_each(|logit| *logit -= mean);
    }
    logits
}

/// How far the logit of a class that is gone lies below the least of the others.
const BELOW: f32 = 2.0;

/// What the models that never saw a forget sample say of it, [F, K]: the mean of their logits.
fn targets(task: &Task) -> anyhow::Result<Array<f32>> {
    let ensemble = task.ensemble.as_ref().expect("checked by the frame");
    if ensemble.ids != task.dataset.ids || ensemble.classes() != task.dataset.classes() {
        return Err(Failure::new("the ensemble was trained on another dataset", "make ensemble and request from the same dataset").into());
    }
    let rows = task.rows_of(&task.forgotten())?;
    let mut logits = vec![0.0; rows.len() * ensemble.classes()];
    for (&row, mean) in rows.iter().zip(logits.chunks_exact_mut(ensemble.classes())) {
        let strangers: Vec<usize> = ensemble.strangers_to(row).collect();
        if strangers.is_empty() {
            let message = format!("every model of the ensemble saw the forget sample {}", SampleId(task.dataset.ids[row]));
            return Err(
                Failure::new(message, "take an ensemble that leaves each sample out somewhere, as `train/ensemble` makes it").into()
            );
        }
        for &model in &strangers {
            mean.iter_mut().zip(ensemble.of(model, row)).for_each(|(mean, value)| *mean += value / strangers.len() as f32);
        }
    }
    Ok(Array::new(vec![rows.len(), ensemble.classes()], logits))
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{Ensemble, EnsembleFacts};

    use super::*;
    use crate::frame::tests::task;

    /// Two models, of which the first saw samples 7 and 8 alone, the second all but 7.
    fn with_ensemble(logits: &[f32]) -> Task {
        let mut task = task();
        let facts =
            EnsembleFacts { scheme: "folds".into(), seed: 2, architecture: serde_json::Value::Null, recipe: serde_json::Value::Null };
        let ids = task.dataset.ids.clone();
        let membership = Array::new(vec![2, 4], vec![1, 1, 0, 0, 0, 1, 1, 1]);
        task.ensemble = Some(Ensemble { ids, membership, logits: Array::new(vec![2, 4, 3], logits.to_vec()), facts });
        task
    }

    #[test]
    fn the_targets_are_of_the_models_that_never_saw_a_sample() {
        let task = with_ensemble(&(0..24).map(|value| value as f32).collect::<Vec<_>>());
        // The forget samples are 9, which the first model never saw, and 7, which the second never saw.
        assert_eq!(targets(&task).unwrap().data, [6.0, 7.0, 8.0, 12.0, 13.0, 14.0]);
        let mut all_saw = task;
        all_saw.ensemble.as_mut().unwrap().membership.data[4] = 1;
        assert!(targets(&all_saw).unwrap_err().to_string().contains("every model of the ensemble saw the forget sample train:7"));
    }

    #[test]
    fn a_class_that_is_gone_is_the_least_likely() {
        let found = centred(Array::new(vec![1, 3], vec![9.0, 1.0, 3.0]), &[0]);
        assert_eq!(found.data, [-2.0, 0.0 + 1.0 - 1.0, 2.0]);
        assert_eq!(centred(Array::new(vec![1, 2], vec![1.0, 3.0]), &[]).data, [-1.0, 1.0]);
    }

    #[test]
    fn all_samples_have_their_turn() {
        let streams = Streams::new(1, "test");
        let mut all: Vec<usize> = turns(&streams, 5, 0).take(10).collect();
        assert_eq!(turns(&streams, 5, 7).take(3).collect::<Vec<_>>(), all[7..]);
        for part in all.chunks_mut(5) {
            part.sort_unstable();
            assert_eq!(part, [0, 1, 2, 3, 4]);
        }
    }

    /// What the model says itself is nothing to learn, and other targets are come nearer to.
    #[test]
    fn the_model_stays_at_its_own_logits_and_goes_towards_others() {
        let said = |network: &Network, task: &Task| evaluate::judge(network, &task.forget).unwrap().logits.data;
        let original = task();
        let own = said(&original.original().unwrap(), &original);
        // Samples 9 and 7 are the third and the first of the dataset.
        let logits = |forget: &[f32]| {
            let (mut first, mut second) = (vec![0.0; 12], vec![0.0; 12]);
            first[6..9].copy_from_slice(&forget[..3]);
            second[..3].copy_from_slice(&forget[3..]);
            [first, second].concat()
        };
        let unlearned = |targets: &[f32], steps, lr| {
            let mut task = with_ensemble(&logits(targets));
            // So that no class is gone.
            task.retain = Samples::joined(&[&task.retain, &task.forget]).unwrap();
            let parameters = Parameters { budget: 20.0, steps, lr, retain_batch: 1, ..Parameters::default() };
            let network = Match::unlearn(&parameters, &mut task).unwrap();
            said(&network, &task)
        };
        let still = unlearned(&own, Steps::Adam, 1e-3);
        own.iter().zip(&still).for_each(|(before, after)| assert!((before - after).abs() < 1e-3, "{own:?} {still:?}"));
        let elsewhere: Vec<f32> = own.iter().rev().copied().collect();
        let moved = unlearned(&elsewhere, Steps::Adam, 1e-2);
        let far = |from: &[f32]| -> f32 { from.iter().zip(&elsewhere).map(|(left, right)| (left - right).powi(2)).sum() };
        assert!(far(&moved) < far(&own), "{moved:?} {elsewhere:?}");
    }
}
