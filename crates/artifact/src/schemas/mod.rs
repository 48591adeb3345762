//! The schemas of artifacts: one typed payload each, with the rules that hold between its tensors.

mod buckets;
mod condensed;
mod dataset;
mod ensemble;
mod holdout;
mod metrics;
mod model;
mod predictions;
mod request;
mod retain;
mod role;
mod shards;
mod statistics;
mod weights;

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use buckets::Buckets;
pub use condensed::{Condensed, CondensedFacts, Members, Reach};
pub use dataset::{Dataset, DatasetFacts, Normalisation};
pub use ensemble::{Ensemble, EnsembleFacts};
pub use holdout::Holdout;
pub use metrics::{Definition, Metrics};
pub use model::{Model, ModelFacts, RidgeHead};
pub use predictions::Predictions;
pub use request::{Request, RequestFacts};
pub use retain::{Retain, RetainFacts, Shown};
pub use role::{Role, role_of};
pub use shards::{Shards, ShardsFacts};
pub use statistics::{Statistics, StatisticsFacts};
pub use weights::{Weights, WeightsFacts, WeightsKind};

use crate::{Array, Content, Element, Tensor};

/// What one schema holds.
pub trait Payload: Sized {
    /// Name and version, such as `dataset/1`.
    const SCHEMA: &'static str;

    /// The payload as facts and tensors.
    fn to_content(&self) -> Content;

    /// Reads and checks the payload.
    ///
    /// # Errors
    /// Names the rule that is broken and the offending value.
    fn from_content(content: Content) -> Result<Self, String>;
}

const NEWEST: [(&str, u32); 13] = [
    ("buckets", 1),
    ("condensed", 2),
    ("dataset", 1),
    ("ensemble", 1),
    ("holdout", 1),
    ("metrics", 1),
    ("model", 1),
    ("predictions", 1),
    ("request", 1),
    ("retain", 1),
    ("shards", 1),
    ("statistics", 1),
    ("weights", 1),
];

/// Whether this release reads the schema, given as `name/version`.
#[must_use]
pub fn schema_is_known(schema: &str) -> bool {
    split_schema(schema).is_some_and(|(name, version)| newest_version(name) == Some(version))
}

/// All schemas that this release reads, as `name/version`.
pub fn known_schemas() -> impl Iterator<Item = String> {
    NEWEST.iter().map(|(name, version)| format!("{name}/{version}"))
}

/// Checks content against the rules of the schema it names.
///
/// # Errors
/// Names the rule that is broken, or says that the schema is unknown.
pub(crate) fn check_content(content: Content) -> Result<(), String> {
    match content.schema.as_str() {
        Buckets::SCHEMA => Buckets::from_content(content).map(drop),
        Condensed::SCHEMA => Condensed::from_content(content).map(drop),
        Dataset::SCHEMA => Dataset::from_content(content).map(drop),
        Ensemble::SCHEMA => Ensemble::from_content(content).map(drop),
        Holdout::SCHEMA => Holdout::from_content(content).map(drop),
        Metrics::SCHEMA => Metrics::from_content(content).map(drop),
        Model::SCHEMA => Model::from_content(content).map(drop),
        Predictions::SCHEMA => Predictions::from_content(content).map(drop),
        Request::SCHEMA => Request::from_content(content).map(drop),
        Retain::SCHEMA => Retain::from_content(content).map(drop),
        Shards::SCHEMA => Shards::from_content(content).map(drop),
        Statistics::SCHEMA => Statistics::from_content(content).map(drop),
        Weights::SCHEMA => Weights::from_content(content).map(drop),
        other => Err(format!("the schema `{other}` is unknown")),
    }
}

pub(crate) fn split_schema(schema: &str) -> Option<(&str, u32)> {
    let (name, version) = schema.split_once('/')?;
    Some((name, version.parse().ok()?))
}

pub(crate) fn newest_version(name: &str) -> Option<u32> {
    NEWEST.iter().find(|(known, _)| *known == name).map(|(_, version)| *version)
}

/// Where a sample comes from: the part of its source, and the row in that source's own order.
///
/// Independent of limits, seeds and poisoning, so that a deletion request means the same in every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleId(pub u64);

/// A part of a data source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The part that models are trained on.
    Train,
    /// The part that the source keeps for testing.
    Test,
}

impl SampleId {
    /// The sample at `row` of a part.
    #[must_use]
    pub fn new(part: Part, row: u32) -> Self {
        Self((part as u64) << 32 | u64::from(row))
    }

    /// The part of the source; `None` for a number that no source gives.
    #[must_use]
    pub fn part(self) -> Option<Part> {
        match self.0 >> 32 {
            0 => Some(Part::Train),
            1 => Some(Part::Test),
            _ => None,
        }
    }

    /// The row in the source's own order.
    #[must_use]
    pub fn row(self) -> u32 {
        (self.0 & u64::from(u32::MAX)) as u32
    }
}

impl std::fmt::Display for SampleId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.part() {
            Some(Part::Train) => write!(formatter, "train:{}", self.row()),
            Some(Part::Test) => write!(formatter, "test:{}", self.row()),
            None => write!(formatter, "{}", self.0),
        }
    }
}

impl std::str::FromStr for SampleId {
    type Err = String;

    /// Reads `train:17`, `test:17` or a bare number, which is the id as the artifacts hold it.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no sample id; write `train:ROW` or `test:ROW`");
        match text.trim().split_once(':') {
            Some(("train", row)) => row.parse().map(|row| Self::new(Part::Train, row)).map_err(|_| wrong()),
            Some(("test", row)) => row.parse().map(|row| Self::new(Part::Test, row)).map_err(|_| wrong()),
            Some(_) => Err(wrong()),
            None => text.trim().parse().map(Self).map_err(|_| wrong()),
        }
    }
}

/// Takes the tensors of a content apart by name, type and rank.
struct Fields {
    tensors: BTreeMap<String, Tensor>,
}

impl Fields {
    fn take<T: Element>(&mut self, name: &str, rank: usize) -> Result<Array<T>, String> {
        self.optional(name, rank)?.ok_or_else(|| format!("tensor `{name}` is missing"))
    }

    fn optional<T: Element>(&mut self, name: &str, rank: usize) -> Result<Option<Array<T>>, String> {
        let Some(tensor) = self.tensors.remove(name) else { return Ok(None) };
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        if shape.len() != rank {
            return Err(format!("tensor `{name}` has the shape {shape:?}, but needs {rank} dimensions"));
        }
        T::unwrap(tensor).map(Some).ok_or_else(|| format!("tensor `{name}` has the type {dtype:?}, but needs {:?}", T::DTYPE))
    }

    fn vector<T: Element>(&mut self, name: &str, length: Option<usize>) -> Result<Vec<T>, String> {
        let array = self.take::<T>(name, 1)?;
        match length {
            Some(length) if length != array.data.len() => {
                Err(format!("tensor `{name}` has {} values, but needs {length}", array.data.len()))
            }
            _ => Ok(array.data),
        }
    }

    fn end(self) -> Result<(), String> {
        self.tensors.keys().next().map_or(Ok(()), |name| Err(format!("tensor `{name}` does not belong here")))
    }
}

fn open<F: DeserializeOwned>(content: Content) -> Result<(F, Fields), String> {
    let facts = serde_json::from_value(content.facts).map_err(|error| format!("the facts do not parse: {error}"))?;
    Ok((facts, Fields { tensors: content.tensors }))
}

fn close<F: Serialize>(schema: &str, facts: &F, tensors: impl IntoIterator<Item = (&'static str, Tensor)>) -> Content {
    Content {
        schema: schema.to_owned(),
        facts: serde_json::to_value(facts).expect("facts are plain data"),
        tensors: tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect(),
    }
}

fn vector<T: Element>(values: &[T]) -> Tensor {
    T::wrap(Array::vector(values.to_vec()))
}

fn check_class_names(names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        return Err("there is no class".into());
    }
    let mut seen = HashSet::with_capacity(names.len());
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(name) => Err(format!("two classes have the name `{name}`")),
        None => Ok(()),
    }
}

/// Images [N, C, H, W] that hold pixels.
fn check_pixels<T>(name: &str, images: &Array<T>) -> Result<(), String> {
    if images.row_len() == 0 {
        return Err(format!("tensor `{name}` has the shape {:?}, in which an image holds no pixel", images.shape));
    }
    Ok(())
}

fn check_labels(labels: &[u32], classes: usize) -> Result<(), String> {
    match labels.iter().position(|&label| label as usize >= classes) {
        Some(row) => Err(format!("label {} in row {row} is out of range: there are {classes} classes", labels[row])),
        None => Ok(()),
    }
}

/// Probabilities of classes, [N, K], for each of so many rows.
fn check_targets(name: &str, targets: &Array<f32>, rows: usize) -> Result<(), String> {
    if targets.rows() != rows || targets.row_len() == 0 {
        return Err(format!("tensor `{name}` is {:?}, for {rows} rows", targets.shape));
    }
    for row in 0..rows {
        let values = targets.row(row);
        let sum: f64 = values.iter().map(|&value| f64::from(value)).sum();
        if values.iter().any(|value| value.is_nan() || *value < 0.0) || (sum - 1.0).abs() > 1e-3 {
            return Err(format!("row {row} of tensor `{name}` holds no probabilities: they are 0 or more, and sum up to {sum}, not 1"));
        }
    }
    Ok(())
}

fn check_unique(what: &str, ids: &[u64]) -> Result<(), String> {
    let mut seen = HashSet::with_capacity(ids.len());
    match ids.iter().find(|id| !seen.insert(**id)) {
        Some(id) => Err(format!("{what}: sample {} appears twice", SampleId(*id))),
        None => Ok(()),
    }
}

fn check_disjoint(left_name: &str, left: &[u64], right_name: &str, right: &[u64]) -> Result<(), String> {
    let left: HashSet<u64> = left.iter().copied().collect();
    match right.iter().find(|id| left.contains(id)) {
        Some(id) => Err(format!("sample {} is in {left_name} and in {right_name}", SampleId(*id))),
        None => Ok(()),
    }
}

fn check_finite_f32(name: &str, values: &[f32]) -> Result<(), String> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(position) => Err(format!("tensor `{name}` holds {} at position {position}", values[position])),
        None => Ok(()),
    }
}

/// Facts that a schema leaves open, such as an architecture: any JSON object.
pub type OpenFacts = serde_json::Map<String, Value>;
