//! `unlearn/finetune`: training goes on without the forget set, in the hope that it fades (also called catastrophic forgetting).

use dcu_artifact::{Dataset, Ensemble, Holdout, Model, Reduced, Request, Statistics};
use dcu_nn::model;
use dcu_nn::recipe::Recipe;
use dcu_nn::rng::Streams;
use dcu_stage::{Context, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fit::{cut_short, fit, retain_set};

pub(crate) struct Finetune;

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Passes over the retain set; by default as many as the base model was trained for.
    epochs: Option<usize>,
    /// The learning rate; by default the base model's.
    lr: Option<f64>,
}

impl Method for Finetune {
    const NAME: &'static str = "finetune";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Trains the original model on, on the retain set alone";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::one::<Model>("model"),
        Input::one::<Dataset>("dataset"),
        Input::one::<Request>("request"),
        Input::unused::<Reduced>("reduced"),
        Input::unused::<Ensemble>("ensemble"),
        Input::unused::<Statistics>("statistics"),
        Input::optional::<Dataset>("test"),
        Input::optional::<Holdout>("holdout"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.epochs != Some(0), "epochs", "`epochs` must be at least 1")?;
        Rejected::unless(parameters.lr.is_none_or(|lr| lr > 0.0 && lr.is_finite()), "lr", "`lr` must be positive")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let base: Model = context.read("model")?;
        let retain = retain_set(context, &base)?;
        let trained_by = model::recipe(&base)?;
        let recipe = Recipe { lr: parameters.lr.unwrap_or(trained_by.lr), ..cut_short(&trained_by, parameters.epochs)? };
        let streams = Streams::new(context.seed(), "unlearn/finetune");
        let network = fit(model::to_network(&base)?, &base, &retain, &recipe, streams, context)?;
        context.write("model", &model::with_facts_of(&network, &base)?)
    }
}
