//! `unlearn/ntk`: NTK scrubbing (Golatkar et al., arXiv 2003.02960), as arXiv 2402.00195 compares with it. The network is taken as linear in its weights, with the gradients of its
//! logits as features; the step goes from where these would train on all of the data to where they would on the retain samples.
//!
//! With `G` the gradients of all logits of a set of n samples, [P, K·n], and `e` what the network says less what is right, `w = -G (Gᵀ G + n · weight_decay · I)⁻¹ e`,
//! and the step is `Δ = w(retain) - w(all)`. As arXiv 2003.02960 does to make up for what is not linear, it is lengthened to `‖Δ‖ + 2 |cos| ‖v‖`, by the angle to `v`, the way from where the
//! training on the retain samples would end back to the start. The start is not known: as in the code of arXiv 2402.00195, `v = -w(retain)`.
//!
//! Its traps: the system has K·n equations, so that for all of a network's parameters only few samples can be taken; a set's size is part of its damping. For the last layer
//! alone the same is a system of as many equations as it has inputs, of any number of samples. Rows to learn from count alike here.

use dcu_nn::derivatives::per_sample;
use dcu_nn::matrix::{Matrix, product};
use dcu_nn::network::all;
use dcu_nn::{DType, Gradients, Mode, Network, Place, Samples, Tensor, Trainable};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algebra;
use crate::course::check;
use crate::frame::{Task, Unlearn};
use crate::head::{Head, softmax};

/// Equations of a system at most, and values of gradients that are held on either side of a product.
const MOST_EQUATIONS: usize = 1 << 12;
const MOST_VALUES: usize = 1 << 25;

pub(crate) struct Ntk;

/// Which parameters a method moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scope {
    /// Those of the last layer.
    Head,
    /// All.
    All,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Which parameters move.
    parameters: Scope,
    /// Forget samples and retain samples that are taken, so many of each, at random; by default all.
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<usize>,
    /// Added to the diagonal, times the number of samples.
    weight_decay: f64,
    /// Whether the step is lengthened by its angle to the way back.
    rescale: bool,
    /// How much of the step is taken.
    strength: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { parameters: Scope::Head, samples: None, weight_decay: 0.1, rescale: true, strength: 1.0 }
    }
}

impl Unlearn for Ntk {
    const NAME: &'static str = "ntk";
    const SUMMARY: &'static str = "Moves weights from where a linearised network ends on all data to where it ends on the retain samples";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.samples.map_or(Ok(()), |samples| check::at_least("samples", 1, samples))?;
        check::positive("weight_decay", parameters.weight_decay)?;
        check::positive("strength", parameters.strength)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let mut network = task.original()?;
        let retain = taken(&task.retain, parameters.samples, task, "retain")?;
        let together = Samples::joined(&[&retain, &taken(&task.forget, parameters.samples, task, "forget")?])?;
        let [of_retain, of_all] = match parameters.parameters {
            Scope::Head => {
                let of = |samples: &Samples| of_head(&network, samples, parameters.weight_decay);
                [of(&retain)?, of(&together)?]
            }
            Scope::All => of_network(&network, &together, retain.len(), parameters.weight_decay)?,
        };
        let step = of_retain.plus(-1.0, &of_all)?;
        let (length, back) = (step.norm()?, of_retain.norm()?);
        if length == 0.0 {
            return Ok(network);
        }
        let cosine = if parameters.rescale && back > 0.0 { step.dot(&of_retain)? / (length * back) } else { 0.0 };
        let longer = (length + 2.0 * cosine.abs() * back) / length;
        algebra::shift(&mut network, parameters.strength * longer, &step)?;
        Ok(network)
    }
}

/// So many samples at random, in their order.
fn taken(samples: &Samples, count: Option<usize>, task: &Task, purpose: &str) -> anyhow::Result<Samples> {
    let Some(count) = count.filter(|&count| count < samples.len()) else { return Ok(samples.clone()) };
    let mut rows = task.streams.stream(purpose).permutation(samples.len());
    rows.truncate(count);
    rows.sort_unstable();
    let classes = task.dataset.classes();
    let values = dcu_artifact::Array::new([&[count], samples.shape()].concat(), samples.values(&rows));
    let targets = samples.probabilities(classes);
    let targets = rows.iter().flat_map(|&row| targets[row * classes..][..classes].to_vec()).collect();
    Ok(Samples::of_values(values, vec![0; count])?.with_targets(dcu_artifact::Array::new(vec![count, classes], targets))?)
}

/// What a linearised last layer trains to: `-(Φᵀ Φ + n · weight_decay · I)⁻¹ Φᵀ e`, which is the rule above with the roles of samples and inputs exchanged.
fn of_head(network: &Network, samples: &Samples, weight_decay: f64) -> anyhow::Result<Gradients> {
    let head = Head::read(network, samples)?;
    let (width, classes) = (head.width, head.classes);
    let mut matrix = product(head.inputs().transposed(), head.inputs());
    (0..width).for_each(|place| matrix[place * width + place] += head.rows() as f64 * weight_decay);
    let gradient = head.gradient(&samples.probabilities(classes));
    let mut right: Vec<f64> = (0..width * classes).map(|place| -gradient[place % classes * width + place / classes]).collect();
    algebra::solve(&mut matrix, &mut right, width)?;
    head.split((0..classes * width).map(|place| right[place % width * classes + place / width]).collect())
}

/// What a linearised network trains to on the first `retain` samples, and on all of them.
fn of_network(network: &Network, samples: &Samples, retain: usize, weight_decay: f64) -> anyhow::Result<[Gradients; 2]> {
    let network = network.moved_to(Place { dtype: DType::F64, ..network.place().clone() })?;
    let classes = network.architecture().classes;
    let equations = classes * samples.len();
    if equations > MOST_EQUATIONS {
        let message =
            format!("{} samples of {classes} classes make a system of {equations} equations; {MOST_EQUATIONS} at most", samples.len());
        return Err(
            Failure::new(message, format!("give `samples: {}` or fewer, or `parameters: head`", MOST_EQUATIONS / classes / 2)).into()
        );
    }
    let blocks = Blocks::new(&network, samples);
    let mut matrix = vec![0.0; equations * equations];
    let mut errors = Vec::with_capacity(equations);
    for left in 0..blocks.count() {
        let (own, logits) = blocks.gradients(left)?;
        errors.extend(logits);
        for right in 0..=left {
            let other = if right == left { own.clone() } else { blocks.gradients(right)?.0 };
            let (height, width) = (blocks.rows(left).len() * classes, blocks.rows(right).len() * classes);
            let values = product(Matrix::new(&own, height, blocks.parameters), Matrix::new(&other, width, blocks.parameters).transposed());
            for (row, values) in values.chunks_exact(width).enumerate() {
                for (column, &value) in values.iter().enumerate() {
                    let (row, column) = (blocks.rows(left).start * classes + row, blocks.rows(right).start * classes + column);
                    matrix[row * equations + column] = value;
                    matrix[column * equations + row] = value;
                }
            }
        }
    }
    softmax(&mut errors, classes);
    errors.iter_mut().zip(samples.probabilities(classes)).for_each(|(error, target)| *error -= f64::from(target));
    let coefficients = |count: usize| {
        let size = count * classes;
        let mut part: Vec<f64> = (0..size).flat_map(|row| matrix[row * equations..][..size].to_vec()).collect();
        (0..size).for_each(|place| part[place * size + place] += count as f64 * weight_decay);
        let mut right: Vec<f64> = errors[..size].iter().map(|error| -error).collect();
        algebra::solve(&mut part, &mut right, size)?;
        right.resize(equations, 0.0);
        anyhow::Ok(right)
    };
    let coefficients = [coefficients(retain)?, coefficients(samples.len())?];
    let mut sums = [vec![0.0; blocks.parameters], vec![0.0; blocks.parameters]];
    for block in 0..blocks.count() {
        let (gradients, _) = blocks.gradients(block)?;
        let start = blocks.rows(block).start * classes;
        for (sum, coefficients) in sums.iter_mut().zip(&coefficients) {
            for (gradient, coefficient) in gradients.chunks_exact(blocks.parameters).zip(&coefficients[start..]) {
                sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += coefficient * gradient);
            }
        }
    }
    let [first, second] = sums.map(|sum| blocks.split(&sum));
    Ok([first?, second?])
}

/// The gradients of all logits, a few samples at a time: all of them together would not fit into memory.
struct Blocks<'a> {
    network: &'a Network,
    samples: &'a Samples,
    trainable: Trainable,
    parameters: usize,
    at_once: usize,
}

impl<'a> Blocks<'a> {
    fn new(network: &'a Network, samples: &'a Samples) -> Self {
        let trainable = Trainable::all(network.graph());
        let parameters: usize = network.parameters(&trainable).values().map(|value| value.elem_count()).sum();
        let at_once = (MOST_VALUES / (parameters * network.architecture().classes)).max(1);
        Self { network, samples, trainable, parameters, at_once }
    }

    fn count(&self) -> usize {
        self.samples.len().div_ceil(self.at_once)
    }

    fn rows(&self, block: usize) -> std::ops::Range<usize> {
        block * self.at_once..self.samples.len().min((block + 1) * self.at_once)
    }

    /// The gradients of a block's logits, a row for each logit, sample by sample, and the logits.
    fn gradients(&self, block: usize) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
        let rows: Vec<usize> = self.rows(block).collect();
        let (images, _) = self.samples.batch(&rows)?;
        let classes = self.network.architecture().classes;
        let of_class = |class: usize| {
            let loss = |logits: &Tensor, _: &[usize]| logits.narrow(1, class, 1)?.sum_all();
            let gradients = per_sample(self.network, &images, &loss, &self.trainable, all(Mode::EVAL))?;
            let flat = gradients.iter().map(|(_, tensor)| tensor.flatten_from(1)).collect::<dcu_nn::Result<Vec<_>>>()?;
            Tensor::cat(&flat, 1)
        };
        let gradients = (0..classes).map(of_class).collect::<dcu_nn::Result<Vec<_>>>()?;
        let logits = self.network.judge(&images, &Trainable::none())?;
        Ok((Tensor::stack(&gradients, 1)?.flatten_all()?.to_vec1()?, logits.flatten_all()?.to_vec1()?))
    }

    /// One value for each parameter, by name.
    fn split(&self, values: &[f64]) -> anyhow::Result<Gradients> {
        let (mut start, mut split) = (0, Vec::new());
        for (name, value) in self.network.parameters(&self.trainable) {
            let end = start + value.elem_count();
            split.push((name.to_owned(), Tensor::from_slice(&values[start..end], value.dims(), value.device())?));
            start = end;
        }
        Ok(split.into_iter().collect())
    }
}
