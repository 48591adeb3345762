//! Every network of the zoo against torchvision, timm and PyTorch: logits, gradients, running averages and trainings (golden/zoo.py).

mod golden;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::DType;
use dcu_artifact::Tensor as Stored;
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::recipe::{OptimiserName, Recipe};
use dcu_nn::rng::Streams;
use dcu_nn::train::{self, Phase, Prepared};
use dcu_nn::{Architecture, Device, Mode, Network, Part, Place, Samples, Tensor, Trainable, network, ops};
use golden::{Golden, State, apart, flat, samples, state_of, units};
use serde::Deserialize;

const STEPS: usize = 20;
const BATCH: usize = 8;
const IMAGES: usize = 24;
const SHOWN: usize = 5;

#[derive(Deserialize)]
struct Case {
    architecture: Architecture,
    state: State,
    draw: usize,
    rates: BTreeMap<String, f64>,
    rest: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Started {
    architecture: Architecture,
    tensors: Vec<(String, Vec<usize>, String, f64)>,
}

fn cases(golden: &Golden) -> BTreeMap<String, Case> {
    golden.facts("cases")
}

/// The kernels and what is composed of candle's operations, with how far logits of either type may be from PyTorch's in f64.
fn places() -> [(Place, f64); 4] {
    [(DType::F32, false, 1e-4), (DType::F32, true, 1e-4), (DType::F64, false, 1e-11), (DType::F64, true, 1e-11)]
        .map(|(dtype, composed, tolerance)| (Place { dtype, composed, ..Place::default() }, tolerance))
}

fn forward(network: &mut Network, images: &Tensor, trainable: &Trainable) -> Tensor {
    let mut unused = Streams::new(0, "test").stream("dropout");
    network.forward(images, &Part::ALL, network::all(Mode::TRAIN), trainable, &mut unused).unwrap()
}

/// Holds each case to a tolerance, and tells how far the worst one was.
fn hold(what: &str, found: impl IntoIterator<Item = (String, f64)>, tolerance: f64) {
    let mut found: Vec<(String, f64)> = found.into_iter().collect();
    found.sort_by(|left, right| right.1.total_cmp(&left.1));
    println!("{what}: {:.1e} at most, by {}", found[0].1, found[0].0);
    let beyond: Vec<_> = found.iter().filter(|(_, apart)| *apart > tolerance).collect();
    assert!(beyond.is_empty(), "{what} beyond {tolerance:.0e}: {beyond:?}");
}

#[test]
fn networks_have_the_tensors_of_pytorch() {
    for (name, case) in cases(&Golden::open()) {
        let graph = case.architecture.graph().unwrap();
        let found: BTreeSet<_> = graph.slots().map(|slot| (slot.name.clone(), slot.shape.clone())).collect();
        assert_eq!(found, case.state.iter().cloned().collect(), "{name}");
        // And give them back.
        let state = state_of(&name, &case.state);
        assert_eq!(Network::from_tensors(&case.architecture, &state).unwrap().to_tensors().unwrap(), state, "{name}");
    }
}

#[test]
fn logits_in_eval_mode() {
    let golden = Golden::open();
    for (place, tolerance) in places() {
        let of_case = |(name, case): (String, Case)| {
            let network = golden::network(&name, &case.architecture, &case.state, &place).unwrap();
            let (images, _) = samples(&name, case.draw, SHOWN, &case.architecture);
            let expected = golden.values(&format!("{name}.eval"));
            let all = flat(&network.evaluate(&images, &Part::ALL).unwrap());
            let alone = flat(&network.evaluate(&images.narrow(0, 0, 1).unwrap(), &Part::ALL).unwrap());
            let far = apart(&name, &all, &expected).max(apart(&name, &alone, &expected[..case.architecture.classes]));
            (name, far)
        };
        hold(&format!("logits in eval mode {place:?}"), cases(&golden).into_iter().map(of_case), tolerance);
    }
}

/// Gradients as their norm and their product with a direction, of the largest norm of a tensor; an activation that rounding takes over a kink moves
/// them in f32 by more than the logits.
#[test]
fn logits_gradients_and_running_averages_in_train_mode() {
    let golden = Golden::open();
    for (place, tolerance) in places() {
        let (mut logits, mut gradients, mut averages) = (Vec::new(), Vec::new(), Vec::new());
        for (name, case) in cases(&golden) {
            let mut network = golden::network(&name, &case.architecture, &case.state, &place).unwrap();
            let (images, labels) = samples(&name, case.draw, SHOWN, &case.architecture);
            let trainable = Trainable::all(network.graph());
            let output = forward(&mut network, &images, &trainable);
            logits.push((name.clone(), apart(&name, &flat(&output), &golden.values(&format!("{name}.train")))));
            let found = network.backward(&ops::cross_entropy(&output, &labels).unwrap(), &trainable).unwrap();
            let expected = golden.values(&format!("{name}.gradient"));
            let largest = expected.iter().step_by(2).copied().fold(0.0, f64::max);
            for ((parameter, gradient), expected) in found.iter().zip(expected.chunks(2)) {
                let gradient = flat(gradient);
                let product = |other: &[f64]| gradient.iter().zip(other).map(|(left, right)| left * right).sum::<f64>();
                let direction = units(&format!("{name}/direction/{parameter}"), gradient.len());
                let far = apart(parameter, &[product(&gradient).sqrt(), product(&direction)], expected);
                gradients.push((format!("{name} {parameter}"), far / largest));
            }
            assert_eq!(2 * found.len(), expected.len(), "{name}");
            for (tensor, value) in network.to_tensors().unwrap() {
                let value: Vec<f64> = match value {
                    _ if !tensor.contains(".running_") => continue,
                    Stored::F32(array) => array.data.into_iter().map(f64::from).collect(),
                    Stored::F64(array) => array.data,
                    other => panic!("{tensor}: {:?}", other.dtype()),
                };
                averages.push((format!("{name} {tensor}"), apart(&tensor, &value, &golden.values(&format!("{name}.buffer.{tensor}")))));
            }
        }
        hold(&format!("logits in train mode {place:?}"), logits, tolerance);
        hold(&format!("running averages {place:?}"), averages, tolerance);
        hold(&format!("gradients {place:?}"), gradients, 10.0 * tolerance);
    }
}

fn rule(name: &str) -> Rule {
    match name {
        "sgd" => Rule::Nesterov { momentum: 0.9, weight_decay: 5e-4 },
        "adam" => Rule::Adam { weight_decay: 0.0 },
        _ => Rule::AdamW { weight_decay: 0.05 },
    }
}

/// Scales and shifts of batch normalisations with which few values lie near a kink.
fn calm(name: &str, state: &State) -> BTreeMap<String, Stored> {
    let mut tensors = state_of(name, state);
    let norms: Vec<String> = tensors.keys().filter_map(|key| key.strip_suffix(".running_mean").map(str::to_owned)).collect();
    for norm in norms {
        if let Some(Stored::F32(scale)) = tensors.get_mut(&format!("{norm}.weight")) {
            scale.data.iter_mut().for_each(|value| *value /= 4.0);
        }
        if let Some(Stored::F32(shift)) = tensors.get_mut(&format!("{norm}.bias")) {
            shift.data.iter_mut().for_each(|value| {
                let u = 10.0 * f64::from(*value);
                *value = (if u > -0.5 { 1.0 } else { -1.0 } + u / 10.0) as f32;
            });
        }
    }
    tensors
}

/// How far losses and last logits of a training are from PyTorch's.
fn train(golden: &Golden, name: &str, case: &Case, rule_name: &str, place: &Place) -> [f64; 2] {
    let is_calm = place.dtype == DType::F32;
    let start = if is_calm { calm(name, &case.state) } else { state_of(name, &case.state) };
    let mut network = Network::at(place.clone(), &case.architecture, &start).unwrap();
    let trainable = Trainable::which(network.graph(), |_, slot| !case.rest.contains(&slot.name));
    let (images, labels) = samples(name, case.draw, IMAGES, &case.architecture);
    let (mut optimiser, mut losses) = (Optimiser::new(rule(rule_name)), Vec::new());
    for step in 0..STEPS {
        let first = step * BATCH % IMAGES;
        let logits = forward(&mut network, &images.narrow(0, first, BATCH).unwrap(), &trainable);
        let loss = ops::cross_entropy(&logits, &labels[first..first + BATCH]).unwrap();
        losses.extend(flat(&loss));
        let gradients = network.backward(&loss, &trainable).unwrap();
        optimiser.step(&network.parameters(&trainable), &gradients, case.rates[rule_name]).unwrap();
    }
    let logits = flat(&network.evaluate(&images.narrow(0, 0, SHOWN).unwrap(), &Part::ALL).unwrap());
    let kept = format!("{name}.{}{rule_name}", if is_calm { "calm." } else { "" });
    [apart(name, &losses, &golden.values(&kept)), apart(name, &logits, &golden.values(&format!("{kept}.end")))]
}

fn check_trainings(place: &Place, tolerance: f64, tolerance_of_logits: f64) {
    let golden = Golden::open();
    let (mut losses, mut logits) = (Vec::new(), Vec::new());
    // Where the gradient of a weight is exactly 0, as behind dead units, Winograd's algorithm leaves about 1e-9 of rounding in f32, of which Adam makes full
    // steps: VGG-16 without normalisation drifts. The composed path in f32 (2e-7) and the kernels in f64 do not, so these are held to ten times as much.
    let leaves_rounding = |name: &str, rule: &str| place.dtype == DType::F32 && rule != "sgd" && ["vgg16", "vgg16_odd"].contains(&name);
    let mut drifting = Vec::new();
    for rule in ["sgd", "adam", "adamw"] {
        for (name, case) in cases(&golden) {
            let [of_losses, of_logits] = train(&golden, &name, &case, rule, place);
            let kept = if leaves_rounding(&name, rule) { &mut drifting } else { &mut losses };
            kept.push((format!("{name} with {rule}"), of_losses));
            logits.push((format!("{name} after {rule}"), of_logits));
        }
    }
    hold(&format!("losses {place:?}"), losses, tolerance);
    if !drifting.is_empty() {
        hold(&format!("losses of Winograd's rounding {place:?}"), drifting, 10.0 * tolerance);
    }
    hold(&format!("logits after training {place:?}"), logits, tolerance_of_logits);
}

#[test]
fn the_first_losses_of_a_training_in_f32() {
    check_trainings(&Place::default(), 1e-4, 5e-3);
}

#[test]
fn the_first_losses_of_a_training_in_f64() {
    check_trainings(&Place { dtype: DType::F64, ..Place::default() }, 1e-7, 1e-6);
}

/// With the mean squared error of the decoded images, which is in recipes.safetensors.
#[test]
fn the_first_losses_of_a_training_with_reconstruction() {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let recipes = std::path::Path::new(&package).join("tests/golden/recipes.safetensors");
    let expected = flat(&candle_core::safetensors::load(recipes, &Device::Cpu).unwrap()["reconstruction"]);
    let name = "conv_autoencoder";
    let case = &cases(&Golden::open())[name];
    let (images, labels) = samples(name, 0, BATCH, &case.architecture);
    let values = flat(&images).into_iter().map(|value| value as f32).collect();
    let samples = Samples::of_values(dcu_artifact::Array::new(images.dims().to_vec(), values), labels).unwrap();
    let recipe = Recipe {
        reconstruction: 0.5,
        epochs: expected.len(),
        batch: BATCH,
        lr: 0.02,
        optimiser: OptimiserName::Sgd,
        momentum: 0.9,
        ..Recipe::default()
    };
    for (place, tolerance) in places() {
        let network = golden::network(name, &case.architecture, &case.state, &place).unwrap();
        let mut fit = train::Fit::new(network, recipe.clone(), Streams::new(1, "test"));
        let losses: Vec<f64> = std::iter::from_fn(|| fit.next_epoch(&samples).unwrap()).collect();
        hold(&format!("losses {place:?}"), [(name.to_owned(), apart(name, &losses, &expected))], 0.1 * tolerance);
    }
}

#[test]
fn networks_start_as_those_of_torchvision_and_timm() {
    let golden = Golden::open();
    for (family, Started { architecture, tensors }) in golden.facts::<BTreeMap<String, Started>>("initial") {
        let network = Network::initialised(&architecture, &Streams::new(1, "test")).unwrap().to_tensors().unwrap();
        assert_eq!(network.len(), tensors.len(), "{family}");
        for (name, shape, kind, size) in tensors {
            let value = match &network[&name] {
                Stored::F32(array) => array.clone(),
                Stored::I64(array) => dcu_artifact::Array::new(array.shape.clone(), array.data.iter().map(|&value| value as f32).collect()),
                other => panic!("{family} {name}: {:?}", other.dtype()),
            };
            assert_eq!(value.shape, shape, "{family} {name}");
            let (values, count): (Vec<f64>, f64) = (value.data.iter().map(|&value| f64::from(value)).collect(), value.data.len() as f64);
            let deviation = (values.iter().map(|value| value * value).sum::<f64>() / count).sqrt();
            let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
            let expected = match kind.as_str() {
                "constant" => {
                    assert!(values.iter().all(|value| *value == size), "{family} {name} is {size} throughout");
                    continue;
                }
                "uniform" => {
                    assert!(largest <= size * (1.0 + 1e-6), "{family} {name}: {largest} is beyond {size}");
                    size / 3.0_f64.sqrt()
                }
                _ => size,
            };
            // Five deviations of what so many draws give; a normal's tails, which a uniform does not have.
            assert!((deviation / expected - 1.0).abs() <= 5.0 / (2.0 * count).sqrt(), "{family} {name}: {deviation}, not {expected}");
            let is_tailed = largest > 2.5 * expected;
            assert!(count < 1000.0 || is_tailed == (kind == "normal"), "{family} {name} is not {kind}: {largest} at most");
        }
    }
}

/// In the modes of modular unlearning, with the passes that it makes over each part.
#[test]
fn training_one_part_leaves_the_others_as_they_were() {
    let streams = Streams::new(1, "test");
    for (name, case) in cases(&Golden::open()) {
        let (images, labels) = samples(&name, case.draw, IMAGES, &case.architecture);
        let array = dcu_artifact::Array::new(images.dims().to_vec(), flat(&images).into_iter().map(|value| value as f32).collect());
        let samples = Samples::of_values(array, labels).unwrap();
        for part in Part::ALL {
            let mut network = golden::network(&name, &case.architecture, &case.state, &Place::default()).unwrap();
            let before = network.to_tensors().unwrap();
            let trainable = Trainable::parts(network.graph(), &[part]);
            let phase = Phase { trainable: &trainable, modes: network::corrected(part), batch: BATCH, streams: &streams, purpose: "test" };
            let prepared = Prepared::new(&network, &samples, phase).unwrap();
            let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
            if network.parameters(&trainable).is_empty() {
                // The beginning and the intermediate of `patches` have nothing to train.
                assert!(case.architecture.family == dcu_nn::Family::Patches && part != Part::Final, "{name}");
                continue;
            }
            train::epoch(&mut network, &prepared, phase, 0, &mut optimiser, 1e-3).unwrap();
            let graph = network.graph();
            let own: BTreeSet<&str> =
                graph.steps()[graph.range(part)].iter().flat_map(|step| &step.slots).map(|slot| slot.name.as_str()).collect();
            let moved: Vec<String> =
                network.to_tensors().unwrap().into_iter().filter(|(key, tensor)| before[key] != *tensor).map(|(key, _)| key).collect();
            assert!(!moved.is_empty() && moved.iter().all(|key| own.contains(key.as_str())), "{name} {part:?}: {moved:?}");
        }
    }
}
