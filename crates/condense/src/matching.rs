//! Fast distribution matching (arXiv 2402.00195): each bucket's condensed image is a weighted sum of its images whose feature is moved towards
//! the bucket's mean feature. All buckets are worked on at once; the loss is a sum over buckets, so that each gets what it would get alone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Storage, Tensor, Var, bail};
use dcu_artifact::Array;
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::{Gradients, Network, Samples, evaluate};
use rayon::prelude::*;

/// Buckets on the way to their condensed images. A bucket of one image keeps it.
pub struct Matching<'a> {
    network: &'a Network,
    samples: Arc<Samples>,
    sizes: Vec<usize>,
    /// Nothing, where each bucket holds one image.
    moving: Option<Moving>,
    steps: usize,
}

/// The buckets of more than one image.
struct Moving {
    /// Which of all buckets these are.
    places: Vec<usize>,
    weights: Var,
    sum: WeightedSum,
    target: Tensor,
    optimiser: Optimiser,
}

impl<'a> Matching<'a> {
    /// Starts with the plain mean of each bucket's images: `sizes[0]` samples are of the first bucket, and so on.
    ///
    /// # Errors
    /// When the samples do not fit the network, there are not as many as the sizes say, or a bucket's features are not finite.
    pub fn new(network: &'a Network, samples: &Samples, sizes: &[usize]) -> Result<Self> {
        if sizes.contains(&0) || sizes.iter().sum::<usize>() != samples.len() {
            bail!("{} samples do not make buckets of {sizes:?}", samples.len());
        }
        let samples = Arc::new(samples.clone());
        let ranges = one_after_another(sizes.iter().copied()).into_iter().enumerate();
        let (places, several): (Vec<_>, Vec<_>) = ranges.filter(|(_, bucket)| bucket.len() > 1).unzip();
        let moving = if several.is_empty() { None } else { Some(Moving::new(network, &samples, places, several)?) };
        Ok(Self { network, samples, sizes: sizes.to_vec(), moving, steps: 0 })
    }

    /// One step of Adam on the weights of all buckets. Returns the sum of their losses before it.
    ///
    /// # Errors
    /// When the samples do not fit the network, or the loss of a bucket is not finite.
    pub fn step(&mut self, rate: f64) -> Result<f64> {
        let Some(moving) = &mut self.moving else { return Ok(0.0) };
        let fused = moving.weights.apply_op1(moving.sum.clone())?;
        // Images, weights and the loss are on the CPU, wherever the network is.
        let features = self.network.features(&fused)?.to_device(&Device::Cpu)?;
        self.steps += 1;
        let squares = (features - &moving.target)?.sqr()?;
        let loss = squares.sum_all()?;
        if !loss.to_scalar::<f32>()?.is_finite() {
            moving.refuse_broken(&squares, &format!("in step {} at the learning rate {rate} the loss", self.steps))?;
        }
        let gradient = loss.backward()?.remove(&moving.weights);
        let gradients: Gradients = gradient.map(|gradient| ("weights".to_owned(), gradient)).into_iter().collect();
        moving.optimiser.step(&BTreeMap::from([("weights", &moving.weights)]), &gradients, rate)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// The condensed images, one after another, and the weight of each sample in its bucket's.
    ///
    /// # Errors
    /// When a condensed image is not finite.
    pub fn finish(self) -> Result<(Vec<f32>, Vec<f32>)> {
        let (moved_images, moved_weights) = match self.moving {
            Some(Moving { weights, sum, .. }) => {
                let weights = weights.as_detached_tensor();
                (weights.apply_op1(sum)?.flatten_all()?.to_vec1()?, weights.to_vec1()?)
            }
            None => (Vec::new(), Vec::new()),
        };
        let pixels = self.samples.shape().iter().product();
        let (mut images, mut weights) = (Vec::new(), Vec::new());
        let (mut rest_of_images, mut rest_of_weights, mut start) = (moved_images.as_slice(), moved_weights.as_slice(), 0);
        for &size in &self.sizes {
            if size == 1 {
                images.extend(self.samples.values(&[start]));
                weights.push(1.0);
            } else {
                let (image, others) = rest_of_images.split_at(pixels);
                images.extend_from_slice(image);
                let (own, other_weights) = rest_of_weights.split_at(size);
                weights.extend_from_slice(own);
                (rest_of_images, rest_of_weights) = (others, other_weights);
            }
            start += size;
        }
        if let Some(place) = images.iter().position(|value| !value.is_finite()) {
            bail!("the condensed image of bucket {} is not finite after {} steps; give a lower `lr`", place / pixels, self.steps);
        }
        Ok((images, weights))
    }
}

impl Moving {
    fn new(network: &Network, samples: &Arc<Samples>, places: Vec<usize>, buckets: Vec<Range<usize>>) -> Result<Self> {
        let features = evaluate::features(network, samples)?;
        let initial: Vec<f32> = buckets.iter().flat_map(|bucket| std::iter::repeat_n(1.0 / bucket.len() as f32, bucket.len())).collect();
        let count = initial.len();
        let moving = Self {
            places,
            weights: Var::from_tensor(&Tensor::from_vec(initial, count, &Device::Cpu)?)?,
            target: mean_features(&features, &buckets)?,
            sum: WeightedSum { samples: samples.clone(), buckets },
            optimiser: Optimiser::new(Rule::Adam { weight_decay: 0.0 }),
        };
        moving.refuse_broken(&moving.target, "the mean feature")?;
        Ok(moving)
    }

    /// Names the first bucket whose row of `values` is not finite.
    fn refuse_broken(&self, values: &Tensor, what: &str) -> Result<()> {
        let rows = values.to_vec2::<f32>()?;
        match rows.iter().position(|row| row.iter().any(|value| !value.is_finite())) {
            Some(row) => bail!("{what} of bucket {} is not finite; give a lower `lr`, here or to the model", self.places[row]),
            None => Ok(()),
        }
    }
}

pub(crate) fn mean_features(features: &Array<f32>, buckets: &[Range<usize>]) -> Result<Tensor> {
    let mut means = Vec::with_capacity(buckets.len() * features.row_len());
    for bucket in buckets {
        let mut mean = vec![0.0_f64; features.row_len()];
        for row in bucket.clone() {
            mean.iter_mut().zip(features.row(row)).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        means.extend(mean.into_iter().map(|sum| (sum / bucket.len() as f64) as f32));
    }
    Tensor::from_vec(means, (buckets.len(), features.row_len()), &Device::Cpu)
}

/// From the weights of the buckets' images [M] to the weighted sum of each bucket's images [B, C, H, W].
#[derive(Clone)]
pub(crate) struct WeightedSum {
    pub(crate) samples: Arc<Samples>,
    /// The images of each bucket.
    pub(crate) buckets: Vec<Range<usize>>,
}

/// The ranges of these sizes, one after another from 0.
pub(crate) fn one_after_another(sizes: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    sizes.scan(0, |end, size| Some(std::mem::replace(end, *end + size)..*end)).collect()
}

impl CustomOp1 for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted_sum"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(weights), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            bail!("the weights must be contiguous f32")
        };
        let weights = &weights[from..to];
        let shape: Vec<usize> = std::iter::once(self.buckets.len()).chain(self.samples.shape().iter().copied()).collect();
        let mut images = vec![0.0; shape.iter().product()];
        let targets = images.par_chunks_mut(self.samples.shape().iter().product());
        let places = one_after_another(self.buckets.iter().map(Range::len));
        let buckets = self.buckets.par_iter().zip(places);
        targets.zip(buckets).for_each(|(image, (bucket, place))| self.samples.weighted_sum(bucket.clone(), &weights[place], image));
        Ok((CpuStorage::F32(images), shape.into()))
    }

    fn bwd(&self, weights: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let (storage, layout) = gradient.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("the gradient must be contiguous f32")
        };
        let gradients = values[from..to].par_chunks(self.samples.shape().iter().product());
        let products: Vec<Vec<f32>> =
            gradients.zip(&self.buckets).map(|(gradient, bucket)| self.samples.dot(bucket.clone(), gradient)).collect();
        Tensor::from_vec(products.concat(), weights.shape(), weights.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use dcu_nn::rng::Streams;
    use dcu_nn::{Architecture, Family};

    use super::*;

    const SIZES: [usize; 5] = [3, 1, 7, 1, 2];

    fn network() -> Network {
        let architecture = Architecture { widths: vec![6, 8], hidden: 10, ..Architecture::of_family(Family::Cnn, [3, 8, 8], 4) };
        Network::initialised(&architecture, &Streams::new(1, "test")).unwrap()
    }

    fn samples(rows: Range<usize>) -> Samples {
        let images = rows.clone().flat_map(|row| {
            let mut stream = Streams::new(2, "test").indexed("image", row as u64);
            (0..3 * 8 * 8).map(|_| stream.normal()).collect::<Vec<_>>()
        });
        Samples::of_values(Array::new(vec![rows.len(), 3, 8, 8], images.collect()), vec![0; rows.len()]).unwrap()
    }

    fn condensed(samples: &Samples, sizes: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let network = network();
        let mut matching = Matching::new(&network, samples, sizes).unwrap();
        for _ in 0..30 {
            matching.step(1e-3).unwrap();
        }
        matching.finish().unwrap()
    }

    #[test]
    fn each_bucket_gets_the_bytes_it_would_get_alone() {
        let (images, weights) = condensed(&samples(0..14), &SIZES);
        let mut start = 0;
        for (bucket, size) in SIZES.into_iter().enumerate() {
            let (alone, own_weights) = condensed(&samples(start..start + size), &[size]);
            assert_eq!(&images[bucket * 192..][..192], alone, "image of bucket {bucket}");
            assert_eq!(&weights[start..][..size], own_weights, "weights of bucket {bucket}");
            start += size;
        }
    }

    #[test]
    fn a_bucket_of_one_keeps_its_image() {
        let (images, weights) = condensed(&samples(0..14), &SIZES);
        assert_eq!((weights[3], &images[192..2 * 192]), (1.0, samples(3..4).values(&[0]).as_slice()));
        let (images, weights) = condensed(&samples(0..2), &[1, 1]);
        assert_eq!((weights, images), (vec![1.0; 2], samples(0..2).values(&[0, 1])));
    }

    #[test]
    fn the_features_come_closer_and_the_weights_move() {
        let network = network();
        let mut matching = Matching::new(&network, &samples(0..14), &SIZES).unwrap();
        let losses: Vec<f64> = (0..60).map(|_| matching.step(1e-3).unwrap()).collect();
        assert!(losses[59] < 0.9 * losses[0], "{losses:?}");
        let (_, weights) = matching.finish().unwrap();
        assert!((weights[0] - 1.0 / 3.0).abs() > 1e-3);
    }

    #[test]
    fn a_bucket_that_is_not_finite_is_named_with_the_step() {
        let network = network();
        // The second bucket of several images, of five buckets.
        let mut values = samples(0..14).values(&(0..14).collect::<Vec<_>>());
        let broken = |values: &[f32]| Samples::of_values(Array::new(vec![14, 3, 8, 8], values.to_vec()), vec![0; 14]).unwrap();
        let mut matching = Matching::new(&network, &broken(&values), &SIZES).unwrap();
        matching.step(1e-3).unwrap();
        matching.step(1e38).unwrap();
        let error = matching.step(1e-3).unwrap_err().to_string();
        assert!(error.contains("in step 3 at the learning rate 0.001 the loss of bucket 0 is not finite"), "{error}");
        values[6 * 192] = f32::NAN;
        let error = Matching::new(&network, &broken(&values), &SIZES).map(drop).unwrap_err().to_string();
        assert!(error.contains("the mean feature of bucket 2 is not finite"), "{error}");
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let network = network();
        for sizes in [&[3, 10][..], &[14, 0]] {
            assert!(Matching::new(&network, &samples(0..14), sizes).is_err());
        }
    }
}
