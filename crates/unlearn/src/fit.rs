//! Ordinary training on the retain set by a recipe, from whatever weights.

use dcu_nn::Network;
use dcu_nn::recipe::Recipe;
use dcu_nn::train::Fit;
use dcu_stage::{Failure, Snapshot};
use serde_json::json;

use crate::frame::Task;

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
pub(crate) fn fit(network: Network, recipe: &Recipe, task: &mut Task) -> anyhow::Result<Network> {
    let why = "the model's recipe stops or chooses by validation samples";
    let validation = if recipe.needs_validation() { Some(task.validation(why)?) } else { None };
    let mut fit = Fit::new(network, recipe.clone(), task.streams.clone()).validated_on(validation);
    if let Some(snapshot) = task.checkpoints.as_ref().and_then(dcu_stage::Checkpoints::resume) {
        fit.restore(serde_json::from_value(snapshot.position)?, snapshot.tensors)?;
    }
    task.progress.phase("training");
    while fit.next_epoch(&task.retain)?.is_some() {
        task.progress.step("epochs", fit.done(), recipe.epochs);
        if let Some(checkpoints) = &mut task.checkpoints {
            checkpoints.offer(|| Ok(Snapshot { position: json!(fit.done()), tensors: fit.snapshot()? }))?;
        }
    }
    Ok(fit.finish())
}
