//! Convolution by unfolding: the windows of a group of images become the rows of a matrix (im2col), so that the result is `windows · weight`,
//! the gradient of the windows `gradient · weightᵀ`, and that of the weight `windowsᵀ · gradient`.

use super::geometry::{Convolution, Geometry};
use super::{Gradients, Purpose, Scratch, Way, sized};
use crate::matrix::{Matrix, Panels, Real, multiply};

/// Window positions of one group at least.
const POSITIONS: usize = 256;

pub(super) struct Unfold<T> {
    geometry: Geometry,
    /// The weight in panels: [taps, outputs] forward, [outputs, taps] for the input's gradient.
    weight: Vec<T>,
}

/// Buffers that serve one group after the other.
#[derive(Default)]
pub(super) struct Buffers<T> {
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

    /// Visits each run of pixels that one row of a window reads: `visit(window index, image index, length)`.
    fn walk(&self, images: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let Geometry { height, width, channels, kernel_height, kernel_width, rows, columns, convolution, .. } = self.geometry;
        let Convolution { stride, padding } = convolution;
        let taps = self.geometry.taps();
        for position in 0..images * rows * columns {
            let (image, row, column) = (position / (rows * columns), position / columns % rows, position % columns);
            let left = (column * stride).saturating_sub(padding);
            let right = (column * stride + kernel_width).saturating_sub(padding).min(width);
            if right <= left {
                continue;
            }
            let first_tap = left + padding - column * stride;
            for kernel_row in 0..kernel_height {
                let Some(pixel_row) = (row * stride + kernel_row).checked_sub(padding).filter(|&row| row < height) else { continue };
                let window = position * taps + (kernel_row * kernel_width + first_tap) * channels;
                visit(window, ((image * height + pixel_row) * width + left) * channels, (right - left) * channels);
            }
        }
    }

    fn reaches_into_padding(&self, position: usize) -> bool {
        let Geometry { height, width, kernel_height, kernel_width, rows, columns, convolution, .. } = self.geometry;
        let Convolution { stride, padding } = convolution;
        let (top, left) = (position / columns % rows * stride, position % columns * stride);
        top < padding || left < padding || top + kernel_height > height + padding || left + kernel_width > width + padding
    }

    /// The windows of some images, [images · positions, taps].
    fn windows<'a>(&self, input: &'a [T], buffer: &'a mut Vec<T>) -> &'a [T] {
        if self.is_pointwise() {
            return input;
        }
        let (images, taps) = (input.len() / self.geometry.image(), self.geometry.taps());
        let windows = sized(buffer, images * self.geometry.positions() * taps);
        for (position, window) in windows.chunks_exact_mut(taps).enumerate() {
            if self.reaches_into_padding(position) {
                window.fill(T::default());
            }
        }
        self.walk(images, |window, pixel, length| {
            windows[window..window + length].copy_from_slice(&input[pixel..pixel + length]);
        });
        windows
    }

    /// The sum of the windows' gradients at the pixels that they were read from.
    fn fold(&self, windows: &[T], input: &mut [T]) {
        input.fill(T::default());
        self.walk(input.len() / self.geometry.image(), |window, pixel, length| {
            input[pixel..pixel + length].iter_mut().zip(&windows[window..window + length]).for_each(|(pixel, &value)| *pixel += value);
        });
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
        let (taps, outputs) = (self.geometry.taps(), self.geometry.outputs);
        let windows = self.windows(input, &mut scratch.windows);
        multiply(Matrix::new(windows, output.len() / outputs, taps), Panels::new(&self.weight, taps, outputs), output, false);
    }

    fn backward(&self, input: &[T], gradient: &[T], gradients: Gradients<&mut [T]>, Scratch { unfold: scratch, .. }: &mut Scratch<T>) {
        let (taps, outputs) = (self.geometry.taps(), self.geometry.outputs);
        let rows = gradient.len() / outputs;
        let gradient = Matrix::new(gradient, rows, outputs);
        if let Some(input_gradient) = gradients.input {
            let weight = Panels::new(&self.weight, outputs, taps);
            if self.is_pointwise() {
                multiply(gradient, weight, input_gradient, false);
            } else {
                let window_gradient = sized(&mut scratch.window_gradient, rows * taps);
                multiply(gradient, weight, window_gradient, false);
                self.fold(window_gradient, input_gradient);
            }
        }
        if let Some(weight_gradient) = gradients.weight {
            let windows = self.windows(input, &mut scratch.windows);
            let gradient = Panels::lay_out(gradient, &mut scratch.panels);
            multiply(Matrix::new(windows, rows, taps).transposed(), gradient, weight_gradient, true);
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
