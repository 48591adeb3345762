//! Every operation against finite differences in f64, and forward passes against candle-nn's, which are written independently.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Conv2dConfig, Module, ModuleT};
use dcu_nn::ops::{self, Convolution};
use dcu_nn::rng::Streams;

const STEP: f64 = 1e-5;

fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut stream = Streams::new(11, "test").stream(name);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| f64::from(stream.normal())).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().and_then(|tensor| tensor.to_vec1()).unwrap()
}

/// The derivative of a random linear function of the output, by central differences, for every value of every argument.
fn check(name: &str, arguments: &[Tensor], run: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let variables: Vec<Var> = arguments.iter().map(|argument| Var::from_tensor(argument).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let output = run(&tensors).unwrap();
    let direction = random(&format!("{name} direction"), output.dims());
    let scalar = |arguments: &[Tensor]| values(&run(arguments).and_then(|output| output.mul(&direction)).unwrap()).iter().sum::<f64>();
    let gradients = output.mul(&direction).and_then(|product| product.sum_all()?.backward()).unwrap();
    for (position, argument) in arguments.iter().enumerate() {
        let found = values(gradients.get(variables[position].as_tensor()).unwrap_or_else(|| panic!("{name}: no gradient {position}")));
        for element in 0..found.len() {
            let moved = |by: f64| {
                let mut shifted = values(argument);
                shifted[element] += by;
                let mut arguments = arguments.to_vec();
                arguments[position] = Tensor::from_vec(shifted, argument.shape(), &Device::Cpu).unwrap();
                scalar(&arguments)
            };
            let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let difference = (found[element] - expected).abs();
            assert!(
                difference <= 1e-6 * (1.0 + expected.abs()),
                "{name}, argument {position}, element {element}: {} where {expected} is right",
                found[element]
            );
        }
    }
}

/// Small random shapes: (images, channels, outputs, height, width, kernel, stride, padding).
fn convolution_shapes() -> Vec<[usize; 8]> {
    let mut stream = Streams::new(5, "test").stream("shapes");
    (0..12)
        .map(|_| {
            let kernel = [1, 3, 4, 5][stream.below(4)];
            let (height, width) = (kernel + stream.below(4), kernel + stream.below(4));
            [
                1 + stream.below(3),
                1 + stream.below(3),
                1 + stream.below(3),
                height,
                width,
                kernel,
                1 + stream.below(2),
                stream.below(kernel.div_ceil(2) + 1),
            ]
        })
        .collect()
}

#[test]
fn gradients_are_the_limits_of_differences() {
    for shape @ [n, c, o, h, w, kernel, stride, padding] in convolution_shapes() {
        let name = format!("conv2d {shape:?}");
        let arguments = [random("input", &[n, c, h, w]), random("weight", &[o, c, kernel, kernel]), random("bias", &[o])];
        check(&name, &arguments, |values| ops::conv2d(&values[0], &values[1], &values[2], Convolution { stride, padding }));
    }
    check("linear", &[random("input", &[3, 4]), random("weight", &[2, 4]), random("bias", &[2])], |values| {
        ops::linear(&values[0], &values[1], &values[2])
    });
    check("max_pool2d", &[random("input", &[2, 2, 5, 4])], |values| ops::max_pool2d(&values[0], 2));
    check("relu", &[random("input", &[4, 5])], |values| ops::relu(&values[0]));
    check("cross_entropy", &[random("logits", &[4, 3])], |values| ops::cross_entropy(&values[0], &[0, 2, 1, 1]));
    for rectify in [false, true] {
        let arguments = [random("input", &[3, 2, 2, 3]), random("scale", &[2]), random("shift", &[2])];
        check("batch_norm_train", &arguments, |values| {
            let statistics = ops::batch_statistics(&values[0])?;
            ops::batch_norm_train(&values[0], &values[1], &values[2], &statistics, rectify)
        });
        check("batch_norm_eval", &arguments, |values| {
            ops::batch_norm_eval(&values[0], &values[1], &values[2], &[0.1, -0.2], &[1.5, 0.7], rectify)
        });
    }
    check("dropout", &[random("input", &[5, 6])], |values| ops::dropout(&values[0], 0.4, &mut Streams::new(3, "test").stream("dropout")));
}

#[test]
fn dropout_keeps_the_mean_and_the_share_it_should() {
    let ones = Tensor::ones(&[100, 1000], DType::F64, &Device::Cpu).unwrap();
    let dropped = values(&ops::dropout(&ones, 0.3, &mut Streams::new(3, "test").stream("dropout")).unwrap());
    let kept = dropped.iter().filter(|&&value| value != 0.0).count() as f64 / dropped.len() as f64;
    assert!((kept - 0.7).abs() < 0.01, "{kept}");
    assert!(dropped.iter().all(|&value| value == 0.0 || (value - 1.0 / 0.7).abs() < 1e-12));
}

fn assert_same(what: &str, left: &Tensor, right: &Tensor) {
    let (left, right) = (values(left), values(right));
    assert_eq!(left.len(), right.len(), "{what}");
    let largest = left.iter().zip(&right).map(|(left, right)| (left - right).abs()).fold(0.0, f64::max);
    assert!(largest < 1e-12, "{what}: {largest}");
}

#[test]
fn forward_passes_agree_with_candle_nn() {
    for shape @ [n, c, o, h, w, kernel, stride, padding] in convolution_shapes() {
        let (input, weight, bias) = (random("input", &[n, c, h, w]), random("weight", &[o, c, kernel, kernel]), random("bias", &[o]));
        let config = Conv2dConfig { stride, padding, ..Conv2dConfig::default() };
        let theirs = candle_nn::Conv2d::new(weight.clone(), Some(bias.clone()), config).forward(&input).unwrap();
        assert_same(&format!("{shape:?}"), &ops::conv2d(&input, &weight, &bias, Convolution { stride, padding }).unwrap(), &theirs);
    }
    let (input, weight, bias) = (random("input", &[7, 5]), random("weight", &[3, 5]), random("bias", &[3]));
    let theirs = candle_nn::Linear::new(weight.clone(), Some(bias.clone())).forward(&input).unwrap();
    assert_same("linear", &ops::linear(&input, &weight, &bias).unwrap(), &theirs);
    let labels = [0, 4, 2, 1, 0, 3, 3];
    let theirs = candle_nn::loss::cross_entropy(&input, &Tensor::new(&labels, &Device::Cpu).unwrap()).unwrap();
    assert_same("cross_entropy", &ops::cross_entropy(&input, &labels).unwrap(), &theirs);
    let (images, scale, shift) = (random("images", &[4, 3, 5, 5]), random("scale", &[3]), random("shift", &[3]));
    let zeros = Tensor::zeros(&[3], DType::F64, &Device::Cpu).unwrap();
    let normalisation =
        candle_nn::BatchNorm::new(3, zeros.clone(), zeros.ones_like().unwrap(), scale.clone(), shift.clone(), ops::BATCH_NORM_EPSILON)
            .unwrap();
    let statistics = ops::batch_statistics(&images).unwrap();
    let ours = ops::batch_norm_train(&images, &scale, &shift, &statistics, false).unwrap();
    assert_same("batch_norm_train", &ours, &normalisation.forward_t(&images, true).unwrap());
}
