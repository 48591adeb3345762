//! `unlearn/match`: the model learns of each forget sample what models say that never saw it, and keeps to the labels of a share of the retain set. This is
//! oracle matching (Georgiev et al., arXiv 2410.23232) towards cross-fitted models, which are trained once, before any request.
//!
//! Its limits: those models saw the other forget samples; outputs come to match, weights need not; and a judge must use other models than these.

use dcu_artifact::{Array, Dataset, Ensemble, Holdout, Model, Reduced, Request, SampleId, Statistics};
use dcu_nn::model;
use dcu_nn::rng::Streams;
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};

use crate::lesson::{Course, Lesson, classes_gone, forgotten, probabilities, rows_of};

pub(crate) struct Match;

impl Method for Match {
    const NAME: &'static str = "match";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str =
        "Teaches the model, of each forget sample, the prediction of models that never saw it (an ensemble by folds)";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::one::<Model>("model"),
        Input::one::<Dataset>("dataset"),
        Input::one::<Request>("request"),
        Input::one::<Ensemble>("ensemble"),
        Input::unused::<Statistics>("statistics"),
        Input::unused::<Reduced>("reduced"),
        Input::unused::<Dataset>("test"),
        Input::unused::<Holdout>("holdout"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Course;
    type Checked = Course;

    fn check(parameters: Course) -> Result<Course, Rejected> {
        parameters.check()?;
        Ok(parameters)
    }

    fn run(parameters: &Course, context: &mut Context) -> anyhow::Result<()> {
        let (base, dataset, request): (Model, Dataset, Request) =
            (context.read("model")?, context.read("dataset")?, context.read("request")?);
        let targets = targets(&context.read("ensemble")?, &dataset, &request)?;
        let lesson = Lesson::new(&dataset, &request, &base, targets)?;
        let streams = Streams::new(context.seed(), "unlearn/match");
        let network = lesson.teach(model::to_network(&base)?, parameters, &streams, model::recipe(&base)?.epochs, context)?;
        context.write("model", &model::with_facts_of(&network, &base)?)
    }
}

/// What the models that never saw a forget sample say of it, [F, C]: the mean of their logits as probabilities, without the classes that are forgotten whole, of
/// which they saw other samples.
fn targets(ensemble: &Ensemble, dataset: &Dataset, request: &Request) -> anyhow::Result<Vec<f32>> {
    if ensemble.ids != dataset.ids || ensemble.classes() != dataset.classes() {
        return Err(Failure::new("the ensemble was trained on another dataset", "make ensemble and request from the same dataset").into());
    }
    let rows = rows_of(dataset, &forgotten(request))?;
    let mut logits = vec![0.0; rows.len() * ensemble.classes()];
    for (&row, mean) in rows.iter().zip(logits.chunks_exact_mut(ensemble.classes())) {
        let strangers: Vec<usize> = ensemble.strangers_to(row).collect();
        if strangers.is_empty() {
            let message = format!("every model of the ensemble saw the forget sample {}", SampleId(dataset.ids[row]));
            return Err(
                Failure::new(message, "take an ensemble that leaves each sample out somewhere, as `train/ensemble` makes it").into()
            );
        }
        for &model in &strangers {
            mean.iter_mut().zip(ensemble.of(model, row)).for_each(|(mean, value)| *mean += value / strangers.len() as f32);
        }
    }
    Ok(probabilities(&Array::new(vec![rows.len(), ensemble.classes()], logits), &classes_gone(dataset, request)?))
}
