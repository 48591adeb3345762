//! `unlearn/silver-linings`: the network learns on, on the retain set, and away from what an attacker takes for members on the forget samples (after the abstract of "Silver
//! Linings in the Shadows", arXiv 2407.00866; there is no public code, and features, sizes and the end are this workspace's).
//!
//! The attacker is fitted to an ensemble's predictions of retained samples and then fixed. It is not driven to its least: where the forget samples look like members no more
//! than they do to models that never saw them, no step pushes them further, and an epoch that begins there is the last. What is learned against one attacker deceives that one,
//! not others: a method is judged by another attack, with other models.

use std::collections::BTreeMap;

use dcu_artifact::{Array, Ensemble, SampleId};
use dcu_nn::network::{self, Mode};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::{Stream, Streams};
use dcu_nn::{DType, Device, Gradients, Network, Tensor, Trainable, Var, evaluate};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::course::{Course, check};
use crate::frame::{Need, Task, Unlearn, Wires};

pub(crate) struct SilverLinings;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How much the attacker's cross-entropy with "no member" counts.
    lambda: f64,
    /// Passes over the retain samples at most.
    epochs: usize,
    /// The share of the retain set that each pass takes, drawn anew.
    share: f64,
    /// Samples backward at most, as a share of retraining's; each step takes as many forget samples as retain samples. Where it is given, `share` follows from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The learning rate of Adam.
    lr: f64,
    /// Samples of each kind in a batch.
    batch: usize,
    /// Steps that the attacker is fitted in.
    attacker_steps: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { lambda: 1.0, epochs: 10, share: 0.25, budget: None, lr: 1e-4, batch: 128, attacker_steps: 500 }
    }
}

impl Unlearn for SilverLinings {
    const NAME: &'static str = "silver-linings";
    const SUMMARY: &'static str = "Learns on, on the retain set, until a membership attacker takes the forget samples for members no more than models do that never saw them";
    const WIRES: Wires = Wires { ensemble: Need::Must, ..Wires::RETAIN };

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::not_negative("lambda", parameters.lambda)?;
        check::at_least("epochs", 1, parameters.epochs)?;
        check::share("share", parameters.share)?;
        check::budget(parameters.budget)?;
        check::positive("lr", parameters.lr)?;
        check::at_least("batch", 1, parameters.batch)?;
        check::at_least("attacker_steps", 1, parameters.attacker_steps)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        task.progress.phase("attacker");
        let (attacker, level) = attacker(parameters.attacker_steps, task)?;
        taught(parameters, task, &attacker, level)
    }
}

/// Passes until the mean score of the forget samples is `level` or less.
pub(crate) fn taught(parameters: &Parameters, task: &mut Task, attacker: &Attacker, level: f64) -> anyhow::Result<Network> {
    let (forget, retain) = (task.forget.clone(), task.retain.clone());
    let of_batch = parameters.batch.min(forget.len());
    let share = task.share_beside(parameters.budget, (parameters.epochs, parameters.share), [parameters.batch, of_batch])?;
    let network = task.original()?;
    let trainable = Trainable::all(network.graph());
    // As the ensemble's predictions are.
    let course = Course { modes: network::all(Mode::EVAL), ..Course::adam(&network, parameters.epochs, parameters.lr) };
    let mean_score = |network: &Network| -> anyhow::Result<f64> {
        let logits = evaluate::judge(network, &forget)?.logits;
        Ok(mean(&attacker.scores(&logits, forget.labels())?))
    };
    let (streams, before) = (task.streams.clone(), mean_score(&network)?);
    let mut is_reached = false;
    let network = task.teach(network, &course, |pupil, epoch| {
        is_reached = is_reached || mean_score(&pupil.network)? <= level;
        if is_reached {
            return Ok(());
        }
        let drawn = pupil.drawn("draw", retain.len(), share);
        // Forget samples one after the other, in a new order when they have all had their turn.
        let mut turns = (0..).flat_map(|turn| streams.indexed(&format!("forget {turn}"), epoch as u64).permutation(forget.len()));
        pupil.pass("silver linings", &retain, &drawn, parameters.batch, |network, batch| {
            let rows: Vec<usize> = turns.by_ref().take(of_batch).collect();
            let labels: Vec<u32> = rows.iter().map(|&row| forget.labels()[row]).collect();
            let logits = network.judge(&forget.batch(&rows)?.0, &trainable)?;
            let margins = attacker.margins(&features(&logits, &labels)?)?;
            let loss = batch.cross_entropy()?;
            if mean(&probabilities(&margins)?) <= level {
                return Ok(loss);
            }
            let away = (softplus(&margins)?.mean_all()? * parameters.lambda)?.to_device(loss.device())?.to_dtype(loss.dtype())?;
            Ok((loss + away)?)
        })
    })?;
    let after = mean_score(&network)?;
    task.progress.note(&format!(
        "the attacker takes forget samples for members with {before:.3} on average before and {after:.3} after; of models that never saw them {level:.3}"
    ));
    Ok(network)
}

/// An attacker that tells members from others among the retained samples, and the mean score of the forget samples for the models that never saw them.
fn attacker(steps: usize, task: &Task) -> anyhow::Result<(Attacker, f64)> {
    let ensemble = task.ensemble.as_ref().expect("checked by the frame");
    if ensemble.ids != task.dataset.ids || ensemble.classes() != task.dataset.classes() {
        return Err(Failure::new("the ensemble was trained on another dataset", "make ensemble and request from the same dataset").into());
    }
    let (gone, left) = (task.rows_of(&task.forgotten())?, task.rows_of(&task.request.retain)?);
    let of = |rows: &[usize], is_member: bool| said(ensemble, rows, &task.dataset.labels, is_member);
    let sides = [of(&left, true), of(&left, false)];
    let remedy = "take an ensemble by halves or folds, as `train/ensemble` makes it";
    if sides.iter().any(|(_, labels)| labels.is_empty()) {
        return Err(Failure::new("the ensemble's models saw all retained samples, or none", remedy).into());
    }
    if let Some(&row) = gone.iter().find(|&&row| ensemble.strangers_to(row).next().is_none()) {
        let message = format!("every model of the ensemble saw the forget sample {}", SampleId(task.dataset.ids[row]));
        return Err(Failure::new(message, remedy).into());
    }
    let sides = sides.map(|(logits, labels)| features_of(&logits, &labels));
    let [members, others] = sides;
    let attacker = Attacker::fitted(&[members?, others?], steps, &task.streams)?;
    let (logits, labels) = of(&gone, false);
    let level = mean(&attacker.scores(&logits, &labels)?);
    Ok((attacker, level))
}

/// What the models that saw a sample, or those that did not, say of it, for all samples at `rows` one after the other, and their labels.
fn said(ensemble: &Ensemble, rows: &[usize], labels: &[u32], is_member: bool) -> (Array<f32>, Vec<u32>) {
    let (mut logits, mut own) = (Vec::new(), Vec::new());
    for &row in rows {
        for model in 0..ensemble.models() {
            if (ensemble.membership.data[model * ensemble.ids.len() + row] == 1) == is_member {
                logits.extend_from_slice(ensemble.of(model, row));
                own.push(labels[row]);
            }
        }
    }
    (Array::new(vec![own.len(), ensemble.classes()], logits), own)
}

/// The largest probabilities that an attacker looks at.
const LARGEST: usize = 3;
/// What an attacker looks at: the largest probabilities, loss and correctness.
const FEATURES: usize = LARGEST + 2;
/// The units of its layers.
const UNITS: [usize; 4] = [FEATURES, 64, 32, 1];
/// The least deviation of a feature that it is divided by.
const LEAST_DEVIATION: f32 = 1e-6;
/// The rate of Adam, and the samples of each kind in a batch, when it is fitted.
const RATE: f64 = 1e-2;
const BATCH: usize = 128;
/// Rows that are looked at together.
const ROWS: usize = 1 << 14;

/// What an attacker looks at of logits [n, K], with the slope by these: the largest probabilities in falling order (0 where there are fewer classes), the cross-entropy with
/// the label, and 1 where the label is the likeliest class, [n, 5] on the CPU.
fn features(logits: &Tensor, labels: &[u32]) -> dcu_nn::Result<Tensor> {
    let logits = logits.to_device(&Device::Cpu)?;
    let (rows, classes) = logits.dims2()?;
    let values = logits.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let mut order: Vec<u32> = Vec::new();
    let mut right: Vec<f32> = Vec::new();
    for (row, &label) in values.iter().zip(labels) {
        let mut own: Vec<u32> = (0..classes as u32).collect();
        own.sort_by(|&left, &right| row[right as usize].total_cmp(&row[left as usize]));
        right.push(f32::from(u8::from(own[0] == label)));
        order.extend(own.into_iter().take(LARGEST));
    }
    let (largest, labels) = (classes.min(LARGEST), Tensor::new(labels, &Device::Cpu)?.unsqueeze(1)?);
    let below = logits.broadcast_sub(&logits.detach().max_keepdim(1)?)?;
    let normaliser = below.exp()?.sum_keepdim(1)?.log()?;
    let logarithms = below.broadcast_sub(&normaliser)?;
    let probabilities = logarithms.gather(&Tensor::from_vec(order, (rows, largest), &Device::Cpu)?, 1)?.exp()?;
    let probabilities = probabilities.pad_with_zeros(1, 0, LARGEST - largest)?;
    let right = Tensor::from_vec(right, (rows, 1), &Device::Cpu)?.to_dtype(logits.dtype())?;
    Tensor::cat(&[&probabilities, &logarithms.gather(&labels, 1)?.neg()?, &right], 1)
}

/// The same of kept logits, without a slope.
fn features_of(logits: &Array<f32>, labels: &[u32]) -> dcu_nn::Result<Array<f32>> {
    let mut values = Vec::with_capacity(labels.len() * FEATURES);
    for (logits, labels) in logits.data.chunks(ROWS * logits.row_len()).zip(labels.chunks(ROWS)) {
        let logits = Tensor::from_slice(logits, (labels.len(), logits.len() / labels.len()), &Device::Cpu)?;
        values.extend(features(&logits, labels)?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(Array::new(vec![labels.len(), FEATURES], values))
}

/// A perceptron from [`features`] to the margin by which a sample is taken for a member.
pub(crate) struct Attacker {
    mean: Tensor,
    deviation: Tensor,
    /// Weight [in, out] and bias of each layer, by their numbers.
    layers: Vec<(String, Var)>,
}

impl Attacker {
    /// Means, deviations, and weight and bias of one layer after the other.
    ///
    /// # Errors
    /// When these are not as many as it has.
    pub(crate) fn of(values: &[f32]) -> dcu_nn::Result<Self> {
        let mut left = values;
        let mut next = |shape: &[usize]| {
            let (own, others) = left.split_at_checked(shape.iter().product()).ok_or_else(|| dcu_nn::Error::msg("too few weights"))?;
            left = others;
            Tensor::from_slice(own, shape, &Device::Cpu)
        };
        let (mean, deviation) = (next(&[FEATURES])?, next(&[FEATURES])?);
        let mut layers = Vec::new();
        for (number, units) in UNITS.windows(2).enumerate() {
            layers.push((format!("{number} weight"), Var::from_tensor(&next(units)?)?));
            layers.push((format!("{number} bias"), Var::from_tensor(&next(&units[1..])?)?));
        }
        if !left.is_empty() {
            return Err(dcu_nn::Error::msg("too many weights"));
        }
        Ok(Self { mean, deviation, layers })
    }

    /// Fitted by Adam to features of members and of others, as many of each in a batch.
    fn fitted(sides: &[Array<f32>; 2], steps: usize, streams: &Streams) -> anyhow::Result<Self> {
        let attacker = Self::of(&beginning(sides, &mut streams.stream("attacker")))?;
        let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
        for step in 0..steps {
            let mut stream = streams.indexed("attacked", step as u64);
            let mut side = |features: &Array<f32>| {
                let rows: Vec<usize> = (0..BATCH).map(|_| stream.below(features.rows())).collect();
                Tensor::from_vec(features.select(&rows).data, (BATCH, FEATURES), &Device::Cpu)
            };
            let [members, others] = [side(&sides[0])?, side(&sides[1])?].map(|features| attacker.margins(&features));
            let loss = (softplus(&members?.neg()?)?.mean_all()? + softplus(&others?)?.mean_all()?)?;
            let mut slopes = loss.backward()?;
            let slope = |(name, value): &(String, Var)| Some((name.clone(), slopes.remove(value)?));
            let gradients: Gradients = attacker.layers.iter().filter_map(slope).collect();
            let parameters: BTreeMap<&str, &Var> = attacker.layers.iter().map(|(name, value)| (name.as_str(), value)).collect();
            // It falls evenly, to 0 behind the last step.
            optimiser.step(&parameters, &gradients, RATE * (1.0 - step as f64 / steps as f64))?;
        }
        Ok(attacker)
    }

    /// The logarithm of the odds that a sample is a member, [n].
    fn margins(&self, features: &Tensor) -> dcu_nn::Result<Tensor> {
        let mut values = features.to_dtype(DType::F32)?.broadcast_sub(&self.mean)?.broadcast_div(&self.deviation)?;
        for (number, layer) in self.layers.chunks_exact(2).enumerate() {
            if number > 0 {
                values = values.relu()?;
            }
            let [(_, weight), (_, bias)] = layer else { unreachable!("chunks of two") };
            values = values.matmul(weight)?.broadcast_add(bias)?;
        }
        values.squeeze(1)
    }

    /// The probabilities that samples are members, by what a network says of them.
    fn scores(&self, logits: &Array<f32>, labels: &[u32]) -> dcu_nn::Result<Vec<f64>> {
        let features = features_of(logits, labels)?;
        probabilities(&self.margins(&Tensor::from_vec(features.data, features.shape, &Device::Cpu)?)?)
    }
}

/// Means and deviations of all features, and weights as PyTorch's linear layers begin.
fn beginning(sides: &[Array<f32>; 2], stream: &mut Stream) -> Vec<f32> {
    let count = (sides[0].rows() + sides[1].rows()) as f64;
    let sum = |feature: usize, of: &dyn Fn(f64) -> f64| -> f64 {
        let values = sides.iter().flat_map(|side| side.data.chunks_exact(FEATURES));
        values.map(|row| of(f64::from(row[feature]))).sum::<f64>() / count
    };
    let means: Vec<f64> = (0..FEATURES).map(|feature| sum(feature, &|value| value)).collect();
    let deviation = |feature: usize| (sum(feature, &|value| (value - means[feature]).powi(2)).sqrt() as f32).max(LEAST_DEVIATION);
    let mut values: Vec<f32> = means.iter().map(|&mean| mean as f32).collect();
    values.extend((0..FEATURES).map(deviation));
    for units in UNITS.windows(2) {
        let bound = 1.0 / (units[0] as f32).sqrt();
        values.extend((0..units[1] * (units[0] + 1)).map(|_| bound * (2.0 * stream.uniform() - 1.0)));
    }
    values
}

/// ln(1 + exp(x)), the cross-entropy of a margin x with "no member".
fn softplus(margins: &Tensor) -> dcu_nn::Result<Tensor> {
    margins.relu()? + (margins.abs()?.neg()?.exp()? + 1.0)?.log()?
}

fn probabilities(margins: &Tensor) -> dcu_nn::Result<Vec<f64>> {
    let margins = margins.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(margins.into_iter().map(|margin| 1.0 / (1.0 + (-margin).exp())).collect())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use dcu_artifact::EnsembleFacts;

    use super::*;
    use crate::frame::tests::task;

    #[test]
    fn what_the_attacker_looks_at_is_as_said() {
        let logits = Tensor::new(&[[0.0_f32, 2.0_f32.ln(), 0.0, 4.0_f32.ln()], [0.0, 0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let found = features(&logits, &[1, 0]).unwrap().to_vec2::<f32>().unwrap();
        let expected = [[0.5, 0.25, 0.125, 4.0_f32.ln(), 0.0], [0.25, 0.25, 0.25, 4.0_f32.ln(), 1.0]];
        for (found, expected) in found.concat().iter().zip(expected.concat()) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let two = features(&Tensor::new(&[[0.0_f32, 3.0_f32.ln()]], &Device::Cpu).unwrap(), &[1]).unwrap();
        assert!((two.to_vec2::<f32>().unwrap()[0][1] - 0.25).abs() < 1e-6 && two.to_vec2::<f32>().unwrap()[0][2] == 0.0);
    }

    #[test]
    fn members_that_are_surer_are_found() {
        let mut stream = Streams::new(1, "test").stream("logits");
        let mut side = |surer: f32| {
            let logits: Vec<f32> = (0..400).flat_map(|_| [surer + stream.normal(), stream.normal(), stream.normal()]).collect();
            Array::new(vec![400, 3], logits)
        };
        let (members, others) = (side(4.0), side(1.0));
        let sides = [&members, &others].map(|logits| features_of(logits, &[0; 400]).unwrap());
        let attacker = Attacker::fitted(&sides, 200, &Streams::new(1, "test")).unwrap();
        let [of_members, of_others] = [&members, &others].map(|logits| mean(&attacker.scores(logits, &[0; 400]).unwrap()));
        assert!(of_members > 0.7 && of_others < 0.3, "{of_members} {of_others}");
    }

    /// Four models, each trained on two of the four samples; those that saw one are sure of it, the others know nothing.
    fn with_ensemble() -> Task {
        let mut task = task();
        let facts =
            EnsembleFacts { scheme: "halves".into(), seed: 2, architecture: serde_json::Value::Null, recipe: serde_json::Value::Null };
        let membership = vec![1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 1, 0, 1];
        let labels = task.dataset.labels.clone();
        let logits = membership.iter().enumerate().flat_map(|(place, &member)| {
            let label = labels[place % 4];
            (0..3).map(move |class| if member == 1 && class == label { 6.0 } else { 0.0 })
        });
        let logits = Array::new(vec![4, 4, 3], logits.collect());
        let ids = task.dataset.ids.clone();
        task.ensemble = Some(Ensemble { ids, membership: Array::new(vec![4, 4], membership), logits, facts });
        task
    }

    #[test]
    fn forget_samples_come_to_look_as_to_models_that_never_saw_them_and_no_less() {
        let mut task = with_ensemble();
        // A network that is sure of its forget samples.
        let network = task.original().unwrap();
        let course = Course::adam(&network, 300, 0.02);
        let all = dcu_nn::Samples::joined(&[&task.forget, &task.retain]).unwrap();
        let network = task.teach(network, &course, |pupil, _| pupil.pass("test", &all, &[0, 1, 2, 3], 4, |_, batch| batch.cross_entropy()));
        task.model = dcu_nn::model::with_facts_of(&network.unwrap(), &task.model).unwrap();
        let (attacker, level) = attacker(300, &task).unwrap();
        let score = |network: &Network| {
            let logits = evaluate::judge(network, &task.forget).unwrap().logits;
            mean(&attacker.scores(&logits, task.forget.labels()).unwrap())
        };
        let before = score(&task.original().unwrap());
        assert!(before > 0.9 && level < 0.1, "{before} {level}");
        let level = 0.4;
        let parameters = Parameters { epochs: 400, share: 1.0, lr: 2e-3, ..Parameters::default() };
        let network = taught(&parameters, &mut with_model(&task), &attacker, level).unwrap();
        let after = score(&network);
        assert!(after <= level && after > 0.5 * level, "{before} {after}");
        // Where they look like that already, nothing is done.
        let network = taught(&parameters, &mut with_model(&task), &attacker, 1.0).unwrap();
        assert_eq!(network.to_tensors().unwrap(), task.model.tensors);
    }

    fn with_model(task: &Task) -> Task {
        Task { model: task.model.clone(), ..with_ensemble() }
    }

    #[test]
    fn an_ensemble_that_says_nothing_of_membership_is_refused() {
        let refused = |membership: [u8; 4]| {
            let mut task = with_ensemble();
            task.ensemble.as_mut().unwrap().membership.data = membership.repeat(4);
            attacker(1, &task).map(drop).unwrap_err().to_string()
        };
        assert!(refused([0, 1, 0, 1]).contains("saw all retained samples, or none"));
        let mut task = with_ensemble();
        // Sample 7 is the first.
        (0..4).for_each(|model| task.ensemble.as_mut().unwrap().membership.data[4 * model] = 1);
        let error = attacker(1, &task).map(drop).unwrap_err().to_string();
        assert!(error.contains("every model of the ensemble saw the forget sample train:7"), "{error}");
    }
}
