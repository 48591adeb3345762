//! `unlearn/random-k`: random weights get noise, and short training on the retain samples repairs what that broke. After the abstract of arXiv 2401.04385, since no code is
//! public; it is [`super::top_k`] with another choice of weights, each of which is chosen with the same probability, whatever the data.

use dcu_nn::{Network, Trainable};
use dcu_stage::Rejected;

use super::top_k::{Parameters, perturbed};
use crate::algebra;
use crate::frame::{Task, Unlearn};

pub(crate) struct RandomK;

impl Unlearn for RandomK {
    const NAME: &'static str = "random-k";
    const SUMMARY: &'static str = "Adds noise to random weights, and repairs on the retain samples";

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        parameters.checked()
    }

    fn unlearn(parameters: &Parameters, task: &mut Task) -> anyhow::Result<Network> {
        let network = task.original()?;
        let values = algebra::values(&network, &Trainable::all(network.graph()))?;
        let is_selected = |stream: &mut dcu_nn::rng::Stream| f32::from(u8::from(f64::from(stream.uniform()) < parameters.selected));
        let mask = algebra::drawn(&values, &task.streams, "mask", is_selected)?;
        perturbed(parameters, task, &mask)
    }
}
