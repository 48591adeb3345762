//! `condense/fdm`: fast distribution matching (arXiv 2402.00195): each bucket's condensed image is a weighted sum of its images whose feature
//! is moved towards the bucket's mean feature. All buckets are worked on at once; the loss is a sum over buckets, so that each gets what it
//! would get alone.

use std::collections::BTreeMap;

use anyhow::Context as _;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, Var};
use dcu_artifact::{Array, Buckets, Condensed, Dataset, Members, Model, Tensor as Stored};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::{Network, Part, Samples, evaluate, model};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected, Snapshot};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

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
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Condenses each bucket to one weighted sum of its images that matches their mean feature";
    const USES_SEED: bool = false;
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
            let batch = condense(&network, &dataset, &members[range.clone()], parameters)?;
            images.extend(batch.images);
            weights.extend(batch.weights);
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
            labels: buckets.class.clone(),
            bucket: (0..members.len() as u32).collect(),
            members: behind(&dataset, &members, &weights),
            classes: dataset.classes(),
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

struct Batch {
    images: Vec<f32>,
    weights: Vec<f32>,
}

fn condense(network: &Network, dataset: &Dataset, members: &[Vec<usize>], parameters: &Parameters) -> candle_core::Result<Batch> {
    let rows: Vec<usize> = members.concat();
    let samples = Samples::of_dataset(dataset, &rows);
    let sizes: Vec<usize> = members.iter().map(Vec::len).collect();
    let target = mean_features(&evaluate::features(network, &samples)?, &sizes)?;
    let sum = WeightedSum {
        images: std::sync::Arc::new(samples.values(&(0..rows.len()).collect::<Vec<_>>())),
        starts: sizes.iter().scan(0, |start, size| Some(std::mem::replace(start, *start + size))).chain([rows.len()]).collect(),
        shape: dataset.image_shape(),
    };
    let initial: Vec<f32> = sizes.iter().flat_map(|&size| std::iter::repeat_n(1.0 / size as f32, size)).collect();
    let weights = Var::from_tensor(&Tensor::from_vec(initial, rows.len(), &Device::Cpu)?)?;
    let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
    for _ in 0..parameters.steps {
        let fused = weights.apply_op1(sum.clone())?;
        let features = network.evaluate(&fused, &[Part::Beginning, Part::Intermediate])?.flatten_from(1)?;
        let loss = (features - &target)?.sqr()?.sum_all()?;
        optimiser.step(&BTreeMap::from([("weights", &weights)]), &loss.backward()?, parameters.lr)?;
    }
    let weights = weights.as_detached_tensor();
    Ok(Batch { images: weights.apply_op1(sum)?.flatten_all()?.to_vec1()?, weights: weights.to_vec1()? })
}

fn mean_features(features: &Array<f32>, sizes: &[usize]) -> candle_core::Result<Tensor> {
    let mut means = Vec::with_capacity(sizes.len() * features.row_len());
    let mut start = 0;
    for &size in sizes {
        let mut mean = vec![0.0_f64; features.row_len()];
        for row in start..start + size {
            mean.iter_mut().zip(features.row(row)).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        means.extend(mean.into_iter().map(|sum| (sum / size as f64) as f32));
        start += size;
    }
    Tensor::from_vec(means, (sizes.len(), features.row_len()), &Device::Cpu)
}

/// From the weights of all images [M] to the weighted sum of each bucket's images [B, C, H, W].
#[derive(Clone)]
struct WeightedSum {
    images: std::sync::Arc<Vec<f32>>,
    /// First image of each bucket, and the number of images at the end.
    starts: Vec<usize>,
    shape: [usize; 3],
}

impl WeightedSum {
    fn pixels(&self) -> usize {
        self.shape.iter().product()
    }
}

impl CustomOp1 for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted_sum"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(weights), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("the weights must be contiguous f32")
        };
        let (weights, pixels, buckets) = (&weights[from..to], self.pixels(), self.starts.len() - 1);
        let mut output = vec![0.0_f32; buckets * pixels];
        output.par_chunks_mut(pixels).enumerate().for_each(|(bucket, output)| {
            let members = self.starts[bucket]..self.starts[bucket + 1];
            for (member, weight) in members.clone().zip(&weights[members]) {
                let image = &self.images[member * pixels..(member + 1) * pixels];
                output.iter_mut().zip(image).for_each(|(sum, value)| *sum += weight * value);
            }
        });
        let [channels, height, width] = self.shape;
        Ok((CpuStorage::F32(output), (buckets, channels, height, width).into()))
    }

    fn bwd(&self, weights: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (gradient, pixels) = (gradient.flatten_all()?.to_vec1::<f32>()?, self.pixels());
        let mut result = vec![0.0_f32; weights.elem_count()];
        for bucket in 0..self.starts.len() - 1 {
            let members = self.starts[bucket]..self.starts[bucket + 1];
            let gradient = &gradient[bucket * pixels..(bucket + 1) * pixels];
            result[members.clone()].par_iter_mut().zip(members).for_each(|(result, member)| {
                let image = &self.images[member * pixels..(member + 1) * pixels];
                *result = dot(image, gradient);
            });
        }
        Tensor::from_vec(result, weights.shape(), weights.device()).map(Some)
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (lefts, rights) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = lefts.remainder().iter().zip(rights.remainder()).map(|(left, right)| left * right).sum();
    let mut lanes = [0.0_f32; LANES];
    lefts
        .zip(rights)
        .for_each(|(left, right)| lanes.iter_mut().zip(left.iter().zip(right)).for_each(|(lane, (left, right))| *lane += left * right));
    lanes.iter().sum::<f32>() + rest
}
