//! Maximum pooling.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{dtype_of, for_real, stored, values, with_values};
use crate::matrix::Real;

/// The maximum of each `size` x `size` window, `size` apart: [N, C, H, W] to [N, C, H / size, W / size]. Rows and columns that do not fill
/// a window are left out. The gradient goes to the first maximum of a window, row by row, as in PyTorch.
///
/// # Errors
/// When the images are smaller than a window, or the tensor is not f32 or f64 on the CPU.
pub fn max_pool2d(input: &Tensor, size: usize) -> Result<Tensor> {
    let (_, _, height, width) = input.dims4()?;
    if size == 0 || height < size || width < size {
        bail!("a {size} x {size} window does not fit into {height} x {width}");
    }
    input.contiguous()?.apply_op1(MaxPool { size })
}

struct MaxPool {
    size: usize,
}

impl MaxPool {
    fn shape(&self, layout: &Shape) -> Result<(usize, usize, usize, usize)> {
        let (count, channels, height, width) = layout.dims4()?;
        Ok((count, channels, height / self.size, width / self.size))
    }

    /// Calls `visit` with the index in the plane of each window's maximum, row by row.
    fn for_each_maximum<T: Real>(&self, plane: &[T], width: usize, columns: usize, mut visit: impl FnMut(usize, usize)) {
        let rows = plane.len() / width / self.size;
        for row in 0..rows {
            for column in 0..columns {
                let first = row * self.size * width + column * self.size;
                let mut best = first;
                for y in 0..self.size {
                    for index in first + y * width..first + y * width + self.size {
                        if plane[index] > plane[best] {
                            best = index;
                        }
                    }
                }
                visit(row * columns + column, best);
            }
        }
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, height, width) = layout.shape().dims4()?;
        let shape = self.shape(layout.shape())?;
        let (_, _, rows, columns) = shape;
        for_real!(dtype_of(storage), T => {
            let input = values::<T>(storage, layout)?;
            let mut output = vec![T::default(); shape.0 * shape.1 * rows * columns];
            output.par_chunks_mut(rows * columns).zip(input.par_chunks(height * width)).for_each(|(output, plane)| {
                self.for_each_maximum(plane, width, columns, |window, index| output[window] = plane[index]);
            });
            Ok((stored(output), shape.into()))
        })
    }

    fn bwd(&self, input: &Tensor, output: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, height, width) = input.dims4()?;
        let (_, _, rows, columns) = output.dims4()?;
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, gradient], |arguments| {
            let mut result = vec![T::default(); arguments[0].len()];
            result
                .par_chunks_mut(height * width)
                .zip(arguments[0].par_chunks(height * width))
                .zip(arguments[1].par_chunks(rows * columns))
                .for_each(|((result, plane), gradient)| {
                    self.for_each_maximum(plane, width, columns, |window, index| result[index] = gradient[window]);
                });
            Tensor::from_vec(result, input.shape(), input.device()).map(Some)
        }))
    }
}
