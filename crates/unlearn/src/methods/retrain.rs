//! `unlearn/retrain`: training from scratch without the forget set, which is what every other method is judged by.

use dcu_artifact::{Dataset, Ensemble, Holdout, Model, Reduced, Request, RidgeHead, Statistics};
use dcu_nn::ridge::{self, Trunk};
use dcu_nn::rng::Streams;
use dcu_nn::{Network, Samples, model};
use dcu_stage::{Context, Input, Method, Output, Rejected};
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
    const SUMMARY: &'static str = "Trains from scratch on the retain set, by the base model's architecture and recipe, never its weights but those that the training set had no part in";
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
        Rejected::unless(parameters.replicate > 0, "replicate", "`replicate` counts from 1")?;
        Rejected::unless(parameters.epochs != Some(0), "epochs", "`epochs` must be at least 1")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let base: Model = context.read("model")?;
        let retain = retain_set(context, &base)?;
        // A trunk that never saw the training set is no part of what was trained.
        let is_trained = base.facts.ridge.as_ref().is_none_or(|ridge| ridge.trunk_saw_training_data);
        let trained = if is_trained { from_scratch(parameters, &base, &retain, context)? } else { base };
        let retrained = match &trained.facts.ridge {
            Some(RidgeHead { lambda, .. }) => solved_for(*lambda, &trained, &retain, context)?,
            None => trained,
        };
        context.write("model", &retrained)
    }
}

fn from_scratch(parameters: &Parameters, base: &Model, retain: &Samples, context: &mut Context) -> anyhow::Result<Model> {
    let streams = Streams::new(context.seed(), "unlearn/retrain").replicate(parameters.replicate);
    let fresh = Network::initialised(&model::architecture(base)?, &streams)?;
    let recipe = cut_short(&model::recipe(base)?, parameters.epochs)?;
    let network = fit(fresh, base, retain, &recipe, streams, context)?;
    Ok(model::with_facts_of(&network, base)?)
}

/// The model with a last layer that is solved for anew, from the retain set alone.
fn solved_for(lambda: f64, trained: &Model, retain: &Samples, context: &mut Context) -> anyhow::Result<Model> {
    context.progress().phase("features");
    let (dataset, request): (Dataset, Request) = (context.read("dataset")?, context.read("request")?);
    let trunk = Trunk::new(trained, false)?;
    let statistics = trunk.statistics(&dataset, retain, request.retain, lambda)?;
    Ok(trunk.with_head(trained, &ridge::solve(&statistics, lambda)?)?)
}
