//! `weights/1`: something of the shape of a model's parameters, such as how much each matters for some samples.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Payload, check_finite_f32};
use crate::{Array, Content, Tensor};

/// A value for each of a model's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// By the parameter's name, of its shape.
    pub tensors: BTreeMap<String, Array<f32>>,
    /// What is not a tensor.
    pub facts: WeightsFacts,
}

/// The facts of such values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightsFacts {
    /// What the values are.
    pub kind: WeightsKind,
    /// The rule that they were made by, such as `squared-gradients`.
    pub rule: String,
    /// The samples that they were made from.
    pub samples: usize,
    /// Samples in a batch, where the values depend on it; otherwise 1.
    pub batch: usize,
}

/// What values of the parameters' shape are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightsKind {
    /// How much each parameter matters: 0 or more.
    Importance,
    /// Which parameters may move: 1, or 0.
    Mask,
    /// What is added to the parameters.
    Difference,
}

impl Payload for Weights {
    const SCHEMA: &'static str = "weights/1";

    fn to_content(&self) -> Content {
        Content {
            schema: Self::SCHEMA.to_owned(),
            facts: serde_json::to_value(&self.facts).expect("facts are plain data"),
            tensors: self.tensors.iter().map(|(name, array)| (name.clone(), Tensor::F32(array.clone()))).collect(),
        }
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let facts: WeightsFacts = serde_json::from_value(content.facts).map_err(|error| format!("the facts do not parse: {error}"))?;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in content.tensors {
            let Tensor::F32(array) = tensor else {
                return Err(format!("tensor `{name}` has the type {:?}, but needs F32", tensor.dtype()));
            };
            check_finite_f32(&name, &array.data)?;
            let (fits, rule): (fn(f32) -> bool, _) = match facts.kind {
                WeightsKind::Importance => (|value| value >= 0.0, "an importance is 0 or more"),
                WeightsKind::Mask => (|value| value == 0.0 || value == 1.0, "a mask is 0 or 1"),
                WeightsKind::Difference => (|_| true, ""),
            };
            if let Some(position) = array.data.iter().position(|&value| !fits(value)) {
                return Err(format!("tensor `{name}` holds {} at position {position}; {rule}", array.data[position]));
            }
            tensors.insert(name, array);
        }
        if tensors.is_empty() {
            return Err("there is no parameter".into());
        }
        Ok(Self { tensors, facts })
    }
}
