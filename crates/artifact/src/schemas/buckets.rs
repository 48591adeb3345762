//! `buckets/1`: each class of the training set divided into sub-classes.

use serde::{Deserialize, Serialize};

use super::{Payload, check_finite_f32, check_unique, close, open, vector};
use crate::{Array, Content, Tensor};

/// A partition of the training set into class-pure buckets.
#[derive(Debug, Clone, PartialEq)]
pub struct Buckets {
    /// Sample of each row, [N].
    pub ids: Vec<u64>,
    /// Bucket of each row, [N], in 0..B; every bucket has a member.
    pub bucket: Vec<u32>,
    /// Class of each bucket, [B], ascending.
    pub class: Vec<u32>,
    /// Mean feature of each bucket, f32 [B, D].
    pub centroids: Array<f32>,
    /// Buckets asked for in each class.
    pub k: u32,
}

#[derive(Serialize, Deserialize)]
struct Facts {
    k: u32,
}

impl Buckets {
    /// The rows of each bucket, ascending.
    #[must_use]
    pub fn members(&self) -> Vec<Vec<usize>> {
        let mut members = vec![Vec::new(); self.class.len()];
        for (row, &bucket) in self.bucket.iter().enumerate() {
            members[bucket as usize].push(row);
        }
        members
    }
}

impl Payload for Buckets {
    const SCHEMA: &'static str = "buckets/1";

    fn to_content(&self) -> Content {
        let tensors = [
            ("ids", vector(&self.ids)),
            ("bucket", vector(&self.bucket)),
            ("class", vector(&self.class)),
            ("centroids", Tensor::F32(self.centroids.clone())),
        ];
        close(Self::SCHEMA, &Facts { k: self.k }, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, mut fields) = open::<Facts>(content)?;
        let ids: Vec<u64> = fields.vector("ids", None)?;
        let bucket: Vec<u32> = fields.vector("bucket", Some(ids.len()))?;
        let class: Vec<u32> = fields.vector("class", None)?;
        let centroids = fields.take::<f32>("centroids", 2)?;
        fields.end()?;
        if ids.is_empty() {
            return Err("there is no sample".into());
        }
        check_unique("ids", &ids)?;
        check_finite_f32("centroids", &centroids.data)?;
        if centroids.rows() != class.len() {
            return Err(format!("{} centroids for {} buckets", centroids.rows(), class.len()));
        }
        let mut occupied = vec![false; class.len()];
        for (row, &bucket) in bucket.iter().enumerate() {
            *occupied
                .get_mut(bucket as usize)
                .ok_or_else(|| format!("bucket {bucket} in row {row} is out of range: there are {}", class.len()))? = true;
        }
        if let Some(empty) = occupied.iter().position(|occupied| !occupied) {
            return Err(format!("bucket {empty} has no member"));
        }
        if !class.is_sorted() {
            return Err("the buckets are not sorted by class".into());
        }
        Ok(Self { ids, bucket, class, centroids, k: facts.k })
    }
}
