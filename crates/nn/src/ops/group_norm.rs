//! Normalisation of each image by itself, over groups of channels (Wu and He, arXiv 1803.08494) or each channel (Ulyanov et al., arXiv 1607.08022),
//! together with the rectification and average pooling that follow it in ConvNet-3. An image goes through all of these while it is in the cache.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::block::{Slope, sums_and_squares};
use super::norm::Affine;
use super::storage::{apply3, dtype_of, for_real, gradient_of, stored, values, with_values};
use super::types::InstanceBlock;
use crate::vector::{Real, vectorised};

/// Normalisation of each group of channels of each image: input [N, H, W, C], of which C is a multiple of `groups`, scale and shift [C].
///
/// # Errors
/// When the shapes do not fit, a tensor is neither f32 nor f64, or is not on the CPU.
pub fn group_norm(input: &Tensor, groups: usize, scale: &Tensor, shift: &Tensor, epsilon: f64) -> Result<Tensor> {
    normalised(input, groups, [scale, shift], epsilon, InstanceBlock { rectify: false, pool: false })
}

/// Normalisation of each channel of each image and what `block` adds: input [N, H, W, C], scale and shift [C].
///
/// # Errors
/// When the shapes do not fit, a tensor is neither f32 nor f64, or is not on the CPU.
pub fn instance_block(input: &Tensor, parameters: [&Tensor; 2], epsilon: f64, block: InstanceBlock) -> Result<Tensor> {
    normalised(input, input.dim(3)?, parameters, epsilon, block)
}

fn normalised(input: &Tensor, groups: usize, [scale, shift]: [&Tensor; 2], epsilon: f64, block: InstanceBlock) -> Result<Tensor> {
    let (count, rows, columns, channels) = input.dims4()?;
    if input.elem_count() == 0 || groups == 0 || !channels.is_multiple_of(groups) {
        bail!("{:?} cannot be normalised in {groups} groups of channels", input.dims());
    }
    if [scale.dims1()?, shift.dims1()?] != [channels; 2] {
        bail!("normalisation of {channels} channels with parameters of {:?} and {:?}", scale.dims(), shift.dims());
    }
    if block.pool && (rows < 2 || columns < 2) {
        bail!("a 2 x 2 window does not fit into {rows} x {columns}");
    }
    apply3([input, scale, shift], GroupNorm { count, rows, columns, channels, groups, epsilon, block, moments: Mutex::default() })
}

struct GroupNorm {
    count: usize,
    rows: usize,
    columns: usize,
    channels: usize,
    groups: usize,
    epsilon: f64,
    block: InstanceBlock,
    /// Mean and inverse deviation of each group of each image.
    moments: Mutex<Vec<Vec<Moments>>>,
}

/// Mean and inverse deviation.
type Moments = (f64, f64);

impl GroupNorm {
    fn image(&self) -> usize {
        self.rows * self.columns * self.channels
    }

    fn output_image(&self) -> usize {
        if self.block.pool { self.rows / 2 * (self.columns / 2) * self.channels } else { self.image() }
    }

    fn channels_of_group(&self) -> usize {
        self.channels / self.groups
    }

    fn moments<T: Real>(&self, image: &[T]) -> Vec<Moments> {
        let size = (self.rows * self.columns * self.channels_of_group()) as f64;
        let sums = sums_and_squares(image, self.channels);
        let groups = sums.chunks_exact(self.channels_of_group()).map(|sums| {
            let (sum, squares) = sums.iter().fold((0.0, 0.0), |total, sum| (total.0 + sum.0, total.1 + sum.1));
            let mean = sum / size;
            let variance = squares / size - mean * mean;
            // Below 0 by rounding; what is not a number stays so.
            (mean, 1.0 / (if variance < 0.0 { 0.0 } else { variance } + self.epsilon).sqrt())
        });
        groups.collect()
    }

    fn affine<T: Real>(&self, moments: &[Moments], scale: &[T], shift: &[T]) -> Vec<Affine<T>> {
        let of_channel = |channel: usize| {
            let (mean, inverse) = moments[channel / self.channels_of_group()];
            let factor = scale[channel].to_f64() * inverse;
            Affine { factor: T::from_f64(factor), offset: T::from_f64(shift[channel].to_f64() - mean * factor) }
        };
        (0..self.channels).map(of_channel).collect()
    }

    fn floor<T: Real>(&self) -> T {
        if self.block.rectify { T::default() } else { T::from_f64(f64::NEG_INFINITY) }
    }

    /// Calls `visit(window, corner)` for each 2 x 2 window of an image.
    #[inline(always)]
    fn for_each_window(&self, mut visit: impl FnMut(usize, usize)) {
        let (down, across) = (self.rows / 2, self.columns / 2);
        for row in 0..down {
            for column in 0..across {
                visit((row * across + column) * self.channels, (2 * row * self.columns + 2 * column) * self.channels);
            }
        }
    }

    /// The places of a window's pixels.
    fn pixels(&self, corner: usize) -> [usize; 4] {
        let below = corner + self.columns * self.channels;
        [corner, corner + self.channels, below, below + self.channels]
    }

    #[inline(always)]
    fn finish<T: Real>(&self, image: &[T], affine: &[Affine<T>], output: &mut [T]) {
        let (floor, channels, quarter) = (self.floor::<T>(), self.channels, T::from_f64(0.25));
        let affine = &affine[..channels];
        let value = |own: T, affine: Affine<T>| {
            let value = own.times_plus(affine.factor, affine.offset);
            // What is not a number stays so.
            if value < floor { floor } else { value }
        };
        if !self.block.pool {
            for (output, pixel) in output.chunks_exact_mut(channels).zip(image.chunks_exact(channels)) {
                for channel in 0..channels {
                    output[channel] = value(pixel[channel], affine[channel]);
                }
            }
            return;
        }
        self.for_each_window(
            #[inline(always)]
            |window, corner| {
                let output = &mut output[window..window + channels];
                let [a, b, c, d] = self.pixels(corner).map(|pixel| &image[pixel..pixel + channels]);
                for channel in 0..channels {
                    let own = affine[channel];
                    let upper = value(a[channel], own) + value(b[channel], own);
                    output[channel] = (upper + (value(c[channel], own) + value(d[channel], own))) * quarter;
                }
            },
        );
    }

    /// The sums of one image over the gradient that reaches each normalised channel, and over its products with the distance from the mean.
    #[inline(always)]
    fn sums<T: Real>(&self, image: &[T], gradient: &[T], affine: &[Affine<T>], mean: &[T]) -> [Vec<T>; 2] {
        let (floor, channels, quarter) = (self.floor::<T>(), self.channels, T::from_f64(0.25));
        let mut sums = [vec![T::default(); channels], vec![T::default(); channels]];
        let [plain, weighted] = &mut sums;
        let (plain, weighted, mean, affine) = (&mut plain[..channels], &mut weighted[..channels], &mean[..channels], &affine[..channels]);
        if !self.block.pool {
            for (pixel, gradient) in image.chunks_exact(channels).zip(gradient.chunks_exact(channels)) {
                for channel in 0..channels {
                    let value = pixel[channel].times_plus(affine[channel].factor, affine[channel].offset);
                    let passed = if value <= floor { T::default() } else { gradient[channel] };
                    plain[channel] += passed;
                    weighted[channel] += passed * (pixel[channel] - mean[channel]);
                }
            }
            return sums;
        }
        self.for_each_window(
            #[inline(always)]
            |window, corner| {
                let gradient = &gradient[window..window + channels];
                let [a, b, c, d] = self.pixels(corner).map(|pixel| &image[pixel..pixel + channels]);
                for channel in 0..channels {
                    let (mut share, mut distance) = (T::default(), T::default());
                    for own in [a[channel], b[channel], c[channel], d[channel]] {
                        let is_floor = own.times_plus(affine[channel].factor, affine[channel].offset) <= floor;
                        share += if is_floor { T::default() } else { T::ONE };
                        distance += if is_floor { T::default() } else { own - mean[channel] };
                    }
                    let gradient = gradient[channel] * quarter;
                    plain[channel] += gradient * share;
                    weighted[channel] += gradient * distance;
                }
            },
        );
        sums
    }

    #[inline(always)]
    fn gradient<T: Real>(&self, image: &[T], gradient: &[T], affine: &[Affine<T>], slopes: &[Slope<T>], result: &mut [T]) {
        let (floor, channels, quarter) = (self.floor::<T>(), self.channels, T::from_f64(0.25));
        let (affine, slopes) = (&affine[..channels], &slopes[..channels]);
        let at = |own: T, gradient: T, affine: Affine<T>, slope: Slope<T>| {
            let is_floor = own.times_plus(affine.factor, affine.offset) <= floor;
            slope.at(own, if is_floor { T::default() } else { gradient })
        };
        if !self.block.pool {
            let pixels = result.chunks_exact_mut(channels).zip(image.chunks_exact(channels)).zip(gradient.chunks_exact(channels));
            for ((result, pixel), gradient) in pixels {
                for channel in 0..channels {
                    result[channel] = at(pixel[channel], gradient[channel], affine[channel], slopes[channel]);
                }
            }
            return;
        }
        if !(self.rows.is_multiple_of(2) && self.columns.is_multiple_of(2)) {
            // Pixels that no window covers get what flows through the moments.
            for (result, pixel) in result.chunks_exact_mut(channels).zip(image.chunks_exact(channels)) {
                for channel in 0..channels {
                    result[channel] = slopes[channel].at(pixel[channel], T::default());
                }
            }
        }
        self.for_each_window(
            #[inline(always)]
            |window, corner| {
                let gradient = &gradient[window..window + channels];
                for pixel in self.pixels(corner) {
                    let (result, image) = (&mut result[pixel..pixel + channels], &image[pixel..pixel + channels]);
                    for channel in 0..channels {
                        result[channel] = at(image[channel], gradient[channel] * quarter, affine[channel], slopes[channel]);
                    }
                }
            },
        );
    }

    /// With x̂ = (x - mean) · inverse and g the gradient by scale · x̂ + shift: dx = inverse · (scale · g - mean(scale · g) - x̂ · mean(scale · g · x̂)), with the
    /// means over the group. `sums` hold Σg and Σ(g · (x - mean)) of each channel.
    fn slopes<T: Real>(&self, moments: &[Moments], scale: &[T], sums: &[Vec<T>; 2]) -> Vec<Slope<T>> {
        let size = (self.rows * self.columns * self.channels_of_group()) as f64;
        let mut slopes = Vec::with_capacity(self.channels);
        for (group, &(mean, inverse)) in moments.iter().enumerate() {
            let channels = group * self.channels_of_group()..(group + 1) * self.channels_of_group();
            let total = |sums: &[T]| channels.clone().map(|channel| scale[channel].to_f64() * sums[channel].to_f64()).sum::<f64>() / size;
            let (plain, of_value) = (total(&sums[0]), -inverse * inverse * inverse * total(&sums[1]));
            slopes.extend(channels.clone().map(|channel| Slope {
                of_gradient: T::from_f64(scale[channel].to_f64() * inverse),
                of_value: T::from_f64(of_value),
                constant: T::from_f64(-inverse * plain - of_value * mean),
            }));
        }
        slopes
    }
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
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
        for_real!(dtype_of(s1), T => {
            let (input, scale, shift) = (values::<T>(s1, l1)?, values::<T>(s2, l2)?, values::<T>(s3, l3)?);
            let mut output = vec![T::default(); self.count * self.output_image()];
            let images = output.par_chunks_mut(self.output_image()).zip(input.par_chunks(self.image()));
            let moments = images.map(|(output, image)| vectorised(#[inline(always)] || {
                let moments = self.moments(image);
                self.finish(image, &self.affine(&moments, scale, shift), output);
                moments
            }));
            *self.moments.lock().expect("no thread panicked") = moments.collect();
            let window = if self.block.pool { 2 } else { 1 };
            Ok((stored(output), (self.count, self.rows / window, self.columns / window, self.channels).into()))
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
        let moments = self.moments.lock().expect("no thread panicked");
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, scale, shift, gradient], |arguments| {
            let &[values, scale_values, shift_values, gradient] = arguments else { bail!("four tensors") };
            let is_wanted = input.track_op();
            let mut result = vec![T::default(); if is_wanted { values.len() } else { 0 }];
            let mut parts: Vec<&mut [T]> = result.chunks_mut(self.image()).collect();
            parts.resize_with(self.count, Default::default);
            let images = parts.into_par_iter().zip(values.par_chunks(self.image())).zip(gradient.par_chunks(self.output_image()));
            let sums: Vec<[Vec<T>; 2]> = images.zip(&*moments).map(|(((result, image), gradient), moments)| vectorised(#[inline(always)] || {
                let affine = self.affine(moments, scale_values, shift_values);
                let mean: Vec<T> = (0..self.channels).map(|channel| T::from_f64(moments[channel / self.channels_of_group()].0)).collect();
                let sums = self.sums(image, gradient, &affine, &mean);
                if is_wanted {
                    self.gradient(image, gradient, &affine, &self.slopes(moments, scale_values, &sums), result);
                }
                sums
            })).collect();
            let (mut of_scale, mut of_shift) = (vec![0.0; self.channels], vec![0.0; self.channels]);
            for ([plain, weighted], moments) in sums.iter().zip(&*moments) {
                for channel in 0..self.channels {
                    of_scale[channel] += weighted[channel].to_f64() * moments[channel / self.channels_of_group()].1;
                    of_shift[channel] += plain[channel].to_f64();
                }
            }
            let narrow = |values: Vec<f64>| values.into_iter().map(T::from_f64).collect();
            Ok((
                gradient_of(input, is_wanted.then_some(result))?,
                gradient_of(scale, scale.track_op().then(|| narrow(of_scale)))?,
                gradient_of(shift, shift.track_op().then(|| narrow(of_shift)))?,
            ))
        }))
    }
}
