//! `unlearn/importance`: how much each parameter of a model matters for all of its training data, once, before any request. Methods that dampen weights compare with it.

use dcu_artifact::{Dataset, Model, Weights, WeightsFacts, WeightsKind};
use dcu_nn::{Samples, model};
use dcu_stage::{ChooseDevice, Context, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algebra::{self, Importance};
use crate::course::check;

pub(crate) struct OfData;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// How it is measured: `squared-gradients` for SSD, `output-sensitivity` for LFSSD.
    rule: Importance,
    /// Samples in a batch. Both rules depend on it: give the methods that read the result the same.
    batch: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { rule: Importance::SquaredGradients, batch: 1 }
    }
}

impl Method for OfData {
    const NAME: &'static str = "importance";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "How much each parameter matters for the training data, which `ssd` and `lfssd` compare with";
    const USES_SEED: bool = false;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[Input::one::<Model>("model"), Input::one::<Dataset>("dataset")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Weights>("weights")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        check::at_least("batch", 1, parameters.batch)?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (trained, dataset): (Model, Dataset) = (context.read("model")?, context.read("dataset")?);
        model::check_fit(&trained, &dataset)?;
        let (network, samples) = (model::to_network(&trained)?, Samples::of_whole_dataset(&dataset));
        let importance = parameters.rule.measure(&network, &samples, parameters.batch)?;
        let rule = serde_json::to_value(parameters.rule)?.as_str().unwrap_or_default().to_owned();
        let facts = WeightsFacts { kind: WeightsKind::Importance, rule, samples: samples.len(), batch: parameters.batch };
        context.write("weights", &Weights { tensors: algebra::arrays(&importance)?, facts })
    }
}
