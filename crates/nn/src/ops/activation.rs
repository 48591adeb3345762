//! Rectification and dropout.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{composed, dtype_of, for_real, stored, values, with_values};
use crate::rng::Stream;
use crate::vector::Real;

const CHUNK: usize = 1 << 14;

/// `max(x, 0)`, with the gradient 0 at 0 as in PyTorch. What is not a number stays so.
///
/// # Errors
/// When the tensor is neither f32 nor f64.
pub fn relu(input: &Tensor) -> Result<Tensor> {
    if !input.device().is_cpu() {
        return composed::relu(input);
    }
    input.contiguous()?.apply_op1(Relu)
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype_of(storage), T => {
            let input = values::<T>(storage, layout)?;
            Ok((stored(rectified(input)), layout.shape().clone()))
        })
    }

    fn bwd(&self, _input: &Tensor, output: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        for_real!(output.dtype(), T => with_values::<T, _>(&[output, gradient], |arguments| {
            let passed = where_positive(arguments[0], arguments[1]);
            Tensor::from_vec(passed, output.shape(), output.device()).map(Some)
        }))
    }
}

fn rectified<T: Real>(input: &[T]) -> Vec<T> {
    let mut output = vec![T::default(); input.len()];
    output.par_chunks_mut(CHUNK).zip(input.par_chunks(CHUNK)).for_each(|(output, input)| {
        output.iter_mut().zip(input).for_each(|(output, &input)| *output = if input < T::default() { T::default() } else { input });
    });
    output
}

/// 0 where `output` is 0, else `gradient`: where the output is positive or not a number.
fn where_positive<T: Real>(output: &[T], gradient: &[T]) -> Vec<T> {
    let mut passed = vec![T::default(); gradient.len()];
    passed.par_chunks_mut(CHUNK).zip(output.par_chunks(CHUNK)).zip(gradient.par_chunks(CHUNK)).for_each(|((passed, output), gradient)| {
        passed.iter_mut().zip(output).zip(gradient).for_each(|((passed, &output), &gradient)| {
            *passed = if output <= T::default() { T::default() } else { gradient };
        });
    });
    passed
}

/// Sets each value to 0 with the given probability and scales the rest by `1 / (1 - probability)`.
///
/// # Errors
/// When the tensor is neither f32 nor f64.
pub fn dropout(input: &Tensor, probability: f64, stream: &mut Stream) -> Result<Tensor> {
    let keep = 1.0 - probability;
    let mask: Vec<bool> = (0..input.elem_count()).map(|_| f64::from(stream.uniform()) < keep).collect();
    if !input.device().is_cpu() {
        let factors: Vec<f64> = mask.iter().map(|&kept| if kept { 1.0 / keep } else { 0.0 }).collect();
        return input * Tensor::from_vec(factors, input.shape(), input.device())?.to_dtype(input.dtype())?;
    }
    input.contiguous()?.apply_op1(Dropout { mask, scale: 1.0 / keep })
}

struct Dropout {
    mask: Vec<bool>,
    scale: f64,
}

impl Dropout {
    fn apply<T: Real>(&self, values: &[T]) -> Vec<T> {
        let scale = T::from_f64(self.scale);
        values.iter().zip(&self.mask).map(|(&value, &kept)| value * if kept { scale } else { T::default() }).collect()
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype_of(storage), T => Ok((stored(self.apply(values::<T>(storage, layout)?)), layout.shape().clone())))
    }

    fn bwd(&self, _input: &Tensor, output: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        for_real!(gradient.dtype(), T => with_values::<T, _>(&[gradient], |arguments| {
            Tensor::from_vec(self.apply(arguments[0]), output.shape(), output.device()).map(Some)
        }))
    }
}
