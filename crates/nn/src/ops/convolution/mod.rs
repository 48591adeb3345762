//! Two-dimensional convolution of channels-last images as matrix products, forward and backward.
//!
//! Images are worked on in small groups that stay in the cache, each by one thread. The gradient of the weight is summed up over the groups
//! of a share of the images, in order, and then over the shares, in order.

mod chosen;
mod geometry;
mod padded;
mod unfold;
mod winograd;

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

pub(super) use chosen::Chosen;
pub(super) use geometry::Geometry;
use unfold::Unfold;
use winograd::Winograd;

use super::storage::{apply3, dtype_of, for_real, gradient_of, on_cpu, stored, values, with_values};
use super::types::Convolution;
use super::weight::{Target, Weight, or_none};
use crate::parallel::map_with;
use crate::vector::{Real, vectorised};

/// Shares of the images whose weight gradients are summed up apart, at most, and the values that more than two such sums may take. Fixed, so that the
/// order of addition does not depend on the number of threads.
const SHARES: usize = 32;
const SHARED_VALUES: usize = 1 << 23;
/// Values of these sums that are added up at a time.
const SUMMED_AT_ONCE: usize = 1 << 12;

/// Cross-correlation: input [N, H, W, C], weight [O, C, K, K'], bias [O] or none, result [N, H', W', O].
///
/// # Errors
/// When the shapes do not fit or a tensor is neither f32 nor f64.
pub fn conv2d<'a, 'b>(
    input: &Tensor,
    weight: impl Into<Weight<'a>>,
    bias: impl Into<Option<&'b Tensor>>,
    convolution: Convolution,
) -> Result<Tensor> {
    let (weight, bias) = (weight.into(), bias.into());
    let geometry = Geometry::new(input.dims4()?, weight.tensor().dims4()?, convolution)?;
    check_bias(bias, geometry.outputs)?;
    let bias = or_none(bias, input)?;
    let (weight, target) = weight.argument(&[input, &bias])?;
    apply3([input, &weight, &bias], Conv2d { geometry, target })
}

fn check_bias(bias: Option<&Tensor>, outputs: usize) -> Result<()> {
    let biases = bias.map_or(Ok(outputs), Tensor::dims1)?;
    if biases != outputs {
        bail!("{biases} biases for {outputs} output channels");
    }
    Ok(())
}

struct Conv2d {
    geometry: Geometry,
    target: Target,
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
        let geometry = self.geometry;
        for_real!(dtype_of(s1), T => {
            let (input, bias) = (values::<T>(s1, l1)?, values::<T>(s3, l3)?);
            let kernel = Kernel::new(geometry, values::<T>(s2, l2)?, Purpose::Forward);
            let mut output = vec![T::default(); geometry.count * geometry.output_image()];
            kernel.forward(input, &mut output, #[inline(always)] |output| add_to_rows(output, bias));
            Ok((stored(output), (geometry.count, geometry.rows, geometry.columns, geometry.outputs).into()))
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
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, weight, gradient], |arguments| {
            let wanted = Wanted { input: input.track_op(), weight: self.target.wants_gradient(weight) };
            let kernel = Kernel::new(self.geometry, arguments[1], wanted.purpose());
            let gradients = kernel.backward(arguments[0], wanted, #[inline(always)] |images, into| {
                let size = self.geometry.output_image();
                into.copy_from_slice(&arguments[2][images.start * size..images.end * size]);
            });
            let bias_gradient = bias.track_op().then(|| super::linear::column_sums(arguments[2], self.geometry.outputs));
            Ok((gradient_of(input, gradients.input)?, self.target.hand_over(gradient_of(weight, gradients.weight)?)?, gradient_of(bias, bias_gradient)?))
        }))
    }
}

/// The adjoint of a convolution, which enlarges images: input [N, H, W, I], weight [I, O, K, K'], bias [O] or none, result
/// [N, (H - 1) · stride - 2 · padding + K, .., O], as PyTorch's `conv_transpose2d`.
///
/// # Errors
/// When the shapes do not fit, a tensor is neither f32 nor f64, or is not on the CPU.
pub fn conv_transpose2d<'a, 'b>(
    input: &Tensor,
    weight: impl Into<Weight<'a>>,
    bias: impl Into<Option<&'b Tensor>>,
    convolution: Convolution,
) -> Result<Tensor> {
    let (weight, bias) = (weight.into(), bias.into());
    let ((count, rows, columns, inputs), (weight_inputs, outputs, kernel_height, kernel_width)) =
        (input.dims4()?, weight.tensor().dims4()?);
    if inputs != weight_inputs {
        bail!("a transposed convolution over {weight_inputs} channels does not take {inputs}");
    }
    check_bias(bias, outputs)?;
    let extent = |windows: usize, kernel: usize| {
        let padded = windows.checked_sub(1).map(|steps| steps * convolution.stride + kernel);
        match padded.and_then(|padded| padded.checked_sub(2 * convolution.padding)) {
            Some(extent) if extent > 0 => Ok(extent),
            _ => bail!("a transposed convolution with {convolution:?} and a kernel of {kernel} leaves nothing of {windows} pixels"),
        }
    };
    let images = (count, extent(rows, kernel_height)?, extent(columns, kernel_width)?, outputs);
    let geometry = Geometry::new(images, weight.tensor().dims4()?, convolution)?;
    let bias = or_none(bias, input)?;
    let (weight, target) = weight.argument(&[input, &bias])?;
    apply3([input, &weight, &bias], ConvTranspose2d { geometry, target })
}

struct ConvTranspose2d {
    /// Of the convolution whose adjoint this is: from the result to the input.
    geometry: Geometry,
    target: Target,
}

impl CustomOp3 for ConvTranspose2d {
    fn name(&self) -> &'static str {
        "conv_transpose2d"
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
        let Geometry { count, height, width, channels, .. } = self.geometry;
        for_real!(dtype_of(s1), T => {
            let (input, bias) = (values::<T>(s1, l1)?, values::<T>(s3, l3)?);
            let wanted = Wanted { input: true, weight: false };
            let kernel = Kernel::new(self.geometry, values::<T>(s2, l2)?, wanted.purpose());
            let mut output = kernel.backward(&[], wanted, copying(input, self.geometry.output_image())).input.expect("asked for");
            output.par_chunks_mut(self.geometry.image()).for_each(|output| add_to_rows(output, bias));
            Ok((stored(output), (count, height, width, channels).into()))
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
        let geometry = self.geometry;
        for_real!(input.dtype(), T => with_values::<T, _>(&[input, weight, gradient], |arguments| {
            let input_gradient = input.track_op().then(|| {
                let mut result = vec![T::default(); arguments[0].len()];
                Kernel::new(geometry, arguments[1], Purpose::Forward).forward(arguments[2], &mut result, |_| ());
                result
            });
            let wanted = Wanted { input: false, weight: self.target.wants_gradient(weight) };
            let kernel = Kernel::new(geometry, arguments[1], wanted.purpose());
            let weight_gradient = kernel.backward(arguments[2], wanted, copying(arguments[0], geometry.output_image())).weight;
            let bias_gradient = bias.track_op().then(|| super::linear::column_sums(arguments[2], geometry.channels));
            Ok((gradient_of(input, input_gradient)?, self.target.hand_over(gradient_of(weight, weight_gradient)?)?, gradient_of(bias, bias_gradient)?))
        }))
    }
}

/// Writes what lies there for some images, of so many values each.
fn copying<T: Real>(values: &[T], image: usize) -> impl Fn(Range<usize>, &mut [T]) + Sync {
    move |images, into| into.copy_from_slice(&values[images.start * image..images.end * image])
}

/// The gradient of a convolution's weight, [O, C, K, K'], for each sample: the convolution's input [N, H, W, C], the gradient of its result
/// [N, H', W', O], result [N, O, C, K, K']. No graph is kept.
///
/// # Errors
/// When the shapes do not fit, a tensor is neither f32 nor f64, or is not on the CPU.
pub fn conv2d_per_sample_weight_gradients(
    input: &Tensor,
    gradient: &Tensor,
    shape: (usize, usize, usize, usize),
    convolution: Convolution,
) -> Result<Tensor> {
    on_cpu("conv2d_per_sample_weight_gradients", &[input, gradient])?;
    let whole = Geometry::new(input.dims4()?, shape, convolution)?;
    if gradient.dims() != [whole.count, whole.rows, whole.columns, whole.outputs] {
        bail!("a convolution of {:?} by {shape:?} with {convolution:?} has no gradient {:?}", input.dims(), gradient.dims());
    }
    for_real!(input.dtype(), T => with_values::<T, _>(&[input, gradient], |arguments| {
        let kernel = Kernel::<T>::new(Geometry { count: 1, ..whole }, &[], Purpose::WeightGradient);
        let size = whole.outputs * whole.taps();
        let mut result = vec![T::default(); whole.count * size];
        let samples = arguments[0].chunks(whole.image()).zip(arguments[1].chunks(whole.output_image()));
        map_with(result.chunks_mut(size).zip(samples), |(scratch, sum): &mut (Scratch<T>, Vec<T>), (result, (input, gradient))| {
            let sum = sized(sum, kernel.way.weight_gradient_size());
            sum.fill(T::default());
            kernel.way.backward(input, gradient, Gradients { input: None, weight: Some(sum) }, scratch);
            result.copy_from_slice(&kernel.way.finish_weight_gradient(sum));
        });
        Tensor::from_vec(result, (whole.count, shape.0, shape.1, shape.2, shape.3), input.device())
    }))
}

/// Adds `bias` to each row of `values`, unless there is none.
#[inline(always)]
pub(super) fn add_to_rows<T: Real>(values: &mut [T], bias: &[T]) {
    if bias.is_empty() {
        return;
    }
    values.chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(value, bias)| *value += *bias));
}

/// The gradients that somebody asked for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) input: bool,
    pub(super) weight: bool,
}

impl Wanted {
    pub(super) fn purpose(self) -> Purpose {
        if self.input { Purpose::InputGradient } else { Purpose::WeightGradient }
    }
}

/// Gradients of input and weight, where they are wanted.
pub(super) struct Gradients<G> {
    pub(super) input: Option<G>,
    pub(super) weight: Option<G>,
}

/// What a weight is laid out for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Forward,
    InputGradient,
    /// For this no weight is needed.
    WeightGradient,
}

/// A way to convolve a group of images on one thread.
trait Way<T>: Send + Sync {
    /// Images of a group where one thread does all of them.
    fn images_in_cache(&self) -> usize;
    /// Images of a group where all threads take their share.
    fn images_per_group(&self) -> usize;
    /// Values of the sum that weight gradients are added to.
    fn weight_gradient_size(&self) -> usize;
    fn forward(&self, input: &[T], output: &mut [T], scratch: &mut Scratch<T>);
    /// Writes the gradient of the input, adds to that of the weight. Without the latter, `input` is not read.
    fn backward(&self, input: &[T], gradient: &[T], gradients: Gradients<&mut [T]>, scratch: &mut Scratch<T>);
    /// The sum of all groups' weight gradients as [O, C, K, K'].
    fn finish_weight_gradient(&self, sum: &[T]) -> Vec<T>;
    /// The same for all images at once, if that is better.
    fn by_value(&self) -> Option<&dyn ByValue<T>> {
        None
    }
}

/// A way to convolve all images on all threads.
trait ByValue<T> {
    /// `finish(group, result)` is called for each group of the result.
    fn forward(&self, input: &[T], output: &mut [T], finish: &(dyn Fn(usize, &mut [T]) + Sync));
    /// `gradient(images, into)` writes the gradient of the result for some images.
    fn backward(&self, input: &[T], wanted: Wanted, gradient: &(dyn Fn(Range<usize>, &mut [T]) + Sync)) -> Gradients<Vec<T>>;
}

/// A convolution with its weight, laid out for the way that suits its shape.
pub(super) struct Kernel<T> {
    geometry: Geometry,
    way: Box<dyn Way<T>>,
}

/// Buffers that serve one group of images after the other, of whichever convolution.
#[derive(Default)]
pub(super) struct Scratch<T> {
    unfold: unfold::Buffers<T>,
    winograd: winograd::Buffers<T>,
    /// A group's result or its gradient.
    output: Vec<T>,
}

/// A buffer's first `size` values, whatever they are.
pub(super) fn sized<T: Real>(buffer: &mut Vec<T>, size: usize) -> &mut [T] {
    if buffer.len() < size {
        buffer.resize(size, T::default());
    }
    &mut buffer[..size]
}

impl<T: Real> Kernel<T> {
    pub(super) fn new(geometry: Geometry, weight: &[T], purpose: Purpose) -> Self {
        let few_products = geometry.channels < 8 || geometry.outputs < 8;
        let way: Box<dyn Way<T>> = if few_products || !Winograd::<T, 4>::fits(&geometry) {
            Box::new(Unfold::new(geometry, weight, purpose))
        } else if geometry.rows.is_multiple_of(4) && geometry.columns.is_multiple_of(4) {
            Box::new(Winograd::<T, 6>::new(geometry, weight, purpose))
        } else {
            Box::new(Winograd::<T, 4>::new(geometry, weight, purpose))
        };
        Self { geometry, way }
    }

    fn groups(&self) -> usize {
        self.geometry.count.div_ceil(self.way.images_per_group())
    }

    /// Computes the result for all images; `finish` completes each group of it. Returns what `finish` gave, in order.
    pub(super) fn forward<R: Send + Sync>(&self, input: &[T], output: &mut [T], finish: impl Fn(&mut [T]) -> R + Sync) -> Vec<R> {
        let finish = |output: &mut [T]| {
            vectorised(
                #[inline(always)]
                || finish(output),
            )
        };
        if let Some(way) = self.way.by_value() {
            let results: Vec<OnceLock<R>> = (0..self.groups()).map(|_| OnceLock::new()).collect();
            way.forward(input, output, &|group, output| {
                let is_first = results[group].set(finish(output)).is_ok();
                debug_assert!(is_first, "each group is finished once");
            });
            return results.into_iter().map(|result| result.into_inner().expect("each group is finished")).collect();
        }
        let group = self.way.images_per_group();
        let groups = output.chunks_mut(group * self.geometry.output_image()).zip(input.chunks(group * self.geometry.image()));
        map_with(groups, |scratch, (output, input)| {
            self.way.forward(input, output, scratch);
            finish(output)
        })
    }

    /// Computes the result for a few images on this thread: `finish(images, result)` is called for one group of them after the other.
    pub(super) fn forward_on_thread(&self, input: &[T], scratch: &mut Scratch<T>, mut finish: impl FnMut(Range<usize>, &mut [T])) {
        let images = input.len() / self.geometry.image();
        for images in self.groups_in_cache(images) {
            let mut output = std::mem::take(&mut scratch.output);
            let result = sized(&mut output, images.len() * self.geometry.output_image());
            self.way.forward(&input[images.start * self.geometry.image()..images.end * self.geometry.image()], result, scratch);
            vectorised(
                #[inline(always)]
                || finish(images, result),
            );
            scratch.output = output;
        }
    }

    /// The gradient of a few images on this thread. `gradient(images, into)` writes the gradient of the result for one group of them.
    pub(super) fn backward_on_thread(&self, input_gradient: &mut [T], scratch: &mut Scratch<T>, gradient: impl Fn(Range<usize>, &mut [T])) {
        let image = self.geometry.image();
        for images in self.groups_in_cache(input_gradient.len() / image) {
            let mut output = std::mem::take(&mut scratch.output);
            let result = sized(&mut output, images.len() * self.geometry.output_image());
            vectorised(
                #[inline(always)]
                || gradient(images.clone(), result),
            );
            let input = Some(&mut input_gradient[images.start * image..images.end * image]);
            self.way.backward(&[], result, Gradients { input, weight: None }, scratch);
            scratch.output = output;
        }
    }

    fn groups_in_cache(&self, images: usize) -> impl Iterator<Item = Range<usize>> + use<T> {
        let group = self.way.images_in_cache();
        (0..images).step_by(group).map(move |start| start..(start + group).min(images))
    }

    /// The gradients of input and weight; without the latter, `input` is not read. `gradient(images, into)` writes the gradient of the result for some images.
    pub(super) fn backward(&self, input: &[T], wanted: Wanted, gradient: impl Fn(Range<usize>, &mut [T]) + Sync) -> Gradients<Vec<T>> {
        if !wanted.input && !wanted.weight {
            return Gradients { input: None, weight: None };
        }
        let gradient = |images: Range<usize>, into: &mut [T]| {
            vectorised(
                #[inline(always)]
                || gradient(images, into),
            );
        };
        if let Some(way) = self.way.by_value() {
            return way.backward(input, wanted, &gradient);
        }
        let (group, image) = (self.way.images_per_group(), self.geometry.image());
        let shares = if wanted.weight { (SHARED_VALUES / self.way.weight_gradient_size()).clamp(2, SHARES) } else { usize::MAX };
        let images_per_share = self.groups().div_ceil(shares).max(1) * group;
        let mut input_gradient = if wanted.input { vec![T::default(); self.geometry.count * image] } else { Vec::new() };
        let starts: Vec<usize> = (0..self.geometry.count).step_by(images_per_share).collect();
        // One part of the input's gradient for each share; all of them empty where it is not wanted.
        let mut parts: Vec<&mut [T]> = input_gradient.chunks_mut(images_per_share * image).collect();
        parts.resize_with(starts.len(), Default::default);
        let sums: Vec<Vec<T>> = map_with(parts.into_iter().zip(starts), |scratch: &mut Scratch<T>, (part, start)| {
            let mut sum = vec![T::default(); if wanted.weight { self.way.weight_gradient_size() } else { 0 }];
            let end = (start + images_per_share).min(self.geometry.count);
            let mut parts = part.chunks_mut(group * image);
            for first in (start..end).step_by(group) {
                let images = first..(first + group).min(end);
                let mut output = std::mem::take(&mut scratch.output);
                let result = sized(&mut output, images.len() * self.geometry.output_image());
                gradient(images.clone(), result);
                let gradients = Gradients { input: parts.next(), weight: wanted.weight.then_some(sum.as_mut_slice()) };
                let input = if wanted.weight { &input[images.start * image..images.end * image] } else { &[] };
                self.way.backward(input, result, gradients, scratch);
                scratch.output = output;
            }
            sum
        });
        Gradients { input: wanted.input.then_some(input_gradient), weight: wanted.weight.then(|| self.weight_gradient(sums)) }
    }

    /// The sums of the shares together, of which there is one at least.
    fn weight_gradient(&self, sums: Vec<Vec<T>>) -> Vec<T> {
        let mut sums = sums.into_iter();
        let (mut total, others) = (sums.next().expect("a convolution has images"), sums.collect::<Vec<_>>());
        total.par_chunks_mut(SUMMED_AT_ONCE).enumerate().for_each(|(place, total)| {
            for sum in &others {
                total.iter_mut().zip(&sum[place * SUMMED_AT_ONCE..]).for_each(|(total, value)| *total += *value);
            }
        });
        self.way.finish_weight_gradient(&total)
    }
}
