//! `train/ensemble`: many models of one kind, each trained on a part of the training set of its own, as what each says of every sample. Methods learn from it
//! what models say that never saw a sample; attacks compare with it.

use dcu_artifact::{Array, Dataset, Ensemble as Artifact, EnsembleFacts, Holdout, Model, Request, Tensor};
use dcu_nn::rng::Streams;
use dcu_nn::train::Fit;
use dcu_nn::{Network, Samples, evaluate, model};
use dcu_stage::{ChooseDevice, Context, Failure, Input, Method, Output, Rejected, Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::fit::validation;

pub(crate) struct Ensemble;

/// What each model is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scheme {
    /// Each without one of as many parts, of each class as even as can be. They cost one training less than there are models.
    Folds,
    /// Each on a random half of each class; the next on the other half, so that of an even number each sample is in half.
    Halves,
    /// One model for each class, without it; `models` is not looked at.
    Classes,
    /// Each on all of the training set.
    Whole,
    /// Each on the retain set of the input `request`: retrainings to judge by.
    Retrained,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// What each model is trained on.
    scheme: Scheme,
    /// How many there are.
    models: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { scheme: Scheme::Folds, models: 4 }
    }
}

/// The name in a snapshot of the logits of the models that are done.
const LOGITS: &str = "ensemble@logits";

impl Method for Ensemble {
    const NAME: &'static str = "ensemble";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "Trains many models by a model's architecture and recipe, each on a part of the training set, and keeps what each says of every sample";
    const USES_SEED: bool = true;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::one::<Model>("model"),
        Input::optional::<Request>("request"),
        Input::optional::<Artifact>("earlier"),
        Input::optional::<Dataset>("test"),
        Input::optional::<Holdout>("holdout"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Artifact>("ensemble")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        let least = if matches!(parameters.scheme, Scheme::Folds | Scheme::Halves) { 2 } else { 1 };
        Rejected::unless((least..=4096).contains(&parameters.models), "models", format!("`models` must be from {least} to 4096"))?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        let base: Model = context.read("model")?;
        model::check_fit(&base, &dataset)?;
        let request: Option<Request> = context.read_optional("request")?;
        let (architecture, recipe) = (model::architecture(&base)?, model::recipe(&base)?);
        let streams = Streams::new(context.seed(), "train/ensemble");
        let membership = membership(parameters, &dataset, request.as_ref(), &streams)?;
        let facts = EnsembleFacts {
            scheme: serde_json::to_value(parameters.scheme)?.as_str().unwrap_or_default().to_owned(),
            seed: context.seed(),
            architecture: base.facts.architecture.clone(),
            recipe: base.facts.recipe.clone(),
        };
        let mut logits = match context.read_optional::<Artifact>("earlier")? {
            Some(earlier) => begun(&earlier, &facts, &dataset, &membership)?,
            None => Vec::new(),
        };
        let of_model = dataset.len() * dataset.classes();
        let (mut first, mut started) = (logits.len() / of_model, None);
        let validation = if recipe.needs_validation() { Some(validation(context, &dataset)?) } else { None };
        let whole = Samples::of_whole_dataset(&dataset);
        let mut checkpoints = context.checkpoints();
        if let Some(Snapshot { position, mut tensors }) = checkpoints.resume() {
            let done: usize;
            (first, done) = serde_json::from_value(position)?;
            match tensors.remove(LOGITS) {
                Some(Tensor::F32(array)) => logits = array.data,
                _ => anyhow::bail!("the checkpoint is of another release; delete it"),
            }
            started = (done > 0).then_some((done, tensors));
        }
        for model in first..membership.rows() {
            let members = membership.row(model);
            let rows: Vec<usize> = (0..dataset.len()).filter(|&row| members[row] == 1).collect();
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
                context.progress().step("epochs", model * recipe.epochs + fit.done(), membership.rows() * recipe.epochs);
                checkpoints.offer(|| {
                    let mut tensors = fit.snapshot()?;
                    tensors.insert(LOGITS.to_owned(), kept.clone());
                    Ok(Snapshot { position: json!([model, fit.done()]), tensors })
                })?;
            }
            context.progress().phase("predictions");
            logits.extend(evaluate::judge(&fit.finish(), &whole)?.logits.data);
        }
        let logits = Array::new(vec![membership.rows(), dataset.len(), dataset.classes()], logits);
        context.write("ensemble", &Artifact { membership, logits, ids: dataset.ids, facts })
    }
}

/// Which model is trained on which sample, [M, N].
///
/// # Errors
/// When a model would have nothing to learn from, or the request is missing or of another dataset.
fn membership(parameters: &Parameters, dataset: &Dataset, request: Option<&Request>, streams: &Streams) -> anyhow::Result<Array<u8>> {
    let (labels, samples) = (&dataset.labels, dataset.len());
    let models = if parameters.scheme == Scheme::Classes { dataset.classes() } else { parameters.models };
    let mut membership = Vec::with_capacity(models * samples);
    match parameters.scheme {
        Scheme::Folds => {
            let fold = folds(labels, dataset.classes(), models, streams, "folds");
            membership.extend((0..models).flat_map(|model| fold.iter().map(move |&fold| u8::from(fold != model))));
        }
        Scheme::Halves => {
            for model in 0..models {
                let half = folds(labels, dataset.classes(), 2, streams, &format!("halves {}", model / 2));
                membership.extend(half.into_iter().map(|half| u8::from(half == model % 2)));
            }
        }
        Scheme::Classes => {
            membership.extend((0..models as u32).flat_map(|class| labels.iter().map(move |&label| u8::from(label != class))))
        }
        Scheme::Whole => membership.resize(models * samples, 1),
        Scheme::Retrained => {
            let remedy = "connect `request`, made from the same dataset";
            let Some(request) = request else { return Err(Failure::new("`scheme: retrained` needs the input `request`", remedy).into()) };
            let rows = dataset.rows_of(&request.retain);
            let rows = rows.map_err(|id| Failure::new(format!("sample {id} of the request is not in the dataset"), remedy))?;
            let mut members = vec![0; samples];
            rows.into_iter().for_each(|row| members[row] = 1);
            (0..models).for_each(|_| membership.extend(&members));
        }
    }
    let membership = Array::new(vec![models, samples], membership);
    match (0..models).find(|&model| membership.row(model).iter().all(|&member| member == 0)) {
        Some(model) => {
            Err(Failure::new(format!("model {model} would have nothing to learn from"), "give fewer `models`, or more data").into())
        }
        None => Ok(membership),
    }
}

/// The logits of the models that an earlier ensemble has already.
///
/// # Errors
/// When these are not the first models of this one.
fn begun(earlier: &Artifact, facts: &EnsembleFacts, dataset: &Dataset, membership: &Array<u8>) -> anyhow::Result<Vec<f32>> {
    let models = earlier.models();
    let fits = earlier.ids == dataset.ids
        && earlier.facts == *facts
        && models <= membership.rows()
        && earlier.membership.data[..] == membership.data[..models * dataset.len()];
    if !fits {
        let message = "the models of `earlier` are not the first ones of this ensemble";
        let remedy =
            "give the same dataset, model, scheme and seed as `earlier` was made with, and more `models`; folds cannot be added to";
        return Err(Failure::new(message, remedy).into());
    }
    Ok(earlier.logits.data.clone())
}

/// The part of each sample: of each class one more or less than of any other part, and of all classes together too.
fn folds(labels: &[u32], classes: usize, folds: usize, streams: &Streams, purpose: &str) -> Vec<usize> {
    let (mut fold, mut next) = (vec![0; labels.len()], 0);
    for class in 0..classes {
        let rows: Vec<usize> = (0..labels.len()).filter(|&row| labels[row] as usize == class).collect();
        for place in streams.indexed(purpose, class as u64).permutation(rows.len()) {
            fold[rows[place]] = next % folds;
            next += 1;
        }
    }
    fold
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{DatasetFacts, Normalisation, RequestFacts};

    use super::*;

    #[test]
    fn folds_are_even_within_each_class() {
        let labels: Vec<u32> = (0..103).map(|row| row % 5 / 2).collect();
        let fold = folds(&labels, 3, 4, &Streams::new(1, "test"), "folds");
        for class in 0..3 {
            let counts: Vec<usize> =
                (0..4).map(|wanted| fold.iter().zip(&labels).filter(|&(&fold, &label)| fold == wanted && label == class).count()).collect();
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
        assert_ne!(fold, folds(&labels, 3, 4, &Streams::new(2, "test"), "folds"));
    }

    fn dataset() -> Dataset {
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: vec!["a".into(), "b".into()],
            normalisation: Normalisation { mean: vec![0.5], std: vec![0.5] },
            names: None,
        };
        let labels = vec![0, 1, 0, 1, 0, 1, 0, 1];
        Dataset { images: Array::new(vec![8, 1, 1, 1], vec![0; 8]), labels, original_labels: None, ids: (10..18).collect(), facts }
    }

    #[test]
    fn each_scheme_leaves_out_what_it_says() {
        let dataset = dataset();
        let facts = RequestFacts { scenario: "ids".into(), classes: vec![], cumulative: false };
        let request = Request { forget: vec![10], retain: (12..18).collect(), earlier: vec![11], facts };
        let of = |scheme, models| membership(&Parameters { scheme, models }, &dataset, Some(&request), &Streams::new(1, "test")).unwrap();
        let halves = of(Scheme::Halves, 6);
        for sample in 0..8 {
            assert_eq!((0..6).filter(|&model| halves.row(model)[sample] == 1).count(), 3);
        }
        assert_ne!(halves.row(0), halves.row(2));
        assert_eq!(of(Scheme::Halves, 4).data, halves.data[..4 * 8], "models can be added");
        let classes = of(Scheme::Classes, 1);
        assert_eq!((classes.rows(), classes.row(0)), (2, [0, 1, 0, 1, 0, 1, 0, 1].as_slice()));
        assert_eq!(of(Scheme::Whole, 2).data, vec![1; 16]);
        assert_eq!(of(Scheme::Retrained, 2).row(1), [0, 0, 1, 1, 1, 1, 1, 1]);
        let error = membership(&Parameters { scheme: Scheme::Retrained, models: 1 }, &dataset, None, &Streams::new(1, "test")).unwrap_err();
        assert!(error.to_string().contains("needs the input `request`"), "{error}");
    }

    #[test]
    fn only_the_first_models_of_the_same_ensemble_are_gone_on_with() {
        let dataset = dataset();
        let membership = membership(&Parameters { scheme: Scheme::Halves, models: 4 }, &dataset, None, &Streams::new(1, "test")).unwrap();
        let facts = EnsembleFacts { scheme: "halves".into(), seed: 1, architecture: json!({}), recipe: json!({}) };
        let earlier = Artifact {
            ids: dataset.ids.clone(),
            membership: Array::new(vec![2, 8], membership.data[..16].to_vec()),
            logits: Array::new(vec![2, 8, 2], vec![0.5; 32]),
            facts: facts.clone(),
        };
        assert_eq!(begun(&earlier, &facts, &dataset, &membership).unwrap(), vec![0.5; 32]);
        let other = EnsembleFacts { seed: 2, ..facts.clone() };
        assert!(begun(&earlier, &other, &dataset, &membership).is_err());
        let mut changed = earlier;
        changed.membership.data.swap(0, 1);
        changed.membership.data[5] ^= 1;
        assert!(begun(&changed, &facts, &dataset, &membership).is_err());
    }
}
