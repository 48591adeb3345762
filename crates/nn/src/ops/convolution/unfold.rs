//! Convolution by unfolding: the windows of a group of images become the rows of a matrix (im2col), so that the result is `windows · weight`,
//! the gradient of the windows `gradient · weightᵀ`, and that of the weight `windowsᵀ · gradient`.

use std::ops::Range;

use super::geometry::Geometry;
use super::{Gradients, Purpose, Scratch, Way, padded, sized};
use crate::matrix::{Matrix, Panels, multiply};
use crate::ops::types::Convolution;
use crate::vector::{Real, vectorised};

/// Window positions of one group at least.
const POSITIONS: usize = 256;
/// Values of one image's windows that are kept at a time, more or less: larger images are worked on in bands of rows.
const BAND: usize = 1 << 22;

pub(super) struct Unfold<T> {
    geometry: Geometry,
    /// The weight in panels: [taps, outputs] forward, [outputs, taps] for the input's gradient.
    weight: Vec<T>,
}

/// Buffers that serve one group after the other.
#[derive(Default)]
pub(super) struct Buffers<T> {
    padded: Vec<T>,
    windows: Vec<T>,
    window_gradient: Vec<T>,
    panels: Vec<T>,
}

impl<T: Real> Unfold<T> {
    /// `weight` is [O, C, K, K'].
    pub(super) fn new(geometry: Geometry, weight: &[T], purpose: Purpose) -> Self {
        let mut panels = Vec::new();
        if purpose != Purpose::WeightGradient {
            let weight = taps_last_channels(&geometry, weight);
            let weight = Matrix::new(&weight, geometry.outputs, geometry.taps());
            Panels::lay_out(if purpose == Purpose::Forward { weight.transposed() } else { weight }, &mut panels);
        }
        Self { geometry, weight: panels }
    }

    fn is_pointwise(&self) -> bool {
        let Geometry { kernel_height, kernel_width, convolution, .. } = self.geometry;
        (kernel_height, kernel_width, convolution) == (1, 1, Convolution { stride: 1, padding: 0 })
    }

    /// The rows of the result, a band after the other where one image is too large.
    fn bands(&self, images: usize) -> impl Iterator<Item = Range<usize>> + use<T> {
        let Geometry { rows, columns, .. } = self.geometry;
        let is_small = images > 1 || self.is_pointwise();
        let at_once = if is_small { rows } else { (BAND / (columns * self.geometry.taps())).max(1) };
        (0..rows).step_by(at_once).map(move |start| start..(start + at_once).min(rows))
    }

    /// Where the results of these rows lie among those of some images, which are several only where the rows are all.
    fn results(&self, images: usize, rows: &Range<usize>) -> Range<usize> {
        let row = self.geometry.columns * self.geometry.outputs;
        rows.start * row..(rows.start + images * rows.len()) * row
    }

    /// Visits each run of pixels that one row of a window reads: `visit(window index, index in the padded image, length)`.
    #[inline(always)]
    fn for_each_run(&self, rows: Range<usize>, mut visit: impl FnMut(usize, usize, usize)) {
        let Geometry { channels, kernel_height, kernel_width, columns, convolution, .. } = self.geometry;
        let (padded_row, length, mut window) = (padded::row(&self.geometry), kernel_width * channels, 0);
        for row in rows {
            for column in 0..columns {
                let corner = row * convolution.stride * padded_row + column * convolution.stride * channels;
                for kernel_row in 0..kernel_height {
                    visit(window, corner + kernel_row * padded_row, length);
                    window += length;
                }
            }
        }
    }

    /// The windows of these rows of some images, [images · rows · columns, taps].
    fn windows<'a>(&self, input: &'a [T], rows: &Range<usize>, windows: &'a mut Vec<T>, padded: &mut Vec<T>) -> &'a [T] {
        if self.is_pointwise() {
            return input;
        }
        let (images, of_image) = (input.len() / self.geometry.image(), rows.len() * self.geometry.columns * self.geometry.taps());
        let (windows, padded) = (sized(windows, images * of_image), sized(padded, padded::size(&self.geometry)));
        vectorised(
            #[inline(always)]
            || {
                padded.fill(T::default());
                for (image, windows) in input.chunks_exact(self.geometry.image()).zip(windows.chunks_exact_mut(of_image)) {
                    padded::write(&self.geometry, image, padded);
                    self.for_each_run(
                        rows.clone(),
                        #[inline(always)]
                        |window, pixel, length| copy(&padded[pixel..pixel + length], &mut windows[window..window + length]),
                    );
                }
            },
        );
        windows
    }

    /// The sum of the windows' gradients at the pixels that they were read from; complete with the last band of rows.
    fn fold(&self, windows: &[T], rows: &Range<usize>, padded: &mut Vec<T>, input: &mut [T]) {
        let of_image = rows.len() * self.geometry.columns * self.geometry.taps();
        let padded = sized(padded, padded::size(&self.geometry));
        vectorised(
            #[inline(always)]
            || {
                for (image, windows) in input.chunks_exact_mut(self.geometry.image()).zip(windows.chunks_exact(of_image)) {
                    if rows.start == 0 {
                        padded.fill(T::default());
                    }
                    self.for_each_run(
                        rows.clone(),
                        #[inline(always)]
                        |window, pixel, length| {
                            for (pixel, value) in padded[pixel..pixel + length].iter_mut().zip(&windows[window..window + length]) {
                                *pixel += *value;
                            }
                        },
                    );
                    if rows.end == self.geometry.rows {
                        padded::read(&self.geometry, padded, image);
                    }
                }
            },
        );
    }
}

/// Copies a few values. Of eight at a time, the last ones twice over: a call for each would take longer.
#[inline(always)]
fn copy<T: Real>(from: &[T], to: &mut [T]) {
    const AT_ONCE: usize = 8;
    let length = from.len();
    if length < AT_ONCE {
        for (to, from) in to.iter_mut().zip(from) {
            *to = *from;
        }
        return;
    }
    let last = length - AT_ONCE;
    for start in (0..last).step_by(AT_ONCE).chain([last]) {
        to[start..start + AT_ONCE].copy_from_slice(&from[start..start + AT_ONCE]);
    }
}

impl<T: Real> Way<T> for Unfold<T> {
    fn images_in_cache(&self) -> usize {
        POSITIONS.div_ceil(self.geometry.positions())
    }

    fn images_per_group(&self) -> usize {
        self.images_in_cache().clamp(1, self.geometry.count.max(1))
    }

    fn weight_gradient_size(&self) -> usize {
        self.geometry.taps() * self.geometry.outputs
    }

    fn forward(&self, input: &[T], output: &mut [T], Scratch { unfold: scratch, .. }: &mut Scratch<T>) {
        let (taps, outputs, images) = (self.geometry.taps(), self.geometry.outputs, input.len() / self.geometry.image());
        for rows in self.bands(images) {
            let windows = self.windows(input, &rows, &mut scratch.windows, &mut scratch.padded);
            let output = &mut output[self.results(images, &rows)];
            multiply(Matrix::new(windows, output.len() / outputs, taps), Panels::new(&self.weight, taps, outputs), output, false);
        }
    }

    fn backward(&self, input: &[T], gradient: &[T], gradients: Gradients<&mut [T]>, Scratch { unfold: scratch, .. }: &mut Scratch<T>) {
        let (taps, outputs, images) = (self.geometry.taps(), self.geometry.outputs, gradient.len() / self.geometry.output_image());
        let gradient_of = |rows: &Range<usize>| {
            let gradient = &gradient[self.results(images, rows)];
            Matrix::new(gradient, gradient.len() / outputs, outputs)
        };
        if let Some(input_gradient) = gradients.input {
            let weight = Panels::new(&self.weight, outputs, taps);
            for rows in self.bands(images) {
                let gradient = gradient_of(&rows);
                if self.is_pointwise() {
                    multiply(gradient, weight, input_gradient, false);
                } else {
                    let window_gradient = sized(&mut scratch.window_gradient, images * rows.len() * self.geometry.columns * taps);
                    multiply(gradient, weight, window_gradient, false);
                    self.fold(window_gradient, &rows, &mut scratch.padded, input_gradient);
                }
            }
        }
        if let Some(weight_gradient) = gradients.weight {
            for rows in self.bands(images) {
                let windows = self.windows(input, &rows, &mut scratch.windows, &mut scratch.padded);
                let windows = Matrix::new(windows, images * rows.len() * self.geometry.columns, taps);
                multiply(windows.transposed(), Panels::lay_out(gradient_of(&rows), &mut scratch.panels), weight_gradient, true);
            }
        }
    }

    /// From [taps, outputs] to [O, C, K, K'].
    fn finish_weight_gradient(&self, sum: &[T]) -> Vec<T> {
        let Geometry { channels, outputs, kernel_height, kernel_width, .. } = self.geometry;
        let kernel = kernel_height * kernel_width;
        let mut result = vec![T::default(); sum.len()];
        for (row, values) in sum.chunks_exact(outputs).enumerate() {
            let (tap, channel) = (row / channels, row % channels);
            result[channel * kernel + tap..].iter_mut().step_by(channels * kernel).zip(values).for_each(|(target, value)| *target = *value);
        }
        result
    }
}

/// [O, C, K, K'] as [O, K, K', C].
fn taps_last_channels<T: Real>(geometry: &Geometry, weight: &[T]) -> Vec<T> {
    let kernel = geometry.kernel_height * geometry.kernel_width;
    let mut result = vec![T::default(); weight.len()];
    for (result, weight) in result.chunks_exact_mut(geometry.taps()).zip(weight.chunks_exact(geometry.taps())) {
        for (channel, taps) in weight.chunks_exact(kernel).enumerate() {
            result[channel..].iter_mut().step_by(geometry.channels).zip(taps).for_each(|(target, value)| *target = *value);
        }
    }
    result
}
