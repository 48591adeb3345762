//! Passes over all samples in eval mode, in large batches and without a graph.

use candle_core::{DType, Result, Tensor, bail};
use dcu_artifact::Array;

use crate::architecture::Part;
use crate::network::Network;
use crate::ops::cross_entropy_per_sample;
use crate::samples::Samples;

/// Samples in one batch of a pass at most, and the bytes that two layers' outputs for them may take. Have no influence on the result.
const BATCH: usize = 256;
const BYTES: usize = 1 << 28;

/// The judgement of a network on each sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Cross-entropy of each sample in nats, [N].
    pub losses: Vec<f64>,
    /// The class with the largest logit (the first of equals), [N].
    pub predictions: Vec<u32>,
    /// Logits, [N, classes].
    pub logits: Array<f32>,
}

impl Judgement {
    /// The share of samples at `rows` whose prediction is right; `None` without any.
    #[must_use]
    pub fn accuracy(&self, labels: &[u32], rows: impl IntoIterator<Item = usize>) -> Option<f64> {
        let (mut right, mut count) = (0_usize, 0_usize);
        for row in rows {
            right += usize::from(self.predictions[row] == labels[row]);
            count += 1;
        }
        (count > 0).then(|| right as f64 / count as f64)
    }
}

/// Loss, prediction and logits of each sample.
///
/// # Errors
/// When there are no samples, these do not fit the network, or a logit is not finite.
pub fn judge(network: &Network, samples: &Samples) -> Result<Judgement> {
    let classes = network.architecture().classes;
    let (mut losses, mut predictions) = (Vec::with_capacity(samples.len()), Vec::with_capacity(samples.len()));
    let mut logits: Vec<f32> = Vec::with_capacity(samples.len() * classes);
    for_each_batch(network, samples, |input, labels| {
        let output = network.evaluate(&input, &Part::ALL)?;
        losses.extend(cross_entropy_per_sample(&output, labels)?);
        let values = output.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            let (sample, class) = ((logits.len() + place) / classes, place % classes);
            bail!(
                "the network gives sample {sample} the logit {} for class {class}; its training diverged, or its weights are damaged: train it \
                 again with a lower `lr`",
                values[place]
            );
        }
        predictions.extend(values.chunks_exact(classes).map(first_largest));
        logits.extend(values);
        Ok(())
    })?;
    Ok(Judgement { losses, predictions, logits: Array::new(vec![samples.len(), classes], logits) })
}

/// The output of the consecutive `parts` for each sample, [N, ...].
///
/// # Errors
/// When there are no samples, or these do not fit the network.
pub fn outputs(network: &Network, samples: &Samples, parts: &[Part]) -> Result<Array<f32>> {
    collected(network, samples, |input| network.evaluate(input, parts))
}

fn collected(network: &Network, samples: &Samples, pass: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Array<f32>> {
    let (mut values, mut shape) = (Vec::new(), Vec::new());
    for_each_batch(network, samples, |input, _| {
        let output = pass(&input)?.to_dtype(DType::F32)?;
        shape = output.dims().to_vec();
        values.reserve_exact(samples.len() * shape.iter().skip(1).product::<usize>() - values.len());
        values.extend(output.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    })?;
    if let Some(count) = shape.first_mut() {
        *count = samples.len();
    }
    Ok(Array::new(shape, values))
}

/// The feature vector of each sample, on which clustering and condensation work, [N, D].
///
/// # Errors
/// As [`outputs`].
pub fn features(network: &Network, samples: &Samples) -> Result<Array<f32>> {
    collected(network, samples, |input| network.features(input))
}

pub(crate) fn for_each_batch(network: &Network, samples: &Samples, visit: impl FnMut(Tensor, &[u32]) -> Result<()>) -> Result<()> {
    for_each_batch_within(BYTES, network, samples, visit)
}

fn for_each_batch_within(
    bytes: usize,
    network: &Network,
    samples: &Samples,
    mut visit: impl FnMut(Tensor, &[u32]) -> Result<()>,
) -> Result<()> {
    if samples.is_empty() {
        bail!("there are no samples to evaluate");
    }
    let of_sample = network.graph().widest().saturating_mul(size_of::<f32>());
    let rows: Vec<usize> = (0..samples.len()).collect();
    for rows in rows.chunks((bytes / of_sample).clamp(1, BATCH)) {
        let (input, labels) = samples.batch(rows)?;
        visit(input, &labels)?;
    }
    Ok(())
}

fn first_largest(row: &[f32]) -> u32 {
    let mut best = 0;
    for (class, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = class;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Architecture, Family};
    use crate::network::Network;
    use crate::rng::Streams;

    /// The batches of a pass take what memory allows, down to one sample, and give the same bytes.
    #[test]
    fn large_samples_go_in_small_batches() {
        let architecture = Architecture { widths: vec![8, 9], hidden: 20, ..Architecture::of_family(Family::Cnn, [3, 16, 16], 4) };
        let network = Network::initialised(&architecture, &Streams::new(1, "test")).unwrap();
        // The image, and the first convolution's result.
        assert_eq!(network.graph().widest(), (3 + 8) * 256);
        let images = (0..7 * 3 * 256).map(|value| (value as f32).sin()).collect();
        let samples = Samples::of_values(Array::new(vec![7, 3, 16, 16], images), vec![0; 7]).unwrap();
        let pass = |bytes: usize| {
            let (mut sizes, mut values) = (Vec::new(), Vec::new());
            for_each_batch_within(bytes, &network, &samples, |input, labels| {
                sizes.push(labels.len());
                values.extend(network.evaluate(&input, &Part::ALL)?.flatten_all()?.to_vec1::<f32>()?);
                Ok(())
            })
            .unwrap();
            (sizes, values)
        };
        let (sizes, expected) = pass(1 << 30);
        assert_eq!(sizes, [7]);
        for (bytes, sizes) in [(3 * 11 * 1024, vec![3, 3, 1]), (1, vec![1; 7])] {
            assert_eq!(pass(bytes), (sizes, expected.clone()));
        }
    }

    #[test]
    fn no_samples_and_logits_that_are_no_numbers_are_refused() {
        let architecture = Architecture { widths: vec![4, 3], ..Architecture::of_family(Family::Mlp, [1, 2, 2], 2) };
        let network = Network::initialised(&architecture, &Streams::new(1, "test")).unwrap();
        let samples = |images: Vec<f32>| {
            let count = images.len() / 4;
            Samples::of_values(Array::new(vec![count, 1, 2, 2], images), vec![0; count]).unwrap()
        };
        for result in [judge(&network, &samples(vec![])).map(drop), features(&network, &samples(vec![])).map(drop)] {
            assert!(result.unwrap_err().to_string().contains("no samples"));
        }
        let mut images = vec![0.5; 300 * 4];
        assert!(judge(&network, &samples(images.clone())).is_ok());
        images[290 * 4] = f32::NAN;
        let error = judge(&network, &samples(images)).unwrap_err().to_string();
        assert!(error.contains("sample 290 the logit NaN"), "{error}");
    }

    /// Frozen parts' outputs are kept or computed anew in other batches, and a bucket is condensed beside others: all to the same bytes.
    #[test]
    fn an_output_does_not_depend_on_the_batch() {
        let streams = Streams::new(1, "test");
        let cnn = Architecture { widths: vec![8, 16, 24], hidden: 20, ..Architecture::of_family(Family::Cnn, [3, 16, 16], 4) };
        for architecture in [cnn, Architecture::of_family(Family::Mlp, [3, 16, 16], 4)] {
            let network = Network::initialised(&architecture, &streams).unwrap();
            let mut stream = streams.stream("images");
            let images: Vec<f32> = (0..70 * 3 * 16 * 16).map(|_| stream.normal()).collect();
            let samples = Samples::of_values(Array::new(vec![70, 3, 16, 16], images), vec![0; 70]).unwrap();
            let output = |rows: &[usize]| {
                let (input, _) = samples.batch(rows).unwrap();
                network.evaluate(&input, &Part::ALL).and_then(|output| output.to_vec2::<f32>()).unwrap()
            };
            let together = output(&(0..70).collect::<Vec<_>>());
            for rows in [&[3][..], &[69, 0], &[40, 41, 42, 43, 44, 45, 46]] {
                let expected: Vec<_> = rows.iter().map(|&row| together[row].clone()).collect();
                assert_eq!(output(rows), expected, "{:?}", architecture.family);
            }
        }
    }
}
