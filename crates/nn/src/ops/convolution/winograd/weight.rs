//! The weight of a convolution on its way to the transformed domain, and its gradient on the way back.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::maps::{weight, weight_adjoint};
use crate::matrix::Panels;
use crate::vector::{Lanes, Real, WIDEST, in_lanes};

/// Output channels of one task of [`gradient`].
const OUTPUTS_PER_TASK: usize = WIDEST;

/// `G w Gᵀ` of 3 x 3 weights that lie `row_stride` and `column_stride` apart, as panels: [panels, SIDE², inner, WIDTH].
pub(super) fn transformed<T: Real, const SIDE: usize>(weights: &[T], [inner, columns]: [usize; 2], strides: [usize; 2]) -> Vec<T> {
    let width = Panels::<T>::WIDTH;
    let mut result = vec![T::default(); SIDE * SIDE * Panels::<T>::size(inner, columns)];
    result.par_chunks_mut(SIDE * SIDE * inner * width).enumerate().for_each(|(panel, result)| {
        let columns = panel * width..columns.min((panel + 1) * width);
        Arch::new().dispatch(Panel::<T, SIDE> { weights, inner, columns, strides, result });
    });
    result
}

/// One panel of a transformed weight.
struct Panel<'a, T, const SIDE: usize> {
    weights: &'a [T],
    inner: usize,
    /// Columns of the weight.
    columns: std::ops::Range<usize>,
    strides: [usize; 2],
    /// [SIDE², inner, WIDTH]
    result: &'a mut [T],
}

impl<T: Real, const SIDE: usize> WithSimd for Panel<'_, T, SIDE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weights, inner, columns, strides: [row_stride, column_stride], result } = self;
        for row in 0..inner {
            in_lanes::<S, T>(
                columns.len(),
                #[inline(always)]
                |first, lanes| {
                    let mut taps = [[[T::default(); WIDEST]; 3]; 3];
                    let from = row * row_stride + (columns.start + first) * column_stride;
                    for (lane, weight) in weights[from..].chunks(column_stride).enumerate().take(lanes) {
                        for (tap, value) in weight[..9].iter().enumerate() {
                            taps[tap / 3][tap % 3][lane] = *value;
                        }
                    }
                    let mut half = [[Lanes::zero(simd); 3]; SIDE];
                    for j in 0..3 {
                        let mut column = [Lanes::zero(simd); 3];
                        for i in 0..3 {
                            column[i] = Lanes::load(simd, &taps[i][j][..Lanes::<S, T>::COUNT]);
                        }
                        let column: [_; SIDE] = weight(column);
                        for i in 0..SIDE {
                            half[i][j] = column[i];
                        }
                    }
                    for (i, half) in half.iter().enumerate() {
                        let values: [_; SIDE] = weight(*half);
                        for (j, value) in values.iter().enumerate() {
                            let at = ((i * SIDE + j) * inner + row) * Panels::<T>::WIDTH + first;
                            value.store(&mut result[at..][..lanes]);
                        }
                    }
                },
            );
        }
    }
}

/// `Gᵀ u G` of gradients `u`, for each of a tile's values [C, O], as [O, C, 3, 3].
pub(super) fn gradient<T: Real, const SIDE: usize>(transformed: &[&[T]], [channels, outputs]: [usize; 2]) -> Vec<T> {
    let mut result = vec![T::default(); outputs * channels * 9];
    result.par_chunks_mut(OUTPUTS_PER_TASK * channels * 9).enumerate().for_each(|(task, result)| {
        Arch::new().dispatch(Outputs::<T, SIDE> { transformed, channels, outputs, first: task * OUTPUTS_PER_TASK, result });
    });
    result
}

/// The gradient of the weight of some outputs.
struct Outputs<'a, T, const SIDE: usize> {
    transformed: &'a [&'a [T]],
    channels: usize,
    outputs: usize,
    first: usize,
    /// [.., C, 3, 3]
    result: &'a mut [T],
}

impl<T: Real, const SIDE: usize> WithSimd for Outputs<'_, T, SIDE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { transformed, channels, outputs, first, result } = self;
        for channel in 0..channels {
            in_lanes::<S, T>(
                result.len() / (channels * 9),
                #[inline(always)]
                |output, lanes| {
                    let at = channel * outputs + first + output;
                    let mut half = [[Lanes::zero(simd); SIDE]; 3];
                    for j in 0..SIDE {
                        let mut column = [Lanes::zero(simd); SIDE];
                        for i in 0..SIDE {
                            column[i] = Lanes::load(simd, &transformed[i * SIDE + j][at..][..lanes]);
                        }
                        let column = weight_adjoint(column);
                        for i in 0..3 {
                            half[i][j] = column[i];
                        }
                    }
                    for (i, half) in half.iter().enumerate() {
                        for (j, taps) in weight_adjoint(*half).into_iter().enumerate() {
                            let mut of_outputs = [T::default(); WIDEST];
                            taps.store(&mut of_outputs[..Lanes::<S, T>::COUNT]);
                            for (lane, tap) in of_outputs.iter().enumerate().take(lanes) {
                                result[((output + lane) * channels + channel) * 9 + 3 * i + j] = *tap;
                            }
                        }
                    }
                },
            );
        }
    }
}
