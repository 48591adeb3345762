//! `train/patches`: a network of patches whose dictionary is learned from the remembrance images alone, so that nothing before its last layer ever saw the training set (Coates and Ng,
//! ICML workshop 2011; Thiry et al., arXiv 2101.07528). The last layer is not trained here: `condense/statistics` solves for it.
//!
//! An atom is a random patch p that is whitened and scaled to length 1, d = V (p - m) / |V (p - m)|, and its response to a patch x is dᵀ V (x - m), where m and C are mean and covariance of all
//! patches of the remembrance images and Vᵀ V = (C + ε I)⁻¹. So what is convolved with is (C + ε I)⁻¹ (p - m) / √((p - m)ᵀ (C + ε I)⁻¹ (p - m)) for any such V, ZCA's as well as the inverse of a Cholesky
//! factor, and no eigenvalue is needed. Of contrast normalisation the network, whose dictionary is linear, has none: what it does to an atom, the scaling does too.

use std::collections::BTreeSet;

use dcu_artifact::{Array, Dataset, Holdout, Model, Tensor};
use dcu_nn::cholesky::Cholesky;
use dcu_nn::matrix::{Matrix, product};
use dcu_nn::recipe::Recipe;
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Family, Network, Samples, model};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) struct Patches;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    /// Atoms of the dictionary. Each gives eight features: two sides in four quadrants.
    atoms: usize,
    /// Rows and columns of a patch.
    patch: usize,
    /// What is added to the variance in each direction before whitening, as a share of their mean.
    epsilon: f64,
    /// Another number gives another dictionary with the same seed.
    replicate: u32,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { atoms: 400, patch: 6, epsilon: 0.1, replicate: 1 }
    }
}

impl Method for Patches {
    const NAME: &'static str = "patches";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Learns a dictionary of whitened patches from the remembrance images alone, as a network whose last layer is still to be solved for (condense/statistics)";
    const USES_SEED: bool = true;
    const INPUTS: &'static [Input] = &[Input::one::<Dataset>("test"), Input::one::<Holdout>("holdout")];
    const OUTPUTS: &'static [Output] = &[Output::artifact::<Model>("model")];

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Rejected::unless(parameters.atoms > 0, "atoms", "`atoms` must be at least 1")?;
        Rejected::unless(parameters.patch > 0, "patch", "`patch` must be at least 1")?;
        let positive = parameters.epsilon > 0.0 && parameters.epsilon.is_finite();
        Rejected::unless(positive, "epsilon", "`epsilon` must be a positive number")?;
        Rejected::unless(parameters.replicate > 0, "replicate", "`replicate` counts from 1")?;
        Ok(parameters)
    }

    fn run(parameters: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let (test, holdout): (Dataset, Holdout) = (context.read("test")?, context.read("holdout")?);
        let usual = Architecture::of_family(Family::Patches, test.image_shape(), test.classes());
        let architecture = Architecture { widths: vec![parameters.atoms], patch: Some(parameters.patch), ..usual };
        architecture.graph().map_err(|reason| {
            Failure::new(format!("there is no such network: {reason}"), "change `atoms` or `patch`, or the size of the images in `data`")
        })?;
        let rows = test.rows_of(&holdout.remembrance).map_err(|id| {
            Failure::new(format!("the remembrance sample {id} is not in `test`"), "make the holdout from the same test set")
        })?;
        let streams = Streams::new(context.seed(), "train/patches").replicate(parameters.replicate);
        let [weight, bias] = dictionary(&test, &rows, parameters, &streams)?;
        let mut tensors = Network::initialised(&architecture, &streams)?.to_tensors()?;
        for (name, values) in [("dictionary.weight", weight), ("dictionary.bias", bias)] {
            let shape = tensors[name].shape().to_vec();
            tensors.insert(name.to_owned(), Tensor::F32(Array::new(shape, values)));
        }
        let network = Network::from_tensors(&architecture, &tensors)?;
        let mut learned = model::to_artifact(&network, &Recipe::default(), &test)?;
        learned.facts.unseen = true;
        context.write("model", &learned)
    }
}

/// Weights [atoms, C · patch²] and biases of the dictionary of the images at `rows`.
fn dictionary(test: &Dataset, rows: &[usize], parameters: &Parameters, streams: &Streams) -> anyhow::Result<[Vec<f32>; 2]> {
    let [channels, height, width] = test.image_shape();
    let (side, samples) = (parameters.patch, Samples::of_dataset(test, rows));
    let (down, across) = (height + 1 - side, width + 1 - side);
    let size = channels * side * side;
    let images = samples.values(&(0..rows.len()).collect::<Vec<_>>());
    let image_size = channels * height * width;
    let patch = |place: usize| {
        let (image, top, left) = (place / (down * across), place / across % down, place % across);
        let mut values = Vec::with_capacity(size);
        for channel in 0..channels {
            for row in top..top + side {
                let start = image * image_size + (channel * height + row) * width + left;
                values.extend_from_slice(&images[start..start + side]);
            }
        }
        values
    };
    let count = rows.len() * down * across;

    // A part of the images at a time.
    let (mut sum, mut products) = (vec![0.0; size], vec![0.0; size * size]);
    for image in 0..rows.len() {
        let places = image * down * across..(image + 1) * down * across;
        let values: Vec<f64> = places.flat_map(patch).map(f64::from).collect();
        values.chunks_exact(size).for_each(|values| sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value));
        let matrix = Matrix::new(&values, down * across, size);
        products.iter_mut().zip(product(matrix.transposed(), matrix)).for_each(|(sum, value)| *sum += value);
    }
    let mean: Vec<f64> = sum.iter().map(|sum| sum / count as f64).collect();
    let mut covariance = products;
    for row in 0..size {
        for column in 0..size {
            covariance[row * size + column] = covariance[row * size + column] / count as f64 - mean[row] * mean[column];
        }
    }
    let variance = (0..size).map(|row| covariance[row * size + row]).sum::<f64>() / size as f64;
    (0..size).for_each(|row| covariance[row * size + row] += parameters.epsilon * variance);
    let factor = Cholesky::new(covariance, size)
        .map_err(|_| Failure::new("the remembrance images do not vary", "hold out other images, or give a larger `epsilon`"))?;

    let mut seen = BTreeSet::new();
    let (mut weights, mut biases) = (Vec::with_capacity(parameters.atoms * size), Vec::with_capacity(parameters.atoms));
    for place in streams.stream("patches").permutation(count) {
        let values = patch(place);
        if !seen.insert(values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>()) {
            continue;
        }
        let centred: Vec<f64> = values.iter().zip(&mean).map(|(value, mean)| f64::from(*value) - mean).collect();
        let direction = factor.solve(centred.clone(), 1);
        let length = direction.iter().zip(&centred).map(|(one, other)| one * other).sum::<f64>().sqrt();
        if length > 0.0 {
            biases.push((-direction.iter().zip(&mean).map(|(one, other)| one * other).sum::<f64>() / length) as f32);
            weights.extend(direction.iter().map(|value| (value / length) as f32));
        }
        if biases.len() == parameters.atoms {
            return Ok([weights, biases]);
        }
    }
    let message = format!(
        "the {} remembrance images have {} different patches of {side} x {side}, not {}",
        rows.len(),
        biases.len(),
        parameters.atoms
    );
    Err(Failure::new(message, "give fewer `atoms`, or hold out more images (`ipc`)").into())
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{DatasetFacts, Normalisation};

    use super::*;

    fn dataset(count: usize) -> Dataset {
        let mut stream = Streams::new(3, "test").stream("pixels");
        let facts = DatasetFacts {
            source: "test".into(),
            class_names: vec!["a".into(), "b".into()],
            normalisation: Normalisation { mean: vec![0.5, 0.25], std: vec![0.25, 0.5] },
            names: None,
        };
        Dataset {
            images: Array::new(vec![count, 2, 7, 6], (0..count * 84).map(|_| stream.below(256) as u8).collect()),
            labels: (0..count as u32).map(|row| row % 2).collect(),
            original_labels: None,
            ids: (0..count as u64).collect(),
            facts,
        }
    }

    fn parameters(atoms: usize) -> Parameters {
        Parameters { atoms, patch: 3, epsilon: 1e-6, replicate: 1 }
    }

    /// Of whitened patches the response to each atom, whose length is 1, has mean 0 and variance 1 over them.
    #[test]
    fn responses_are_those_of_whitened_patches() {
        let (test, rows) = (dataset(12), [1, 2, 3, 5, 7, 8, 10, 11]);
        let [weights, biases] = dictionary(&test, &rows, &parameters(5), &Streams::new(1, "test")).unwrap();
        let values = Samples::of_dataset(&test, &rows).values(&(0..8).collect::<Vec<_>>());
        for (atom, bias) in weights.chunks_exact(18).zip(&biases) {
            let (mut sum, mut squares) = (0.0, 0.0);
            for (image, top, left) in (0..8 * 20).map(|place| (place / 20, place / 4 % 5, place % 4)) {
                let at = |index: usize| values[image * 84 + (index / 9 * 7 + top + index / 3 % 3) * 6 + left + index % 3];
                let response: f64 = f64::from(*bias) + (0..18).map(|index| f64::from(atom[index] * at(index))).sum::<f64>();
                sum += response;
                squares += response * response;
            }
            assert!((sum / 160.0).abs() < 1e-5 && (squares / 160.0 - 1.0).abs() < 1e-4, "{sum} {squares}");
        }
    }

    #[test]
    fn other_images_than_the_remembrance_set_change_nothing() {
        let (mut test, rows) = (dataset(12), [0, 4, 6]);
        let learn = |test: &Dataset, replicate| {
            let streams = Streams::new(1, "test").replicate(replicate);
            dictionary(test, &rows, &parameters(5), &streams).unwrap()
        };
        let before = learn(&test, 1);
        test.images.data[84..336].fill(0);
        assert_eq!(learn(&test, 1), before);
        assert_ne!(learn(&test, 2), before);
        test.images.data[0] ^= 1;
        assert_ne!(learn(&test, 1), before);
    }

    #[test]
    fn a_dictionary_has_no_atom_twice() {
        let mut test = dataset(2);
        // Both images are the same, so that of 40 patches 20 are different.
        test.images.data.copy_within(..84, 84);
        assert!(dictionary(&test, &[0, 1], &parameters(20), &Streams::new(1, "test")).is_ok());
        let error = dictionary(&test, &[0, 1], &parameters(21), &Streams::new(1, "test")).unwrap_err();
        assert!(error.to_string().contains("20 different patches of 3 x 3, not 21"), "{error}");
    }
}
