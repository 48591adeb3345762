//! Convolution of 3 x 3 windows, one pixel apart, by Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308).
//!
//! The image is cut into tiles of `SIDE` x `SIDE` pixels that overlap by two; each gives `SIDE - 2` squared results. In the transformed domain a
//! result takes one product per tile value, instead of nine per result: 2.25 times fewer for tiles of 4, 4 times fewer for tiles of 6. All three
//! products of a convolution are done there; the gradients are the exact adjoints of `result = Aᵀ [(G w Gᵀ) · (Bᵀ x B)] A`.

mod by_value;
mod maps;
mod weight;

use std::ops::Range;

use maps::{both_ways, data, data_adjoint, results, results_adjoint};
use pulp::{Arch, Simd, WithSimd};

use super::geometry::Geometry;
use super::{ByValue, Gradients, Purpose, Scratch, Way, sized};
use crate::matrix::{Matrix, Panels, multiply};
use crate::ops::types::Convolution;
use crate::vector::{Lanes, Real, in_lanes};

/// Tiles of a group where there are many, which keeps it in the cache.
const TILES: usize = 48;
/// Groups to have even if these are smaller, and the tiles that make a group worth it.
const GROUPS: usize = 8;
const FEWEST_TILES: usize = 16;
/// Values of a panel's row.
const LINE: usize = Panels::<f32>::WIDTH;
/// Transformed values of one image that are kept at a time, more or less: larger images are worked on in bands of tiles.
const BAND: usize = 1 << 22;
/// Bytes of the transformed weight beyond which it is not fetched anew for each group.
const WEIGHT_IN_CACHE: usize = 3 << 20;

pub(super) struct Winograd<T, const SIDE: usize> {
    geometry: Geometry,
    /// The transformed weight in panels, [panels, SIDE², rows, WIDTH]; empty where only the weight's gradient is wanted.
    weight: Vec<T>,
    /// Rows and columns of the weight: [channels, outputs] forward, [outputs, channels] for the input's gradient.
    sides: [usize; 2],
}

/// Buffers that serve one group after the other.
#[derive(Default)]
pub(super) struct Buffers<T> {
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

/// From where to where some images are transformed.
#[derive(Clone, Copy)]
enum Step {
    /// `Bᵀ x B` of each tile of the input.
    Input,
    /// `Aᵀ m A`: the result.
    Output,
    /// `A g Aᵀ` of the result's gradient.
    Gradient,
    /// Adds `B d Bᵀ` of each tile to the pixels that the tile was read from: the input's gradient.
    Back,
}

/// Some lines of the tiles of each of some images.
#[derive(Clone)]
struct Tiles {
    images: usize,
    lines: Range<usize>,
    count: usize,
}

struct Transform<'a, T, const SIDE: usize> {
    way: &'a Winograd<T, SIDE>,
    step: Step,
    tiles: &'a Tiles,
    from: &'a [T],
    to: &'a mut [T],
}

impl<T: Real, const SIDE: usize> WithSimd for Transform<'_, T, SIDE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.step {
            Step::Input => self.way.transform_input(simd, self.tiles, self.from, self.to),
            Step::Output => self.way.transform_output(simd, self.tiles, self.from, self.to),
            Step::Gradient => self.way.transform_gradient(simd, self.tiles, self.from, self.to),
            Step::Back => self.way.transform_back(simd, self.tiles, self.from, self.to),
        }
    }
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
        let (sides, strides) = match purpose {
            Purpose::Forward => ([channels, outputs], [9, 9 * channels]),
            Purpose::InputGradient | Purpose::WeightGradient => ([outputs, channels], [9 * channels, 9]),
        };
        let weight = if purpose == Purpose::WeightGradient { Vec::new() } else { weight::transformed::<T, SIDE>(weight, sides, strides) };
        Self { geometry, weight, sides }
    }

    fn tiles_of_image(geometry: &Geometry) -> usize {
        geometry.rows.div_ceil(Self::OUTPUTS) * geometry.columns.div_ceil(Self::OUTPUTS)
    }

    /// The weight of one of a tile's values.
    fn weight_of(&self, value: usize) -> Panels<'_, T> {
        let [rows, columns] = self.sides;
        let panel = rows * Panels::<T>::WIDTH;
        Panels::apart(&self.weight[value * panel..], rows, columns, Self::VALUES * panel)
    }

    /// All tiles of some images.
    fn tiles(&self, images: usize) -> Tiles {
        self.tiles_of_lines(images, 0..self.geometry.rows.div_ceil(Self::OUTPUTS))
    }

    fn tiles_of_lines(&self, images: usize, lines: Range<usize>) -> Tiles {
        let across = self.geometry.columns.div_ceil(Self::OUTPUTS);
        Tiles { images, count: images * lines.len() * across, lines }
    }

    /// The same, a band after the other where one image is too large.
    fn bands(&self, images: usize) -> impl Iterator<Item = Tiles> {
        let Tiles { lines, .. } = self.tiles(images);
        let of_line = self.values_of_image().div_ceil(lines.len());
        let at_once = if images > 1 { lines.len() } else { (BAND / of_line).max(1) };
        lines.clone().step_by(at_once).map(move |start| self.tiles_of_lines(images, start..(start + at_once).min(lines.end)))
    }

    /// Transformed values of one image's input and result.
    fn values_of_image(&self) -> usize {
        Self::VALUES * Self::tiles_of_image(&self.geometry) * (self.geometry.channels + self.geometry.outputs)
    }

    /// Calls `visit(tile, image, row, column)` for each tile, with the row and column of its first result.
    #[inline(always)]
    fn for_each_tile(&self, tiles: &Tiles, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let (mut tile, rows) = (0, tiles.lines.start * Self::OUTPUTS..tiles.lines.end * Self::OUTPUTS);
        for image in 0..tiles.images {
            for row in rows.clone().step_by(Self::OUTPUTS) {
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

    /// Transforms some tiles. Of images and results, all of them are given.
    fn transform(&self, step: Step, tiles: &Tiles, from: &[T], to: &mut [T]) {
        Arch::new().dispatch(Transform { way: self, step, tiles, from, to });
    }

    #[inline(always)]
    fn transform_input<S: Simd>(&self, simd: S, tiles: &Tiles, input: &[T], result: &mut [T]) {
        let channels = self.geometry.channels;
        let stride = stride(tiles.count, channels);
        self.for_each_tile(
            tiles,
            #[inline(always)]
            |tile, image, row, column| {
                let pixels = self.pixels(image, row, column);
                in_lanes::<S, T>(
                    channels,
                    #[inline(always)]
                    |channel, lanes| {
                        let result = &mut result[tile * channels + channel..];
                        both_ways!(
                            simd, data, SIDE => SIDE,
                            (i, j) => match pixels[i][j] {
                                Some(at) => Lanes::load(simd, &input[at + channel..][..lanes]),
                                None => Lanes::zero(simd),
                            },
                            value => value.store(&mut result[(i * SIDE + j) * stride..][..lanes])
                        );
                    },
                );
            },
        );
    }

    #[inline(always)]
    fn transform_output<S: Simd>(&self, simd: S, tiles: &Tiles, transformed: &[T], output: &mut [T]) {
        let Geometry { outputs, rows, columns, .. } = self.geometry;
        let stride = stride(tiles.count, outputs);
        self.for_each_tile(
            tiles,
            #[inline(always)]
            |tile, image, row, column| {
                in_lanes::<S, T>(
                    outputs,
                    #[inline(always)]
                    |channel, lanes| {
                        let transformed = &transformed[tile * outputs + channel..];
                        both_ways!(
                            simd, results, SIDE => Self::OUTPUTS,
                            (i, j) => Lanes::load(simd, &transformed[(i * SIDE + j) * stride..][..lanes]),
                            value => if j < Self::OUTPUTS && row + i < rows && column + j < columns {
                                let at = ((image * rows + row + i) * columns + column + j) * outputs + channel;
                                value.store(&mut output[at..][..lanes]);
                            }
                        );
                    },
                );
            },
        );
    }

    #[inline(always)]
    fn transform_gradient<S: Simd>(&self, simd: S, tiles: &Tiles, gradient: &[T], result: &mut [T]) {
        let Geometry { outputs, rows, columns, .. } = self.geometry;
        let stride = stride(tiles.count, outputs);
        self.for_each_tile(
            tiles,
            #[inline(always)]
            |tile, image, row, column| {
                in_lanes::<S, T>(
                    outputs,
                    #[inline(always)]
                    |channel, lanes| {
                        let result = &mut result[tile * outputs + channel..];
                        both_ways!(
                            simd, results_adjoint, Self::OUTPUTS => SIDE,
                            (i, j) => if i < Self::OUTPUTS && row + i < rows && column + j < columns {
                                let at = ((image * rows + row + i) * columns + column + j) * outputs + channel;
                                Lanes::load(simd, &gradient[at..][..lanes])
                            } else {
                                Lanes::zero(simd)
                            },
                            value => value.store(&mut result[(i * SIDE + j) * stride..][..lanes])
                        );
                    },
                );
            },
        );
    }

    #[inline(always)]
    fn transform_back<S: Simd>(&self, simd: S, tiles: &Tiles, transformed: &[T], input_gradient: &mut [T]) {
        let channels = self.geometry.channels;
        let stride = stride(tiles.count, channels);
        self.for_each_tile(
            tiles,
            #[inline(always)]
            |tile, image, row, column| {
                let pixels = self.pixels(image, row, column);
                in_lanes::<S, T>(
                    channels,
                    #[inline(always)]
                    |channel, lanes| {
                        let transformed = &transformed[tile * channels + channel..];
                        both_ways!(
                            simd, data_adjoint, SIDE => SIDE,
                            (i, j) => Lanes::load(simd, &transformed[(i * SIDE + j) * stride..][..lanes]),
                            value => if let Some(at) = pixels[i][j] {
                                let target = &mut input_gradient[at + channel..][..lanes];
                                (Lanes::load(simd, target) + value).store(target);
                            }
                        );
                    },
                );
            },
        );
    }
}

impl<T: Real, const SIDE: usize> Way<T> for Winograd<T, SIDE> {
    fn images_in_cache(&self) -> usize {
        TILES.div_ceil(Self::tiles_of_image(&self.geometry))
    }

    fn images_per_group(&self) -> usize {
        let (tiles, count) = (Self::tiles_of_image(&self.geometry), self.geometry.count);
        (tiles * count / GROUPS).clamp(FEWEST_TILES, TILES).div_ceil(tiles).clamp(1, count.max(1))
    }

    fn weight_gradient_size(&self) -> usize {
        Self::VALUES * self.geometry.channels * self.geometry.outputs
    }

    fn forward(&self, input: &[T], output: &mut [T], Scratch { winograd: scratch, .. }: &mut Scratch<T>) {
        let Geometry { channels, outputs, .. } = self.geometry;
        for tiles in self.bands(input.len() / self.geometry.image()) {
            let (of_input, of_output) = (stride(tiles.count, channels), stride(tiles.count, outputs));
            let transformed = sized(&mut scratch.input, Self::VALUES * of_input);
            self.transform(Step::Input, &tiles, input, transformed);
            let result = sized(&mut scratch.output, Self::VALUES * of_output);
            let products = transformed.chunks_exact(of_input).zip(result.chunks_exact_mut(of_output));
            for (value, (values, result)) in products.enumerate() {
                let values = Matrix::new(&values[..tiles.count * channels], tiles.count, channels);
                multiply(values, self.weight_of(value), &mut result[..tiles.count * outputs], false);
            }
            self.transform(Step::Output, &tiles, result, output);
        }
    }

    fn backward(&self, input: &[T], gradient: &[T], mut gradients: Gradients<&mut [T]>, scratch: &mut Scratch<T>) {
        let Geometry { channels, outputs, .. } = self.geometry;
        let Scratch { winograd: scratch, .. } = scratch;
        if let Some(input_gradient) = &mut gradients.input {
            input_gradient.fill(T::default());
        }
        for tiles in self.bands(gradient.len() / self.geometry.output_image()) {
            let (count, of_input, of_output) = (tiles.count, stride(tiles.count, channels), stride(tiles.count, outputs));
            let transformed = sized(&mut scratch.output, Self::VALUES * of_output);
            self.transform(Step::Gradient, &tiles, gradient, transformed);
            let of_values = transformed.chunks_exact(of_output).map(|values| Matrix::new(&values[..count * outputs], count, outputs));
            let values = sized(&mut scratch.input, Self::VALUES * of_input);
            if let Some(input_gradient) = &mut gradients.input {
                for (value, (gradient, result)) in of_values.clone().zip(values.chunks_exact_mut(of_input)).enumerate() {
                    multiply(gradient, self.weight_of(value), &mut result[..count * channels], false);
                }
                self.transform(Step::Back, &tiles, values, input_gradient);
            }
            if let Some(weight_gradient) = &mut gradients.weight {
                self.transform(Step::Input, &tiles, input, values);
                let products = values.chunks_exact(of_input).zip(of_values);
                for ((values, gradient), sum) in products.zip(weight_gradient.chunks_exact_mut(channels * outputs)) {
                    let values = Matrix::new(&values[..count * channels], count, channels);
                    multiply(values.transposed(), Panels::lay_out(gradient, &mut scratch.panels), sum, true);
                }
            }
        }
    }

    fn finish_weight_gradient(&self, sum: &[T]) -> Vec<T> {
        let Geometry { channels, outputs, .. } = self.geometry;
        weight::gradient::<T, SIDE>(&sum.chunks_exact(channels * outputs).collect::<Vec<_>>(), [channels, outputs])
    }

    fn by_value(&self) -> Option<&dyn ByValue<T>> {
        let is_better = self.weight_gradient_size() * size_of::<T>() > WEIGHT_IN_CACHE && self.values_of_image() <= by_value::VALUES;
        is_better.then_some(self)
    }
}
