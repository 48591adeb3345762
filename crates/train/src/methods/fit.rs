//! `train/fit`: a model from scratch.

use std::collections::HashSet;

use dcu_artifact::{Dataset, Holdout, Model, Retain, SampleId};
use dcu_nn::recipe::Recipe;
use dcu_nn::rng::Streams;
use dcu_nn::{Network, Samples, model, train};
use dcu_stage::{ChooseDevice, Context, Failure, Input, Method, Output, Rejected, Snapshot};
use serde::Serialize;
use serde_json::json;

use crate::network::Chosen;
use crate::recipe::with_training;

pub(crate) struct Fit;

with_training! {
    pub(crate) struct Parameters {
        /// Another number gives an independent training with the same seed.
        replicate: u32 = 1,
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    #[serde(flatten)]
    network: Chosen,
    #[serde(flatten)]
    recipe: Recipe,
    #[serde(skip_serializing_if = "is_first")]
    replicate: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_first(replicate: &u32) -> bool {
    *replicate == 1
}

impl Method for Fit {
    const NAME: &'static str = "fit";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Trains a network from scratch, on a dataset or on rows in its place (`retain`)";
    const USES_SEED: bool = true;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::optional::<Retain>("retain"),
        Input::optional::<Dataset>("test"),
        Input::optional::<Holdout>("holdout"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        Rejected::unless(parameters.replicate > 0, "replicate", "`replicate` counts from 1")?;
        Ok(Checked { network: parameters.network()?, recipe: parameters.recipe()?, replicate: parameters.replicate })
    }

    fn run(parameters: &Checked, context: &mut Context) -> anyhow::Result<()> {
        let recipe = &parameters.recipe;
        let dataset: Dataset = context.read("dataset")?;
        let architecture = parameters.network.architecture(dataset.image_shape(), dataset.classes())?;
        let streams = Streams::new(context.seed(), "train/fit").replicate(parameters.replicate);
        let samples = match context.read_optional::<Retain>("retain")? {
            Some(retain) => Samples::of_retain(&dataset, &retain)?,
            None => Samples::of_whole_dataset(&dataset),
        };
        let validation = if recipe.needs_validation() { Some(validation(context, &dataset)?) } else { None };
        let network = Network::initialised(&architecture, &streams)?;
        let mut fit = train::Fit::new(network, recipe.clone(), streams).validated_on(validation);
        let mut checkpoints = context.checkpoints();
        if let Some(snapshot) = checkpoints.resume() {
            fit.restore(serde_json::from_value(snapshot.position)?, snapshot.tensors)?;
        }
        context.progress().phase("training");
        while fit.next_epoch(&samples)?.is_some() {
            context.progress().step("epochs", fit.done(), recipe.epochs);
            checkpoints.offer(|| Ok(Snapshot { position: json!(fit.done()), tensors: fit.snapshot()? }))?;
        }
        context.write("model", &model::to_artifact(&fit.finish(), recipe, &dataset)?)
    }
}

/// The validation samples, for a recipe that needs them.
pub(super) fn validation(context: &mut Context, dataset: &Dataset) -> anyhow::Result<Samples> {
    let (test, holdout) = (context.read_optional::<Dataset>("test")?, context.read_optional::<Holdout>("holdout")?);
    let (Some(test), Some(holdout)) = (test, holdout) else {
        let message = "with `patience` or `keep: best` the training needs validation samples, and so the inputs `test` and `holdout`";
        let remedy = "add `test: data.test, holdout: holdout` to the stage's `in:`, and give `data/holdout` a `validation_per_class`";
        return Err(Failure::new(message, remedy).into());
    };
    let kind = |one: &Dataset| (one.image_shape(), one.classes(), one.facts.normalisation.clone());
    if kind(&test) != kind(dataset) {
        let message = "the images of `test` have another size, other classes or another normalisation than those that are trained on";
        return Err(Failure::new(message, "connect `dataset` and `test` to the parts of one source").into());
    }
    let trained: HashSet<u64> = dataset.ids.iter().copied().collect();
    if let Some(id) = holdout.validation.iter().find(|id| trained.contains(id)) {
        let message = format!("the validation sample {} is among those that are trained on", SampleId(*id));
        return Err(Failure::new(message, "make the holdout from the same training set").into());
    }
    Ok(train::validation_samples(&test, &holdout, None)?)
}
