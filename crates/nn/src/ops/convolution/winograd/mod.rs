//! Convolution of 3 x 3 windows, one pixel apart, by Winograd's minimal filtering (Lavin and Gray, arXiv 1509.09308).
//!
//! The image is cut into tiles of `SIDE` x `SIDE` pixels that overlap by two; each gives `SIDE - 2` squared results. In the transformed domain a
//! result takes one product per tile value, instead of nine per result: 2.25 times fewer for tiles of 4, 4 times fewer for tiles of 6. All three
//! products of a convolution are done there; the gradients are the exact adjoints of `result = Aᵀ [(G w Gᵀ) · (Bᵀ x B)] A`.

mod by_value;
mod maps;
mod weight;

use maps::{both_ways, data, data_adjoint, results, results_adjoint};
use pulp::{Arch, Simd, WithSimd};

use super::geometry::{Convolution, Geometry};
use super::{ByValue, Gradients, Purpose, Scratch, Way, sized};
use crate::matrix::{Matrix, Panels, multiply};
use crate::vector::{Lanes, Real, in_lanes};

/// Tiles of a group where there are many, which keeps it in the cache.
const TILES: usize = 48;
/// Groups to have even if these are smaller, and the tiles that make a group worth it.
const GROUPS: usize = 8;
const FEWEST_TILES: usize = 16;
/// Values of a panel's row.
const LINE: usize = Panels::<f32>::WIDTH;
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
    /// The sum of `B d Bᵀ` of each tile at the pixels that the tile was read from: the input's gradient.
    Back,
}

struct Transform<'a, T, const SIDE: usize> {
    way: &'a Winograd<T, SIDE>,
    step: Step,
    from: &'a [T],
    to: &'a mut [T],
}

impl<T: Real, const SIDE: usize> WithSimd for Transform<'_, T, SIDE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.step {
            Step::Input => self.way.transform_input(simd, self.from, self.to),
            Step::Output => self.way.transform_output(simd, self.from, self.to),
            Step::Gradient => self.way.transform_gradient(simd, self.from, self.to),
            Step::Back => self.way.transform_back(simd, self.from, self.to),
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

    /// Transforms some images.
    fn transform(&self, step: Step, from: &[T], to: &mut [T]) {
        Arch::new().dispatch(Transform { way: self, step, from, to });
    }

    #[inline(always)]
    fn transform_input<S: Simd>(&self, simd: S, input: &[T], result: &mut [T]) {
        let (channels, images) = (self.geometry.channels, input.len() / self.geometry.image());
        let stride = stride(images * Self::tiles_of_image(&self.geometry), channels);
        self.for_each_tile(
            images,
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
    fn transform_output<S: Simd>(&self, simd: S, transformed: &[T], output: &mut [T]) {
        let Geometry { outputs, rows, columns, .. } = self.geometry;
        let (images, stride) = (output.len() / self.geometry.output_image(), stride(self.tiles(output), outputs));
        self.for_each_tile(
            images,
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
    fn transform_gradient<S: Simd>(&self, simd: S, gradient: &[T], result: &mut [T]) {
        let Geometry { outputs, rows, columns, .. } = self.geometry;
        let (images, stride) = (gradient.len() / self.geometry.output_image(), stride(self.tiles(gradient), outputs));
        self.for_each_tile(
            images,
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
    fn transform_back<S: Simd>(&self, simd: S, transformed: &[T], input_gradient: &mut [T]) {
        let channels = self.geometry.channels;
        let images = input_gradient.len() / self.geometry.image();
        let stride = stride(images * Self::tiles_of_image(&self.geometry), channels);
        input_gradient.fill(T::default());
        self.for_each_tile(
            images,
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
        let tiles = self.tiles(output);
        let (of_input, of_output) = (stride(tiles, channels), stride(tiles, outputs));
        let transformed = sized(&mut scratch.input, Self::VALUES * of_input);
        self.transform(Step::Input, input, transformed);
        let result = sized(&mut scratch.output, Self::VALUES * of_output);
        let products = transformed.chunks_exact(of_input).zip(result.chunks_exact_mut(of_output));
        for (value, (values, result)) in products.enumerate() {
            let values = Matrix::new(&values[..tiles * channels], tiles, channels);
            multiply(values, self.weight_of(value), &mut result[..tiles * outputs], false);
        }
        self.transform(Step::Output, result, output);
    }

    fn backward(&self, input: &[T], gradient: &[T], gradients: Gradients<&mut [T]>, Scratch { winograd: scratch, .. }: &mut Scratch<T>) {
        let Geometry { channels, outputs, .. } = self.geometry;
        let tiles = self.tiles(gradient);
        let (of_input, of_output) = (stride(tiles, channels), stride(tiles, outputs));
        let transformed = sized(&mut scratch.output, Self::VALUES * of_output);
        self.transform(Step::Gradient, gradient, transformed);
        let of_values = transformed.chunks_exact(of_output).map(|values| Matrix::new(&values[..tiles * outputs], tiles, outputs));
        let values = sized(&mut scratch.input, Self::VALUES * of_input);
        if let Some(input_gradient) = gradients.input {
            for (value, (gradient, result)) in of_values.clone().zip(values.chunks_exact_mut(of_input)).enumerate() {
                multiply(gradient, self.weight_of(value), &mut result[..tiles * channels], false);
            }
            self.transform(Step::Back, values, input_gradient);
        }
        if let Some(weight_gradient) = gradients.weight {
            self.transform(Step::Input, input, values);
            let products = values.chunks_exact(of_input).zip(of_values);
            for ((values, gradient), sum) in products.zip(weight_gradient.chunks_exact_mut(channels * outputs)) {
                let values = Matrix::new(&values[..tiles * channels], tiles, channels);
                multiply(values.transposed(), Panels::lay_out(gradient, &mut scratch.panels), sum, true);
            }
        }
    }

    fn finish_weight_gradient(&self, sum: &[T]) -> Vec<T> {
        let Geometry { channels, outputs, .. } = self.geometry;
        weight::gradient::<T, SIDE>(&sum.chunks_exact(channels * outputs).collect::<Vec<_>>(), [channels, outputs])
    }

    fn by_value(&self) -> Option<&dyn ByValue<T>> {
        (self.weight_gradient_size() * size_of::<T>() > WEIGHT_IN_CACHE).then_some(self)
    }
}
