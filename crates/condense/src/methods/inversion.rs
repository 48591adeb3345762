//! `condense/inversion`: one network draws the image of each bucket from its number (model inversion condensation, arXiv 2402.00195). It learns to draw all images of a bucket from the same
//! code, so that it draws about their mean, and to have them recognised by the model.
//!
//! All buckets share the network, and the model that recognises the images was trained on all of the data: the reach is `global`. With `codes: soft` the code of an image is what a classifier of
//! buckets says of it, which is trained first and recognises the drawings too.

use candle_core::{Device, Tensor};
use dcu_artifact::{Array, Buckets, Condensed, CondensedFacts, Dataset, Members, Model, Reach};
use dcu_nn::network::{self, Mode};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::recipe::Recipe;
use dcu_nn::rng::Streams;
use dcu_nn::train::Fit;
use dcu_nn::{Architecture, Family, Network, Part, Samples, Trainable, evaluate, model, ops};
use dcu_stage::{Context, Failure, Input, Method, Output, Progress, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::synthetic::one_hot;

pub(crate) struct Inversion;

/// What an image is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Codes {
    /// The number of its bucket, one-hot.
    OneHot,
    /// What a classifier of buckets says of it.
    Soft,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// What an image is drawn from.
    codes: Codes,
    /// Epochs of the network that draws.
    epochs: usize,
    /// The learning rate of Adam.
    lr: f64,
    /// Samples in a batch.
    batch: usize,
    /// The hidden layers of the network that draws.
    widths: Vec<usize>,
    /// The hidden layers of the classifier of buckets, for `codes: soft`.
    classifier_widths: Vec<usize>,
    /// Epochs of the classifier of buckets.
    classifier_epochs: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            codes: Codes::OneHot,
            epochs: 200,
            lr: 1e-3,
            batch: 256,
            widths: vec![128, 512, 2048, 4096],
            classifier_widths: vec![2048, 512, 256],
            classifier_epochs: 40,
        }
    }
}

impl Method for Inversion {
    const NAME: &'static str = "inversion";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Condenses each bucket to what a network draws of its number, which learned to draw the bucket's images";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::one::<Model>("model"), Input::one::<Buckets>("buckets")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Condensed>("condensed")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.lr > 0.0 && parameters.lr.is_finite(), "lr", "`lr` must be positive")?;
        for (name, value) in [("epochs", parameters.epochs), ("classifier_epochs", parameters.classifier_epochs)] {
            Rejected::unless(value > 0, name, format!("`{name}` must be at least 1"))?;
        }
        Rejected::unless(parameters.batch > 1, "batch", "`batch` must be at least 2")?;
        for (name, widths) in [("widths", &parameters.widths), ("classifier_widths", &parameters.classifier_widths)] {
            Rejected::unless(!widths.is_empty() && !widths.contains(&0), name, format!("`{name}` are positive numbers"))?;
        }
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, trained, buckets): (Dataset, Model, Buckets) =
            (context.read("dataset")?, context.read("model")?, context.read("buckets")?);
        model::check_fit(&trained, &dataset)?;
        if buckets.ids != dataset.ids {
            let remedy = "make buckets and condensed images from the same dataset";
            return Err(Failure::new("the buckets divide another dataset", remedy).into());
        }
        let (streams, samples) = (Streams::new(context.seed(), "condense/inversion"), Samples::of_whole_dataset(&dataset));
        let (count, [channels, height, width]) = (buckets.class.len(), dataset.image_shape());
        let (judge, targets, codes) = match parameters.codes {
            Codes::OneHot => (model::to_network(&trained)?, dataset.labels.clone(), one_hot(&buckets.bucket, count)),
            Codes::Soft => {
                context.progress().phase("classifier");
                let judge = classifier(parameters, &dataset, &buckets, &streams)?;
                let said = evaluate::judge(&judge, &samples)?.logits;
                (judge, buckets.bucket.clone(), said)
            }
        };
        let codes = if parameters.codes == Codes::Soft { super::crops::softmax(codes) } else { codes };
        let painter = painter(parameters, &judge, &samples, (&targets, &codes), &streams, context.progress())?;
        let all: Vec<u32> = (0..count as u32).collect();
        let numbers = Tensor::from_vec(one_hot(&all, count).data, (count, count, 1, 1), &Device::Cpu)?;
        let images = painter.evaluate(&numbers, &Part::ALL)?.flatten_all()?.to_vec1()?;
        let members = buckets.members().into_iter().map(|rows| {
            let ids: Vec<u64> = rows.into_iter().map(|row| dataset.ids[row]).collect();
            Members { weights: vec![0.0; ids.len()], ids }
        });
        let condensed = Condensed {
            images: Array::new(vec![count, channels, height, width], images),
            targets: one_hot(&buckets.class, dataset.classes()),
            bucket: all,
            members: members.collect(),
            facts: CondensedFacts { maker: Self::NAME.into(), reach: Reach::Global },
        };
        context.write("condensed", &condensed)
    }
}

/// A network that draws from codes, [N, B], what is recognised as `targets`, and like the samples.
fn painter(
    parameters: &Parameters,
    judge: &Network,
    samples: &Samples,
    (targets, codes): (&[u32], &Array<f32>),
    streams: &Streams,
    progress: Progress,
) -> anyhow::Result<Network> {
    let (count, shape) = (codes.row_len(), samples.shape());
    let published = Architecture::of_family(Family::Mlp, [count, 1, 1], shape.iter().product());
    let architecture = Architecture { widths: parameters.widths.clone(), ..published };
    let mut painter = Network::initialised(&architecture, streams)?;
    let trainable = Trainable::all(painter.graph());
    let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
    progress.phase("drawing");
    for epoch in 0..parameters.epochs {
        let order = streams.indexed("shuffle", epoch as u64).permutation(samples.len());
        for rows in order.chunks(parameters.batch) {
            let (images, _) = samples.batch(rows)?;
            let own = codes.select(rows);
            let own = Tensor::from_vec(own.data, (rows.len(), count, 1, 1), &Device::Cpu)?;
            let mut dropout = streams.indexed("dropout", epoch as u64);
            let drawn = painter.forward(&own, &Part::ALL, network::all(Mode::TRAIN), &trainable, &mut dropout)?;
            let drawn = drawn.reshape(images.dims())?;
            let labels: Vec<u32> = rows.iter().map(|&row| targets[row]).collect();
            let recognised = ops::cross_entropy(&judge.judge(&drawn, &Trainable::none())?, &labels)?;
            let loss = (recognised + ops::squared_error(&drawn, &images)?)?;
            let value = loss.to_scalar::<f32>()?;
            if !value.is_finite() {
                let message = format!("the training diverged: in epoch {} the loss is {value}", epoch + 1);
                return Err(Failure::new(message, "give a lower `lr`").into());
            }
            optimiser.step(&painter.parameters(&trainable), &painter.backward(&loss, &trainable)?, parameters.lr)?;
        }
        progress.step("epochs", epoch + 1, parameters.epochs);
    }
    Ok(painter)
}

/// A classifier of buckets.
fn classifier(parameters: &Parameters, dataset: &Dataset, buckets: &Buckets, streams: &Streams) -> anyhow::Result<Network> {
    let rows: Vec<usize> = (0..dataset.len()).collect();
    let samples = Samples::of_pixels(dataset.images.select(&rows), &dataset.facts.normalisation, buckets.bucket.clone())?;
    let published = Architecture::of_family(Family::Mlp, dataset.image_shape(), buckets.class.len());
    let architecture = Architecture { widths: parameters.classifier_widths.clone(), ..published };
    let streams = streams.clone().replicate(2);
    let recipe = Recipe { epochs: parameters.classifier_epochs, batch: 128, lr: 1e-3, ..Recipe::default() };
    let mut fit = Fit::new(Network::initialised(&architecture, &streams)?, recipe, streams);
    while fit.next_epoch(&samples)?.is_some() {}
    Ok(fit.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_of_a_bucket_comes_near_the_mean_of_its_images() {
        // Two buckets, whose images differ from their means by 0.1.
        let pixel = |row: usize, place: usize| {
            let mean = if row < 4 { (place as f32).sin() } else { -(place as f32).cos() };
            mean + if row.is_multiple_of(2) { 0.1 } else { -0.1 }
        };
        let values = (0..8 * 12).map(|index| pixel(index / 12, index % 12)).collect();
        let bucket: Vec<u32> = (0..8).map(|row| row / 4).collect();
        let samples = Samples::of_values(Array::new(vec![8, 1, 3, 4], values), bucket.clone()).unwrap();
        let streams = Streams::new(1, "test");
        let judge = Architecture { widths: vec![5, 4], ..Architecture::of_family(Family::Mlp, [1, 3, 4], 2) };
        let judge = Network::initialised(&judge, &streams).unwrap();
        let drawn = |epochs: usize| {
            let parameters = Parameters { epochs, widths: vec![16, 32], lr: 0.01, batch: 8, ..Parameters::default() };
            let painter = painter(&parameters, &judge, &samples, (&bucket, &one_hot(&bucket, 2)), &streams, Progress::silent()).unwrap();
            let codes = Tensor::from_vec(one_hot(&[0, 1], 2).data, (2, 2, 1, 1), &Device::Cpu).unwrap();
            painter.evaluate(&codes, &Part::ALL).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let far = |drawn: &[f32]| {
            let means = (0..24).map(|index| f32::midpoint(pixel(4 * (index / 12), index % 12), pixel(4 * (index / 12) + 1, index % 12)));
            drawn.iter().zip(means).map(|(drawn, mean)| (drawn - mean).powi(2)).sum::<f32>() / 24.0
        };
        let (before, after) = (far(&drawn(1)), far(&drawn(300)));
        assert!(after < 0.1 * before, "{before} {after}");
    }
}
