//! Normalisation: the statistics and affine maps of batch normalisation, and layer normalisation.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::storage::{apply3, dtype_of, for_real, stored, values, with_values};
use super::types::{BATCH_NORM_EPSILON, Statistics};
use crate::vector::{Real, vectorised};

/// Rows whose sums are added up before they are added to those of other rows.
const ROWS: usize = 64;

/// `value · factor + offset`.
#[derive(Clone, Copy)]
pub(super) struct Affine<T> {
    pub(super) factor: T,
    pub(super) offset: T,
}

impl Statistics {
    /// From the sums and sums of squares of each channel over parts of the batch, added up in order.
    pub(super) fn from_sums(parts: &[Vec<(f64, f64)>], count: usize) -> Self {
        let channels = parts.first().map_or(0, Vec::len);
        let sum = |channel: usize| parts.iter().fold((0.0, 0.0), |sum, part| (sum.0 + part[channel].0, sum.1 + part[channel].1));
        let moments = (0..channels).map(sum).map(|(sum, squares)| {
            let mean = sum / count as f64;
            let variance = squares / count as f64 - mean * mean;
            // Below 0 by rounding; what is not a number stays so.
            (mean, if variance < 0.0 { 0.0 } else { variance })
        });
        let (mean, variance) = moments.unzip();
        Self { mean, variance, count }
    }

    pub(super) fn inverse_deviations(&self) -> impl Iterator<Item = f64> {
        self.variance.iter().map(|variance| 1.0 / (variance + BATCH_NORM_EPSILON).sqrt())
    }

    /// Normalisation, scale and shift of each channel as one map.
    pub(super) fn affine<T: Real>(&self, scale: &[T], shift: &[T]) -> Vec<Affine<T>> {
        let channels = self.mean.iter().zip(self.inverse_deviations()).zip(scale.iter().zip(shift));
        channels
            .map(|((mean, inverse), (scale, shift))| {
                let factor = scale.to_f64() * inverse;
                Affine { factor: T::from_f64(factor), offset: T::from_f64(shift.to_f64() - mean * factor) }
            })
            .collect()
    }
}

/// Layer normalisation over the last dimension D: input [.., D], scale and shift [D].
///
/// # Errors
/// When the shapes do not fit or a tensor is neither f32 nor f64.
pub fn layer_norm(input: &Tensor, scale: &Tensor, shift: &Tensor, epsilon: f64) -> Result<Tensor> {
    let width = input.dims().last().copied().unwrap_or(0);
    if width == 0 || scale.dims1()? != width || shift.dims1()? != width {
        bail!("layer normalisation of {:?} with parameters of {:?} and {:?}", input.dims(), scale.dims(), shift.dims());
    }
    apply3([input, scale, shift], LayerNorm { width, epsilon })
}

struct LayerNorm {
    width: usize,
    epsilon: f64,
}

impl LayerNorm {
    /// Mean and inverse deviation of one row.
    #[inline(always)]
    fn moments<T: Real>(&self, row: &[T]) -> (T, T) {
        let size = T::from_f64(row.len() as f64);
        let mean = lane_sum(row, |value| value) / size;
        let variance = lane_sum(row, |value| (value - mean) * (value - mean)) / size;
        (mean, T::ONE / (variance + T::from_f64(self.epsilon)).root())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
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
        for_real!(dtype_of(s1), T => {
            let (input, scale, shift) = (values::<T>(s1, l1)?, values::<T>(s2, l2)?, values::<T>(s3, l3)?);
            let mut output = vec![T::default(); input.len()];
            let block = ROWS * self.width;
            output.par_chunks_mut(block).zip(input.par_chunks(block)).for_each(|(output, input)| vectorised(#[inline(always)] || {
                for (output, input) in output.chunks_exact_mut(self.width).zip(input.chunks_exact(self.width)) {
                    let (mean, inverse) = self.moments(input);
                    for ((output, &value), (&scale, &shift)) in output.iter_mut().zip(input).zip(scale.iter().zip(shift)) {
                        *output = (value - mean) * inverse * scale + shift;
                    }
                }
            }));
            Ok((stored(output), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        input: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (width, device) = (self.width, input.device());
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, scale, gradient], |arguments| {
            let (input_values, scale_values, gradient) = (arguments[0], arguments[1], arguments[2]);
            let mut result = vec![T::default(); input_values.len()];
            let block = ROWS * width;
            let blocks = result.par_chunks_mut(block).zip(input_values.par_chunks(block)).zip(gradient.par_chunks(block));
            // Gradients of scale and shift, one block of rows after the other.
            let sums: Vec<[Vec<T>; 2]> = blocks
                .map(|((result, input), gradient)| vectorised(#[inline(always)] || {
                    let mut sums = [vec![T::default(); width], vec![T::default(); width]];
                    let [scales, shifts] = &mut sums;
                    let rows = result.chunks_exact_mut(width).zip(input.chunks_exact(width)).zip(gradient.chunks_exact(width));
                    for ((result, input), gradient) in rows {
                        let (mean, inverse) = self.moments(input);
                        for (target, (&gradient, &scale)) in result.iter_mut().zip(gradient.iter().zip(scale_values)) {
                            *target = gradient * scale;
                        }
                        let size = T::from_f64(width as f64);
                        let plain = lane_sum(result, |value| value) / size;
                        let weighted = lane_sum_of_products(input, result, mean) * inverse / size;
                        for (index, target) in result.iter_mut().enumerate() {
                            let normalised = (input[index] - mean) * inverse;
                            *target = inverse * (*target - plain - normalised * weighted);
                            scales[index] += gradient[index] * normalised;
                            shifts[index] += gradient[index];
                        }
                    }
                    sums
                }))
                .collect();
            let total = |part: usize| {
                let sum = sums.iter().fold(vec![T::default(); width], |mut total, sums| {
                    total.iter_mut().zip(&sums[part]).for_each(|(total, value)| *total += *value);
                    total
                });
                Tensor::from_vec(sum, width, device)
            };
            Ok((
                input.track_op().then(|| Tensor::from_vec(result, input.shape(), device)).transpose()?,
                scale.track_op().then(|| total(0)).transpose()?,
                shift.track_op().then(|| total(1)).transpose()?,
            ))
        }))
    }
}

const LANES: usize = 16;

/// The sum of `term(value)`, in lanes that the compiler can keep in vector registers.
#[inline(always)]
fn lane_sum<T: Real>(values: &[T], term: impl Fn(T) -> T) -> T {
    let mut lanes = [T::default(); LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: T = chunks.remainder().iter().map(|&value| term(value)).sum();
    chunks.for_each(|chunk| lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += term(value)));
    lanes.into_iter().sum::<T>() + rest
}

/// The sum of `(left - mean) · right`.
#[inline(always)]
fn lane_sum_of_products<T: Real>(lefts: &[T], rights: &[T], mean: T) -> T {
    let mut lanes = [T::default(); LANES];
    let (left_chunks, right_chunks) = (lefts.chunks_exact(LANES), rights.chunks_exact(LANES));
    let rest: T = left_chunks.remainder().iter().zip(right_chunks.remainder()).map(|(&left, &right)| (left - mean) * right).sum();
    left_chunks.zip(right_chunks).for_each(|(lefts, rights)| {
        lanes.iter_mut().zip(lefts.iter().zip(rights)).for_each(|(lane, (&left, &right))| *lane += (left - mean) * right);
    });
    lanes.into_iter().sum::<T>() + rest
}
