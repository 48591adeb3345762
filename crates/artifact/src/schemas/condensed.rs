//! `condensed/2`: synthetic images of buckets, what there is to learn of each, and who went into it.

use serde::{Deserialize, Serialize};

use super::{Payload, check_finite_f32, check_pixels, check_targets, close, open, vector};
use crate::{Array, Content, Tensor};

/// Condensed images.
#[derive(Debug, Clone, PartialEq)]
pub struct Condensed {
    /// Images in normalised space, f32 [B, C, H, W].
    pub images: Array<f32>,
    /// The probability of each class, f32 [B, K]: all of it on one class for a hard label.
    pub targets: Array<f32>,
    /// Bucket of each image, [B], ascending; a bucket may have several images.
    pub bucket: Vec<u32>,
    /// The samples behind each image, in the same order.
    pub members: Vec<Members>,
    /// What is not a tensor.
    pub facts: CondensedFacts,
}

/// The samples behind one condensed image.
#[derive(Debug, Clone, PartialEq)]
pub struct Members {
    /// Their ids.
    pub ids: Vec<u64>,
    /// Their weights in the image, where it is a weighted sum; otherwise as many zeros.
    pub weights: Vec<f32>,
}

/// What was looked at to make a row that is learned from in place of others. Only [`Reach::Bucket`] forgets by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// The row's own members, of which none is forgotten.
    Bucket,
    /// Other samples of the row's class, forgotten ones among them.
    Class,
    /// Whatever there was, or a model that was trained on it.
    Global,
}

impl std::fmt::Display for Reach {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Bucket => "bucket",
            Self::Class => "class",
            Self::Global => "global",
        })
    }
}

/// The facts of condensed images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CondensedFacts {
    /// The method that made them, such as `fdm`.
    pub maker: String,
    /// What an image shows beside its members: nothing (`bucket`), or what it was matched with or its soft label was taken from.
    pub reach: Reach,
}

impl Condensed {
    /// The number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.targets.row_len()
    }
}

impl Payload for Condensed {
    const SCHEMA: &'static str = "condensed/2";

    fn to_content(&self) -> Content {
        let counts: Vec<u32> = self.members.iter().map(|members| members.ids.len() as u32).collect();
        let ids: Vec<u64> = self.members.iter().flat_map(|members| members.ids.iter().copied()).collect();
        let weights: Vec<f32> = self.members.iter().flat_map(|members| members.weights.iter().copied()).collect();
        let tensors = [
            ("images", Tensor::F32(self.images.clone())),
            ("targets", Tensor::F32(self.targets.clone())),
            ("bucket", vector(&self.bucket)),
            ("member_count", vector(&counts)),
            ("member_ids", vector(&ids)),
            ("member_weights", vector(&weights)),
        ];
        close(Self::SCHEMA, &self.facts, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, mut fields) = open(content)?;
        let images = fields.take::<f32>("images", 4)?;
        let count = images.rows();
        let targets = fields.take::<f32>("targets", 2)?;
        let bucket: Vec<u32> = fields.vector("bucket", Some(count))?;
        let counts: Vec<u32> = fields.vector("member_count", Some(count))?;
        let total = counts.iter().try_fold(0_usize, |total, &count| total.checked_add(count as usize));
        let total = total.ok_or("the images claim more members than can be counted")?;
        let ids: Vec<u64> = fields.vector("member_ids", Some(total))?;
        let weights: Vec<f32> = fields.vector("member_weights", Some(total))?;
        fields.end()?;
        if count == 0 {
            return Err("there is no condensed image".into());
        }
        check_pixels("images", &images)?;
        check_finite_f32("images", &images.data)?;
        check_finite_f32("member_weights", &weights)?;
        check_targets("targets", &targets, count)?;
        if !bucket.is_sorted() {
            return Err("the buckets are not ascending".into());
        }
        let mut start = 0;
        let mut members = Vec::with_capacity(count);
        for (row, &count) in counts.iter().enumerate() {
            let range = start..start + count as usize;
            if range.is_empty() {
                return Err(format!("condensed image {row} has no member"));
            }
            members.push(Members { ids: ids[range.clone()].to_vec(), weights: weights[range.clone()].to_vec() });
            start = range.end;
        }
        Ok(Self { images, targets, bucket, members, facts })
    }
}
