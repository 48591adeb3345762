//! `condense/dm`: images whose mean feature is that of their bucket's, in networks with random weights that are new in each step (distribution matching, Zhao and Bilen, arXiv
//! 2110.04181). With `tiles` several small images share one (after IDC, arXiv 2205.14959).
//!
//! The networks never saw the data: what an image shows comes from its bucket alone.

use candle_core::{Device, Tensor};
use dcu_artifact::{Buckets, Condensed, Dataset, Model};
use dcu_nn::rng::Streams;
use dcu_nn::{Network, Samples};
use dcu_stage::{Context, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::synthetic::{Canvas, Siamese, check_widths, convnet3};

pub(crate) struct Dm;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Images of each bucket. For images of each class take buckets of `k: 1`.
    images: usize,
    /// Along each side of an image, so many small ones lie beside one another, which are enlarged before they are used.
    tiles: usize,
    /// Steps, each with another network.
    steps: usize,
    /// The learning rate of the pixels.
    lr: f64,
    /// Real samples of each bucket that a step takes.
    batch: usize,
    /// The channels of the ConvNet-3.
    widths: Vec<usize>,
    /// Whether all images of a step are changed in the same random way.
    augment: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { images: 1, tiles: 1, steps: 1000, lr: 1.0, batch: 64, widths: vec![128, 128, 128], augment: true }
    }
}

impl Method for Dm {
    const NAME: &'static str = "dm";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "Condenses each bucket to images whose mean feature in random networks is that of the bucket";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::one::<Buckets>("buckets"), Input::unused::<Model>("model")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Condensed>("condensed")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        for (name, value) in [("images", parameters.images), ("tiles", parameters.tiles), ("batch", parameters.batch)] {
            Rejected::unless(value > 0, name, format!("`{name}` must be at least 1"))?;
        }
        Rejected::unless(parameters.lr > 0.0 && parameters.lr.is_finite(), "lr", "`lr` must be positive")?;
        check_widths(&parameters.widths)?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, buckets): (Dataset, Buckets) = (context.read("dataset")?, context.read("buckets")?);
        let streams = Streams::new(context.seed(), "condense/dm");
        let mut canvas = Canvas::drawn(&dataset, &buckets, parameters.images, parameters.tiles, &streams)?;
        let (samples, mut checkpoints) = (Samples::of_whole_dataset(&dataset), context.checkpoints());
        let first = canvas.resume(&checkpoints)?;
        let architecture = convnet3(&dataset, &parameters.widths);
        let [_, height, width] = dataset.image_shape();
        context.progress().phase("matching");
        for step in first..parameters.steps {
            let network = Network::initialised(&architecture, &streams.clone().replicate(u32::try_from(step + 1)?))?;
            let change = if parameters.augment {
                Siamese::drawn(&mut streams.indexed("change", step as u64), [height, width])
            } else {
                Siamese::None
            };
            let mut draws = streams.indexed("real", step as u64);
            let mut drawn = |bucket: usize| -> Vec<usize> {
                let members = canvas.members(bucket);
                draws.permutation(members.len()).into_iter().take(parameters.batch).map(|place| members[place]).collect()
            };
            let real: Vec<Vec<usize>> = (0..canvas.buckets()).map(&mut drawn).collect();
            matched(&mut canvas, &network, &samples, &real, change, parameters.lr)?;
            context.progress().step("steps", step + 1, parameters.steps);
            canvas.offer(&mut checkpoints, step + 1)?;
        }
        context.write("condensed", &canvas.finish(&dataset, Self::NAME)?)
    }
}

/// A step of the images towards the mean features of real samples, of which each bucket has these rows.
///
/// # Errors
/// When the loss is not finite.
pub(crate) fn matched(
    canvas: &mut Canvas,
    network: &Network,
    samples: &Samples,
    real: &[Vec<usize>],
    change: Siamese,
    rate: f64,
) -> candle_core::Result<()> {
    let images = change.apply(&canvas.decoded(0..canvas.buckets())?.0)?;
    let loss = apart(network, &images, samples, real, change)?;
    let gradient = loss.backward()?.remove(canvas.pixels());
    canvas.step(gradient, f64::from(loss.to_scalar::<f32>()?), rate)
}

/// The sum over buckets of the squared distance between the mean features of their images, which are changed already, and of their real samples at these rows.
///
/// # Errors
/// When the images do not fit the network.
pub(crate) fn apart(
    network: &Network,
    images: &Tensor,
    samples: &Samples,
    real: &[Vec<usize>],
    change: Siamese,
) -> candle_core::Result<Tensor> {
    let mut targets: Vec<f32> = Vec::new();
    for rows in real {
        let features = network.features(&change.apply(&samples.batch(rows)?.0)?)?;
        targets.extend(features.mean(0)?.to_vec1::<f32>()?);
    }
    let width = targets.len() / real.len();
    let targets = Tensor::from_vec(targets, (real.len(), width), &Device::Cpu)?;
    let features = network.features(images)?;
    let (count, width) = features.dims2()?;
    let means = features.reshape((real.len(), count / real.len(), width))?.mean(1)?;
    (means - targets)?.sqr()?.sum_all()
}
