//! `data/poison`: swaps the labels of some samples between two classes, for the interclass confusion test (Goel et al., arXiv 2201.06640).

use dcu_artifact::Dataset;
use dcu_nn::rng::Streams;
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct Poison;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// The two classes.
    classes: [u32; 2],
    /// The share of each of the two classes whose label becomes the other's, rounded down; 0 leaves all labels as they are.
    ratio: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { classes: [0, 1], ratio: 0.1 }
    }
}

impl Method for Poison {
    const NAME: &'static str = "poison";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Swaps the labels of a share of two classes";
    const USES_SEED: bool = true;
    const PINNED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Dataset>("dataset")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.classes[0] != parameters.classes[1], "classes", "`classes` must name two different classes")?;
        Rejected::unless((0.0..=1.0).contains(&parameters.ratio), "ratio", "`ratio` must be from 0 to 1")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let dataset = context.read("dataset")?;
        let poisoned = swap(dataset, parameters, &Streams::new(context.seed(), "data/poison"))?;
        context.write("dataset", &poisoned)
    }
}

fn swap(mut dataset: Dataset, parameters: &Parameters, streams: &Streams) -> anyhow::Result<Dataset> {
    if dataset.original_labels.is_some() {
        return Err(Failure::new("the dataset is poisoned already", "poison the dataset that `data/load` wrote").into());
    }
    if parameters.ratio == 0.0 {
        return Ok(dataset);
    }
    let [first, second] = parameters.classes;
    let original = dataset.labels.clone();
    for (class, other) in [(first, second), (second, first)] {
        let mut rows: Vec<usize> = (0..original.len()).filter(|&row| original[row] == class).collect();
        let count = (rows.len() as f64 * parameters.ratio) as usize;
        if count == 0 {
            let message = format!("a share of {} of the {} samples of class {class} is none", parameters.ratio, rows.len());
            return Err(Failure::new(message, "give a larger `ratio`, or `classes` that have samples").into());
        }
        streams.indexed("swap", u64::from(class)).shuffle(&mut rows);
        rows[..count].iter().for_each(|&row| dataset.labels[row] = other);
    }
    dataset.original_labels = Some(original);
    Ok(dataset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::fixtures::dataset;

    #[test]
    fn the_same_share_of_both_classes_is_swapped_and_nothing_else() {
        let labels: Vec<u32> = (0..300).map(|row| row % 3).collect();
        let parameters = Parameters { classes: [0, 2], ratio: 0.25 };
        let poisoned = swap(dataset(&labels), &parameters, &Streams::new(1, "test")).unwrap();
        let changed = |from: u32, to: u32| (0..300).filter(|&row| labels[row] == from && poisoned.labels[row] == to).count();
        assert_eq!((changed(0, 2), changed(2, 0), changed(1, 1)), (25, 25, 100));
        assert_eq!(poisoned.original_labels, Some(labels));
    }

    #[test]
    fn no_share_leaves_the_dataset_as_it_is() {
        let parameters = Parameters { classes: [0, 1], ratio: 0.0 };
        assert_eq!(swap(dataset(&[0, 0, 1, 1]), &parameters, &Streams::new(1, "test")).unwrap(), dataset(&[0, 0, 1, 1]));
    }

    #[test]
    fn a_share_that_is_no_sample_is_refused() {
        let parameters = Parameters { classes: [0, 1], ratio: 0.01 };
        assert!(swap(dataset(&[0, 0, 1, 1]), &parameters, &Streams::new(1, "test")).is_err());
    }
}
