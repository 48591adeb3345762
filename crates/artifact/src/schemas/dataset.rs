//! `dataset/1`: images with labels and ids, as bytes until a batch needs them.

use serde::{Deserialize, Serialize};

use super::{Payload, check_class_names, check_labels, check_pixels, check_unique, close, open, vector};
use crate::{Array, Content, Tensor};

/// A sample's row in its source fills half of its id.
const MOST_SAMPLES: u64 = 1 << 32;

/// Labelled images: one at least, and at most 2^32.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Images, u8 [N, C, H, W].
    pub images: Array<u8>,
    /// Class of each image, [N]. After poisoning, the poisoned label.
    pub labels: Vec<u32>,
    /// Class before poisoning, [N], where the set was poisoned.
    pub original_labels: Option<Vec<u32>>,
    /// [`super::SampleId`] of each image, [N].
    pub ids: Vec<u64>,
    /// What is not a tensor.
    pub facts: DatasetFacts,
}

/// The facts of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetFacts {
    /// A short name of the source, such as `mnist10k`.
    pub source: String,
    /// The name of each class.
    pub class_names: Vec<String>,
    /// How pixels become numbers for the network.
    pub normalisation: Normalisation,
    /// The name of each sample in the source, such as a path relative to its folder, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
}

/// Per channel: `(pixel / 255 - mean) / std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Mean of each channel, in 0..1.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, positive.
    pub std: Vec<f64>,
}

impl Normalisation {
    /// # Errors
    /// When the lengths differ from the channels or a deviation is not positive.
    pub fn check(&self, channels: usize) -> Result<(), String> {
        if self.mean.len() != channels || self.std.len() != channels {
            return Err(format!(
                "the normalisation has {} means and {} deviations for {channels} channels",
                self.mean.len(),
                self.std.len()
            ));
        }
        if self.mean.iter().any(|value| !value.is_finite()) || self.std.iter().any(|value| !value.is_finite() || *value <= 0.0) {
            return Err("the normalisation needs finite means and positive deviations".into());
        }
        Ok(())
    }
}

impl Dataset {
    /// The number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.facts.class_names.len()
    }

    /// Channels, height and width.
    #[must_use]
    pub fn image_shape(&self) -> [usize; 3] {
        [self.images.shape[1], self.images.shape[2], self.images.shape[3]]
    }

    /// The samples at `rows`, in that order.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            images: self.images.select(rows),
            labels: rows.iter().map(|&row| self.labels[row]).collect(),
            original_labels: self.original_labels.as_ref().map(|labels| rows.iter().map(|&row| labels[row]).collect()),
            ids: rows.iter().map(|&row| self.ids[row]).collect(),
            facts: DatasetFacts {
                names: self.facts.names.as_ref().map(|names| rows.iter().map(|&row| names[row].clone()).collect()),
                ..self.facts.clone()
            },
        }
    }

    /// The rows that hold `ids`, in the order of `ids`.
    ///
    /// # Errors
    /// Names the first id that the set does not hold.
    pub fn rows_of(&self, ids: &[u64]) -> Result<Vec<usize>, super::SampleId> {
        let rows: std::collections::HashMap<u64, usize> = self.ids.iter().enumerate().map(|(row, id)| (*id, row)).collect();
        ids.iter().map(|id| rows.get(id).copied().ok_or(super::SampleId(*id))).collect()
    }
}

impl Payload for Dataset {
    const SCHEMA: &'static str = "dataset/1";

    fn to_content(&self) -> Content {
        let mut tensors = vec![("images", Tensor::U8(self.images.clone())), ("labels", vector(&self.labels)), ("ids", vector(&self.ids))];
        if let Some(original) = &self.original_labels {
            tensors.push(("original_labels", vector(original)));
        }
        close(Self::SCHEMA, &self.facts, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, mut fields) = open::<DatasetFacts>(content)?;
        let images = fields.take::<u8>("images", 4)?;
        let count = images.rows();
        let labels = fields.vector("labels", Some(count))?;
        let ids = fields.vector("ids", Some(count))?;
        let original_labels = fields.optional::<u32>("original_labels", 1)?.map(|array| array.data);
        fields.end()?;
        if count == 0 || count as u64 > MOST_SAMPLES {
            return Err(format!("there are {count} samples; a dataset has 1 to {MOST_SAMPLES}"));
        }
        check_pixels("images", &images)?;
        check_class_names(&facts.class_names)?;
        facts.normalisation.check(images.shape[1])?;
        check_labels(&labels, facts.class_names.len())?;
        if let Some(original) = &original_labels {
            if original.len() != count {
                return Err(format!("tensor `original_labels` has {} values, but needs {count}", original.len()));
            }
            check_labels(original, facts.class_names.len())?;
        }
        if facts.names.as_ref().is_some_and(|names| names.len() != count) {
            let names = facts.names.map_or(0, |names| names.len());
            return Err(format!("there are {count} samples, but {names} names"));
        }
        check_unique("ids", &ids)?;
        Ok(Self { images, labels, original_labels, ids, facts })
    }
}
