//! What is counted of passes, gradients and steps, against counts by hand. The tally is of the whole process, so that one test at a time may compute.

use std::sync::{Mutex, MutexGuard};

use dcu_artifact::{Array, Cost};
use dcu_nn::network::{self, Mode};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::train::{self, Phase, Prepared};
use dcu_nn::{Architecture, Family, Gradients, Network, Part, Samples, Tensor, Trainable, Var, derivatives, evaluate, ops, tally};

/// For a test that counts.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Forward, backward, steps and operations of some work.
fn counted<T>(work: impl FnOnce() -> T) -> [u64; 4] {
    tally::set(Cost::default());
    work();
    let Cost { forward, backward, steps, operations, changed } = tally::read();
    assert_eq!(changed, None);
    [forward, backward, steps, operations]
}

fn initialised(architecture: &Architecture) -> Network {
    Network::initialised(architecture, &Streams::new(1, "test")).unwrap()
}

/// So many random images of two classes.
fn samples(architecture: &Architecture, count: usize) -> Samples {
    let mut stream = Streams::new(2, "test").stream("images");
    let shape: Vec<usize> = [count].into_iter().chain(architecture.input).collect();
    let images = (0..shape.iter().product()).map(|_| stream.normal()).collect();
    Samples::of_values(Array::new(shape, images), (0..count).map(|row| (row % 2) as u32).collect()).unwrap()
}

fn images(architecture: &Architecture, count: usize) -> Tensor {
    samples(architecture, count).batch(&(0..count).collect::<Vec<_>>()).unwrap().0
}

/// Three layers: 6 x 5, 5 x 4 and 4 x 3, of two operations a weight: 60, 40 and 24.
fn perceptron() -> Architecture {
    Architecture { widths: vec![5, 4], ..Architecture::of_family(Family::Mlp, [1, 2, 3], 3) }
}

/// Convolutions of 1 to 2 channels on 4 x 4 pixels and 2 to 3 on 2 x 2, layers of 3 x 5 and 5 x 2: 576, 432, 30 and 20.
fn convolutional() -> Architecture {
    Architecture { widths: vec![2, 3], hidden: 5, ..Architecture::of_family(Family::Cnn, [1, 4, 4], 2) }
}

fn named(network: &Network, names: &[&str]) -> Trainable {
    let trainable = Trainable::which(network.graph(), |_, slot| names.contains(&slot.name.as_str()));
    assert_eq!(trainable.iter().count(), names.len());
    trainable
}

#[test]
fn a_pass_counts_its_samples_and_the_steps_they_go_through() {
    let _alone = alone();
    let architecture = perceptron();
    let network = initialised(&architecture);
    assert_eq!(counted(|| evaluate::judge(&network, &samples(&architecture, 7)).unwrap()), [7, 0, 0, 7 * 124]);
    assert_eq!(counted(|| evaluate::features(&network, &samples(&architecture, 7)).unwrap()), [7, 0, 0, 7 * 100]);
    assert_eq!(counted(|| network.evaluate(&images(&architecture, 3), &[Part::Beginning]).unwrap()), [3, 0, 0, 3 * 60]);
    assert_eq!(counted(|| network.evaluate(&images(&architecture, 3), &[]).unwrap()), [0; 4]);
    // Blocks that are frozen together.
    let architecture = convolutional();
    let network = initialised(&architecture);
    assert_eq!(counted(|| evaluate::judge(&network, &samples(&architecture, 7)).unwrap()), [7, 0, 0, 7 * 1058]);
}

#[test]
fn the_way_back_counts_what_is_trained_and_what_leads_there() {
    let _alone = alone();
    let architecture = perceptron();
    let network = initialised(&architecture);
    let images = images(&architecture, 7);
    let taught = |trainable: &Trainable| {
        counted(|| {
            let loss = network.judge(&images, trainable).unwrap().sqr().unwrap().sum_all().unwrap();
            network.backward(&loss, trainable).unwrap()
        })
    };
    // All weights, and the inputs of all layers but the first, which the images are.
    assert_eq!(taught(&Trainable::all(network.graph())), [7, 7, 0, 7 * (124 + 124 + 64)]);
    assert_eq!(taught(&Trainable::parts(network.graph(), &[Part::Final])), [7, 7, 0, 7 * (124 + 24)]);
    assert_eq!(taught(&Trainable::parts(network.graph(), &[Part::Beginning])), [7, 7, 0, 7 * (124 + 60 + 64)]);
    // A bias alone: nothing but what leads to it.
    assert_eq!(taught(&named(&network, &["linear2.bias"])), [7, 7, 0, 7 * (124 + 24)]);
    assert_eq!(taught(&named(&network, &["linear1.weight", "linear3.bias"])), [7, 7, 0, 7 * (124 + 60 + 64)]);
    // To the images, and nothing that is trained: as condensation asks for.
    let followed = Var::from_tensor(&images).unwrap();
    let matched = counted(|| network.features(followed.as_tensor()).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap());
    assert_eq!(matched, [7, 7, 0, 7 * (100 + 100)]);
}

#[test]
fn a_gradient_counts_as_often_as_it_comes_back() {
    let _alone = alone();
    let architecture = perceptron();
    let (network, images) = (initialised(&architecture), images(&architecture, 7));
    let trainable = Trainable::all(network.graph());
    let loss = || network.judge(&images, &trainable).unwrap().sqr().unwrap().sum_all().unwrap();
    assert_eq!(counted(loss), [7, 0, 0, 7 * 124], "nobody learns from it");
    let twice = counted(|| {
        let loss = loss();
        loss.backward().unwrap();
        network.backward(&loss, &trainable).unwrap();
    });
    assert_eq!(twice, [7, 14, 0, 7 * (124 + 2 * 188)]);
    // A loss of two networks, one of which is only asked.
    let teacher = initialised(&architecture);
    let both = counted(|| {
        let difference = (network.judge(&images, &trainable).unwrap() - teacher.evaluate(&images, &Part::ALL).unwrap()).unwrap();
        network::backward(&difference.sqr().unwrap().sum_all().unwrap(), &[(&network, &trainable)]).unwrap()
    });
    assert_eq!(both, [14, 7, 0, 7 * (2 * 124 + 188)]);
}

#[test]
fn attention_and_shortcuts_are_led_back_through() {
    let _alone = alone();
    // 4 tokens and the class token, of 4 values.
    let transformer = Architecture {
        widths: vec![4],
        depth: Some(1),
        heads: Some(2),
        patch: Some(2),
        ..Architecture::of_family(Family::VitTiny, [1, 4, 4], 2)
    };
    let patches = 2 * 4 * 4 * 4;
    let [tripled, attended, projected, wide, narrow] = [2 * 5 * 4 * 12, 2 * 5 * 4 * 2 * 5, 2 * 5 * 4 * 4, 2 * 5 * 4 * 16, 2 * 5 * 16 * 4];
    let head = 2 * 4 * 2;
    let layers = tripled + projected + wide + narrow + head;
    let network = initialised(&transformer);
    let images = images(&transformer, 3);
    let taught = |trainable: &Trainable| {
        counted(|| {
            let loss = network.judge(&images, trainable).unwrap().sqr().unwrap().sum_all().unwrap();
            network.backward(&loss, trainable).unwrap()
        })
    };
    let forward = patches + attended + layers;
    // Both factors of attention's products have a gradient.
    assert_eq!(taught(&Trainable::all(network.graph())), [3, 3, 0, 3 * (forward + (patches + layers) + (layers + 2 * attended))]);
    // What is trained last is reached past all that lies before it.
    assert_eq!(taught(&named(&network, &["blocks.0.mlp.fc2.weight"])), [3, 3, 0, 3 * (forward + narrow + head)]);
    // By the shortcut around attention and by the way through it.
    assert_eq!(taught(&named(&network, &["cls_token"])), [3, 3, 0, 3 * (forward + layers + 2 * attended)]);
}

#[test]
fn frozen_parts_that_are_kept_count_when_they_are_computed() {
    let _alone = alone();
    let architecture = perceptron();
    let mut network = initialised(&architecture);
    let (samples, streams) = (samples(&architecture, 7), Streams::new(3, "test"));
    let trainable = Trainable::parts(network.graph(), &[Part::Final]);
    let phase = Phase { trainable: &trainable, modes: network::all(Mode::EVAL), batch: 4, streams: &streams, purpose: "test" };
    let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
    let prepared = counted(|| Prepared::new(&network, &samples, phase).unwrap());
    assert_eq!(prepared, [7, 0, 0, 7 * 100]);
    let prepared = Prepared::new(&network, &samples, phase).unwrap();
    let epochs = counted(|| {
        for epoch in 0..2 {
            train::epoch(&mut network, &prepared, phase, epoch, &mut optimiser, 1e-3).unwrap();
        }
    });
    assert_eq!(epochs, [14, 14, 4, 14 * (24 + 24)], "two batches in each of two epochs");
    let step = counted(|| train::accumulated_step(&mut network, &prepared, phase, 0, &mut optimiser, 1e-3).unwrap());
    assert_eq!(step, [7, 7, 1, 7 * (24 + 24)]);
}

#[test]
fn what_goes_past_a_plain_pass_is_counted_too() {
    let _alone = alone();
    let architecture = convolutional();
    let mut network = initialised(&architecture);
    let samples = samples(&architecture, 7);
    // Up to the layer before each normalisation: of the first convolution, then of both.
    assert_eq!(counted(|| train::recompute_running_averages(&mut network, &samples, Part::Beginning).unwrap()), [7, 0, 0, 7 * 576]);
    assert_eq!(counted(|| train::recompute_running_averages(&mut network, &samples, Part::Intermediate).unwrap()), [7, 0, 0, 7 * 1008]);
    // Gradients of single samples take the way back once for all of them.
    let (trainable, images) = (Trainable::all(network.graph()), images(&architecture, 7));
    let loss = |logits: &Tensor, rows: &[usize]| ops::cross_entropy(logits, &rows.iter().map(|row| (row % 2) as u32).collect::<Vec<_>>());
    let modes = network::all(Mode::EVAL);
    let gradients = 7 * (1058 + 1058 + 482);
    assert_eq!(counted(|| derivatives::per_sample(&network, &images, &loss, &trainable, modes).unwrap()), [7, 7, 0, gradients]);
    assert_eq!(counted(|| derivatives::sum_of_squares(&network, &images, &loss, &trainable, modes).unwrap()), [7, 7, 0, gradients]);
    let mut curvature = derivatives::Curvature::new(&network, &images, &loss, &trainable, modes).unwrap();
    let direction = curvature.gradient().unwrap();
    assert_eq!(counted(|| curvature.product(&direction).unwrap()), [14, 14, 0, 2 * gradients]);
}

#[test]
fn a_step_that_is_refused_is_none() {
    let _alone = alone();
    let network = initialised(&perceptron());
    let trainable = Trainable::all(network.graph());
    let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
    let refused = counted(|| optimiser.step(&network.parameters(&trainable), &Gradients::default(), 1e-3).unwrap_err());
    assert_eq!(refused, [0; 4]);
}

#[test]
fn counts_do_not_depend_on_the_number_of_threads() {
    let _alone = alone();
    let architecture = Architecture { widths: vec![8, 24, 40], hidden: 20, ..Architecture::of_family(Family::Cnn, [3, 16, 16], 4) };
    let samples = samples(&architecture, 130);
    let streams = Streams::new(1, "test");
    let train = || {
        let mut network = initialised(&architecture);
        let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
        for (parts, modes) in [(&Part::ALL[..], network::all(Mode::TRAIN)), (&[Part::Final], network::only(Part::Final, Mode::TRAIN))] {
            let trainable = Trainable::parts(network.graph(), parts);
            let phase = Phase { trainable: &trainable, modes, batch: 64, streams: &streams, purpose: "test" };
            let prepared = Prepared::new(&network, &samples, phase).unwrap();
            train::epoch(&mut network, &prepared, phase, 0, &mut optimiser, 1e-3).unwrap();
        }
        evaluate::judge(&network, &samples).unwrap();
    };
    let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| counted(train));
    let expected = on(1);
    assert_eq!(expected[..3], [4 * 130, 2 * 130, 6]);
    assert_eq!(on(4), expected);
}
