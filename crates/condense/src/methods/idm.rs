//! `condense/idm`: images of several small ones whose mean feature is that of their bucket's in networks that have learned a little, and that such networks classify rightly
//! (improved distribution matching, Zhao et al., arXiv 2307.09742).
//!
//! A new network joins a queue now and then, and the oldest leaves. In each step one of them moves the images, and some learn. The cross-entropy of the images counts the more,
//! the more of its batches the network got right when it learned last: the authors' code takes the share in percent, so that its weight of 0.5 is one of 50 here. Networks that
//! learn, be it from condensed images, have seen all buckets: the reach is `global`, and `bucket` only where none learns.
//!
//! Published are 20,000 steps, a queue of 100 and batches of 256; the defaults are smaller.

use std::collections::{BTreeMap, VecDeque};

use candle_core::{Tensor, bail};
use dcu_artifact::{Array, Buckets, Condensed, Dataset, Model, Reach, Tensor as Stored};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::{Stream, Streams};
use dcu_nn::{Architecture, Network, Samples, Trainable, ops, train};
use dcu_stage::{Context, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dm;
use crate::synthetic::{Canvas, Siamese, check_widths, convnet3};

pub(crate) struct Idm;

/// What the networks learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// Real samples, as published.
    Real,
    /// The condensed images as they are by then.
    Condensed,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Images of each bucket. For images of each class take buckets of `k: 1`.
    images: usize,
    /// Along each side of an image, so many small ones lie beside one another, which are enlarged before they are used.
    tiles: usize,
    /// Steps of the pixels.
    steps: usize,
    /// The learning rate of the pixels.
    lr: f64,
    /// Real samples of each bucket that a step takes.
    batch: usize,
    /// How much the cross-entropy of the images counts in a network that gets everything right.
    ce: f64,
    /// The most networks at a time.
    queue: usize,
    /// Steps from one new network to the next.
    every: usize,
    /// Networks that learn after each step.
    learners: usize,
    /// Batches that each of them learns from; 0 leaves all as they began.
    network_steps: usize,
    /// What they learn from.
    learn_from: Source,
    /// Their learning rate.
    network_lr: f64,
    /// Samples or images in a batch that they learn from.
    network_batch: usize,
    /// The channels of the ConvNet-3.
    widths: Vec<usize>,
    /// Whether all images of a step are changed in the same random way.
    augment: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            images: 1,
            tiles: 2,
            steps: 500,
            lr: 0.2,
            batch: 64,
            ce: 0.5,
            queue: 10,
            every: 30,
            learners: 2,
            network_steps: 10,
            learn_from: Source::Real,
            network_lr: 0.01,
            network_batch: 64,
            widths: vec![128, 128, 128],
            augment: true,
        }
    }
}

impl Method for Idm {
    const NAME: &'static str = "idm";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str =
        "Condenses each bucket to tiles whose mean feature is that of the bucket in networks that have learned a little";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("dataset"), Input::one::<Buckets>("buckets"), Input::unused::<Model>("model")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Condensed>("condensed")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        let counts = [
            ("images", parameters.images),
            ("tiles", parameters.tiles),
            ("batch", parameters.batch),
            ("queue", parameters.queue),
            ("every", parameters.every),
            ("network_batch", parameters.network_batch),
        ];
        for (name, value) in counts {
            Rejected::unless(value > 0, name, format!("`{name}` must be at least 1"))?;
        }
        for (name, value) in [("lr", parameters.lr), ("network_lr", parameters.network_lr)] {
            Rejected::unless(value > 0.0 && value.is_finite(), name, format!("`{name}` must be positive"))?;
        }
        Rejected::unless(parameters.ce >= 0.0 && parameters.ce.is_finite(), "ce", "`ce` must be 0 or positive")?;
        check_widths(&parameters.widths)?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (dataset, buckets): (Dataset, Buckets) = (context.read("dataset")?, context.read("buckets")?);
        let streams = Streams::new(context.seed(), "condense/idm");
        let mut canvas = Canvas::drawn(&dataset, &buckets, parameters.images, parameters.tiles, &streams)?;
        let (samples, mut checkpoints) = (Samples::of_whole_dataset(&dataset), context.checkpoints());
        let mut queue = Queue::new(convnet3(&dataset, &parameters.widths), streams);
        let first = match canvas.resume_beside(&checkpoints)? {
            Some((done, tensors)) => {
                queue.restore(tensors)?;
                done
            }
            None => 0,
        };
        context.progress().phase("matching");
        for step in first..parameters.steps {
            round(parameters, &mut canvas, &mut queue, &samples, step)?;
            context.progress().step("steps", step + 1, parameters.steps);
            canvas.offer_beside(&mut checkpoints, step + 1, || queue.to_tensors())?;
        }
        context.write("condensed", &finished(parameters, canvas, &dataset)?)
    }
}

/// The condensed images, whose reach is that of what the networks saw.
fn finished(parameters: &Parameters, canvas: Canvas, dataset: &Dataset) -> candle_core::Result<Condensed> {
    let mut condensed = canvas.finish(dataset, Idm::NAME)?;
    if parameters.learners > 0 && parameters.network_steps > 0 {
        condensed.facts.reach = Reach::Global;
    }
    Ok(condensed)
}

/// A step of the images by one network of the queue, and what others learn after it.
fn round(parameters: &Parameters, canvas: &mut Canvas, queue: &mut Queue, samples: &Samples, step: usize) -> anyhow::Result<()> {
    if step.is_multiple_of(parameters.every) {
        queue.push(parameters.queue)?;
    }
    let (streams, index) = (queue.streams.clone(), step as u64);
    let change = if parameters.augment {
        Siamese::drawn(&mut streams.indexed("change", index), [samples.shape()[1], samples.shape()[2]])
    } else {
        Siamese::None
    };
    let mut draws = streams.indexed("real", index);
    let mut drawn = |bucket: usize| -> Vec<usize> {
        let members = canvas.members(bucket);
        draws.permutation(members.len()).into_iter().take(parameters.batch).map(|place| members[place]).collect()
    };
    let real: Vec<Vec<usize>> = (0..canvas.buckets()).map(&mut drawn).collect();
    let mut chosen = streams.indexed("queue", index);
    let guide = &queue.learners[chosen.below(queue.learners.len())];
    matched(canvas, &guide.network, samples, &real, change, (parameters.lr, parameters.ce * guide.right))?;
    if parameters.network_steps == 0 {
        return Ok(());
    }
    let own = canvas.decoded(0..canvas.buckets())?;
    let own = (own.0.detach(), own.1);
    for place in chosen.permutation(queue.learners.len()).into_iter().take(parameters.learners) {
        let mut batches = streams.indexed(&format!("learn {place}"), index);
        let learner = &mut queue.learners[place];
        let (mut right, mut seen) = (0, 0);
        for _ in 0..parameters.network_steps {
            let (images, labels) = match parameters.learn_from {
                Source::Real => samples.batch(&some(&mut batches, samples.len(), parameters.network_batch))?,
                Source::Condensed => {
                    let rows = some(&mut batches, own.1.len(), parameters.network_batch);
                    let places: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
                    let images = own.0.index_select(&Tensor::new(places, own.0.device())?, 0)?;
                    (images, rows.into_iter().map(|row| own.1[row]).collect())
                }
            };
            right += learner.learn(&images, &labels, parameters.network_lr)?;
            seen += labels.len();
        }
        learner.right = right as f64 / seen as f64;
    }
    Ok(())
}

/// So many of `of` rows at random, or all.
fn some(stream: &mut Stream, of: usize, most: usize) -> Vec<usize> {
    let mut rows = stream.permutation(of);
    rows.truncate(most);
    rows
}

/// A step of the images towards the mean features of real samples, and with a weight towards being classified rightly: the sum over buckets of the distance of [`dm::apart`]
/// and the mean cross-entropy of the bucket's images.
///
/// # Errors
/// When the loss is not finite.
pub(crate) fn matched(
    canvas: &mut Canvas,
    network: &Network,
    samples: &Samples,
    real: &[Vec<usize>],
    change: Siamese,
    (rate, ce): (f64, f64),
) -> candle_core::Result<()> {
    let (images, labels) = canvas.decoded(0..canvas.buckets())?;
    let images = change.apply(&images)?;
    let mut loss = dm::apart(network, &images, samples, real, change)?;
    if ce > 0.0 {
        let mean = ops::cross_entropy(&network.judge(&images, &Trainable::none())?, &labels)?;
        loss = (loss + (mean * (ce * real.len() as f64))?)?;
    }
    let gradient = loss.backward()?.remove(canvas.pixels());
    canvas.step(gradient, f64::from(loss.to_scalar::<f32>()?), rate)
}

/// How the networks learn.
const RULE: Rule = Rule::Sgd { momentum: 0.9, weight_decay: 5e-4 };

/// A network, and how much it has learned.
struct Learner {
    network: Network,
    optimiser: Optimiser,
    /// The share of its last batches that it got right; 0 before there were any.
    right: f64,
}

impl Learner {
    /// A step on a batch. Returns how many it got right before.
    fn learn(&mut self, images: &Tensor, labels: &[u32], rate: f64) -> candle_core::Result<usize> {
        let trainable = Trainable::all(self.network.graph());
        let logits = self.network.judge(images, &trainable)?;
        let loss = ops::cross_entropy(&logits, labels)?;
        let value = loss.to_scalar::<f32>()?;
        if !value.is_finite() {
            bail!("a network that the images are condensed by diverged: its loss is {value}; give a lower `network_lr`");
        }
        let said: Vec<u32> = logits.detach().argmax(1)?.to_vec1()?;
        self.optimiser.step(&self.network.parameters(&trainable), &self.network.backward(&loss, &trainable)?, rate)?;
        Ok(said.iter().zip(labels).filter(|(said, label)| said == label).count())
    }
}

/// Networks of different ages, the oldest first.
struct Queue {
    architecture: Architecture,
    streams: Streams,
    learners: VecDeque<Learner>,
    /// How many there have been.
    born: usize,
}

/// The names of a checkpoint's tensors: the shares that the networks got right, how many networks there have been, and what the names of a network's own begin with.
const RIGHT: &str = "right";
const BORN: &str = "born";
const NETWORK: &str = "network";

impl Queue {
    fn new(architecture: Architecture, streams: Streams) -> Self {
        Self { architecture, streams, learners: VecDeque::new(), born: 0 }
    }

    /// A new network joins; where there would be more than `most`, the oldest leaves.
    fn push(&mut self, most: usize) -> anyhow::Result<()> {
        self.born += 1;
        let network = Network::initialised(&self.architecture, &self.streams.clone().replicate(u32::try_from(self.born)?))?;
        self.learners.push_back(Learner { network, optimiser: Optimiser::new(RULE), right: 0.0 });
        if self.learners.len() > most {
            self.learners.pop_front();
        }
        Ok(())
    }

    fn to_tensors(&self) -> anyhow::Result<BTreeMap<String, Stored>> {
        let right = self.learners.iter().map(|learner| learner.right).collect();
        let mut tensors = BTreeMap::from([
            (RIGHT.to_owned(), Stored::F64(Array::vector(right))),
            (BORN.to_owned(), Stored::U64(Array::vector(vec![self.born as u64]))),
        ]);
        for (place, learner) in self.learners.iter().enumerate() {
            let own = train::snapshot(&learner.network, &learner.optimiser)?;
            tensors.extend(own.into_iter().map(|(name, tensor)| (format!("{NETWORK}{place}.{name}"), tensor)));
        }
        Ok(tensors)
    }

    /// Goes on where [`Self::to_tensors`] was called.
    fn restore(&mut self, mut tensors: BTreeMap<String, Stored>) -> anyhow::Result<()> {
        let (Some(Stored::F64(right)), Some(Stored::U64(born))) = (tensors.remove(RIGHT), tensors.remove(BORN)) else {
            anyhow::bail!("the checkpoint has no networks; delete it");
        };
        let Some(&born) = born.data.first() else { anyhow::bail!("the checkpoint has no networks; delete it") };
        self.born = usize::try_from(born)?;
        self.learners.clear();
        for (place, &right) in right.data.iter().enumerate() {
            let prefix = format!("{NETWORK}{place}.");
            let own = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone())));
            let like = Network::initialised(&self.architecture, &self.streams)?;
            let (network, optimiser) = train::resume(&like, RULE, own.collect())?;
            self.learners.push_back(Learner { network, optimiser, right });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{DatasetFacts, Normalisation};

    use super::*;

    /// Two buckets of four images each, of which all pixels of the last image are `last`.
    fn data(last: u8) -> (Dataset, Buckets) {
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: vec!["a".into(), "b".into()],
            normalisation: Normalisation { mean: vec![0.5], std: vec![0.25] },
            names: None,
        };
        let mut pixels: Vec<u8> = (0..8 * 64).map(|value| (value * 89 % 256) as u8).collect();
        pixels[7 * 64..].fill(last);
        let labels = vec![0, 0, 0, 0, 1, 1, 1, 1];
        let images = Array::new(vec![8, 1, 8, 8], pixels);
        let dataset = Dataset { images, labels: labels.clone(), original_labels: None, ids: (0..8).collect(), facts };
        let centroids = Array::new(vec![2, 1], vec![0.0; 2]);
        let buckets = Buckets { ids: dataset.ids.clone(), bucket: labels, class: vec![0, 1], centroids, k: 1 };
        (dataset, buckets)
    }

    fn parameters() -> Parameters {
        Parameters { ce: 5.0, queue: 2, every: 2, network_batch: 3, network_steps: 2, widths: vec![4, 4, 4], ..Parameters::default() }
    }

    fn begun(parameters: &Parameters, dataset: &Dataset, buckets: &Buckets) -> (Canvas, Queue) {
        let streams = Streams::new(1, "test");
        let canvas = Canvas::drawn(dataset, buckets, parameters.images, parameters.tiles, &streams).unwrap();
        (canvas, Queue::new(convnet3(dataset, &parameters.widths), streams))
    }

    fn condensed(parameters: &Parameters, last: u8) -> Condensed {
        let (dataset, buckets) = data(last);
        let samples = Samples::of_whole_dataset(&dataset);
        let (mut canvas, mut queue) = begun(parameters, &dataset, &buckets);
        for step in 0..7 {
            round(parameters, &mut canvas, &mut queue, &samples, step).unwrap();
        }
        finished(parameters, canvas, &dataset).unwrap()
    }

    #[test]
    fn images_rest_on_their_bucket_alone_where_no_network_learns_and_say_so_where_one_does() {
        for learn_from in [Source::Real, Source::Condensed] {
            let learned = Parameters { learn_from, ..parameters() };
            let [one, other] = [0, 255].map(|last| condensed(&learned, last));
            assert_ne!(one.images.row(0), other.images.row(0), "the first bucket sees the second through the networks");
            assert_eq!(one.facts.reach, Reach::Global);
        }
        for random in [Parameters { network_steps: 0, ..parameters() }, Parameters { learners: 0, ..parameters() }] {
            let [one, other] = [0, 255].map(|last| condensed(&random, last));
            assert_eq!(one.facts.reach, Reach::Bucket);
            assert_eq!((one.images.rows(), &one.images.data[..4 * 64]), (8, &other.images.data[..4 * 64]));
            assert_ne!(one.images.data, other.images.data);
        }
    }

    #[test]
    fn the_oldest_network_leaves_and_what_is_kept_of_them_goes_on_to_the_same_bytes() {
        let (parameters, (dataset, buckets)) = (parameters(), data(7));
        let samples = Samples::of_whole_dataset(&dataset);
        let (mut canvas, mut queue) = begun(&parameters, &dataset, &buckets);
        for step in 0..5 {
            round(&parameters, &mut canvas, &mut queue, &samples, step).unwrap();
        }
        assert_eq!((queue.learners.len(), queue.born), (2, 3));
        assert!(queue.learners.iter().any(|learner| learner.right > 0.0));
        let (_, mut again) = begun(&parameters, &dataset, &buckets);
        again.restore(queue.to_tensors().unwrap()).unwrap();
        let kept = canvas.pixels().as_detached_tensor().copy().unwrap();
        let after = [&mut queue, &mut again].map(|queue| {
            let (mut canvas, _) = begun(&parameters, &dataset, &buckets);
            canvas.pixels().set(&kept).unwrap();
            for step in 5..8 {
                round(&parameters, &mut canvas, queue, &samples, step).unwrap();
            }
            (canvas.pixels().flatten_all().unwrap().to_vec1::<f32>().unwrap(), queue.to_tensors().unwrap())
        });
        assert_eq!(after[0], after[1]);
        assert!(again.restore(BTreeMap::new()).unwrap_err().to_string().contains("delete it"));
    }
}
