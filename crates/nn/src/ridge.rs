//! A last layer in closed form: the ridge regression of the classes on the features before it, from sums out of which any sample can be taken back.
//!
//! With x a sample's features behind a constant 1 and y its class as 0 and 1, the sums are G = Σ x xᵀ and B = Σ x yᵀ, and the layer is W = (G + λ J)⁻¹ B, where J is the identity but for a 0
//! at the constant: the bias is not penalised, so that it makes no difference whether features and targets are centred. W is the only minimum of Σ |Wᵀ x - y|² + λ |W|² without its
//! bias. Whatever else was in G and B once, their difference to the sums of what is left is rounding.

use std::collections::HashMap;

use candle_core::{Error, Result, bail};
use dcu_artifact::{Array, Dataset, Model, RidgeHead, SampleId, Statistics, StatisticsFacts, Tensor, digest_json};
use serde_json::json;

use crate::cholesky::Cholesky;
use crate::evaluate::for_each_batch;
use crate::graph::Operation;
use crate::matrix::{Matrix, add_lower_product};
use crate::model;
use crate::network::Network;
use crate::samples::Samples;

/// Samples whose products are added together. They are cut in the order of the samples, whatever batches the network took them in.
const BLOCK: usize = 1024;

/// A network up to its last layer.
#[derive(Debug)]
pub struct Trunk {
    network: Network,
    /// The last step.
    head: usize,
    digest: String,
    seen: bool,
}

impl Trunk {
    /// The trunk of a model; `foreign` says that its weights come from other data than the training set, which a model that was imported does not know.
    ///
    /// # Errors
    /// When the network does not end with a linear layer on feature vectors, or the model does not hold together.
    pub fn new(model: &Model, foreign: bool) -> Result<Self> {
        let network = model::to_network(model)?;
        let head = network.graph().steps().len() - 1;
        let step = &network.graph().steps()[head];
        if !matches!(step.operation, Operation::Linear { .. }) || network.graph().shape(step.inputs[0]).len() != 1 || step.inputs != [head]
        {
            bail!("the network ends with `{}`, which is no linear layer on feature vectors; take another `model`", step.name);
        }
        let of_head = |name: &str| step.slots.iter().any(|slot| slot.name == name);
        let weights: Vec<_> = model
            .tensors
            .iter()
            .filter(|(name, _)| !of_head(name) && !name.ends_with(".num_batches_tracked"))
            .map(|(name, tensor)| json!([name, tensor.shape(), dcu_artifact::digest_bytes(&tensor.to_bytes())]))
            .collect();
        let digest = digest_json(&json!([model.facts.architecture, model.facts.normalisation, weights])).as_str().to_owned();
        let seen = !foreign && !model.facts.unseen && model.facts.ridge.as_ref().is_none_or(|ridge| ridge.trunk_saw_training_data);
        Ok(Self { head, digest, seen, network })
    }

    /// The number of features, D.
    #[must_use]
    pub fn features(&self) -> usize {
        self.network.graph().shape(self.head)[0]
    }

    /// Whether weights of it were learned from the training set.
    #[must_use]
    pub fn saw_training_data(&self) -> bool {
        self.seen
    }

    /// Hands each block of samples to `visit`: features behind a constant 1, row-major [n, D + 1], and classes.
    ///
    /// # Errors
    /// When there are no samples, or a feature is not finite.
    pub fn for_each_block(&self, samples: &Samples, mut visit: impl FnMut(&[f64], &[u32]) -> Result<()>) -> Result<()> {
        let size = self.features() + 1;
        let (mut values, mut labels) = (Vec::with_capacity(BLOCK * size), Vec::with_capacity(BLOCK));
        let mut done = 0;
        for_each_batch(&self.network, samples, |input, classes| {
            let features = self.network.before(self.head, &input)?.flatten_all()?.to_vec1::<f32>()?;
            for (row, class) in features.chunks_exact(size - 1).zip(classes) {
                if let Some(value) = row.iter().find(|value| !value.is_finite()) {
                    bail!(
                        "a feature of sample {} is {value}: the trunk's training diverged, or its weights are damaged",
                        done + labels.len()
                    );
                }
                values.push(1.0);
                values.extend(row.iter().map(|&value| f64::from(value)));
                labels.push(*class);
                if labels.len() == BLOCK {
                    visit(&values, &labels)?;
                    done += BLOCK;
                    values.clear();
                    labels.clear();
                }
            }
            Ok(())
        })?;
        if labels.is_empty() { Ok(()) } else { visit(&values, &labels) }
    }

    /// The sums over all samples of a dataset, to be solved with `lambda`.
    ///
    /// # Errors
    /// As [`Self::for_each_block`].
    pub fn statistics(&self, dataset: &Dataset, samples: &Samples, ids: Vec<u64>, lambda: f64) -> Result<Statistics> {
        let (size, classes) = (self.features() + 1, dataset.classes());
        let mut statistics = Statistics {
            gram: Array::new(vec![size, size], vec![0.0; size * size]),
            moments: Array::new(vec![size, classes], vec![0.0; size * classes]),
            ids,
            labels: samples.labels().to_vec(),
            facts: StatisticsFacts {
                lambda,
                trunk: self.digest.clone(),
                trunk_saw_training_data: self.seen,
                class_names: dataset.facts.class_names.clone(),
                normalisation: dataset.facts.normalisation.clone(),
            },
        };
        self.add(samples, 1.0, &mut statistics)?;
        Ok(statistics)
    }

    /// Adds `sign` times the products of the samples to the sums.
    fn add(&self, samples: &Samples, sign: f64, statistics: &mut Statistics) -> Result<()> {
        let size = statistics.gram.rows();
        self.for_each_block(samples, |values, labels| {
            add_moments(values, labels, sign, &mut statistics.moments);
            let left: Vec<f64> = values.iter().map(|value| sign * value).collect();
            let [left, right] = [&left[..], values].map(|values| Matrix::new(values, labels.len(), size));
            add_lower_product(left.transposed(), right, &mut statistics.gram.data, size);
            Ok(())
        })?;
        for row in 0..size {
            for column in 0..row {
                statistics.gram.data[column * size + row] = statistics.gram.data[row * size + column];
            }
        }
        Ok(())
    }

    /// Takes the samples with these ids back out of the sums.
    ///
    /// # Errors
    /// When the sums are of another trunk, or do not hold one of the samples with the dataset's label.
    pub fn take_back(&self, dataset: &Dataset, ids: &[u64], statistics: &mut Statistics) -> Result<()> {
        let rows = self.counted(dataset, ids, statistics)?;
        if rows.is_empty() {
            return Ok(());
        }
        self.add(&Samples::of_dataset(dataset, &rows), -1.0, statistics)?;
        let gone: std::collections::HashSet<u64> = ids.iter().copied().collect();
        let kept: Vec<usize> = (0..statistics.ids.len()).filter(|&place| !gone.contains(&statistics.ids[place])).collect();
        statistics.ids = kept.iter().map(|&place| statistics.ids[place]).collect();
        statistics.labels = kept.iter().map(|&place| statistics.labels[place]).collect();
        Ok(())
    }

    /// Counts the samples with these ids under the labels that they had before poisoning.
    ///
    /// # Errors
    /// As [`Self::take_back`], and where the dataset knows no such labels.
    pub fn relabel(&self, dataset: &Dataset, ids: &[u64], statistics: &mut Statistics) -> Result<()> {
        let rows = self.counted(dataset, ids, statistics)?;
        let Some(original) = &dataset.original_labels else {
            bail!("the dataset knows no other labels than those that its samples were counted with; it was not made by `data/poison`");
        };
        if rows.is_empty() {
            return Ok(());
        }
        let samples = Samples::of_dataset(dataset, &rows);
        let (mut corrected, mut start) = (HashMap::new(), 0);
        self.for_each_block(&samples, |values, labels| {
            let right: Vec<u32> = rows[start..start + labels.len()].iter().map(|&row| original[row]).collect();
            start += labels.len();
            add_moments(values, labels, -1.0, &mut statistics.moments);
            add_moments(values, &right, 1.0, &mut statistics.moments);
            Ok(())
        })?;
        corrected.extend(rows.iter().map(|&row| (dataset.ids[row], original[row])));
        for (id, label) in statistics.ids.iter().zip(&mut statistics.labels) {
            *label = corrected.get(id).copied().unwrap_or(*label);
        }
        Ok(())
    }

    /// The rows of the samples with these ids, which are in the sums as they are in the dataset.
    ///
    /// # Errors
    /// As [`Self::take_back`].
    pub fn counted(&self, dataset: &Dataset, ids: &[u64], statistics: &Statistics) -> Result<Vec<usize>> {
        if statistics.facts.trunk != self.digest {
            bail!("the sums were taken of another trunk's features; connect `model` and `statistics` to the same stage");
        }
        let labels: HashMap<u64, u32> = statistics.ids.iter().copied().zip(statistics.labels.iter().copied()).collect();
        let rows =
            dataset.rows_of(ids).map_err(|id| Error::Msg(format!("sample {id} is not in the dataset; make both from the same source")))?;
        for &row in &rows {
            let (id, label) = (SampleId(dataset.ids[row]), dataset.labels[row]);
            match labels.get(&id.0) {
                None => bail!("sample {id} is not in the sums: they were made of other samples, or without it"),
                Some(&counted) if counted != label => {
                    bail!(
                        "sample {id} is of class {label} in the dataset, but was counted under {counted}; give the dataset that the sums were made of"
                    )
                }
                Some(_) => {}
            }
        }
        Ok(rows)
    }

    /// The model whose last layer is a solution, with the facts of `model`.
    ///
    /// # Errors
    /// When a weight is too large for f32.
    pub fn with_head(&self, model: &Model, solution: &Solution) -> Result<Model> {
        let (classes, size) = (solution.classes, self.features() + 1);
        let step = &self.network.graph().steps()[self.head];
        let mut result = model.clone();
        let column = |class: usize| (1..size).map(move |row| solution.weights[row * classes + class] as f32);
        let weight: Vec<f32> = (0..classes).flat_map(column).collect();
        let bias: Vec<f32> = solution.weights[..classes].iter().map(|&value| value as f32).collect();
        if weight.iter().chain(&bias).any(|value| !value.is_finite()) {
            bail!("the solution holds values that are not finite; give a larger `lambda`");
        }
        result.tensors.insert(step.slots[0].name.clone(), Tensor::F32(Array::new(vec![classes, size - 1], weight)));
        result.tensors.insert(step.slots[1].name.clone(), Tensor::F32(Array::vector(bias)));
        result.facts.ridge = Some(RidgeHead { lambda: solution.lambda, trunk_saw_training_data: self.seen });
        result.facts.unseen = false;
        Ok(result)
    }
}

fn add_moments(values: &[f64], labels: &[u32], sign: f64, moments: &mut Array<f64>) {
    let (size, classes) = (moments.rows(), moments.row_len());
    for (row, &label) in values.chunks_exact(size).zip(labels) {
        let column = moments.data[label as usize..].iter_mut().step_by(classes);
        column.zip(row).for_each(|(moment, value)| *moment += sign * value);
    }
}

/// The last layer of some sums.
#[derive(Debug)]
pub struct Solution {
    /// Bias and weights, row-major [D + 1, classes].
    pub weights: Vec<f64>,
    /// What was added to the diagonal.
    pub lambda: f64,
    classes: usize,
    factor: Cholesky,
}

/// Solves the sums with `lambda`.
///
/// # Errors
/// When they are singular, as far as f64 can tell.
pub fn solve(statistics: &Statistics, lambda: f64) -> Result<Solution> {
    let (size, classes) = (statistics.gram.rows(), statistics.moments.row_len());
    let mut matrix = statistics.gram.data.clone();
    (1..size).for_each(|row| matrix[row * size + row] += lambda);
    let factor = Cholesky::new(matrix, size).map_err(|row| {
        Error::Msg(format!(
            "with `lambda: {lambda}` the sums cannot be solved: feature {row} depends on those before it; give a larger `lambda`"
        ))
    })?;
    Ok(Solution { weights: factor.solve(statistics.moments.data.clone(), classes), lambda, classes, factor })
}

impl Solution {
    /// What the layer gives for features behind a constant 1, row-major [n, D + 1]: [n, classes].
    #[must_use]
    pub fn predict(&self, features: &[f64]) -> Vec<f64> {
        let size = self.weights.len() / self.classes;
        crate::matrix::product(Matrix::new(features, features.len() / size, size), Matrix::new(&self.weights, size, self.classes))
    }

    /// xᵀ (G + λ J)⁻¹ x of each row of such features: how much a sample that is in the sums weighs in its own prediction, from 1 / N to 1.
    #[must_use]
    pub fn leverages(&self, features: &[f64]) -> Vec<f64> {
        let size = self.weights.len() / self.classes;
        let count = features.len() / size;
        let mut columns = vec![0.0; features.len()];
        for (row, values) in features.chunks_exact(size).enumerate() {
            columns[row..].iter_mut().step_by(count).zip(values).for_each(|(target, &value)| *target = value);
        }
        self.factor.forward(&mut columns, count);
        let mut sums = vec![0.0; count];
        for row in columns.chunks_exact(count) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * value);
        }
        sums
    }
}

/// What the layer says of samples that are in the sums, and what it would say had it been solved without them.
#[derive(Debug, Clone, PartialEq)]
pub struct LeaveOneOut {
    /// With the sample, [n, classes].
    pub with: Vec<f64>,
    /// Without this one sample, [n, classes].
    pub without: Vec<f64>,
    /// The weight of the sample in its own prediction, [n].
    pub leverages: Vec<f64>,
}

impl Solution {
    /// Both of each row of features behind a constant 1, row-major [n, D + 1], of samples that are in the sums under these labels: with the leverage h the prediction f becomes
    /// (f - h y) / (1 - h), as solving without the sample gives it.
    #[must_use]
    pub fn leave_one_out(&self, features: &[f64], labels: &[u32]) -> LeaveOneOut {
        let (with, leverages) = (self.predict(features), self.leverages(features));
        let mut without = with.clone();
        for ((row, &leverage), &label) in without.chunks_exact_mut(self.classes).zip(&leverages).zip(labels) {
            row[label as usize] -= leverage;
            row.iter_mut().for_each(|value| *value /= 1.0 - leverage);
        }
        LeaveOneOut { with, without, leverages }
    }
}

/// What would be added to the diagonal if each feature had the mean variance of all: N times that.
#[must_use]
pub fn scale(statistics: &Statistics) -> f64 {
    let (size, gram) = (statistics.gram.rows(), &statistics.gram);
    let of_feature = |row: usize| gram.data[row * size + row] - gram.data[row].powi(2) / gram.data[0];
    (1..size).map(of_feature).sum::<f64>() / (size - 1) as f64
}
