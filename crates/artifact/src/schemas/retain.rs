//! `retain/1`: what to learn from in place of the whole retain set: some of its samples, condensed images, and how much each counts.

use serde::{Deserialize, Serialize};

use super::{Normalisation, Payload, Reach, check_finite_f32, check_targets, check_unique, close, open, vector};
use crate::{Array, Content, Tensor};

/// Rows to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Retain {
    /// The real rows by id, [R]; pixels and labels are the dataset's.
    pub ids: Vec<u64>,
    /// How much each of them counts in a mean loss, [R].
    pub weights: Vec<f32>,
    /// Condensed images in normalised space, f32 [F, C, H, W].
    pub condensed_images: Array<f32>,
    /// The probability of each class there, f32 [F, K].
    pub condensed_targets: Array<f32>,
    /// Their buckets, [F].
    pub condensed_buckets: Vec<u32>,
    /// How much each of them counts, [F].
    pub condensed_weights: Vec<f32>,
    /// What is not a tensor.
    pub facts: RetainFacts,
}

/// The facts of rows to learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetainFacts {
    /// The method that chose or made them, such as `reduce`.
    pub maker: String,
    /// How many samples the retain set has that they stand for.
    pub retain: usize,
    /// What was looked at to make them.
    pub reach: Reach,
    /// How pixels become numbers, in the dataset and in the condensed images.
    pub normalisation: Normalisation,
    /// What the condensed images show of single samples. Not there where nothing was asked to be forgotten, and in sets of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<Shown>,
}

/// Condensed images that show single samples, by their rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Images with a forgotten sample behind them, or of a bucket that holds one.
    pub forgotten: Vec<u32>,
    /// Images that show one real sample as it is.
    pub single: Vec<u32>,
}

impl Retain {
    /// The number of rows, real and condensed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len() + self.condensed_buckets.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.condensed_targets.row_len()
    }

    /// Rows for each sample of the retain set.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.len() as f64 / self.facts.retain as f64
    }
}

impl Payload for Retain {
    const SCHEMA: &'static str = "retain/1";

    fn to_content(&self) -> Content {
        let tensors = [
            ("ids", vector(&self.ids)),
            ("weights", vector(&self.weights)),
            ("condensed_images", Tensor::F32(self.condensed_images.clone())),
            ("condensed_targets", Tensor::F32(self.condensed_targets.clone())),
            ("condensed_buckets", vector(&self.condensed_buckets)),
            ("condensed_weights", vector(&self.condensed_weights)),
        ];
        close(Self::SCHEMA, &self.facts, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, mut fields) = open::<RetainFacts>(content)?;
        let ids: Vec<u64> = fields.vector("ids", None)?;
        let weights: Vec<f32> = fields.vector("weights", Some(ids.len()))?;
        let condensed_images = fields.take::<f32>("condensed_images", 4)?;
        let rows = condensed_images.rows();
        let condensed_targets = fields.take::<f32>("condensed_targets", 2)?;
        let condensed_buckets = fields.vector("condensed_buckets", Some(rows))?;
        let condensed_weights: Vec<f32> = fields.vector("condensed_weights", Some(rows))?;
        fields.end()?;
        facts.normalisation.check(condensed_images.shape[1])?;
        check_unique("ids", &ids)?;
        check_finite_f32("condensed_images", &condensed_images.data)?;
        check_targets("condensed_targets", &condensed_targets, rows)?;
        for (name, weights) in [("weights", &weights), ("condensed_weights", &condensed_weights)] {
            if let Some(position) = weights.iter().position(|weight| !weight.is_finite() || *weight <= 0.0) {
                return Err(format!("tensor `{name}` holds {} at position {position}; weights are positive", weights[position]));
            }
        }
        let retain = Self { ids, weights, condensed_images, condensed_targets, condensed_buckets, condensed_weights, facts };
        if retain.is_empty() {
            return Err("there is no row to learn from".into());
        }
        if retain.facts.retain == 0 {
            return Err("the fact `retain`, the size of the retain set, is 0".into());
        }
        if let Some(Shown { forgotten, single }) = &retain.facts.shown
            && let Some(row) = forgotten.iter().chain(single).find(|&&row| row as usize >= rows)
        {
            return Err(format!("the fact `shown` names the condensed image {row}; there are {rows}"));
        }
        Ok(retain)
    }
}
