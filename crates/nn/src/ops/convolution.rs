//! Two-dimensional convolution as matrix products, forward and backward.
//!
//! The windows of a group of images are laid out as the columns of a matrix (im2col), so that each of the three products is one
//! multiplication of matrices: the output is `W · columns`, the gradient of the columns `Wᵀ · gradient`, and that of the weight the sum over
//! groups of `gradient · columnsᵀ`.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{dtype_of, for_real, stored, values, with_values};
use crate::matrix::{Matrix, Real, multiply};

/// Output positions that one matrix product covers at least; small images are grouped to reach it.
const POSITIONS_PER_GROUP: usize = 256;
/// Partial sums of the weight's gradient. Fixed, so that the order of addition does not depend on the number of threads.
const PARTIAL_SUMS: usize = 16;

/// Stride and zero padding, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
}

/// Cross-correlation: input [N, C, H, W], weight [O, C, K, K'], bias [O], result [N, O, H', W'].
///
/// # Errors
/// When the shapes do not fit or a tensor is not f32 or f64 on the CPU.
pub fn conv2d(input: &Tensor, weight: &Tensor, bias: &Tensor, convolution: Convolution) -> Result<Tensor> {
    let geometry = Geometry::new(input.dims4()?, weight.dims4()?, convolution)?;
    if bias.dims1()? != geometry.outputs {
        bail!("{} biases for {} output channels", bias.dims1()?, geometry.outputs);
    }
    input.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Conv2d { geometry })
}

#[derive(Clone, Copy)]
struct Geometry {
    count: usize,
    channels: usize,
    height: usize,
    width: usize,
    outputs: usize,
    kernel_height: usize,
    kernel_width: usize,
    rows: usize,
    columns: usize,
    convolution: Convolution,
}

impl Geometry {
    fn new(input: (usize, usize, usize, usize), weight: (usize, usize, usize, usize), convolution: Convolution) -> Result<Self> {
        let ((count, channels, height, width), (outputs, weight_channels, kernel_height, kernel_width)) = (input, weight);
        if channels != weight_channels {
            bail!("a convolution over {weight_channels} channels does not take {channels}");
        }
        let extent = |size: usize, kernel: usize| {
            let padded = size + 2 * convolution.padding;
            if convolution.stride == 0 || kernel == 0 || padded < kernel {
                bail!("a kernel of {kernel} with {convolution:?} does not fit into {size} pixels");
            }
            Ok((padded - kernel) / convolution.stride + 1)
        };
        let (rows, columns) = (extent(height, kernel_height)?, extent(width, kernel_width)?);
        Ok(Self { count, channels, height, width, outputs, kernel_height, kernel_width, rows, columns, convolution })
    }

    fn positions(&self) -> usize {
        self.rows * self.columns
    }

    fn taps(&self) -> usize {
        self.channels * self.kernel_height * self.kernel_width
    }

    fn image(&self) -> usize {
        self.channels * self.height * self.width
    }

    fn output_image(&self) -> usize {
        self.outputs * self.positions()
    }

    fn images_per_group(&self) -> usize {
        POSITIONS_PER_GROUP.div_ceil(self.positions()).clamp(1, self.count.max(1))
    }

    /// The part of an output row whose tap `tap` lies inside of the image: output columns `from..to`, the first of which reads column `start`.
    fn inside(&self, tap: usize, size: usize, positions: usize) -> (usize, usize, usize) {
        let Convolution { stride, padding } = self.convolution;
        let from = padding.saturating_sub(tap).div_ceil(stride).min(positions);
        let to = if size + padding > tap { ((size + padding - tap - 1) / stride + 1).min(positions) } else { 0 };
        (from, to.max(from), (from * stride + tap).saturating_sub(padding))
    }

    /// Visits each run of values that a window tap reads from one row of one image: `visit(column index, image index, length)`, with
    /// `stride` between the values in the image. Columns that lie in the padding are not visited.
    fn walk(&self, images: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let width = images * self.positions();
        for channel in 0..self.channels {
            for kernel_row in 0..self.kernel_height {
                let (first_row, last_row, start_row) = self.inside(kernel_row, self.height, self.rows);
                for kernel_column in 0..self.kernel_width {
                    let (from, to, start) = self.inside(kernel_column, self.width, self.columns);
                    if from == to {
                        continue;
                    }
                    let tap = (channel * self.kernel_height + kernel_row) * self.kernel_width + kernel_column;
                    for image in 0..images {
                        let target = tap * width + image * self.positions() + from;
                        let source = image * self.image() + channel * self.height * self.width + start_row * self.width + start;
                        for row in 0..last_row - first_row {
                            visit(
                                target + (first_row + row) * self.columns,
                                source + row * self.convolution.stride * self.width,
                                to - from,
                            );
                        }
                    }
                }
            }
        }
    }

    /// Lays the windows of `images` out as columns: [taps, images · positions]. A buffer of the right size comes from an earlier call with the
    /// same geometry, so that its padding is zero already.
    fn unfold<T: Real>(&self, input: &[T], images: usize, columns: &mut Vec<T>) {
        let size = self.taps() * images * self.positions();
        if columns.len() != size {
            columns.clear();
            columns.resize(size, T::default());
        }
        let stride = self.convolution.stride;
        self.walk(images, |target, source, length| {
            let columns = &mut columns[target..target + length];
            if stride == 1 {
                columns.copy_from_slice(&input[source..source + length]);
            } else {
                columns.iter_mut().zip(input[source..].iter().step_by(stride)).for_each(|(column, &pixel)| *column = pixel);
            }
        });
    }

    /// Adds the gradient of the columns to the pixels that they were read from.
    fn fold<T: Real>(&self, columns: &[T], images: usize, input: &mut [T]) {
        let stride = self.convolution.stride;
        self.walk(images, |target, source, length| {
            let columns = &columns[target..target + length];
            if stride == 1 {
                input[source..source + length].iter_mut().zip(columns).for_each(|(pixel, &value)| *pixel += value);
            } else {
                input[source..].iter_mut().step_by(stride).zip(columns).for_each(|(pixel, &value)| *pixel += value);
            }
        });
    }

    /// [images, outputs, positions] as [outputs, images · positions].
    fn gather<'a, T: Real>(&self, output: &'a [T], images: usize, buffer: &'a mut Vec<T>) -> &'a [T] {
        if images == 1 {
            return output;
        }
        let positions = self.positions();
        buffer.resize(output.len(), T::default());
        for (image, planes) in output.chunks_exact(self.output_image()).enumerate() {
            for (channel, plane) in planes.chunks_exact(positions).enumerate() {
                let start = (channel * images + image) * positions;
                buffer[start..start + positions].copy_from_slice(plane);
            }
        }
        buffer
    }
}

struct Conv2d {
    geometry: Geometry,
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
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
        let geometry = &self.geometry;
        let shape = (geometry.count, geometry.outputs, geometry.rows, geometry.columns);
        for_real!(dtype_of(s1), T => {
            let output = forward(geometry, values::<T>(s1, l1)?, values::<T>(s2, l2)?, values::<T>(s3, l3)?);
            Ok((stored(output), shape.into()))
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
        let geometry = &self.geometry;
        let device = input.device();
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, weight, gradient], |arguments| {
            let input_gradient = input.track_op().then(|| input_gradient(geometry, arguments[1], arguments[2]));
            let weight_gradient = weight.track_op().then(|| weight_gradient(geometry, arguments[0], arguments[2]));
            let bias_gradient = bias.track_op().then(|| bias_gradient(geometry, arguments[2]));
            Ok((
                input_gradient.map(|values| Tensor::from_vec(values, input.shape(), device)).transpose()?,
                weight_gradient.map(|values| Tensor::from_vec(values, weight.shape(), device)).transpose()?,
                bias_gradient.map(|values| Tensor::from_vec(values, bias.shape(), device)).transpose()?,
            ))
        }))
    }
}

fn forward<T: Real>(geometry: &Geometry, input: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
    let (positions, taps, outputs) = (geometry.positions(), geometry.taps(), geometry.outputs);
    let group = geometry.images_per_group();
    let mut output = vec![T::default(); geometry.count * geometry.output_image()];
    let weight = Matrix::new(weight, outputs, taps);
    output.par_chunks_mut(group * geometry.output_image()).zip(input.par_chunks(group * geometry.image())).for_each_init(
        || (Vec::new(), Vec::new()),
        |(columns, product), (output, input)| {
            let images = input.len() / geometry.image();
            let width = images * positions;
            geometry.unfold(input, images, columns);
            product.resize(outputs * width, T::default());
            multiply(weight, Matrix::new(columns, taps, width), product, false);
            for (image, planes) in output.chunks_exact_mut(geometry.output_image()).enumerate() {
                for (channel, plane) in planes.chunks_exact_mut(positions).enumerate() {
                    let start = channel * width + image * positions;
                    plane.iter_mut().zip(&product[start..start + positions]).for_each(|(value, &sum)| *value = sum + bias[channel]);
                }
            }
        },
    );
    output
}

fn input_gradient<T: Real>(geometry: &Geometry, weight: &[T], gradient: &[T]) -> Vec<T> {
    let (positions, taps, outputs) = (geometry.positions(), geometry.taps(), geometry.outputs);
    let group = geometry.images_per_group();
    let mut result = vec![T::default(); geometry.count * geometry.image()];
    let weight = Matrix::new(weight, outputs, taps).transposed();
    result.par_chunks_mut(group * geometry.image()).zip(gradient.par_chunks(group * geometry.output_image())).for_each_init(
        || (Vec::new(), Vec::new()),
        |(columns, buffer), (result, gradient)| {
            let images = result.len() / geometry.image();
            let width = images * positions;
            let gradient = geometry.gather(gradient, images, buffer);
            columns.resize(taps * width, T::default());
            multiply(weight, Matrix::new(gradient, outputs, width), columns, false);
            geometry.fold(columns, images, result);
        },
    );
    result
}

fn weight_gradient<T: Real>(geometry: &Geometry, input: &[T], gradient: &[T]) -> Vec<T> {
    let (positions, taps, outputs) = (geometry.positions(), geometry.taps(), geometry.outputs);
    let group = geometry.images_per_group();
    let groups = geometry.count.div_ceil(group);
    let images_per_sum = groups.div_ceil(PARTIAL_SUMS).max(1) * group;
    let sums: Vec<Vec<T>> = input
        .par_chunks(images_per_sum * geometry.image())
        .zip(gradient.par_chunks(images_per_sum * geometry.output_image()))
        .map(|(input, gradient)| {
            let (mut sum, mut columns, mut buffer) = (vec![T::default(); outputs * taps], Vec::new(), Vec::new());
            let groups = input.chunks(group * geometry.image()).zip(gradient.chunks(group * geometry.output_image()));
            for (input, gradient) in groups {
                let images = input.len() / geometry.image();
                let width = images * positions;
                geometry.unfold(input, images, &mut columns);
                let gradient = geometry.gather(gradient, images, &mut buffer);
                multiply(Matrix::new(gradient, outputs, width), Matrix::new(&columns, taps, width).transposed(), &mut sum, true);
            }
            sum
        })
        .collect();
    sums.into_iter()
        .reduce(|mut total, sum| {
            total.iter_mut().zip(&sum).for_each(|(total, value)| *total += *value);
            total
        })
        .unwrap_or_else(|| vec![T::default(); outputs * taps])
}

fn bias_gradient<T: Real>(geometry: &Geometry, gradient: &[T]) -> Vec<T> {
    (0..geometry.outputs)
        .into_par_iter()
        .map(|channel| {
            let planes = gradient.chunks_exact(geometry.positions()).skip(channel).step_by(geometry.outputs);
            planes.map(|plane| super::norm::lane_sum(plane, |value| value)).sum()
        })
        .collect()
}
