//! What operations are told besides their tensors: plain values that the kernels and what is composed of candle's own both take.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};

/// Added to the variance before its root is taken, as in PyTorch.
pub const BATCH_NORM_EPSILON: f64 = 1e-5;

/// Stride and zero padding, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
}

/// The windows of a pooling, square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooling {
    /// Rows and columns of a window.
    pub size: usize,
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Pixels on each side that belong to no image: never the maximum, and 0 in an average, where they count, as in PyTorch.
    pub padding: usize,
}

impl Pooling {
    /// The number of windows along `extent` pixels.
    pub(super) fn windows(&self, extent: usize) -> Result<usize> {
        let padded = extent + 2 * self.padding;
        if extent == 0 || self.size == 0 || self.stride == 0 || self.padding > self.size / 2 || padded < self.size {
            bail!("{self:?} does not fit {extent} pixels; a padding of half a window at most is possible");
        }
        Ok((padded - self.size) / self.stride + 1)
    }
}

/// What a block does besides convolution and batch normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Stride and padding.
    pub convolution: Convolution,
    /// `max(·, 0)`, with the gradient 0 at 0. What is not a number stays so.
    pub rectify: bool,
    /// The maximum of each 2 x 2 window, 2 apart; a last row or column that does not fill a window is left out. The gradient goes to the first
    /// maximum of a window, row by row, as in PyTorch.
    pub pool: bool,
}

/// What follows an instance normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceBlock {
    /// `max(·, 0)`, with the gradient 0 at 0. What is not a number stays so.
    pub rectify: bool,
    /// The mean of each 2 x 2 window, 2 apart; a last row or column that does not fill a window is left out.
    pub pool: bool,
}

/// The statistics that a block normalises by.
#[derive(Debug, Clone, Copy)]
pub enum Normalisation<'a> {
    /// Those of the batch itself, through which the gradient flows. The bias has no influence then, and its gradient is 0.
    Batch,
    /// Fixed ones, such as running averages.
    Fixed {
        /// Mean of each channel, [O].
        mean: &'a [f64],
        /// Biased variance of each channel, [O].
        variance: &'a [f64],
    },
}

/// Mean and biased variance of each channel over a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Mean of each channel, [C].
    pub mean: Vec<f64>,
    /// Biased variance of each channel, [C].
    pub variance: Vec<f64>,
    /// Values behind each of them: N · H · W.
    pub count: usize,
}

impl Statistics {
    /// The variance as an unbiased estimate, which is what running averages hold.
    #[must_use]
    pub fn unbiased_variance(&self) -> Vec<f64> {
        let correction = self.count as f64 / (self.count as f64 - 1.0).max(1.0);
        self.variance.iter().map(|variance| variance * correction).collect()
    }

    /// Those of several batches together.
    pub(crate) fn joined(batches: &[Self]) -> Self {
        let count = batches.iter().map(|batch| batch.count).sum();
        let channels = batches.first().map_or(0, |batch| batch.mean.len());
        let mean = |value: &dyn Fn(&Self) -> f64| batches.iter().map(|batch| batch.count as f64 * value(batch)).sum::<f64>() / count as f64;
        let moments = (0..channels).map(|channel| {
            let centre = mean(&|batch| batch.mean[channel]);
            (centre, mean(&|batch| batch.variance[channel] + (batch.mean[channel] - centre).powi(2)))
        });
        let (mean, variance) = moments.unzip();
        Self { mean, variance, count }
    }
}

/// A block whose parameters take no part in differentiation and that normalises by fixed statistics.
#[derive(Debug, Clone)]
pub struct FrozenBlock {
    /// The convolution's weight, [O, C, K, K'].
    pub weight: Tensor,
    /// The convolution's bias, the normalisation's scale and shift, [O] each.
    pub parameters: [Tensor; 3],
    /// Mean of each channel, [O].
    pub mean: Vec<f64>,
    /// Biased variance of each channel, [O].
    pub variance: Vec<f64>,
    /// What the block does besides.
    pub block: Block,
}

/// The pixels of one of so many windows over an extent, as evenly as PyTorch's adaptive pooling has them: windows may overlap.
pub(super) fn window(index: usize, extent: usize, windows: usize) -> Range<usize> {
    index * extent / windows..((index + 1) * extent).div_ceil(windows)
}

/// What the logits of a batch are compared with.
#[derive(Debug, Clone, Copy)]
pub enum Targets<'a> {
    /// The class of each sample.
    Labels(&'a [u32]),
    /// The probability of each class for each sample, [N, C]. No gradient flows to these.
    Probabilities(&'a Tensor),
}

/// How much the terms of a cross-entropy count. By default all of them alike.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weighting<'a> {
    /// The share of each target that is spread evenly over all classes, from 0 to 1.
    pub smoothing: f64,
    /// Weight of each class, [C].
    pub classes: Option<&'a [f64]>,
    /// Weight of each sample, [N].
    pub samples: Option<&'a [f64]>,
}

impl Weighting<'_> {
    /// Whether all terms count alike and no target is smoothed.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.smoothing == 0.0 && self.classes.is_none() && self.samples.is_none()
    }

    /// The loss as `-Σ coefficient · ln softmax / divisor`: coefficients [N, C] and the divisor.
    pub(super) fn coefficients(&self, targets: Targets<'_>, (rows, classes): (usize, usize)) -> Result<(Vec<f64>, f64)> {
        if rows == 0 || classes == 0 {
            bail!("there is no mean loss of {rows} samples of {classes} classes");
        }
        let lengths = [self.classes.map_or(classes, <[f64]>::len), self.samples.map_or(rows, <[f64]>::len)];
        if lengths != [classes, rows] {
            bail!("{} weights of classes and {} of samples, but {rows} samples of {classes} classes", lengths[0], lengths[1]);
        }
        if !(0.0..=1.0).contains(&self.smoothing) {
            bail!("the smoothing of labels is a share from 0 to 1, not {}", self.smoothing);
        }
        let even = self.smoothing / classes as f64;
        let (mut coefficients, mut divisor) = (vec![even; rows * classes], 0.0);
        let of_sample = |row: usize| self.samples.map_or(1.0, |weights| weights[row]);
        match targets {
            Targets::Labels(labels) => {
                check_labels(labels, rows, classes)?;
                for (row, &label) in labels.iter().enumerate() {
                    coefficients[row * classes + label as usize] += 1.0 - self.smoothing;
                    divisor += of_sample(row) * self.classes.map_or(1.0, |weights| weights[label as usize]);
                }
            }
            Targets::Probabilities(probabilities) => {
                if probabilities.dims() != [rows, classes] {
                    bail!("probabilities {:?} for logits [{rows}, {classes}]", probabilities.dims());
                }
                let values = probabilities.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
                coefficients.iter_mut().zip(values).for_each(|(coefficient, value)| *coefficient += value * (1.0 - self.smoothing));
                // As in PyTorch, which divides by the weights of classes for labels alone.
                divisor = (0..rows).map(of_sample).sum();
            }
        }
        for (row, coefficients) in coefficients.chunks_exact_mut(classes).enumerate() {
            for (class, coefficient) in coefficients.iter_mut().enumerate() {
                *coefficient *= of_sample(row) * self.classes.map_or(1.0, |weights| weights[class]);
            }
        }
        Ok((coefficients, divisor))
    }
}

/// Fails unless there is one label in range for each row.
pub(super) fn check_labels(labels: &[u32], rows: usize, classes: usize) -> Result<()> {
    if rows != labels.len() {
        bail!("{rows} rows of logits, but {} labels", labels.len());
    }
    if classes == 0 {
        bail!("logits need a class at least");
    }
    match labels.iter().find(|&&label| label as usize >= classes) {
        Some(label) => bail!("the label {label} is out of range: there are {classes} classes"),
        None => Ok(()),
    }
}
