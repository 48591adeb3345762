//! `model/1`: parameters and buffers under PyTorch's names, so that weights travel both ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Normalisation, Payload, check_finite_f32, open};
use crate::{Content, Tensor};

/// A trained network.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Parameters and buffers by PyTorch's name.
    pub tensors: BTreeMap<String, Tensor>,
    /// What is not a tensor.
    pub facts: ModelFacts,
}

/// The facts of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The network: family, input shape, classes, widths, cut.
    pub architecture: Value,
    /// How it was trained from scratch, which is how retraining trains.
    pub recipe: Value,
    /// The name of each class.
    pub class_names: Vec<String>,
    /// How pixels become its input.
    pub normalisation: Normalisation,
}

impl Payload for Model {
    const SCHEMA: &'static str = "model/1";

    fn to_content(&self) -> Content {
        Content {
            schema: Self::SCHEMA.into(),
            facts: serde_json::to_value(&self.facts).expect("facts are plain data"),
            tensors: self.tensors.clone(),
        }
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, fields) = open(content)?;
        for (name, tensor) in &fields.tensors {
            match tensor {
                Tensor::F32(array) => check_finite_f32(name, &array.data)?,
                Tensor::I64(_) => {}
                other => return Err(format!("tensor `{name}` has the type {:?}; weights are F32, counters I64", other.dtype())),
            }
        }
        if fields.tensors.is_empty() {
            return Err("there is no parameter".into());
        }
        Ok(Self { tensors: fields.tensors, facts })
    }
}
