//! `condense/statistics`: the training set as sums of products of a trunk's features, and the linear head that is solved for from these. A request takes its samples out of
//! the sums and solves again (`unlearn/exact`): for the head, that is training without them.
//!
//! The targets are the classes as 0 and 1, the bias is not penalised ([`dcu_nn::ridge`]). The guarantee covers the head. It covers the model where the trunk never saw the training data: a dictionary that
//! `train/patches` learned from held-out images, or a network from other data, which only the user can know to be one (`foreign`). `lambda` is one number that all samples had a part in
//! where it is chosen here, by validation samples; a request keeps it.

use std::collections::HashSet;

use dcu_artifact::{Dataset, Holdout, Model, Request, Statistics as Artifact};
use dcu_nn::ridge::{self, Solution, Trunk};
use dcu_nn::{Samples, model};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct Statistics;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// What is added to the diagonal of the sums; by default the best of the `candidates` by the squared error on the validation samples, or on the remembrance set where there are none.
    lambda: Option<f64>,
    /// What is tried, each times the number of samples and the mean variance of a feature.
    candidates: Vec<f64>,
    /// Whether the model's weights come from other data than this training set, as those of an imported network may. It is not checked.
    foreign: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { lambda: None, candidates: vec![1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0], foreign: false }
    }
}

impl Method for Statistics {
    const NAME: &'static str = "statistics";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Sums the products of a model's features over the training set, and solves for its last layer; a request can be taken out of the sums";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[
        Input::one::<Dataset>("dataset"),
        Input::one::<Model>("model"),
        Input::optional::<Request>("request"),
        Input::optional::<Dataset>("test"),
        Input::optional::<Holdout>("holdout"),
    ];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model"), Output::artifact::<Artifact>("statistics")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        Rejected::unless(parameters.lambda.is_none_or(positive), "lambda", "`lambda` must be a positive number")?;
        let usable = !parameters.candidates.is_empty() && parameters.candidates.iter().copied().all(positive);
        Rejected::unless(usable, "candidates", "`candidates` are positive numbers, one at least")?;
        // What is not looked at is no part of the key.
        let candidates = if parameters.lambda.is_some() { Parameters::default().candidates } else { parameters.candidates };
        Ok(Parameters { candidates, ..parameters })
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, base): (Dataset, Model) = (context.read("dataset")?, context.read("model")?);
        model::check_fit(&base, &dataset)?;
        let trunk = Trunk::new(&base, parameters.foreign)?;
        let ids = context.read_optional::<Request>("request")?.map_or_else(|| dataset.ids.clone(), |request| request.retain);
        let samples = Samples::of_ids(&dataset, &ids)?;
        context.progress().phase("features");
        let mut statistics = trunk.statistics(&dataset, &samples, ids, 1.0)?;
        let solution = match parameters.lambda {
            Some(lambda) => ridge::solve(&statistics, lambda)?,
            None => {
                let validation = validation(context, &base, samples.labels())?;
                context.progress().phase("choose lambda");
                choose(&trunk, &statistics, &parameters.candidates, &validation, context)?
            }
        };
        statistics.facts.lambda = solution.lambda;
        context.write("model", &trunk.with_head(&base, &solution)?)?;
        context.write("statistics", &statistics)
    }
}

/// The samples to choose by: unseen ones of the classes that are trained on, and never those that the evaluation sees.
fn validation(context: &mut Context, base: &Model, trained: &[u32]) -> anyhow::Result<Samples> {
    let (test, holdout) = (context.read_optional::<Dataset>("test")?, context.read_optional::<Holdout>("holdout")?);
    let (Some(test), Some(holdout)) = (test, holdout) else {
        let message = "without `lambda` it is chosen by held-out samples, which needs the inputs `test` and `holdout`";
        return Err(Failure::new(message, "add `test: data.test, holdout: holdout` to the stage's `in:`, or give `lambda`").into());
    };
    model::check_fit(base, &test)?;
    let ids = if holdout.validation.is_empty() { holdout.remembrance } else { holdout.validation };
    let trained: HashSet<u32> = trained.iter().copied().collect();
    let mut rows = test
        .rows_of(&ids)
        .map_err(|id| Failure::new(format!("the held-out sample {id} is not in `test`"), "make the holdout from the same test set"))?;
    rows.retain(|&row| trained.contains(&test.labels[row]));
    if rows.is_empty() {
        let message = "there is no held-out sample of a class that is trained on, to choose `lambda` by";
        return Err(Failure::new(message, "give `data/holdout` a `validation_per_class`, or give `lambda`").into());
    }
    Ok(Samples::of_dataset(&test, &rows))
}

/// The solution with the smallest squared error on the validation samples; of equals that with the largest `lambda`.
fn choose(trunk: &Trunk, statistics: &Artifact, candidates: &[f64], validation: &Samples, context: &Context) -> anyhow::Result<Solution> {
    let classes = statistics.facts.class_names.len();
    let scale = ridge::scale(statistics);
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(Failure::new("no feature of the model varies over the samples", "take another `model`").into());
    }
    let mut candidates: Vec<f64> = candidates.iter().map(|candidate| candidate * scale).collect();
    candidates.sort_by(|one, other| other.total_cmp(one));
    let mut best: Option<(f64, f64, Solution)> = None;
    for (done, &lambda) in candidates.iter().enumerate() {
        let solution = ridge::solve(statistics, lambda)?;
        let (mut error, mut right) = (0.0, 0);
        trunk.for_each_block(validation, |features, labels| {
            for (said, &label) in solution.predict(features).chunks_exact(classes).zip(labels) {
                let wanted = |class: usize| f64::from(u8::from(class == label as usize));
                error += said.iter().enumerate().map(|(class, value)| (value - wanted(class)).powi(2)).sum::<f64>();
                right += usize::from((0..classes).all(|class| said[class] <= said[label as usize]));
            }
            Ok(())
        })?;
        let count = validation.len() as f64;
        context.progress().step("candidates", done + 1, candidates.len());
        if best.as_ref().is_none_or(|(least, ..)| error / count < *least) {
            best = Some((error / count, right as f64 / count, solution));
        }
    }
    let (error, right, solution) = best.expect("one candidate at least");
    let count = candidates.len();
    context.progress().note(&format!(
        "lambda {:.4} of {count}: squared error {error:.5}, accuracy {:.1} %",
        solution.lambda,
        100.0 * right
    ));
    Ok(solution)
}
