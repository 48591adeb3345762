//! Ordinary training on the retain set by a recipe, from whatever weights.

use dcu_nn::Network;
use dcu_nn::recipe::Recipe;
use dcu_nn::train::Fit;
use dcu_stage::{Failure, Rejected, Snapshot};
use serde_json::json;

use crate::course::check;
use crate::frame::Task;

/// How long a training goes on that has a recipe of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    /// Passes over the retain set, in place of the recipe's.
    pub(crate) epochs: Option<usize>,
    /// Samples backward, as a share of retraining's, in place of both.
    pub(crate) budget: Option<f64>,
}

impl Length {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the parameter.
    pub(crate) fn check(self) -> Result<(), Rejected> {
        self.epochs.map_or(Ok(()), |epochs| check::at_least("epochs", 1, epochs))?;
        Rejected::unless(self.epochs.is_none() || self.budget.is_none(), "budget", "give `epochs` or `budget`, not both")?;
        check::budget(self.budget)
    }

    /// The recipe of that length, and the share of the retain rows that it is for: whole epochs, or a part of one.
    ///
    /// # Errors
    /// When the recipe does not work with so many epochs.
    pub(crate) fn of(self, recipe: &Recipe, task: &Task) -> anyhow::Result<(Recipe, f64)> {
        let (epochs, share) = match self.budget {
            Some(budget) => {
                let passes = budget * task.retraining()? as f64 / task.retain.len() as f64;
                (passes.floor().max(1.0) as usize, passes.min(1.0))
            }
            None => (self.epochs.unwrap_or(recipe.epochs), 1.0),
        };
        let recipe = Recipe { epochs, ..recipe.clone() };
        recipe.check().map_err(|(_, message)| {
            let message = format!("with {epochs} epochs the model's recipe does not work: {message}");
            Failure::new(message, "give more `epochs` or a larger `budget`, or none for those of the model's training")
        })?;
        Ok((recipe, share))
    }
}

/// Trains `network` on a share of the retain rows, drawn once, by `recipe`, with checkpoints.
///
/// # Errors
/// When the recipe needs validation samples that are not given, the training diverges or a checkpoint cannot be written.
pub(crate) fn fit(network: Network, (recipe, share): (&Recipe, f64), task: &mut Task) -> anyhow::Result<Network> {
    if share < 1.0 {
        let order = task.streams.stream("share").permutation(task.retain.len());
        let count = ((share * order.len() as f64).round() as usize).clamp(2.min(order.len()), order.len());
        task.retain = task.retain.select(&order[..count]);
    }
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
