//! `predictions/1`: what a model says of every sample of its dataset and of the test set, which is what attacks and scores read.

use super::{Payload, check_disjoint, check_finite_f32, check_unique, close, open, vector};
use crate::{Array, Content, Tensor};

/// The logits of a model in eval mode.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// The samples of the dataset, [N].
    pub ids: Vec<u64>,
    /// Their logits, f32 [N, K].
    pub logits: Array<f32>,
    /// The samples of the test set, [T].
    pub test_ids: Vec<u64>,
    /// Their logits, f32 [T, K].
    pub test_logits: Array<f32>,
}

/// There is nothing to say beside the tensors.
#[derive(serde::Serialize, serde::Deserialize)]
struct Facts {}

impl Predictions {
    /// The number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.logits.row_len()
    }
}

impl Payload for Predictions {
    const SCHEMA: &'static str = "predictions/1";

    fn to_content(&self) -> Content {
        let tensors = [
            ("ids", vector(&self.ids)),
            ("logits", Tensor::F32(self.logits.clone())),
            ("test_ids", vector(&self.test_ids)),
            ("test_logits", Tensor::F32(self.test_logits.clone())),
        ];
        close(Self::SCHEMA, &Facts {}, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (Facts {}, mut fields) = open(content)?;
        let predictions = Self {
            ids: fields.vector("ids", None)?,
            logits: fields.take("logits", 2)?,
            test_ids: fields.vector("test_ids", None)?,
            test_logits: fields.take("test_logits", 2)?,
        };
        fields.end()?;
        let Self { ids, logits, test_ids, test_logits } = &predictions;
        for (name, ids, logits) in [("logits", ids, logits), ("test_logits", test_ids, test_logits)] {
            check_unique(name, ids)?;
            if logits.rows() != ids.len() || logits.row_len() < 2 || logits.row_len() != predictions.classes() {
                return Err(format!("tensor `{name}` is {:?}, for {} ids and {} classes", logits.shape, ids.len(), predictions.classes()));
            }
            check_finite_f32(name, &logits.data)?;
        }
        check_disjoint("ids", ids, "test_ids", test_ids)?;
        if ids.is_empty() {
            return Err("there is no sample".into());
        }
        Ok(predictions)
    }
}
