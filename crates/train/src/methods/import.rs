//! `train/import`: weights that PyTorch trained, as a state dict in safetensors or as `torch.save` writes it, from a file or from the Hugging Face hub.
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

mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::path::PathBuf;

use dcu_artifact::{Dataset, Model, Normalisation, Tensor, digest_bytes, digest_file};
use dcu_nn::graph::Step;
use dcu_nn::recipe::Recipe;
use dcu_nn::rng::Streams;
use dcu_nn::{Network, model, network};
use dcu_stage::{Context, External, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::hub::{Hub, Place};
use crate::network::Chosen;
use crate::recipe::with_training;

/// The method, with the way to the hub that its program has.
#[derive(Debug)]
pub struct Import<H>(PhantomData<H>);

/// What becomes of a head for another number of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Head {
    /// It is refused.
    Refuse,
    /// Of its outputs those that `outputs` names are kept, one for each class of the dataset.
    Keep,
    /// A new one for the dataset's classes takes its place, drawn at random and not trained.
    New,
}

/// What the pixels became numbers by in the training of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Normalised {
    /// As in the dataset; nothing is checked.
    Dataset,
    /// ImageNet's mean and deviation, as nearly all of torchvision's and timm's weights.
    Imagenet,
    /// Mean and deviation of 0.5, as some of timm's weights.
    Half,
    /// `mean` and `std`.
    Given,
}

with_training! {
    /// The parameters.
    pub struct Parameters {
        /// The state dict, written with `torch.save(model.state_dict(), ...)` or `safetensors.torch.save_file(...)`, whatever the file is called.
        /// Weights of 64 or 16 bits become 32-bit ones; the `module.`, `_orig_mod.` or `model.` of wrappers is taken off.
        #[schemars(extend("x-location" = true))]
        path: Option<PathBuf> = None,
        /// Owner and name of a model of the Hugging Face hub, in place of `path`.
        repo: Option<String> = None,
        /// Branch, tag or commit of the model of the hub.
        revision: String = "main".into(),
        /// The file of the model of the hub; by default `model.safetensors`, else `pytorch_model.bin`.
        file: Option<String> = None,
        /// Another hub than HF_ENDPOINT names.
        #[schemars(extend("x-location" = true))]
        endpoint: Option<String> = None,
        /// The wrapper that holds the state dict, such as `state_dict_ema`, where a file holds several of them.
        key: Option<String> = None,
        /// What becomes of the last layer where it is for another number of classes than the dataset has.
        head: Head = Head::Refuse,
        /// For `head: keep`: for each class of the dataset, in order, the output of the file's head that stands for it, counted from 0.
        outputs: Option<Vec<usize>> = None,
        /// What pixels became numbers by when the weights were trained. A dataset that does otherwise is refused.
        normalise: Normalised = Normalised::Dataset,
        /// The mean of each channel, in 0..1, for `normalise: given`.
        mean: Option<Vec<f64>> = None,
        /// The deviation of each channel, for `normalise: given`.
        std: Option<Vec<f64>> = None,
        /// Height and width of the images that the weights were trained with; a dataset of other ones is refused. By default any that the network takes.
        size: Option<[usize; 2]> = None,
    }
}

/// Where the weights come from. A path is a location, which says nothing of the content.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    Path(#[serde(skip)] PathBuf),
    Hub(Place),
}

/// The parameters after the check.
#[derive(Debug, Serialize)]
pub struct Checked {
    source: Source,
    key: Option<String>,
    #[serde(flatten)]
    network: Chosen,
    head: Head,
    outputs: Option<Vec<usize>>,
    normalisation: Option<Normalisation>,
    size: Option<[usize; 2]>,
    recipe: Recipe,
}

impl<H: Hub> Method for Import<H> {
    const NAME: &'static str = "import";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "Takes over weights that PyTorch trained; remembrance and test must be data that they never saw";
    /// For a new head. It is drawn once, as the other weights are there once.
    const USES_SEED: bool = true;
    const PINNED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Checked;

    fn check(parameters: Parameters) -> Result<Checked, Rejected> {
        let source = source(&parameters)?;
        let normalisation = normalisation(&parameters)?;
        let (network, recipe) = (parameters.network()?, parameters.recipe()?);
        let Parameters { key, head, outputs, size, .. } = parameters;
        Rejected::unless(
            outputs.is_none() || head == Head::Keep,
            "outputs",
            "`outputs` says what `head: keep` keeps; set that as well, or leave `outputs` out",
        )?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = outputs.iter().flatten().find(|output| !seen.insert(**output)) {
            let message = format!("`outputs` names {twice} twice: two classes could not be told apart");
            return Err(Rejected::parameter("outputs", message));
        }
        Ok(Checked { source, key, network, head, outputs, normalisation, size, recipe })
    }

    fn elsewhere(parameters: &Checked) -> Option<&'static str> {
        H::ELSEWHERE.filter(|_| matches!(parameters.source, Source::Hub(_)))
    }

    fn pin(parameters: &Checked) -> anyhow::Result<Map<String, Value>> {
        match &parameters.source {
            Source::Hub(place) if !place.is_commit() => {
                Ok(H::commit(place)?.map(|commit| ("revision".to_owned(), commit.into())).into_iter().collect())
            }
            _ => Ok(Map::new()),
        }
    }

    fn externals(parameters: &Checked) -> anyhow::Result<Vec<External>> {
        let external = match &parameters.source {
            Source::Path(path) => External { name: "weights".into(), digest: Some(digest_file(path)?) },
            // What the revision stands for has taken its place, but where the hub would have to be asked for it.
            Source::Hub(place) => {
                let digest = place.is_commit().then(|| digest_bytes(format!("hub:{}@{}", place.repo, place.revision).as_bytes()));
                External { name: place.repo.clone(), digest }
            }
        };
        Ok(vec![external])
    }

    fn run(parameters: &Checked, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        check_preprocessing(parameters, &dataset)?;
        let architecture = parameters.network.architecture(dataset.image_shape(), dataset.classes())?;
        if let Some(augmentation) = parameters.recipe.augmentation() {
            let check = augmentation.check(&dataset.image_shape());
            check.map_err(|error| Failure::new(error.to_string(), "the recipe is what retraining repeats: give one for these images"))?;
        }
        context.progress().phase("read");
        let (path, name) = match &parameters.source {
            Source::Path(path) => (path.clone(), path.display().to_string()),
            Source::Hub(place) => {
                let path = H::fetch(place)?;
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (path, format!("{} of {}", file, place.repo))
            }
        };
        let weights::Weights { mut tensors, mut notes } = weights::read(&path, parameters.key.as_deref())?;
        let graph = architecture.graph().map_err(anyhow::Error::msg)?;
        if let Some(head) = graph.head() {
            let streams = Streams::new(context.seed(), "train/import");
            let note = fit_head(&mut tensors, head, architecture.classes, parameters, &streams);
            notes.extend(note.map_err(|Failure { message, remedy }| Failure::new(format!("`{name}`: {message}"), remedy))?);
        }
        model::check_tensors(&architecture, &tensors).map_err(|reason| {
            let message = format!("`{name}` does not fit the network:\n  {reason}");
            let remedy = "give the `model` and the sizes of the network that was saved (`widths`, `hidden`, `stem`, `depth`, `patch`), and rename its tensors where they are called otherwise: \
                          `cargo xtask list train/import` says the names under `model`";
            Failure::new(message, remedy)
        })?;
        notes.iter().for_each(|note| context.progress().note(note));
        context.progress().note(
            "remembrance and test set must be data that these weights never saw, in training or in the choice of anything: with seen data the offline \
             phase, the test accuracy and the attack mean nothing",
        );
        let network = Network::from_tensors(&architecture, &tensors)?;
        // A large network is there twice otherwise while it is written.
        drop(tensors);
        context.write("model", &model::to_artifact(&network, &parameters.recipe, &dataset)?)
    }
}

fn source(parameters: &Parameters) -> Result<Source, Rejected> {
    match (&parameters.path, &parameters.repo) {
        (Some(path), None) => {
            Rejected::unless(parameters.file.is_none(), "file", "`file` is one of a model of the hub; with `path` leave it out")?;
            Ok(Source::Path(path.clone()))
        }
        (None, Some(repo)) => {
            let names: Vec<&str> = repo.split('/').collect();
            let is_name = |name: &&str| !name.is_empty() && !name.starts_with('.') && !name.contains(['\\', ':']);
            Rejected::unless(
                names.len() <= 2 && names.iter().all(is_name),
                "repo",
                format!("`{repo}` is no model of the hub; give owner and name, such as `timm/resnet18.a1_in1k`"),
            )?;
            if let Some(file) = &parameters.file {
                let inside = std::path::Path::new(file).components().all(|part| matches!(part, std::path::Component::Normal(_)));
                Rejected::unless(inside && !file.is_empty(), "file", format!("`{file}` is no file inside of a model of the hub"))?;
            }
            let (repo, revision) = (repo.clone(), parameters.revision.clone());
            Ok(Source::Hub(Place { repo, revision, file: parameters.file.clone(), endpoint: parameters.endpoint.clone() }))
        }
        (Some(_), Some(_)) => Err(Rejected::parameter("repo", "give `path` or `repo`, not both")),
        (None, None) => Err(Rejected::parameter(
            "path",
            "`path` must name a state dict, as `torch.save` or safetensors write it, or `repo` a model of the hub",
        )),
    }
}

/// The normalisation that the weights were trained with, where it is told.
fn normalisation(parameters: &Parameters) -> Result<Option<Normalisation>, Rejected> {
    for (name, values) in [("mean", &parameters.mean), ("std", &parameters.std)] {
        let has_use = values.is_none() || parameters.normalise == Normalised::Given;
        Rejected::unless(has_use, name, format!("`{name}` counts with `normalise: given` alone; set that as well, or leave `{name}` out"))?;
    }
    let given = match parameters.normalise {
        Normalised::Dataset => return Ok(None),
        Normalised::Imagenet => Normalisation { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] },
        Normalised::Half => Normalisation { mean: vec![0.5; 3], std: vec![0.5; 3] },
        Normalised::Given => {
            let missing = |name: &str| Rejected::parameter(name, format!("`normalise: given` needs `{name}`"));
            let mean = parameters.mean.clone().ok_or_else(|| missing("mean"))?;
            let std = parameters.std.clone().ok_or_else(|| missing("std"))?;
            Normalisation { mean, std }
        }
    };
    given.check(given.mean.len()).map_err(|message| Rejected::parameter("std", message))?;
    Ok(Some(given))
}

/// Refuses images that are not prepared as those were that the weights were trained with, and says how to prepare them.
fn check_preprocessing(parameters: &Checked, dataset: &Dataset) -> Result<(), Failure> {
    /// Means and deviations are published with four digits.
    const CLOSE: f64 = 1e-4;
    let [channels, height, width] = dataset.image_shape();
    let (mut wrong, mut settings) = (Vec::new(), Vec::new());
    if let Some(Normalisation { mean, std }) = &parameters.normalisation {
        let found = &dataset.facts.normalisation;
        let close = |left: &[f64], right: &[f64]| {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| (left - right).abs() < CLOSE)
        };
        if mean.len() != channels {
            wrong.push(format!("the weights take images of {} channels, the dataset has {channels}", mean.len()));
            settings.push(format!("--set data.channels={}", mean.len()));
        }
        if !close(mean, &found.mean) || !close(std, &found.std) {
            wrong.push(format!(
                "the weights were trained with the mean {mean:?} and the deviation {std:?}, the dataset has {:?} and {:?}",
                found.mean, found.std
            ));
            settings.push(format!("--set data.normalise=given --set \"data.mean={mean:?}\" --set \"data.std={std:?}\""));
        }
    }
    if let Some(size) = parameters.size.filter(|&size| size != [height, width]) {
        wrong.push(format!("the weights were trained with images of {} x {}, the dataset has {height} x {width}", size[0], size[1]));
        settings.push(format!("--set \"data.resize={size:?}\""));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::new(wrong.join("; "), format!("where `data` is the stage that loads the images, add {}", settings.join(" "))))
}

/// Makes a head for another number of classes fit the network as the user wants it; says what was done.
fn fit_head(
    tensors: &mut BTreeMap<String, Tensor>,
    head: &Step,
    classes: usize,
    parameters: &Checked,
    streams: &Streams,
) -> Result<Option<String>, Failure> {
    let layer = &head.name;
    let (weight, bias) = (format!("{layer}.weight"), format!("{layer}.bias"));
    let found = tensors.get(&weight).and_then(|tensor| tensor.shape().first()).copied();
    if parameters.head == Head::New {
        tensors.extend(head.slots.iter().map(|slot| (slot.name.clone(), network::fresh(slot, streams))));
        let instead = found.map_or_else(
            || format!("it has no head, `{layer}`"),
            |found| format!("its head, `{layer}` with {found} outputs, was left out"),
        );
        return Ok(Some(format!("{instead}; a new one for {classes} classes was drawn at random and is not trained")));
    }
    // Where it is missing, that is told with all else that is.
    let Some(found) = found else { return Ok(None) };
    if let (Head::Keep, Some(outputs)) = (parameters.head, &parameters.outputs) {
        if outputs.len() != classes {
            let message = format!("`outputs` names {} outputs, the dataset has {classes} classes", outputs.len());
            return Err(Failure::new(message, "give one output for each class of the dataset, in the order of the classes"));
        }
        if let Some(outside) = outputs.iter().find(|&&output| output >= found) {
            return Err(Failure::new(format!("`outputs` names {outside}, but its head has {found} outputs"), "outputs are counted from 0"));
        }
        for name in [&weight, &bias] {
            if let Some(Tensor::F32(array)) = tensors.get_mut(name).filter(|tensor| tensor.shape().first() == Some(&found)) {
                *array = array.select(outputs);
            }
        }
        return Ok(Some(format!("of the {found} outputs of its head, `{layer}`, these are kept, one for each class: {outputs:?}")));
    }
    if found == classes {
        return Ok(None);
    }
    let remedy = format!(
        "`head: keep` with `outputs: [...]` keeps for each of the {classes} classes one of the {found} outputs; `head: new` draws a new head, \
         which is not trained; or give the dataset that the weights were trained on"
    );
    Err(Failure::new(format!("its head, `{layer}`, is for {found} classes, the dataset has {classes}"), remedy))
}
