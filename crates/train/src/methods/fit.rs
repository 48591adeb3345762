//! `train/fit`: a model from scratch.

use dcu_artifact::{Dataset, Model};
use dcu_nn::rng::Streams;
use dcu_nn::train::{self, OptimiserName, Recipe, Schedule};
use dcu_nn::{Family, Network, Samples, model};
use dcu_stage::{Context, Input, Method, Output, Rejected, Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::network::{Sizes, architecture, check_recipe, check_sizes, recipe_of_paper};

pub(crate) struct Fit;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// The network.
    model: Family,
    /// Outputs of the hidden layers of an MLP, channels of the blocks of a CNN; by default the paper's.
    widths: Option<Vec<usize>>,
    /// Outputs of the hidden fully connected layer of a CNN; by default the paper's.
    hidden: Option<usize>,
    /// The probability of dropout in the final part of a CNN; by default the paper's.
    dropout: Option<f64>,
    /// Passes over the training set.
    epochs: usize,
    /// Samples in a batch.
    batch: usize,
    /// The learning rate of the first epoch.
    lr: f64,
    /// The update rule.
    optimiser: OptimiserName,
    /// How much of the last step SGD keeps.
    momentum: f64,
    /// Weight decay, added to the gradient.
    weight_decay: f64,
    /// How the learning rate changes over the epochs.
    schedule: Schedule,
}

impl Default for Parameters {
    fn default() -> Self {
        let Recipe { epochs, batch, lr, optimiser, momentum, weight_decay, schedule } = recipe_of_paper();
        Self {
            model: Family::Cnn,
            widths: None,
            hidden: None,
            dropout: None,
            epochs,
            batch,
            lr,
            optimiser,
            momentum,
            weight_decay,
            schedule,
        }
    }
}

impl Parameters {
    fn recipe(&self) -> Recipe {
        let Self { epochs, batch, lr, optimiser, momentum, weight_decay, schedule, .. } = *self;
        Recipe { epochs, batch, lr, optimiser, momentum, weight_decay, schedule }
    }

    fn sizes(&self) -> Sizes<'_> {
        Sizes { widths: self.widths.as_deref(), hidden: self.hidden, dropout: self.dropout, ..Sizes::default() }
    }
}

impl Method for Fit {
    const NAME: &'static str = "fit";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Trains a network from scratch";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check_sizes(parameters.sizes())?;
        check_recipe(&parameters.recipe())?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        let architecture = architecture(parameters.model, parameters.sizes(), dataset.image_shape(), dataset.classes())?;
        let streams = Streams::new(context.seed(), "train/fit");
        let recipe = parameters.recipe();
        let samples = Samples::of_whole_dataset(&dataset);
        let mut fit = train::Fit::new(Network::initialised(&architecture, &streams)?, recipe.clone(), streams);
        let mut checkpoints = context.checkpoints();
        if let Some(snapshot) = checkpoints.resume() {
            fit.restore(serde_json::from_value(snapshot.position)?, snapshot.tensors)?;
        }
        context.progress().phase("training");
        while fit.next_epoch(&samples)?.is_some() {
            context.progress().step("epochs", fit.done(), recipe.epochs);
            checkpoints.offer(|| Ok(Snapshot { position: json!(fit.done()), tensors: fit.snapshot()? }))?;
        }
        context.write("model", &model::to_artifact(&fit.finish(), &recipe, &dataset)?)
    }
}
