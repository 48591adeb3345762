//! What training relies on: gradients that are all there, losses that are numbers, states that are whole.

use std::collections::BTreeMap;

use dcu_artifact::{Array, Tensor as Stored};
use dcu_nn::network::{self, Mode};
use dcu_nn::ops::{self, Block, Convolution, Deposit, Normalisation, Weight, composed};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::train::{self, Fit, Phase, Prepared, Recipe, Schedule};
use dcu_nn::{Architecture, Device, Family, Network, Part, Result, Samples, Tensor, Trainable, Var, evaluate};

const ADAM: Rule = Rule::Adam { weight_decay: 0.0 };

fn streams() -> Streams {
    Streams::new(1, "test")
}

fn cnn() -> Architecture {
    Architecture { widths: vec![4, 8, 9], hidden: 10, dropout: 0.2, ..Architecture::of_family(Family::Cnn, [3, 16, 16], 4) }
}

fn network(seed: u64) -> Network {
    Network::initialised(&cnn(), &Streams::new(seed, "test")).unwrap()
}

/// Samples sorted by class, whose images lie far apart.
fn samples(count: usize) -> Samples {
    let mut stream = streams().stream("images");
    let class = |row: usize| row * 4 / count.max(1);
    let images = (0..count).flat_map(|row| (0..3 * 256).map(|_| stream.normal() + 2.0 * class(row) as f32).collect::<Vec<_>>()).collect();
    Samples::of_values(Array::new(vec![count, 3, 16, 16], images), (0..count).map(|row| class(row) as u32).collect()).unwrap()
}

fn all(network: &Network) -> Trainable {
    Trainable::all(network.graph())
}

fn loss(network: &mut Network, samples: &Samples, trainable: &Trainable) -> Tensor {
    let (images, labels) = samples.batch(&(0..samples.len()).collect::<Vec<_>>()).unwrap();
    let mut dropout = streams().stream("dropout");
    let logits = network.forward(&images, &Part::ALL, network::all(Mode::TRAIN), trainable, &mut dropout).unwrap();
    ops::cross_entropy(&logits, &labels).unwrap()
}

/// One step on all parameters.
fn step(network: &mut Network, samples: &Samples) {
    let trainable = all(network);
    let loss = loss(network, samples, &trainable);
    let gradients = network.backward(&loss, &trainable).unwrap();
    Optimiser::new(ADAM).step(&network.parameters(&trainable), &gradients, 1e-3).unwrap();
}

fn phase<'a>(streams: &'a Streams, trainable: &'a Trainable, modes: network::Modes, batch: usize) -> Phase<'a> {
    Phase { trainable, modes, batch, streams, purpose: "test" }
}

#[test]
fn a_parameter_without_a_gradient_is_named_and_none_moves() {
    let (mut one, samples) = (network(1), samples(12));
    let before = one.to_tensors().unwrap();
    let (trainable, last) = (all(&one), Trainable::parts(one.graph(), &[Part::Final]));
    let of_last = loss(&mut one, &samples, &last);
    let error = one.backward(&of_last, &trainable).unwrap_err().to_string();
    assert!(error.contains("`features.0.bias` is to be trained, but the loss does not depend on it"), "{error}");
    let gradients = one.backward(&of_last, &last).unwrap();
    let error = Optimiser::new(ADAM).step(&one.parameters(&trainable), &gradients, 1e-3).unwrap_err().to_string();
    assert!(error.contains("`features.0.bias`") && error.contains("no gradient"), "{error}");
    let after = one.to_tensors().unwrap();
    for name in one.parameters(&trainable).into_keys() {
        assert_eq!(after[name], before[name], "{name}");
    }
    assert!(Optimiser::new(ADAM).step(&one.parameters(&last), &gradients, 1e-3).is_ok());
}

/// Each as it would be by a loss of its own, and whole: nothing is left elsewhere.
#[test]
fn a_loss_of_two_networks_has_the_gradients_of_both() {
    let (mut one, mut other, samples) = (network(1), network(2), samples(12));
    let trainable = all(&one);
    let sum = (loss(&mut one, &samples, &trainable) + loss(&mut other, &samples, &trainable)).unwrap();
    let both = network::backward(&sum, &[(&one, &trainable), (&other, &trainable)]).unwrap();
    for (seed, gradients) in [(1, &both[0]), (2, &both[1])] {
        let mut alone = network(seed);
        let loss = loss(&mut alone, &samples, &trainable);
        let expected = alone.backward(&loss, &trainable).unwrap();
        assert!(gradients.iter().map(|(name, _)| name).eq(trainable.iter()));
        for (name, gradient) in gradients.iter() {
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(gradient), values(expected.get(name).unwrap()), "{name}");
        }
    }
}

/// Without another argument that takes part in differentiation there would be no backward pass to leave a gradient in.
#[test]
fn a_weight_is_trained_with_frozen_biases() {
    let random = |name: &str, shape: &[usize]| {
        let mut stream = streams().stream(name);
        Tensor::from_vec((0..shape.iter().product()).map(|_| stream.normal()).collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
    };
    let gradient_of = |deposit: Option<&Deposit>, run: &dyn Fn(Weight<'_>) -> Result<Tensor>, weight: &Var| {
        let loss = run(Weight::new(weight.as_tensor(), deposit)).and_then(|output| output.sqr()?.sum_all()).unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = deposit.and_then(Deposit::take).or_else(|| gradients.get(weight.as_tensor()).cloned());
        gradient.expect("a gradient").flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (input, bias) = (random("input", &[3, 5]), random("bias", &[4]));
    let weight = Var::from_tensor(&random("weight", &[4, 5])).unwrap();
    let linear = |weight: Weight<'_>| ops::linear(&input, weight, &bias);
    assert_eq!(gradient_of(Some(&Deposit::default()), &linear, &weight), gradient_of(None, &linear, &weight));
    let images = random("images", &[2, 4, 4, 3]);
    let weight = Var::from_tensor(&random("kernel", &[4, 3, 3, 3])).unwrap();
    let block = Block { convolution: Convolution { stride: 1, padding: 1 }, rectify: true, pool: true };
    let convolved = |weight: Weight<'_>| Ok(ops::conv_block(&images, weight, [&bias; 3], block, Normalisation::Batch)?.0);
    assert_eq!(gradient_of(Some(&Deposit::default()), &convolved, &weight), gradient_of(None, &convolved, &weight));
}

#[test]
fn a_duplicate_does_not_follow_its_original() {
    let (mut student, samples) = (network(1), samples(12));
    let teacher = student.duplicate().unwrap();
    let before = teacher.to_tensors().unwrap();
    assert_eq!(before, student.to_tensors().unwrap());
    step(&mut student, &samples);
    let after = student.to_tensors().unwrap();
    assert!(
        after.iter().all(|(name, tensor)| *tensor != before[name] || name.contains("features") && name.ends_with(".bias")),
        "all moved"
    );
    assert_eq!(teacher.to_tensors().unwrap(), before);
}

#[test]
fn a_training_that_diverges_stops_with_the_place_and_a_remedy() {
    let (streams, samples) = (streams(), samples(40));
    let mut network = network(1);
    let trainable = all(&network);
    let phase = phase(&streams, &trainable, network::all(Mode::TRAIN), 8);
    let prepared = Prepared::new(&network, &samples, phase).unwrap();
    let mut optimiser = Optimiser::new(Rule::Sgd { momentum: 0.0, weight_decay: 0.0 });
    let error = train::epoch(&mut network, &prepared, phase, 4, &mut optimiser, 1e30).unwrap_err().to_string();
    assert!(
        error.contains("in epoch 5, step 2 the loss is") && error.contains("the learning rate 1e30") && error.contains("lower `lr`"),
        "{error}"
    );
    // The weights are none either, and nobody may take them for a model.
    let error = evaluate::judge(&network, &samples).unwrap_err().to_string();
    assert!(error.contains("logit"), "{error}");
}

#[test]
fn nothing_to_train_on_is_an_error() {
    let (streams, none) = (streams(), samples(0));
    let mut network = network(1);
    let last = Trainable::parts(network.graph(), &[Part::Final]);
    let mut optimiser = Optimiser::new(ADAM);
    for (samples, batch) in [(&none, 8), (&samples(4), 0)] {
        let phase = phase(&streams, &last, network::all(Mode::EVAL), batch);
        let prepared = Prepared::new(&network, samples, phase).unwrap();
        for result in [
            train::epoch(&mut network, &prepared, phase, 0, &mut optimiser, 1e-3),
            train::accumulated_step(&mut network, &prepared, phase, 0, &mut optimiser, 1e-3),
        ] {
            assert!(result.unwrap_err().to_string().contains("nothing to train on"));
        }
    }
    assert!(train::recompute_running_averages(&mut network, &none, Part::Intermediate).is_err());
    assert!(ops::cross_entropy(&Tensor::zeros((0, 3), candle_core::DType::F32, &Device::Cpu).unwrap(), &[]).is_err());
}

/// The gradient of the mean of the batches' losses, without all of their graphs at once.
#[test]
fn an_accumulated_step_is_one_on_the_mean_of_the_losses() {
    let (streams, samples) = (streams(), samples(20));
    let trainable = all(&network(1));
    let phase = phase(&streams, &trainable, network::all(Mode::DROPOUT), 8);
    let (mut accumulated, mut at_once) = (network(1), network(1));
    let prepared = Prepared::new(&accumulated, &samples, phase).unwrap();
    let found = train::accumulated_step(&mut accumulated, &prepared, phase, 3, &mut Optimiser::new(ADAM), 1e-3).unwrap();
    let order = streams.indexed("test shuffle", 3).permutation(20);
    let losses: Vec<Tensor> = order
        .chunks(8)
        .enumerate()
        .map(|(step, rows)| {
            let (images, labels) = samples.batch(rows).unwrap();
            let mut dropout = streams.indexed("test dropout", 9 + step as u64);
            let logits = at_once.forward(&images, &Part::ALL, phase.modes, phase.trainable, &mut dropout).unwrap();
            ops::cross_entropy(&logits, &labels).unwrap()
        })
        .collect();
    let mean = Tensor::stack(&losses, 0).and_then(|losses| losses.mean_all()).unwrap();
    assert!((found - f64::from(mean.to_scalar::<f32>().unwrap())).abs() < 1e-6);
    Optimiser::new(Rule::Sgd { momentum: 0.0, weight_decay: 0.0 })
        .step(&at_once.parameters(&trainable), &at_once.backward(&mean, &trainable).unwrap(), 0.5)
        .unwrap();
    let mut accumulated = network(1);
    let mut descent = Optimiser::new(Rule::Sgd { momentum: 0.0, weight_decay: 0.0 });
    train::accumulated_step(&mut accumulated, &prepared, phase, 3, &mut descent, 0.5).unwrap();
    for (name, expected) in at_once.parameters(&trainable) {
        let found = accumulated.parameters(&trainable)[name].as_tensor();
        let difference = (found - expected.as_tensor()).and_then(|difference| difference.abs()?.max_all()?.to_scalar::<f32>()).unwrap();
        assert!(difference < 1e-6, "{name}: {difference}");
    }
}

/// Mean and variance over all rows, however these are sorted and batched; that of each normalisation behind those before it.
#[test]
fn recomputed_averages_are_the_statistics_of_the_whole_set() {
    let samples = samples(300);
    let mut network = network(1);
    train::recompute_running_averages(&mut network, &samples, Part::Intermediate).unwrap();
    let found = network.to_tensors().unwrap();
    let numbers = |name: &str| match &found[name] {
        Stored::F32(array) => array.data.iter().map(|&value| f64::from(value)).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let wide = |name: &str| {
        let shape = found[name].shape().to_vec();
        Tensor::from_vec(numbers(name), shape, &Device::Cpu).unwrap()
    };
    let (images, _) = samples.batch(&(0..300).collect::<Vec<_>>()).unwrap();
    let mut value = network.evaluate(&images, &[Part::Beginning]).and_then(|value| value.to_dtype(candle_core::DType::F64)).unwrap();
    let block = Block { convolution: Convolution { stride: 1, padding: 1 }, rectify: true, pool: true };
    for (convolution, normalisation) in [("features.4", "features.5"), ("features.8", "features.9")] {
        let weight = wide(&format!("{convolution}.weight"));
        let parameters =
            [format!("{convolution}.bias"), format!("{normalisation}.weight"), format!("{normalisation}.bias")].map(|name| wide(&name));
        let convolved = composed::conv2d(&value, &weight, &parameters[0], block.convolution).unwrap();
        let rows = convolved.elem_count() as f64 / parameters[0].elem_count() as f64;
        let mean = convolved.mean((0, 1, 2)).unwrap();
        let squares = convolved.broadcast_sub(&mean).and_then(|centred| centred.sqr()?.sum((0, 1, 2))).unwrap();
        let expected =
            [mean.to_vec1::<f64>().unwrap(), squares.to_vec1::<f64>().unwrap().into_iter().map(|sum| sum / (rows - 1.0)).collect()];
        let names = [format!("{normalisation}.running_mean"), format!("{normalisation}.running_var")];
        for (name, expected) in names.iter().zip(&expected) {
            for (found, expected) in numbers(name).iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{name}: {found} where {expected} is right");
            }
        }
        let (mean, variance) = (numbers(&names[0]), numbers(&names[1]));
        let fixed = Normalisation::Fixed { mean: &mean, variance: &variance };
        value = composed::conv_block(&value, &weight, parameters.each_ref(), block, fixed).unwrap().0;
    }
    // In another order.
    let order = streams().stream("order").permutation(300);
    let (images, labels) = samples.batch(&order).unwrap();
    let shuffled =
        Samples::of_values(Array::new(images.dims().to_vec(), images.flatten_all().unwrap().to_vec1().unwrap()), labels).unwrap();
    let mut other = self::network(1);
    train::recompute_running_averages(&mut other, &shuffled, Part::Intermediate).unwrap();
    for (name, tensor) in other.to_tensors().unwrap() {
        if let Stored::F32(array) = tensor {
            assert!(
                array.data.iter().zip(numbers(&name)).all(|(&value, other)| (f64::from(value) - other).abs() <= 1e-6 * (1.0 + other.abs())),
                "{name}"
            );
        }
    }
}

fn recipe(schedule: Schedule) -> Recipe {
    Recipe { epochs: 4, batch: 8, lr: 0.01, schedule, ..Recipe::default() }
}

#[test]
fn the_rate_stays_or_falls_along_half_a_cosine() {
    let rates = |schedule| (0..=4).map(|epoch| recipe(schedule).rate(epoch, 3, 5)).collect::<Vec<_>>();
    assert_eq!(rates(Schedule::Constant), [0.01; 5]);
    // As torch.optim.lr_scheduler.CosineAnnealingLR with T_max = 4.
    let expected = [0.01, 0.008535533905932738, 0.005, 0.0014644660940672627, 0.0];
    for (found, expected) in rates(Schedule::Cosine).iter().zip(expected) {
        assert!((found - expected).abs() < 1e-17, "{found} where {expected} is right");
    }
}

#[test]
fn a_training_goes_on_from_a_snapshot_to_the_same_bytes() {
    let samples = samples(30);
    let new = || Fit::new(network(1), recipe(Schedule::Cosine), streams());
    let mut whole = new();
    let mut snapshot = None;
    while whole.next_epoch(&samples).unwrap().is_some() {
        if whole.done() == 2 {
            snapshot = Some(whole.snapshot().unwrap());
        }
    }
    let mut resumed = new();
    resumed.restore(2, snapshot.clone().unwrap()).unwrap();
    while resumed.next_epoch(&samples).unwrap().is_some() {}
    assert_eq!(resumed.finish().to_tensors().unwrap(), whole.finish().to_tensors().unwrap());
    // Without its moments it would end elsewhere.
    let mut forgetful = new();
    forgetful.restore(2, snapshot.unwrap().into_iter().filter(|(name, _)| !name.contains('@')).collect()).unwrap();
    while forgetful.next_epoch(&samples).unwrap().is_some() {}
    let mut whole = new();
    while whole.next_epoch(&samples).unwrap().is_some() {}
    assert_ne!(forgetful.finish().to_tensors().unwrap(), whole.finish().to_tensors().unwrap());
}

#[test]
fn a_damaged_state_is_refused() {
    let mut fit = Fit::new(network(1), recipe(Schedule::Constant), streams());
    fit.next_epoch(&samples(16)).unwrap();
    let snapshot = fit.snapshot().unwrap();
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Stored>)| {
        let mut tensors = snapshot.clone();
        change(&mut tensors);
        fit_of(tensors).unwrap_err().to_string()
    };
    fn fit_of(tensors: BTreeMap<String, Stored>) -> Result<()> {
        Fit::new(network(1), recipe(Schedule::Constant), streams()).restore(1, tensors)
    }
    assert!(fit_of(snapshot.clone()).is_ok());
    let name = "classifier.0.bias";
    let set = |moment: &str, tensor: Stored| {
        let key = format!("{name}@{moment}");
        refused(&|tensors| drop(tensors.insert(key.clone(), tensor.clone())))
    };
    assert!(set("second", Stored::F32(Array::vector(vec![0.0; 3]))).contains("classifier.0.bias@second"));
    assert!(set("steps", Stored::I64(Array::vector(vec![1]))).contains("`classifier.0.bias@steps` is missing, or not one U64"));
    assert!(set("steps", Stored::U64(Array::vector(vec![]))).contains("`classifier.0.bias@steps`"));
    assert!(set("first", Stored::U64(Array::vector(vec![0; 10]))).contains("`classifier.0.bias@first`"));
    assert!(set("third", Stored::F32(Array::vector(vec![0.0; 10]))).contains("`classifier.0.bias@third` is not of an optimiser's state"));
    for moment in ["first", "second", "steps"] {
        let key = format!("{name}@{moment}");
        assert!(refused(&|tensors| drop(tensors.remove(&key))).contains(&key));
    }
    let both = |tensors: &mut BTreeMap<String, Stored>, name: &str, length: usize| {
        for moment in ["first", "second"] {
            tensors.insert(format!("{name}@{moment}"), Stored::F32(Array::vector(vec![0.0; length])));
        }
        tensors.insert(format!("{name}@steps"), Stored::U64(Array::vector(vec![1])));
    };
    assert!(refused(&|tensors| both(tensors, name, 3)).contains("3 moments of `classifier.0.bias`, which has 10 values"));
    assert!(refused(&|tensors| both(tensors, "classifier.9.bias", 3)).contains("`classifier.9.bias`, which is no parameter"));
    let batches = Stored::F32(Array::vector(vec![1.0]));
    let error = refused(&|tensors| drop(tensors.insert("features.1.num_batches_tracked".into(), batches.clone())));
    assert!(error.contains("`features.1.num_batches_tracked`"), "{error}");
}
