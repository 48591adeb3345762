//! `unlearn/influence`: the weights move by what influence functions say that some samples did to them (Koh and Liang, arXiv 1703.04730), or that the wrong labels of these did
//! (Warnecke et al., arXiv 2108.11577).
//!
//! With `Δ` the summed gradient of the corrected samples, if there are any, less that of the forget samples, the first order is `θ - strength · Δ`, and the second
//! `θ - strength · (H + damping · I)⁻¹ Δ / N`, where H is the Hessian of the mean loss of all N samples, those of before the change. Conjugate gradients solve it.
//!
//! Its traps: sums or means decide what a rate means; of a network that is not at a minimum H is not positive definite, which takes a damping above its least eigenvalue;
//! for a tenth of the data or more a step is too long to be linear. For the last layer alone the loss is convex and the products are exact: that is the default.

use dcu_artifact::Array;
use dcu_nn::derivatives::{Curvature, conjugate_gradients};
use dcu_nn::network::all;
use dcu_nn::{DType, Gradients, Mode, Network, Place, Samples, Tensor, Trainable};
use dcu_stage::{Failure, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ntk::Scope;
use crate::algebra;
use crate::course::check;
use crate::frame::{Task, Unlearn};
use crate::head::Head;
use crate::targets::one_hot;

/// Samples whose curvature is taken at once.
const AT_ONCE: usize = 256;

pub(crate) struct Influence;

/// How far the expansion of the loss goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// A step up the gradient of the forget samples.
    First,
    /// The same by the inverse of the curvature.
    Second,
}

/// What is to be in the forget samples' place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Instead {
    /// Nothing.
    Remove,
    /// The same samples with the labels that they had before they were poisoned. That is repair, not deletion.
    Relabel,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How far the expansion of the loss goes.
    order: Order,
    /// Which parameters move.
    parameters: Scope,
    /// What is to be in the forget samples' place.
    instead: Instead,
    /// How much of the step is taken: by default 2e-5 of a sum of gradients in the first order, as published, and all of it in the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
    /// Added to the diagonal of the Hessian of the mean loss.
    damping: f64,
    /// Steps of conjugate gradients at most.
    steps: usize,
    /// What may be left of the right side, as a share of its norm.
    tolerance: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            order: Order::Second,
            parameters: Scope::Head,
            instead: Instead::Remove,
            strength: None,
            damping: 1e-3,
            steps: 100,
            tolerance: 1e-6,
        }
    }
}

impl Unlearn for Influence {
    const NAME: &'static str = "influence";
    const SUMMARY: &'static str =
        "Takes back what influence functions say that the forget samples, or their wrong labels, did to the weights";
    const USES_SEED: bool = false;

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.strength.map_or(Ok(()), |strength| check::positive("strength", strength))?;
        check::not_negative("damping", parameters.damping)?;
        check::at_least("steps", 1, parameters.steps)?;
        check::positive("tolerance", parameters.tolerance)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let mut network = task.original()?;
        let corrected = match parameters.instead {
            Instead::Remove => None,
            Instead::Relabel => Some(corrected(task)?),
        };
        let together = Samples::joined(&[&task.retain, &task.forget])?;
        let whole = match parameters.parameters {
            Scope::Head => {
                let head = Head::read(&network, &together)?;
                Whole::Head { said: head.probabilities(), head: Box::new(head) }
            }
            Scope::All => Whole::Network(Box::new(network.moved_to(Place { dtype: DType::F64, ..network.place().clone() })?)),
        };
        let change = whole.change(&network, task, corrected.as_ref())?;
        if parameters.order == Order::First {
            algebra::shift(&mut network, -parameters.strength.unwrap_or(2e-5), &change)?;
            return Ok(network);
        }
        let count = together.len() as f64;
        let solved = conjugate_gradients(
            |direction| whole.product(&together, direction),
            &change.scaled(1.0 / count)?,
            parameters.damping,
            parameters.tolerance,
            parameters.steps,
        )?;
        let (steps, residual) = (solved.steps, solved.residual);
        task.progress.note(&format!("conjugate gradients left {residual:.1e} of the right side in {steps} steps"));
        algebra::shift(&mut network, -parameters.strength.unwrap_or(1.0), &solved.solution)?;
        Ok(network)
    }
}

/// The forget samples with the labels that they had before they were poisoned.
fn corrected(task: &Task) -> anyhow::Result<Samples> {
    let Some(labels) = &task.dataset.original_labels else {
        return Err(Failure::new(
            "the dataset has no labels of before poisoning to correct to",
            "use `instead: remove`, or a dataset of `data/poison`",
        )
        .into());
    };
    let (rows, classes) = (task.rows_of(&task.forgotten())?, task.dataset.classes());
    let targets = rows.iter().flat_map(|&row| one_hot(labels[row], classes)).collect();
    Ok(task.forget.clone().with_targets(Array::new(vec![rows.len(), classes], targets))?)
}

/// The loss as a function of what moves.
enum Whole {
    /// All samples as the last layer reads them, and what it says of them.
    Head { head: Box<Head>, said: Vec<f64> },
    /// The network in f64.
    Network(Box<Network>),
}

impl Whole {
    /// The summed gradient of the corrected samples less that of the forget samples.
    fn change(&self, network: &Network, task: &Task, corrected: Option<&Samples>) -> anyhow::Result<Gradients> {
        let gradient = |samples: &Samples| match self {
            Self::Head { .. } => {
                let head = Head::read(network, samples)?;
                head.split(head.gradient(&samples.probabilities(head.classes)))
            }
            Self::Network(network) => algebra::gradient(network, samples),
        };
        let of_forget = gradient(&task.forget)?.scaled(-1.0)?;
        corrected.map_or(Ok(of_forget.clone()), |corrected| Ok(gradient(corrected)?.plus(1.0, &of_forget)?))
    }

    /// The product of the Hessian of the mean loss of all samples with a direction.
    fn product(&self, samples: &Samples, direction: &Gradients) -> dcu_nn::Result<Gradients> {
        let count = samples.len() as f64;
        let network = match self {
            Self::Head { head, said } => {
                let image = head.curvature(said, &head.joined(direction)?);
                return head.split(image).map_err(dcu_nn::Error::wrap)?.scaled(1.0 / count);
            }
            Self::Network(network) => network,
        };
        let (trainable, rows) = (Trainable::all(network.graph()), (0..samples.len()).collect::<Vec<_>>());
        let mut sum: Option<Gradients> = None;
        for rows in rows.chunks(AT_ONCE) {
            let (images, _) = samples.batch(rows)?;
            let loss = |logits: &Tensor, places: &[usize]| {
                let rows: Vec<usize> = places.iter().map(|&place| rows[place]).collect();
                samples.loss(logits, &rows, 0.0)? * (rows.len() as f64 / count)
            };
            let image = Curvature::new(network, &images, &loss, &trainable, all(Mode::EVAL))?.product(direction)?;
            sum = Some(match sum {
                Some(sum) => sum.plus(1.0, &image)?,
                None => image,
            });
        }
        Ok(sum.unwrap_or_default())
    }
}
