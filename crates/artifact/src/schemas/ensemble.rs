//! `ensemble/1`: what many models say of every training sample, and which of them were trained on it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Payload, check_finite_f32, check_unique, close, open, vector};
use crate::{Array, Content, Tensor};

/// Models as their predictions of a training set.
#[derive(Debug, Clone, PartialEq)]
pub struct Ensemble {
    /// The samples, [N].
    pub ids: Vec<u64>,
    /// 1 where a model was trained on a sample, otherwise 0, u8 [M, N].
    pub membership: Array<u8>,
    /// Logits of each model for each sample in eval mode, f32 [M, N, C].
    pub logits: Array<f32>,
    /// What is not a tensor.
    pub facts: EnsembleFacts,
}

/// The facts of an ensemble.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnsembleFacts {
    /// How the models' training sets were chosen: `folds`, `halves`, `classes`, `whole` or `retrained`.
    pub scheme: String,
    /// The seed of all models. Models that judge a method have another than those that it learns from.
    pub seed: u64,
    /// The network of all models.
    pub architecture: Value,
    /// How each of them was trained.
    pub recipe: Value,
}

impl Ensemble {
    /// The number of models.
    #[must_use]
    pub fn models(&self) -> usize {
        self.membership.shape[0]
    }

    /// The number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.logits.shape[2]
    }

    /// The logits of a model for the sample at `row`.
    #[must_use]
    pub fn of(&self, model: usize, row: usize) -> &[f32] {
        let start = (model * self.ids.len() + row) * self.classes();
        &self.logits.data[start..start + self.classes()]
    }

    /// The models that were not trained on the sample at `row`.
    pub fn strangers_to(&self, row: usize) -> impl Iterator<Item = usize> {
        (0..self.models()).filter(move |model| self.membership.data[model * self.ids.len() + row] == 0)
    }
}

impl Payload for Ensemble {
    const SCHEMA: &'static str = "ensemble/1";

    fn to_content(&self) -> Content {
        let tensors =
            [("ids", vector(&self.ids)), ("membership", Tensor::U8(self.membership.clone())), ("logits", Tensor::F32(self.logits.clone()))];
        close(Self::SCHEMA, &self.facts, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, mut fields) = open(content)?;
        let ensemble =
            Self { ids: fields.vector("ids", None)?, membership: fields.take("membership", 2)?, logits: fields.take("logits", 3)?, facts };
        fields.end()?;
        let Self { ids, membership, logits, .. } = &ensemble;
        check_unique("ids", ids)?;
        if membership.shape[0] == 0 || ids.is_empty() {
            return Err(format!("there are {} models of {} samples", membership.shape[0], ids.len()));
        }
        if membership.shape[1] != ids.len() || logits.shape[..2] != membership.shape[..] || logits.shape[2] < 2 {
            return Err(format!("`membership` is {:?} and `logits` {:?}, for {} ids", membership.shape, logits.shape, ids.len()));
        }
        if let Some(position) = membership.data.iter().position(|&member| member > 1) {
            return Err(format!("tensor `membership` holds {} at position {position}; it is 0 or 1", membership.data[position]));
        }
        check_finite_f32("logits", &logits.data)?;
        Ok(ensemble)
    }
}
