//! Between channels first, as images are stored, and channels last, as convolutions work on them.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::storage::{apply1, dtype_of, for_real, stored, values, with_values};
use crate::vector::Real;

/// [N, C, H, W] as [N, H, W, C].
///
/// # Errors
/// When the tensor does not have four dimensions or is neither f32 nor f64.
pub fn channels_last(input: &Tensor) -> Result<Tensor> {
    let (count, channels, height, width) = input.dims4()?;
    turned(input, Turn { rows: channels, columns: height * width }, (count, height, width, channels))
}

/// [N, H, W, C] as [N, C, H, W].
///
/// # Errors
/// As [`channels_last`].
pub fn channels_first(input: &Tensor) -> Result<Tensor> {
    let (count, height, width, channels) = input.dims4()?;
    turned(input, Turn { rows: height * width, columns: channels }, (count, channels, height, width))
}

fn turned(input: &Tensor, turn: Turn, shape: (usize, usize, usize, usize)) -> Result<Tensor> {
    if turn.rows == 1 || turn.columns == 1 || input.elem_count() == 0 {
        return input.reshape(shape);
    }
    apply1(input, turn)?.reshape(shape)
}

/// Transposes each image as a matrix.
#[derive(Clone, Copy)]
struct Turn {
    rows: usize,
    columns: usize,
}

impl Turn {
    fn back(self) -> Self {
        Self { rows: self.columns, columns: self.rows }
    }

    fn apply<T: Real>(self, input: &[T]) -> Vec<T> {
        let mut output = vec![T::default(); input.len()];
        let image = self.rows * self.columns;
        output.par_chunks_mut(image).zip(input.par_chunks(image)).for_each(|(output, input)| {
            if self.rows < self.columns {
                for (row, input) in input.chunks_exact(self.columns).enumerate() {
                    output[row..].iter_mut().step_by(self.rows).zip(input).for_each(|(target, &value)| *target = value);
                }
            } else {
                for (column, output) in output.chunks_exact_mut(self.rows).enumerate() {
                    output.iter_mut().zip(input[column..].iter().step_by(self.columns)).for_each(|(target, &value)| *target = value);
                }
            }
        });
        output
    }
}

impl CustomOp1 for Turn {
    fn name(&self) -> &'static str {
        "turn"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(dtype_of(storage), T => Ok((stored(self.apply(values::<T>(storage, layout)?)), layout.shape().clone())))
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        for_real!(gradient.dtype(), T => with_values::<T, _>(&[gradient], |arguments| {
            Tensor::from_vec(self.back().apply(arguments[0]), input.shape(), input.device()).map(Some)
        }))
    }
}
