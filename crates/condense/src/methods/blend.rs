//! `condense/blend`: condensed images as weighted means of their buckets' images whose features, in one network with random weights, come near the bucket's mean feature (Blend, arXiv
//! 2507.09786). Unlike `fdm` the weights of an image sum up to 1, the network never saw the data, and few steps are large.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var, bail};
use dcu_artifact::{Array, Buckets, Condensed, CondensedFacts, Dataset, Members, Model, Reach};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::{Gradients, Network, Samples, evaluate};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::matching::{WeightedSum, mean_features, one_after_another};
use crate::synthetic::{check_widths, convnet3, one_hot};

pub(crate) struct Blend;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Steps on the weights of each bucket.
    steps: usize,
    /// The learning rate of the weights; by default the published cubic of the buckets of a class, which makes up for the mean over them.
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,
    /// The channels of the ConvNet-3.
    widths: Vec<usize>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { steps: 12, lr: None, widths: vec![128, 128, 128] }
    }
}

impl Method for Blend {
    const NAME: &'static str = "blend";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Condenses each bucket to a weighted mean of its images that has their mean feature in a random network";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::one::<Buckets>("buckets"), Input::unused::<Model>("model")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Condensed>("condensed")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.lr.is_none_or(|lr| lr > 0.0 && lr.is_finite()), "lr", "`lr` must be positive")?;
        check_widths(&parameters.widths)?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, buckets): (Dataset, Buckets) = (context.read("dataset")?, context.read("buckets")?);
        if buckets.ids != dataset.ids {
            let remedy = "make buckets and condensed images from the same dataset";
            return Err(Failure::new("the buckets divide another dataset", remedy).into());
        }
        let network = Network::initialised(&convnet3(&dataset, &parameters.widths), &Streams::new(context.seed(), "condense/blend"))?;
        let members = buckets.members();
        let rate = parameters.lr.unwrap_or_else(|| published_rate(f64::from(buckets.k)));
        if rate <= 0.0 {
            let message =
                format!("the published learning rate for {} buckets of a class is {rate}, outside of what it was fitted for", buckets.k);
            return Err(Failure::new(message, "give an `lr`").into());
        }
        context.progress().phase("matching");
        let (images, weights) = blend(&network, &dataset, &members, parameters.steps, rate)?;
        let [channels, height, width] = dataset.image_shape();
        let mut rest = weights.as_slice();
        let behind = members.iter().map(|rows| {
            let (own, others) = rest.split_at(rows.len());
            rest = others;
            Members { ids: rows.iter().map(|&row| dataset.ids[row]).collect(), weights: own.to_vec() }
        });
        let condensed = Condensed {
            images: Array::new(vec![members.len(), channels, height, width], images),
            targets: one_hot(&buckets.class, dataset.classes()),
            bucket: (0..members.len() as u32).collect(),
            members: behind.collect(),
            facts: CondensedFacts { maker: Self::NAME.into(), reach: Reach::Bucket },
        };
        context.write("condensed", &condensed)
    }
}

/// The learning rate for so many buckets of a class.
fn published_rate(buckets: f64) -> f64 {
    -2.397e-6 * buckets.powi(3) + 0.01265 * buckets.powi(2) - 0.2558 * buckets + 1.461
}

/// The image of each bucket, and the weight of each sample in its bucket's.
pub(crate) fn blend(
    network: &Network,
    dataset: &Dataset,
    members: &[Vec<usize>],
    steps: usize,
    rate: f64,
) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
    let samples = Arc::new(Samples::of_dataset(dataset, &members.concat()));
    let ranges = one_after_another(members.iter().map(Vec::len));
    let targets = mean_features(&evaluate::features(network, &samples)?, &ranges)?;
    let bucket_of: Vec<u32> =
        members.iter().enumerate().flat_map(|(bucket, rows)| std::iter::repeat_n(bucket as u32, rows.len())).collect();
    let bucket_of = Tensor::new(bucket_of, &Device::Cpu)?;
    let start: Vec<f32> = members.iter().flat_map(|rows| std::iter::repeat_n(1.0 / rows.len() as f32, rows.len())).collect();
    let weights = Var::new(start, &Device::Cpu)?;
    let sum = WeightedSum { samples: samples.clone(), buckets: ranges };
    let shares = |weights: &Tensor| {
        let sums = Tensor::zeros(members.len(), weights.dtype(), &Device::Cpu)?.index_add(&bucket_of, weights, 0)?;
        weights / sums.index_select(&bucket_of, 0)?
    };
    let mut optimiser = Optimiser::new(Rule::Sgd { momentum: 0.5, weight_decay: 0.0 });
    for step in 0..steps {
        let features = network.features(&shares(&weights)?.apply_op1(sum.clone())?)?;
        let loss = (features - &targets)?.sqr()?.mean_all()?;
        let value = loss.to_scalar::<f32>()?;
        if !value.is_finite() {
            bail!("in step {} at the learning rate {rate} the loss is {value}; give a lower `lr`", step + 1);
        }
        let gradient = loss.backward()?.remove(&weights);
        let gradients: Gradients = gradient.map(|gradient| ("weights".to_owned(), gradient)).into_iter().collect();
        optimiser.step(&BTreeMap::from([("weights", &weights)]), &gradients, rate)?;
    }
    let shares = shares(&weights.as_detached_tensor())?;
    let images: Vec<f32> = shares.apply_op1(sum)?.flatten_all()?.to_vec1()?;
    if images.iter().any(|value| !value.is_finite()) {
        bail!("the blended images are not finite after {steps} steps; give a lower `lr`");
    }
    Ok((images, shares.to_vec1()?))
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{DatasetFacts, Normalisation};

    use super::*;

    #[test]
    fn the_weights_of_an_image_sum_up_to_one_and_its_feature_comes_nearer() {
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: vec!["a".into(), "b".into()],
            normalisation: Normalisation { mean: vec![0.5], std: vec![0.25] },
            names: None,
        };
        let pixels = (0..7 * 64).map(|value| (value * value * 31 % 256) as u8).collect();
        let labels = vec![0, 0, 0, 1, 1, 1, 1];
        let dataset = Dataset { images: Array::new(vec![7, 1, 8, 8], pixels), labels, original_labels: None, ids: (0..7).collect(), facts };
        let architecture = convnet3(&dataset, &[8, 8, 8]);
        let network = Network::initialised(&architecture, &Streams::new(1, "test")).unwrap();
        let members = [vec![0, 1, 2], vec![3, 4, 5, 6]];
        let of = |steps: usize| blend(&network, &dataset, &members, steps, 5.0).unwrap();
        let ((means, even), (images, weights)) = (of(0), of(12));
        assert!(even[..3].iter().all(|weight| (weight - 1.0 / 3.0).abs() < 1e-6));
        for range in [0..3, 3..7] {
            assert!((weights[range].iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
        let samples = Samples::of_dataset(&dataset, &members.concat());
        let targets = mean_features(&evaluate::features(&network, &samples).unwrap(), &[0..3, 3..7]).unwrap();
        let far = |images: &[f32]| {
            let features = network.features(&Tensor::from_slice(images, (2, 1, 8, 8), &Device::Cpu).unwrap()).unwrap();
            (features - &targets).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(far(&images) < far(&means), "{} {}", far(&images), far(&means));
    }

    #[test]
    fn the_published_rates_are_met() {
        for (buckets, rate) in [(2.0, 1.0), (10.0, 0.166), (50.0, 20.0), (100.0, 100.0)] {
            assert!((published_rate(buckets) - rate).abs() < 0.02 * rate + 0.01, "{buckets}: {}", published_rate(buckets));
        }
    }
}
