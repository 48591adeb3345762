//! `train/import`: weights that PyTorch trained, as a state dict in safetensors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use dcu_artifact::{Dataset, Model, Tensor, digest_file};
use dcu_nn::train::{OptimiserName, Recipe, Schedule};
use dcu_nn::{Network, model};
use dcu_stage::{Context, External, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::network::{Name, Sizes, architecture, check_recipe, check_sizes, recipe_of_paper};

pub(crate) struct Import;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// The state dict, written with `safetensors.torch.save_file(model.state_dict(), ...)`.
    #[schemars(extend("x-location" = true))]
    path: Option<PathBuf>,
    /// The network. `cargo xtask inspect` on any model of that network lists the names and shapes that are needed.
    model: Name,
    /// Outputs of the hidden layers of an MLP, channels of the blocks of a CNN; by default the paper's.
    widths: Option<Vec<usize>>,
    /// Outputs of the hidden fully connected layer of a CNN; by default the paper's.
    hidden: Option<usize>,
    /// The probability of dropout in the final part of a CNN; by default the paper's.
    dropout: Option<f64>,
    /// Passes over the training set that the weights were trained for; retraining does the same.
    epochs: usize,
    /// Samples in a batch of that training.
    batch: usize,
    /// The learning rate of its first epoch.
    lr: f64,
    /// Its update rule.
    optimiser: OptimiserName,
    /// How much of the last step its SGD kept.
    momentum: f64,
    /// Its weight decay.
    weight_decay: f64,
    /// How its learning rate changed over the epochs.
    schedule: Schedule,
}

impl Default for Parameters {
    fn default() -> Self {
        let Recipe { epochs, batch, lr, optimiser, momentum, weight_decay, schedule } = recipe_of_paper();
        Self {
            path: None,
            model: Name::Cnn,
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

#[derive(Debug, Serialize)]
pub(crate) struct Checked {
    #[serde(skip)]
    path: PathBuf,
    model: Name,
    widths: Option<Vec<usize>>,
    hidden: Option<usize>,
    dropout: Option<f64>,
    recipe: Recipe,
}

impl Checked {
    fn sizes(&self) -> Sizes<'_> {
        Sizes { widths: self.widths.as_deref(), hidden: self.hidden, dropout: self.dropout }
    }
}

impl Method for Import {
    const NAME: &'static str = "import";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Takes over weights that PyTorch trained";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];
    const READS_FILES: bool = true;

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        let Parameters { path, model, widths, hidden, dropout, epochs, batch, lr, optimiser, momentum, weight_decay, schedule } =
            parameters;
        let path = path.ok_or_else(|| Rejected::parameter("path", "`path` must name a state dict in safetensors"))?;
        let recipe = Recipe { epochs, batch, lr, optimiser, momentum, weight_decay, schedule };
        check_recipe(&recipe)?;
        let checked = Checked { path, model, widths, hidden, dropout, recipe };
        check_sizes(checked.sizes())?;
        Ok(checked)
    }

    fn externals(parameters: &Checked) -> anyhow::Result<Vec<External>> {
        Ok(vec![External { name: "weights".into(), digest: Some(digest_file(&parameters.path)?) }])
    }

    fn run(parameters: &Checked, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        let architecture = architecture(parameters.model, parameters.sizes(), &dataset)?;
        let tensors = read_state_dict(&parameters.path)?;
        let network = Network::from_tensors(&architecture, &tensors).map_err(|error| {
            let message = format!("`{}` does not fit the network: {error}", parameters.path.display());
            Failure::new(message, "give the `model` and sizes of the network that was saved; the names are those of docs/artifacts.md")
        })?;
        context.write("model", &model::to_artifact(&network, &parameters.recipe, &dataset)?)
    }
}

fn read_state_dict(path: &PathBuf) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|error| {
        let remedy = "save it in PyTorch with `safetensors.torch.save_file(model.state_dict(), PATH)`";
        Failure::new(format!("`{}` is no safetensors file ({error})", path.display()), remedy)
    })?;
    file.iter()
        .map(|(name, view)| {
            let tensor = Tensor::from_bytes(view.dtype(), view.shape().to_vec(), view.data())
                .with_context(|| format!("`{name}` has the type {:?}; save the weights as 32-bit floats", view.dtype()))?;
            Ok((name.to_owned(), tensor))
        })
        .collect()
}
