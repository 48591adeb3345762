//! `condense/fdm`: condensed images by fast distribution matching (arXiv 2402.00195).

use std::collections::BTreeMap;

use anyhow::Context as _;
use dcu_artifact::{Array, Buckets, Condensed, CondensedFacts, Dataset, Members, Model, Reach, Tensor as Stored};
use dcu_nn::{Network, Samples, model};
use dcu_stage::{ChooseDevice, Context, Failure, Input, Method, Output, Progress, Rejected, Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::matching::Matching;
use crate::synthetic::one_hot;

/// Images that are condensed side by side, which bounds the memory. Fixed, so that the result depends on nothing else.
const IMAGES_AT_ONCE: usize = 4096;
const BUCKETS_AT_ONCE: usize = 512;

pub(crate) struct Fdm;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Steps of Adam on the weights of each bucket.
    steps: usize,
    /// The learning rate of the weights.
    lr: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { steps: 100, lr: 1e-3 }
    }
}

impl Method for Fdm {
    const NAME: &'static str = "fdm";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "Condenses each bucket to one weighted sum of its images that matches their mean feature";
    const USES_SEED: bool = false;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::one::<Model>("model"), Input::one::<Buckets>("buckets")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Condensed>("condensed")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.lr > 0.0 && parameters.lr.is_finite(), "lr", "`lr` must be positive")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let dataset: Dataset = context.read("dataset")?;
        let trained: Model = context.read("model")?;
        let buckets: Buckets = context.read("buckets")?;
        model::check_fit(&trained, &dataset)?;
        if buckets.ids != dataset.ids {
            return Err(
                Failure::new("the buckets divide another dataset", "make buckets and condensed images from the same dataset").into()
            );
        }
        let network = model::to_network(&trained)?;
        let members = buckets.members();
        let (mut images, mut weights, mut first) = (Vec::new(), Vec::new(), 0);
        let mut checkpoints = context.checkpoints();
        if let Some(snapshot) = checkpoints.resume() {
            (first, images, weights) = restored(snapshot).context("the checkpoint is of another release; delete it")?;
        }
        for range in batches(&members).into_iter().filter(|range| range.start >= first) {
            let (new_images, new_weights) = condense(&network, &dataset, &members[range.clone()], parameters, context.progress())
                .with_context(|| format!("cannot condense the buckets from {} on, counted from there", range.start))?;
            images.extend(new_images);
            weights.extend(new_weights);
            context.progress().step("buckets", range.end, members.len());
            checkpoints.offer(|| {
                let vector = |values: &[f32]| Stored::F32(Array::vector(values.to_vec()));
                let tensors = BTreeMap::from([("images".to_owned(), vector(&images)), ("weights".to_owned(), vector(&weights))]);
                Ok(Snapshot { position: json!(range.end), tensors })
            })?;
        }
        let [channels, height, width] = dataset.image_shape();
        let condensed = Condensed {
            images: Array::new(vec![members.len(), channels, height, width], images),
            targets: one_hot(&buckets.class, dataset.classes()),
            bucket: (0..members.len() as u32).collect(),
            members: behind(&dataset, &members, &weights),
            facts: CondensedFacts { maker: Self::NAME.into(), reach: Reach::Bucket },
        };
        context.write("condensed", &condensed)
    }
}

/// The first bucket that is not done, and images and weights of those that are.
fn restored(mut snapshot: Snapshot) -> Option<(usize, Vec<f32>, Vec<f32>)> {
    let mut take = |name: &str| match snapshot.tensors.remove(name) {
        Some(Stored::F32(array)) => Some(array.data),
        _ => None,
    };
    let (images, weights) = (take("images")?, take("weights")?);
    Some((snapshot.position.as_u64()? as usize, images, weights))
}

fn behind(dataset: &Dataset, members: &[Vec<usize>], weights: &[f32]) -> Vec<Members> {
    let mut rest = weights;
    members
        .iter()
        .map(|rows| {
            let (own, others) = rest.split_at(rows.len());
            rest = others;
            Members { ids: rows.iter().map(|&row| dataset.ids[row]).collect(), weights: own.to_vec() }
        })
        .collect()
}

/// Consecutive buckets that are condensed side by side.
fn batches(members: &[Vec<usize>]) -> Vec<std::ops::Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut images) = (0, 0);
    for (bucket, rows) in members.iter().enumerate() {
        if bucket > start && (bucket - start == BUCKETS_AT_ONCE || images + rows.len() > IMAGES_AT_ONCE) {
            ranges.push(start..bucket);
            (start, images) = (bucket, 0);
        }
        images += rows.len();
    }
    ranges.push(start..members.len());
    ranges
}

/// The condensed image of each bucket, and the weights of the images in it.
fn condense(
    network: &Network,
    dataset: &Dataset,
    members: &[Vec<usize>],
    parameters: &Parameters,
    progress: Progress,
) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
    let sizes: Vec<usize> = members.iter().map(Vec::len).collect();
    progress.phase("features");
    let mut matching = Matching::new(network, &Samples::of_dataset(dataset, &members.concat()), &sizes)?;
    progress.phase("matching");
    for _ in 0..parameters.steps {
        matching.step(parameters.lr)?;
    }
    matching.finish()
}
