//! `unlearn/woodfisher`: influence unlearning by a recursion of rank-one terms, as in Jia et al. (arXiv 2304.04934), after WoodFisher (Singh and Alistarh, arXiv 2004.14340).
//!
//! With n samples, k of them to be forgotten, the right side is `v = (Σ_forget ∇)/n - k/n · mean_retain ∇`. `q` starts at v and `o` at the first sample's gradient; every
//! further gradient g of so many retain samples N takes `(q·g)/(N + o·g) · o` off q and `(o·g)/(N + o·g) · o` off o; the weights move by `alpha · q`.
//!
//! Its traps: `o` is never started anew from a sample's gradient, as the recursion of an inverse would have it, so that it keeps its direction, and q is v less a multiple of the first
//! gradient: what is published as second order is of first order but for one direction. And all depends on `alpha`.

use dcu_nn::derivatives::per_sample;
use dcu_nn::network::all;
use dcu_nn::{Gradients, Mode, Network, Samples, Tensor, Trainable};
use dcu_stage::Rejected;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algebra;
use crate::course::check;
use crate::frame::{Task, Unlearn};

/// Samples whose gradients are held at once.
const AT_ONCE: usize = 8;

pub(crate) struct WoodFisher;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How far the weights move.
    alpha: f64,
    /// Retain samples whose gradients are taken one by one, at random; all, where there are fewer. Also the N of the recursion.
    samples: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { alpha: 0.2, samples: 1000 }
    }
}

impl Unlearn for WoodFisher {
    const NAME: &'static str = "woodfisher";
    const SUMMARY: &'static str = "Moves the weights up the forget samples' gradient, bent by a recursion over single retain samples";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::positive("alpha", parameters.alpha)?;
        check::at_least("samples", 1, parameters.samples)?;
        Ok(parameters)
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let mut rows = task.streams.stream("draw").permutation(task.retain.len());
        rows.truncate(parameters.samples);
        moved(parameters, task, &rows)
    }
}

/// The original network after the recursion over these retain samples in this order.
pub(crate) fn moved(parameters: &Parameters, task: &Task, rows: &[usize]) -> anyhow::Result<Network> {
    let mut network = task.original()?;
    let (forget, retain) = (task.forget.len() as f64, task.retain.len() as f64);
    let of_forget = algebra::gradient(&network, &task.forget)?.scaled(1.0 / (forget + retain))?;
    let of_retain = algebra::gradient(&network, &task.retain)?;
    let mut moving = of_forget.plus(-forget / ((forget + retain) * retain), &of_retain)?;
    let mut other: Option<Gradients> = None;
    for_each_sample(&network, &task.retain, rows, |gradient| {
        other = Some(match other.take() {
            None => gradient,
            Some(other) => {
                let along = other.dot(&gradient)?;
                let divisor = parameters.samples as f64 + along;
                moving = moving.plus(-moving.dot(&gradient)? / divisor, &other)?;
                other.scaled(1.0 - along / divisor)?
            }
        });
        Ok(())
    })?;
    algebra::shift(&mut network, parameters.alpha, &moving)?;
    Ok(network)
}

fn for_each_sample(
    network: &Network,
    samples: &Samples,
    rows: &[usize],
    mut take: impl FnMut(Gradients) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let trainable = Trainable::all(network.graph());
    for rows in rows.chunks(AT_ONCE) {
        let loss = |logits: &Tensor, places: &[usize]| samples.loss(logits, &[rows[places[0]]], 0.0);
        let gradients = per_sample(network, &samples.batch(rows)?.0, &loss, &trainable, all(Mode::EVAL))?;
        for place in 0..rows.len() {
            take(gradients.map(|_, tensor| tensor.get(place)?.copy())?)?;
        }
    }
    Ok(())
}
