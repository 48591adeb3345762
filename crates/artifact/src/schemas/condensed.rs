//! `condensed/1`: one synthetic image for each bucket, and who went into it.

use serde::{Deserialize, Serialize};

use super::{Payload, check_finite_f32, check_labels, check_pixels, close, open, vector};
use crate::{Array, Content, Tensor};

/// Condensed images.
#[derive(Debug, Clone, PartialEq)]
pub struct Condensed {
    /// Images in normalised space, f32 [B, C, H, W].
    pub images: Array<f32>,
    /// Class of each image, [B].
    pub labels: Vec<u32>,
    /// Bucket of each image, [B], ascending.
    pub bucket: Vec<u32>,
    /// The samples behind each image, in the same order.
    pub members: Vec<Members>,
    /// How many classes there are.
    pub classes: usize,
}

/// The samples behind one condensed image.
#[derive(Debug, Clone, PartialEq)]
pub struct Members {
    /// Their ids.
    pub ids: Vec<u64>,
    /// Their weights in the image, where it is a weighted sum; otherwise as many zeros.
    pub weights: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
struct Facts {
    classes: usize,
}

impl Payload for Condensed {
    const SCHEMA: &'static str = "condensed/1";

    fn to_content(&self) -> Content {
        let counts: Vec<u32> = self.members.iter().map(|members| members.ids.len() as u32).collect();
        let ids: Vec<u64> = self.members.iter().flat_map(|members| members.ids.iter().copied()).collect();
        let weights: Vec<f32> = self.members.iter().flat_map(|members| members.weights.iter().copied()).collect();
        let tensors = [
            ("images", Tensor::F32(self.images.clone())),
            ("labels", vector(&self.labels)),
            ("bucket", vector(&self.bucket)),
            ("member_count", vector(&counts)),
            ("member_ids", vector(&ids)),
            ("member_weights", vector(&weights)),
        ];
        close(Self::SCHEMA, &Facts { classes: self.classes }, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, mut fields) = open::<Facts>(content)?;
        let images = fields.take::<f32>("images", 4)?;
        let count = images.rows();
        let labels = fields.vector("labels", Some(count))?;
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
        check_labels(&labels, facts.classes)?;
        if !bucket.is_sorted_by(|left, right| left < right) {
            return Err("the buckets are not strictly ascending".into());
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
        Ok(Self { images, labels, bucket, members, classes: facts.classes })
    }
}
