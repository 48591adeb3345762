//! Batch normalisation on its own, where no convolution lies right before it: the tail of a block without the block.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::block::{Tail, slopes, sums_and_squares};
use super::storage::{apply3, dtype_of, for_real, gradient_of, stored, values, with_values};
use super::types::{Block, Convolution, Normalisation, Statistics};
use crate::vector::vectorised;

/// Batch normalisation of each channel: input [.., C] with two dimensions at least, scale and shift [C]. With [`Normalisation::Batch`] the batch's
/// statistics come along.
///
/// # Errors
/// When the shapes do not fit, a tensor is neither f32 nor f64, or is not on the CPU.
pub fn batch_norm(
    input: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    normalisation: Normalisation<'_>,
) -> Result<(Tensor, Option<Statistics>)> {
    let &[count, ref middle @ .., channels] = input.dims() else {
        bail!("batch normalisation needs a batch and channels, not {:?}", input.dims());
    };
    let statistics = match normalisation {
        Normalisation::Batch => [channels; 2],
        Normalisation::Fixed { mean, variance } => [mean.len(), variance.len()],
    };
    let block = Block { convolution: Convolution { stride: 1, padding: 0 }, rectify: false, pool: false };
    let images = (count, middle.iter().product(), 1, channels);
    let tail = Tail::new(images, (channels, channels, 1, 1), [shift, scale, shift], statistics, block)?;
    let fixed = match normalisation {
        Normalisation::Batch => None,
        Normalisation::Fixed { mean, variance } => {
            Some(Statistics { mean: mean.to_vec(), variance: variance.to_vec(), count: input.elem_count() / channels })
        }
    };
    let found = Arc::new(Mutex::new(None));
    let output =
        apply3([input, scale, shift], BatchNorm { tail, is_fixed: fixed.is_some(), statistics: Mutex::new(fixed), found: found.clone() })?;
    let statistics = found.lock().expect("no thread panicked").take();
    Ok((output, statistics))
}

struct BatchNorm {
    tail: Tail,
    is_fixed: bool,
    /// The statistics to normalise by: given ones, or those of the batch as soon as they are known.
    statistics: Mutex<Option<Statistics>>,
    /// Where the batch's statistics are left for the caller.
    found: Arc<Mutex<Option<Statistics>>>,
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
        let (channels, image) = (self.tail.geometry.outputs, self.tail.output_image());
        let mut statistics = self.statistics.lock().expect("no thread panicked");
        for_real!(dtype_of(s1), T => {
            let input = values::<T>(s1, l1)?;
            if !self.is_fixed {
                let sums: Vec<_> = input.par_chunks(image).map(|input| vectorised(#[inline(always)] || sums_and_squares(input, channels))).collect();
                *statistics = Some(Statistics::from_sums(&sums, input.len() / channels));
                self.found.lock().expect("no thread panicked").clone_from(&statistics);
            }
            let Some(statistics) = &*statistics else { bail!("there are no statistics to normalise by") };
            let affine = statistics.affine(values::<T>(s2, l2)?, values::<T>(s3, l3)?);
            let mut output = vec![T::default(); input.len()];
            output.par_chunks_mut(image).zip(input.par_chunks(image)).for_each(|(output, input)| {
                vectorised(#[inline(always)] || self.tail.finish(input, &affine, output));
            });
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
        let (tail, image) = (self.tail, self.tail.output_image());
        let statistics = self.statistics.lock().expect("no thread panicked");
        let Some(statistics) = &*statistics else { bail!("nothing was kept for the backward pass") };
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, scale, shift, gradient], |arguments| {
            let (values, gradient) = (arguments[0], arguments[3]);
            let affine = statistics.affine(arguments[1], arguments[2]);
            let mean: Vec<T> = statistics.mean.iter().map(|&mean| T::from_f64(mean)).collect();
            let sums = tail.channel_sums(values, gradient, &affine, &mean);
            let slopes = slopes(statistics, arguments[1], &sums, !self.is_fixed);
            let input_gradient = input.track_op().then(|| {
                let mut result = vec![T::default(); values.len()];
                let images = result.par_chunks_mut(image).zip(values.par_chunks(image)).zip(gradient.par_chunks(image));
                images.for_each(|((result, values), gradient)| {
                    vectorised(#[inline(always)] || tail.convolved_gradient(values, gradient, &affine, &slopes, result));
                });
                result
            });
            let of_scale = sums.iter().zip(statistics.inverse_deviations()).map(|(sum, inverse)| T::from_f64(sum.1 * inverse)).collect();
            let of_shift = sums.iter().map(|sum| T::from_f64(sum.0)).collect();
            Ok((
                gradient_of(input, input_gradient)?,
                gradient_of(scale, scale.track_op().then_some(of_scale))?,
                gradient_of(shift, shift.track_op().then_some(of_shift))?,
            ))
        }))
    }
}
