//! Recipes: update rules and schedules against vectors made with PyTorch (tests/golden/recipes.py), and what a recipe promises of a training.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use dcu_artifact::{Array, Dataset, DatasetFacts, Holdout, Normalisation, Tensor as Stored};
use dcu_nn::augment::{Border, Flip};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::recipe::{Decay, Keep, OptimiserName, Per, Preset, Recipe, Schedule, Watch};
use dcu_nn::rng::Streams;
use dcu_nn::train::{self, Fit};
use dcu_nn::{Architecture, Family, Gradients, Network, Part, Samples, evaluate};
use serde_json::json;

fn golden() -> std::collections::HashMap<String, Tensor> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let path = Path::new(&package).join("tests/golden/recipes.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).expect("the golden file is there")
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all()?.to_vec1()).expect("numbers")
}

/// The gradient of the only parameter.
fn alone(gradient: Tensor) -> Gradients {
    [("0".to_owned(), gradient)].into_iter().collect()
}

#[test]
fn rules_go_as_in_pytorch() {
    let golden = golden();
    let spared = || BTreeSet::from(["1".to_owned()]);
    let (nesterov, sgd) = (|weight_decay| Rule::Nesterov { momentum: 0.9, weight_decay }, Rule::Sgd { momentum: 0.9, weight_decay: 0.05 });
    let adamw = |weight_decay| Optimiser::new(Rule::AdamW { weight_decay });
    let cases = [
        ("nesterov", Optimiser::new(nesterov(0.0)), 0.1),
        ("nesterov_decay", Optimiser::new(nesterov(0.05)), 0.1),
        ("adamw", adamw(0.0), 0.01),
        ("adamw_decay", adamw(0.1), 0.01),
        ("adamw_spared", adamw(0.1).sparing(spared()), 0.01),
        ("sgd_spared", Optimiser::new(sgd).sparing(spared()), 0.1),
        ("adam", Optimiser::new(Rule::Adam { weight_decay: 0.1 }), 0.01),
        ("sgd", Optimiser::new(sgd), 0.1),
        ("sgd_clipped", Optimiser::new(sgd).clipped(1.0), 0.1),
        ("adamw_clipped", adamw(0.1).clipped(1.0), 0.01),
        ("sgd_unclipped", Optimiser::new(sgd).clipped(1000.0), 0.1),
    ];
    for (name, fresh, rate) in &cases {
        for kind in ["f32", "f64"] {
            let (start, expected) = (&golden[&format!("{kind}.start")], &golden[&format!("{kind}.{name}")]);
            let parameters: Vec<Var> = (0..2).map(|row| Var::from_tensor(&start.get(row).unwrap()).unwrap()).collect();
            let (mut optimiser, named) = (fresh.clone(), BTreeMap::from([("0", &parameters[0]), ("1", &parameters[1])]));
            for step in 0..expected.dim(0).unwrap() {
                let gradients = golden[&format!("{kind}.gradients")].get(step).unwrap();
                let gradients: Gradients = (0..2).map(|row| (row.to_string(), gradients.get(row).unwrap())).collect();
                optimiser.step(&named, &gradients, *rate).unwrap();
                let found = Tensor::stack(&parameters.iter().map(Var::as_tensor).collect::<Vec<_>>(), 0).unwrap();
                let (found, expected) = (flat(&found), flat(&expected.get(step).unwrap()));
                if kind == "f32" && !name.ends_with("_clipped") {
                    assert_eq!(found, expected, "{name}, step {step}: bit for bit");
                }
                // The norm is summed in another order; in f64 PyTorch rounds some sums twice.
                let tolerance = if kind == "f32" { 3e-7 } else { 1e-15 };
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() <= tolerance * (1.0 + expected.abs()),
                        "{kind} {name}, step {step}: {found} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_state_of_either_width_is_saved_and_goes_on() {
    let golden = golden();
    for kind in ["f32", "f64"] {
        let rule = Rule::AdamW { weight_decay: 0.1 };
        let step = |optimiser: &mut Optimiser, parameter: &Var, step: usize| {
            let gradient = golden[&format!("{kind}.gradients")].get(step).and_then(|gradients| gradients.get(0)).unwrap();
            optimiser.step(&BTreeMap::from([("0", parameter)]), &alone(gradient), 0.01)
        };
        let parameter = Var::from_tensor(&golden[&format!("{kind}.start")].get(0).unwrap()).unwrap();
        let mut optimiser = Optimiser::new(rule);
        step(&mut optimiser, &parameter, 0).unwrap();
        let mut restored = Optimiser::from_tensors(rule, &optimiser.to_tensors()).unwrap();
        assert_eq!(restored.to_tensors(), optimiser.to_tensors());
        let other = Var::from_tensor(&parameter.as_tensor().copy().unwrap()).unwrap();
        step(&mut optimiser, &parameter, 1).unwrap();
        step(&mut restored, &other, 1).unwrap();
        assert_eq!(flat(parameter.as_tensor()), flat(other.as_tensor()));
        // Moments of another width are not taken for those of this parameter.
        let wrong = if kind == "f32" { DType::F64 } else { DType::F32 };
        let parameter =
            Var::from_tensor(&golden[&format!("{kind}.start")].get(0).and_then(|tensor| tensor.to_dtype(wrong)).unwrap()).unwrap();
        let gradients = alone(parameter.ones_like().unwrap());
        let error = optimiser.step(&BTreeMap::from([("0", &parameter)]), &gradients, 0.01).unwrap_err().to_string();
        assert!(error.contains("moments of `0`"), "{error}");
    }
}

#[test]
fn gradients_without_a_norm_are_not_clipped_to_one() {
    let parameter = Var::from_tensor(&Tensor::new(&[1.0_f32, 2.0], &Device::Cpu).unwrap()).unwrap();
    let factor = Tensor::new(&[f32::INFINITY, 1.0], &Device::Cpu).unwrap();
    let gradients = alone(factor);
    let mut optimiser = Optimiser::new(Rule::Sgd { momentum: 0.0, weight_decay: 0.0 }).clipped(1.0);
    let error = optimiser.step(&BTreeMap::from([("0", &parameter)]), &gradients, 0.1).unwrap_err().to_string();
    assert!(error.contains("the norm inf") && error.contains("lower `lr`"), "{error}");
    assert_eq!(flat(parameter.as_tensor()), [1.0, 2.0]);
}

#[test]
fn rates_go_as_in_pytorch() {
    let golden = golden();
    let base = Recipe { epochs: 10, lr: 0.1, gamma: 0.2, ..Recipe::default() };
    let triangle = Recipe { schedule: Schedule::Triangular, cycle_peak: 0.4, cycle_start: 0.2, cycle_end: 0.02, ..base.clone() };
    let recipes = [
        ("constant", base.clone()),
        ("cosine", Recipe { schedule: Schedule::Cosine, ..base.clone() }),
        ("steps", Recipe { schedule: Schedule::Steps, milestones: vec![4.0, 7.0], ..base.clone() }),
        ("one-cycle", Recipe { schedule: Schedule::OneCycle, ..base.clone() }),
        ("triangular", triangle),
    ];
    let mut compared = 0;
    for (name, recipe) in &recipes {
        for (per, unit, steps) in [("epoch", Per::Epoch, 1), ("step", Per::Step, 7)] {
            for (suffix, warmup) in [("", 0.0), (".warmup", 2.0)] {
                let Some(expected) = golden.get(&format!("{per}.{name}{suffix}")) else { continue };
                let recipe = Recipe { per: unit, warmup, ..recipe.clone() };
                recipe.check().unwrap();
                for (time, expected) in flat(expected).into_iter().enumerate() {
                    let found = recipe.rate(time / steps, time % steps, steps);
                    assert!((found - expected).abs() < 1e-15, "{per} {name}{suffix} at {time}: {found} where {expected} is right");
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 16);
}

#[test]
fn a_rate_is_a_number_for_any_length() {
    for epochs in 1..5 {
        for schedule in [Schedule::Constant, Schedule::Cosine, Schedule::OneCycle, Schedule::Triangular] {
            for (per, warmup, cycle_peak) in
                [(Per::Epoch, 0.0, 0.0), (Per::Epoch, 0.5, 0.5), (Per::Step, 0.3, 0.99), (Per::Step, 0.0, 0.25)]
            {
                let recipe = Recipe { epochs, schedule, per, warmup, cycle_peak, ..Recipe::default() };
                let rates: Vec<f64> = (0..epochs)
                    .flat_map(|epoch| (0..3).map(move |step| (epoch, step)))
                    .map(|(epoch, step)| recipe.rate(epoch, step, 3))
                    .collect();
                assert!(rates.iter().all(|rate| (0.0..=recipe.lr * (1.0 + 1e-12)).contains(rate)), "{recipe:?}: {rates:?}");
                assert!(per == Per::Step || rates.chunks(3).all(|epoch| epoch[0] == epoch[2]));
            }
        }
    }
}

/// What is new in a recipe is left out where it is not used: a model's facts are those of before.
#[test]
fn a_recipe_of_before_keeps_its_bytes() {
    let before = r#"{"epochs":30,"batch":256,"lr":0.001,"optimiser":"adam","momentum":0.9,"weight_decay":0.0,"schedule":"constant"}"#;
    let recipe: Recipe = serde_json::from_str(before).unwrap();
    assert_eq!(recipe, Recipe::default());
    assert_eq!(recipe, Preset::Paper.recipe());
    assert_eq!(serde_json::to_string(&recipe).unwrap(), before);
}

#[test]
fn a_recipe_comes_back_from_its_json() {
    let full = Recipe {
        optimiser: OptimiserName::Adamw,
        nesterov: true,
        decay: Decay::Weights,
        clip: 1.0,
        smoothing: 0.1,
        reconstruction: 0.5,
        per: Per::Step,
        warmup: 0.5,
        schedule: Schedule::Steps,
        milestones: vec![10.0, 20.5],
        gamma: 0.5,
        cycle_peak: 0.2,
        cycle_start: 0.1,
        cycle_end: 0.01,
        flip: Flip::Alternating,
        crop: 4,
        border: Border::Reflect,
        cutout: 8,
        brightness: 0.1,
        contrast: 0.2,
        saturation: 0.3,
        patience: 5,
        keep: Keep::Best,
        watch: Watch::Loss,
        ema: 0.99,
        ..Recipe::default()
    };
    for recipe in [full, Recipe { average_last: 3, ..Recipe::default() }, Preset::Quick.recipe()] {
        recipe.check().unwrap();
        assert_eq!(serde_json::from_value::<Recipe>(serde_json::to_value(&recipe).unwrap()).unwrap(), recipe);
    }
    assert!(serde_json::from_value::<Recipe>(json!({ "epochs": 1 })).unwrap_err().to_string().contains("`batch`"));
}

#[test]
fn the_field_to_blame_is_named() {
    let blamed = |name: &str, value: serde_json::Value| {
        let mut recipe = serde_json::to_value(Recipe::default()).unwrap();
        recipe[name] = value;
        serde_json::from_value::<Recipe>(recipe).unwrap().check().map_err(|(field, message)| {
            assert!(message.starts_with(&format!("`{field}` must be ")), "{message}");
            field
        })
    };
    for (name, value) in [
        ("clip", json!(-1.0)),
        ("smoothing", json!(1.0)),
        ("reconstruction", json!(-0.5)),
        ("warmup", json!(30.0)),
        ("milestones", json!([5.0])),
        ("gamma", json!(0.0)),
        ("cycle_peak", json!(1.0)),
        ("cycle_start", json!(2.0)),
        ("cycle_end", json!(-0.1)),
        ("brightness", json!(-0.1)),
        ("contrast", json!(1.1)),
        ("saturation", json!(-1.0)),
        ("watch", json!("loss")),
        ("ema", json!(1.0)),
        ("average_last", json!(31)),
    ] {
        assert_eq!(blamed(name, value.clone()), Err(name), "{value}");
    }
    assert_eq!(blamed("schedule", json!("steps")), Err("milestones"));
    let check = |recipe: Recipe| recipe.check().map_err(|(field, _)| field);
    let sgd = Recipe { optimiser: OptimiserName::Sgd, momentum: 0.0, nesterov: true, ..Recipe::default() };
    assert_eq!(check(sgd), Err("nesterov"));
    assert_eq!(check(Recipe { schedule: Schedule::Steps, milestones: vec![3.0, 2.0], ..Recipe::default() }), Err("milestones"));
    assert_eq!(check(Recipe { average_last: 2, ema: 0.9, ..Recipe::default() }), Err("average_last"));
    assert_eq!(check(Recipe { average_last: 2, keep: Keep::Best, ..Recipe::default() }), Err("average_last"));
}

fn streams() -> Streams {
    Streams::new(1, "test")
}

fn network() -> Network {
    let cnn = Architecture { widths: vec![4, 8], hidden: 10, dropout: 0.2, ..Architecture::of_family(Family::Cnn, [3, 8, 8], 3) };
    Network::initialised(&cnn, &streams()).unwrap()
}

/// Noise with a trace of the class.
fn samples(count: usize, purpose: &str) -> Samples {
    let mut stream = streams().stream(purpose);
    let images = (0..count).flat_map(|row| (0..192).map(|_| stream.normal() + 0.2 * (row % 3) as f32).collect::<Vec<_>>()).collect();
    Samples::of_values(Array::new(vec![count, 3, 8, 8], images), (0..count).map(|row| (row % 3) as u32).collect()).unwrap()
}

fn everything() -> Recipe {
    Recipe {
        epochs: 6,
        batch: 8,
        lr: 0.05,
        optimiser: OptimiserName::Sgd,
        nesterov: true,
        weight_decay: 1e-3,
        decay: Decay::Weights,
        clip: 1.0,
        smoothing: 0.1,
        schedule: Schedule::OneCycle,
        per: Per::Step,
        warmup: 0.5,
        flip: Flip::Random,
        crop: 1,
        cutout: 2,
        brightness: 0.1,
        contrast: 0.1,
        saturation: 0.1,
        ..Recipe::default()
    }
}

fn trained(recipe: &Recipe, snapshots: &mut Vec<(usize, BTreeMap<String, Stored>)>) -> (usize, BTreeMap<String, Stored>) {
    trained_by(samples(30, "validation"), recipe, snapshots)
}

fn trained_by(
    validation: Samples,
    recipe: &Recipe,
    snapshots: &mut Vec<(usize, BTreeMap<String, Stored>)>,
) -> (usize, BTreeMap<String, Stored>) {
    recipe.check().unwrap();
    ended(Fit::new(network(), recipe.clone(), streams()).validated_on(Some(validation)), snapshots)
}

fn ended(mut fit: Fit, snapshots: &mut Vec<(usize, BTreeMap<String, Stored>)>) -> (usize, BTreeMap<String, Stored>) {
    let training = samples(41, "training");
    while fit.next_epoch(&training).unwrap().is_some() {
        snapshots.push((fit.done(), fit.snapshot().unwrap()));
    }
    (fit.done(), fit.finish().to_tensors().unwrap())
}

#[test]
fn every_recipe_goes_on_from_any_snapshot_to_the_same_bytes() {
    for (name, recipe) in [
        ("plain", everything()),
        ("ema", Recipe { ema: 0.9, ..everything() }),
        ("last", Recipe { average_last: 3, ..everything() }),
        ("best", Recipe { keep: Keep::Best, ema: 0.8, ..everything() }),
        ("patience", Recipe { keep: Keep::Best, patience: 1, watch: Watch::Loss, ..everything() }),
        ("adamw", Recipe { optimiser: OptimiserName::Adamw, lr: 1e-3, patience: 2, ..everything() }),
    ] {
        let mut snapshots = Vec::new();
        let whole = trained(&recipe, &mut snapshots);
        for (done, tensors) in snapshots {
            let mut fit = Fit::new(network(), recipe.clone(), streams()).validated_on(Some(samples(30, "validation")));
            fit.restore(done, tensors).unwrap();
            assert_eq!(ended(fit, &mut Vec::new()), whole, "{name}, from epoch {done}");
        }
    }
}

#[test]
fn the_best_epoch_is_kept_and_patience_ends() {
    // Labelled against what is learnt: the better the training goes, the worse the validation.
    let plain = samples(30, "validation");
    let (images, labels) = plain.batch(&(0..30).collect::<Vec<_>>()).unwrap();
    let images = Array::new(images.dims().to_vec(), images.flatten_all().unwrap().to_vec1().unwrap());
    let validation = || Samples::of_values(images.clone(), labels.iter().map(|label| (label + 1) % 3).collect()).unwrap();
    let loss = |tensors: &BTreeMap<String, Stored>| {
        let network = Network::from_tensors(network().architecture(), tensors).unwrap();
        evaluate::judge(&network, &validation()).unwrap().losses.iter().sum::<f64>()
    };
    let base = Recipe { epochs: 12, lr: 0.02, batch: 8, optimiser: OptimiserName::Sgd, watch: Watch::Loss, ..Recipe::default() };
    let mut snapshots = Vec::new();
    trained_by(validation(), &Recipe { watch: Watch::Accuracy, ..base.clone() }, &mut snapshots);
    let weights = |tensors: &BTreeMap<String, Stored>| {
        tensors.iter().filter(|(name, _)| !name.contains('@')).map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
    };
    let losses: Vec<f64> = snapshots.iter().map(|(_, tensors)| loss(&weights(tensors))).collect();
    let best = (0..12).min_by(|&one, &other| losses[one].total_cmp(&losses[other])).unwrap();
    assert!(best < 8, "{losses:?}");
    let (done, kept) = trained_by(validation(), &Recipe { keep: Keep::Best, ..base.clone() }, &mut Vec::new());
    assert_eq!((done, loss(&kept)), (12, losses[best]));
    let (done, last) = trained_by(validation(), &Recipe { patience: 3, ..base.clone() }, &mut Vec::new());
    let goes_on = |done: usize| losses[done - 3..done].iter().any(|&loss| losses[..done - 3].iter().all(|&earlier| loss < earlier));
    assert_eq!(Some(done), (4..=12).find(|&done| !goes_on(done)));
    assert_eq!(loss(&last), losses[done - 1], "the last epoch's");
}

#[test]
fn a_recipe_that_needs_validation_says_so() {
    let mut fit = Fit::new(network(), Recipe { patience: 2, ..everything() }, streams());
    let error = fit.next_epoch(&samples(20, "training")).unwrap_err().to_string();
    assert!(error.contains("`patience`") && error.contains("validation samples"), "{error}");
}

/// The average of the last epochs, with the statistics of the whole training set.
#[test]
fn the_last_epochs_are_averaged() {
    let recipe = Recipe { epochs: 5, lr: 0.05, batch: 8, optimiser: OptimiserName::Sgd, ..Recipe::default() };
    let mut snapshots = Vec::new();
    trained(&recipe, &mut snapshots);
    let (_, found) = trained(&Recipe { average_last: 2, ..recipe }, &mut Vec::new());
    let numbers = |tensor: &Stored| match tensor {
        Stored::F32(array) => array.data.clone(),
        other => panic!("{other:?}"),
    };
    let mut averaged = network().to_tensors().unwrap();
    for (name, tensor) in &mut averaged {
        if let Stored::F32(array) = tensor {
            let (one, other) = (numbers(&snapshots[3].1[name]), numbers(&snapshots[4].1[name]));
            array.data = one.iter().zip(&other).map(|(one, other)| one + 0.5 * (other - one)).collect();
        }
    }
    let mut expected = Network::from_tensors(network().architecture(), &averaged).unwrap();
    for part in Part::ALL {
        train::recompute_running_averages(&mut expected, &samples(41, "training"), part).unwrap();
    }
    for (name, tensor) in expected.to_tensors().unwrap() {
        if matches!(tensor, Stored::F32(_)) {
            assert_eq!(found[&name], tensor, "{name}");
        }
    }
}

/// Tensor by tensor from whole copies of the network, of which batch normalisation has buffers too.
#[test]
fn each_step_moves_the_average_by_its_rule() {
    // One step an epoch, so that a snapshot shows each.
    let recipe = Recipe { epochs: 5, batch: 41, lr: 0.05, optimiser: OptimiserName::Sgd, ema: 0.29, ..Recipe::default() };
    let mut fit = Fit::new(network(), recipe.clone(), streams());
    let mut average = BTreeMap::new();
    // What it keeps of itself: `ema`, at most (1 + n) / (10 + n).
    let shares = [0.0, 2.0 / 11.0, 0.25, 0.29, 0.29];
    for (step, share) in shares.into_iter().enumerate() {
        let last = Recipe { ema: 0.0, epochs: step + 1, ..recipe.clone() };
        let (_, weights) = ended(Fit::new(network(), last, streams()), &mut Vec::new());
        for (name, new) in weights {
            match (average.get_mut(&name), new) {
                (Some(Stored::F32(average)), Stored::F32(new)) => {
                    let blend = |(average, new): (&mut f32, f32)| *average += (1.0 - share) as f32 * (new - *average);
                    average.data.iter_mut().zip(new.data).for_each(blend);
                }
                (_, new) => drop(average.insert(name, new)),
            }
        }
        fit.next_epoch(&samples(41, "training")).unwrap();
        if fit.done() < recipe.epochs {
            let snapshot = fit.snapshot().unwrap();
            let found = average.keys().map(|name| (name.clone(), snapshot[&format!("{name}@average")].clone()));
            assert_eq!(found.collect::<BTreeMap<_, _>>(), average, "after {} steps", step + 1);
        }
    }
    assert!(average.contains_key("features.1.running_var") && average.contains_key("features.1.num_batches_tracked"));
    assert_eq!(fit.finish().to_tensors().unwrap(), average);
}

#[test]
fn a_damaged_snapshot_of_a_recipe_is_refused() {
    let recipe = Recipe { ema: 0.9, keep: Keep::Best, ..everything() };
    let mut snapshots = Vec::new();
    trained(&recipe, &mut snapshots);
    let (done, tensors) = &snapshots[1];
    for name in
        ["@averaged", "validation@epoch", "validation@score", "classifier.0.bias@average", "classifier.0.bias@best", "classifier.0.bias"]
    {
        let mut damaged = tensors.clone();
        assert!(damaged.remove(name).is_some(), "{name}: {:?}", tensors.keys().collect::<Vec<_>>());
        assert!(Fit::new(network(), recipe.clone(), streams()).restore(*done, damaged).is_err(), "{name}");
    }
}

/// With all of it on: neither threads nor what was trained before change a byte.
#[test]
fn a_treated_training_does_not_depend_on_threads() {
    let recipe = Recipe { epochs: 2, ema: 0.9, ..everything() };
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    assert_eq!(one.install(|| trained(&recipe, &mut Vec::new())), three.install(|| trained(&recipe, &mut Vec::new())));
}

#[test]
fn smoothing_is_the_cross_entropy_with_smoothed_labels() {
    let (training, recipe) = (samples(12, "training"), Recipe { epochs: 1, batch: 12, ..Recipe::default() });
    let first_loss = |smoothing: f64| {
        let fit = &mut Fit::new(network(), Recipe { smoothing, ..recipe.clone() }, streams());
        fit.next_epoch(&training).unwrap().unwrap()
    };
    // Linear in the smoothing: between the labels' loss and that of even labels.
    let (hard, half, most) = (first_loss(0.0), first_loss(0.25), first_loss(0.5));
    assert!((hard + most - 2.0 * half).abs() < 1e-6 && hard != most, "{hard} {half} {most}");
}

fn autoencoder(input: [usize; 3]) -> Network {
    let widths = vec![6, 8, 10, 8, 8, 16];
    let architecture = Architecture { widths, hidden: 16, dropout: 0.0, ..Architecture::of_family(Family::ConvAutoencoder, input, 3) };
    Network::initialised(&architecture, &streams()).unwrap()
}

/// Images that brighten to the right, the more the higher their class, with little noise.
fn bright_samples(count: usize, [channels, height, width]: [usize; 3]) -> Samples {
    let mut stream = streams().stream("bright");
    let mut image = |row: usize| {
        let value = |column: usize| 0.1 + (row % 3 * column) as f32 / (2 * width) as f32;
        (0..channels * height * width).map(|index| value(index % width) + 0.02 * stream.normal()).collect::<Vec<_>>()
    };
    let images = (0..count).flat_map(&mut image).collect();
    Samples::of_values(Array::new(vec![count, channels, height, width], images), (0..count).map(|row| (row % 3) as u32).collect()).unwrap()
}

/// Mean cross-entropy of the output, and mean squared error of the decoded images, value by value.
fn errors(network: &Network, samples: &Samples) -> [f64; 2] {
    let (images, labels) = samples.batch(&(0..samples.len()).collect::<Vec<_>>()).unwrap();
    let logits = network.evaluate(&images, &Part::ALL).unwrap().to_vec2::<f32>().unwrap();
    let surprise = |(logits, &label): (&Vec<f32>, &u32)| {
        logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln() - f64::from(logits[label as usize])
    };
    let cross_entropy = logits.iter().zip(&labels).map(surprise).sum::<f64>() / labels.len() as f64;
    let decoded =
        network.evaluate(&images, &[Part::Beginning, Part::Intermediate]).and_then(|images| images.permute((0, 3, 1, 2))).unwrap();
    assert_eq!(decoded.dims(), images.dims());
    let squares: Vec<f64> = flat(&decoded).iter().zip(flat(&images)).map(|(decoded, value)| (decoded - value).powi(2)).collect();
    [cross_entropy, squares.iter().sum::<f64>() / squares.len() as f64]
}

#[test]
fn the_error_of_decoded_images_is_added_with_its_weight() {
    let size = [3, 8, 16];
    let samples = bright_samples(12, size);
    let [cross_entropy, squared_error] = errors(&autoencoder(size), &samples);
    for (reconstruction, expected) in
        [(0.0, cross_entropy), (0.5, cross_entropy + 0.5 * squared_error), (3.0, cross_entropy + 3.0 * squared_error)]
    {
        let recipe = Recipe { reconstruction, epochs: 1, batch: 12, ..Recipe::default() };
        let found = Fit::new(autoencoder(size), recipe, streams()).next_epoch(&samples).unwrap().unwrap();
        assert!((found - expected).abs() < 1e-6, "{reconstruction}: {found} where {expected} is right");
    }
}

/// By the cross-entropy alone they do not; it makes no difference where the parts are cut.
#[test]
fn decoded_images_come_to_be_like_the_images() {
    let size = [3, 8, 8];
    let samples = bright_samples(30, size);
    let trained = |reconstruction: f64, epochs: usize, cut: Option<[&str; 2]>| {
        let cut = cut.map(|names| names.map(str::to_owned));
        let architecture = Architecture { cut, ..autoencoder(size).architecture().clone() };
        let recipe = Recipe { reconstruction, epochs, batch: 10, lr: 5e-3, ..Recipe::default() };
        let mut fit = Fit::new(Network::initialised(&architecture, &streams()).unwrap(), recipe, streams());
        while fit.next_epoch(&samples).unwrap().is_some() {}
        Network::from_tensors(autoencoder(size).architecture(), &fit.finish().to_tensors().unwrap()).unwrap()
    };
    let [[_, first], [_, without], [cross_entropy, with]] =
        [autoencoder(size), trained(0.0, 100, None), trained(0.5, 100, None)].map(|network| errors(&network, &samples));
    assert!(with < 0.4 * first && with < 0.4 * without, "{first} at first, {without} without, {with} with");
    assert!(cross_entropy < 0.5, "{cross_entropy}: the classes are learnt all the same");
    let cut = trained(0.5, 3, Some(["encoder.2", "decoder.2"]));
    assert_eq!(cut.to_tensors().unwrap(), trained(0.5, 3, None).to_tensors().unwrap());
}

#[test]
fn what_cannot_be_reconstructed_is_refused() {
    let refused = |network: Network, size: [usize; 3]| {
        let recipe = Recipe { reconstruction: 0.5, epochs: 1, batch: 4, ..Recipe::default() };
        let samples = bright_samples(8, size);
        let error = Fit::new(network, recipe, streams()).next_epoch(&samples).unwrap_err().to_string();
        assert!(error.starts_with("`reconstruction` "), "{error}");
        error
    };
    assert!(refused(network(), [3, 8, 8]).contains("a network with a decoder, as `conv-autoencoder` has it"));
    assert!(refused(autoencoder([3, 9, 20]), [3, 9, 20]).contains("[3, 8, 16] of [3, 9, 20]; resize"));
}

#[test]
fn validation_samples_are_those_of_the_holdout_and_of_known_classes() {
    let test = Dataset {
        images: Array::new(vec![4, 1, 1, 1], vec![0, 1, 2, 3]),
        labels: vec![0, 1, 2, 0],
        original_labels: None,
        ids: vec![10, 11, 12, 13],
        facts: DatasetFacts {
            source: "test".into(),
            class_names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
            names: None,
        },
    };
    let holdout = |validation: &[u64]| Holdout { train: vec![1], remembrance: vec![], validation: validation.to_vec(), test: vec![] };
    let labels = |validation: &[u64], known: Option<&[u32]>| {
        train::validation_samples(&test, &holdout(validation), known)
            .map(|samples| samples.labels().to_vec())
            .map_err(|error| error.to_string())
    };
    assert_eq!(labels(&[11, 13, 12], None).unwrap(), [1, 0, 2]);
    assert_eq!(labels(&[11, 13, 12], Some(&[0, 0, 2])).unwrap(), [0, 2]);
    assert!(labels(&[], None).unwrap_err().contains("`validation_per_class`"));
    assert!(labels(&[7], None).unwrap_err().contains("the same test set"));
}
