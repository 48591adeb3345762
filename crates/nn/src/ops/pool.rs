//! Maximum and average pooling of channels-last images, over windows of any size and distance or as many as are asked for.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::storage::{apply1, dtype_of, for_real, gradient_of, stored, values, with_values};
use super::types::{Pooling, window};
use crate::vector::{Real, vectorised};

/// The maximum of each window: [N, H, W, C] to [N, H', W', C]. The gradient goes to the first maximum of a window, row by row, as in PyTorch.
/// What is not a number is larger than all else, the last such pixel of a window the largest.
///
/// # Errors
/// When the windows do not fit, or the tensor is neither f32 nor f64.
pub fn max_pool2d(input: &Tensor, pooling: Pooling) -> Result<Tensor> {
    let shape = Shapes::new(input, pooling)?;
    apply1(input, MaxPool { shape, places: Mutex::new(Vec::new()) })
}

/// The mean of each window: [N, H, W, C] to [N, H', W', C].
///
/// # Errors
/// As [`max_pool2d`].
pub fn avg_pool2d(input: &Tensor, pooling: Pooling) -> Result<Tensor> {
    let shape = Shapes::new(input, pooling)?;
    apply1(input, AveragePool { shape })
}

/// The mean of each of `rows` x `columns` windows, as even as can be: [N, H, W, C] to [N, rows, columns, C], as PyTorch's. One window is global
/// pooling; with more windows than pixels these are repeated.
///
/// # Errors
/// When there is nothing to pool, no window, or the tensor is neither f32 nor f64, or is not on the CPU.
pub fn adaptive_avg_pool2d(input: &Tensor, [rows, columns]: [usize; 2]) -> Result<Tensor> {
    let (count, height, width, channels) = input.dims4()?;
    if input.elem_count() == 0 || rows == 0 || columns == 0 {
        bail!("there are no {rows} x {columns} means of {:?}", input.dims());
    }
    apply1(input, AdaptivePool { count, height, width, channels, rows, columns })
}

#[derive(Clone, Copy)]
struct AdaptivePool {
    count: usize,
    height: usize,
    width: usize,
    channels: usize,
    rows: usize,
    columns: usize,
}

impl AdaptivePool {
    /// Calls `visit(window, pixel, size)` for the pixels of each window, row by row, with the places of their first channels and the window's pixels.
    #[inline(always)]
    fn walk(&self, mut visit: impl FnMut(usize, usize, usize)) {
        for place in 0..self.rows * self.columns {
            let (down, across) =
                (window(place / self.columns, self.height, self.rows), window(place % self.columns, self.width, self.columns));
            let size = down.len() * across.len();
            for y in down {
                for x in across.clone() {
                    visit(place * self.channels, (y * self.width + x) * self.channels, size);
                }
            }
        }
    }
}

impl CustomOp1 for AdaptivePool {
    fn name(&self) -> &'static str {
        "adaptive_avg_pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Self { count, height, width, channels, rows, columns } = *self;
        for_real!(dtype_of(storage), T => {
            let mut output = vec![T::default(); count * rows * columns * channels];
            let images = output.par_chunks_mut(rows * columns * channels).zip(values::<T>(storage, layout)?.par_chunks(height * width * channels));
            images.for_each(|(output, input)| vectorised(#[inline(always)] || {
                self.walk(#[inline(always)] |window, pixel, _| {
                    let sums = output[window..window + channels].iter_mut();
                    sums.zip(&input[pixel..pixel + channels]).for_each(|(sum, &value)| *sum += value);
                });
                for (place, means) in output.chunks_exact_mut(channels).enumerate() {
                    let size = window(place / columns, height, rows).len() * window(place % columns, width, columns).len();
                    means.iter_mut().for_each(|mean| *mean /= T::from_f64(size as f64));
                }
            }));
            Ok((stored(output), (count, rows, columns, channels).into()))
        })
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let Self { height, width, channels, rows, columns, .. } = *self;
        for_real!(input.dtype(), T => with_values::<T, _>(&[gradient], |arguments| {
            let mut result = vec![T::default(); input.elem_count()];
            let images = result.par_chunks_mut(height * width * channels).zip(arguments[0].par_chunks(rows * columns * channels));
            images.for_each(|(result, gradient)| vectorised(#[inline(always)] || {
                self.walk(#[inline(always)] |window, pixel, size| {
                    let factor = T::from_f64(1.0 / size as f64);
                    let sums = result[pixel..pixel + channels].iter_mut();
                    sums.zip(&gradient[window..window + channels]).for_each(|(sum, &value)| *sum += value * factor);
                });
            }));
            gradient_of(input, Some(result))
        }))
    }
}

#[derive(Clone, Copy)]
struct Shapes {
    count: usize,
    height: usize,
    width: usize,
    channels: usize,
    rows: usize,
    columns: usize,
    pooling: Pooling,
}

impl Shapes {
    fn new(input: &Tensor, pooling: Pooling) -> Result<Self> {
        let (count, height, width, channels) = input.dims4()?;
        if count == 0 || channels == 0 {
            bail!("there is nothing to pool in {:?}", input.dims());
        }
        Ok(Self { count, height, width, channels, rows: pooling.windows(height)?, columns: pooling.windows(width)?, pooling })
    }

    fn image(&self) -> usize {
        self.height * self.width * self.channels
    }

    fn output_image(&self) -> usize {
        self.rows * self.columns * self.channels
    }

    fn output(&self) -> Shape {
        (self.count, self.rows, self.columns, self.channels).into()
    }

    /// Calls `visit(window, pixel, is_first)` for the pixels of each window, row by row, with the places of their first channels.
    #[inline(always)]
    fn walk(&self, mut visit: impl FnMut(usize, usize, bool)) {
        let Pooling { size, stride, padding } = self.pooling;
        let range = |window: usize, extent: usize| {
            let start = window * stride;
            start.saturating_sub(padding)..(start + size).saturating_sub(padding).min(extent)
        };
        for row in 0..self.rows {
            for column in 0..self.columns {
                let mut is_first = true;
                for y in range(row, self.height) {
                    for x in range(column, self.width) {
                        visit((row * self.columns + column) * self.channels, (y * self.width + x) * self.channels, is_first);
                        is_first = false;
                    }
                }
            }
        }
    }
}

struct MaxPool {
    shape: Shapes,
    /// For each result the pixel of its image that gave it, counted without channels.
    places: Mutex<Vec<u32>>,
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.shape;
        for_real!(dtype_of(storage), T => {
            let input = values::<T>(storage, layout)?;
            let mut output = vec![T::default(); shape.count * shape.output_image()];
            let mut places = vec![0_u32; output.len()];
            let images = output.par_chunks_mut(shape.output_image()).zip(places.par_chunks_mut(shape.output_image()));
            images.zip(input.par_chunks(shape.image())).for_each(|((output, places), input)| vectorised(#[inline(always)] || {
                shape.walk(|window, pixel, is_first| {
                    let results = output[window..window + shape.channels].iter_mut().zip(&mut places[window..window + shape.channels]);
                    for ((best, place), &value) in results.zip(&input[pixel..pixel + shape.channels]) {
                        let better = is_first | (value > *best) | value.is_nan();
                        *best = if better { value } else { *best };
                        *place = if better { (pixel / shape.channels) as u32 } else { *place };
                    }
                });
            }));
            *self.places.lock().expect("no thread panicked") = places;
            Ok((stored(output), shape.output()))
        })
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (shape, places) = (self.shape, self.places.lock().expect("no thread panicked"));
        for_real!(input.dtype(), T => with_values::<T, _>(&[gradient], |arguments| {
            let mut result = vec![T::default(); shape.count * shape.image()];
            let images = result.par_chunks_mut(shape.image()).zip(arguments[0].par_chunks(shape.output_image()));
            images.zip(places.par_chunks(shape.output_image())).for_each(|((result, gradient), places)| {
                let windows = gradient.chunks_exact(shape.channels).zip(places.chunks_exact(shape.channels));
                for (gradient, places) in windows {
                    for (channel, (&gradient, &place)) in gradient.iter().zip(places).enumerate() {
                        result[place as usize * shape.channels + channel] += gradient;
                    }
                }
            });
            Tensor::from_vec(result, input.shape(), input.device()).map(Some)
        }))
    }
}

struct AveragePool {
    shape: Shapes,
}

impl AveragePool {
    fn factor<T: Real>(&self) -> T {
        T::from_f64(1.0 / (self.shape.pooling.size * self.shape.pooling.size) as f64)
    }
}

impl CustomOp1 for AveragePool {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.shape;
        for_real!(dtype_of(storage), T => {
            let (input, factor) = (values::<T>(storage, layout)?, self.factor::<T>());
            let mut output = vec![T::default(); shape.count * shape.output_image()];
            let images = output.par_chunks_mut(shape.output_image()).zip(input.par_chunks(shape.image()));
            images.for_each(|(output, input)| vectorised(#[inline(always)] || {
                shape.walk(|window, pixel, _| {
                    let sums = output[window..window + shape.channels].iter_mut();
                    sums.zip(&input[pixel..pixel + shape.channels]).for_each(|(sum, &value)| *sum += value);
                });
                output.iter_mut().for_each(|sum| *sum *= factor);
            }));
            Ok((stored(output), shape.output()))
        })
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let shape = self.shape;
        for_real!(input.dtype(), T => with_values::<T, _>(&[gradient], |arguments| {
            let (factor, mut result) = (self.factor::<T>(), vec![T::default(); shape.count * shape.image()]);
            let images = result.par_chunks_mut(shape.image()).zip(arguments[0].par_chunks(shape.output_image()));
            images.for_each(|(result, gradient)| vectorised(#[inline(always)] || {
                shape.walk(|window, pixel, _| {
                    let sums = result[pixel..pixel + shape.channels].iter_mut();
                    sums.zip(&gradient[window..window + shape.channels]).for_each(|(sum, &value)| *sum += value * factor);
                });
            }));
            Tensor::from_vec(result, input.shape(), input.device()).map(Some)
        }))
    }
}
