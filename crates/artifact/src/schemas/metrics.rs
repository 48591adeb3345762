//! `metrics/1`: numbers with their units and definitions, and the values per sample behind them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{OpenFacts, Payload, open};
use crate::{Array, Content, Tensor};

/// Results of an evaluation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metrics {
    /// Single numbers by name.
    pub scalars: BTreeMap<String, f64>,
    /// Arrays by name: losses, per-class accuracies, ROC points.
    pub arrays: BTreeMap<String, Array<f64>>,
    /// Sample ids by name, for the arrays that have one value a sample.
    pub ids: BTreeMap<String, Vec<u64>>,
    /// Unit and definition of each scalar and array.
    pub definitions: BTreeMap<String, Definition>,
    /// Scores that could not be given, with the reason.
    pub absent: BTreeMap<String, String>,
    /// What else is worth keeping, such as sizes or class names.
    pub facts: OpenFacts,
}

/// What a number means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The unit, such as `fraction` or `nat`.
    pub unit: String,
    /// One sentence.
    pub definition: String,
}

#[derive(Serialize, Deserialize)]
struct Facts {
    definitions: BTreeMap<String, Definition>,
    absent: BTreeMap<String, String>,
    #[serde(default)]
    facts: OpenFacts,
}

impl Metrics {
    /// Adds a scalar with its unit and definition.
    pub fn scalar(&mut self, name: &str, value: f64, unit: &str, definition: &str) {
        self.scalars.insert(name.to_owned(), value);
        self.define(name, unit, definition);
    }

    /// Adds an array with its unit and definition.
    pub fn array(&mut self, name: &str, values: Array<f64>, unit: &str, definition: &str) {
        self.arrays.insert(name.to_owned(), values);
        self.define(name, unit, definition);
    }

    /// Reads a metrics artifact.
    ///
    /// # Errors
    /// As [`crate::read`].
    pub fn read(path: &Path) -> crate::Result<Self> {
        crate::read(path).map(|(metrics, _)| metrics)
    }

    fn define(&mut self, name: &str, unit: &str, definition: &str) {
        self.definitions.insert(name.to_owned(), Definition { unit: unit.to_owned(), definition: definition.to_owned() });
    }
}

impl Payload for Metrics {
    const SCHEMA: &'static str = "metrics/1";

    fn to_content(&self) -> Content {
        let facts = Facts { definitions: self.definitions.clone(), absent: self.absent.clone(), facts: self.facts.clone() };
        let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
        tensors.extend(self.scalars.iter().map(|(name, value)| (name.clone(), Tensor::F64(Array::new(vec![], vec![*value])))));
        tensors.extend(self.arrays.iter().map(|(name, array)| (name.clone(), Tensor::F64(array.clone()))));
        tensors.extend(self.ids.iter().map(|(name, ids)| (name.clone(), Tensor::U64(Array::vector(ids.clone())))));
        Content { schema: Self::SCHEMA.into(), facts: serde_json::to_value(facts).expect("facts are plain data"), tensors }
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, fields) = open::<Facts>(content)?;
        let mut metrics = Self { definitions: facts.definitions, absent: facts.absent, facts: facts.facts, ..Self::default() };
        for (name, tensor) in fields.tensors {
            match tensor {
                Tensor::F64(array) => {
                    if let Some(position) = array.data.iter().position(|value| !value.is_finite()) {
                        return Err(format!("`{name}` holds {} at position {position}", array.data[position]));
                    }
                    if !metrics.definitions.contains_key(&name) {
                        return Err(format!("`{name}` has no definition"));
                    }
                    match (array.shape.as_slice(), array.data.as_slice()) {
                        ([], &[value]) => {
                            metrics.scalars.insert(name, value);
                        }
                        _ => {
                            metrics.arrays.insert(name, array);
                        }
                    }
                }
                Tensor::U64(array) => {
                    if array.shape.len() != 1 {
                        return Err(format!("`{name}` has the shape {:?}, but ids need 1 dimension", array.shape));
                    }
                    metrics.ids.insert(name, array.data);
                }
                other => return Err(format!("`{name}` has the type {:?}; numbers are F64, ids U64", other.dtype())),
            }
        }
        Ok(metrics)
    }
}
