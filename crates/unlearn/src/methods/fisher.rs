//! `unlearn/fisher`: Fisher forgetting (Golatkar et al., arXiv 1911.04933), as arXiv 2402.00195 compares with it. Each parameter gets noise, the more, the less it matters for
//! the retain samples.
//!
//! How much it matters is the diagonal of the Fisher information, `F = mean_x Σ_y p_y(x) (∂ cross-entropy_y)²` with the network's own probabilities, sample by sample. The
//! noise has the variance `alpha · min((F + 1e-8)^(-2 exponent), most)`, with 1e2 for `most` in the last layer and 1e3 elsewhere, averaged over the second dimension where there is one; in
//! the last layer, and for what has one dimension alone, it is ten times as large.
//!
//! Its traps: an exponent of 1/2 is that of the published code, of 1/4 that of the paper; as many passes backward as there are classes; running averages are no parameters
//! and stay; published code has taken the last layer for whatever has as many rows as there are classes, or set all of it to 0.

use dcu_nn::derivatives::sum_of_squares;
use dcu_nn::network::all;
use dcu_nn::{Gradients, Mode, Network, Samples, Tensor, Trainable, evaluate, ops};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algebra;
use crate::course::check;
use crate::frame::{Task, Unlearn};
use crate::targets::probabilities;

/// Samples whose images are held at once.
const AT_ONCE: usize = 256;
/// The variance, before it is multiplied, of the rows of classes that are forgotten whole.
const VARIANCE_OF_CLEARED: f64 = 1e-4;

pub(crate) struct Fisher;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How much noise there is: the factor of its variance.
    alpha: f64,
    /// To which power the standard deviation falls with the Fisher information: 0.5 as in the published code, 0.25 as in the paper.
    exponent: f64,
    /// The share of the retain set of which the information is taken, drawn at random.
    share: f64,
    /// Samples backward, as a share of retraining's; each sample goes backward once a class. Where it is given, `share` follows from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// Whether the last layer's rows of classes that are forgotten whole become noise, of the variance 1e-4, as in arXiv 2507.09786.
    clear_classes: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { alpha: 1e-6, exponent: 0.5, share: 1.0, budget: None, clear_classes: false }
    }
}

impl Unlearn for Fisher {
    const NAME: &'static str = "fisher";
    const SUMMARY: &'static str = "Adds noise to each parameter, the more, the less it matters for the retain samples";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::not_negative("alpha", parameters.alpha)?;
        check::not_negative("exponent", parameters.exponent)?;
        check::share("share", parameters.share)?;
        Rejected::unless(parameters.share > 0.0, "share", "`share` must be above 0: without samples there is no information")?;
        check::budget(parameters.budget)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let mut network = task.original()?;
        let (count, classes) = (task.retain.len(), task.dataset.classes());
        let share = task.length(parameters.budget, (1, parameters.share), [0.0, classes as f64], [0, count])?.1;
        let mut rows = task.streams.stream("draw").permutation(count);
        rows.truncate(((share * count as f64).round() as usize).max(1));
        rows.sort_unstable();
        let information = information(&network, &task.retain, &rows)?;
        let noise = algebra::drawn(&information, &task.streams, "noise", dcu_nn::rng::Stream::normal)?;
        let cleared = if parameters.clear_classes { task.classes_gone() } else { Vec::new() };
        perturb(&mut network, &information, &noise, parameters, &cleared)?;
        Ok(network)
    }
}

/// The diagonal of the Fisher information of the samples at `rows`.
pub(crate) fn information(network: &Network, samples: &Samples, rows: &[usize]) -> anyhow::Result<Gradients> {
    let trainable = Trainable::all(network.graph());
    let said = probabilities(&evaluate::judge(network, samples)?.logits, &[]);
    let mut sum: Option<Gradients> = None;
    for rows in rows.chunks(AT_ONCE) {
        let (images, _) = samples.batch(rows)?;
        for class in 0..said.row_len() {
            let loss = |logits: &Tensor, places: &[usize]| {
                let of_class = f64::from(said.row(rows[places[0]])[class]);
                ops::cross_entropy(logits, &[class as u32])? * of_class.sqrt()
            };
            let squares = sum_of_squares(network, &images, &loss, &trainable, all(Mode::EVAL))?;
            sum = Some(match sum {
                Some(sum) => sum.plus(1.0, &squares)?,
                None => squares,
            });
        }
    }
    let sum = sum.ok_or_else(|| anyhow::anyhow!("there are no retain samples to take the Fisher information of"))?;
    Ok(sum.scaled(1.0 / rows.len() as f64)?)
}

/// Adds standard normal `noise`, scaled by what the information says. The rows of the last layer for `cleared` classes become noise alone.
pub(crate) fn perturb(
    network: &mut Network,
    information: &Gradients,
    noise: &Gradients,
    parameters: &Parameters,
    cleared: &[u32],
) -> anyhow::Result<()> {
    let values = algebra::values(network, &Trainable::all(network.graph()))?;
    let head: Vec<String> = network.graph().head().into_iter().flat_map(|step| &step.slots).map(|slot| slot.name.clone()).collect();
    let perturbed = values.map(|name, value| {
        let (information, noise) = (information.get(name).expect("of this network"), noise.get(name).expect("of this network"));
        let is_head = head.iter().any(|other| other == name);
        let most = if is_head { 1e2 } else { 1e3 };
        let mut variance = ((information + 1e-8)?.powf(-2.0 * parameters.exponent)?.minimum(most)? * parameters.alpha)?;
        if value.rank() > 1 {
            variance = variance.mean_keepdim(1)?.broadcast_as(value.dims())?;
        }
        let mut centre = value.clone();
        if is_head {
            let kept: Vec<f32> = (0..value.dim(0)?).map(|row| f32::from(u8::from(!cleared.contains(&(row as u32))))).collect();
            let shape: Vec<usize> = (0..value.rank()).map(|axis| if axis == 0 { kept.len() } else { 1 }).collect();
            let kept = Tensor::from_vec(kept, shape, value.device())?.broadcast_as(value.dims())?;
            let gone = (kept.neg()? + 1.0)?;
            variance = ((variance * &kept)? + (gone * VARIANCE_OF_CLEARED)?)?;
            centre = (centre * kept)?;
        }
        let factor = if is_head || value.rank() == 1 { 10.0 } else { 1.0 };
        centre + ((variance * factor)?.sqrt()? * noise)?
    })?;
    Ok(network.set(&perturbed)?)
}
