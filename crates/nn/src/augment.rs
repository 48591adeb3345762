//! Augmentation of training images: mirrored, moved, recoloured, partly covered, each sample by random numbers of its own in each epoch.
//!
//! It works on the values that the network is given, after normalisation: 0 is the mean colour of the data and 1 a standard deviation, so that what lies
//! beyond an image's border is neither black nor white. Which numbers a sample draws depends on its place in the training set and on the epoch, not
//! on its batch.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rng::{Stream, Streams};
use crate::samples::Samples;

/// Which images are mirrored, left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Flip {
    /// None.
    #[default]
    None,
    /// In each epoch every second, by chance.
    Random,
    /// Each in every second epoch, whether the even or the odd ones is chance; so two epochs show both sides of all (Jordan, arXiv 2404.00498).
    Alternating,
}

/// What lies beyond the border of an image that is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Border {
    /// The mean colour of the data, which is 0 after normalisation.
    #[default]
    Zero,
    /// The image's mirror image, whose edge is not repeated.
    Reflect,
}

/// What is done to the images of a training batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augmentation {
    /// Which images are mirrored.
    pub flip: Flip,
    /// Pixels at most by which an image is moved, each way.
    pub crop: usize,
    /// What lies beyond its border then.
    pub border: Border,
    /// The side of a square around a random pixel that is set to 0; what of it lies outside is lost (DeVries and Taylor, arXiv 1708.04552).
    pub cutout: usize,
    /// What is added to all values at most.
    pub brightness: f32,
    /// How much values are moved away from, or towards, their mean over the image, at most, as a share of the distance.
    pub contrast: f32,
    /// How much a pixel's values are moved away from, or towards, their mean over the channels, at most, as a share of the distance.
    pub saturation: f32,
}

/// What one sample's random numbers say.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Draw {
    is_mirrored: bool,
    /// Rows and columns by which it is moved.
    moved: [isize; 2],
    /// The centre of the square that is covered.
    covered: [usize; 2],
    /// From -1 to 1: brightness, contrast, saturation.
    colour: [f32; 3],
}

impl Augmentation {
    /// Whether any image is changed.
    pub(crate) fn does_something(&self) -> bool {
        self.flip != Flip::None || self.moves() || self.recolours() || self.cutout > 0
    }

    fn moves(&self) -> bool {
        self.crop > 0
    }

    fn recolours(&self) -> bool {
        self.brightness > 0.0 || self.contrast > 0.0 || self.saturation > 0.0
    }

    /// Checks that samples of the given shape can be changed so.
    ///
    /// # Errors
    /// When they are no images, [C, H, W], or smaller than what is to be done to them asks for.
    pub fn check(&self, shape: &[usize]) -> Result<()> {
        let &[_, height, width] = shape else { bail!("only images can be augmented, samples of the shape [C, H, W], not of {shape:?}") };
        let side = height.min(width);
        if self.crop >= side {
            bail!("`crop` is {}, but images are {height} x {width}: give less than {side}", self.crop);
        }
        if self.cutout > side {
            bail!("`cutout` is {}, but images are {height} x {width}: give {side} at most", self.cutout);
        }
        Ok(())
    }

    /// The samples at `rows` as they are in an epoch, as a tensor [rows, C, H, W], and their labels.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn batch(&self, samples: &Samples, rows: &[usize], streams: &Streams, purpose: &str, epoch: u64) -> Result<(Tensor, Vec<u32>)> {
        self.check(samples.shape())?;
        let &[channels, height, width] = samples.shape() else { unreachable!("checked") };
        let mut values = samples.values(rows);
        let (drawn_for, flips) = (format!("{purpose} augment {epoch}"), format!("{purpose} flip"));
        let one = |source: &mut Vec<f32>, (image, &row): (&mut [f32], &usize)| {
            let first_is_mirrored = || streams.indexed(&flips, row as u64).below(2) == 1;
            let draw = self.draw(&mut streams.indexed(&drawn_for, row as u64), [height, width], epoch, first_is_mirrored);
            self.apply(draw, image, [height, width], source);
        };
        values.par_chunks_mut(channels * height * width).zip(rows).for_each_init(Vec::new, one);
        let labels = rows.iter().map(|&row| samples.labels()[row]).collect();
        Ok((Tensor::from_vec(values, (rows.len(), channels, height, width), &Device::Cpu)?, labels))
    }

    /// All numbers, whether they are used or not: what one thing does to a sample does not depend on the others.
    fn draw(&self, stream: &mut Stream, size: [usize; 2], epoch: u64, first_is_mirrored: impl FnOnce() -> bool) -> Draw {
        let coin = stream.below(2) == 1;
        let is_mirrored = match self.flip {
            Flip::None => false,
            Flip::Random => coin,
            Flip::Alternating => first_is_mirrored() ^ (epoch % 2 == 1),
        };
        let colour = std::array::from_fn(|_| 2.0 * stream.uniform() - 1.0);
        let covered = size.map(|side| stream.below(side));
        let moved = std::array::from_fn(|_| stream.below(2 * self.crop + 1) as isize - self.crop as isize);
        Draw { is_mirrored, moved, covered, colour }
    }

    /// Changes one image, [C, H, W]; `source` is room for another.
    fn apply(&self, draw: Draw, image: &mut [f32], [height, width]: [usize; 2], source: &mut Vec<f32>) {
        let plane = height * width;
        if self.recolours() {
            self.recolour(draw.colour, image, plane);
        }
        if draw.is_mirrored || draw.moved != [0, 0] {
            source.clear();
            source.extend_from_slice(image);
            let rows: Vec<Option<usize>> = (0..height).map(|row| self.source(row, draw.moved[0], height)).collect();
            let columns = (0..width).map(|column| self.source(column, draw.moved[1], width));
            let columns: Vec<Option<usize>> =
                columns.map(|column| column.map(|column| if draw.is_mirrored { width - 1 - column } else { column })).collect();
            for (image, source) in image.chunks_exact_mut(plane).zip(source.chunks_exact(plane)) {
                for (target, &row) in image.chunks_exact_mut(width).zip(&rows) {
                    let Some(row) = row else {
                        target.fill(0.0);
                        continue;
                    };
                    let source = &source[row * width..][..width];
                    target.iter_mut().zip(&columns).for_each(|(value, column)| *value = column.map_or(0.0, |column| source[column]));
                }
            }
        }
        if self.cutout > 0 {
            let [rows, columns] = [(draw.covered[0], height), (draw.covered[1], width)].map(|(centre, side)| {
                let first = centre.saturating_sub(self.cutout / 2);
                first..(centre + self.cutout - self.cutout / 2).min(side)
            });
            for image in image.chunks_exact_mut(plane) {
                rows.clone().for_each(|row| image[row * width..][columns.clone()].fill(0.0));
            }
        }
    }

    /// Where a row or column comes from in an image of `side` that is moved by `moved`; nothing where that is zero.
    fn source(&self, place: usize, moved: isize, side: usize) -> Option<usize> {
        let (place, side) = (place as isize + moved, side as isize);
        if (0..side).contains(&place) {
            return Some(place as usize);
        }
        let reflected = if place < 0 { -place } else { 2 * (side - 1) - place };
        (self.border == Border::Reflect).then_some(reflected as usize)
    }

    fn recolour(&self, [brighter, contrast, saturation]: [f32; 3], image: &mut [f32], plane: usize) {
        let added = self.brightness * brighter;
        image.iter_mut().for_each(|value| *value += added);
        let factor = 1.0 + self.saturation * saturation;
        if factor != 1.0 {
            let channels = image.len() / plane;
            for pixel in 0..plane {
                let grey = (0..channels).map(|channel| image[channel * plane + pixel]).sum::<f32>() / channels as f32;
                for channel in 0..channels {
                    let value = &mut image[channel * plane + pixel];
                    *value = grey + (*value - grey) * factor;
                }
            }
        }
        let factor = 1.0 + self.contrast * contrast;
        if factor != 1.0 {
            let mean = (image.iter().map(|&value| f64::from(value)).sum::<f64>() / image.len() as f64) as f32;
            image.iter_mut().for_each(|value| *value = mean + (*value - mean) * factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use dcu_artifact::Array;

    use super::*;

    const NOTHING: Augmentation =
        Augmentation { flip: Flip::None, crop: 0, border: Border::Zero, cutout: 0, brightness: 0.0, contrast: 0.0, saturation: 0.0 };

    const ALL: Augmentation =
        Augmentation { flip: Flip::Random, crop: 2, border: Border::Reflect, cutout: 3, brightness: 0.5, contrast: 0.5, saturation: 0.5 };

    fn streams() -> Streams {
        Streams::new(1, "test")
    }

    /// Images of 3 x 5 x 6 whose values tell their places.
    fn samples(count: usize) -> Samples {
        let values = (0..count * 90).map(|index| index as f32 + 1.0).collect();
        Samples::of_values(Array::new(vec![count, 3, 5, 6], values), (0..count as u32).collect()).unwrap()
    }

    fn batch(augmentation: Augmentation, samples: &Samples, rows: &[usize], epoch: u64) -> Vec<Vec<f32>> {
        let (tensor, labels) = augmentation.batch(samples, rows, &streams(), "fit", epoch).unwrap();
        assert_eq!(labels, rows.iter().map(|&row| row as u32).collect::<Vec<_>>());
        tensor.flatten_from(1).unwrap().to_vec2().unwrap()
    }

    fn draw(is_mirrored: bool, moved: [isize; 2]) -> Draw {
        Draw { is_mirrored, moved, covered: [0, 0], colour: [0.0; 3] }
    }

    #[test]
    fn a_sample_is_changed_alike_in_any_batch_and_by_any_threads() {
        let samples = samples(50);
        let together = batch(ALL, &samples, &(0..50).collect::<Vec<_>>(), 3);
        for rows in [&[7][..], &[49, 0, 7], &[20, 21, 22, 23]] {
            let expected: Vec<_> = rows.iter().map(|&row| together[row].clone()).collect();
            assert_eq!(batch(ALL, &samples, rows, 3), expected);
        }
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| batch(ALL, &samples, &(0..50).collect::<Vec<_>>(), 3)), together);
        let next = batch(ALL, &samples, &(0..50).collect::<Vec<_>>(), 4);
        assert!(next.iter().zip(&together).all(|(one, other)| one != other), "each epoch has its own");
    }

    #[test]
    fn an_image_is_mirrored_and_moved_with_what_its_border_asks_for() {
        let apply = |border: Border, draw: Draw| {
            let (augmentation, mut image) =
                (Augmentation { crop: 2, border, ..NOTHING }, (1..=12).map(|value| value as f32).collect::<Vec<_>>());
            augmentation.apply(draw, &mut image, [3, 4], &mut Vec::new());
            image
        };
        assert_eq!(apply(Border::Zero, draw(true, [0, 0])), [4., 3., 2., 1., 8., 7., 6., 5., 12., 11., 10., 9.]);
        assert_eq!(apply(Border::Zero, draw(false, [1, -2])), [0., 0., 5., 6., 0., 0., 9., 10., 0., 0., 0., 0.]);
        assert_eq!(apply(Border::Reflect, draw(false, [1, -2])), [7., 6., 5., 6., 11., 10., 9., 10., 7., 6., 5., 6.]);
        assert_eq!(apply(Border::Reflect, draw(false, [-2, 0])), [9., 10., 11., 12., 5., 6., 7., 8., 1., 2., 3., 4.]);
        // Mirrored, and then moved.
        assert_eq!(apply(Border::Zero, draw(true, [0, 1])), [3., 2., 1., 0., 7., 6., 5., 0., 11., 10., 9., 0.]);
    }

    #[test]
    fn a_square_is_covered_as_far_as_it_lies_inside() {
        let covered = |cutout: usize, covered: [usize; 2]| {
            let (augmentation, mut image) = (Augmentation { cutout, ..NOTHING }, vec![1.0; 2 * 20]);
            augmentation.apply(Draw { covered, ..draw(false, [0, 0]) }, &mut image, [4, 5], &mut Vec::new());
            assert_eq!(image[..20], image[20..], "in all channels");
            (0..20).filter(|&place| image[place] == 0.0).collect::<Vec<_>>()
        };
        assert_eq!(covered(2, [1, 2]), [1, 2, 6, 7]);
        assert_eq!(covered(3, [1, 2]), [1, 2, 3, 6, 7, 8, 11, 12, 13]);
        assert_eq!(covered(3, [0, 0]), [0, 1, 5, 6]);
        assert_eq!(covered(2, [3, 4]), [13, 14, 18, 19]);
        assert_eq!(covered(1, [3, 4]), [19]);
    }

    #[test]
    fn colours_change_around_their_means() {
        let recoloured = |augmentation: Augmentation, colour: [f32; 3]| {
            let mut image = vec![1.0, 2.0, 3.0, 6.0];
            augmentation.apply(Draw { colour, ..draw(false, [0, 0]) }, &mut image, [1, 2], &mut Vec::new());
            image
        };
        assert_eq!(recoloured(Augmentation { brightness: 0.5, ..NOTHING }, [-1.0, 0.3, 0.3]), [0.5, 1.5, 2.5, 5.5]);
        assert_eq!(recoloured(Augmentation { contrast: 0.5, ..NOTHING }, [0.3, -1.0, 0.3]), [2.0, 2.5, 3.0, 4.5]);
        // Two channels of two pixels, with the greys 2 and 4.
        assert_eq!(recoloured(Augmentation { saturation: 1.0, ..NOTHING }, [0.3, 0.3, -1.0]), [2.0, 4.0, 2.0, 4.0]);
        assert_eq!(recoloured(Augmentation { saturation: 1.0, ..NOTHING }, [0.3, 0.3, 1.0]), [0.0, 0.0, 4.0, 8.0]);
    }

    #[test]
    fn random_numbers_have_their_distributions() {
        let draws: Vec<Draw> = (0..20_000).map(|row| ALL.draw(&mut streams().indexed("fit augment 0", row), [5, 6], 0, || false)).collect();
        let share = |holds: &dyn Fn(&Draw) -> bool| draws.iter().filter(|draw| holds(draw)).count() as f64 / draws.len() as f64;
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 0.015, "{found} where {expected} is right");
        close(share(&|draw| draw.is_mirrored), 0.5);
        for axis in [0, 1] {
            (-2..=2).for_each(|moved| close(share(&|draw| draw.moved[axis] == moved), 0.2));
            let side = [5, 6][axis];
            (0..side).for_each(|place| close(share(&|draw| draw.covered[axis] == place), 1.0 / side as f64));
        }
        for colour in 0..3 {
            close(share(&|draw| draw.colour[colour] < -0.5), 0.25);
            close(share(&|draw| draw.colour[colour] < 0.5), 0.75);
            assert!(draws.iter().all(|draw| draw.colour[colour].abs() <= 1.0));
        }
        // One thing says nothing of another.
        close(share(&|draw| draw.is_mirrored && draw.moved[0] == 1 && draw.colour[0] < 0.0), 0.05);
        // What is done besides changes nothing of what is drawn.
        let alone = Augmentation { crop: 2, flip: Flip::Random, ..NOTHING };
        let other = |row: u64| alone.draw(&mut streams().indexed("fit augment 0", row), [5, 6], 0, || false);
        assert!(draws.iter().take(100).zip(0..).all(|(draw, row)| *draw == other(row)));
    }

    #[test]
    fn alternating_flips_show_each_side_in_every_second_epoch() {
        let (samples, rows) = (samples(400), (0..400).collect::<Vec<_>>());
        let alternating = Augmentation { flip: Flip::Alternating, ..NOTHING };
        let plain = batch(Augmentation { crop: 0, ..NOTHING }, &samples, &rows, 0);
        let epochs: Vec<_> = (0..4).map(|epoch| batch(alternating, &samples, &rows, epoch)).collect();
        assert_eq!((&epochs[0], &epochs[1]), (&epochs[2], &epochs[3]));
        assert!(epochs[0].iter().zip(&epochs[1]).zip(&plain).all(|((even, odd), plain)| (even == plain) != (odd == plain)));
        let mirrored = epochs[0].iter().zip(&plain).filter(|(image, plain)| image != plain).count();
        assert!((160..240).contains(&mirrored), "{mirrored} of 400");
    }

    #[test]
    fn what_is_no_image_or_too_small_is_refused() {
        let refused = |augmentation: Augmentation, shape: &[usize]| augmentation.check(shape).unwrap_err().to_string();
        assert!(refused(ALL, &[12]).contains("not of [12]"));
        assert!(refused(Augmentation { crop: 4, ..ALL }, &[3, 4, 9]).contains("`crop` is 4, but images are 4 x 9: give less than 4"));
        assert!(refused(Augmentation { cutout: 5, ..ALL }, &[3, 9, 4]).contains("`cutout` is 5"));
        assert!(ALL.check(&[1, 3, 3]).is_ok());
    }
}
