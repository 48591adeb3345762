//! `condense/gm`: images that give the gradients of a network's weights that their bucket gives (gradient matching, Zhao et al., arXiv 2006.05929; with the changes to all images of
//! arXiv 2102.08259).
//!
//! What the distance of two gradients says of the pixels is a product with the mixed second derivatives of the loss. It is taken as the difference of the gradients of the pixels at
//! weights on both sides, so that first derivatives are enough. Some of the thousands of units have their kink near by, and a difference across one has nothing to do with the slope:
//! the sides are so near to one another that f64 is needed to tell them apart. The networks begin with random weights: what an image shows comes from its bucket. With `outer` above 1
//! they learn from the condensed images of all buckets in between, and the reach is `global`.

use candle_core::{DType, Tensor, Var};
use dcu_artifact::{Buckets, Condensed, Dataset, Model, Reach};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::{Gradients, Network, Samples, Trainable, ops};
use dcu_stage::{Context, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::synthetic::{Canvas, Siamese, check_widths, convnet3, in_f64, weights};

pub(crate) struct Gm;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Images of each bucket. For images of each class take buckets of `k: 1`.
    images: usize,
    /// Along each side of an image, so many small ones lie beside one another, which are enlarged before they are used.
    tiles: usize,
    /// Networks, each of which starts anew.
    networks: usize,
    /// Steps of the pixels with each network; published: 1 for one image of each class, 10 for ten, 50 for fifty.
    outer: usize,
    /// Epochs that the network learns from the condensed images between two of them; published: 1, 50 and 10.
    inner: usize,
    /// The learning rate of the pixels.
    lr: f64,
    /// The learning rate of the network.
    network_lr: f64,
    /// Real samples of each bucket that a step takes.
    batch: usize,
    /// The channels of the ConvNet-3.
    widths: Vec<usize>,
    /// Whether all images of a step are changed in the same random way.
    augment: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            images: 1,
            tiles: 1,
            networks: 300,
            outer: 1,
            inner: 1,
            lr: 0.1,
            network_lr: 0.01,
            batch: 64,
            widths: vec![128, 128, 128],
            augment: true,
        }
    }
}

impl Method for Gm {
    const NAME: &'static str = "gm";
    const VERSION: u32 = 3;
    const SUMMARY: &'static str = "Condenses each bucket to images that give the gradients that the bucket gives";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::one::<Buckets>("buckets"), Input::unused::<Model>("model")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Condensed>("condensed")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        let counts = [
            ("images", parameters.images),
            ("tiles", parameters.tiles),
            ("networks", parameters.networks),
            ("outer", parameters.outer),
            ("batch", parameters.batch),
        ];
        for (name, value) in counts {
            Rejected::unless(value > 0, name, format!("`{name}` must be at least 1"))?;
        }
        for (name, value) in [("lr", parameters.lr), ("network_lr", parameters.network_lr)] {
            Rejected::unless(value > 0.0 && value.is_finite(), name, format!("`{name}` must be positive"))?;
        }
        check_widths(&parameters.widths)?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, buckets): (Dataset, Buckets) = (context.read("dataset")?, context.read("buckets")?);
        let streams = Streams::new(context.seed(), "condense/gm");
        let mut canvas = Canvas::drawn(&dataset, &buckets, parameters.images, parameters.tiles, &streams)?;
        let (samples, mut checkpoints) = (Samples::of_whole_dataset(&dataset), context.checkpoints());
        let first = canvas.resume(&checkpoints)?;
        let architecture = convnet3(&dataset, &parameters.widths);
        let [_, height, width] = dataset.image_shape();
        context.progress().phase("matching");
        for start in first..parameters.networks {
            let network = Network::initialised(&architecture, &streams.clone().replicate(u32::try_from(start + 1)?))?;
            let mut learner = Optimiser::new(Rule::Sgd { momentum: 0.5, weight_decay: 0.0 });
            for outer in 0..parameters.outer {
                let index = (start * parameters.outer + outer) as u64;
                let mut draws = streams.indexed("real", index);
                let (mut sum, mut total) = (canvas.pixels().zeros_like()?, 0.0);
                for bucket in 0..canvas.buckets() {
                    let change = if parameters.augment { Siamese::drawn(&mut draws, [height, width]) } else { Siamese::None };
                    let members = canvas.members(bucket);
                    let rows = draws.permutation(members.len()).into_iter().take(parameters.batch);
                    let (images, labels) = samples.batch(&rows.map(|place| members[place]).collect::<Vec<_>>())?;
                    let (gradient, distance) = matched(&network, &canvas, bucket, (&images, &labels), change)?;
                    sum = (sum + gradient)?;
                    total += distance;
                }
                canvas.step(Some(sum), total, parameters.lr)?;
                if outer + 1 < parameters.outer {
                    learn(&network, &canvas, parameters, &mut learner)?;
                }
            }
            context.progress().step("networks", start + 1, parameters.networks);
            canvas.offer(&mut checkpoints, start + 1)?;
        }
        let mut condensed = canvas.finish(&dataset, Self::NAME)?;
        if parameters.outer > 1 {
            condensed.facts.reach = Reach::Global;
        }
        context.write("condensed", &condensed)
    }
}

/// What the distance between the gradients of a bucket's images and of real ones says of the pixels, and the distance.
pub(crate) fn matched(
    network: &Network,
    canvas: &Canvas,
    bucket: usize,
    (images, labels): (&Tensor, &[u32]),
    change: Siamese,
) -> candle_core::Result<(Tensor, f64)> {
    let (trainable, none) = (Trainable::all(network.graph()), Trainable::none());
    let wanted = network.backward(&ops::cross_entropy(&network.judge(&change.apply(images)?, &trainable)?, labels)?, &trainable)?;
    let (images, labels) = canvas.decoded(bucket..bucket + 1)?;
    let images = change.apply(&images)?;
    let mut network = in_f64(network)?;
    let inputs = Var::from_tensor(&images.detach().to_dtype(DType::F64)?)?;
    let own = network.backward(&ops::cross_entropy(&network.judge(&inputs.as_detached_tensor(), &trainable)?, &labels)?, &trainable)?;
    let (distance, direction) = distance(&own, &wanted.map(|_, tensor| tensor.to_dtype(DType::F64))?)?;
    let norm = direction.norm()?;
    if norm == 0.0 {
        return Ok((canvas.pixels().zeros_like()?, distance));
    }
    let before = weights(&network)?;
    let move_by = MOVE / norm;
    let mut sides = Vec::new();
    for sign in [1.0, -1.0] {
        network.set(&before.plus(sign * move_by, &direction)?)?;
        let gradient = ops::cross_entropy(&network.judge(&inputs, &none)?, &labels)?.backward()?.remove(&inputs);
        sides.push(gradient.ok_or_else(|| candle_core::Error::msg("the loss does not depend on the images"))?);
    }
    let slope = ((&sides[0] - &sides[1])? / (2.0 * move_by))?;
    Ok((canvas.of_pixels(&images, &slope)?, distance))
}

/// How far weights are moved for a difference of gradients, of the norm of all of them.
const MOVE: f64 = 1e-7;
/// Added to norms, which may be 0.
const EPSILON: f64 = 1e-6;
/// Added to squares of norms, whose root has no slope at 0: too little to change any other.
const TINY: f64 = 1e-30;

/// The sum over outputs of one minus the cosine between the gradients of the weights that lead there, and its slope by `own`; biases and normalisation do not count.
fn distance(own: &Gradients, wanted: &Gradients) -> candle_core::Result<(f64, Gradients)> {
    let variables: Vec<(String, Var)> =
        own.iter().map(|(name, tensor)| Ok((name.to_owned(), Var::from_tensor(tensor)?))).collect::<candle_core::Result<_>>()?;
    let mut sum: Option<Tensor> = None;
    for (name, own) in variables.iter().filter(|(_, own)| own.rank() > 1) {
        let (own, wanted) = (own.flatten_from(1)?, wanted.get(name).expect("of the same network").flatten_from(1)?);
        let norm = |rows: &Tensor| (rows.sqr()?.sum(1)? + TINY)?.sqrt();
        let product = (&own * &wanted)?.sum(1)?;
        let cosine = (product / ((norm(&own)? * norm(&wanted)?)? + EPSILON)?)?;
        let part = cosine.affine(-1.0, 1.0)?.sum_all()?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    let sum = sum.ok_or_else(|| candle_core::Error::msg("the network has no weights"))?;
    let mut slopes = sum.backward()?;
    let slope = |(name, own): &(String, Var)| match slopes.remove(own) {
        Some(slope) => Ok((name.clone(), slope)),
        None => Ok((name.clone(), own.zeros_like()?)),
    };
    let direction: Gradients = variables.iter().map(slope).collect::<candle_core::Result<_>>()?;
    Ok((sum.to_dtype(DType::F64)?.to_scalar::<f64>()?, direction))
}

/// So many epochs of the network on the condensed images, all at once.
pub(crate) fn learn(network: &Network, canvas: &Canvas, parameters: &Parameters, learner: &mut Optimiser) -> candle_core::Result<()> {
    let trainable = Trainable::all(network.graph());
    let (images, labels) = canvas.decoded(0..canvas.buckets())?;
    let images = images.detach();
    for _ in 0..parameters.inner {
        let loss = ops::cross_entropy(&network.judge(&images, &trainable)?, &labels)?;
        learner.step(&network.parameters(&trainable), &network.backward(&loss, &trainable)?, parameters.network_lr)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn of(values: &[f32]) -> Gradients {
        let weight = Tensor::from_slice(values, (2, 2), &Device::Cpu).unwrap();
        [("weight".to_owned(), weight), ("bias".to_owned(), Tensor::new(&[1.0_f32, 2.0], &Device::Cpu).unwrap())].into_iter().collect()
    }

    #[test]
    fn the_distance_is_that_of_directions_output_by_output() {
        let far = |own: &[f32], wanted: &[f32]| distance(&of(own), &of(wanted)).unwrap().0;
        assert!(far(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0, 0.3, 0.4]).abs() < 1e-5);
        // A right angle, and opposite directions.
        assert!((far(&[1.0, 0.0, 1.0, 1.0], &[0.0, 1.0, -1.0, -1.0]) - 3.0).abs() < 1e-5);
        let (_, slope) = distance(&of(&[1.0, 0.0, 1.0, 1.0]), &of(&[0.0, 1.0, 1.0, 1.0])).unwrap();
        let rows = slope.get("weight").unwrap().to_vec2::<f32>().unwrap();
        assert!(rows[0][1] < -0.9 && rows[1].iter().all(|value| value.abs() < 1e-5), "{rows:?}");
        assert_eq!(slope.get("bias").unwrap().to_vec1::<f32>().unwrap(), [0.0; 2]);
    }

    #[test]
    fn an_output_without_a_gradient_has_a_slope_that_is_a_number() {
        // Of a dead unit, own and wanted.
        for (own, wanted) in [([0.0, 0.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]), ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 3.0, 4.0])] {
            let (distance, slope) = distance(&of(&own), &of(&wanted)).unwrap();
            let values = slope.get("weight").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!((distance - 1.0).abs() < 1e-5 && values.iter().all(|value| value.is_finite()), "{distance} {values:?}");
        }
        let none = [0.0; 4];
        let values = distance(&of(&none), &of(&none)).unwrap().1.get("weight").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values, none);
    }

    /// The difference of gradients is the slope of the distance by a pixel.
    #[test]
    fn the_pixels_move_as_the_distance_says() {
        use dcu_artifact::{Array, DatasetFacts, Normalisation};
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: vec!["a".into(), "b".into()],
            normalisation: Normalisation { mean: vec![0.5], std: vec![0.25] },
            names: None,
        };
        let pixels = (0..4 * 64).map(|value| (value * 89 % 256) as u8).collect();
        let dataset = Dataset {
            images: Array::new(vec![4, 1, 8, 8], pixels),
            labels: vec![0, 0, 1, 1],
            original_labels: None,
            ids: (0..4).collect(),
            facts,
        };
        let buckets = Buckets {
            ids: dataset.ids.clone(),
            bucket: vec![0, 0, 1, 1],
            class: vec![0, 1],
            centroids: Array::new(vec![2, 1], vec![0.0; 2]),
            k: 1,
        };
        let streams = Streams::new(1, "test");
        let canvas = Canvas::drawn(&dataset, &buckets, 1, 1, &streams).unwrap();
        let architecture = convnet3(&dataset, &[4, 4, 4]);
        let network = Network::initialised(&architecture, &streams).unwrap();
        let samples = Samples::of_whole_dataset(&dataset);
        let (images, labels) = samples.batch(&[2, 3]).unwrap();
        let at = |()| matched(&network, &canvas, 0, (&images, &labels), Siamese::None).unwrap();
        let (gradient, _) = at(());
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let before = canvas.pixels().as_detached_tensor().copy().unwrap();
        let norm = gradient.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!(norm > 0.0 && gradient[64..].iter().all(|&value| value == 0.0), "only the bucket's own image");
        let by = 2e-2_f64;
        let direction = Tensor::from_vec(gradient.clone(), before.dims(), &Device::Cpu).unwrap();
        let mut sides = Vec::new();
        for sign in [1.0, -1.0] {
            canvas.pixels().set(&(&before + (&direction * (sign * by / f64::from(norm))).unwrap()).unwrap()).unwrap();
            sides.push(at(()).1);
        }
        let found = (sides[0] - sides[1]) / (2.0 * by);
        assert!((found - f64::from(norm)).abs() < 0.1 * f64::from(norm), "{found} {norm}");
    }
}
