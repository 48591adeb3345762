//! Ordinary training on the retain set, from whatever weights.

use dcu_artifact::{Dataset, Model, Request};
use dcu_nn::rng::Streams;
use dcu_nn::train::{Fit, Recipe};
use dcu_nn::{Network, Samples, model};
use dcu_stage::{Context, Snapshot};
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

/// Trains `network` on `samples` by `recipe`, with checkpoints.
///
/// # Errors
/// When the training diverges or a checkpoint cannot be written.
pub(crate) fn fit(network: Network, samples: &Samples, recipe: &Recipe, streams: Streams, context: &Context) -> anyhow::Result<Network> {
    let mut fit = Fit::new(network, recipe.clone(), streams);
    let mut checkpoints = context.checkpoints();
    if let Some(snapshot) = checkpoints.resume() {
        fit.restore(serde_json::from_value(snapshot.position)?, snapshot.tensors)?;
    }
    context.progress().phase("training");
    while fit.next_epoch(samples)?.is_some() {
        context.progress().step("epochs", fit.done(), recipe.epochs);
        checkpoints.offer(|| Ok(Snapshot { position: json!(fit.done()), tensors: fit.snapshot()? }))?;
    }
    Ok(fit.finish())
}
