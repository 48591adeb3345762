//! Passes over all samples in eval mode, in large batches and without a graph.

use candle_core::{Result, Tensor};
use dcu_artifact::Array;

use crate::architecture::Part;
use crate::network::Network;
use crate::ops::cross_entropy_per_sample;
use crate::samples::Samples;

/// Samples in one batch of a pass. Has no influence on the result.
const BATCH: usize = 256;

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
/// When the samples do not fit the network.
pub fn judge(network: &Network, samples: &Samples) -> Result<Judgement> {
    let classes = network.architecture().classes;
    let (mut losses, mut predictions, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    for_each_batch(samples, |input, labels| {
        let output = network.evaluate(&input, &Part::ALL)?;
        losses.extend(cross_entropy_per_sample(&output, labels)?);
        let values = output.flatten_all()?.to_vec1::<f32>()?;
        predictions.extend(values.chunks_exact(classes).map(first_largest));
        logits.extend(values);
        Ok(())
    })?;
    Ok(Judgement { losses, predictions, logits: Array::new(vec![samples.len(), classes], logits) })
}

/// The output of the consecutive `parts` for each sample, [N, ...].
///
/// # Errors
/// When the samples do not fit the network.
pub fn outputs(network: &Network, samples: &Samples, parts: &[Part]) -> Result<Array<f32>> {
    let (mut values, mut shape) = (Vec::new(), Vec::new());
    for_each_batch(samples, |input, _| {
        let output = network.evaluate(&input, parts)?;
        shape = output.dims().to_vec();
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
/// When the samples do not fit the network.
pub fn features(network: &Network, samples: &Samples) -> Result<Array<f32>> {
    let array = outputs(network, samples, &[Part::Beginning, Part::Intermediate])?;
    Ok(Array::new(vec![array.rows(), array.row_len()], array.data))
}

fn for_each_batch(samples: &Samples, mut visit: impl FnMut(Tensor, &[u32]) -> Result<()>) -> Result<()> {
    let rows: Vec<usize> = (0..samples.len()).collect();
    for rows in rows.chunks(BATCH) {
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

    /// Frozen parts' outputs are kept or computed anew in other batches, and a bucket is condensed beside others: all to the same bytes.
    #[test]
    fn an_output_does_not_depend_on_the_batch() {
        let streams = Streams::new(1, "test");
        let cnn = Architecture { widths: vec![8, 16, 24], hidden: 20, ..Architecture::of_paper(Family::Cnn, [3, 16, 16], 4) };
        for architecture in [cnn, Architecture::of_paper(Family::Mlp, [3, 16, 16], 4)] {
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
