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

    /// The maxima of one plane. Rows are reduced first, which the compiler can do many columns at a time.
    fn maxima<T: Real>(&self, plane: &[T], width: usize, output: &mut [T], scratch: &mut Vec<T>) {
        let larger = |a: T, b: T| if b > a { b } else { a };
        for (output, rows) in output.chunks_exact_mut(width / self.size).zip(plane.chunks_exact(self.size * width)) {
            scratch.clear();
            scratch.extend_from_slice(&rows[..width]);
            for row in rows[width..].chunks_exact(width) {
                scratch.iter_mut().zip(row).for_each(|(best, &value)| *best = larger(*best, value));
            }
            if self.size == 2 {
                output.iter_mut().zip(scratch.chunks_exact(2)).for_each(|(output, pair)| *output = larger(pair[0], pair[1]));
            } else {
                let windows = output.iter_mut().zip(scratch.chunks_exact(self.size));
                windows.for_each(|(output, window)| *output = window[1..].iter().fold(window[0], |best, &value| larger(best, value)));
            }
        }
    }

    /// Gives the gradient of each window of one plane to the first value that equals the window's maximum.
    fn spread<T: Real>(&self, plane: &[T], width: usize, maxima: &[T], gradient: &[T], result: &mut [T]) {
        let (columns, band) = (width / self.size, self.size * width);
        let outputs = maxima.chunks_exact(columns).zip(gradient.chunks_exact(columns));
        for ((result, rows), (maxima, gradient)) in result.chunks_exact_mut(band).zip(plane.chunks_exact(band)).zip(outputs) {
            if self.size == 2 {
                let ((top, bottom), (result_top, result_bottom)) = (rows.split_at(width), result.split_at_mut(width));
                let inputs = top.chunks_exact(2).zip(bottom.chunks_exact(2)).zip(maxima.iter().zip(gradient));
                let results = result_top.chunks_exact_mut(2).zip(result_bottom.chunks_exact_mut(2));
                for (((top, bottom), (&largest, &gradient)), (result_top, result_bottom)) in inputs.zip(results) {
                    let hits = [top[0] == largest, top[1] == largest, bottom[0] == largest, bottom[1] == largest];
                    let given = |first: bool| if first { gradient } else { T::default() };
                    result_top[0] = given(hits[0]);
                    result_top[1] = given(hits[1] & !hits[0]);
                    result_bottom[0] = given(hits[2] & !(hits[0] | hits[1]));
                    result_bottom[1] = given(hits[3] & !(hits[0] | hits[1] | hits[2]));
                }
                continue;
            }
            for (column, (&largest, &gradient)) in maxima.iter().zip(gradient).enumerate() {
                let places = (0..self.size).flat_map(|row| (0..self.size).map(move |offset| row * width + column * self.size + offset));
                if let Some(first) = places.into_iter().find(|&place| rows[place] == largest) {
                    result[first] = gradient;
                }
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
            output.par_chunks_mut(rows * columns).zip(input.par_chunks(height * width)).for_each_init(Vec::new, |scratch, (output, plane)| {
                self.maxima(plane, width, output, scratch);
            });
            Ok((stored(output), shape.into()))
        })
    }

    fn bwd(&self, input: &Tensor, output: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, height, width) = input.dims4()?;
        let (_, _, rows, columns) = output.dims4()?;
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, output, gradient], |arguments| {
            let mut result = vec![T::default(); arguments[0].len()];
            result
                .par_chunks_mut(height * width)
                .zip(arguments[0].par_chunks(height * width))
                .zip(arguments[1].par_chunks(rows * columns))
                .zip(arguments[2].par_chunks(rows * columns))
                .for_each(|(((result, plane), maxima), gradient)| self.spread(plane, width, maxima, gradient, result));
            Tensor::from_vec(result, input.shape(), input.device()).map(Some)
        }))
    }
}
