//! Operations, optimisers and trainings against vectors made with PyTorch (tests/golden/generate.py).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use dcu_artifact::{Array, Tensor as Stored};
use dcu_nn::ops::{self, Block, Convolution, FrozenBlock, InstanceBlock, Normalisation, Pooling, Targets, Weighting};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Family, Gradients, Mode, Network, Part, Trainable, network};

type Golden = std::collections::HashMap<String, Tensor>;

fn golden(file: &str) -> Golden {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let path = Path::new(&package).join("tests/golden").join(file);
    candle_core::safetensors::load(path, &Device::Cpu).expect("the golden file is there")
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all()?.to_vec1()).expect("numbers")
}

fn integer(golden: &Golden, name: &str) -> usize {
    flat(&golden[name])[0] as usize
}

/// Differences at most `tolerance` of the largest magnitude of what is expected; of 0.01 where that is nothing but rounding.
fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().filter(|value| value.is_finite()).fold(0.01_f64, |largest, value| largest.max(value.abs()));
    for (position, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_same = found == expected || found.is_nan() && expected.is_nan();
        assert!(
            is_same || (found - expected).abs() <= tolerance * scale,
            "{what}: {found} at {position} where {expected} is right (scale {scale})"
        );
    }
}

/// Runs an operation in f64 and in f32, and compares output and all gradients.
fn check(golden: &Golden, name: &str, arguments: &[&str], run: impl Fn(&[&Tensor]) -> Result<Tensor>) {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
        let argument = |key: &&str| Var::from_tensor(&golden[&format!("{name}.{key}")].to_dtype(dtype)?);
        let variables: Vec<Var> = arguments.iter().map(argument).collect::<Result<_>>().unwrap();
        let output = run(&variables.iter().map(Var::as_tensor).collect::<Vec<_>>()).unwrap();
        assert_close(&format!("{name} {dtype:?} output"), &flat(&output), &flat(&golden[&format!("{name}.output")]), tolerance);
        let direction = golden[&format!("{name}.direction")].to_dtype(dtype).unwrap();
        let gradients = output.mul(&direction).and_then(|product| product.sum_all()?.backward()).unwrap();
        for (key, variable) in arguments.iter().zip(&variables) {
            let found = gradients.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name}: no gradient for {key}"));
            assert_close(
                &format!("{name} {dtype:?} gradient of {key}"),
                &flat(found),
                &flat(&golden[&format!("{name}.{key}.gradient")]),
                tolerance,
            );
        }
    }
}

fn cases<'a>(golden: &'a Golden, operation: &'a str) -> impl Iterator<Item = String> + 'a {
    let count = golden.keys().filter(|key| key.starts_with(&format!("{operation}.")) && key.ends_with(".output")).count();
    assert!(count > 0, "no case of {operation}");
    (0..count).map(move |position| format!("{operation}.{position}"))
}

fn convolution_of(golden: &Golden, name: &str) -> Convolution {
    Convolution { stride: integer(golden, &format!("{name}.stride")), padding: integer(golden, &format!("{name}.padding")) }
}

#[test]
fn convolution() {
    let golden = golden("ops.safetensors");
    for name in cases(&golden, "conv2d") {
        let convolution = convolution_of(&golden, &name);
        check(&golden, &name, &["input", "weight", "bias"], |values| {
            ops::channels_first(&ops::conv2d(&ops::channels_last(values[0])?, values[1], values[2], convolution)?)
        });
    }
}

#[test]
fn linear() {
    let golden = golden("ops.safetensors");
    for name in cases(&golden, "linear") {
        check(&golden, &name, &["input", "weight", "bias"], |values| ops::linear(values[0], values[1], values[2]));
    }
}

#[test]
fn pooling() {
    let golden = golden("ops.safetensors");
    const COMPOSED_SPECIAL: usize = 3;
    type Pool = fn(&Tensor, Pooling) -> Result<Tensor>;
    let operations: [(&str, Pool); 5] = [
        ("max_pool2d", ops::max_pool2d),
        ("max_pool2d_special", ops::max_pool2d),
        ("max_pool2d", ops::composed::max_pool2d),
        ("max_pool2d_special", ops::composed::max_pool2d),
        ("avg_pool2d", ops::avg_pool2d),
    ];
    for (place, (operation, pool)) in operations.into_iter().enumerate() {
        for name in cases(&golden, operation) {
            let number = |key: &str| integer(&golden, &format!("{name}.{key}"));
            let pooling = Pooling { size: number("size"), stride: number("stride"), padding: number("padding") };
            if place == COMPOSED_SPECIAL && pooling.padding > 0 {
                // Of a window that holds minus infinity only, it takes the padding for the first maximum.
                continue;
            }
            check(&golden, &name, &["input"], |values| ops::channels_first(&pool(&ops::channels_last(values[0])?, pooling)?));
        }
    }
}

#[test]
fn blocks() {
    let golden = golden("ops.safetensors");
    for operation in ["block_train", "block_eval"] {
        for name in cases(&golden, operation) {
            let number = |key: &str| integer(&golden, &format!("{name}.{key}"));
            let block =
                Block { convolution: convolution_of(&golden, &name), rectify: number("rectified") == 1, pool: number("pooled") == 1 };
            let numbers = |key: &str| flat(&golden[&format!("{name}.{key}")]);
            let (mean, variance) = (numbers("mean"), numbers("variance"));
            let fixed = Normalisation::Fixed { mean: &mean, variance: &variance };
            let normalisation = if operation == "block_train" { Normalisation::Batch } else { fixed };
            check(&golden, &name, &["input", "weight", "bias", "scale", "shift"], |values| {
                let [input, weight, parameters @ ..] = values else { panic!("five arguments") };
                let parameters = parameters.try_into().expect("three vectors");
                let (output, statistics) = ops::conv_block(&ops::channels_last(input)?, *weight, parameters, block, normalisation)?;
                if let (Some(statistics), DType::F64) = (statistics, output.dtype()) {
                    // The running averages after one step with the momentum of PyTorch.
                    let moved = |old: &[f64], new: &[f64]| old.iter().zip(new).map(|(old, new)| 0.9 * old + 0.1 * new).collect::<Vec<_>>();
                    assert_close(&name, &moved(&mean, &statistics.mean), &numbers("new_mean"), 1e-12);
                    assert_close(&name, &moved(&variance, &statistics.unbiased_variance()), &numbers("new_variance"), 1e-12);
                }
                ops::channels_first(&output)
            });
        }
    }
}

fn parameters<'a>(values: &[&'a Tensor]) -> [&'a Tensor; 3] {
    values[2..].try_into().expect("bias, scale and shift")
}

/// Several pixels of a window are its maximum, or 0 behind the rectification.
#[test]
fn blocks_with_ties() {
    let golden = golden("ops.safetensors");
    for operation in ["block_train_ties", "block_eval_ties"] {
        for name in cases(&golden, operation) {
            let pool = integer(&golden, &format!("{name}.pooled")) == 1;
            let block = Block { convolution: convolution_of(&golden, &name), rectify: true, pool };
            let numbers = |key: &str| flat(&golden[&format!("{name}.{key}")]);
            let (mean, variance) = (numbers("mean"), numbers("variance"));
            let fixed = Normalisation::Fixed { mean: &mean, variance: &variance };
            let normalisation = if operation == "block_train_ties" { Normalisation::Batch } else { fixed };
            check(&golden, &name, &["input", "weight", "bias", "scale", "shift"], |values| {
                let (output, _) = ops::conv_block(&ops::channels_last(values[0])?, values[1], parameters(values), block, normalisation)?;
                ops::channels_first(&output)
            });
            if operation == "block_eval_ties" {
                let others = ["weight", "bias", "scale", "shift"].map(|key| golden[&format!("{name}.{key}")].clone());
                check(&golden, &name, &["input"], |values| {
                    let [weight, parameters @ ..] = others.each_ref().map(|tensor| tensor.to_dtype(values[0].dtype()).expect("numbers"));
                    let frozen = FrozenBlock { weight, parameters, mean: mean.clone(), variance: variance.clone(), block };
                    ops::channels_first(&ops::frozen_blocks(&ops::channels_last(values[0])?, &[frozen])?)
                });
            }
        }
    }
}

/// A pixel that is not a number spoils the results that PyTorch's spoils, and no others; in train mode all of the batch's channel.
#[test]
fn blocks_with_a_pixel_that_is_not_a_number() {
    let golden = golden("ops.safetensors");
    for dtype in [DType::F64, DType::F32] {
        let [input, weight, bias, scale, shift] =
            ["input", "weight", "bias", "scale", "shift"].map(|key| golden[&format!("block_broken.{key}")].to_dtype(dtype).unwrap());
        let input = ops::channels_last(&input).unwrap();
        let block = Block { convolution: Convolution { stride: 1, padding: 1 }, rectify: true, pool: true };
        let (mean, variance) = (flat(&golden["block_broken.mean"]), vec![1.0; 5]);
        let fixed = Normalisation::Fixed { mean: &mean, variance: &variance };
        let run = |normalisation| ops::conv_block(&input, &weight, [&bias, &scale, &shift], block, normalisation).unwrap().0;
        let frozen = FrozenBlock {
            weight: weight.clone(),
            parameters: [bias.clone(), scale.clone(), shift.clone()],
            mean: mean.clone(),
            variance: variance.clone(),
            block,
        };
        let expected = flat(&golden["block_broken.output"]);
        assert!(expected.iter().any(|value| value.is_nan()) && expected.iter().any(|value| value.is_finite()));
        let differentiated = Var::from_tensor(&input).unwrap();
        for output in [
            run(fixed),
            ops::frozen_blocks(&input, std::slice::from_ref(&frozen)).unwrap(),
            ops::frozen_blocks(differentiated.as_tensor(), &[frozen]).unwrap(),
        ] {
            assert_close("a broken pixel", &flat(&ops::channels_first(&output).unwrap()), &expected, 1e-5);
        }
        assert!(flat(&run(Normalisation::Batch)).iter().all(|value| value.is_nan()));
    }
}

#[test]
fn layer_normalisation() {
    let golden = golden("ops.safetensors");
    for name in cases(&golden, "layer_norm") {
        check(&golden, &name, &["input", "scale", "shift"], |values| ops::layer_norm(values[0], values[1], values[2], 1e-6));
    }
}

#[test]
fn attention() {
    let golden = golden("ops.safetensors");
    for name in cases(&golden, "attention") {
        check(&golden, &name, &["queries", "keys", "values"], |values| ops::attention(values[0], values[1], values[2]));
    }
}

#[test]
fn rectification() {
    let golden = golden("ops.safetensors");
    for name in ["relu.0", "relu_special.0"] {
        check(&golden, name, &["input"], |values| ops::relu(values[0]));
        check(&golden, name, &["input"], |values| ops::composed::relu(values[0]));
    }
}

#[test]
fn cross_entropy() {
    let golden = golden("ops.safetensors");
    for name in cases(&golden, "cross_entropy") {
        let labels: Vec<u32> = flat(&golden[&format!("{name}.labels")]).iter().map(|&label| label as u32).collect();
        check(&golden, &name, &["logits"], |values| ops::cross_entropy(values[0], &labels));
        let each = ops::cross_entropy_per_sample(&golden[&format!("{name}.logits")], &labels).unwrap();
        assert_close(&name, &each, &flat(&golden[&format!("{name}.each")]), 1e-12);
    }
}

/// Runs an operation on channels-last images.
fn on_images(image: &Tensor, run: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    ops::channels_first(&run(&ops::channels_last(image)?)?)
}

#[test]
fn linear_layers_of_tokens_without_a_bias() {
    let golden = golden("ops.safetensors");
    for name in cases(&golden, "linear_plain") {
        check(&golden, &name, &["input", "weight"], |values| ops::linear(values[0], values[1], None));
    }
}

#[test]
fn transposed_convolution() {
    let golden = golden("ops.safetensors");
    for name in cases(&golden, "conv_transpose2d") {
        let convolution = convolution_of(&golden, &name);
        check(&golden, &name, &["input", "weight", "bias"], |values| {
            on_images(values[0], |images| ops::conv_transpose2d(images, values[1], values[2], convolution))
        });
    }
}

#[test]
fn normalisation_alone() {
    let golden = golden("ops.safetensors");
    let [mean, variance] = ["mean", "variance"].map(|key| flat(&golden[&format!("batch_norm_eval.0.{key}")]));
    let fixed = Normalisation::Fixed { mean: &mean, variance: &variance };
    for (name, normalisation) in [("batch_norm_train.0", Normalisation::Batch), ("batch_norm_eval.0", fixed)] {
        check(&golden, name, &["input", "scale", "shift"], |values| {
            on_images(values[0], |images| Ok(ops::batch_norm(images, values[1], values[2], normalisation)?.0))
        });
    }
    for name in cases(&golden, "group_norm") {
        let groups = integer(&golden, &format!("{name}.groups"));
        check(&golden, &name, &["input", "scale", "shift"], |values| {
            on_images(values[0], |images| ops::group_norm(images, groups, values[1], values[2], 1e-5))
        });
    }
    for name in cases(&golden, "instance_block") {
        let [rectify, pool] = ["rectified", "pooled"].map(|key| integer(&golden, &format!("{name}.{key}")) == 1);
        check(&golden, &name, &["input", "scale", "shift"], |values| {
            on_images(values[0], |images| ops::instance_block(images, [values[1], values[2]], 1e-5, InstanceBlock { rectify, pool }))
        });
    }
}

#[test]
fn functions_of_values() {
    let golden = golden("ops.safetensors");
    check(&golden, "gelu.0", &["input"], |values| ops::gelu(values[0]));
    check(&golden, "sigmoid.0", &["input"], |values| ops::sigmoid(values[0]));
    check(&golden, "add_relu.0", &["left", "right"], |values| ops::add_relu(values[0], values[1]));
}

#[test]
fn adaptive_pooling() {
    let golden = golden("ops.safetensors");
    for name in cases(&golden, "adaptive_avg_pool2d") {
        let size = ["rows", "columns"].map(|key| integer(&golden, &format!("{name}.{key}")));
        check(&golden, &name, &["input"], |values| on_images(values[0], |images| ops::adaptive_avg_pool2d(images, size)));
    }
}

#[test]
fn attention_of_tokens_as_timm_lays_them_out() {
    let golden = golden("ops.safetensors");
    for name in cases(&golden, "attention_of_tokens") {
        let heads = integer(&golden, &format!("{name}.heads"));
        check(&golden, &name, &["tokens"], |values| ops::attention_of_tokens(values[0], heads));
    }
}

#[test]
fn losses_with_soft_targets_smoothing_and_weights() {
    let golden = golden("ops.safetensors");
    for operation in ["smooth_cross_entropy", "soft_cross_entropy"] {
        for name in cases(&golden, operation) {
            let numbers = |key: &str| flat(&golden[&format!("{name}.{key}")]);
            let (weights, labels) = (numbers("weights"), numbers("targets").iter().map(|&label| label as u32).collect::<Vec<_>>());
            let targets = match operation {
                "soft_cross_entropy" => Targets::Probabilities(&golden[&format!("{name}.targets")]),
                _ => Targets::Labels(&labels),
            };
            let classes = (numbers("weighted")[0] == 1.0).then_some(&weights[..]);
            let weighting = Weighting { smoothing: numbers("smoothing")[0], classes, samples: None };
            check(&golden, &name, &["logits"], |values| ops::weighted_cross_entropy(values[0], targets, weighting));
        }
    }
    for name in cases(&golden, "kl_divergence") {
        let (teacher, temperature) = (&golden[&format!("{name}.teacher")], flat(&golden[&format!("{name}.temperature")])[0]);
        check(&golden, &name, &["student"], |values| ops::kl_divergence(values[0], &teacher.to_dtype(values[0].dtype())?, temperature));
    }
    check(&golden, "squared_error.0", &["left", "right"], |values| ops::squared_error(values[0], values[1]));
}

#[test]
fn gradients_of_samples() {
    let golden = golden("ops.safetensors");
    let [input, direction] = ["input", "direction"].map(|key| ops::channels_last(&golden[&format!("samples.{key}")]).unwrap());
    let found = ops::conv2d_per_sample_weight_gradients(&input, &direction, (3, 2, 3, 3), Convolution { stride: 2, padding: 1 }).unwrap();
    assert_close("gradients of samples", &flat(&found), &flat(&golden["samples.gradients"]), 1e-12);
}

#[test]
fn optimisers() {
    let golden = golden("ops.safetensors");
    let rules = [
        ("adam", Rule::Adam { weight_decay: 0.0 }, 0.01),
        ("adam_long", Rule::Adam { weight_decay: 0.0 }, 0.01),
        ("adam_decay", Rule::Adam { weight_decay: 0.1 }, 0.01),
        ("sgd", Rule::Sgd { momentum: 0.0, weight_decay: 0.0 }, 0.1),
        ("sgd_momentum", Rule::Sgd { momentum: 0.9, weight_decay: 0.05 }, 0.1),
    ];
    for (name, rule, rate) in rules {
        let parameter = Var::from_tensor(&golden[&format!("{name}.start")]).unwrap();
        let mut optimiser = Optimiser::new(rule);
        let values = &golden[&format!("{name}.values")];
        for step in 0..values.dim(0).unwrap() {
            let gradient = golden[&format!("{name}.gradients")].get(step).unwrap();
            let gradients: Gradients = [("parameter".to_owned(), gradient)].into_iter().collect();
            optimiser.step(&BTreeMap::from([("parameter", &parameter)]), &gradients, rate).unwrap();
            // Bit for bit.
            assert_eq!(flat(parameter.as_tensor()), flat(&values.get(step).unwrap()), "{name}, step {step}");
        }
    }
}

fn weights(golden: &Golden, prefix: &str) -> BTreeMap<String, Stored> {
    let named = golden.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor)));
    named
        .map(|(name, tensor)| {
            let values = flat(tensor);
            let stored = match tensor.dtype() {
                DType::I64 => Stored::I64(Array::new(tensor.dims().to_vec(), values.iter().map(|&value| value as i64).collect())),
                _ => Stored::F32(Array::new(tensor.dims().to_vec(), values.iter().map(|&value| value as f32).collect())),
            };
            (name, stored)
        })
        .collect()
}

/// From the same weights and batches, the first 20 losses agree with PyTorch's within 1e-4, and so do all weights and buffers afterwards:
/// when the whole network is trained, and when its parts are in turn, each through the others, which are frozen but in train mode.
#[test]
fn training_goes_as_in_pytorch() {
    let mlp = Architecture { widths: vec![24, 12], ..Architecture::of_family(Family::Mlp, [3, 16, 16], 5) };
    let cnn = Architecture { family: Family::Cnn, widths: vec![4, 8, 8, 12], hidden: 20, ..mlp.clone() };
    let golden = golden("training.safetensors");
    for (name, architecture) in [("mlp", &mlp), ("cnn", &cnn)] {
        trains_as_in_pytorch(&golden, name, architecture, &[&Part::ALL]);
        trains_as_in_pytorch(&golden, &format!("{name}_parts"), architecture, &[&[Part::Beginning], &[Part::Intermediate], &[Part::Final]]);
    }
}

/// Step `n` trains the parts `turns[n % turns.len()]`.
fn trains_as_in_pytorch(golden: &Golden, name: &str, architecture: &Architecture, turns: &[&[Part]]) {
    const BATCH: usize = 16;
    const TOLERANCE: f64 = 1e-4;
    let labels: Vec<u32> = flat(&golden["labels"]).iter().map(|&label| label as u32).collect();
    let mut network = Network::from_tensors(architecture, &weights(golden, &format!("{name}.start."))).unwrap();
    let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
    let mut dropout = Streams::new(0, "test").stream("dropout");
    let mut losses = Vec::new();
    for step in 0..20 {
        let trainable = &Trainable::parts(network.graph(), turns[step % turns.len()]);
        let rows: Vec<u32> = (0..BATCH).map(|row| ((step * BATCH + row) % labels.len()) as u32).collect();
        let batch_labels: Vec<u32> = rows.iter().map(|&row| labels[row as usize]).collect();
        let images = golden["images"].index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
        let logits = network.forward(&images, &Part::ALL, network::all(Mode::TRAIN), trainable, &mut dropout).unwrap();
        let loss = ops::cross_entropy(&logits, &batch_labels).unwrap();
        optimiser.step(&network.parameters(trainable), &network.backward(&loss, trainable).unwrap(), 1e-3).unwrap();
        losses.push(f64::from(loss.to_scalar::<f32>().unwrap()));
    }
    let expected = flat(&golden[&format!("{name}.losses")]);
    let largest = losses.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f64::max);
    assert!(largest <= 1e-4, "{name}: a loss is {largest} away from PyTorch's\n{losses:?}\n{expected:?}");
    let found = network.to_tensors().unwrap();
    let mut wrong = Vec::new();
    for (key, expected) in weights(golden, &format!("{name}.end.")) {
        let values = |tensor: &Stored| match tensor {
            Stored::F32(array) => array.data.iter().map(|&value| f64::from(value)).collect::<Vec<_>>(),
            Stored::I64(array) => array.data.iter().map(|&value| value as f64).collect(),
            other => panic!("{:?}", other.dtype()),
        };
        let (found, expected) = (values(&found[&key]), values(&expected));
        let scale = expected.iter().fold(0.01_f64, |largest, value| largest.max(value.abs()));
        let off = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs() / scale).fold(0.0, f64::max);
        if off > TOLERANCE {
            wrong.push(format!("{key}: {off:e}"));
        }
    }
    assert!(wrong.is_empty(), "{name}: {wrong:#?}");
}
