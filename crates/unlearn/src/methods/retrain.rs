//! `unlearn/retrain`: training from scratch without the forget set, which is what every other method is judged by.

use dcu_artifact::{Dataset, Ensemble, Holdout, Model, Reduced, Request};
use dcu_nn::rng::Streams;
use dcu_nn::{Network, model};
use dcu_stage::{ChooseDevice, Context, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fit::{cut_short, fit, retain_set};

pub(crate) struct Retrain;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Another number gives an independent retraining with the same seed; the second is the null of the first.
    replicate: u32,
    /// Passes over the retain set; by default as many as the base model was trained for. Fewer are the control for what is said to be faster than retraining.
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<usize>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { replicate: 1, epochs: None }
    }
}

impl Method for Retrain {
    const NAME: &'static str = "retrain";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Trains from scratch on the retain set, by the base model's architecture and recipe, never its weights";
    const USES_SEED: bool = true;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[
        Input::one::<Model>("model"),
        Input::one::<Dataset>("dataset"),
        Input::one::<Request>("request"),
        Input::unused::<Reduced>("reduced"),
        Input::unused::<Ensemble>("ensemble"),
        Input::optional::<Dataset>("test"),
        Input::optional::<Holdout>("holdout"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.replicate > 0, "replicate", "`replicate` counts from 1")?;
        Rejected::unless(parameters.epochs != Some(0), "epochs", "`epochs` must be at least 1")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let base: Model = context.read("model")?;
        let retain = retain_set(context, &base)?;
        let streams = Streams::new(context.seed(), "unlearn/retrain").replicate(parameters.replicate);
        let fresh = Network::initialised(&model::architecture(&base)?, &streams)?;
        let recipe = cut_short(&model::recipe(&base)?, parameters.epochs)?;
        let network = fit(fresh, &base, &retain, &recipe, streams, context)?;
        context.write("model", &model::with_facts_of(&network, &base)?)
    }
}
