//! `unlearn/jit`: just-in-time unlearning (Foster et al., arXiv 2402.01401). The network becomes smooth around each forget sample: what it says of the sample moves towards
//! what it says of noisy copies, in proportion to how little these differ from it. It reads neither labels nor retain samples.
//!
//! With `ζ` what noise is left once a copy is clamped to the values that occur in its batch, a step goes down the slope of
//! `1/N Σ_j Σ_x ‖f(x) - f(x + ζ_j)‖ / ‖ζ_j‖`, where no gradient flows through the copies.
//!
//! Its traps: the sum over a batch ties the rate to the batch's size; settings reach over four orders of magnitude from task to task; nothing holds the retain samples, so
//! the stage notes what becomes of them; the published code never clears gradients between batches (`accumulate`), and its settings were found so.

use dcu_nn::{Gradients, Network, Samples, Tensor, Trainable, evaluate};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algebra;
use crate::course::check;
use crate::frame::{Task, Unlearn, Wires};

/// Added to squared norms, of which the root has no slope at 0.
const EPSILON: f64 = 1e-12;

pub(crate) struct Jit;

/// Published settings, for what is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preset {
    /// VGG, random samples of CIFAR-10, and sub-classes of CIFAR-20.
    #[default]
    Vgg,
    /// VGG, a class of CIFAR-100.
    VggClass,
    /// A vision transformer, random samples.
    Vit,
    /// A vision transformer, a sub-class.
    VitSubClass,
    /// A vision transformer, a class.
    VitClass,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Published settings, for what is not given below.
    preset: Preset,
    /// Noisy copies of each sample (25).
    perturbations: Option<usize>,
    /// The standard deviation of the noise, in units of the normalised values.
    sigma: Option<f64>,
    /// The learning rate of plain gradient descent.
    lr: Option<f64>,
    /// Samples in a batch, over which the loss is summed (128; sub-classes of a transformer 64).
    batch: Option<usize>,
    /// Whether gradients add up from batch to batch, as in the published code.
    accumulate: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    perturbations: usize,
    sigma: f64,
    lr: f64,
    batch: usize,
    accumulate: bool,
}

impl Unlearn for Jit {
    const NAME: &'static str = "jit";
    const SUMMARY: &'static str = "Makes the network smooth around each forget sample, without labels or other samples";
    const WIRES: Wires = Wires::NONE;

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        let (sigma, lr, batch) = match parameters.preset {
            Preset::Vgg => (0.01, 3e-4, 128),
            Preset::VggClass => (0.5, 3e-4, 128),
            Preset::Vit => (0.5, 0.1, 128),
            Preset::VitSubClass => (1.5, 0.5, 64),
            Preset::VitClass => (0.8, 1.5, 128),
        };
        let checked = Checked {
            perturbations: parameters.perturbations.unwrap_or(25),
            sigma: parameters.sigma.unwrap_or(sigma),
            lr: parameters.lr.unwrap_or(lr),
            batch: parameters.batch.unwrap_or(batch),
            accumulate: parameters.accumulate,
        };
        check::at_least("perturbations", 1, checked.perturbations)?;
        check::positive("sigma", checked.sigma)?;
        check::not_negative("lr", checked.lr)?;
        check::at_least("batch", 1, checked.batch)?;
        Ok(checked)
    }

    fn unlearn(parameters: &Checked, task: &mut Task) -> anyhow::Result<Network> {
        let mut network = task.original()?;
        let before = accuracy(&network, &task.retain)?;
        let rows = task.streams.stream("shuffle").permutation(task.forget.len());
        let streams = &task.streams;
        let noise = |copy: usize, images: &Tensor| {
            let mut stream = streams.indexed("noise", copy as u64);
            let values = (0..images.elem_count()).map(|_| (parameters.sigma * f64::from(stream.normal())) as f32).collect();
            Tensor::from_vec(values, images.dims(), images.device())
        };
        smooth(&mut network, &task.forget, &rows, parameters, noise)?;
        let after = accuracy(&network, &task.retain)?;
        let percent = |share: f64| 100.0 * share;
        task.progress.note(&format!("accuracy on the retain samples: {:.2} % before, {:.2} % now", percent(before), percent(after)));
        Ok(network)
    }
}

/// One pass over the samples at `rows`, a step a batch; `noise` gives that of each copy of a batch, of its shape.
pub(crate) fn smooth(
    network: &mut Network,
    samples: &Samples,
    rows: &[usize],
    parameters: &Checked,
    noise: impl Fn(usize, &Tensor) -> dcu_nn::Result<Tensor>,
) -> anyhow::Result<()> {
    let (all, none) = (Trainable::all(network.graph()), Trainable::none());
    let mut earlier: Option<Gradients> = None;
    for (batch, rows) in rows.chunks(parameters.batch).enumerate() {
        let (images, _) = samples.batch(rows)?;
        let values = images.flatten_all()?;
        let (least, most) = (values.min(0)?, values.max(0)?);
        let logits = network.judge(&images, &all)?;
        let mut sum: Option<Tensor> = None;
        for copy in 0..parameters.perturbations {
            let noise = noise(batch * parameters.perturbations + copy, &images)?;
            let noisy = (&images + noise)?.broadcast_maximum(&least)?.broadcast_minimum(&most)?;
            let moved = norms(&(&logits - network.judge(&noisy, &none)?)?)?;
            let ratio = (moved / norms(&(noisy - &images)?)?)?.sum_all()?;
            sum = Some(match sum {
                Some(sum) => (sum + ratio)?,
                None => ratio,
            });
        }
        let loss = (sum.expect("one copy at least") / parameters.perturbations as f64)?;
        let gradient = network.backward(&loss, &all)?;
        let gradient = match earlier.take().filter(|_| parameters.accumulate) {
            Some(earlier) => earlier.plus(1.0, &gradient)?,
            None => gradient,
        };
        algebra::shift(network, -parameters.lr, &gradient)?;
        earlier = Some(gradient);
    }
    Ok(())
}

/// The Euclidean norm of each row, [N].
fn norms(rows: &Tensor) -> dcu_nn::Result<Tensor> {
    (rows.flatten_from(1)?.sqr()?.sum(1)? + EPSILON)?.sqrt()
}

fn accuracy(network: &Network, samples: &Samples) -> anyhow::Result<f64> {
    let judged = evaluate::judge(network, samples)?;
    judged.accuracy(samples.labels(), 0..samples.len()).ok_or_else(|| anyhow::anyhow!("there are no samples to judge by"))
}
