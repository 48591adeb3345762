//! Ordinary training on the retain set, from whatever weights.

use dcu_artifact::{Dataset, Holdout, Model, Request};
use dcu_nn::recipe::Recipe;
use dcu_nn::rng::Streams;
use dcu_nn::train::{self, Fit};
use dcu_nn::{Network, Samples, model};
use dcu_stage::{Context, Failure, Snapshot};
use serde_json::json;

/// The retain set of a request.
///
/// # Errors
/// When the dataset does not hold all of it, or does not fit the model.
pub(crate) fn retain_set(context: &mut Context, base: &Model) -> anyhow::Result<Samples> {
    let dataset: Dataset = context.read("dataset")?;
    let request: Request = context.read("request")?;
    model::check_fit(base, &dataset)?;
    Ok(Samples::of_ids(&dataset, &request.retain)?)
}

/// The validation samples of the classes that are left, for a recipe that needs them; without the others, which are not to be learnt.
fn validation(context: &mut Context, base: &Model, retain: &Samples) -> anyhow::Result<Samples> {
    let (test, holdout) = (context.read_optional::<Dataset>("test")?, context.read_optional::<Holdout>("holdout")?);
    let (Some(test), Some(holdout)) = (test, holdout) else {
        let message = "the model's recipe stops or chooses by validation samples, which needs the inputs `test` and `holdout`";
        return Err(Failure::new(message, "add `test: data.test, holdout: holdout` to the stage's `in:`").into());
    };
    model::check_fit(base, &test)?;
    Ok(train::validation_samples(&test, &holdout, Some(retain.labels()))?)
}

/// A recipe with so many epochs, where they are given.
///
/// # Errors
/// When the recipe does not work with these.
pub(crate) fn cut_short(recipe: &Recipe, epochs: Option<usize>) -> anyhow::Result<Recipe> {
    let recipe = Recipe { epochs: epochs.unwrap_or(recipe.epochs), ..recipe.clone() };
    recipe.check().map_err(|(_, message)| {
        let message = format!("with the given `epochs` the model's recipe does not work: {message}");
        Failure::new(message, "give more `epochs`, or none for those of the model's training")
    })?;
    Ok(recipe)
}

/// Trains `network` on the retain set by `recipe`, with checkpoints.
///
/// # Errors
/// When the recipe needs validation samples that are not given, the training diverges or a checkpoint cannot be written.
pub(crate) fn fit(
    network: Network,
    base: &Model,
    retain: &Samples,
    recipe: &Recipe,
    streams: Streams,
    context: &mut Context,
) -> anyhow::Result<Network> {
    let validation = if recipe.needs_validation() { Some(validation(context, base, retain)?) } else { None };
    let mut fit = Fit::new(network, recipe.clone(), streams).validated_on(validation);
    let mut checkpoints = context.checkpoints();
    if let Some(snapshot) = checkpoints.resume() {
        fit.restore(serde_json::from_value(snapshot.position)?, snapshot.tensors)?;
    }
    context.progress().phase("training");
    while fit.next_epoch(retain)?.is_some() {
        context.progress().step("epochs", fit.done(), recipe.epochs);
        checkpoints.offer(|| Ok(Snapshot { position: json!(fit.done()), tensors: fit.snapshot()? }))?;
    }
    Ok(fit.finish())
}
