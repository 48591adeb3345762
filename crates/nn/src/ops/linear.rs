//! The fully connected layer.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::weight::{Target, Weight};
use super::{composed, dtype_of, for_real, stored, values, with_values};
use crate::matrix::{Matrix, Real, product};

/// Rows of a column's sum that are added up on one thread.
const ROWS_PER_BLOCK: usize = 1024;

/// `input · weightᵀ + bias`: input [N, I], weight [O, I], bias [O], result [N, O].
///
/// # Errors
/// When the shapes do not fit or a tensor is neither f32 nor f64.
pub fn linear<'a>(input: &Tensor, weight: impl Into<Weight<'a>>, bias: &Tensor) -> Result<Tensor> {
    let weight = weight.into();
    let ((_, inputs), (outputs, columns), biases) = (input.dims2()?, weight.tensor().dims2()?, bias.dims1()?);
    if inputs != columns || outputs != biases || inputs == 0 || outputs == 0 {
        bail!("a linear layer of {columns} to {outputs} with {biases} biases does not take {inputs} inputs");
    }
    if !input.device().is_cpu() {
        return composed::linear(input, weight.tensor(), bias);
    }
    let (weight, target) = weight.argument(&[input, bias])?;
    input.contiguous()?.apply_op3(&weight, &bias.contiguous()?, Linear { target })
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
        let ((rows, inputs), (outputs, _)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        for_real!(dtype_of(s1), T => {
            let (input, weight, bias) = (values::<T>(s1, l1)?, values::<T>(s2, l2)?, values::<T>(s3, l3)?);
            let mut result = product(Matrix::new(input, rows, inputs), Matrix::new(weight, outputs, inputs).transposed());
            result.par_chunks_mut(outputs).for_each(|row| row.iter_mut().zip(bias).for_each(|(value, bias)| *value += *bias));
            Ok((stored(result), (rows, outputs).into()))
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
        let ((rows, inputs), (outputs, _)) = (input.dims2()?, weight.dims2()?);
        let device = input.device();
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, weight, gradient], |arguments| {
            let output_gradient = Matrix::new(arguments[2], rows, outputs);
            let input_gradient = input.track_op().then(|| product(output_gradient, Matrix::new(arguments[1], outputs, inputs)));
            let weight_gradient = self.target.wants_gradient(weight).then(|| product(output_gradient.transposed(), Matrix::new(arguments[0], rows, inputs)));
            let bias_gradient = bias.track_op().then(|| column_sums(arguments[2], outputs));
            Ok((
                input_gradient.map(|values| Tensor::from_vec(values, (rows, inputs), device)).transpose()?,
                self.target.hand_over(weight_gradient.map(|values| Tensor::from_vec(values, (outputs, inputs), device)).transpose()?)?,
                bias_gradient.map(|values| Tensor::from_vec(values, outputs, device)).transpose()?,
            ))
        }))
    }
}

/// The sum of each column of row-major values: in f64, a block of rows on each thread, and then the blocks in order.
pub(super) fn column_sums<T: Real>(values: &[T], columns: usize) -> Vec<T> {
    let blocks: Vec<Vec<f64>> = values
        .par_chunks(ROWS_PER_BLOCK * columns)
        .map(|block| {
            let mut sums = vec![0.0; columns];
            for row in block.chunks_exact(columns) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.to_f64());
            }
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
