//! `unlearn/accelerated`: one epoch of finetuning on a steeper loss, with a term that draws the losses of the forget samples to those of unseen ones (A-CF, A-Sparse and A-SCRUB of
//! arXiv 2507.09786).
//!
//! Each sample's loss is compared with the others of its own group, so that the published term sees only the spread of a group and not its level: forget samples whose losses are all
//! too low by the same amount are at its minimum. `ranks: pooled` compares with both groups and sees the level too.

use dcu_nn::optimiser::Rule;
use dcu_nn::rng::Stream;
use dcu_nn::{Network, Samples, Tensor, Trainable, ops};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sparse::size;
use crate::course::{Course, check};
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct Accelerated;

/// Which method is accelerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Variant {
    /// Finetuning (A-CF).
    Finetune,
    /// Finetuning with a penalty on the size of all weights (A-Sparse).
    Sparse,
    /// SCRUB, whose pass away from the teacher goes before (A-SCRUB).
    Scrub,
}

/// Whose losses a sample's loss is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ranks {
    /// Those of its own group, as published.
    Own,
    /// Those of forget and unseen samples together.
    Pooled,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Which method is accelerated.
    pub(crate) variant: Variant,
    /// Whose losses a sample's loss is compared with.
    ranks: Ranks,
    /// How much the term of forget and unseen samples counts.
    weight: f64,
    /// How steep the comparison of two losses is.
    steepness: f64,
    /// Passes over the retain samples.
    pub(crate) epochs: usize,
    /// The share of the retain set that each pass takes, drawn anew.
    share: f64,
    /// Samples backward, as a share of retraining's, of which each retain sample brings four forget samples. Where it is given, `share` follows from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The learning rate of Adam.
    lr: f64,
    /// Retain samples in a batch; four times as many forget and unseen samples go with them, where there are so many.
    pub(crate) batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            variant: Variant::Finetune,
            ranks: Ranks::Own,
            weight: 34.0,
            steepness: 2.0,
            epochs: 1,
            share: 1.0,
            budget: None,
            lr: 2.4e-4,
            batch: 64,
        }
    }
}

/// Forget and unseen samples for each retain sample of a batch.
pub(crate) const BESIDE: usize = 4;
/// How much the size of all weights counts in A-Sparse.
const GAMMA: f64 = 1e-4;
/// Cross-entropy and divergence on retain samples, and divergence on forget samples, in A-SCRUB, and the temperature.
const SCRUB: [f64; 3] = [0.99, 1e-3, 0.2];
const TEMPERATURE: f64 = 2.0;

impl Unlearn for Accelerated {
    const NAME: &'static str = "accelerated";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str =
        "Finetunes for one epoch, and draws the losses of forget samples to those of unseen ones (A-CF, A-Sparse, A-SCRUB)";
    const WIRES: Wires = Wires { test: Need::Must, holdout: Need::Must, ..Wires::RETAIN };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::not_negative("weight", parameters.weight)?;
        check::positive("steepness", parameters.steepness)?;
        check::at_least("epochs", 1, parameters.epochs)?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::positive("lr", parameters.lr)?;
        check::at_least("batch", 2, parameters.batch)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let (forget, retain, teacher, none) = (task.forget.clone(), task.retain.clone(), task.original()?, Trainable::none());
        let unseen = task.unseen("the losses of forget samples are drawn to those of unseen ones")?;
        let beside = (BESIDE * parameters.batch).min(forget.len());
        let share = task.share_beside(parameters.budget, (parameters.epochs, parameters.share), [parameters.batch, beside])?;
        let network = task.original()?;
        let trainable = Trainable::all(network.graph());
        let course = Course { rule: Rule::Adam { weight_decay: 0.0 }, ..Course::adam(&network, parameters.epochs, parameters.lr) };
        let (streams, all) = (task.streams.clone(), (0..forget.len()).collect::<Vec<_>>());
        task.teach(network, &course, |pupil, epoch| {
            if parameters.variant == Variant::Scrub {
                pupil.pass("max", &forget, &all, parameters.batch, |_, batch| {
                    let divergence = ops::kl_divergence(batch.logits, &teacher.judge(batch.images, &none)?, TEMPERATURE)?;
                    Ok((divergence * (-SCRUB[2] / TEMPERATURE.powi(2)))?)
                })?;
            }
            let drawn = pupil.drawn("draw", retain.len(), share);
            let mut stream = streams.indexed("groups", epoch as u64);
            pupil.pass("accelerated", &retain, &drawn, parameters.batch, |network, batch| {
                let steep = batch.cross_entropy()?.sqr()?;
                let [own, other] = groups(&mut stream, &forget, &unseen, beside);
                let logits = |samples: &Samples, rows: &[usize]| network.judge(&samples.batch(rows)?.0, &trainable);
                let own = losses(&logits(&forget, &own)?, &labels(&forget, &own))?;
                let other = losses(&logits(&unseen, &other)?, &labels(&unseen, &other))?.detach();
                let term = (discrepancy(&own, &other, parameters.ranks, parameters.steepness)? * parameters.weight)?;
                let loss = match parameters.variant {
                    Variant::Finetune => steep,
                    Variant::Sparse => (steep + (size(network)? * GAMMA)?)?,
                    Variant::Scrub => {
                        let divergence = ops::kl_divergence(batch.logits, &teacher.judge(batch.images, &none)?, TEMPERATURE)?;
                        ((steep * SCRUB[0])? + (divergence * SCRUB[1])?)?
                    }
                };
                Ok((loss + term)?)
            })
        })
    }
}

fn labels(samples: &Samples, rows: &[usize]) -> Vec<u32> {
    rows.iter().map(|&row| samples.labels()[row]).collect()
}

/// So many forget samples, and as many unseen ones at most of the classes that these have, all different.
pub(crate) fn groups(stream: &mut Stream, forget: &Samples, unseen: &Samples, count: usize) -> [Vec<usize>; 2] {
    let mut own = stream.permutation(forget.len());
    own.truncate(count);
    let classes = labels(forget, &own);
    let mut other: Vec<usize> = (0..unseen.len()).filter(|&row| classes.contains(&unseen.labels()[row])).collect();
    stream.shuffle(&mut other);
    other.truncate(count);
    [own, other]
}

/// The cross-entropy of each row of logits [n, K], [n].
fn losses(logits: &Tensor, labels: &[u32]) -> dcu_nn::Result<Tensor> {
    let (_, classes) = logits.dims2()?;
    let own: Vec<f32> = labels.iter().flat_map(|&label| crate::targets::one_hot(label, classes)).collect();
    let own = Tensor::from_vec(own, logits.dims(), logits.device())?;
    logits.log_sum_exp(1)? - (logits * own)?.sum(1)?
}

/// The squared maximum mean discrepancy, with the kernel `exp(-|a - b|²/2)`, between what [`normal`] makes of the losses of both groups, of which the second is fixed.
fn discrepancy(own: &Tensor, other: &Tensor, ranks: Ranks, steepness: f64) -> dcu_nn::Result<Tensor> {
    let level = |losses: &Tensor| ((losses + 1.0)? + 1e-8)?.log();
    let (own, other) = (level(own)?, level(other)?);
    let (own, other) = match ranks {
        Ranks::Own => (normal(&own, &own, steepness)?, normal(&other, &other, steepness)?),
        Ranks::Pooled => {
            let both = Tensor::cat(&[own.detach(), other.clone()], 0)?;
            (normal(&own, &both, steepness)?, normal(&other, &both, steepness)?)
        }
    };
    let kernel = |left: &Tensor, right: &Tensor| {
        let differences = left.unsqueeze(1)?.broadcast_sub(&right.unsqueeze(0)?)?;
        (differences.sqr()? * -0.5)?.exp()?.mean_all()
    };
    (kernel(&own, &own)? + kernel(&other, &other)?)? - (kernel(&own, &other)? * 2.0)?
}

/// For each value the standard normal quantile of how far it is above the others, by `mean sigmoid(steepness · max(0, difference))`.
fn normal(values: &Tensor, others: &Tensor, steepness: f64) -> dcu_nn::Result<Tensor> {
    let differences = values.unsqueeze(1)?.broadcast_sub(&others.unsqueeze(0)?)?;
    // candle's `relu` has the slope 1 at 0, where a value meets itself among fixed ones: nothing draws it there.
    let above = (&differences * differences.gt(0.0)?.to_dtype(differences.dtype())?)?;
    let shares = (((above * -steepness)?.exp()? + 1.0)?.recip()?).mean(1)?;
    // The quantile has no operation of its own: its value, and its slope where it is.
    let at: Vec<f64> = shares.to_dtype(dcu_nn::DType::F64)?.to_vec1()?;
    let quantiles: Vec<f64> = at.iter().map(|&share| quantile(share)).collect();
    let slope = |quantile: &f64| (std::f64::consts::TAU.sqrt() * (quantile * quantile / 2.0).exp()) as f32;
    let slopes = Tensor::from_vec(quantiles.iter().map(slope).collect::<Vec<_>>(), shares.dims(), shares.device())?;
    let fixed = Tensor::from_vec(quantiles.iter().map(|&value| value as f32).collect::<Vec<_>>(), shares.dims(), shares.device())?;
    fixed + ((&shares - shares.detach())? * slopes)?
}

/// The standard normal quantile of a share within 0.5 and 1, by bisection of the distribution.
fn quantile(share: f64) -> f64 {
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if 1.0 - 0.5 * libm::erfc(middle / std::f64::consts::SQRT_2) < share { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use dcu_nn::{Device, Var};

    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_published_ranks_do_not_see_that_all_losses_are_too_low_and_pooled_ones_do() {
        let (low, high) = (tensor(&[0.2, 0.25, 0.3, 0.4]), tensor(&[4.2, 4.4, 4.7, 5.1]));
        let of = |ranks| discrepancy(&low, &high, ranks, 2.0).unwrap().to_scalar::<f32>().unwrap();
        assert!(of(Ranks::Own).abs() < 1e-3 && of(Ranks::Pooled) > 0.05, "{} {}", of(Ranks::Own), of(Ranks::Pooled));
        let alike = discrepancy(&low, &low, Ranks::Pooled, 2.0).unwrap().to_scalar::<f32>().unwrap();
        assert!(alike.abs() < 1e-6, "{alike}");
    }

    #[test]
    fn a_value_is_not_drawn_by_itself_among_the_others() {
        let value = Var::from_tensor(&tensor(&[0.6])).unwrap();
        let others = tensor(&[0.6, 0.9]);
        let gradients = normal(&value, &others, 2.0).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(gradients.get(&value).unwrap().to_vec1::<f32>().unwrap(), [0.0]);
    }

    #[test]
    fn groups_are_of_the_classes_of_the_forget_samples_drawn() {
        let of =
            |labels: &[u32]| Samples::of_values(dcu_artifact::Array::new(vec![labels.len(), 1], vec![0.0; labels.len()]), labels.to_vec());
        let (forget, unseen) = (of(&[0, 1, 2, 0, 1, 2]).unwrap(), of(&[2, 1, 0, 2, 1, 0, 3, 0]).unwrap());
        let mut stream = dcu_nn::rng::Streams::new(1, "test").stream("groups");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let [own, other] = groups(&mut stream, &forget, &unseen, 2);
            let classes = labels(&forget, &own);
            assert!(own.len() == 2 && own[0] != own[1] && other.len() == 2 && other[0] != other[1], "{own:?} {other:?}");
            assert!(labels(&unseen, &other).iter().all(|class| classes.contains(class)), "{own:?} {other:?}");
            seen.insert((own, other));
        }
        assert!(seen.len() > 10);
    }

    #[test]
    fn the_slope_is_that_of_the_quantile() {
        let others = tensor(&[0.1, 0.4, 0.9]);
        let of = |value: f32| normal(&tensor(&[value]), &others, 2.0).unwrap().to_vec1::<f32>().unwrap()[0];
        let value = Var::from_tensor(&tensor(&[0.6])).unwrap();
        let gradients = normal(&value, &others, 2.0).unwrap().sum_all().unwrap().backward().unwrap();
        let slope = gradients.get(&value).unwrap().to_vec1::<f32>().unwrap()[0];
        let expected = (of(0.61) - of(0.59)) / 0.02;
        assert!((slope - expected).abs() < 1e-3, "{slope} {expected}");
        for (share, expected) in [(0.5, 0.0), (0.841_344_746, 1.0), (0.977_249_868, 2.0)] {
            assert!((quantile(share) - expected).abs() < 1e-6, "{share}");
        }
    }
}
