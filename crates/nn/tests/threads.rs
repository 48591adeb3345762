//! The same bytes for any number of threads.

use std::collections::BTreeMap;

use dcu_artifact::{Array, Tensor};
use dcu_nn::network::{self, Mode};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::train::{self, Phase, Prepared};
use dcu_nn::{Architecture, Family, Network, Part, Samples, Trainable, evaluate};

/// A convolutional network after an epoch of all parts and one of the final behind frozen ones, and its features.
fn trained() -> (BTreeMap<String, Tensor>, Vec<f32>) {
    let streams = Streams::new(1, "test");
    let architecture = Architecture { widths: vec![8, 160, 176], hidden: 20, ..Architecture::of_family(Family::Cnn, [3, 16, 16], 4) };
    let mut network = Network::initialised(&architecture, &streams).unwrap();
    let mut stream = streams.stream("images");
    let images = (0..130 * 3 * 16 * 16).map(|_| stream.normal()).collect();
    let samples = Samples::of_values(Array::new(vec![130, 3, 16, 16], images), (0..130).map(|row| row % 4).collect()).unwrap();
    let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
    for (parts, modes) in [(&Part::ALL[..], network::all(Mode::TRAIN)), (&[Part::Final], network::only(Part::Final, Mode::TRAIN))] {
        let trainable = Trainable::parts(network.graph(), parts);
        let phase = Phase { trainable: &trainable, modes, batch: 64, streams: &streams, purpose: "test" };
        let prepared = Prepared::new(&network, &samples, phase).unwrap();
        train::epoch(&mut network, &prepared, phase, 0, &mut optimiser, 1e-3).unwrap();
    }
    (network.to_tensors().unwrap(), evaluate::features(&network, &samples).unwrap().data)
}

#[test]
fn training_and_features_do_not_depend_on_the_number_of_threads() {
    let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(trained);
    let expected = on(1);
    for threads in [2, 3, 4] {
        assert!(on(threads) == expected, "{threads} threads");
    }
}
