//! `condense/cluster`: sub-class buckets by k-means on features.

use anyhow::Context as _;
use dcu_artifact::{Array, Buckets, Dataset, Model, SampleId};
use dcu_nn::rng::Streams;
use dcu_nn::{Samples, evaluate, model};
use dcu_stage::{ChooseDevice, Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kmeans;

pub(crate) struct Cluster;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Buckets in each class. A class with fewer distinct features gets fewer.
    k: u32,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { k: 450 }
    }
}

impl Method for Cluster {
    const NAME: &'static str = "cluster";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Divides each class into buckets of similar images, by k-means on the model's features";
    const USES_SEED: bool = true;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::one::<Model>("model")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Buckets>("buckets")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.k > 0, "k", "`k` must be at least 1")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        let trained: Model = context.read("model")?;
        model::check_fit(&trained, &dataset)?;
        check_k(parameters.k as usize, &dataset)?;
        context.progress().phase("features");
        let features = evaluate::features(&model::to_network(&trained)?, &Samples::of_whole_dataset(&dataset))?;
        context.progress().phase("k-means");
        let buckets = bucket(&dataset, &features, parameters.k, &Streams::new(context.seed(), "condense/cluster"), context)?;
        context.write("buckets", &buckets)
    }
}

fn rows_of_class(dataset: &Dataset, class: u32) -> Vec<usize> {
    (0..dataset.len()).filter(|&row| dataset.labels[row] == class).collect()
}

fn check_k(k: usize, dataset: &Dataset) -> anyhow::Result<()> {
    for (class, name) in dataset.facts.class_names.iter().enumerate() {
        let count = rows_of_class(dataset, class as u32).len();
        if count > 0 && count < k {
            let message = format!("k={k} is larger than class {class} (`{name}`), which has {count} images");
            return Err(Failure::new(message, format!("give a `k` of {count} at most, or load more images a class")).into());
        }
    }
    Ok(())
}

fn bucket(dataset: &Dataset, features: &Array<f32>, k: u32, streams: &Streams, context: &Context) -> anyhow::Result<Buckets> {
    let mut bucket = vec![0; dataset.len()];
    let (mut class_of, mut centroids) = (Vec::new(), Vec::new());
    for class in 0..dataset.classes() as u32 {
        let rows = rows_of_class(dataset, class);
        if rows.is_empty() {
            continue;
        }
        let points = features.select(&rows);
        let distinct = kmeans::distinct_rows(&points);
        let wanted = (k as usize).min(distinct);
        if wanted < k as usize {
            context.progress().note(&format!("class {class} has {distinct} distinct features for k={k}: {wanted} buckets"));
        }
        if let Some(row) = kmeans::first_unusable_row(&points) {
            let message = format!(
                "the model's features of sample {}, of class {class} (`{}`), are not finite or too large",
                SampleId(dataset.ids[rows[row]]),
                dataset.facts.class_names[class as usize]
            );
            return Err(Failure::new(message, "its training diverged: train the model again with a lower `lr`").into());
        }
        let clustering = kmeans::cluster(&points, wanted, &mut streams.indexed("start", u64::from(class)))?;
        let first = class_of.len();
        rows.iter().zip(&clustering.cluster).for_each(|(&row, &cluster)| bucket[row] = (first + cluster) as u32);
        class_of.extend(std::iter::repeat_n(class, wanted));
        centroids.extend(clustering.centroids.data);
        context.progress().step("classes", class as usize + 1, dataset.classes());
    }
    let count = u32::try_from(class_of.len()).context("too many buckets")?;
    Ok(Buckets {
        ids: dataset.ids.clone(),
        bucket,
        centroids: Array::new(vec![count as usize, features.row_len()], centroids),
        class: class_of,
        k,
    })
}
