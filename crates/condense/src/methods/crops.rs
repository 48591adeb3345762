//! `condense/crops`: images put together of the crops of real images that a model finds easiest, with its predictions as labels if wanted (after RDED, Sun et al., arXiv 2312.03526).
//!
//! With `labels: soft` a row shows what a model says that was trained on all of the data: its reach is `global`.

use candle_core::{Device, Tensor};
use dcu_artifact::{Array, Buckets, Condensed, CondensedFacts, Dataset, Members, Model, Reach};
use dcu_nn::rng::Streams;
use dcu_nn::{Network, Samples, evaluate, model, ops};
use dcu_stage::{ChooseDevice, Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::synthetic::{one_hot, resized, tiled};

pub(crate) struct Crops;

/// What there is to learn of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Labels {
    /// Its class.
    Hard,
    /// What the model says of it, at a temperature of 1.
    Soft,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Images of each bucket. For images of each class take buckets of `k: 1`.
    images: usize,
    /// Crops along each side of an image.
    tiles: usize,
    /// Crops of each real image, of which the easiest is taken.
    candidates: usize,
    /// The least share of an image that a crop shows, by area.
    least: f64,
    /// What there is to learn of an image.
    labels: Labels,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { images: 1, tiles: 1, candidates: 5, least: 0.5, labels: Labels::Soft }
    }
}

impl Method for Crops {
    const NAME: &'static str = "crops";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Condenses each bucket to images of the crops that a model finds easiest";
    const USES_SEED: bool = true;
    const DEVICE: Option<ChooseDevice> = Some(dcu_nn::place::choose);
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::one::<Model>("model"), Input::one::<Buckets>("buckets")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Condensed>("condensed")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        for (name, value) in [("images", parameters.images), ("tiles", parameters.tiles), ("candidates", parameters.candidates)] {
            Rejected::unless(value > 0, name, format!("`{name}` must be at least 1"))?;
        }
        let fits = parameters.least > 0.0 && parameters.least <= 1.0;
        Rejected::unless(fits, "least", "`least` must be above 0, and 1 at most")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, trained, buckets): (Dataset, Model, Buckets) =
            (context.read("dataset")?, context.read("model")?, context.read("buckets")?);
        model::check_fit(&trained, &dataset)?;
        let remedy = "make buckets and condensed images from the same dataset";
        if buckets.ids != dataset.ids {
            return Err(Failure::new("the buckets divide another dataset", remedy).into());
        }
        let [channels, height, width] = dataset.image_shape();
        if parameters.tiles > height.min(width) {
            let message = format!("{0} x {0} crops do not fit into {height} x {width} pixels", parameters.tiles);
            return Err(Failure::new(message, "give fewer `tiles`").into());
        }
        let network = model::to_network(&trained)?;
        let samples = Samples::of_whole_dataset(&dataset);
        let streams = Streams::new(context.seed(), "condense/crops");
        let (mut images, mut bucket_of, mut behind) = (Vec::new(), Vec::new(), Vec::new());
        let members = buckets.members();
        for (bucket, rows) in members.iter().enumerate() {
            let crops = easiest(&network, &samples, rows, buckets.class[bucket], parameters, &streams, bucket)?;
            let each = parameters.tiles * parameters.tiles;
            // Of a small bucket some crops come again.
            for image in 0..parameters.images {
                let chosen: Vec<&(f64, usize, Vec<f32>)> = (0..each).map(|tile| &crops[(image * each + tile) % crops.len()]).collect();
                let pieces: Vec<Vec<f32>> = chosen.iter().map(|(_, _, crop)| crop.clone()).collect();
                images.extend(tiled(&pieces, [channels, height, width], parameters.tiles));
                bucket_of.push(bucket as u32);
                let mut ids: Vec<u64> = chosen.iter().map(|(_, row, _)| dataset.ids[*row]).collect();
                ids.sort_unstable();
                ids.dedup();
                behind.push(Members { weights: vec![0.0; ids.len()], ids });
            }
            context.progress().step("buckets", bucket + 1, members.len());
        }
        let labels: Vec<u32> = bucket_of.iter().map(|&bucket| buckets.class[bucket as usize]).collect();
        let images = Array::new(vec![labels.len(), channels, height, width], images);
        let (targets, reach) = match parameters.labels {
            Labels::Hard => (one_hot(&labels, dataset.classes()), Reach::Bucket),
            Labels::Soft => {
                let said = evaluate::judge(&network, &Samples::of_values(images.clone(), labels)?)?.logits;
                (softmax(said), Reach::Global)
            }
        };
        let facts = CondensedFacts { maker: Self::NAME.into(), reach };
        context.write("condensed", &Condensed { images, targets, bucket: bucket_of, members: behind, facts })
    }
}

/// The probabilities of logits, [n, K].
pub(super) fn softmax(logits: Array<f32>) -> Array<f32> {
    let classes = logits.row_len();
    let of_row = |row: &[f32]| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f64> = row.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(move |share| (share / sum) as f32)
    };
    Array::new(logits.shape.clone(), logits.data.chunks_exact(classes).flat_map(of_row).collect())
}

/// The easiest crop of each of a bucket's images, the easiest first: its loss, the row of its image, and its values at the image's size.
fn easiest(
    network: &Network,
    samples: &Samples,
    rows: &[usize],
    class: u32,
    parameters: &Parameters,
    streams: &Streams,
    bucket: usize,
) -> anyhow::Result<Vec<(f64, usize, Vec<f32>)>> {
    let [height, width] = [samples.shape()[1], samples.shape()[2]];
    let mut stream = streams.indexed("crops", bucket as u64);
    let mut best = Vec::with_capacity(rows.len());
    for &row in rows {
        let (image, _) = samples.batch(&[row])?;
        let image = image.to_device(&Device::Cpu)?;
        let mut candidates = Vec::with_capacity(parameters.candidates);
        for _ in 0..parameters.candidates {
            let share = (parameters.least + (1.0 - parameters.least) * stream.uniform_f64()).sqrt();
            let [rows, columns] = [height, width].map(|side| ((share * side as f64).round() as usize).clamp(1, side));
            let (top, left) = (stream.below(height - rows + 1), stream.below(width - columns + 1));
            let crop = image.narrow(2, top, rows)?.narrow(3, left, columns)?.contiguous()?;
            candidates.push(resized(&crop, [height, width])?);
        }
        let crops = Tensor::cat(&candidates, 0)?;
        let logits = network.evaluate(&crops.to_device(&network.place().device)?, &dcu_nn::Part::ALL)?;
        let losses = ops::cross_entropy_per_sample(&logits, &vec![class; parameters.candidates])?;
        let place = (0..losses.len()).fold(0, |best, other| if losses[other] < losses[best] { other } else { best });
        best.push((losses[place], row, candidates[place].flatten_all()?.to_vec1()?));
    }
    best.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
    Ok(best)
}

#[cfg(test)]
mod tests {
    use dcu_nn::{Architecture, Family};

    use super::*;

    #[test]
    fn the_easiest_crops_come_first_and_one_of_each_image() {
        let architecture = Architecture { widths: vec![6, 5], ..Architecture::of_family(Family::Mlp, [1, 6, 6], 2) };
        let network = Network::initialised(&architecture, &Streams::new(1, "test")).unwrap();
        let values = (0..5 * 36).map(|value| ((value * 7) as f32).sin()).collect();
        let samples = Samples::of_values(Array::new(vec![5, 1, 6, 6], values), vec![0; 5]).unwrap();
        let of = |candidates, least| {
            let parameters = Parameters { candidates, least, ..Parameters::default() };
            easiest(&network, &samples, &[0, 2, 3, 4], 1, &parameters, &Streams::new(2, "test"), 0).unwrap()
        };
        let found = of(8, 0.2);
        assert!(found.is_sorted_by(|left, right| left.0 <= right.0));
        let mut rows: Vec<usize> = found.iter().map(|(_, row, _)| *row).collect();
        rows.sort_unstable();
        assert_eq!(rows, [0, 2, 3, 4]);
        // A crop of the whole image is the image, and the only choice.
        for (_, row, crop) in of(1, 1.0) {
            crop.iter().zip(samples.values(&[row])).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-6));
        }
        let whole: f64 = of(1, 1.0).iter().map(|(loss, ..)| loss).sum();
        assert!(found.iter().map(|(loss, ..)| loss).sum::<f64>() < whole, "of eight crops the easiest is easier than the image");
    }
}
