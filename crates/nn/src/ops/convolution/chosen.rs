//! The gradient of the input of a pooled block with few input channels, such as the first one, whose input is an image.
//!
//! Of the convolution's result only the chosen pixel of each 2 x 2 window has a gradient. All that one window passes on lies in a patch of
//! 4 x 4 input pixels, which few channels let fit into registers: it is the sum over the outputs of `gradient · weight`, where the weight is
//! moved to where the choice is. That is a quarter of the products that the dense gradient takes, and nothing of its size is written down.

use pulp::{Arch, Simd, WithSimd};

use super::{Geometry, padded, sized};
use crate::vector::{Lanes, Real, WIDEST};

/// Rows and columns of a window's patch.
const SIDE: usize = 4;
/// Lines of a weight: its three rows between two of zeros.
const LINES: usize = 5;

pub(in crate::ops) struct Chosen<T> {
    geometry: Geometry,
    /// For each output `LINES` lines of the kernel's row between zeros, with the normalisation's factor: [O, LINES, line].
    weight: Vec<T>,
}

impl<T: Real> Chosen<T> {
    /// Whether a convolution that 2 x 2 windows are pooled from is one for this.
    pub(in crate::ops) fn fits(geometry: &Geometry) -> bool {
        (geometry.kernel_height, geometry.kernel_width, geometry.convolution.stride) == (3, 3, 1) && geometry.channels * SIDE <= WIDEST
    }

    /// `weight` is [O, C, 3, 3]; `factors` are what the gradient of each output is multiplied by.
    pub(in crate::ops) fn new(geometry: Geometry, weight: &[T], factors: impl Iterator<Item = T>) -> Self {
        let (channels, line) = (geometry.channels, line(&geometry));
        let mut lines = vec![T::default(); geometry.outputs * LINES * line];
        for ((lines, weight), factor) in lines.chunks_exact_mut(LINES * line).zip(weight.chunks_exact(9 * channels)).zip(factors) {
            for (channel, taps) in weight.chunks_exact(9).enumerate() {
                for (tap, value) in taps.iter().enumerate() {
                    lines[(1 + tap / 3) * line + (1 + tap % 3) * channels + channel] = *value * factor;
                }
            }
        }
        Self { geometry, weight: lines }
    }

    /// The gradient of some images by the choices that [`super::super::block::Tail::choose`] noted and the gradient of what was pooled, [.., O].
    pub(in crate::ops) fn backward(&self, choices: &[u8], gradient: &[T], input_gradient: &mut [T], buffer: &mut Vec<T>) {
        // A patch's row is written as whole vectors, over the end of the last one.
        let padded = sized(buffer, padded::size(&self.geometry) + WIDEST);
        let size = self.geometry.rows / 2 * (self.geometry.columns / 2) * self.geometry.outputs;
        let images = choices.chunks_exact(size).zip(gradient.chunks_exact(size));
        for (image, (choices, gradient)) in input_gradient.chunks_exact_mut(self.geometry.image()).zip(images) {
            padded.fill(T::default());
            Arch::new().dispatch(Image { chosen: self, choices, gradient, padded });
            padded::read(&self.geometry, padded, image);
        }
    }
}

/// Values from one line of a weight to the next: zeros, the kernel's row and zeros again, of which [`WIDEST`] can be read from either start.
fn line(geometry: &Geometry) -> usize {
    geometry.channels + WIDEST
}

struct Image<'a, T> {
    chosen: &'a Chosen<T>,
    choices: &'a [u8],
    gradient: &'a [T],
    padded: &'a mut [T],
}

impl<T: Real> WithSimd for Image<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match (self.chosen.geometry.channels * SIDE).div_ceil(Lanes::<S, T>::COUNT) {
            1 => self.patches::<S, 1>(simd),
            2 => self.patches::<S, 2>(simd),
            3 => self.patches::<S, 3>(simd),
            4 => self.patches::<S, 4>(simd),
            5..=8 => self.patches::<S, 8>(simd),
            _ => self.patches::<S, 16>(simd),
        }
    }
}

impl<T: Real> Image<'_, T> {
    /// `WIDTH` vectors make up a row of a patch.
    #[inline(always)]
    fn patches<S: Simd, const WIDTH: usize>(self, simd: S) {
        let Self { chosen: Chosen { geometry, weight }, choices, gradient, padded } = self;
        let (channels, outputs, line, row) = (geometry.channels, geometry.outputs, line(geometry), padded::row(geometry));
        let lanes = Lanes::<S, T>::COUNT;
        // The line and place from which the weight is read for each choice: one further up or left puts the weight one further down or right.
        // Without a choice there is no gradient.
        let starts = [0, line + channels, line, channels, 0];
        let across = geometry.columns / 2;
        let windows = choices.chunks_exact(outputs).zip(gradient.chunks_exact(outputs));
        for (window, (choices, gradient)) in windows.enumerate() {
            let mut patch = [[Lanes::<S, T>::zero(simd); WIDTH]; SIDE];
            for (weight, (&choice, &gradient)) in weight.chunks_exact(LINES * line).zip(choices.iter().zip(gradient)) {
                let gradient = Lanes::splat(simd, if choice > 0 { gradient } else { T::default() });
                let weight = &weight[starts[usize::from(choice)]..][..(SIDE - 1) * line + WIDTH * lanes];
                for (i, sums) in patch.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = gradient.times_plus(Lanes::load(simd, &weight[i * line + j * lanes..][..lanes]), *sum);
                    }
                }
            }
            let corner = window / across * 2 * row + window % across * 2 * channels;
            for (i, sums) in patch.into_iter().enumerate() {
                for (j, sum) in sums.into_iter().enumerate() {
                    let target = &mut padded[corner + i * row + j * lanes..][..lanes];
                    (Lanes::load(simd, target) + sum).store(target);
                }
            }
        }
    }
}
