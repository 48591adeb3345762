//! What acts on each value by itself: rectification, sums, GELU, the logistic function, dropout.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::storage::{apply1, apply2, dtype_of, for_real, gradient_of, stored, values, with_values};
use crate::rng::Stream;
use crate::vector::{Real, vectorised};

const CHUNK: usize = 1 << 14;

/// `max(x, 0)`, with the gradient 0 at 0 as in PyTorch. What is not a number stays so.
///
/// # Errors
/// When the tensor is neither f32 nor f64.
pub fn relu(input: &Tensor) -> Result<Tensor> {
    apply1(input, Relu)
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

/// `function` of each value, on all threads.
fn mapped<T: Real>(input: &[T], function: impl Fn(T) -> T + Sync) -> Vec<T> {
    let mut output = vec![T::default(); input.len()];
    output.par_chunks_mut(CHUNK).zip(input.par_chunks(CHUNK)).for_each(|(output, input)| {
        vectorised(
            #[inline(always)]
            || output.iter_mut().zip(input).for_each(|(output, &input)| *output = function(input)),
        );
    });
    output
}

/// `function` of each two values, on all threads.
fn mapped2<T: Real>(left: &[T], right: &[T], function: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    let mut output = vec![T::default(); left.len()];
    output.par_chunks_mut(CHUNK).zip(left.par_chunks(CHUNK)).zip(right.par_chunks(CHUNK)).for_each(|((output, left), right)| {
        vectorised(
            #[inline(always)]
            || output.iter_mut().zip(left).zip(right).for_each(|((output, &left), &right)| *output = function(left, right)),
        );
    });
    output
}

/// The sum of two tensors of the same shape.
///
/// # Errors
/// When the shapes differ, a tensor is neither f32 nor f64, or is not on the CPU.
pub fn add(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    sum(left, right, false)
}

/// `max(left + right, 0)` of two tensors of the same shape, as at the end of a residual block, with the gradient 0 at 0. What is not a number stays so.
///
/// # Errors
/// As [`add`].
pub fn add_relu(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    sum(left, right, true)
}

fn sum(left: &Tensor, right: &Tensor, rectify: bool) -> Result<Tensor> {
    if left.dims() != right.dims() {
        bail!("{:?} and {:?} cannot be added: the shapes differ", left.dims(), right.dims());
    }
    apply2(left, right, Sum { rectify })
}

struct Sum {
    rectify: bool,
}

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        if self.rectify { "add_relu" } else { "add" }
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype_of(s1), T => {
            let (left, right) = (values::<T>(s1, l1)?, values::<T>(s2, l2)?);
            let output = if self.rectify {
                mapped2(left, right, #[inline(always)] |left, right| if left + right < T::default() { T::default() } else { left + right })
            } else {
                mapped2(left, right, #[inline(always)] |left, right| left + right)
            };
            Ok((stored(output), l1.shape().clone()))
        })
    }

    fn bwd(&self, left: &Tensor, right: &Tensor, output: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = if self.rectify {
            for_real!(output.dtype(), T => with_values::<T, _>(&[output, gradient], |arguments| {
                Tensor::from_vec(where_positive(arguments[0], arguments[1]), output.shape(), output.device())
            }))?
        } else {
            gradient.clone()
        };
        Ok((left.track_op().then(|| gradient.clone()), right.track_op().then_some(gradient)))
    }
}

/// `x · Φ(x)`, where Φ is the distribution of the standard normal (Hendrycks and Gimpel, arXiv 1606.08415), in its exact form.
///
/// # Errors
/// When the tensor is neither f32 nor f64, or is not on the CPU.
pub fn gelu(input: &Tensor) -> Result<Tensor> {
    apply1(input, Gelu)
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype_of(storage), T => {
            let output = mapped(values::<T>(storage, layout)?, #[inline(always)] |value| value.gelu()[0]);
            Ok((stored(output), layout.shape().clone()))
        })
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, gradient], |arguments| {
            gradient_of(input, Some(mapped2(arguments[0], arguments[1], #[inline(always)] |value, gradient| value.gelu()[1] * gradient)))
        }))
    }
}

/// `1 / (1 + e⁻ˣ)`.
///
/// # Errors
/// When the tensor is neither f32 nor f64, or is not on the CPU.
pub fn sigmoid(input: &Tensor) -> Result<Tensor> {
    apply1(input, Sigmoid)
}

struct Sigmoid;

impl CustomOp1 for Sigmoid {
    fn name(&self) -> &'static str {
        "sigmoid"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype_of(storage), T => {
            let output = mapped(values::<T>(storage, layout)?, #[inline(always)] |value| T::ONE / (T::ONE + (-value).quick_exponential()));
            Ok((stored(output), layout.shape().clone()))
        })
    }

    fn bwd(&self, input: &Tensor, output: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        for_real!(output.dtype(), T => with_values::<T, _>(&[output, gradient], |arguments| {
            gradient_of(input, Some(mapped2(arguments[0], arguments[1], #[inline(always)] |output, gradient| gradient * output * (T::ONE - output))))
        }))
    }
}

/// Sets each value to 0 with the given probability and scales the rest by `1 / (1 - probability)`.
///
/// # Errors
/// When the tensor is neither f32 nor f64.
pub fn dropout(input: &Tensor, probability: f64, stream: &mut Stream) -> Result<Tensor> {
    let keep = 1.0 - probability;
    let mask: Vec<bool> = (0..input.elem_count()).map(|_| f64::from(stream.uniform()) < keep).collect();
    apply1(input, Dropout { mask, scale: 1.0 / keep })
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
