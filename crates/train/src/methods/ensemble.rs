//! `train/ensemble`: models that each leave a part of the training set out, so that every sample has predictions of models that never saw it.

use dcu_artifact::{Array, Dataset, Ensemble as Artifact, EnsembleFacts, Holdout, Model, Tensor};
use dcu_nn::rng::Streams;
use dcu_nn::train::Fit;
use dcu_nn::{Network, Samples, evaluate, model};
use dcu_stage::{ChooseDevice, Context, Input, Method, Output, Rejected, Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::fit::validation;

pub(crate) struct Ensemble;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Parts of the training set, of each class as even as can be; one model is trained without each of them. They cost `folds - 1` trainings.
    folds: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { folds: 4 }
    }
}

/// The name in a snapshot of the logits of the models that are done.
const LOGITS: &str = "ensemble@logits";

impl Method for Ensemble {
    const NAME: &'static str = "ensemble";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Trains a model without each fold of the training set, by a model's architecture and recipe, and keeps what each says of every sample";
    const USES_SEED: bool = true;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::one::<Model>("model"),
        Input::optional::<Dataset>("test"),
        Input::optional::<Holdout>("holdout"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Artifact>("ensemble")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless((2..=256).contains(&parameters.folds), "folds", "`folds` must be from 2 to 256")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        let base: Model = context.read("model")?;
        model::check_fit(&base, &dataset)?;
        let (architecture, recipe) = (model::architecture(&base)?, model::recipe(&base)?);
        let streams = Streams::new(context.seed(), "train/ensemble");
        let fold = folds(&dataset.labels, dataset.classes(), parameters.folds, &streams);
        let validation = if recipe.needs_validation() { Some(validation(context, &dataset)?) } else { None };
        let whole = Samples::of_whole_dataset(&dataset);
        let mut checkpoints = context.checkpoints();
        let (mut logits, mut first, mut started) = (Vec::new(), 0, None);
        if let Some(Snapshot { position, mut tensors }) = checkpoints.resume() {
            let done: usize;
            (first, done) = serde_json::from_value(position)?;
            match tensors.remove(LOGITS) {
                Some(Tensor::F32(array)) => logits = array.data,
                _ => anyhow::bail!("the checkpoint is of another release; delete it"),
            }
            started = (done > 0).then_some((done, tensors));
        }
        for model in first..parameters.folds {
            let rows: Vec<usize> = (0..dataset.len()).filter(|&row| fold[row] != model).collect();
            let samples = Samples::of_dataset(&dataset, &rows);
            let streams = streams.clone().replicate(u32::try_from(model + 1)?);
            let network = Network::initialised(&architecture, &streams)?;
            let mut fit = Fit::new(network, recipe.clone(), streams).validated_on(validation.clone());
            if let Some((done, tensors)) = started.take() {
                fit.restore(done, tensors)?;
            }
            let kept = Tensor::F32(Array::vector(logits.clone()));
            context.progress().phase("training");
            while fit.next_epoch(&samples)?.is_some() {
                context.progress().step("epochs", model * recipe.epochs + fit.done(), parameters.folds * recipe.epochs);
                checkpoints.offer(|| {
                    let mut tensors = fit.snapshot()?;
                    tensors.insert(LOGITS.to_owned(), kept.clone());
                    Ok(Snapshot { position: json!([model, fit.done()]), tensors })
                })?;
            }
            context.progress().phase("predictions");
            logits.extend(evaluate::judge(&fit.finish(), &whole)?.logits.data);
        }
        let (models, samples) = (parameters.folds, dataset.len());
        let membership = (0..models).flat_map(|model| fold.iter().map(move |&fold| u8::from(fold != model))).collect();
        let facts = EnsembleFacts {
            scheme: "folds".into(),
            seed: context.seed(),
            architecture: base.facts.architecture.clone(),
            recipe: base.facts.recipe.clone(),
        };
        let ensemble = Artifact {
            membership: Array::new(vec![models, samples], membership),
            logits: Array::new(vec![models, samples, dataset.classes()], logits),
            ids: dataset.ids,
            facts,
        };
        context.write("ensemble", &ensemble)
    }
}

/// The fold of each sample: of each class one more or less than of any other fold, and of all classes together too.
fn folds(labels: &[u32], classes: usize, folds: usize, streams: &Streams) -> Vec<usize> {
    let (mut fold, mut next) = (vec![0; labels.len()], 0);
    for class in 0..classes {
        let rows: Vec<usize> = (0..labels.len()).filter(|&row| labels[row] as usize == class).collect();
        for place in streams.indexed("folds", class as u64).permutation(rows.len()) {
            fold[rows[place]] = next % folds;
            next += 1;
        }
    }
    fold
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_even_within_each_class() {
        let labels: Vec<u32> = (0..103).map(|row| row % 5 / 2).collect();
        let fold = folds(&labels, 3, 4, &Streams::new(1, "test"));
        for class in 0..3 {
            let counts: Vec<usize> =
                (0..4).map(|wanted| fold.iter().zip(&labels).filter(|&(&fold, &label)| fold == wanted && label == class).count()).collect();
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
        assert_ne!(fold, folds(&labels, 3, 4, &Streams::new(2, "test")));
    }
}
