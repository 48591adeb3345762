//! `data/holdout`: the remembrance set out of unseen data, and the test set that is left for the evaluation alone.

use dcu_artifact::{Dataset, Holdout};
use dcu_nn::rng::Streams;
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct HoldOut;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Images of each class in the remembrance set.
    ipc: usize,
    /// Images of each class in the validation set, which methods may use to choose by.
    validation_per_class: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { ipc: 10, validation_per_class: 0 }
    }
}

impl Method for HoldOut {
    const NAME: &'static str = "holdout";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Divides unseen data into remembrance set, validation set and test set";
    const USES_SEED: bool = true;
    const PINNED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("train"), Input::one::<Dataset>("test")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Holdout>("holdout")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.ipc > 0, "ipc", "`ipc` must be at least 1")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let train: Dataset = context.read("train")?;
        let test: Dataset = context.read("test")?;
        let holdout = divide(&train, &test, parameters, &Streams::new(context.seed(), "data/holdout"))?;
        context.write("holdout", &holdout)
    }
}

fn divide(train: &Dataset, test: &Dataset, parameters: &Parameters, streams: &Streams) -> anyhow::Result<Holdout> {
    let mut holdout = Holdout { train: train.ids.clone(), remembrance: Vec::new(), validation: Vec::new(), test: Vec::new() };
    let taken = parameters.ipc.saturating_add(parameters.validation_per_class);
    for class in 0..test.classes() as u32 {
        let mut ids: Vec<u64> = (0..test.len()).filter(|&row| test.labels[row] == class).map(|row| test.ids[row]).collect();
        if ids.len() <= taken {
            let message =
                format!("class {class} has {} unseen images; {taken} are to be held out, and none would be left to test on", ids.len());
            return Err(Failure::new(message, "give a smaller `ipc` or `validation_per_class`, or more unseen data").into());
        }
        streams.indexed("roles", u64::from(class)).shuffle(&mut ids);
        holdout.remembrance.extend(&ids[..parameters.ipc]);
        holdout.validation.extend(&ids[parameters.ipc..taken]);
        holdout.test.extend(&ids[taken..]);
    }
    for role in [&mut holdout.remembrance, &mut holdout.validation, &mut holdout.test] {
        role.sort_unstable();
    }
    Ok(holdout)
}

#[cfg(test)]
mod tests {
    use dcu_artifact::Part;

    use super::*;
    use crate::methods::fixtures::{dataset, of_part};

    #[test]
    fn every_role_has_its_share_of_every_class_and_none_overlaps() {
        let labels: Vec<u32> = (0..60).map(|row| row % 3).collect();
        let test = of_part(&labels, Part::Test);
        let parameters = Parameters { ipc: 4, validation_per_class: 2 };
        let holdout = divide(&dataset(&labels), &test, &parameters, &Streams::new(1, "test")).unwrap();
        assert_eq!((holdout.remembrance.len(), holdout.validation.len(), holdout.test.len()), (12, 6, 42));
        holdout.check().unwrap();
        let of_class_0 = test.rows_of(&holdout.remembrance).unwrap().into_iter().filter(|&row| labels[row] == 0).count();
        assert_eq!(of_class_0, 4);
    }

    #[test]
    fn a_class_that_would_not_be_tested_is_refused() {
        let test = of_part(&[0, 0, 1], Part::Test);
        let refused =
            |parameters: Parameters| divide(&dataset(&[0, 1]), &test, &parameters, &Streams::new(1, "test")).unwrap_err().to_string();
        let error = refused(Parameters { ipc: 1, validation_per_class: 0 });
        assert!(error.contains("class 1"), "{error}");
        assert!(refused(Parameters { ipc: usize::MAX, validation_per_class: 1 }).contains("class 0 has 2 unseen images"));
    }
}
