//! Batch normalisation in train and eval mode, with the rectification that follows it in every block.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::activation::where_positive;
use super::{dtype_of, for_real, stored, values, with_values};
use crate::matrix::Real;

/// Added to the variance before its root is taken, as in PyTorch.
pub const BATCH_NORM_EPSILON: f64 = 1e-5;

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
}

/// The statistics of a batch [N, C, H, W].
///
/// # Errors
/// When the tensor is not f32 or f64 on the CPU.
pub fn batch_statistics(input: &Tensor) -> Result<Statistics> {
    let (count, channels, height, width) = input.dims4()?;
    let plane = height * width;
    for_real!(input.dtype(), T => with_values::<T, _>(&[input], |arguments| {
        let per_channel: Vec<(f64, f64)> = (0..channels)
            .into_par_iter()
            .map(|channel| {
                let planes = || arguments[0].chunks_exact(plane).skip(channel).step_by(channels);
                let size = (count * plane) as f64;
                let mean = planes().map(|plane| lane_sum(plane, |value| value).to_f64()).sum::<f64>() / size;
                let centre = T::from_f64(mean);
                let squares = planes().map(|plane| lane_sum(plane, |value| (value - centre) * (value - centre)).to_f64());
                (mean, squares.sum::<f64>() / size)
            })
            .collect();
        let (mean, variance) = per_channel.into_iter().unzip();
        Ok(Statistics { mean, variance, count: count * plane })
    }))
}

/// Batch normalisation by the batch's own statistics, through which the gradient flows: input [N, C, H, W], scale and shift [C].
/// With `rectify`, `max(·, 0)` follows.
///
/// # Errors
/// When the shapes do not fit or a tensor is not f32 or f64 on the CPU.
pub fn batch_norm_train(input: &Tensor, scale: &Tensor, shift: &Tensor, statistics: &Statistics, rectify: bool) -> Result<Tensor> {
    apply(input, scale, shift, BatchNorm::new(&statistics.mean, &statistics.variance, true, rectify))
}

/// Batch normalisation by fixed statistics `mean` and `variance`, [C].
///
/// # Errors
/// As [`batch_norm_train`].
pub fn batch_norm_eval(input: &Tensor, scale: &Tensor, shift: &Tensor, mean: &[f64], variance: &[f64], rectify: bool) -> Result<Tensor> {
    apply(input, scale, shift, BatchNorm::new(mean, variance, false, rectify))
}

fn apply(input: &Tensor, scale: &Tensor, shift: &Tensor, operation: BatchNorm) -> Result<Tensor> {
    let (_, channels, _, _) = input.dims4()?;
    let lengths = [scale.dims1()?, shift.dims1()?, operation.mean.len(), operation.inverse_deviation.len()];
    if lengths.iter().any(|&length| length != channels) {
        bail!("batch normalisation of {channels} channels with parameters and statistics of {lengths:?}");
    }
    input.contiguous()?.apply_op3(&scale.contiguous()?, &shift.contiguous()?, operation)
}

struct BatchNorm {
    mean: Vec<f64>,
    inverse_deviation: Vec<f64>,
    /// Whether the statistics are the batch's own, so that they move with the input.
    own_statistics: bool,
    rectify: bool,
}

impl BatchNorm {
    fn new(mean: &[f64], variance: &[f64], own_statistics: bool, rectify: bool) -> Self {
        let inverse_deviation = variance.iter().map(|variance| 1.0 / (variance + BATCH_NORM_EPSILON).sqrt()).collect();
        Self { mean: mean.to_vec(), inverse_deviation, own_statistics, rectify }
    }

    /// `input · factor + offset` of each channel.
    fn affine<T: Real>(&self, scale: &[T], shift: &[T]) -> Vec<(T, T)> {
        let channels = self.mean.iter().zip(&self.inverse_deviation).zip(scale).zip(shift);
        channels
            .map(|(((mean, inverse_deviation), scale), shift)| {
                let factor = scale.to_f64() * inverse_deviation;
                (T::from_f64(factor), T::from_f64(shift.to_f64() - mean * factor))
            })
            .collect()
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, channels, height, width) = l1.shape().dims4()?;
        let plane = height * width;
        for_real!(dtype_of(s1), T => {
            let input = values::<T>(s1, l1)?;
            let affine = self.affine(values::<T>(s2, l2)?, values::<T>(s3, l3)?);
            let floor = if self.rectify { T::default() } else { T::from_f64(f64::NEG_INFINITY) };
            let mut output = vec![T::default(); input.len()];
            output.par_chunks_mut(channels * plane).zip(input.par_chunks(channels * plane)).for_each(|(output, input)| {
                let planes = output.chunks_exact_mut(plane).zip(input.chunks_exact(plane)).zip(&affine);
                for ((output, input), &(factor, offset)) in planes {
                    output.iter_mut().zip(input).for_each(|(output, &input)| {
                        let value = input * factor + offset;
                        *output = if value > floor { value } else { floor };
                    });
                }
            });
            Ok((stored(output), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        input: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, channels, height, width) = input.dims4()?;
        let device = input.device();
        let plane = height * width;
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, scale, output, gradient], |arguments| {
            let masked;
            let (input_values, scale_values) = (arguments[0], arguments[1]);
            let gradient = if self.rectify { masked = where_positive(arguments[2], arguments[3]); &masked } else { arguments[3] };
            let needs_sums = self.own_statistics || scale.track_op() || shift.track_op();
            let sums = if needs_sums { self.channel_sums(input_values, gradient, channels, plane) } else { vec![(0.0, 0.0); channels] };
            let input_gradient = input.track_op().then(|| self.input_gradient(input_values, gradient, scale_values, &sums, plane));
            let column = |pick: fn(&(f64, f64)) -> f64| Tensor::from_vec(sums.iter().map(|sum| T::from_f64(pick(sum))).collect(), channels, device);
            Ok((
                input_gradient.map(|values| Tensor::from_vec(values, input.shape(), device)).transpose()?,
                scale.track_op().then(|| column(|sum| sum.1)).transpose()?,
                shift.track_op().then(|| column(|sum| sum.0)).transpose()?,
            ))
        }))
    }
}

impl BatchNorm {
    /// For each channel the sums of the gradient and of the gradient times the normalised input.
    fn channel_sums<T: Real>(&self, input: &[T], gradient: &[T], channels: usize, plane: usize) -> Vec<(f64, f64)> {
        (0..channels)
            .into_par_iter()
            .map(|channel| {
                let mean = T::from_f64(self.mean[channel]);
                let (mut total, mut weighted) = (0.0, 0.0);
                let planes = input.chunks_exact(plane).zip(gradient.chunks_exact(plane)).skip(channel).step_by(channels);
                for (input, gradient) in planes {
                    total += lane_sum(gradient, |value| value).to_f64();
                    weighted += lane_sum_of_products(input, gradient, mean).to_f64();
                }
                (total, weighted * self.inverse_deviation[channel])
            })
            .collect()
    }

    fn input_gradient<T: Real>(&self, input: &[T], gradient: &[T], scale: &[T], sums: &[(f64, f64)], plane: usize) -> Vec<T> {
        let channels = scale.len();
        let count = (input.len() / channels) as f64;
        // With x̂ = (x - mean) / deviation: dx = scale / deviation · (g - Σg / count - x̂ · Σ(g·x̂) / count), where the sums are left out for
        // fixed statistics. As a function of g and x it is `a·g + b·x + c`.
        let coefficients: Vec<(T, T, T)> = (0..channels)
            .map(|channel| {
                let (mean, inverse) = (self.mean[channel], self.inverse_deviation[channel]);
                let factor = scale[channel].to_f64() * inverse;
                let (total, weighted) = if self.own_statistics { sums[channel] } else { (0.0, 0.0) };
                let slope = -factor * weighted / count * inverse;
                (T::from_f64(factor), T::from_f64(slope), T::from_f64(-factor * total / count - slope * mean))
            })
            .collect();
        let mut result = vec![T::default(); input.len()];
        let image = channels * plane;
        result.par_chunks_mut(image).zip(input.par_chunks(image)).zip(gradient.par_chunks(image)).for_each(
            |((result, input), gradient)| {
                let planes =
                    result.chunks_exact_mut(plane).zip(input.chunks_exact(plane)).zip(gradient.chunks_exact(plane)).zip(&coefficients);
                for (((result, input), gradient), &(a, b, c)) in planes {
                    result.iter_mut().zip(input).zip(gradient).for_each(|((result, &x), &g)| *result = a * g + b * x + c);
                }
            },
        );
        result
    }
}

const LANES: usize = 16;

/// The sum of `term(value)`, in lanes that the compiler can keep in vector registers.
pub(super) fn lane_sum<T: Real>(values: &[T], term: impl Fn(T) -> T) -> T {
    let mut lanes = [T::default(); LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: T = chunks.remainder().iter().map(|&value| term(value)).sum();
    chunks.for_each(|chunk| lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += term(value)));
    lanes.into_iter().sum::<T>() + rest
}

fn lane_sum_of_products<T: Real>(input: &[T], gradient: &[T], mean: T) -> T {
    let mut lanes = [T::default(); LANES];
    let (inputs, gradients) = (input.chunks_exact(LANES), gradient.chunks_exact(LANES));
    let rest: T = inputs.remainder().iter().zip(gradients.remainder()).map(|(&x, &g)| (x - mean) * g).sum();
    inputs.zip(gradients).for_each(|(inputs, gradients)| {
        lanes.iter_mut().zip(inputs.iter().zip(gradients)).for_each(|(lane, (&x, &g))| *lane += (x - mean) * g);
    });
    lanes.into_iter().sum::<T>() + rest
}
