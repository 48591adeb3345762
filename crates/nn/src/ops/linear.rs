//! The fully connected layer.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::storage::{apply3, dtype_of, for_real, gradient_of, on_cpu, stored, values, with_values};
use super::weight::{Target, Weight, or_none};
use crate::matrix::{Matrix, Panels, Real, multiply, product, product_plus};
use crate::vector::vectorised;

/// Rows of a column's sum that are added up on one thread.
const ROWS_PER_BLOCK: usize = 1024;

/// `input · weightᵀ + bias`: input [.., I], weight [O, I], bias [O] or none, result [.., O].
///
/// # Errors
/// When the shapes do not fit, a tensor is neither f32 nor f64, or is not on the CPU.
pub fn linear<'a, 'b>(input: &Tensor, weight: impl Into<Weight<'a>>, bias: impl Into<Option<&'b Tensor>>) -> Result<Tensor> {
    let (weight, bias) = (weight.into(), bias.into());
    let (inputs, (outputs, columns)) = (input.dims().last().copied().unwrap_or(0), weight.tensor().dims2()?);
    let biases = bias.map_or(Ok(outputs), Tensor::dims1)?;
    if inputs != columns || outputs != biases || inputs == 0 || outputs == 0 {
        bail!("a linear layer of {columns} to {outputs} with {biases} biases does not take {inputs} inputs");
    }
    let bias = or_none(bias, input)?;
    let (weight, target) = weight.argument(&[input, &bias])?;
    apply3([input, &weight, &bias], Linear { target })
}

struct Linear {
    target: Target,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let (outputs, inputs) = l2.shape().dims2()?;
        let mut shape = l1.dims().to_vec();
        let rows = shape.iter().product::<usize>() / inputs;
        *shape.last_mut().expect("checked before") = outputs;
        for_real!(dtype_of(s1), T => {
            let (input, weight, bias) = (values::<T>(s1, l1)?, values::<T>(s2, l2)?, values::<T>(s3, l3)?);
            let result = product_plus(Matrix::new(input, rows, inputs), Matrix::new(weight, outputs, inputs).transposed(), bias);
            Ok((stored(result), shape.into()))
        })
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (outputs, inputs) = weight.dims2()?;
        let rows = input.elem_count() / inputs;
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, weight, gradient], |arguments| {
            let output_gradient = Matrix::new(arguments[2], rows, outputs);
            let input_gradient = input.track_op().then(|| product(output_gradient, Matrix::new(arguments[1], outputs, inputs)));
            let weight_gradient = self.target.wants_gradient(weight).then(|| product(output_gradient.transposed(), Matrix::new(arguments[0], rows, inputs)));
            let bias_gradient = bias.track_op().then(|| column_sums(arguments[2], outputs));
            Ok((gradient_of(input, input_gradient)?, self.target.hand_over(gradient_of(weight, weight_gradient)?)?, gradient_of(bias, bias_gradient)?))
        }))
    }
}

/// The gradient of a linear layer's weight for each sample: the layer's input [N, I] or [N, T, I], the gradient of its result [N, O] or [N, T, O],
/// result [N, O, I]. No graph is kept.
///
/// # Errors
/// When the shapes do not fit, a tensor is neither f32 nor f64, or is not on the CPU.
pub fn linear_per_sample_weight_gradients(input: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    on_cpu("linear_per_sample_weight_gradients", &[input, gradient])?;
    let (samples, inputs, outputs) = match (input.dims(), gradient.dims()) {
        (&[n, i], &[m, o]) if n == m => (n, i, o),
        (&[n, t, i], &[m, u, o]) if (n, t) == (m, u) => (n, i, o),
        (input, gradient) => bail!("a linear layer of inputs {input:?} has no gradients {gradient:?}"),
    };
    if input.elem_count() == 0 || outputs == 0 {
        bail!("there are no gradients of inputs {:?}", input.dims());
    }
    for_real!(input.dtype(), T => with_values::<T, _>(&[input, gradient], |arguments| {
        let tokens = arguments[0].len() / (samples * inputs);
        let mut result = vec![T::default(); samples * outputs * inputs];
        let arguments = arguments[0].par_chunks(tokens * inputs).zip(arguments[1].par_chunks(tokens * outputs));
        result.par_chunks_mut(outputs * inputs).zip(arguments).for_each_init(Vec::new, |panels, (result, (input, gradient))| {
            let input = Panels::lay_out(Matrix::new(input, tokens, inputs), panels);
            multiply(Matrix::new(gradient, tokens, outputs).transposed(), input, result, false);
        });
        Tensor::from_vec(result, (samples, outputs, inputs), input.device())
    }))
}

/// The sum over all dimensions but the first and the last, in f64 and in order: the gradient of a bias for each sample. [N, .., C] to [N, C]; no
/// graph is kept.
///
/// # Errors
/// When there are fewer than two dimensions, or the tensor is neither f32 nor f64, or is not on the CPU.
pub fn per_sample_sums(gradient: &Tensor) -> Result<Tensor> {
    on_cpu("per_sample_sums", &[gradient])?;
    let (samples, channels) = match gradient.dims() {
        &[samples, .., channels] if gradient.elem_count() > 0 => (samples, channels),
        shape => bail!("there are no sums for each sample of {shape:?}"),
    };
    for_real!(gradient.dtype(), T => with_values::<T, _>(&[gradient], |arguments| {
        let sums: Vec<Vec<T>> = arguments[0].par_chunks(arguments[0].len() / samples).map(|values| column_sums(values, channels)).collect();
        Tensor::from_vec(sums.concat(), (samples, channels), gradient.device())
    }))
}

/// The sum of each column of row-major values: in f64, a block of rows on each thread, and then the blocks in order.
pub(super) fn column_sums<T: Real>(values: &[T], columns: usize) -> Vec<T> {
    let blocks: Vec<Vec<f64>> = values
        .par_chunks(ROWS_PER_BLOCK * columns)
        .map(|block| {
            let mut sums = vec![0.0; columns];
            vectorised(
                #[inline(always)]
                || {
                    for row in block.chunks_exact(columns) {
                        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.to_f64());
                    }
                },
            );
            sums
        })
        .collect();
    let mut sums = vec![0.0; columns];
    for block in blocks {
        sums.iter_mut().zip(block).for_each(|(sum, value)| *sum += value);
    }
    sums.into_iter().map(T::from_f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In f32 a sum of ones ends at 2²⁴.
    #[test]
    fn the_sum_of_a_long_column_loses_nothing() {
        let rows = (1 << 24) + 5;
        assert_eq!(column_sums(&vec![1.0_f32; rows], 1), [rows as f32]);
        let values: Vec<f64> = (0..3 * 5000).map(f64::from).collect();
        assert_eq!(column_sums(&values, 3), [0, 1, 2].map(|column| (0..5000).map(|row| f64::from(3 * row + column)).sum::<f64>()));
    }
}
