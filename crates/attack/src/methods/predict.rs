//! `attack/predict`: what a model says of every sample, for attacks and scores that compare many models.

use dcu_artifact::{Dataset, Model, Predictions};
use dcu_nn::evaluate::judge;
use dcu_nn::{Samples, model};
use dcu_stage::{ChooseDevice, Context, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct Predict;

/// There is nothing to choose.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {}

impl Method for Predict {
    const NAME: &'static str = "predict";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "What a model says of every sample of its dataset and of the test set";
    const USES_SEED: bool = false;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[Input::one::<Model>("model"), Input::one::<Dataset>("dataset"), Input::one::<Dataset>("test")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Predictions>("predictions")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn run(_: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (trained, dataset, test): (Model, Dataset, Dataset) = (context.read("model")?, context.read("dataset")?, context.read("test")?);
        model::check_fit(&trained, &dataset)?;
        model::check_fit(&trained, &test)?;
        let network = model::to_network(&trained)?;
        let logits = |set: &Dataset| judge(&network, &Samples::of_whole_dataset(set)).map(|judged| judged.logits);
        let (logits, test_logits) = (logits(&dataset)?, logits(&test)?);
        context.write("predictions", &Predictions { ids: dataset.ids, logits, test_ids: test.ids, test_logits })
    }
}
