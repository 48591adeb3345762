//! `attack/leave-one-out`: what the model would say of each training sample had it been trained without that one, in closed form, and how far it has learned the sample by heart.
//!
//! The closed form ([`dcu_nn::ridge::Solution::leave_one_out`]) is exactly what solving anew without the sample gives, for one factorisation in all.
//! Memorisation is what Feldman (arXiv 1906.05271) calls so, of this one model and in its outputs, not in how often they are right: the output for the sample's own class with the sample less
//! that without it.

use dcu_artifact::{Array, Dataset, Metrics, Model, SampleId, Statistics};
use dcu_nn::ridge::{self, Trunk};
use dcu_nn::{Samples, model};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct LeaveOneOut;

/// There is nothing to choose.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {}

impl Method for LeaveOneOut {
    const NAME: &'static str = "leave-one-out";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str =
        "What a model with a ridge head would say of each sample without having been trained on it, and its memorisation, in closed form";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] =
        &[Input::one::<Model>("model"), Input::one::<Dataset>("dataset"), Input::one::<Statistics>("statistics")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Metrics>("metrics")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn run(_: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (base, dataset, statistics): (Model, Dataset, Statistics) =
            (context.read("model")?, context.read("dataset")?, context.read("statistics")?);
        model::check_fit(&base, &dataset)?;
        let trunk = Trunk::new(&base, !statistics.facts.trunk_saw_training_data)?;
        context.write("metrics", &leave_one_out(&trunk, &dataset, &statistics, context)?)
    }
}

fn leave_one_out(trunk: &Trunk, dataset: &Dataset, statistics: &Statistics, context: &Context) -> anyhow::Result<Metrics> {
    let (rows, classes) = (trunk.counted(dataset, &statistics.ids, statistics)?, dataset.classes());
    context.progress().phase("solve");
    let solution = ridge::solve(statistics, statistics.facts.lambda)?;
    let samples = Samples::of_dataset(dataset, &rows);
    let (mut logits, mut leverages, mut memorisation) = (Vec::new(), Vec::new(), Vec::new());
    let mut right = [0_usize; 2];
    context.progress().phase("predictions");
    trunk.for_each_block(&samples, |features, labels| {
        let said = solution.leave_one_out(features, labels);
        for ((with, without), &label) in said.with.chunks_exact(classes).zip(said.without.chunks_exact(classes)).zip(labels) {
            let label = label as usize;
            for (right, said) in right.iter_mut().zip([with, without]) {
                *right += usize::from((0..classes).all(|class| class == label || said[class] < said[label]));
            }
            memorisation.push(with[label] - without[label]);
        }
        logits.extend(said.without);
        leverages.extend(said.leverages);
        context.progress().step("samples", leverages.len(), samples.len());
        Ok(())
    })?;
    if let Some(row) = logits.iter().position(|value| !value.is_finite()).map(|place| place / classes) {
        let message = format!(
            "without sample {} nothing determines its prediction: its leverage is {}",
            SampleId(statistics.ids[row]),
            leverages[row]
        );
        return Err(Failure::new(message, "give `condense/statistics` a larger `lambda`, or more samples").into());
    }
    let (count, share) = (leverages.len(), |right: usize| right as f64 / leverages.len() as f64);
    let mut metrics = Metrics::default();
    metrics.scalar("training_accuracy", share(right[0]), "fraction", "share of the samples that the model gives their label");
    metrics.scalar(
        "leave_one_out_accuracy",
        share(right[1]),
        "fraction",
        "share of the samples that the model trained without each would give its label",
    );
    metrics.scalar("memorisation", memorisation.iter().sum::<f64>() / count as f64, "logit", "mean of the memorisation of the samples");
    metrics.array(
        "leave_one_out_logits",
        Array::new(vec![count, classes], logits),
        "logit",
        "what the model trained without the sample would give for it; ids in `samples`",
    );
    metrics.array("leverages", Array::vector(leverages), "fraction", "weight of a sample in its own prediction; ids in `samples`");
    metrics.array(
        "memorisations",
        Array::vector(memorisation),
        "logit",
        "logit of the sample's label with the sample less that without it; ids in `samples`",
    );
    metrics.ids.insert("samples".into(), statistics.ids.clone());
    Ok(metrics)
}
