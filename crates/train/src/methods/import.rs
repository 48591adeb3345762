//! `train/import`: weights that PyTorch trained, as a state dict in safetensors.
//!
//! The names are those of the networks below, written in PyTorch; a saved `num_batches_tracked` may be left out.
//!
//! ```python
//! class MLP(nn.Module):                                    # linear1, linear2, ...: widths, then the classes
//!     def __init__(self, inputs, classes, widths=(512, 128)):
//!         super().__init__()
//!         sizes = [inputs, *widths, classes]
//!         for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
//!             setattr(self, f"linear{i + 1}", nn.Linear(a, b))
//!
//! class CNN(nn.Module):                                    # features.0, .1, .4, .5, .8, .9, ...; classifier.0, .3
//!     def __init__(self, channels, height, width, classes, widths=(32, 64, 128, 256), hidden=1024):
//!         super().__init__()
//!         blocks, last = [], channels
//!         for outputs in widths:
//!             blocks += [nn.Conv2d(last, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
//!             last, height, width = outputs, height // 2, width // 2
//!         self.features = nn.Sequential(*blocks)
//!         self.classifier = nn.Sequential(nn.Linear(last * height * width, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes))
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dcu_artifact::{Array, Dataset, Model, Tensor, digest_file};
use dcu_nn::recipe::Recipe;
use dcu_nn::{Network, model};
use dcu_stage::{Context, External, Failure, Input, Method, Output, Rejected};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use crate::network::{Name, Sizes, architecture, check_sizes};
use crate::recipe::with_recipe;

pub(crate) struct Import;

with_recipe! {
    pub(crate) struct Parameters {
        /// The state dict, written with `safetensors.torch.save_file(model.state_dict(), ...)`. Weights of 64 or 16 bits become 32-bit ones.
        #[schemars(extend("x-location" = true))]
        path: Option<PathBuf> = None,
        /// The network. An `mlp` has `linear1`, `linear2`, ... with `.weight` and `.bias` each: one for each of `widths`, then one for the classes. A
        /// `cnn` has for its blocks the convolutions `features.0`, `features.4`, `features.8`, ... with `.weight` and `.bias` and the batch
        /// normalisations `features.1`, `features.5`, `features.9`, ... with `.weight`, `.bias`, `.running_mean`, `.running_var`; then `classifier.0`
        /// and `classifier.3` with `.weight` and `.bias`. `num_batches_tracked` may be left out.
        model: Name = Name::Cnn,
        /// Outputs of the hidden layers of an MLP, channels of the blocks of a CNN; by default the paper's.
        widths: Option<Vec<usize>> = None,
        /// Outputs of the hidden fully connected layer of a CNN; by default the paper's.
        hidden: Option<usize> = None,
        /// The probability of dropout in the final part of a CNN; by default the paper's.
        dropout: Option<f64> = None,
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
    const SUMMARY: &'static str = "Takes over weights that PyTorch trained; remembrance and test must be data that they never saw";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        let recipe = parameters.recipe()?;
        let Parameters { path, model, widths, hidden, dropout, .. } = parameters;
        let path = path.ok_or_else(|| Rejected::parameter("path", "`path` must name a state dict in safetensors"))?;
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
        let (tensors, converted) = read_state_dict(&parameters.path)?;
        model::check_tensors(&architecture, &tensors).map_err(|reason| {
            let message = format!("`{}` does not fit the network:\n  {reason}", parameters.path.display());
            let remedy = "give the `model`, `widths` and `hidden` of the network that was saved, and rename its tensors where they are called otherwise: \
                          `cargo xtask list train/import` says the names under `model`";
            Failure::new(message, remedy)
        })?;
        if let Some(note) = converted {
            context.progress().note(&note);
        }
        context.progress().note(
            "remembrance and test set must be data that these weights never saw, in training or in the choice of anything: with seen data the offline \
             phase, the test accuracy and the attack mean nothing",
        );
        let network = Network::from_tensors(&architecture, &tensors)?;
        context.write("model", &model::to_artifact(&network, &parameters.recipe, &dataset)?)
    }
}

/// The tensors, floating-point numbers of any width as 32-bit ones, and a note where some were converted.
fn read_state_dict(path: &Path) -> anyhow::Result<(BTreeMap<String, Tensor>, Option<String>)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        let remedy = "save it in PyTorch with `safetensors.torch.save_file(model.state_dict(), PATH)`";
        Failure::new(format!("`{}` is no safetensors file ({error})", path.display()), remedy)
    })?;
    let (mut tensors, mut converted) = (BTreeMap::new(), BTreeMap::<String, usize>::new());
    for (name, view) in file.iter() {
        let tensor = match single(&view) {
            Some(values) => {
                *converted.entry(format!("{:?}", view.dtype())).or_default() += 1;
                Some(Tensor::F32(Array::new(view.shape().to_vec(), values)))
            }
            None => Tensor::from_bytes(view.dtype(), view.shape().to_vec(), view.data()),
        };
        let tensor = tensor.ok_or_else(|| {
            let message = format!("`{name}` in `{}` has the type {:?}", path.display(), view.dtype());
            Failure::new(message, "save the weights as floating-point numbers, such as `model.float().state_dict()`")
        })?;
        tensors.insert(name.to_owned(), tensor);
    }
    let counted: Vec<String> = converted.into_iter().map(|(dtype, count)| format!("{count} of {dtype}")).collect();
    let note = (!counted.is_empty()).then(|| format!("tensors were converted to 32-bit floating-point numbers: {}", counted.join(", ")));
    Ok((tensors, note))
}

/// The values of floating-point numbers of another width, rounded to 32 bits; none for other types.
fn single(view: &TensorView<'_>) -> Option<Vec<f32>> {
    fn each<const WIDTH: usize>(bytes: &[u8], value: impl Fn([u8; WIDTH]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<WIDTH>().0.iter().map(|bytes| value(*bytes)).collect()
    }
    match view.dtype() {
        Dtype::F64 => Some(each(view.data(), |bytes| f64::from_le_bytes(bytes) as f32)),
        Dtype::F16 => Some(each(view.data(), |bytes| half::f16::from_le_bytes(bytes).to_f32())),
        Dtype::BF16 => Some(each(view.data(), |bytes| half::bf16::from_le_bytes(bytes).to_f32())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_any_width_become_32_bit_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let values = [1.5_f32, -0.25, 3.0];
        let bytes = |dtype| -> Vec<u8> {
            let value = |value: f32| match dtype {
                Dtype::F64 => f64::from(value).to_le_bytes().to_vec(),
                Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                _ => value.to_le_bytes().to_vec(),
            };
            values.into_iter().flat_map(value).collect()
        };
        let save = |dtype, shape: usize, bytes: &[u8]| {
            let view = TensorView::new(dtype, vec![shape], bytes).unwrap();
            std::fs::write(&path, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
        };
        for dtype in [Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::F32] {
            save(dtype, 3, &bytes(dtype));
            let (tensors, note) = read_state_dict(&path).unwrap();
            assert_eq!(tensors["w"], Tensor::F32(Array::vector(values.to_vec())), "{dtype:?}");
            assert_eq!(note.is_some_and(|note| note.contains(&format!("1 of {dtype:?}"))), dtype != Dtype::F32);
        }
        save(Dtype::BOOL, 1, &[1]);
        assert!(read_state_dict(&path).unwrap_err().to_string().contains("has the type BOOL"));
    }
}
