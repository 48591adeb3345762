//! Passes over the forget set and a share of the retain set, with something to learn of each sample: what methods share that teach a model what to say of
//! forgotten samples.

use std::collections::HashSet;

use dcu_artifact::{Array, Dataset, Model, Request};
use dcu_nn::network::{self, Mode};
use dcu_nn::ops::{self, Targets, Weighting};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::{Network, Part, Samples, Tensor, Trainable, model, train};
use dcu_stage::{Context, Failure, Rejected, Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// How much of it there is: the budget, and how it is spent.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Course {
    /// Passes over the forget set, which takes in those of earlier requests.
    pub(crate) passes: usize,
    /// The share of the retain set that goes along in each pass, drawn anew each time.
    pub(crate) share: f64,
    /// How much a forget sample counts beside a retain sample.
    pub(crate) forget_weight: f64,
    /// The learning rate of the first step of Adam; it falls evenly to 0.
    pub(crate) lr: f64,
    /// Samples in a batch.
    pub(crate) batch: usize,
}

impl Default for Course {
    fn default() -> Self {
        Self { passes: 8, share: 0.25, forget_weight: 1.0, lr: 1e-3, batch: 128 }
    }
}

impl Course {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the parameter.
    pub(crate) fn check(&self) -> Result<(), Rejected> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        Rejected::unless(self.passes > 0, "passes", "`passes` must be at least 1")?;
        Rejected::unless((0.0..=1.0).contains(&self.share), "share", "`share` must be from 0 to 1")?;
        Rejected::unless(positive(self.forget_weight), "forget_weight", "`forget_weight` must be positive")?;
        Rejected::unless(positive(self.lr), "lr", "`lr` must be positive")?;
        Rejected::unless(self.batch > 1, "batch", "`batch` must be at least 2")
    }
}

/// The samples of a request, and what there is to learn of each.
pub(crate) struct Lesson {
    samples: Samples,
    forget: usize,
    /// The probability of each class, [F + R, C].
    targets: Vec<f32>,
    classes: usize,
}

impl Lesson {
    /// What is [`forgotten`] with the probabilities of `targets`, [F, C], and the retain samples with their labels.
    ///
    /// # Errors
    /// When the dataset does not hold all of them, or does not fit the model.
    pub(crate) fn new(dataset: &Dataset, request: &Request, base: &Model, mut targets: Vec<f32>) -> anyhow::Result<Self> {
        model::check_fit(base, dataset)?;
        let forgotten = forgotten(request);
        let samples = Samples::of_ids(dataset, &[forgotten.as_slice(), &request.retain].concat())?;
        let (forget, classes) = (forgotten.len(), dataset.classes());
        assert_eq!(targets.len(), forget * classes, "probabilities of each forget sample");
        for &label in &samples.labels()[forget..] {
            targets.extend((0..classes).map(|class| f32::from(u8::from(class == label as usize))));
        }
        Ok(Self { samples, forget, targets, classes })
    }

    /// Trains `network` on them, with checkpoints between passes, and says what it cost.
    ///
    /// # Errors
    /// When the training diverges, or a checkpoint cannot be written.
    pub(crate) fn teach(
        &self,
        mut network: Network,
        course: &Course,
        streams: &Streams,
        epochs: usize,
        context: &mut Context,
    ) -> anyhow::Result<Network> {
        let retain = self.samples.len() - self.forget;
        let drawn = (course.share * retain as f64).round() as usize;
        let trainable = Trainable::all(network.graph());
        let rule = Rule::Adam { weight_decay: 0.0 };
        let (mut optimiser, mut first) = (Optimiser::new(rule), 0);
        let mut checkpoints = context.checkpoints();
        if let Some(snapshot) = checkpoints.resume() {
            first = serde_json::from_value(snapshot.position)?;
            (network, optimiser) = train::resume(&network, rule, snapshot.tensors)?;
        }
        context.progress().phase("passes");
        for pass in first..course.passes {
            let mut rows: Vec<usize> = (0..self.forget).collect();
            rows.extend(streams.indexed("draw", pass as u64).permutation(retain).into_iter().take(drawn).map(|row| self.forget + row));
            let order = streams.indexed("shuffle", pass as u64).permutation(rows.len());
            let rows: Vec<usize> = order.into_iter().map(|place| rows[place]).collect();
            let batches = batches(&rows, course.batch);
            for (step, rows) in batches.iter().enumerate() {
                let index = pass * batches.len() + step;
                let rate = course.lr * (1.0 - index as f64 / (course.passes * batches.len()) as f64);
                let loss = self.loss(&mut network, rows, course, &trainable, streams, index as u64)?;
                optimiser.step(&network.parameters(&trainable), &network.backward(&loss, &trainable)?, rate)?;
            }
            context.progress().step("passes", pass + 1, course.passes);
            checkpoints.offer(|| Ok(Snapshot { position: json!(pass + 1), tensors: train::snapshot(&network, &optimiser)? }))?;
        }
        let (backward, of_retraining) = (course.passes * (self.forget + drawn), epochs * retain);
        context.progress().note(&format!(
            "{backward} samples backward, {:.1} % of the {of_retraining} that retraining takes",
            100.0 * backward as f64 / of_retraining as f64
        ));
        Ok(network)
    }

    fn loss(
        &self,
        network: &mut Network,
        rows: &[usize],
        course: &Course,
        trainable: &Trainable,
        streams: &Streams,
        step: u64,
    ) -> anyhow::Result<Tensor> {
        let (images, _) = self.samples.batch(rows)?;
        let mut dropout = streams.indexed("dropout", step);
        let logits = network.forward(&images, &Part::ALL, network::all(Mode::TRAIN), trainable, &mut dropout)?;
        let targets: Vec<f32> = rows.iter().flat_map(|&row| &self.targets[row * self.classes..][..self.classes]).copied().collect();
        let targets = Tensor::from_vec(targets, (rows.len(), self.classes), logits.device())?;
        let weights: Vec<f64> = rows.iter().map(|&row| if row < self.forget { course.forget_weight } else { 1.0 }).collect();
        let loss = ops::weighted_cross_entropy(
            &logits,
            Targets::Probabilities(&targets),
            Weighting { samples: Some(&weights), ..Weighting::default() },
        )?;
        let value = loss.to_scalar::<f32>()?;
        if !value.is_finite() {
            return Err(
                Failure::new(format!("the training diverged: in step {} the loss is {value}", step + 1), "give a lower `lr`").into()
            );
        }
        Ok(loss)
    }
}

/// Batches of so many rows. A single row that would be left, of which batch normalisation has no statistics, goes with those before it.
fn batches(rows: &[usize], size: usize) -> Vec<&[usize]> {
    let mut batches: Vec<&[usize]> = rows.chunks(size).collect();
    if batches.len() > 1 && rows.len() % size == 1 {
        batches.truncate(batches.len() - 2);
        batches.push(&rows[batches.len() * size..]);
    }
    batches
}

/// The samples that the model must not know, by id: those of this request and of earlier ones, which an original model still knows.
pub(crate) fn forgotten(request: &Request) -> Vec<u64> {
    [request.forget.as_slice(), &request.earlier].concat()
}

/// Where the samples with these ids are in the dataset.
///
/// # Errors
/// When one is not there.
pub(crate) fn rows_of(dataset: &Dataset, ids: &[u64]) -> Result<Vec<usize>, Failure> {
    dataset
        .rows_of(ids)
        .map_err(|id| Failure::new(format!("sample {id} of the request is not in the dataset"), "make the request from the same dataset"))
}

/// The classes of which no sample is retained, by label.
///
/// # Errors
/// When a retain sample is not in the dataset.
pub(crate) fn classes_gone(dataset: &Dataset, request: &Request) -> Result<Vec<u32>, Failure> {
    let left: HashSet<u32> = rows_of(dataset, &request.retain)?.into_iter().map(|row| dataset.labels[row]).collect();
    Ok((0..dataset.classes() as u32).filter(|class| !left.contains(class)).collect())
}

/// The softmax of each row of logits, without the classes that are masked.
pub(crate) fn probabilities(logits: &Array<f32>, masked: &[u32]) -> Vec<f32> {
    let mut result = Vec::with_capacity(logits.data.len());
    for row in 0..logits.rows() {
        let allowed = |class: usize| !masked.contains(&(class as u32));
        let values = logits.row(row);
        let largest =
            values.iter().enumerate().filter(|(class, _)| allowed(*class)).map(|(_, &value)| value).fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f64> =
            values.iter().enumerate().map(|(class, &value)| if allowed(class) { f64::from(value - largest).exp() } else { 0.0 }).collect();
        let sum: f64 = shares.iter().sum();
        result.extend(shares.into_iter().map(|share| (share / sum) as f32));
    }
    result
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{DatasetFacts, Normalisation, RequestFacts};
    use dcu_nn::recipe::Recipe;
    use dcu_nn::{Architecture, Family, evaluate};

    use super::*;

    #[test]
    fn a_masked_class_has_no_share_and_the_others_all() {
        let logits = Array::new(vec![2, 3], vec![0.0, 3.0_f32.ln(), 100.0, 5.0, 5.0, 5.0]);
        let found = probabilities(&logits, &[2]);
        for (found, expected) in found.iter().zip([0.25, 0.75, 0.0, 0.5, 0.5, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    /// An MLP, which has neither statistics of the batch nor dropout, on four images of three classes, of which two are to be forgotten.
    #[test]
    fn there_is_nothing_to_learn_of_what_the_model_says_itself() {
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            normalisation: Normalisation { mean: vec![0.5], std: vec![0.25] },
            names: None,
        };
        let pixels = (0..4 * 6).map(|value| (value * 37 % 256) as u8).collect();
        let dataset = Dataset {
            images: Array::new(vec![4, 1, 2, 3], pixels),
            labels: vec![0, 1, 2, 1],
            original_labels: None,
            ids: vec![7, 8, 9, 10],
            facts,
        };
        let facts = RequestFacts { scenario: "ids".into(), classes: vec![], cumulative: false };
        let request = Request { forget: vec![9, 7], retain: vec![8, 10], earlier: vec![], facts };
        assert_eq!(classes_gone(&dataset, &request).unwrap(), [0, 2]);
        let architecture = Architecture { widths: vec![5, 4], ..Architecture::of_family(Family::Mlp, [1, 2, 3], 3) };
        let mut network = Network::initialised(&architecture, &Streams::new(1, "test")).unwrap();
        let base = model::to_artifact(&network, &Recipe::default(), &dataset).unwrap();
        let said = evaluate::judge(&network, &Samples::of_ids(&dataset, &request.forget).unwrap()).unwrap().logits;
        let trainable = Trainable::all(network.graph());
        let mut slope = |targets: Vec<f32>, rows: &[usize]| {
            let lesson = Lesson::new(&dataset, &request, &base, targets).unwrap();
            let loss = lesson.loss(&mut network, rows, &Course::default(), &trainable, &Streams::new(1, "test"), 0).unwrap();
            network.backward(&loss, &trainable).unwrap().norm().unwrap()
        };
        let own = probabilities(&said, &[]);
        assert!(slope(own.clone(), &[0, 1]) < 1e-6);
        assert!(slope(own.iter().rev().copied().collect(), &[0, 1]) > 1e-3);
        // The retain samples come behind, with their labels.
        assert!(slope(own, &[2, 3]) > 1e-3);
    }

    #[test]
    fn no_batch_has_one_row() {
        let rows: Vec<usize> = (0..9).collect();
        let sizes = |count: usize, size: usize| batches(&rows[..count], size).into_iter().map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(9, 4), [4, 5]);
        assert_eq!(sizes(8, 4), [4, 4]);
        assert_eq!(sizes(5, 4), [5]);
        assert_eq!(sizes(1, 4), [1]);
        assert_eq!(batches(&rows, 4).concat(), rows);
    }
}
