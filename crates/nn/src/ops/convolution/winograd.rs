//! Convolution of 3 x 3 windows, one pixel apart, by Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308).
//!
//! The image is cut into tiles of `SIDE` x `SIDE` pixels that overlap by two; each gives `SIDE - 2` squared results. In the transformed domain a
//! result takes one product per tile value, instead of nine per result: 2.25 times fewer for tiles of 4, 4 times fewer for tiles of 6. All three
//! products of a convolution are done there; the gradients are the exact adjoints of `result = Aᵀ [(G w Gᵀ) · (Bᵀ x B)] A`.
//!
//! Tiles of 6 evaluate at 0, ±1/√2, ±√2 and ∞, which loses fewer digits than the usual 0, ±1, ±2 and ∞.

use rayon::prelude::*;

use super::geometry::{Convolution, Geometry};
use super::{Purpose, sized};
use crate::matrix::{Matrix, Panels, Real, multiply, vectorised};

/// Tiles of a group where there are many, which keeps it in the cache.
const TILES: usize = 48;
/// Groups to have even if these are smaller, and the tiles that make a group worth it.
const GROUPS: usize = 8;
const FEWEST_TILES: usize = 16;
/// Values of a panel's row, and the most values of a tile.
const LINE: usize = Panels::<f32>::WIDTH;
const MOST_VALUES: usize = 36;
/// Channels that are transformed together.
const LANES: usize = 8;

pub(super) struct Winograd<T, const SIDE: usize> {
    geometry: Geometry,
    /// The transformed weight, for each of the tile's values in panels: [channels, outputs] forward, [outputs, channels] for the input's gradient.
    weight: Vec<T>,
}

/// Buffers that serve one group after the other.
#[derive(Default)]
pub(super) struct Scratch<T> {
    /// Transformed input: for each of the tile's values [tiles, channels], [`stride`] apart.
    input: Vec<T>,
    /// Transformed result or its gradient: for each of the tile's values [tiles, outputs], [`stride`] apart.
    output: Vec<T>,
    panels: Vec<T>,
}

/// From one of a tile's values to the next: a little more than there are, since at a distance of a power of two all of them would fall into the
/// same few places of the cache.
fn stride(tiles: usize, channels: usize) -> usize {
    tiles * channels + LINE
}

/// Some channels of one value of a tile.
type Lanes<T, const L: usize> = [T; L];
/// The values of a tile, row by row.
type Tile<T, const L: usize, const SIDE: usize> = [[Lanes<T, L>; SIDE]; SIDE];

/// Runs the body for some channels at a time, `$channel` being the first and `$lanes` their number.
macro_rules! in_lanes {
    ($count:expr, $channel:ident, $lanes:ident => $body:block) => {{
        let mut $channel = 0;
        while $channel + LANES <= $count {
            const $lanes: usize = LANES;
            $body
            $channel += LANES;
        }
        while $channel < $count {
            const $lanes: usize = 1;
            $body
            $channel += 1;
        }
    }};
}

/// A linear map applied to the columns of a tile and then to its rows.
macro_rules! both_ways {
    ($tile:expr, $map:ident) => {{
        let mut tile = $tile;
        for j in 0..SIDE {
            let mut column = [[T::default(); L]; SIDE];
            for i in 0..SIDE {
                column[i] = tile[i][j];
            }
            column = $map(column);
            for i in 0..SIDE {
                tile[i][j] = column[i];
            }
        }
        for row in &mut tile {
            *row = $map(*row);
        }
        tile
    }};
}

impl<T: Real, const SIDE: usize> Winograd<T, SIDE> {
    const OUTPUTS: usize = SIDE - 2;
    const VALUES: usize = SIDE * SIDE;

    pub(super) fn fits(geometry: &Geometry) -> bool {
        (geometry.kernel_height, geometry.kernel_width, geometry.convolution.stride) == (3, 3, 1)
    }

    /// `weight` is [O, C, 3, 3].
    pub(super) fn new(geometry: Geometry, weight: &[T], purpose: Purpose) -> Self {
        let Geometry { channels, outputs, .. } = geometry;
        let weight = match purpose {
            Purpose::Forward => Self::transformed_weight(weight, [channels, outputs], [9, 9 * channels]),
            Purpose::InputGradient => Self::transformed_weight(weight, [outputs, channels], [9 * channels, 9]),
            Purpose::WeightGradient => Vec::new(),
        };
        Self { geometry, weight }
    }

    /// `G w Gᵀ` of the 3 x 3 weights that lie `strides` apart, for each of its values in panels.
    fn transformed_weight(weight: &[T], [inner, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> Vec<T> {
        let (size, width) = (Panels::<T>::size(inner, columns), Panels::<T>::WIDTH);
        let factors = weight_factors::<SIDE>().map(|row| row.map(T::from_f64));
        // By panel first, so that each weight is read once; then every value's panels are put together.
        let panels: Vec<Vec<T>> = (0..columns.div_ceil(width))
            .into_par_iter()
            .map(|panel| {
                let mut transformed = vec![T::default(); Self::VALUES * inner * width];
                let mut lines = [[T::default(); LINE]; MOST_VALUES];
                for row in 0..inner {
                    for lane in 0..width.min(columns - panel * width) {
                        let start = row * row_stride + (panel * width + lane) * column_stride;
                        let weight = &weight[start..start + 9];
                        let mut half = [[T::default(); 3]; SIDE];
                        for (half, factors) in half.iter_mut().zip(&factors) {
                            for (j, half) in half.iter_mut().enumerate() {
                                *half = factors[0] * weight[j] + factors[1] * weight[3 + j] + factors[2] * weight[6 + j];
                            }
                        }
                        for (value, line) in lines.iter_mut().enumerate().take(Self::VALUES) {
                            let (half, factors) = (half[value / SIDE], factors[value % SIDE]);
                            line[lane] = factors[0] * half[0] + factors[1] * half[1] + factors[2] * half[2];
                        }
                    }
                    for (value, line) in lines.iter().enumerate().take(Self::VALUES) {
                        transformed[(value * inner + row) * width..][..width].copy_from_slice(line);
                    }
                }
                transformed
            })
            .collect();
        let mut result = vec![T::default(); Self::VALUES * size];
        result.par_chunks_mut(size).enumerate().for_each(|(value, result)| {
            for (result, panel) in result.chunks_exact_mut(inner * width).zip(&panels) {
                result.copy_from_slice(&panel[value * inner * width..][..inner * width]);
            }
        });
        result
    }

    /// Images of a group where all of it is done by one thread.
    pub(super) fn images_in_cache(geometry: &Geometry) -> usize {
        TILES.div_ceil(Self::tiles_of_image(geometry))
    }

    pub(super) fn images_per_group(geometry: &Geometry) -> usize {
        let tiles = Self::tiles_of_image(geometry);
        (tiles * geometry.count / GROUPS).clamp(FEWEST_TILES, TILES).div_ceil(tiles).clamp(1, geometry.count.max(1))
    }

    pub(super) fn weight_gradient_size(geometry: &Geometry) -> usize {
        Self::VALUES * geometry.channels * geometry.outputs
    }

    fn tiles_of_image(geometry: &Geometry) -> usize {
        geometry.rows.div_ceil(Self::OUTPUTS) * geometry.columns.div_ceil(Self::OUTPUTS)
    }

    pub(super) fn forward(&self, input: &[T], output: &mut [T], scratch: &mut Scratch<T>) {
        let Geometry { channels, outputs, .. } = self.geometry;
        let tiles = self.tiles(output);
        let (of_input, of_output) = (stride(tiles, channels), stride(tiles, outputs));
        let transformed = sized(&mut scratch.input, Self::VALUES * of_input);
        vectorised(
            #[inline(always)]
            || self.transform_input(input, transformed),
        );
        let result = sized(&mut scratch.output, Self::VALUES * of_output);
        let products = transformed.chunks_exact(of_input).zip(result.chunks_exact_mut(of_output));
        for ((values, result), weight) in products.zip(self.weight_of_each_value()) {
            let values = Matrix::new(&values[..tiles * channels], tiles, channels);
            multiply(values, Panels::new(weight, channels, outputs), &mut result[..tiles * outputs], false);
        }
        vectorised(
            #[inline(always)]
            || self.transform_output(result, output),
        );
    }

    pub(super) fn backward(
        &self,
        input: &[T],
        gradient: &[T],
        input_gradient: Option<&mut [T]>,
        weight_gradient: Option<&mut [T]>,
        scratch: &mut Scratch<T>,
    ) {
        let Geometry { channels, outputs, .. } = self.geometry;
        let tiles = self.tiles(gradient);
        let (of_input, of_output) = (stride(tiles, channels), stride(tiles, outputs));
        let transformed = sized(&mut scratch.output, Self::VALUES * of_output);
        vectorised(
            #[inline(always)]
            || self.transform_gradient(gradient, transformed),
        );
        let gradients = transformed.chunks_exact(of_output).map(|values| Matrix::new(&values[..tiles * outputs], tiles, outputs));
        let values = sized(&mut scratch.input, Self::VALUES * of_input);
        if let Some(input_gradient) = input_gradient {
            let products = gradients.clone().zip(values.chunks_exact_mut(of_input));
            for ((gradient, result), weight) in products.zip(self.weight_of_each_value()) {
                multiply(gradient, Panels::new(weight, outputs, channels), &mut result[..tiles * channels], false);
            }
            vectorised(
                #[inline(always)]
                || self.transform_back(values, input_gradient),
            );
        }
        if let Some(weight_gradient) = weight_gradient {
            vectorised(
                #[inline(always)]
                || self.transform_input(input, values),
            );
            let products = values.chunks_exact(of_input).zip(gradients);
            for ((values, gradient), sum) in products.zip(weight_gradient.chunks_exact_mut(channels * outputs)) {
                let values = Matrix::new(&values[..tiles * channels], tiles, channels);
                multiply(values.transposed(), Panels::lay_out(gradient, &mut scratch.panels), sum, true);
            }
        }
    }

    fn weight_of_each_value(&self) -> std::slice::ChunksExact<'_, T> {
        self.weight.chunks_exact(self.weight.len() / Self::VALUES)
    }

    /// `Gᵀ u G` of the sum of all groups' gradients [SIDE², C, O] as [O, C, 3, 3].
    pub(super) fn finish_weight_gradient(&self, sum: &[T]) -> Vec<T> {
        let Geometry { channels, outputs, .. } = self.geometry;
        let factors = weight_factors::<SIDE>();
        let by_channel: Vec<Vec<T>> = (0..channels)
            .into_par_iter()
            .map(|channel| {
                let mut taps = vec![T::default(); 9 * outputs];
                for (tap, taps) in taps.chunks_exact_mut(outputs).enumerate() {
                    for value in 0..Self::VALUES {
                        let factor = factors[value / SIDE][tap / 3] * factors[value % SIDE][tap % 3];
                        if factor == 0.0 {
                            continue;
                        }
                        let factor = T::from_f64(factor);
                        let values = &sum[(value * channels + channel) * outputs..][..outputs];
                        taps.iter_mut().zip(values).for_each(|(sum, &value)| *sum += factor * value);
                    }
                }
                taps
            })
            .collect();
        let mut result = vec![T::default(); outputs * channels * 9];
        result.par_chunks_mut(LINE * channels * 9).enumerate().for_each(|(block, result)| {
            let count = result.len() / (channels * 9);
            for (channel, by_tap) in by_channel.iter().enumerate() {
                for (tap, values) in by_tap.chunks_exact(outputs).enumerate() {
                    let targets = result[channel * 9 + tap..].iter_mut().step_by(channels * 9);
                    targets.zip(&values[block * LINE..][..count]).for_each(|(target, &value)| *target = value);
                }
            }
        });
        result
    }

    /// Tiles of the images whose result, or its gradient, is given.
    fn tiles(&self, output: &[T]) -> usize {
        output.len() / self.geometry.output_image() * Self::tiles_of_image(&self.geometry)
    }

    /// Calls `visit(tile, image, row, column)` for each tile of some images, with the row and column of its first result.
    #[inline(always)]
    fn for_each_tile(&self, images: usize, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let mut tile = 0;
        for image in 0..images {
            for row in (0..self.geometry.rows).step_by(Self::OUTPUTS) {
                for column in (0..self.geometry.columns).step_by(Self::OUTPUTS) {
                    visit(tile, image, row, column);
                    tile += 1;
                }
            }
        }
    }

    /// Where each pixel of a tile lies among the values of its images; `None` for the padding.
    #[inline(always)]
    fn pixels(&self, image: usize, row: usize, column: usize) -> [[Option<usize>; SIDE]; SIDE] {
        let Geometry { height, width, channels, convolution: Convolution { padding, .. }, .. } = self.geometry;
        let mut pixels = [[None; SIDE]; SIDE];
        for (i, pixels) in pixels.iter_mut().enumerate() {
            for (j, pixel) in pixels.iter_mut().enumerate() {
                let (y, x) = ((row + i).wrapping_sub(padding), (column + j).wrapping_sub(padding));
                if y < height && x < width {
                    *pixel = Some(((image * height + y) * width + x) * channels);
                }
            }
        }
        pixels
    }

    /// `Bᵀ x B` of each tile.
    #[inline(always)]
    fn transform_input(&self, input: &[T], result: &mut [T]) {
        let (channels, images) = (self.geometry.channels, input.len() / self.geometry.image());
        let tiles = images * Self::tiles_of_image(&self.geometry);
        self.for_each_tile(
            images,
            #[inline(always)]
            |tile, image, row, column| {
                let pixels = self.pixels(image, row, column);
                in_lanes!(channels, channel, L => {
                    let mut values: Tile<T, L, SIDE> = [[[T::default(); L]; SIDE]; SIDE];
                    for (values, pixels) in values.iter_mut().zip(&pixels) {
                        for (value, pixel) in values.iter_mut().zip(pixels) {
                            if let Some(at) = pixel {
                                *value = load(input, at + channel);
                            }
                        }
                    }
                    store_tile(&both_ways!(values, data), result, stride(tiles, channels), tile * channels + channel);
                });
            },
        );
    }

    /// `Aᵀ m A` of each tile.
    #[inline(always)]
    fn transform_output(&self, transformed: &[T], output: &mut [T]) {
        let Geometry { outputs, rows, columns, .. } = self.geometry;
        let (images, tiles) = (output.len() / self.geometry.output_image(), self.tiles(output));
        self.for_each_tile(
            images,
            #[inline(always)]
            |tile, image, row, column| {
                in_lanes!(outputs, channel, L => {
                    let values: Tile<T, L, SIDE> = load_tile(transformed, stride(tiles, outputs), tile * outputs + channel);
                    let results = both_ways!(values, results);
                    for (i, results) in results.iter().enumerate().take(Self::OUTPUTS) {
                        for (j, result) in results.iter().enumerate().take(Self::OUTPUTS) {
                            if row + i < rows && column + j < columns {
                                store(output, ((image * rows + row + i) * columns + column + j) * outputs + channel, result);
                            }
                        }
                    }
                });
            },
        );
    }

    /// `A g Aᵀ` of each tile.
    #[inline(always)]
    fn transform_gradient(&self, gradient: &[T], result: &mut [T]) {
        let Geometry { outputs, rows, columns, .. } = self.geometry;
        let (images, tiles) = (gradient.len() / self.geometry.output_image(), self.tiles(gradient));
        self.for_each_tile(
            images,
            #[inline(always)]
            |tile, image, row, column| {
                in_lanes!(outputs, channel, L => {
                    let mut values: Tile<T, L, SIDE> = [[[T::default(); L]; SIDE]; SIDE];
                    for (i, values) in values.iter_mut().enumerate().take(Self::OUTPUTS) {
                        for (j, value) in values.iter_mut().enumerate().take(Self::OUTPUTS) {
                            if row + i < rows && column + j < columns {
                                *value = load(gradient, ((image * rows + row + i) * columns + column + j) * outputs + channel);
                            }
                        }
                    }
                    store_tile(&both_ways!(values, results_adjoint), result, stride(tiles, outputs), tile * outputs + channel);
                });
            },
        );
    }

    /// The sum of `B d Bᵀ` of each tile at the pixels that the tile was read from.
    #[inline(always)]
    fn transform_back(&self, transformed: &[T], input_gradient: &mut [T]) {
        let channels = self.geometry.channels;
        let images = input_gradient.len() / self.geometry.image();
        let tiles = images * Self::tiles_of_image(&self.geometry);
        input_gradient.fill(T::default());
        self.for_each_tile(
            images,
            #[inline(always)]
            |tile, image, row, column| {
                let pixels = self.pixels(image, row, column);
                in_lanes!(channels, channel, L => {
                    let values: Tile<T, L, SIDE> = load_tile(transformed, stride(tiles, channels), tile * channels + channel);
                    let values = both_ways!(values, data_adjoint);
                    for (pixels, values) in pixels.iter().zip(&values) {
                        for (pixel, value) in pixels.iter().zip(values) {
                            if let Some(at) = pixel {
                                let sum = add(load(input_gradient, at + channel), *value);
                                store(input_gradient, at + channel, &sum);
                            }
                        }
                    }
                });
            },
        );
    }
}

// What follows must be inlined into a function that is compiled for the processor's vectors, so it is written in loops: closures and the
// functions of arrays are not always.

#[inline(always)]
fn load<T: Real, const L: usize>(values: &[T], at: usize) -> Lanes<T, L> {
    let mut lanes = [T::default(); L];
    lanes.copy_from_slice(&values[at..at + L]);
    lanes
}

#[inline(always)]
fn store<T: Real, const L: usize>(values: &mut [T], at: usize, lanes: &Lanes<T, L>) {
    values[at..at + L].copy_from_slice(lanes);
}

#[inline(always)]
fn load_tile<T: Real, const L: usize, const SIDE: usize>(values: &[T], stride: usize, at: usize) -> Tile<T, L, SIDE> {
    let mut tile = [[[T::default(); L]; SIDE]; SIDE];
    for (i, row) in tile.iter_mut().enumerate() {
        for (j, lanes) in row.iter_mut().enumerate() {
            *lanes = load(values, (i * SIDE + j) * stride + at);
        }
    }
    tile
}

#[inline(always)]
fn store_tile<T: Real, const L: usize, const SIDE: usize>(tile: &Tile<T, L, SIDE>, values: &mut [T], stride: usize, at: usize) {
    for (i, row) in tile.iter().enumerate() {
        for (j, lanes) in row.iter().enumerate() {
            store(values, (i * SIDE + j) * stride + at, lanes);
        }
    }
}

#[inline(always)]
fn add<T: Real, const L: usize>(mut left: Lanes<T, L>, right: Lanes<T, L>) -> Lanes<T, L> {
    for lane in 0..L {
        left[lane] += right[lane];
    }
    left
}

#[inline(always)]
fn sub<T: Real, const L: usize>(mut left: Lanes<T, L>, right: Lanes<T, L>) -> Lanes<T, L> {
    for lane in 0..L {
        left[lane] -= right[lane];
    }
    left
}

/// `values · factor + term`.
#[inline(always)]
fn scaled<T: Real, const L: usize>(mut values: Lanes<T, L>, factor: f64, term: Lanes<T, L>) -> Lanes<T, L> {
    let factor = T::from_f64(factor);
    for lane in 0..L {
        values[lane] = values[lane].times_plus(factor, term[lane]);
    }
    values
}

/// The points at which tiles of 6 evaluate: 0, ±`NEAR`, ±`FAR`, ∞. Their squares are 1/2 and 2.
const NEAR: f64 = std::f64::consts::FRAC_1_SQRT_2;
const FAR: f64 = std::f64::consts::SQRT_2;

/// `Bᵀ x`, from pixels to the transformed domain.
#[inline(always)]
fn data<T: Real, const L: usize, const SIDE: usize>(x: [Lanes<T, L>; SIDE]) -> [Lanes<T, L>; SIDE] {
    let mut y = x;
    if SIDE == 4 {
        y[0] = sub(x[0], x[2]);
        y[1] = add(x[1], x[2]);
        y[2] = sub(x[2], x[1]);
        y[3] = sub(x[1], x[3]);
    } else {
        let (even, odd) = (scaled(x[2], -2.0, x[4]), scaled(x[1], -2.0, x[3]));
        y[0] = scaled(x[2], -2.5, add(x[0], x[4]));
        y[1] = scaled(odd, NEAR, even);
        y[2] = scaled(odd, -NEAR, even);
        let (even, odd) = (scaled(x[2], -0.5, x[4]), scaled(x[1], -0.5, x[3]));
        y[3] = scaled(odd, FAR, even);
        y[4] = scaled(odd, -FAR, even);
        y[5] = scaled(x[3], -2.5, add(x[1], x[5]));
    }
    y
}

/// `B y`, its adjoint.
#[inline(always)]
fn data_adjoint<T: Real, const L: usize, const SIDE: usize>(y: [Lanes<T, L>; SIDE]) -> [Lanes<T, L>; SIDE] {
    let mut x = y;
    if SIDE == 4 {
        x[1] = add(sub(y[1], y[2]), y[3]);
        x[2] = sub(add(y[1], y[2]), y[0]);
        x[3] = sub([T::default(); L], y[3]);
    } else {
        let (near, far) = (add(y[1], y[2]), add(y[3], y[4]));
        let (near_odd, far_odd) = (sub(y[1], y[2]), sub(y[3], y[4]));
        x[1] = scaled(near_odd, -2.0 * NEAR, scaled(far_odd, -0.5 * FAR, y[5]));
        x[2] = scaled(y[0], -2.5, scaled(near, -2.0, scaled(far, -0.5, [T::default(); L])));
        x[3] = scaled(near_odd, NEAR, scaled(far_odd, FAR, scaled(y[5], -2.5, [T::default(); L])));
        x[4] = add(y[0], add(near, far));
    }
    x
}

/// `Aᵀ y`, from the transformed domain to the first `SIDE - 2` results; the others are not used.
#[inline(always)]
fn results<T: Real, const L: usize, const SIDE: usize>(y: [Lanes<T, L>; SIDE]) -> [Lanes<T, L>; SIDE] {
    let mut x = y;
    if SIDE == 4 {
        x[0] = add(y[0], add(y[1], y[2]));
        x[1] = sub(sub(y[1], y[2]), y[3]);
    } else {
        let (near, far) = (add(y[1], y[2]), add(y[3], y[4]));
        let (near_odd, far_odd) = (sub(y[1], y[2]), sub(y[3], y[4]));
        x[0] = add(y[0], add(near, far));
        x[1] = scaled(near_odd, NEAR, scaled(far_odd, FAR, [T::default(); L]));
        x[2] = scaled(near, 0.5, add(far, far));
        x[3] = scaled(near_odd, 0.5 * NEAR, scaled(far_odd, 2.0 * FAR, y[5]));
    }
    x
}

/// `A x`, its adjoint: only the first `SIDE - 2` values are read.
#[inline(always)]
fn results_adjoint<T: Real, const L: usize, const SIDE: usize>(x: [Lanes<T, L>; SIDE]) -> [Lanes<T, L>; SIDE] {
    let mut y = x;
    if SIDE == 4 {
        y[1] = add(x[0], x[1]);
        y[2] = sub(x[0], x[1]);
        y[3] = sub([T::default(); L], x[1]);
    } else {
        let (even, odd) = (scaled(x[2], 0.5, x[0]), scaled(x[3], 0.5, x[1]));
        y[1] = scaled(odd, NEAR, even);
        y[2] = scaled(odd, -NEAR, even);
        let (even, odd) = (scaled(x[2], 2.0, x[0]), scaled(x[3], 2.0, x[1]));
        y[3] = scaled(odd, FAR, even);
        y[4] = scaled(odd, -FAR, even);
        y[5] = x[3];
    }
    y
}

/// `G`, from the weight to the transformed domain.
fn weight_factors<const SIDE: usize>() -> [[f64; 3]; SIDE] {
    let mut factors = [[0.0; 3]; SIDE];
    if SIDE == 4 {
        factors.copy_from_slice(&[[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]]);
    } else {
        let (near, far) = (-2.0 / 3.0, 1.0 / 6.0);
        factors.copy_from_slice(&[
            [1.0, 0.0, 0.0],
            [near, near * NEAR, near * 0.5],
            [near, -near * NEAR, near * 0.5],
            [far, far * FAR, far * 2.0],
            [far, -far * FAR, far * 2.0],
            [0.0, 0.0, 1.0],
        ]);
    }
    factors
}
