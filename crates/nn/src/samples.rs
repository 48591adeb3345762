//! Labelled samples as a training loop reads them: bytes stay bytes until a batch needs them.

use candle_core::{Device, Result, Tensor, bail};
use dcu_artifact::{Array, Dataset, Normalisation, Reduced};
use rayon::prelude::*;

/// Samples with labels, in a fixed order.
#[derive(Debug, Clone)]
pub struct Samples {
    segments: Vec<Segment>,
    labels: Vec<u32>,
    shape: Vec<usize>,
}

#[derive(Debug, Clone)]
enum Segment {
    /// Pixels, and for each channel the number that each byte stands for.
    Pixels(Array<u8>, Vec<[f32; 256]>),
    Values(Array<f32>),
}

impl Segment {
    fn rows(&self) -> usize {
        match self {
            Self::Pixels(array, _) => array.rows(),
            Self::Values(array) => array.rows(),
        }
    }

    fn copy(&self, row: usize, target: &mut [f32]) {
        match self {
            Self::Values(array) => target.copy_from_slice(array.row(row)),
            Self::Pixels(array, tables) => {
                let plane = target.len() / tables.len();
                let channels = target.chunks_exact_mut(plane).zip(array.row(row).chunks_exact(plane)).zip(tables);
                for ((target, pixels), table) in channels {
                    target.iter_mut().zip(pixels).for_each(|(target, &pixel)| *target = table[usize::from(pixel)]);
                }
            }
        }
    }
}

fn tables(normalisation: &Normalisation) -> Vec<[f32; 256]> {
    let channels = normalisation.mean.iter().zip(&normalisation.std);
    channels.map(|(mean, deviation)| std::array::from_fn(|pixel| (pixel as f32 / 255.0 - *mean as f32) / *deviation as f32)).collect()
}

impl Samples {
    /// The samples of a dataset at `rows`.
    #[must_use]
    pub fn of_dataset(dataset: &Dataset, rows: &[usize]) -> Self {
        Self {
            segments: vec![Segment::Pixels(dataset.images.select(rows), tables(&dataset.facts.normalisation))],
            labels: rows.iter().map(|&row| dataset.labels[row]).collect(),
            shape: dataset.image_shape().to_vec(),
        }
    }

    /// All samples of a dataset.
    #[must_use]
    pub fn of_whole_dataset(dataset: &Dataset) -> Self {
        Self::of_dataset(dataset, &(0..dataset.len()).collect::<Vec<_>>())
    }

    /// The samples of a dataset with the given ids, in their order.
    ///
    /// # Errors
    /// Names an id that the dataset does not hold.
    pub fn of_ids(dataset: &Dataset, ids: &[u64]) -> Result<Self> {
        match dataset.rows_of(ids) {
            Ok(rows) => Ok(Self::of_dataset(dataset, &rows)),
            Err(id) => bail!("sample {id} is not in the dataset; are both made from the same source?"),
        }
    }

    /// The rows of a reduced retain set, real ones first.
    #[must_use]
    pub fn of_reduced(reduced: &Reduced) -> Self {
        Self {
            segments: vec![
                Segment::Pixels(reduced.real_images.clone(), tables(&reduced.facts.normalisation)),
                Segment::Values(reduced.condensed_images.clone()),
            ],
            labels: [reduced.real_labels.as_slice(), &reduced.condensed_labels].concat(),
            shape: reduced.real_images.shape[1..].to_vec(),
        }
    }

    /// Samples that are numbers already, [N, ...].
    ///
    /// # Errors
    /// When there are not as many labels as rows.
    pub fn of_values(values: Array<f32>, labels: Vec<u32>) -> Result<Self> {
        if values.rows() != labels.len() {
            bail!("{} rows, but {} labels", values.rows(), labels.len());
        }
        Ok(Self { shape: values.shape[1..].to_vec(), segments: vec![Segment::Values(values)], labels })
    }

    /// The number of samples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The class of each sample.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The shape of one sample.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The samples at `rows` as numbers, row-major.
    #[must_use]
    pub fn values(&self, rows: &[usize]) -> Vec<f32> {
        let width: usize = self.shape.iter().product();
        let mut values = vec![0.0; rows.len() * width];
        values.par_chunks_mut(width).zip(rows).for_each(|(target, &row)| {
            let mut row = row;
            for segment in &self.segments {
                if row < segment.rows() {
                    return segment.copy(row, target);
                }
                row -= segment.rows();
            }
            panic!("row out of range");
        });
        values
    }

    /// The samples at `rows` as a tensor [rows, ...], and their labels.
    ///
    /// # Errors
    /// When the tensor cannot be made.
    pub fn batch(&self, rows: &[usize]) -> Result<(Tensor, Vec<u32>)> {
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(self.shape.iter().copied()).collect();
        let tensor = Tensor::from_vec(self.values(rows), shape, &Device::Cpu)?;
        Ok((tensor, rows.iter().map(|&row| self.labels[row]).collect()))
    }
}
