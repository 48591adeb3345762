//! Labelled samples as a training loop reads them: bytes stay bytes until a batch needs them.

use std::ops::Range;

use candle_core::{Device, Error, Result, Tensor, bail};
use dcu_artifact::{Array, Dataset, Normalisation, Retain};
use rayon::prelude::*;

use crate::ops::{self, Targets, Weighting};
use crate::vector::vectorised;

/// Samples with labels, in a fixed order.
#[derive(Debug, Clone)]
pub struct Samples {
    segments: Vec<Segment>,
    labels: Vec<u32>,
    shape: Vec<usize>,
    /// The probability of each class, [N, K], where it is not all on the label.
    targets: Option<Array<f32>>,
    /// How much each sample counts in a mean loss, [N], where they do not count alike.
    weights: Option<Vec<f32>>,
}

#[derive(Debug, Clone)]
enum Segment {
    /// Pixels, and what the bytes of each channel stand for.
    Pixels(Array<u8>, Vec<Channel>),
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
            Self::Pixels(array, channels) => {
                let plane = target.len() / channels.len();
                let planes = target.chunks_exact_mut(plane).zip(array.row(row).chunks_exact(plane)).zip(channels);
                for ((target, pixels), Channel { table, .. }) in planes {
                    target.iter_mut().zip(pixels).for_each(|(target, &pixel)| *target = table[usize::from(pixel)]);
                }
            }
        }
    }

    /// Adds `weight` times a sample to `sum`.
    #[inline(always)]
    fn add_to(&self, row: usize, weight: f32, sum: &mut [f32]) {
        match self {
            Self::Values(array) => add_scaled(sum, array.row(row), weight, 0.0),
            Self::Pixels(array, channels) => {
                let plane = sum.len() / channels.len();
                let planes = sum.chunks_exact_mut(plane).zip(array.row(row).chunks_exact(plane)).zip(channels);
                for ((sum, pixels), Channel { scale, offset, .. }) in planes {
                    add_scaled(sum, pixels, weight * scale, weight * offset);
                }
            }
        }
    }

    /// The scalar product of a sample with `other`.
    #[inline(always)]
    fn dot(&self, row: usize, other: &[f32]) -> f32 {
        match self {
            Self::Values(array) => dot(array.row(row), 1.0, 0.0, other),
            Self::Pixels(array, channels) => {
                let plane = other.len() / channels.len();
                let planes = other.chunks_exact(plane).zip(array.row(row).chunks_exact(plane)).zip(channels);
                let mut sum = 0.0;
                for ((other, pixels), Channel { scale, offset, .. }) in planes {
                    sum += dot(pixels, *scale, *offset, other);
                }
                sum
            }
        }
    }
}

/// `sum += values · factor + term`.
#[inline(always)]
fn add_scaled<V: Copy + Into<f32>>(sum: &mut [f32], values: &[V], factor: f32, term: f32) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += (*value).into().mul_add(factor, term);
    }
}

/// The scalar product of `values · factor + term` with `other`.
#[inline(always)]
fn dot<V: Copy + Into<f32>>(values: &[V], factor: f32, term: f32, other: &[f32]) -> f32 {
    /// Sums side by side.
    const LANES: usize = 32;
    let mut lanes = [0.0_f32; LANES];
    let (parts, others) = (values.chunks_exact(LANES), other.chunks_exact(LANES));
    let mut rest = 0.0;
    for (value, other) in parts.remainder().iter().zip(others.remainder()) {
        rest += (*value).into().mul_add(factor, term) * other;
    }
    for (part, other) in parts.zip(others) {
        for lane in 0..LANES {
            lanes[lane] = part[lane].into().mul_add(factor, term).mul_add(other[lane], lanes[lane]);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// What the bytes of a channel stand for.
#[derive(Debug, Clone)]
struct Channel {
    /// The number of each byte.
    table: [f32; 256],
    /// The same as a line: `byte · scale + offset`, up to rounding.
    scale: f32,
    offset: f32,
}

fn channels(normalisation: &Normalisation) -> Vec<Channel> {
    let channels = normalisation.mean.iter().zip(&normalisation.std);
    let channel = |(mean, deviation): (&f64, &f64)| Channel {
        table: std::array::from_fn(|pixel| (pixel as f32 / 255.0 - *mean as f32) / *deviation as f32),
        scale: (1.0 / (255.0 * deviation)) as f32,
        offset: (-mean / deviation) as f32,
    };
    channels.map(channel).collect()
}

/// A label for each row, and values in each.
fn check(what: &str, shape: &[usize], labels: &[u32]) -> Result<()> {
    if shape.len() < 2 || shape[1..].contains(&0) {
        bail!("samples of the shape {shape:?} hold no values");
    }
    if shape[0] != labels.len() {
        bail!("{} {what}, but {} labels", shape[0], labels.len());
    }
    Ok(())
}

impl Samples {
    /// The samples of a dataset at `rows`.
    #[must_use]
    pub fn of_dataset(dataset: &Dataset, rows: &[usize]) -> Self {
        let labels = rows.iter().map(|&row| dataset.labels[row]).collect();
        Self::of_pixels(dataset.images.select(rows), &dataset.facts.normalisation, labels).expect("a dataset has a label for each image")
    }

    /// Images as bytes, [N, C, H, W].
    ///
    /// # Errors
    /// When there are not as many labels as images, or the normalisation is of another number of channels.
    pub fn of_pixels(images: Array<u8>, normalisation: &Normalisation, labels: Vec<u32>) -> Result<Self> {
        check("images", &images.shape, &labels)?;
        normalisation.check(images.shape[1]).map_err(Error::msg)?;
        Ok(Self::plain(images.shape[1..].to_vec(), vec![Segment::Pixels(images, channels(normalisation))], labels))
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

    /// The rows of `retain`, real ones of `dataset` first.
    ///
    /// # Errors
    /// When they are not of this dataset.
    pub fn of_retain(dataset: &Dataset, retain: &Retain) -> Result<Self> {
        if retain.classes() != dataset.classes() || retain.facts.normalisation != dataset.facts.normalisation {
            bail!("the rows to learn from have other classes or another normalisation than the dataset; make both from the same data");
        }
        let real = Self::of_ids(dataset, &retain.ids)?;
        let images = &retain.condensed_images;
        if images.shape[1..] != real.shape[..] {
            bail!("the rows to learn from are {:?}, the images of the dataset {:?}", &images.shape[1..], real.shape);
        }
        let mut targets = real.probabilities(dataset.classes());
        targets.extend(&retain.condensed_targets.data);
        let rows = real.len() + images.rows();
        let segments = real.segments.into_iter().chain([Segment::Values(images.clone())]).collect();
        Self::plain(real.shape, segments, vec![0; rows])
            .with_targets(Array::new(vec![rows, dataset.classes()], targets))?
            .with_weights([retain.weights.as_slice(), &retain.condensed_weights].concat())
    }

    fn plain(shape: Vec<usize>, segments: Vec<Segment>, labels: Vec<u32>) -> Self {
        Self { segments, labels, shape, targets: None, weights: None }
    }

    /// The same samples with the probability of each class to learn, [N, K]; the most probable class becomes the label.
    ///
    /// # Errors
    /// When there is not a row for each sample.
    pub fn with_targets(self, targets: Array<f32>) -> Result<Self> {
        if targets.shape.len() != 2 || targets.rows() != self.len() || targets.row_len() == 0 {
            bail!("{} samples, but targets of the shape {:?}", self.len(), targets.shape);
        }
        let largest = |row: usize| {
            let values = targets.row(row);
            (0..values.len()).fold(0, |best, class| if values[class] > values[best] { class } else { best })
        };
        let labels: Vec<u32> = (0..targets.rows()).map(|row| largest(row) as u32).collect();
        let is_hard = labels.iter().enumerate().all(|(row, &label)| targets.row(row)[label as usize] == 1.0);
        Ok(Self { labels, targets: (!is_hard).then_some(targets), ..self })
    }

    /// The same samples that count so much in a mean loss, [N].
    ///
    /// # Errors
    /// When there is not a weight for each sample.
    pub fn with_weights(self, weights: Vec<f32>) -> Result<Self> {
        if weights.len() != self.len() {
            bail!("{} samples, but {} weights", self.len(), weights.len());
        }
        let are_alike = weights.windows(2).all(|pair| pair[0] == pair[1]);
        Ok(Self { weights: (!are_alike).then_some(weights), ..self })
    }

    /// The samples of all, one after the other.
    ///
    /// # Errors
    /// When there is none, or they are of different shapes or numbers of classes.
    pub fn joined(all: &[&Self]) -> Result<Self> {
        let Some(first) = all.first() else { bail!("there are no samples to join") };
        if let Some(other) = all.iter().find(|other| other.shape != first.shape) {
            bail!("samples of the shapes {:?} and {:?} are not learned together", first.shape, other.shape);
        }
        let labels: Vec<u32> = all.iter().flat_map(|samples| samples.labels.iter().copied()).collect();
        let joined = Self::plain(first.shape.clone(), all.iter().flat_map(|samples| samples.segments.iter().cloned()).collect(), labels);
        let weights = all.iter().flat_map(|samples| samples.weights.clone().unwrap_or_else(|| vec![1.0; samples.len()])).collect();
        let joined = joined.with_weights(weights)?;
        match all.iter().find_map(|samples| samples.targets.as_ref()) {
            None => Ok(joined),
            Some(targets) => {
                let classes = targets.row_len();
                let values: Vec<f32> = all.iter().flat_map(|samples| samples.probabilities(classes)).collect();
                if values.len() != joined.len() * classes {
                    bail!("samples with another number of classes than {classes} are not learned together");
                }
                joined.with_targets(Array::new(vec![values.len() / classes, classes], values))
            }
        }
    }

    /// The samples at `rows`, in their order.
    ///
    /// # Panics
    /// When a row is out of range.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        // Runs of rows of one kind stay together.
        let mut segments: Vec<(usize, Vec<usize>)> = Vec::new();
        for &row in rows {
            let (mut segment, mut row) = (0, row);
            while row >= self.segments[segment].rows() {
                row -= self.segments[segment].rows();
                segment += 1;
            }
            match segments.last_mut() {
                Some((last, rows)) if *last == segment => rows.push(row),
                _ => segments.push((segment, vec![row])),
            }
        }
        let segment = |(segment, rows): &(usize, Vec<usize>)| match &self.segments[*segment] {
            Segment::Pixels(array, channels) => Segment::Pixels(array.select(rows), channels.clone()),
            Segment::Values(array) => Segment::Values(array.select(rows)),
        };
        Self {
            segments: segments.iter().map(segment).collect(),
            labels: rows.iter().map(|&row| self.labels[row]).collect(),
            shape: self.shape.clone(),
            targets: self.targets.as_ref().map(|targets| targets.select(rows)),
            weights: self.weights.as_ref().map(|weights| rows.iter().map(|&row| weights[row]).collect()),
        }
    }

    /// What there is to learn of each sample as probabilities, [N, classes] row-major.
    ///
    /// # Panics
    /// When a label is no class.
    #[must_use]
    pub fn probabilities(&self, classes: usize) -> Vec<f32> {
        if let Some(targets) = &self.targets {
            return targets.data.clone();
        }
        let mut values = vec![0.0; self.len() * classes];
        self.labels.iter().enumerate().for_each(|(row, &label)| values[row * classes + label as usize] = 1.0);
        values
    }

    /// Other values for the same samples, [N, ...], such as what a part of a network makes of them.
    ///
    /// # Errors
    /// When there is not a row for each sample.
    pub fn with_values(&self, values: Array<f32>) -> Result<Self> {
        let plain = Self::of_values(values, self.labels.clone())?;
        Ok(Self { targets: self.targets.clone(), weights: self.weights.clone(), ..plain })
    }

    /// The weighted mean over the samples at `rows` of the cross-entropy of their logits, [n, K], with what there is to learn of each; `smoothing` is the
    /// share of it that is spread evenly over all classes.
    ///
    /// # Errors
    /// When the logits are not of these rows.
    pub fn loss(&self, logits: &Tensor, rows: &[usize], smoothing: f64) -> Result<Tensor> {
        let weights: Option<Vec<f64>> = self.weights.as_ref().map(|weights| rows.iter().map(|&row| f64::from(weights[row])).collect());
        let weighting = Weighting { samples: weights.as_deref(), smoothing, ..Weighting::default() };
        match &self.targets {
            Some(targets) => {
                let targets = targets.select(rows);
                let targets = Tensor::from_vec(targets.data, targets.shape, logits.device())?;
                ops::weighted_cross_entropy(logits, Targets::Probabilities(&targets), weighting)
            }
            None => {
                let labels: Vec<u32> = rows.iter().map(|&row| self.labels[row]).collect();
                ops::weighted_cross_entropy(logits, Targets::Labels(&labels), weighting)
            }
        }
    }

    /// Samples that are numbers already, [N, ...].
    ///
    /// # Errors
    /// When there are not as many labels as rows.
    pub fn of_values(values: Array<f32>, labels: Vec<u32>) -> Result<Self> {
        check("rows", &values.shape, &labels)?;
        Ok(Self::plain(values.shape[1..].to_vec(), vec![Segment::Values(values)], labels))
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
        let width = self.width();
        let mut values = vec![0.0; rows.len() * width];
        values.par_chunks_mut(width).zip(rows).for_each(|(target, &row)| {
            let (segment, row) = self.place(row);
            segment.copy(row, target);
        });
        values
    }

    /// Leaves the sum of `weights` times the samples at `rows` in `sum`.
    ///
    /// # Panics
    /// When there are not as many weights as rows, `sum` does not have as many values as a sample, or a row is out of range.
    pub fn weighted_sum(&self, rows: Range<usize>, weights: &[f32], sum: &mut [f32]) {
        assert_eq!(rows.len(), weights.len(), "a weight for each row");
        assert_eq!(sum.len(), self.width(), "as many values as a sample has");
        vectorised(
            #[inline(always)]
            || {
                sum.fill(0.0);
                for (row, weight) in rows.zip(weights) {
                    let (segment, row) = self.place(row);
                    segment.add_to(row, *weight, sum);
                }
            },
        );
    }

    /// The scalar product of each of the samples at `rows` with `other`.
    ///
    /// # Panics
    /// When `other` does not have as many values as a sample, or a row is out of range.
    #[must_use]
    pub fn dot(&self, rows: Range<usize>, other: &[f32]) -> Vec<f32> {
        assert_eq!(other.len(), self.width(), "as many values as a sample has");
        vectorised(
            #[inline(always)]
            || {
                let mut products = Vec::with_capacity(rows.len());
                for row in rows {
                    let (segment, row) = self.place(row);
                    products.push(segment.dot(row, other));
                }
                products
            },
        )
    }

    fn width(&self) -> usize {
        self.shape.iter().product()
    }

    /// The segment that holds a row, and where.
    fn place(&self, row: usize) -> (&Segment, usize) {
        let mut row = row;
        for segment in &self.segments {
            if row < segment.rows() {
                return (segment, row);
            }
            row -= segment.rows();
        }
        panic!("row out of range");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Odd sizes, so that what is left over of the vectors counts.
    const SHAPE: [usize; 4] = [5, 3, 7, 9];

    fn samples() -> Samples {
        let pixels = (0..SHAPE.iter().product()).map(|index: usize| (index * 97 % 251) as u8).collect();
        let normalisation = Normalisation { mean: vec![0.4914, 0.4822, 0.4465], std: vec![0.2023, 0.1994, 0.2010] };
        let mut samples = Samples::of_pixels(Array::new(SHAPE.to_vec(), pixels), &normalisation, vec![0; 5]).unwrap();
        let values = (0..2 * samples.width()).map(|index| (index as f32).sin()).collect();
        samples.segments.push(Segment::Values(Array::new([&[2], &SHAPE[1..]].concat(), values)));
        samples.labels.extend([0; 2]);
        samples
    }

    #[test]
    fn sums_and_products_are_those_of_the_values() {
        let (samples, weights) = (samples(), [0.25_f32, -1.5, 3.0, 0.125]);
        let rows: Vec<Vec<f64>> = (3..7).map(|row| samples.values(&[row]).into_iter().map(f64::from).collect()).collect();
        let close = |found: f32, expected: f64, size: f64| assert!((f64::from(found) - expected).abs() < 1e-6 * size, "{found} {expected}");
        let mut sum = vec![f32::NAN; samples.width()];
        samples.weighted_sum(3..7, &weights, &mut sum);
        for (pixel, &found) in sum.iter().enumerate() {
            close(found, rows.iter().zip(weights).map(|(row, weight)| row[pixel] * f64::from(weight)).sum(), 10.0);
        }
        let other: Vec<f32> = (0..samples.width()).map(|index| (index as f32).cos()).collect();
        for (found, row) in samples.dot(3..7, &other).into_iter().zip(&rows) {
            let products = row.iter().zip(&other).map(|(value, other)| value * f64::from(*other));
            close(found, products.clone().sum(), products.map(f64::abs).sum());
        }
    }

    #[test]
    fn samples_of_all_kinds_are_joined_and_chosen_from_with_what_there_is_to_learn() {
        let normalisation = Normalisation { mean: vec![0.5], std: vec![0.5] };
        let pixels = Samples::of_pixels(Array::new(vec![2, 1, 1, 1], vec![0, 255]), &normalisation, vec![0, 1]).unwrap();
        let values = Samples::of_values(Array::new(vec![2, 1, 1, 1], vec![7.0, 8.0]), vec![0; 2]).unwrap();
        let values = values.with_targets(Array::new(vec![2, 2], vec![0.25, 0.75, 1.0, 0.0])).unwrap().with_weights(vec![2.0, 3.0]).unwrap();
        let joined = Samples::joined(&[&pixels, &values]).unwrap();
        assert_eq!((joined.labels(), joined.values(&[0, 1, 2, 3])), ([0, 1, 1, 0].as_slice(), vec![-1.0, 1.0, 7.0, 8.0]));
        assert_eq!(joined.probabilities(2), [1.0, 0.0, 0.0, 1.0, 0.25, 0.75, 1.0, 0.0]);
        let logits = Tensor::new(&[[0.0_f32, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let loss = |samples: &Samples, rows: &[usize]| samples.loss(&logits, rows, 0.0).unwrap().to_scalar::<f32>().unwrap();
        // ln 2 counts once for the first; the third has 1/4 and 3/4, and counts twice.
        let [own, other] = [(1.0_f32 + (-1.0_f32).exp()).ln(), (1.0_f32 + 1.0_f32.exp()).ln()];
        assert!((loss(&joined, &[0, 2]) - (2.0_f32.ln() + 2.0 * (0.25 * own + 0.75 * other)) / 3.0).abs() < 1e-6);
        let chosen = joined.select(&[2, 0, 1, 3]);
        assert_eq!((chosen.labels(), chosen.values(&[0, 1, 2, 3])), ([1, 0, 1, 0].as_slice(), vec![7.0, -1.0, 1.0, 8.0]));
        assert_eq!(loss(&chosen, &[1, 0]), loss(&joined, &[0, 2]));
        assert!(joined.select(&[]).is_empty());
    }

    #[test]
    fn hard_targets_and_equal_weights_are_plain_labels() {
        let plain = Samples::of_values(Array::new(vec![2, 1], vec![1.0, 2.0]), vec![0, 1]).unwrap();
        let same =
            plain.clone().with_targets(Array::new(vec![2, 2], vec![1.0, 0.0, 0.0, 1.0])).unwrap().with_weights(vec![3.0; 2]).unwrap();
        assert!(same.targets.is_none() && same.weights.is_none());
        assert!(plain.clone().with_targets(Array::new(vec![1, 2], vec![1.0, 0.0])).is_err());
        assert!(plain.with_weights(vec![1.0]).is_err());
    }

    #[test]
    fn labels_and_channels_that_do_not_fit_are_refused() {
        let images = Array::new(vec![2, 1, 1, 1], vec![0, 255]);
        let of_channels = |count| Normalisation { mean: vec![0.5; count], std: vec![0.5; count] };
        assert!(Samples::of_pixels(images.clone(), &of_channels(1), vec![0]).is_err());
        assert!(Samples::of_pixels(images.clone(), &of_channels(2), vec![0; 2]).is_err());
        for shape in [vec![], vec![2], vec![2, 0]] {
            let values = Array::new(shape.clone(), vec![0.0; shape.iter().product()]);
            assert!(Samples::of_values(values, vec![0; 2]).is_err(), "{shape:?}");
        }
        assert_eq!(Samples::of_pixels(images, &of_channels(1), vec![0; 2]).unwrap().values(&[0, 1]), [-1.0, 1.0]);
    }
}
