//! The block of convolutional networks in one operation: convolution, batch normalisation, rectification, maximum pooling.
//!
//! Done one after the other, these spend more time on moving the convolution's result through memory than on computing. Here each
//! group of images is finished while it is in the cache, and the gradient of the convolution's result is never written down as a whole.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::convolution::{Geometry, Kernel, Purpose, Wanted, add_to_rows};
use super::norm::Affine;
use super::storage::{apply3, dtype_of, for_real, stored, values, with_values};
use super::types::{Block, Normalisation, Statistics};
use super::weight::{Target, Weight};
use crate::vector::{Real, some_at_a_time, vectorised};

/// Channels that are worked on together.
const AT_ONCE: usize = 8;

/// Convolution, batch normalisation and what `block` adds: input [N, H, W, C], weight [O, C, K, K'], bias, scale and shift [O], result
/// [N, H', W', O]. With [`Normalisation::Batch`] the batch's statistics come along.
///
/// # Errors
/// When the shapes do not fit or a tensor is neither f32 nor f64.
pub fn conv_block<'a>(
    input: &Tensor,
    weight: impl Into<Weight<'a>>,
    [bias, scale, shift]: [&Tensor; 3],
    block: Block,
    normalisation: Normalisation<'_>,
) -> Result<(Tensor, Option<Statistics>)> {
    let weight = weight.into();
    let (input_shape, weight_shape) = (input.dims4()?, weight.tensor().dims4()?);
    let statistics = match normalisation {
        Normalisation::Batch => [weight_shape.0; 2],
        Normalisation::Fixed { mean, variance } => [mean.len(), variance.len()],
    };
    let tail = Tail::new(input_shape, weight_shape, [bias, scale, shift], statistics, block)?;
    let statistics = Arc::new(Mutex::new(None));
    let (weight, target) = weight.argument(&[input, bias, scale, shift])?;
    let operation = Operation {
        tail,
        target,
        fixed: match normalisation {
            Normalisation::Batch => None,
            Normalisation::Fixed { mean, variance } => Some(Statistics {
                mean: mean.to_vec(),
                variance: variance.to_vec(),
                count: tail.geometry.count * tail.geometry.positions(),
            }),
        },
        kept: Mutex::new(None),
        statistics: statistics.clone(),
    };
    let parameters = Tensor::cat(&[bias, scale, shift], 0)?;
    let output = apply3([input, &weight, &parameters], operation)?;
    let statistics = statistics.lock().expect("no thread panicked").take();
    Ok((output, statistics))
}

struct Operation {
    tail: Tail,
    target: Target,
    /// The statistics to normalise by, unless they are the batch's.
    fixed: Option<Statistics>,
    /// The convolution's result and the statistics that it was normalised by, for the backward pass.
    kept: Mutex<Option<(CpuStorage, Statistics)>>,
    /// Where the batch's statistics are left for the caller.
    statistics: Arc<Mutex<Option<Statistics>>>,
}

/// What follows a convolution: normalisation, rectification and pooling of its result.
#[derive(Clone, Copy)]
pub(super) struct Tail {
    pub(super) geometry: Geometry,
    block: Block,
}

impl Tail {
    /// Of an input [N, H, W, C], a weight [O, C, K, K'], bias, scale and shift [O], and as many means and variances as said.
    pub(super) fn new(
        input: (usize, usize, usize, usize),
        weight: (usize, usize, usize, usize),
        [bias, scale, shift]: [&Tensor; 3],
        [means, variances]: [usize; 2],
        block: Block,
    ) -> Result<Self> {
        let geometry = Geometry::new(input, weight, block.convolution)?;
        let lengths = [bias.dims1()?, scale.dims1()?, shift.dims1()?, means, variances];
        if lengths.iter().any(|&length| length != geometry.outputs) {
            bail!("batch normalisation of {} channels with parameters and statistics of {lengths:?}", geometry.outputs);
        }
        if block.pool && (geometry.rows < 2 || geometry.columns < 2) {
            bail!("a 2 x 2 window does not fit into {} x {}", geometry.rows, geometry.columns);
        }
        Ok(Self { geometry, block })
    }

    pub(super) fn pools(&self) -> bool {
        self.block.pool
    }

    pub(super) fn output_shape(&self) -> (usize, usize, usize, usize) {
        let Geometry { count, rows, columns, outputs, .. } = self.geometry;
        let window = if self.block.pool { 2 } else { 1 };
        (count, rows / window, columns / window, outputs)
    }

    /// Values of one image's result.
    pub(super) fn output_image(&self) -> usize {
        let (_, rows, columns, outputs) = self.output_shape();
        rows * columns * outputs
    }

    /// Normalises, rectifies and pools some images.
    #[inline(always)]
    pub(super) fn finish<T: Real>(&self, convolved: &[T], affine: &[Affine<T>], output: &mut [T]) {
        let (floor, outputs, nan) = (self.floor::<T>(), affine.len(), T::from_f64(f64::NAN));
        if !self.block.pool {
            for (output, pixel) in output.chunks_exact_mut(outputs).zip(convolved.chunks_exact(outputs)) {
                for channel in 0..outputs {
                    let Affine { factor, offset } = affine[channel];
                    output[channel] = larger(floor, pixel[channel].times_plus(factor, offset));
                }
            }
            return;
        }
        self.for_each_window(
            output.len() / outputs,
            #[inline(always)]
            |window, corner| {
                let output = &mut output[window * outputs..][..outputs];
                let [a, b, c, d] = self.pixels(convolved, corner);
                for channel in 0..outputs {
                    let Affine { factor, offset } = affine[channel];
                    let values = [a[channel], b[channel], c[channel], d[channel]].map(
                        #[inline(always)]
                        |own| own.times_plus(factor, offset),
                    );
                    let best = larger(larger(larger(larger(floor, values[0]), values[1]), values[2]), values[3]);
                    output[channel] = if has_nan(values) { nan } else { best };
                }
            },
        );
    }

    /// As [`Self::finish`], and notes which pixel each result is; of a window that holds what is not a number, any.
    #[inline(always)]
    pub(super) fn choose<T: Real>(&self, convolved: &[T], affine: &[Affine<T>], output: &mut [T], choices: &mut [u8]) {
        let (floor, outputs, nan) = (self.floor::<T>(), affine.len(), T::from_f64(f64::NAN));
        if !self.block.pool {
            let pixels = convolved.chunks_exact(outputs);
            for ((output, choices), pixel) in output.chunks_exact_mut(outputs).zip(choices.chunks_exact_mut(outputs)).zip(pixels) {
                for channel in 0..outputs {
                    let Affine { factor, offset } = affine[channel];
                    let value = pixel[channel].times_plus(factor, offset);
                    choices[channel] = u8::from((value > floor) | value.is_nan());
                    output[channel] = larger(floor, value);
                }
            }
            return;
        }
        self.for_each_window(
            output.len() / outputs,
            #[inline(always)]
            |window, corner| {
                let (output, choices) = (&mut output[window * outputs..][..outputs], &mut choices[window * outputs..][..outputs]);
                let [a, b, c, d] = self.pixels(convolved, corner);
                for channel in 0..outputs {
                    let Affine { factor, offset } = affine[channel];
                    let values = [a[channel], b[channel], c[channel], d[channel]].map(
                        #[inline(always)]
                        |own| own.times_plus(factor, offset),
                    );
                    let (mut best, mut choice) = (floor, 0_u8);
                    for (place, value) in values.into_iter().enumerate() {
                        choice = if value > best { place as u8 + 1 } else { choice };
                        best = larger(best, value);
                    }
                    output[channel] = if has_nan(values) { nan } else { best };
                    choices[channel] = choice;
                }
            },
        );
    }

    /// The gradient of the convolution's result for some images, by the choices that were noted.
    #[inline(always)]
    pub(super) fn gradient_of_choices<T: Real>(&self, choices: &[u8], gradient: &[T], affine: &[Affine<T>], result: &mut [T]) {
        let Geometry { rows, columns, outputs, .. } = self.geometry;
        let affine = &affine[..outputs];
        if !self.block.pool {
            let pixels = choices.chunks_exact(outputs).zip(gradient.chunks_exact(outputs));
            for (result, (choices, gradient)) in result.chunks_exact_mut(outputs).zip(pixels) {
                for channel in 0..outputs {
                    result[channel] = if choices[channel] == 1 { gradient[channel] * affine[channel].factor } else { T::default() };
                }
            }
            return;
        }
        if !(rows.is_multiple_of(2) && columns.is_multiple_of(2)) {
            // Some pixels are in no window.
            result.fill(T::default());
        }
        self.for_each_window(
            gradient.len() / outputs,
            #[inline(always)]
            |window, corner| {
                let (gradient, choices) = (&gradient[window * outputs..][..outputs], &choices[window * outputs..][..outputs]);
                let mut pixels = self.pixels_mut(result, corner);
                // In arrays of a fixed length, of which vectors are made for certain.
                some_at_a_time(
                    outputs,
                    AT_ONCE,
                    #[inline(always)]
                    |channel, lanes| {
                        let (mut passed, mut chosen) = ([T::default(); AT_ONCE], [0; AT_ONCE]);
                        for lane in 0..lanes {
                            passed[lane] = gradient[channel + lane] * affine[channel + lane].factor;
                        }
                        chosen[..lanes].copy_from_slice(&choices[channel..channel + lanes]);
                        for (place, pixel) in pixels.iter_mut().enumerate() {
                            let mut values = [T::default(); AT_ONCE];
                            for lane in 0..AT_ONCE {
                                values[lane] = if chosen[lane] == place as u8 + 1 { passed[lane] } else { T::default() };
                            }
                            pixel[channel..channel + lanes].copy_from_slice(&values[..lanes]);
                        }
                    },
                );
            },
        );
    }

    fn floor<T: Real>(&self) -> T {
        if self.block.rectify { T::default() } else { T::from_f64(f64::NEG_INFINITY) }
    }

    /// Calls `visit(window, corner)` for each 2 x 2 window of some images, where `corner` is the place of the pixel at its upper left.
    #[inline(always)]
    fn for_each_window(&self, windows: usize, mut visit: impl FnMut(usize, usize)) {
        let Geometry { rows, columns, outputs, .. } = self.geometry;
        let (down, across) = (rows / 2, columns / 2);
        for line in 0..windows / across {
            let (image, row) = (line / down, line % down * 2);
            for column in 0..across {
                visit(line * across + column, ((image * rows + row) * columns + 2 * column) * outputs);
            }
        }
    }

    /// The pixels of a 2 x 2 window.
    #[inline(always)]
    fn pixels<'a, T>(&self, convolved: &'a [T], corner: usize) -> [&'a [T]; 4] {
        let Geometry { columns, outputs, .. } = self.geometry;
        let (top, bottom) = (&convolved[corner..][..2 * outputs], &convolved[corner + columns * outputs..][..2 * outputs]);
        [&top[..outputs], &top[outputs..], &bottom[..outputs], &bottom[outputs..]]
    }

    /// The same, to be written.
    #[inline(always)]
    fn pixels_mut<'a, T>(&self, convolved: &'a mut [T], corner: usize) -> [&'a mut [T]; 4] {
        let Geometry { columns, outputs, .. } = self.geometry;
        let (top, bottom) = convolved[corner..].split_at_mut(columns * outputs);
        let ((a, b), (c, d)) = (top[..2 * outputs].split_at_mut(outputs), bottom[..2 * outputs].split_at_mut(outputs));
        [a, b, c, d]
    }

    /// For each channel the sum of the gradient that reaches the normalised values, and of its products with the distance from the mean.
    pub(super) fn channel_sums<T: Real>(&self, convolved: &[T], gradient: &[T], affine: &[Affine<T>], mean: &[T]) -> Vec<(f64, f64)> {
        let image = self.geometry.output_image();
        let images = convolved.par_chunks(image).zip(gradient.par_chunks(self.output_image()));
        let sums: Vec<Vec<(f64, f64)>> = images
            .map(|(convolved, gradient)| {
                vectorised(
                    #[inline(always)]
                    || self.sums_of_image(convolved, gradient, affine, mean),
                )
            })
            .collect();
        sums.into_iter().fold(vec![(0.0, 0.0); affine.len()], |mut total, sums| {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total = (total.0 + sum.0, total.1 + sum.1));
            total
        })
    }

    #[inline(always)]
    fn sums_of_image<T: Real>(&self, convolved: &[T], gradient: &[T], affine: &[Affine<T>], mean: &[T]) -> Vec<(f64, f64)> {
        let (floor, outputs) = (self.floor::<T>(), affine.len());
        let (mut plain, mut weighted) = (vec![T::default(); outputs], vec![T::default(); outputs]);
        let (plain, weighted, mean) = (&mut plain[..outputs], &mut weighted[..outputs], &mean[..outputs]);
        if self.block.pool {
            self.for_each_window(
                gradient.len() / outputs,
                #[inline(always)]
                |window, corner| {
                    let gradient = &gradient[window * outputs..][..outputs];
                    let [a, b, c, d] = self.pixels(convolved, corner);
                    for channel in 0..outputs {
                        let Affine { factor, offset } = affine[channel];
                        let (mut best, mut distance, mut passed) = (floor, T::default(), T::default());
                        for own in [a[channel], b[channel], c[channel], d[channel]] {
                            let value = own.times_plus(factor, offset);
                            let better = (value > best) | value.is_nan();
                            best = if better { value } else { best };
                            distance = if better { own - mean[channel] } else { distance };
                            passed = if better { gradient[channel] } else { passed };
                        }
                        plain[channel] += passed;
                        weighted[channel] += passed * distance;
                    }
                },
            );
        } else {
            for (pixel, gradient) in convolved.chunks_exact(outputs).zip(gradient.chunks_exact(outputs)) {
                for channel in 0..outputs {
                    let Affine { factor, offset } = affine[channel];
                    let passed = if pixel[channel].times_plus(factor, offset) <= floor { T::default() } else { gradient[channel] };
                    plain[channel] += passed;
                    weighted[channel] += passed * (pixel[channel] - mean[channel]);
                }
            }
        }
        plain.iter().zip(weighted.iter()).map(|(plain, weighted)| (plain.to_f64(), weighted.to_f64())).collect()
    }

    /// The gradient of the convolution's result for some images.
    #[inline(always)]
    pub(super) fn convolved_gradient<T: Real>(
        &self,
        convolved: &[T],
        gradient: &[T],
        affine: &[Affine<T>],
        slopes: &[Slope<T>],
        result: &mut [T],
    ) {
        let Geometry { rows, columns, outputs, .. } = self.geometry;
        let floor = self.floor::<T>();
        let (affine, slopes) = (&affine[..outputs], &slopes[..outputs]);
        if !self.block.pool {
            let pixels = result.chunks_exact_mut(outputs).zip(convolved.chunks_exact(outputs)).zip(gradient.chunks_exact(outputs));
            for ((result, pixel), gradient) in pixels {
                for channel in 0..outputs {
                    let Affine { factor, offset } = affine[channel];
                    let is_floor = pixel[channel].times_plus(factor, offset) <= floor;
                    result[channel] = slopes[channel].at(pixel[channel], if is_floor { T::default() } else { gradient[channel] });
                }
            }
            return;
        }
        if !(rows.is_multiple_of(2) && columns.is_multiple_of(2)) {
            // Pixels that no window covers get what flows through the statistics.
            for (result, pixel) in result.chunks_exact_mut(outputs).zip(convolved.chunks_exact(outputs)) {
                for channel in 0..outputs {
                    result[channel] = slopes[channel].at(pixel[channel], T::default());
                }
            }
        }
        self.for_each_window(
            gradient.len() / outputs,
            #[inline(always)]
            |window, corner| {
                let gradient = &gradient[window * outputs..][..outputs];
                let [a, b, c, d] = self.pixels(convolved, corner);
                let [of_a, of_b, of_c, of_d] = self.pixels_mut(result, corner);
                for channel in 0..outputs {
                    let Affine { factor, offset } = affine[channel];
                    let (own, slope) = ([a[channel], b[channel], c[channel], d[channel]], slopes[channel]);
                    let mut values = own;
                    let mut best = floor;
                    for value in &mut values {
                        *value = value.times_plus(factor, offset);
                        best = larger(best, *value);
                    }
                    // Taken by the first pixel that is the largest, if it is above the floor. One that is not a number is larger than all else; the
                    // slope makes its gradient none either.
                    let some = (best > floor) & !has_nan(values);
                    let [at_a, at_b, at_c, at_d] = [values[0] == best, values[1] == best, values[2] == best, values[3] == best];
                    let (nothing, gradient) = (T::default(), gradient[channel]);
                    of_a[channel] = slope.at(own[0], if at_a & some { gradient } else { nothing });
                    of_b[channel] = slope.at(own[1], if at_b & !at_a & some { gradient } else { nothing });
                    of_c[channel] = slope.at(own[2], if at_c & !(at_a | at_b) & some { gradient } else { nothing });
                    of_d[channel] = slope.at(own[3], if at_d & !(at_a | at_b | at_c) & some { gradient } else { nothing });
                }
            },
        );
    }
}

/// The larger one; `value`, where that is not a number. Written as the processor's own instruction has it.
#[inline(always)]
fn larger<T: Real>(best: T, value: T) -> T {
    if best > value { best } else { value }
}

#[inline(always)]
fn has_nan<T: Real>([a, b, c, d]: [T; 4]) -> bool {
    (a.is_nan() | b.is_nan()) | (c.is_nan() | d.is_nan())
}

/// The gradient of one channel of the convolution's result: `of_gradient · gradient + of_value · value + constant`.
#[derive(Clone, Copy)]
pub(super) struct Slope<T> {
    pub(super) of_gradient: T,
    pub(super) of_value: T,
    pub(super) constant: T,
}

impl<T: Real> Slope<T> {
    #[inline(always)]
    pub(super) fn at(self, value: T, gradient: T) -> T {
        gradient.times_plus(self.of_gradient, value.times_plus(self.of_value, self.constant))
    }
}

impl CustomOp3 for Operation {
    fn name(&self) -> &'static str {
        "conv_block"
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
        let Tail { geometry, .. } = self.tail;
        for_real!(dtype_of(s1), T => {
            let (input, parameters) = (values::<T>(s1, l1)?, values::<T>(s3, l3)?);
            let [bias, scale, shift] = thirds(parameters);
            let kernel = Kernel::new(geometry, values::<T>(s2, l2)?, Purpose::Forward);
            let mut convolved = vec![T::default(); geometry.count * geometry.output_image()];
            let sums = kernel.forward(input, &mut convolved, #[inline(always)] |convolved| {
                add_to_rows(convolved, bias);
                if self.fixed.is_none() { sums_and_squares(convolved, geometry.outputs) } else { Vec::new() }
            });
            let statistics = match &self.fixed {
                Some(fixed) => fixed.clone(),
                None => Statistics::from_sums(&sums, geometry.count * geometry.positions()),
            };
            let affine = statistics.affine(scale, shift);
            let mut output = vec![T::default(); geometry.count * self.tail.output_image()];
            output.par_chunks_mut(self.tail.output_image()).zip(convolved.par_chunks(geometry.output_image())).for_each(|(output, convolved)| {
                vectorised(#[inline(always)] || self.tail.finish(convolved, &affine, output));
            });
            if self.fixed.is_none() {
                *self.statistics.lock().expect("no thread panicked") = Some(statistics.clone());
            }
            *self.kept.lock().expect("no thread panicked") = Some((stored(convolved), statistics));
            Ok((stored(output), self.tail.output_shape().into()))
        })
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        parameters: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.lock().expect("no thread panicked");
        let Some((convolved, statistics)) = &*kept else { bail!("nothing was kept for the backward pass") };
        let (tail, geometry, device) = (self.tail, self.tail.geometry, input.device());
        let (of_image, of_output) = (geometry.output_image(), tail.output_image());
        let wanted = Wanted { input: input.track_op(), weight: self.target.wants_gradient(weight) };
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, weight, parameters, gradient], |arguments| {
            let (input_values, gradient) = (arguments[0], arguments[3]);
            let kernel = Kernel::new(geometry, arguments[1], wanted.purpose());
            let tensor = |values: Option<Vec<T>>, like: &Tensor| values.map(|values| Tensor::from_vec(values, like.shape(), device)).transpose();
            let [_, scale, shift] = thirds(arguments[2]);
            let convolved = T::cpu_storage_as_slice(convolved)?;
            let affine = statistics.affine(scale, shift);
            let mean: Vec<T> = statistics.mean.iter().map(|&mean| T::from_f64(mean)).collect();
            let own_statistics = self.fixed.is_none();
            let sums = if own_statistics || parameters.track_op() {
                tail.channel_sums(convolved, gradient, &affine, &mean)
            } else {
                vec![(0.0, 0.0); geometry.outputs]
            };
            let slopes = slopes(statistics, scale, &sums, own_statistics);
            let gradients = kernel.backward(input_values, wanted, #[inline(always)] |images, into| {
                let convolved = &convolved[images.start * of_image..images.end * of_image];
                let gradient = &gradient[images.start * of_output..images.end * of_output];
                tail.convolved_gradient(convolved, gradient, &affine, &slopes, into);
            });
            let parameter_gradient = parameters.track_op().then(|| {
                let bias = slopes.iter().zip(&sums).map(|(slope, sum)| if own_statistics { T::default() } else { slope.of_gradient * T::from_f64(sum.0) });
                let scale = sums.iter().zip(statistics.inverse_deviations()).map(|(sum, inverse)| T::from_f64(sum.1 * inverse));
                bias.chain(scale).chain(sums.iter().map(|sum| T::from_f64(sum.0))).collect::<Vec<T>>()
            });
            Ok((tensor(gradients.input, input)?, self.target.hand_over(tensor(gradients.weight, weight)?)?, tensor(parameter_gradient, parameters)?))
        }))
    }
}

fn thirds<T>(values: &[T]) -> [&[T]; 3] {
    let third = values.len() / 3;
    std::array::from_fn(|part| &values[part * third..(part + 1) * third])
}

/// Sum and sum of squares of each channel, in f64.
#[inline(always)]
pub(super) fn sums_and_squares<T: Real>(values: &[T], channels: usize) -> Vec<(f64, f64)> {
    let (mut sums, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
    for row in values.chunks_exact(channels) {
        for ((sum, square), value) in sums.iter_mut().zip(&mut squares).zip(row) {
            let value = value.to_f64();
            *sum += value;
            *square += value * value;
        }
    }
    sums.into_iter().zip(squares).collect()
}

/// With x̂ = (x - mean) / deviation: dx = scale / deviation · (g - Σg / count - x̂ · Σ(g·x̂) / count), where the sums are left out for fixed
/// statistics. `sums` hold Σg and Σ(g·(x - mean)).
pub(super) fn slopes<T: Real>(statistics: &Statistics, scale: &[T], sums: &[(f64, f64)], own_statistics: bool) -> Vec<Slope<T>> {
    let count = statistics.count as f64;
    let channels = statistics.mean.iter().zip(statistics.inverse_deviations()).zip(scale.iter().zip(sums));
    channels
        .map(|((mean, inverse), (scale, &(plain, weighted)))| {
            let factor = scale.to_f64() * inverse;
            let (plain, weighted) = if own_statistics { (plain, weighted * inverse) } else { (0.0, 0.0) };
            let slope = -factor * weighted / count * inverse;
            Slope {
                of_gradient: T::from_f64(factor),
                of_value: T::from_f64(slope),
                constant: T::from_f64(-factor * plain / count - slope * mean),
            }
        })
        .collect()
}
