//! `unlearn/random-label`: the model learns a wrong label of each forget sample, drawn once, beside the right ones of a share of the retain set (Graves et al.,
//! arXiv 2010.10981, call it amnesiac; the steps on the forget set are not taken back here).
//!
//! A trap of it: a model that gives forgotten samples lower probabilities than unseen ones tells them by that.

use dcu_artifact::{Dataset, Ensemble, Holdout, Model, Reduced, Request, Statistics};
use dcu_nn::model;
use dcu_nn::rng::Streams;
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};

use crate::lesson::{Course, Lesson, classes_gone, forgotten, rows_of};

pub(crate) struct RandomLabel;

impl Method for RandomLabel {
    const NAME: &'static str = "random-label";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Teaches the model a wrong label of each forget sample";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::one::<Model>("model"),
        Input::one::<Dataset>("dataset"),
        Input::one::<Request>("request"),
        Input::unused::<Ensemble>("ensemble"),
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
        let streams = Streams::new(context.seed(), "unlearn/random-label");
        let lesson = Lesson::new(&dataset, &request, &base, targets(&dataset, &request, &streams)?)?;
        let network = lesson.teach(model::to_network(&base)?, parameters, &streams, model::recipe(&base)?.epochs, context)?;
        context.write("model", &model::with_facts_of(&network, &base)?)
    }
}

/// For each forget sample a class that is neither its own nor forgotten whole, [F, C].
fn targets(dataset: &Dataset, request: &Request, streams: &Streams) -> anyhow::Result<Vec<f32>> {
    let (rows, gone) = (rows_of(dataset, &forgotten(request))?, classes_gone(dataset, request)?);
    let (mut stream, mut targets) = (streams.stream("labels"), Vec::with_capacity(rows.len() * dataset.classes()));
    for row in rows {
        let is_wrong = |class: &u32| *class != dataset.labels[row] && !gone.contains(class);
        let wrong: Vec<u32> = (0..dataset.classes() as u32).filter(is_wrong).collect();
        if wrong.is_empty() {
            return Err(Failure::new("no class is left for a wrong label", "forget fewer classes").into());
        }
        let label = wrong[stream.below(wrong.len())];
        targets.extend((0..dataset.classes() as u32).map(|class| f32::from(u8::from(class == label))));
    }
    Ok(targets)
}
