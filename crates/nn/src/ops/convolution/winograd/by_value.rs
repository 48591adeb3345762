//! Winograd's algorithm where the weight is larger than the cache: the images are transformed first, then one value of the tiles after the other is
//! multiplied, for all images, so that each part of the weight is fetched once and not for every group of images.

use std::ops::Range;

use rayon::prelude::*;

use super::super::{ByValue, Gradients, Wanted, Way, sized};
use super::{Step, Tiles, Winograd, stride, weight};
use crate::matrix::{Matrix, Panels, multiply};
use crate::parallel::map_with;
use crate::vector::Real;

/// Transformed values that are kept at a time, more or less.
pub(super) const VALUES: usize = 1 << 23;

/// A group of images in the transformed domain.
struct Group<T> {
    tiles: Tiles,
    /// For each of the tile's values [tiles, channels].
    input: Vec<T>,
    /// For each of the tile's values [tiles, outputs].
    output: Vec<T>,
}

/// One of the tile's values of a group: its input and its output.
struct Plane<'a, T> {
    tiles: usize,
    input: &'a mut [T],
    output: &'a mut [T],
}

impl<T: Real, const SIDE: usize> Winograd<T, SIDE> {
    /// The images that are worked on together.
    fn images_at_once(&self) -> usize {
        let of_group = self.geometry.channels + self.geometry.outputs;
        let group = self.images_per_group();
        let values = Self::VALUES * group * Self::tiles_of_image(&self.geometry) * of_group;
        (VALUES / values).max(1) * group
    }

    fn group(&self, images: usize) -> Group<T> {
        let tiles = self.tiles(images);
        let values = |channels| vec![T::default(); Self::VALUES * stride(tiles.count, channels)];
        Group { input: values(self.geometry.channels), output: values(self.geometry.outputs), tiles }
    }

    /// The groups, sorted by the tile's values.
    fn planes<'a>(&self, groups: &'a mut [Group<T>]) -> Vec<Vec<Plane<'a, T>>> {
        let mut planes: Vec<Vec<_>> = (0..Self::VALUES).map(|_| Vec::with_capacity(groups.len())).collect();
        for Group { tiles: Tiles { count: tiles, .. }, input, output } in groups {
            let (of_input, of_output) = (*tiles * self.geometry.channels, *tiles * self.geometry.outputs);
            let inputs = input.chunks_exact_mut(stride(*tiles, self.geometry.channels));
            let outputs = output.chunks_exact_mut(stride(*tiles, self.geometry.outputs));
            for ((planes, input), output) in planes.iter_mut().zip(inputs).zip(outputs) {
                planes.push(Plane { tiles: *tiles, input: &mut input[..of_input], output: &mut output[..of_output] });
            }
        }
        planes
    }
}

impl<T: Real, const SIDE: usize> ByValue<T> for Winograd<T, SIDE> {
    fn forward(&self, input: &[T], output: &mut [T], finish: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let (group, at_once) = (self.images_per_group(), self.images_at_once());
        let (image, output_image) = (self.geometry.image(), self.geometry.output_image());
        for (index, (input, output)) in input.chunks(at_once * image).zip(output.chunks_mut(at_once * output_image)).enumerate() {
            let transformed = input.par_chunks(group * image).map(|input| {
                let mut group = self.group(input.len() / image);
                self.transform(Step::Input, &group.tiles, input, &mut group.input);
                group
            });
            let mut groups: Vec<_> = transformed.collect();
            self.planes(&mut groups).into_par_iter().enumerate().for_each(|(value, planes)| {
                for Plane { tiles, input, output } in planes {
                    multiply(Matrix::new(input, tiles, self.geometry.channels), self.weight_of(value), output, false);
                }
            });
            let results = output.par_chunks_mut(group * output_image).zip(&groups).enumerate();
            results.for_each(|(place, (output, transformed))| {
                self.transform(Step::Output, &transformed.tiles, &transformed.output, output);
                finish(index * at_once / group + place, output);
            });
        }
    }

    fn backward(&self, input: &[T], wanted: Wanted, gradient: &(dyn Fn(Range<usize>, &mut [T]) + Sync)) -> Gradients<Vec<T>> {
        let (group, at_once) = (self.images_per_group(), self.images_at_once());
        let (image, output_image) = (self.geometry.image(), self.geometry.output_image());
        let (channels, outputs) = (self.geometry.channels, self.geometry.outputs);
        let mut input_gradient = wanted.input.then(|| vec![T::default(); self.geometry.count * image]);
        let mut sums = vec![Vec::new(); Self::VALUES];
        for first in (0..self.geometry.count).step_by(at_once) {
            let end = (first + at_once).min(self.geometry.count);
            let starts = (first..end).step_by(group);
            let mut groups = map_with(starts, |buffer: &mut Vec<T>, start| {
                let images = start..(start + group).min(end);
                let mut group = self.group(images.len());
                let result = sized(buffer, images.len() * output_image);
                gradient(images.clone(), result);
                self.transform(Step::Gradient, &group.tiles, result, &mut group.output);
                if wanted.weight {
                    self.transform(Step::Input, &group.tiles, &input[images.start * image..images.end * image], &mut group.input);
                }
                group
            });
            map_with(self.planes(&mut groups).into_iter().zip(&mut sums).enumerate(), |panels, (value, (planes, sum))| {
                for Plane { tiles, input, output } in planes {
                    let gradient = Matrix::new(output, tiles, outputs);
                    if wanted.weight {
                        sum.resize(channels * outputs, T::default());
                        let input = Matrix::new(input, tiles, channels);
                        multiply(input.transposed(), Panels::lay_out(gradient, panels), sum, true);
                    }
                    if wanted.input {
                        // In the place of the input, which is not needed any more.
                        multiply(gradient, self.weight_of(value), input, false);
                    }
                }
            });
            if let Some(input_gradient) = &mut input_gradient {
                let parts = input_gradient[first * image..end * image].par_chunks_mut(group * image);
                parts.zip(&groups).for_each(|(part, transformed)| {
                    self.transform(Step::Back, &transformed.tiles, &transformed.input, part);
                });
            }
        }
        let sums: Vec<&[T]> = sums.iter().map(Vec::as_slice).collect();
        Gradients { input: input_gradient, weight: wanted.weight.then(|| weight::gradient::<T, SIDE>(&sums, [channels, outputs])) }
    }
}
