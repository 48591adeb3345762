//! Images that are learned pixel by pixel, several for each bucket, and what is done to them on the way: decoding of small images that share one, and augmentation that
//! the real images get too.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var, bail};
use dcu_artifact::{Array, Buckets, Condensed, CondensedFacts, Dataset, Members, Reach, Tensor as Stored};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::{Stream, Streams};
use dcu_nn::{Architecture, Family, Gradients, Network, Place, Samples, Trainable};
use dcu_stage::{Checkpoints, Failure, Rejected, Snapshot};
use serde_json::json;

/// The rule of the pixels' steps.
const RULE: Rule = Rule::Sgd { momentum: 0.5, weight_decay: 0.0 };

/// Refuses what are no widths of a [`convnet3`].
pub(crate) fn check_widths(widths: &[usize]) -> Result<(), Rejected> {
    let fits = widths.len() == 3 && !widths.contains(&0);
    Rejected::unless(fits, "widths", "`widths` are three positive numbers, those of a ConvNet-3")
}

/// The network that images are condensed by, for the dataset's images and classes.
pub(crate) fn convnet3(dataset: &Dataset, widths: &[usize]) -> Architecture {
    let published = Architecture::of_family(Family::Convnet3, dataset.image_shape(), dataset.classes());
    Architecture { widths: widths.to_vec(), ..published }
}

/// A copy of a network in f64, in which differences between weights that lie near to one another are slopes.
pub(crate) fn in_f64(network: &Network) -> candle_core::Result<Network> {
    network.moved_to(Place { dtype: DType::F64, ..network.place().clone() })
}

/// A copy of a network's weights.
pub(crate) fn weights(network: &Network) -> candle_core::Result<Gradients> {
    let parameters = network.parameters(&Trainable::all(network.graph()));
    parameters.into_iter().map(|(name, value)| Ok((name.to_owned(), value.as_detached_tensor().copy()?))).collect()
}

/// The images of all buckets, in the order of the buckets, the samples that they stand for, and what moves them.
pub(crate) struct Canvas {
    images: Var,
    optimiser: Optimiser,
    /// Images of each bucket.
    each: usize,
    /// Along each side of an image, so many small ones lie beside one another.
    tiles: usize,
    members: Vec<Vec<usize>>,
    class: Vec<u32>,
    classes: usize,
}

impl Canvas {
    /// Images that begin as members of their buckets, drawn at random; where an image holds several, as so many members made smaller.
    ///
    /// # Errors
    /// When the buckets are of another dataset, or the tiles do not fit an image.
    pub(crate) fn drawn(dataset: &Dataset, buckets: &Buckets, each: usize, tiles: usize, streams: &Streams) -> anyhow::Result<Self> {
        if buckets.ids != dataset.ids {
            let remedy = "make buckets and condensed images from the same dataset";
            return Err(Failure::new("the buckets divide another dataset", remedy).into());
        }
        let [channels, height, width] = dataset.image_shape();
        if height < tiles || width < tiles {
            let remedy = "give fewer `tiles`";
            return Err(Failure::new(format!("{tiles} x {tiles} images do not fit into {height} x {width} pixels"), remedy).into());
        }
        let (members, samples) = (buckets.members(), Samples::of_whole_dataset(dataset));
        let mut values = Vec::new();
        for (bucket, rows) in members.iter().enumerate() {
            let mut order = streams.indexed("start", bucket as u64).permutation(rows.len()).into_iter().cycle();
            for _ in 0..each {
                let chosen: Vec<usize> = order.by_ref().take(tiles * tiles).map(|place| rows[place]).collect();
                let images: Vec<Vec<f32>> = chosen.iter().map(|&row| samples.values(&[row])).collect();
                values.extend(tiled(&images, [channels, height, width], tiles));
            }
        }
        let shape = (members.len() * each, channels, height, width);
        let images = Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?;
        Ok(Self { images, optimiser: Optimiser::new(RULE), each, tiles, members, class: buckets.class.clone(), classes: dataset.classes() })
    }

    /// How many rounds of steps were done when the last checkpoint was made, from which the images go on; none without one.
    ///
    /// # Errors
    /// When it is of other images.
    pub(crate) fn resume(&mut self, checkpoints: &Checkpoints) -> anyhow::Result<usize> {
        Ok(self.resume_beside(checkpoints)?.map_or(0, |(done, _)| done))
    }

    /// The same, with what [`Self::offer_beside`] put there.
    ///
    /// # Errors
    /// As [`Self::resume`].
    pub(crate) fn resume_beside(&mut self, checkpoints: &Checkpoints) -> anyhow::Result<Option<(usize, BTreeMap<String, Stored>)>> {
        let Some(Snapshot { position, tensors }) = checkpoints.resume() else { return Ok(None) };
        let (own, beside): (BTreeMap<_, _>, BTreeMap<_, _>) =
            tensors.into_iter().partition(|(name, _)| name.split('@').next() == Some("images"));
        let (moments, own): (BTreeMap<_, _>, BTreeMap<_, _>) = own.into_iter().partition(|(name, _)| name.contains('@'));
        match own.get("images") {
            Some(Stored::F32(array)) if array.shape == self.images.dims() => {
                self.images.set(&Tensor::from_slice(&array.data, array.shape.as_slice(), &Device::Cpu)?)?;
            }
            _ => anyhow::bail!("the checkpoint is of other images; delete it"),
        }
        self.optimiser = Optimiser::from_tensors(RULE, &moments)?;
        Ok(Some((serde_json::from_value(position)?, beside)))
    }

    /// Offers a checkpoint behind so many rounds of steps.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn offer(&self, checkpoints: &mut Checkpoints, done: usize) -> anyhow::Result<()> {
        self.offer_beside(checkpoints, done, || Ok(BTreeMap::new()))
    }

    /// The same with other tensors beside it, none of which is called `images`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn offer_beside(
        &self,
        checkpoints: &mut Checkpoints,
        done: usize,
        beside: impl FnOnce() -> anyhow::Result<BTreeMap<String, Stored>>,
    ) -> anyhow::Result<()> {
        checkpoints.offer(|| {
            let values = self.images.as_detached_tensor().flatten_all()?.to_vec1()?;
            let mut tensors = beside()?;
            tensors.insert("images".to_owned(), Stored::F32(Array::new(self.images.dims().to_vec(), values)));
            tensors.extend(self.optimiser.to_tensors());
            Ok(Snapshot { position: json!(done), tensors })
        })
    }

    /// The number of buckets.
    pub(crate) fn buckets(&self) -> usize {
        self.members.len()
    }

    /// The rows of the dataset in a bucket.
    pub(crate) fn members(&self, bucket: usize) -> &[usize] {
        &self.members[bucket]
    }

    /// The images of some buckets in a row as networks take them, of each bucket all one after the other, and the class of each.
    ///
    /// # Errors
    /// When there are no such buckets.
    pub(crate) fn decoded(&self, buckets: std::ops::Range<usize>) -> candle_core::Result<(Tensor, Vec<u32>)> {
        let images = self.images.narrow(0, buckets.start * self.each, buckets.len() * self.each)?;
        let of_each = self.each * self.tiles * self.tiles;
        let labels = buckets.flat_map(|bucket| std::iter::repeat_n(self.class[bucket], of_each)).collect();
        if self.tiles == 1 {
            return Ok((images, labels));
        }
        let (_, channels, height, width) = images.dims4()?;
        let mut parts = Vec::new();
        for row in 0..self.tiles {
            for column in 0..self.tiles {
                let [top, bottom] = [row, row + 1].map(|edge| edge * height / self.tiles);
                let [left, right] = [column, column + 1].map(|edge| edge * width / self.tiles);
                let part = images.narrow(2, top, bottom - top)?.narrow(3, left, right - left)?.contiguous()?;
                parts.push(resized(&part, [height, width])?.unsqueeze(1)?);
            }
        }
        let count = images.dim(0)? * self.tiles * self.tiles;
        Ok((Tensor::cat(&parts, 1)?.reshape((count, channels, height, width))?, labels))
    }

    /// One step down the slope of a loss of the images.
    ///
    /// # Errors
    /// When the loss or its slope is not finite, or does not depend on the images.
    pub(crate) fn step(&mut self, gradient: Option<Tensor>, loss: f64, rate: f64) -> candle_core::Result<()> {
        let Some(gradient) = gradient.filter(|_| loss.is_finite()) else {
            bail!("the condensation diverged: the loss is {loss}; give a lower `lr`");
        };
        // A sum of sizes is a number only where all of them are.
        let size = gradient.abs()?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        if !size.is_finite() {
            bail!("the condensation diverged: the loss is {loss}, but its slope by the pixels holds what is no number; give a lower `lr`");
        }
        let gradients: Gradients = [("images".to_owned(), gradient)].into_iter().collect();
        self.optimiser.step(&BTreeMap::from([("images", &self.images)]), &gradients, rate)
    }

    /// The gradient of the pixels from that of images that were made of them: back through changes and decoding, which are linear but for a constant.
    ///
    /// # Errors
    /// When the images do not depend on the pixels.
    pub(crate) fn of_pixels(&self, images: &Tensor, of_images: &Tensor) -> candle_core::Result<Tensor> {
        let gradient = (images * of_images.to_dtype(images.dtype())?)?.sum_all()?.backward()?.remove(&self.images);
        gradient.ok_or_else(|| candle_core::Error::msg("the images do not depend on the pixels"))
    }

    /// The variable that losses are differentiated for.
    pub(crate) fn pixels(&self) -> &Var {
        &self.images
    }

    /// The condensed images: of each every member of its bucket was looked at.
    ///
    /// # Errors
    /// When a pixel is not finite.
    pub(crate) fn finish(self, dataset: &Dataset, maker: &str) -> candle_core::Result<Condensed> {
        let decoded: Vec<f32> = self.decoded(0..self.buckets())?.0.flatten_all()?.to_vec1()?;
        if let Some(place) = decoded.iter().position(|value| !value.is_finite()) {
            bail!("pixel {place} of the condensed images is not finite: the condensation diverged; give a lower `lr`");
        }
        let [channels, height, width] = dataset.image_shape();
        let of_each = self.each * self.tiles * self.tiles;
        let row = |bucket: usize| {
            let ids: Vec<u64> = self.members[bucket].iter().map(|&row| dataset.ids[row]).collect();
            Members { weights: vec![0.0; ids.len()], ids }
        };
        let repeated = |buckets: usize| (0..buckets).flat_map(|bucket| std::iter::repeat_n(bucket, of_each));
        let count = self.buckets() * of_each;
        Ok(Condensed {
            images: Array::new(vec![count, channels, height, width], decoded),
            targets: one_hot(&repeated(self.buckets()).map(|bucket| self.class[bucket]).collect::<Vec<_>>(), self.classes),
            bucket: repeated(self.buckets()).map(|bucket| bucket as u32).collect(),
            members: repeated(self.buckets()).map(row).collect(),
            facts: CondensedFacts { maker: maker.to_owned(), reach: Reach::Bucket },
        })
    }
}

/// All of the probability on each row's class, [B, K].
pub(crate) fn one_hot(labels: &[u32], classes: usize) -> Array<f32> {
    let row = |&label: &u32| (0..classes as u32).map(move |class| f32::from(u8::from(class == label)));
    Array::new(vec![labels.len(), classes], labels.iter().flat_map(row).collect())
}

/// One image of smaller ones beside one another, each [C, H, W]; by the mean of the pixels that become one.
pub(crate) fn tiled(images: &[Vec<f32>], [channels, height, width]: [usize; 3], tiles: usize) -> Vec<f32> {
    if tiles == 1 {
        return images[0].clone();
    }
    let mut result = vec![0.0; channels * height * width];
    for (place, image) in images.iter().enumerate() {
        let [top, bottom] = [place / tiles, place / tiles + 1].map(|edge| edge * height / tiles);
        let [left, right] = [place % tiles, place % tiles + 1].map(|edge| edge * width / tiles);
        for channel in 0..channels {
            for row in top..bottom {
                for column in left..right {
                    let rows = span(row - top, bottom - top, height);
                    let columns = span(column - left, right - left, width);
                    let count = (rows.len() * columns.len()) as f32;
                    let sum: f32 = rows
                        .flat_map(|from| columns.clone().map(move |across| (from, across)))
                        .map(|(from, across)| image[(channel * height + from) * width + across])
                        .sum();
                    result[(channel * height + row) * width + column] = sum / count;
                }
            }
        }
    }
    result
}

/// The pixels out of `of` that become pixel `place` out of `into`.
fn span(place: usize, into: usize, of: usize) -> std::ops::Range<usize> {
    place * of / into..((place + 1) * of).div_ceil(into).min(of)
}

/// Images [N, C, h, w] at another size, bilinear, with pixels as squares (as PyTorch's `align_corners=False`).
pub(crate) fn resized(images: &Tensor, [height, width]: [usize; 2]) -> candle_core::Result<Tensor> {
    let (count, channels, rows, columns) = images.dims4()?;
    let across = images.reshape((count * channels * rows, columns))?.matmul(&interpolation(columns, width)?.t()?)?;
    let down = across.reshape((count * channels, rows, width))?.transpose(1, 2)?.contiguous()?.reshape((count * channels * width, rows))?;
    let down = down.matmul(&interpolation(rows, height)?.t()?)?;
    down.reshape((count * channels, width, height))?.transpose(1, 2)?.contiguous()?.reshape((count, channels, height, width))
}

/// How much each of `from` pixels counts in each of `to`, [to, from].
fn interpolation(from: usize, to: usize) -> candle_core::Result<Tensor> {
    let mut values = vec![0.0_f32; to * from];
    for place in 0..to {
        let centre = ((place as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
        let (low, share) = (centre.floor() as usize, centre.fract());
        values[place * from + low] += (1.0 - share) as f32;
        if share > 0.0 {
            values[place * from + low + 1] += share as f32;
        }
    }
    Tensor::from_vec(values, (to, from), &Device::Cpu)
}

/// One change that all images of a step get, real and condensed ones alike, and through which gradients flow (Zhao and Bilen, arXiv 2102.08259, without scaling and rotation).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Siamese {
    /// The mirror image.
    Flip,
    /// Moved by so many rows and columns, with zeros behind.
    Shift([i64; 2]),
    /// Zeros around this pixel, of half the sides.
    Cutout([usize; 2]),
    /// So much is added; then the distance from the pixel's mean over the channels is multiplied, and then that from the image's mean.
    Colour { brightness: f64, saturation: f64, contrast: f64 },
    /// Nothing.
    None,
}

impl Siamese {
    /// One of them at random, for images of this size.
    pub(crate) fn drawn(stream: &mut Stream, [height, width]: [usize; 2]) -> Self {
        let between = |stream: &mut Stream, low: f64, high: f64| low + (high - low) * stream.uniform_f64();
        match stream.below(4) {
            0 => {
                if stream.below(2) == 0 {
                    Self::Flip
                } else {
                    Self::None
                }
            }
            1 => Self::Shift([height, width].map(|side| {
                let most = (side + 4) / 8;
                stream.below(2 * most + 1) as i64 - most as i64
            })),
            2 => Self::Cutout([height, width].map(|side| stream.below(side + 1 - cut(side) % 2))),
            _ => Self::Colour {
                brightness: between(stream, -0.5, 0.5),
                saturation: between(stream, 0.0, 2.0),
                contrast: between(stream, 0.5, 1.5),
            },
        }
    }

    /// The images [N, C, H, W] after the change.
    ///
    /// # Errors
    /// When these are no images.
    pub(crate) fn apply(self, images: &Tensor) -> candle_core::Result<Tensor> {
        let (_, _, height, width) = images.dims4()?;
        match self {
            Self::None => Ok(images.clone()),
            Self::Flip => {
                let order: Vec<u32> = (0..width as u32).rev().collect();
                images.index_select(&Tensor::new(order, images.device())?, 3)
            }
            Self::Shift([rows, columns]) => {
                let moved = |images: &Tensor, dimension: usize, by: i64, side: usize| {
                    let by_pixels = by.unsigned_abs() as usize;
                    let kept = images.narrow(dimension, if by < 0 { by_pixels } else { 0 }, side - by_pixels)?;
                    if by < 0 { kept.pad_with_zeros(dimension, 0, by_pixels) } else { kept.pad_with_zeros(dimension, by_pixels, 0) }
                };
                moved(&moved(images, 2, rows, height)?, 3, columns, width)
            }
            Self::Cutout([row, column]) => {
                let inside = |place: usize, centre: usize, side: usize| {
                    let (place, size) = (place + cut(side) / 2, cut(side));
                    (centre..centre + size).contains(&place)
                };
                let mask = (0..height * width)
                    .map(|place| f32::from(u8::from(!(inside(place / width, row, height) && inside(place % width, column, width)))));
                images.broadcast_mul(&Tensor::from_vec(mask.collect::<Vec<_>>(), (1, 1, height, width), images.device())?)
            }
            Self::Colour { brightness, saturation, contrast } => {
                let images = (images + brightness)?;
                let grey = images.mean_keepdim(1)?;
                let images = (images.broadcast_sub(&grey)? * saturation)?.broadcast_add(&grey)?;
                let mean = images.mean_keepdim((1, 2, 3))?;
                (images.broadcast_sub(&mean)? * contrast)?.broadcast_add(&mean)
            }
        }
    }
}

/// How many pixels of a side are cut out.
fn cut(side: usize) -> usize {
    side.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(values: &[f32], shape: [usize; 4]) -> Tensor {
        Tensor::from_slice(values, shape.as_slice(), &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_step_along_what_is_no_number_is_refused() {
        let facts = dcu_artifact::DatasetFacts {
            source: "test".into(),
            class_names: vec!["a".into()],
            normalisation: dcu_artifact::Normalisation { mean: vec![0.5], std: vec![0.25] },
            names: None,
        };
        let dataset =
            Dataset { images: Array::new(vec![1, 1, 1, 2], vec![0, 255]), labels: vec![0], original_labels: None, ids: vec![7], facts };
        let centroids = Array::new(vec![1, 1], vec![0.0]);
        let buckets = Buckets { ids: vec![7], bucket: vec![0], class: vec![0], centroids, k: 1 };
        let mut canvas = Canvas::drawn(&dataset, &buckets, 1, 1, &Streams::new(1, "test")).unwrap();
        let before = flat(canvas.pixels());
        for value in [f32::NAN, f32::INFINITY] {
            let error = canvas.step(Some(images(&[0.5, value], [1, 1, 1, 2])), 1.0, 0.1).unwrap_err().to_string();
            assert!(error.contains("no number") && error.contains("lower `lr`"), "{error}");
        }
        assert_eq!(flat(canvas.pixels()), before);
        canvas.step(Some(images(&[0.5, 0.0], [1, 1, 1, 2])), 1.0, 0.1).unwrap();
        assert_ne!(flat(canvas.pixels()), before);
    }

    #[test]
    fn small_images_are_enlarged_as_pytorch_does() {
        // torch.nn.functional.interpolate(..., mode="bilinear", align_corners=False)
        let found = flat(&resized(&images(&[0.0, 4.0, 8.0, 12.0], [1, 1, 2, 2]), [4, 4]).unwrap());
        let expected = [0.0, 1.0, 3.0, 4.0, 2.0, 3.0, 5.0, 6.0, 6.0, 7.0, 9.0, 10.0, 8.0, 9.0, 11.0, 12.0];
        found.iter().zip(expected).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-5, "{found} {expected}"));
    }

    #[test]
    fn images_that_share_one_are_made_smaller_by_means() {
        let image = |value: f32| vec![value, value + 2.0, value, value + 2.0];
        assert_eq!(tiled(&[image(0.0), image(10.0), image(20.0), image(30.0)], [1, 2, 2], 2), [1.0, 11.0, 21.0, 31.0]);
        assert_eq!(tiled(&[image(5.0)], [1, 2, 2], 1), image(5.0));
    }

    #[test]
    fn each_change_does_what_it_says() {
        let square = images(&[1.0, 2.0, 3.0, 4.0], [1, 1, 2, 2]);
        assert_eq!(flat(&Siamese::Flip.apply(&square).unwrap()), [2.0, 1.0, 4.0, 3.0]);
        assert_eq!(flat(&Siamese::Shift([1, 0]).apply(&square).unwrap()), [0.0, 0.0, 1.0, 2.0]);
        assert_eq!(flat(&Siamese::Shift([0, -1]).apply(&square).unwrap()), [2.0, 0.0, 4.0, 0.0]);
        assert_eq!(flat(&Siamese::Cutout([0, 1]).apply(&square).unwrap()), [1.0, 0.0, 3.0, 4.0]);
        let colour = |brightness, saturation, contrast| Siamese::Colour { brightness, saturation, contrast };
        assert_eq!(flat(&colour(0.5, 1.0, 1.0).apply(&square).unwrap()), [1.5, 2.5, 3.5, 4.5]);
        assert_eq!(flat(&colour(0.0, 1.0, 0.0).apply(&square).unwrap()), [2.5; 4]);
        let colours = images(&[0.0, 2.0], [1, 2, 1, 1]);
        assert_eq!(flat(&colour(0.0, 2.0, 1.0).apply(&colours).unwrap()), [-1.0, 3.0]);
        let mut stream = Streams::new(1, "test").stream("changes");
        let drawn: Vec<Siamese> = (0..200).map(|_| Siamese::drawn(&mut stream, [8, 12])).collect();
        let share = |of: fn(&Siamese) -> bool| drawn.iter().filter(|change| of(change)).count();
        let counts = [
            share(|change| matches!(change, Siamese::Flip | Siamese::None)),
            share(|change| matches!(change, Siamese::Shift(_))),
            share(|change| matches!(change, Siamese::Cutout(_))),
            share(|change| matches!(change, Siamese::Colour { .. })),
        ];
        assert!(counts.iter().all(|count| (30..70).contains(count)) && drawn.contains(&Siamese::Flip), "{counts:?}");
        let within = |change: &Siamese| match *change {
            Siamese::Shift([rows, columns]) => rows.abs() <= 1 && columns.abs() <= 2,
            Siamese::Cutout([row, column]) => row <= 8 && column <= 12,
            Siamese::Colour { brightness, saturation, contrast } => {
                brightness.abs() <= 0.5 && (0.0..=2.0).contains(&saturation) && (0.5..=1.5).contains(&contrast)
            }
            Siamese::Flip | Siamese::None => true,
        };
        assert!(drawn.iter().all(within), "{drawn:?}");
    }
}
