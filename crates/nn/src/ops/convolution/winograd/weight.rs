//! The weight of a convolution on its way to the transformed domain, and its gradient on the way back.

use rayon::prelude::*;

use super::LANES;
use super::maps::{load, store, weight, weight_adjoint};
use crate::matrix::{Panels, Real, vectorised};

/// Output channels of one task of [`gradient`].
const OUTPUTS_PER_TASK: usize = 2 * LANES;

/// `G w Gᵀ` of 3 x 3 weights that lie `row_stride` and `column_stride` apart, as panels: [panels, SIDE², inner, WIDTH].
pub(super) fn transformed<T: Real, const SIDE: usize>(
    weights: &[T],
    [inner, columns]: [usize; 2],
    [row_stride, column_stride]: [usize; 2],
) -> Vec<T> {
    let width = Panels::<T>::WIDTH;
    let mut result = vec![T::default(); SIDE * SIDE * Panels::<T>::size(inner, columns)];
    result.par_chunks_mut(SIDE * SIDE * inner * width).enumerate().for_each(|(panel, result)| {
        vectorised(
            #[inline(always)]
            || {
                for row in 0..inner {
                    for first in (0..width).step_by(LANES) {
                        let mut taps = [[[T::default(); LANES]; 3]; 3];
                        let lanes = LANES.min(columns.saturating_sub(panel * width + first));
                        let from = row * row_stride + (panel * width + first) * column_stride;
                        let weights = weights[from.min(weights.len())..].chunks(column_stride);
                        for (lane, weight) in weights.enumerate().take(lanes) {
                            for (tap, value) in weight[..9].iter().enumerate() {
                                taps[tap % 3][tap / 3][lane] = *value;
                            }
                        }
                        // `taps` is transposed so far: the columns of the weight come first.
                        let mut half = [[[T::default(); LANES]; 3]; SIDE];
                        for (j, taps) in taps.iter().enumerate() {
                            let column: [_; SIDE] = weight(*taps);
                            for i in 0..SIDE {
                                half[i][j] = column[i];
                            }
                        }
                        for (i, half) in half.iter().enumerate() {
                            let values: [_; SIDE] = weight(*half);
                            for (j, value) in values.iter().enumerate() {
                                store(result, ((i * SIDE + j) * inner + row) * width + first, value);
                            }
                        }
                    }
                }
            },
        );
    });
    result
}

/// `Gᵀ u G` of gradients `u`, for each of a tile's values [C, O], as [O, C, 3, 3].
pub(super) fn gradient<T: Real, const SIDE: usize>(transformed: &[&[T]], [channels, outputs]: [usize; 2]) -> Vec<T> {
    let mut result = vec![T::default(); outputs * channels * 9];
    result.par_chunks_mut(OUTPUTS_PER_TASK * channels * 9).enumerate().for_each(|(task, result)| {
        vectorised(
            #[inline(always)]
            || {
                let (from, count) = (task * OUTPUTS_PER_TASK, result.len() / (channels * 9));
                for channel in 0..channels {
                    in_lanes!(count, output, L => {
                        let at = channel * outputs + from + output;
                        let mut half = [[[T::default(); L]; SIDE]; 3];
                        for j in 0..SIDE {
                            let mut column = [[T::default(); L]; SIDE];
                            for i in 0..SIDE {
                                column[i] = load(transformed[i * SIDE + j], at);
                            }
                            let column = weight_adjoint(column);
                            for i in 0..3 {
                                half[i][j] = column[i];
                            }
                        }
                        for (i, half) in half.iter().enumerate() {
                            for (j, taps) in weight_adjoint(*half).iter().enumerate() {
                                for (lane, tap) in taps.iter().enumerate() {
                                    result[((output + lane) * channels + channel) * 9 + 3 * i + j] = *tap;
                                }
                            }
                        }
                    });
                }
            },
        );
    });
    result
}
