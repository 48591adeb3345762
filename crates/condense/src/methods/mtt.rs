//! `condense/mtt`: images on which a network goes the way that others went on all of the data (matching training trajectories, Cazenave et al., arXiv 2203.11932), at a small size: few experts, short ways,
//! no whitening, one rate for the student.
//!
//! The slope goes back through the student's steps by products with second derivatives of its loss, which are taken as differences of gradients, in f64 and between
//! weights so near to one another that hardly a unit has its kink between them. The experts saw all of the data: the reach is
//! `global`.

use candle_core::{DType, Tensor, Var};
use dcu_artifact::{Buckets, Condensed, Dataset, Model, Reach};
use dcu_nn::network::backward_to;
use dcu_nn::recipe::{OptimiserName, Recipe};
use dcu_nn::rng::Streams;
use dcu_nn::train::Fit;
use dcu_nn::{Architecture, Gradients, Network, Samples, Trainable, ops};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::synthetic::{Canvas, check_widths, convnet3, in_f64, weights};

pub(crate) struct Mtt;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Images of each bucket. For images of each class take buckets of `k: 1`.
    images: usize,
    /// Networks that are trained on all of the data first.
    experts: usize,
    /// Their epochs, after each of which they are remembered.
    expert_epochs: usize,
    /// How many epochs of an expert a student is to make up.
    span: usize,
    /// How many steps it has for that, each on all condensed images.
    student_steps: usize,
    /// The learning rate of students and experts.
    student_lr: f64,
    /// Steps of the pixels.
    steps: usize,
    /// The learning rate of the pixels.
    lr: f64,
    /// The channels of the ConvNet-3.
    widths: Vec<usize>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            images: 1,
            experts: 2,
            expert_epochs: 8,
            span: 2,
            student_steps: 10,
            student_lr: 0.01,
            steps: 200,
            lr: 100.0,
            widths: vec![128, 128, 128],
        }
    }
}

impl Method for Mtt {
    const NAME: &'static str = "mtt";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "Condenses to images on which a network goes the way that others went on all of the data";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::one::<Buckets>("buckets"), Input::unused::<Model>("model")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Condensed>("condensed")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        let counts = [
            ("images", parameters.images),
            ("experts", parameters.experts),
            ("span", parameters.span),
            ("student_steps", parameters.student_steps),
        ];
        for (name, value) in counts {
            Rejected::unless(value > 0, name, format!("`{name}` must be at least 1"))?;
        }
        let fits = parameters.expert_epochs >= parameters.span;
        Rejected::unless(fits, "expert_epochs", "`expert_epochs` must be at least `span`")?;
        for (name, value) in [("lr", parameters.lr), ("student_lr", parameters.student_lr)] {
            Rejected::unless(value > 0.0 && value.is_finite(), name, format!("`{name}` must be positive"))?;
        }
        check_widths(&parameters.widths)?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, buckets): (Dataset, Buckets) = (context.read("dataset")?, context.read("buckets")?);
        let streams = Streams::new(context.seed(), "condense/mtt");
        let mut canvas = Canvas::drawn(&dataset, &buckets, parameters.images, 1, &streams)?;
        let architecture = convnet3(&dataset, &parameters.widths);
        context.progress().phase("experts");
        let samples = Samples::of_whole_dataset(&dataset);
        let mut ways = Vec::new();
        for expert in 0..parameters.experts {
            let streams = streams.clone().replicate(u32::try_from(expert + 1)?);
            ways.push(way(&architecture, &samples, parameters, streams)?);
            context.progress().step("experts", expert + 1, parameters.experts);
        }
        let network = Network::initialised(&architecture, &streams)?;
        let mut checkpoints = context.checkpoints();
        let first = canvas.resume(&checkpoints)?;
        context.progress().phase("matching");
        for step in first..parameters.steps {
            let mut stream = streams.indexed("start", step as u64);
            let way = &ways[stream.below(ways.len())];
            let from = stream.below(way.len() - parameters.span);
            let steps = (parameters.student_steps, parameters.student_lr);
            let (gradient, distance) = matched(&network, &canvas, &way[from], &way[from + parameters.span], steps)?;
            canvas.step(Some(gradient), distance, parameters.lr)?;
            context.progress().step("steps", step + 1, parameters.steps);
            canvas.offer(&mut checkpoints, step + 1)?;
        }
        let mut condensed = canvas.finish(&dataset, Self::NAME)?;
        condensed.facts.reach = Reach::Global;
        context.write("condensed", &condensed)
    }
}

/// The weights of a network in training on all of the data, before it and after each epoch.
fn way(architecture: &Architecture, samples: &Samples, parameters: &Parameters, streams: Streams) -> anyhow::Result<Vec<Gradients>> {
    let recipe = Recipe {
        epochs: parameters.expert_epochs,
        batch: 256,
        lr: parameters.student_lr,
        optimiser: OptimiserName::Sgd,
        momentum: 0.0,
        ..Recipe::default()
    };
    let mut fit = Fit::new(Network::initialised(architecture, &streams)?, recipe, streams);
    let mut way = vec![weights(fit.network())?];
    while fit.next_epoch(samples)?.is_some() {
        way.push(weights(fit.network())?);
    }
    Ok(way)
}

/// What the distance between where a student ends that starts at `from`, and `to`, says of the pixels, and the distance, as a share of that between `from` and `to`.
///
/// # Errors
/// When these are the same, or the student comes to where there are no numbers.
pub(crate) fn matched(
    network: &Network,
    canvas: &Canvas,
    from: &Gradients,
    to: &Gradients,
    (steps, rate): (usize, f64),
) -> anyhow::Result<(Tensor, f64)> {
    let trainable = Trainable::all(network.graph());
    let mut network = in_f64(network)?;
    let [from, to] = [from, to].map(|weights| weights.map(|_, tensor| tensor.to_dtype(DType::F64)));
    let (from, to) = (from?, to?);
    let (images, labels) = canvas.decoded(0..canvas.buckets())?;
    let inputs = Var::from_tensor(&images.detach().to_dtype(DType::F64)?)?;
    // The gradients of the student's loss by its weights and by the images, at some weights.
    let mut slopes = |at: &Gradients| {
        network.set(at)?;
        let loss = ops::cross_entropy(&network.judge(&inputs, &trainable)?, &labels)?;
        let (mut gradients, mut of_inputs) = backward_to(&loss, &[(&network, &trainable)], &[&inputs])?;
        Ok::<_, candle_core::Error>((gradients.swap_remove(0), of_inputs.swap_remove(0)))
    };
    let whole = from.plus(-1.0, &to)?.norm()?.powi(2);
    if whole == 0.0 {
        let remedy = "give a larger `student_lr`, at which experts learn too, or a `span` of more epochs";
        return Err(Failure::new("an expert did not move in the `span` of epochs that a student is to make up", remedy).into());
    }
    let mut passed = vec![from.clone()];
    for step in 0..steps {
        let next = passed[step].plus(-rate, &slopes(&passed[step])?.0)?;
        passed.push(next);
    }
    let missing = passed[steps].plus(-1.0, &to)?;
    let distance = missing.norm()?.powi(2) / whole;
    if !distance.is_finite() {
        let remedy = "give a lower `student_lr`, or fewer `student_steps`";
        return Err(Failure::new(format!("a student diverged: its distance from the expert is {distance}"), remedy).into());
    }
    let mut slope = missing.scaled(2.0 / whole)?;
    let mut of_images = inputs.zeros_like()?;
    for at in passed[..steps].iter().rev() {
        let norm = slope.norm()?;
        if norm == 0.0 {
            break;
        }
        let by = MOVE / norm;
        let ((more, more_images), (less, less_images)) = (slopes(&at.plus(by, &slope)?)?, slopes(&at.plus(-by, &slope)?)?);
        let factor = -rate / (2.0 * by);
        of_images = (of_images + ((more_images - less_images)? * factor)?)?;
        slope = slope.plus(factor, &more.plus(-1.0, &less)?)?;
    }
    Ok((canvas.of_pixels(&images, &of_images)?, distance))
}

/// How far weights are moved for a difference of gradients, of the norm of all of them.
const MOVE: f64 = 1e-7;

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use dcu_artifact::{Array, DatasetFacts, Normalisation};

    use super::*;

    /// Four samples in two buckets, their images, and a small network.
    fn world() -> (Dataset, Canvas, Architecture, Streams) {
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: vec!["a".into(), "b".into()],
            normalisation: Normalisation { mean: vec![0.5], std: vec![0.25] },
            names: None,
        };
        let pixels = (0..4 * 64).map(|value| (value * 89 % 256) as u8).collect();
        let images = Array::new(vec![4, 1, 8, 8], pixels);
        let dataset = Dataset { images, labels: vec![0, 0, 1, 1], original_labels: None, ids: (0..4).collect(), facts };
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
        (dataset, canvas, architecture, streams)
    }

    #[test]
    fn an_expert_that_did_not_move_is_refused_with_its_parameter() {
        let (_, canvas, architecture, streams) = world();
        let network = Network::initialised(&architecture, &streams).unwrap();
        let same = weights(&network).unwrap();
        let failure = matched(&network, &canvas, &same, &same, (3, 0.1)).unwrap_err().downcast::<Failure>().unwrap();
        assert!(failure.message.contains("did not move") && failure.remedy.contains("`student_lr`"), "{failure:?}");
        let other = same.scaled(2.0).unwrap();
        let failure = matched(&network, &canvas, &same, &other, (3, 1e300)).unwrap_err().downcast::<Failure>().unwrap();
        assert!(failure.message.contains("student diverged") && failure.remedy.contains("`student_lr`"), "{failure:?}");
    }

    #[test]
    fn the_pixels_move_as_the_distance_says() {
        let (dataset, canvas, architecture, streams) = world();
        let parameters = Parameters { expert_epochs: 3, student_lr: 0.1, ..Parameters::default() };
        let way = way(&architecture, &Samples::of_whole_dataset(&dataset), &parameters, streams.clone()).unwrap();
        assert_eq!(way.len(), 4);
        let network = Network::initialised(&architecture, &streams).unwrap();
        let at = || matched(&network, &canvas, &way[0], &way[3], (3, 0.1)).unwrap();
        let gradient = at().0.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let norm = f64::from(gradient.iter().map(|value| value * value).sum::<f32>().sqrt());
        let before = canvas.pixels().as_detached_tensor().copy().unwrap();
        let direction = Tensor::from_vec(gradient, before.dims(), &Device::Cpu).unwrap();
        let by = 2e-3_f64;
        let mut sides = Vec::new();
        for sign in [1.0, -1.0] {
            canvas.pixels().set(&(&before + (&direction * (sign * by / norm)).unwrap()).unwrap()).unwrap();
            sides.push(at().1);
        }
        let found = (sides[0] - sides[1]) / (2.0 * by);
        assert!(norm > 0.0 && (found - norm).abs() < 0.1 * norm, "{found} {norm}");
    }
}
