//! What condensing costs.

use dcu_artifact::{Array, Cost};
use dcu_condense::matching::Matching;
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Family, Network, Samples, tally};

#[test]
fn matching_counts_the_features_and_each_step_of_the_buckets_that_move() {
    let streams = Streams::new(1, "test");
    // The features lie behind two layers, of 8 x 5 and 5 x 3.
    let architecture = Architecture { widths: vec![5, 3], ..Architecture::of_family(Family::Mlp, [2, 2, 2], 2) };
    let network = Network::initialised(&architecture, &streams).unwrap();
    let mut stream = streams.stream("images");
    let images = (0..12 * 8).map(|_| stream.normal()).collect();
    let samples = Samples::of_values(Array::new(vec![12, 2, 2, 2], images), vec![0; 12]).unwrap();
    tally::set(Cost::default());
    let mut matching = Matching::new(&network, &samples, &[4, 1, 5, 2]).unwrap();
    let layers = 2 * (8 * 5 + 5 * 3);
    assert_eq!(tally::read(), Cost { forward: 12, operations: 12 * layers, ..Cost::default() });
    for _ in 0..3 {
        matching.step(1e-3).unwrap();
    }
    // Three images in each of three steps, whose gradients go back to them.
    let expected = Cost { forward: 12 + 9, backward: 9, steps: 3, operations: (12 + 2 * 9) * layers, changed: None };
    assert_eq!(tally::read(), expected);
}
