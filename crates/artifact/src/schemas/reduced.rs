//! `reduced/1`: the reduced retain set, real rows and condensed rows. No forget sample is behind any of them.

use serde::{Deserialize, Serialize};

use super::{Normalisation, Payload, check_finite_f32, check_labels, check_pixels, check_unique, close, open, vector};
use crate::{Array, Content, Tensor};

/// What the online phase trains on.
#[derive(Debug, Clone, PartialEq)]
pub struct Reduced {
    /// Retained members of buckets that hold a forgotten sample, u8 [R, C, H, W].
    pub real_images: Array<u8>,
    /// Their classes, [R].
    pub real_labels: Vec<u32>,
    /// Their ids, [R].
    pub real_ids: Vec<u64>,
    /// Condensed images of the free buckets in normalised space, f32 [F, C, H, W].
    pub condensed_images: Array<f32>,
    /// Their classes, [F].
    pub condensed_labels: Vec<u32>,
    /// Their buckets, [F].
    pub condensed_buckets: Vec<u32>,
    /// What is not a tensor.
    pub facts: ReducedFacts,
}

/// The facts of a reduced retain set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReducedFacts {
    /// How many classes there are.
    pub classes: usize,
    /// How pixels of the real rows become numbers.
    pub normalisation: Normalisation,
    /// How many samples the retain set has.
    pub retain: usize,
}

impl Reduced {
    /// The number of rows, real and condensed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.real_labels.len() + self.condensed_labels.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of the reduced set for each sample of the retain set.
    #[must_use]
    pub fn compression_ratio(&self) -> f64 {
        self.len() as f64 / self.facts.retain as f64
    }
}

impl Payload for Reduced {
    const SCHEMA: &'static str = "reduced/1";

    fn to_content(&self) -> Content {
        let tensors = [
            ("real_images", Tensor::U8(self.real_images.clone())),
            ("real_labels", vector(&self.real_labels)),
            ("real_ids", vector(&self.real_ids)),
            ("condensed_images", Tensor::F32(self.condensed_images.clone())),
            ("condensed_labels", vector(&self.condensed_labels)),
            ("condensed_buckets", vector(&self.condensed_buckets)),
        ];
        close(Self::SCHEMA, &self.facts, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, mut fields) = open::<ReducedFacts>(content)?;
        let real_images = fields.take::<u8>("real_images", 4)?;
        let real_labels = fields.vector("real_labels", Some(real_images.rows()))?;
        let real_ids = fields.vector("real_ids", Some(real_images.rows()))?;
        let condensed_images = fields.take::<f32>("condensed_images", 4)?;
        let condensed_labels = fields.vector("condensed_labels", Some(condensed_images.rows()))?;
        let condensed_buckets = fields.vector("condensed_buckets", Some(condensed_images.rows()))?;
        fields.end()?;
        if real_images.shape[1..] != condensed_images.shape[1..] {
            return Err(format!("real images are {:?}, condensed ones {:?}", &real_images.shape[1..], &condensed_images.shape[1..]));
        }
        check_pixels("real_images", &real_images)?;
        facts.normalisation.check(real_images.shape[1])?;
        check_labels(&real_labels, facts.classes)?;
        check_labels(&condensed_labels, facts.classes)?;
        check_unique("real_ids", &real_ids)?;
        check_finite_f32("condensed_images", &condensed_images.data)?;
        let reduced = Self { real_images, real_labels, real_ids, condensed_images, condensed_labels, condensed_buckets, facts };
        if reduced.is_empty() {
            return Err("the reduced retain set is empty".into());
        }
        if reduced.facts.retain == 0 {
            return Err("the fact `retain`, the size of the retain set, is 0".into());
        }
        Ok(reduced)
    }
}
