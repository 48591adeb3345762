//! Every operation against finite differences in f64, and against the same composed of candle's own.

use candle_core::{DType, Device, Result, Tensor, Var};
use dcu_nn::ops::{self, Block, Convolution, FrozenBlock, InstanceBlock, Normalisation, Pooling, Targets, Weight, Weighting, composed};
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

const BLOCK: Block = Block { convolution: Convolution { stride: 1, padding: 1 }, rectify: true, pool: true };
const FIXED: Normalisation<'static> = Normalisation::Fixed { mean: &[0.1, -0.2], variance: &[1.5, 0.7] };

fn convolution_arguments([n, c, o, h, w, kernel, ..]: [usize; 8]) -> [Tensor; 3] {
    [random("input", &[n, h, w, c]), random("weight", &[o, c, kernel, kernel]), random("bias", &[o])]
}

fn block_arguments(outputs: usize) -> [Tensor; 5] {
    let [input, weight, bias] = convolution_arguments([3, 2, outputs, 5, 4, 3, 1, 1]);
    [input, weight, bias, random("scale", &[outputs]), random("shift", &[outputs])]
}

fn block(values: &[Tensor], block: Block, normalisation: Normalisation<'_>) -> Result<Tensor> {
    Ok(ops::conv_block(&values[0], &values[1], [&values[2], &values[3], &values[4]], block, normalisation)?.0)
}

/// Images [N, H, W, C] and two blocks of so many outputs, the second without rectification.
fn run_of_blocks([n, h, w, c]: [usize; 4], outputs: [usize; 2], first: Block) -> (Tensor, Vec<FrozenBlock>) {
    let variants = [first, Block { rectify: false, ..BLOCK }];
    let blocks = [c, outputs[0]].into_iter().zip(outputs).zip(variants).map(|((inputs, outputs), block)| FrozenBlock {
        weight: random("weight", &[outputs, inputs, 3, 3]),
        parameters: ["bias", "scale", "shift"].map(|name| random(name, &[outputs])),
        mean: values(&random("mean", &[outputs])),
        variance: values(&random("variance", &[outputs]).sqr().unwrap()),
        block,
    });
    (random("input", &[n, h, w, c]), blocks.collect())
}

const POOLINGS: [Pooling; 3] =
    [Pooling { size: 2, stride: 2, padding: 0 }, Pooling { size: 3, stride: 2, padding: 1 }, Pooling { size: 3, stride: 1, padding: 0 }];

#[test]
fn gradients_are_the_limits_of_differences() {
    for shape @ [.., stride, padding] in convolution_shapes() {
        check(&format!("conv2d {shape:?}"), &convolution_arguments(shape), |values| {
            ops::conv2d(&values[0], &values[1], &values[2], Convolution { stride, padding })
        });
    }
    for normalisation in [Normalisation::Batch, FIXED] {
        for variant in [BLOCK, Block { rectify: false, ..BLOCK }, Block { pool: false, ..BLOCK }] {
            check(&format!("conv_block {variant:?}"), &block_arguments(2), |values| block(values, variant, normalisation));
        }
    }
    for variant in [BLOCK, Block { pool: false, ..BLOCK }] {
        let [input, others @ ..] = block_arguments(2);
        check(&format!("frozen conv_block {variant:?}"), &[input], |values| block(&[&values[..1], &others].concat(), variant, FIXED));
    }
    for first in [BLOCK, Block { pool: false, ..BLOCK }] {
        let (input, blocks) = run_of_blocks([2, 6, 7, 2], [3, 2], first);
        check(&format!("frozen_blocks {first:?}"), &[input], |values| ops::frozen_blocks(&values[0], &blocks));
    }
    check("linear", &[random("input", &[3, 4]), random("weight", &[2, 4]), random("bias", &[2])], |values| {
        ops::linear(&values[0], &values[1], &values[2])
    });
    for pooling in POOLINGS {
        check("max_pool2d", &[random("input", &[2, 5, 4, 2])], |values| ops::max_pool2d(&values[0], pooling));
        check("avg_pool2d", &[random("input", &[2, 5, 4, 2])], |values| ops::avg_pool2d(&values[0], pooling));
    }
    check("channels_last", &[random("input", &[2, 3, 2, 4])], |values| ops::channels_last(&values[0]));
    check("channels_first", &[random("input", &[2, 3, 2, 4])], |values| ops::channels_first(&values[0]));
    check("relu", &[random("input", &[4, 5])], |values| ops::relu(&values[0]));
    check("cross_entropy", &[random("logits", &[4, 3])], |values| ops::cross_entropy(&values[0], &[0, 2, 1, 1]));
    check("layer_norm", &[random("input", &[3, 5]), random("scale", &[5]), random("shift", &[5])], |values| {
        ops::layer_norm(&values[0], &values[1], &values[2], 1e-6)
    });
    let heads = ["queries", "keys", "values"].map(|name| random(name, &[2, 1, 4, 3]));
    check("attention", &heads, |values| ops::attention(&values[0], &values[1], &values[2]));
    check("dropout", &[random("input", &[5, 6])], |values| ops::dropout(&values[0], 0.4, &mut Streams::new(3, "test").stream("dropout")));
}

/// A scalar or a tensor made of some tensors.
type Function<'a> = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + 'a>;

/// The operations that networks beside those of the paper are made of, each as a kernel and as composed of candle's own: name, arguments, both.
fn pairs() -> Vec<(String, Vec<Tensor>, [Function<'static>; 2])> {
    let mut pairs: Vec<(String, Vec<Tensor>, [Function<'static>; 2])> = Vec::new();
    macro_rules! pair {
        ($name:expr, $arguments:expr, $function:ident, |$values:ident, $call:ident| $body:expr) => {
            pairs.push((
                $name,
                $arguments.to_vec(),
                [
                    Box::new(move |$values: &[Tensor]| {
                        use dcu_nn::ops::$function as $call;
                        $body
                    }),
                    Box::new(move |$values: &[Tensor]| {
                        use dcu_nn::ops::composed::$function as $call;
                        $body
                    }),
                ],
            ));
        };
    }
    let tokens = [random("tokens", &[2, 3, 4]), random("weight", &[5, 4]), random("bias", &[5])];
    pair!("linear of tokens".into(), tokens, linear, |values, call| call(&values[0], &values[1], &values[2]));
    pair!("linear without a bias".into(), tokens[..2], linear, |values, call| call(&values[0], &values[1], None));
    for shape @ [.., stride, padding] in [[2, 3, 2, 5, 6, 3, 2, 1], [2, 3, 4, 4, 5, 1, 2, 0], [1, 9, 8, 5, 4, 3, 1, 1]] {
        let convolution = Convolution { stride, padding };
        let arguments = &convolution_arguments(shape)[..2];
        pair!(format!("conv2d without a bias {shape:?}"), arguments, conv2d, |values, call| call(
            &values[0],
            &values[1],
            None,
            convolution
        ));
    }
    for (inputs, outputs, size, kernel, stride, padding) in
        [(3, 2, [3, 2], 4, 2, 1), (2, 3, [2, 4], 3, 1, 1), (8, 9, [3, 3], 3, 1, 1), (2, 1, [2, 2], 2, 3, 0)]
    {
        let convolution = Convolution { stride, padding };
        let arguments = [
            random("input", &[2, size[0], size[1], inputs]),
            random("weight", &[inputs, outputs, kernel, kernel]),
            random("bias", &[outputs]),
        ];
        let name = format!("conv_transpose2d {kernel} {stride} {padding}");
        pair!(name.clone(), arguments, conv_transpose2d, |values, call| call(&values[0], &values[1], &values[2], convolution));
        pair!(name, arguments[..2], conv_transpose2d, |values, call| call(&values[0], &values[1], None, convolution));
    }
    for shape in [&[3, 4, 3, 2][..], &[5, 2], &[2, 4, 2]] {
        let arguments = [random("input", shape), random("scale", &shape[shape.len() - 1..]), random("shift", &shape[shape.len() - 1..])];
        for normalisation in [Normalisation::Batch, FIXED] {
            pair!(format!("batch_norm {shape:?}"), arguments, batch_norm, |values, call| Ok(call(
                &values[0],
                &values[1],
                &values[2],
                normalisation
            )?
            .0));
        }
    }
    let image = [random("input", &[2, 5, 4, 6]), random("scale", &[6]), random("shift", &[6])];
    for groups in [1, 2, 6] {
        pair!(format!("group_norm {groups}"), image, group_norm, |values, call| call(&values[0], groups, &values[1], &values[2], 1e-5));
    }
    for (rectify, pool) in [(true, true), (true, false), (false, true), (false, false)] {
        let block = InstanceBlock { rectify, pool };
        pair!(format!("{block:?}"), image, instance_block, |values, call| call(&values[0], [&values[1], &values[2]], 1e-5, block));
    }
    let two = [random("left", &[3, 7]), random("right", &[3, 7])];
    pair!("add".into(), two, add, |values, call| call(&values[0], &values[1]));
    pair!("add of the same".into(), two[..1], add, |values, call| call(&values[0], &values[0]));
    pair!("add_relu".into(), two, add_relu, |values, call| call(&values[0], &values[1]));
    pair!("gelu".into(), two[..1], gelu, |values, call| call(&(&values[0] * 2.0)?));
    pair!("sigmoid".into(), two[..1], sigmoid, |values, call| call(&(&values[0] * 3.0)?));
    for size in [[1, 1], [2, 3], [7, 7], [5, 4]] {
        pair!(format!("adaptive_avg_pool2d {size:?}"), image[..1], adaptive_avg_pool2d, |values, call| call(&values[0], size));
    }
    for (tokens, heads, width) in [(5, 2, 3), (1, 1, 4), (19, 3, 17)] {
        let arguments = [random("tokens", &[2, tokens, 3 * heads * width])];
        pair!(format!("attention_of_tokens {tokens} {heads}"), arguments, attention_of_tokens, |values, call| call(&values[0], heads));
    }
    let logits = [random("logits", &[4, 3]), random("others", &[4, 3])];
    let probabilities = candle_probabilities(&random("targets", &[4, 3]));
    const SAMPLES: [f64; 4] = [0.5, 2.0, 0.0, 1.5];
    for samples in [None, Some(&SAMPLES[..])] {
        for classes in [None, Some(&[0.3, 1.0, 2.5][..])] {
            for smoothing in [0.0, 0.1] {
                let weighting = Weighting { smoothing, classes, samples };
                pair!(format!("{weighting:?}"), logits[..1], weighted_cross_entropy, |values, call| call(
                    &values[0],
                    Targets::Labels(&[0, 2, 1, 1]),
                    weighting
                ));
                let targets = probabilities.clone();
                let other = probabilities.clone();
                pairs.push((
                    format!("soft {weighting:?}"),
                    logits[..1].to_vec(),
                    [
                        Box::new(move |values| ops::weighted_cross_entropy(&values[0], Targets::Probabilities(&targets), weighting)),
                        Box::new(move |values| composed::weighted_cross_entropy(&values[0], Targets::Probabilities(&other), weighting)),
                    ],
                ));
            }
        }
    }
    pair!("squared_error".into(), logits, squared_error, |values, call| call(&values[0], &values[1]));
    let teacher = random("teacher", &[4, 3]);
    for temperature in [1.0, 4.0] {
        let teachers = [teacher.clone(), teacher.clone()];
        let [one, other] = teachers;
        pairs.push((
            format!("kl_divergence {temperature}"),
            logits[..1].to_vec(),
            [
                Box::new(move |values| ops::kl_divergence(&values[0], &one, temperature)),
                Box::new(move |values| composed::kl_divergence(&values[0], &other, temperature)),
            ],
        ));
    }
    let (first, second) = (random("first", &[2, 3, 4, 2]), random("second", &[2, 3, 4, 2]));
    pair!("channels_last".into(), [first], channels_last, |values, call| call(&values[0]));
    pair!("channels_first".into(), [second], channels_first, |values, call| call(&values[0]));
    pairs
}

fn candle_probabilities(logits: &Tensor) -> Tensor {
    let shares = logits.exp().unwrap();
    shares.broadcast_div(&shares.sum_keepdim(1).unwrap()).unwrap()
}

#[test]
fn gradients_of_further_operations_are_the_limits_of_differences() {
    for (name, arguments, [kernel, _]) in pairs() {
        check(&name, &arguments, kernel);
    }
}

#[test]
fn further_operations_agree_with_those_composed_of_candles() {
    for (name, arguments, [kernel, composed]) in pairs() {
        assert_agree(&name, &arguments, kernel, composed);
    }
    let input = random("input", &[50, 7]);
    let dropped = |drop: fn(&Tensor, f64, &mut dcu_nn::rng::Stream) -> Result<Tensor>| {
        drop(&input, 0.3, &mut Streams::new(3, "test").stream("dropout")).unwrap()
    };
    assert_same("dropout", &dropped(ops::dropout), &dropped(composed::dropout));
}

/// In f32 to rounding, where the functions are evaluated by series of their own.
#[test]
fn operations_in_single_precision_agree_with_double() {
    for (name, arguments, [kernel, _]) in pairs() {
        if name.starts_with("soft") || name.starts_with("kl_divergence") {
            // Their constants are in f64.
            continue;
        }
        let run = |dtype: DType| {
            let variables: Vec<Var> =
                arguments.iter().map(|argument| Var::from_tensor(&argument.to_dtype(dtype).unwrap()).unwrap()).collect();
            let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
            let output = kernel(&tensors).unwrap();
            let direction = random("direction", output.dims()).to_dtype(dtype).unwrap();
            let gradients = output.mul(&direction).and_then(|product| product.sum_all()?.backward()).unwrap();
            let found = std::iter::once(output).chain(tensors.iter().map(|tensor| gradients.get(tensor).unwrap().clone()));
            found.map(|tensor| values(&tensor.to_dtype(DType::F64).unwrap())).collect::<Vec<_>>()
        };
        for (position, (narrow, wide)) in run(DType::F32).into_iter().zip(run(DType::F64)).enumerate() {
            let largest = wide.iter().fold(0.1_f64, |largest, value| largest.max(value.abs()));
            for (narrow, wide) in narrow.iter().zip(&wide) {
                assert!((narrow - wide).abs() <= 2e-5 * largest, "{name}, {position}: {narrow} where {wide} is right");
            }
        }
    }
}

#[test]
fn what_is_not_a_number_passes_through() {
    let broken = Tensor::new(&[[1.0, f64::NAN, -1.0, 2.0]], &Device::Cpu).unwrap();
    for dtype in [DType::F64, DType::F32] {
        let (broken, ones) = (broken.to_dtype(dtype).unwrap(), Tensor::ones((1, 4), dtype, &Device::Cpu).unwrap());
        let places = |tensor: Result<Tensor>| {
            values(&tensor.unwrap().to_dtype(DType::F64).unwrap()).iter().map(|value| value.is_nan()).collect::<Vec<_>>()
        };
        for result in [ops::gelu(&broken), ops::sigmoid(&broken), ops::add(&broken, &ones), ops::add_relu(&broken, &ones)] {
            assert_eq!(places(result), [false, true, false, false]);
        }
        let images = broken.reshape((1, 2, 1, 2)).unwrap();
        assert_eq!(places(ops::adaptive_avg_pool2d(&images, [1, 1])), [false, true]);
        let [scale, shift] =
            [1.0, 0.0].map(|value| Tensor::full(value, 2, &Device::Cpu).and_then(|tensor| tensor.to_dtype(dtype)).unwrap());
        let block = InstanceBlock { rectify: true, pool: false };
        assert_eq!(places(ops::instance_block(&images, [&scale, &shift], 1e-5, block)), [false, true, false, true]);
        assert_eq!(places(ops::batch_norm(&images, &scale, &shift, Normalisation::Batch).map(|found| found.0)), [false, true, false, true]);
        let loss = ops::weighted_cross_entropy(&broken, Targets::Labels(&[0]), Weighting { smoothing: 0.1, ..Weighting::default() });
        assert_eq!(places(loss), [true]);
        assert_eq!(places(ops::attention_of_tokens(&broken.narrow(1, 0, 3).and_then(|part| part.reshape((1, 1, 3))).unwrap(), 1)), [true]);
    }
}

/// One image alone gives what it gives beside others, to the last bit.
#[test]
fn a_sample_does_not_depend_on_its_batch() {
    let of_f32 = |name: &str, shape: &[usize]| random(name, shape).to_dtype(DType::F32).unwrap();
    let images = of_f32("images", &[9, 6, 6, 12]);
    let [weight, pointwise, up] = [[20, 12, 3, 3], [20, 12, 1, 1], [12, 5, 4, 4]].map(|shape| of_f32("weight", &shape));
    let [scale, shift] = ["scale", "shift"].map(|name| of_f32(name, &[12]));
    let fixed = [0.3; 12];
    let matrix = of_f32("matrix", &[7, 12]);
    type Run<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;
    let runs: [(&str, Run<'_>); 8] = [
        ("conv2d", &|images| ops::conv2d(images, &weight, None, Convolution { stride: 2, padding: 1 })),
        ("pointwise", &|images| ops::conv2d(images, &pointwise, None, Convolution { stride: 2, padding: 0 })),
        ("conv_transpose2d", &|images| ops::conv_transpose2d(images, &up, None, Convolution { stride: 2, padding: 1 })),
        ("batch_norm", &|images| Ok(ops::batch_norm(images, &scale, &shift, Normalisation::Fixed { mean: &fixed, variance: &fixed })?.0)),
        ("instance_block", &|images| ops::instance_block(images, [&scale, &shift], 1e-5, InstanceBlock { rectify: true, pool: true })),
        ("linear", &|images| ops::linear(images, &matrix, None)),
        ("attention", &|images| ops::attention_of_tokens(&images.reshape(((), 36, 12))?, 2)),
        ("gelu", &|images| ops::gelu(images)),
    ];
    for (name, run) in runs {
        let whole = run(&images).unwrap();
        for image in [0, 4, 8] {
            let alone = run(&images.narrow(0, image, 1).unwrap()).unwrap();
            let beside = whole.narrow(0, image, 1).unwrap();
            let bits = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(&alone), bits(&beside), "{name}");
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let run = || {
        let of_f32 = |name: &str, shape: &[usize]| Var::from_tensor(&random(name, shape).to_dtype(DType::F32).unwrap()).unwrap();
        let (images, weight, up) = (of_f32("images", &[40, 6, 6, 12]), of_f32("weight", &[24, 12, 3, 3]), of_f32("up", &[24, 6, 4, 4]));
        let [scale, shift] = ["scale", "shift"].map(|name| of_f32(name, &[24]));
        let value = ops::conv2d(images.as_tensor(), &weight, None, Convolution { stride: 2, padding: 1 }).unwrap();
        let value = ops::batch_norm(&value, &scale, &shift, Normalisation::Batch).unwrap().0;
        let value = ops::instance_block(&value, [&scale, &shift], 1e-5, InstanceBlock { rectify: true, pool: false }).unwrap();
        let value = ops::conv_transpose2d(&ops::gelu(&value).unwrap(), &up, None, Convolution { stride: 2, padding: 1 }).unwrap();
        let value = ops::attention_of_tokens(&value.reshape((40, 36, 6)).unwrap(), 2).unwrap();
        let gradients = ops::squared_error(&value, &value.ones_like().unwrap()).unwrap().backward().unwrap();
        let bits = |variable: &Var| gradients.get(variable.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        [&images, &weight, &up, &scale, &shift].map(bits)
    };
    let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
    let expected = on(1);
    for threads in [2, 3] {
        assert!(on(threads) == expected, "{threads} threads");
    }
}

/// A weight's gradient reaches its deposit, and is what candle collects without one.
#[test]
fn deposits_take_the_gradients_of_weights() {
    type Run = fn(&Tensor, Weight<'_>) -> Result<Tensor>;
    let runs: [(Run, &[usize]); 3] = [
        (|input, weight| ops::linear(input, weight, None), &[5, 3]),
        (|input, weight| ops::conv2d(input, weight, None, Convolution { stride: 1, padding: 1 }), &[5, 3, 3, 3]),
        (|input, weight| ops::conv_transpose2d(input, weight, None, Convolution { stride: 2, padding: 1 }), &[3, 2, 4, 4]),
    ];
    for (run, shape) in runs {
        let (input, weight) =
            (Var::from_tensor(&random("input", &[2, 4, 4, 3])).unwrap(), Var::from_tensor(&random("weight", shape)).unwrap());
        let gradients = |weight: Weight<'_>| run(input.as_tensor(), weight).and_then(|output| output.sqr()?.sum_all()?.backward()).unwrap();
        let collected = gradients((&weight).into());
        let deposit = ops::Deposit::default();
        let others = gradients(Weight::new(weight.as_tensor(), Some(&deposit)));
        assert!(others.get(weight.as_tensor()).is_none());
        assert_eq!(values(&deposit.take().unwrap()), values(collected.get(weight.as_tensor()).unwrap()));
        assert_eq!(values(others.get(&input).unwrap()), values(collected.get(&input).unwrap()));
    }
}

/// Two layers in one, with deposits and without, against the composed path.
#[test]
fn two_layers_with_a_gelu_between() {
    let [input, first, second, bias, other] =
        [("input", [2, 50, 5].as_slice()), ("first", &[7, 5]), ("second", &[3, 7]), ("bias", &[7]), ("other", &[3])]
            .map(|(name, shape)| Var::from_tensor(&(random(name, shape) * 2.0).unwrap()).unwrap());
    let direction = random("direction", &[2, 50, 3]);
    let backward = |output: Tensor| (output * &direction).and_then(|product| product.sum_all()?.backward()).unwrap();
    let collected = |gradients: &candle_core::backprop::GradStore| {
        [&input, &bias, &other].map(|argument| gradients.get(argument).cloned().unwrap_or_else(|| argument.zeros_like().unwrap()))
    };
    let weights = [&first, &second].map(Weight::from);
    let expected = ops::composed::linear_gelu_linear(&input, weights, [&bias, &other]).unwrap();
    let gradients = backward(expected.clone());
    let of_weights = [&first, &second].map(|weight| gradients.get(weight).unwrap().clone());
    for is_deposited in [true, false] {
        let deposits = [ops::Deposit::default(), ops::Deposit::default()];
        let [one, two] = &deposits;
        let weights = if is_deposited { [Weight::new(&first, Some(one)), Weight::new(&second, Some(two))] } else { weights };
        let output = ops::linear_gelu_linear(&input, weights, [&bias, &other]).unwrap();
        assert_same("output", &output, &expected);
        let found = backward(output.clone());
        for (found, expected) in collected(&found).iter().zip(collected(&gradients)) {
            assert_same("argument", found, &expected);
        }
        for ((deposit, weight), expected) in deposits.iter().zip([&first, &second]).zip(&of_weights) {
            assert_same("weight", &deposit.take().unwrap_or_else(|| found.get(weight).unwrap().clone()), expected);
            assert!(!is_deposited || found.get(weight).is_none());
        }
        // A second backward pass finds nothing left of the forward pass, and gives the same.
        assert_same("input", backward(output).get(&input).unwrap(), gradients.get(&input).unwrap());
        // Weights that stay: no gradient is left.
        deposits.iter().for_each(|deposit| drop(deposit.take()));
        let detached = [&first, &second].map(|weight| weight.as_detached_tensor());
        let output = ops::linear_gelu_linear(&input, detached.each_ref().map(Weight::from), [&bias, &other]).unwrap();
        assert_same("input", backward(output).get(&input).unwrap(), gradients.get(&input).unwrap());
    }
    let error = ops::linear_gelu_linear(&input, [&second, &first].map(Weight::from), [&bias, &other]).unwrap_err().to_string();
    assert!(error.contains("do not take 5 inputs"), "{error}");
}

/// A chain gives what its operations give one after the other, also where a value is used twice, and leaves the gradients of parameters in their deposits.
#[test]
fn a_chain_is_its_operations_one_after_the_other() {
    let variable = |name: &str, shape: &[usize]| Var::from_tensor(&random(name, shape)).unwrap();
    let (input, weight, bias) = (variable("input", &[2, 4, 6]), variable("weight", &[6, 6]), variable("bias", &[6]));
    let [scale, shift] = ["scale", "shift"].map(|name| variable(name, &[6]));
    let run = |input: &Tensor| {
        let value = ops::linear(&ops::layer_norm(input, &scale, &shift, 1e-6)?, &weight, bias.as_tensor())?;
        let value = ops::add(input, &ops::attention_of_tokens(&Tensor::cat(&[&value, &value, &value], 2)?, 2)?)?;
        ops::gelu(&value)
    };
    // What is composed of candle's own has no place in a chain.
    let without_composed = |input: &Tensor| {
        let value = ops::linear(&ops::layer_norm(input, &scale, &shift, 1e-6)?, &weight, bias.as_tensor())?;
        ops::gelu(&ops::add(input, &value)?)
    };
    let parameters = [&weight, &bias, &scale, &shift];
    let backward = |output: &Tensor| output.sqr().and_then(|squares| squares.sum_all()?.backward()).unwrap();
    let expected = without_composed(&input).unwrap();
    let gradients = backward(&expected);
    let deposits = [(); 4].map(|()| ops::Deposit::default());
    let places = || parameters.iter().zip(&deposits).map(|(parameter, deposit)| (parameter.as_tensor().clone(), deposit.clone())).collect();
    let output = ops::chain(&input, places(), without_composed).unwrap();
    assert_eq!(values(&output), values(&expected));
    // The second time too.
    for _ in 0..2 {
        let found = backward(&output);
        assert_eq!(values(found.get(&input).unwrap()), values(gradients.get(&input).unwrap()));
        for (parameter, deposit) in parameters.iter().zip(&deposits) {
            assert!(found.get(parameter).is_none());
            assert_eq!(values(&deposit.take().unwrap()), values(gradients.get(parameter).unwrap()));
        }
    }
    let of_unnamed = ops::chain(&input, Vec::new(), without_composed).unwrap();
    for output in [of_unnamed, ops::chain(&input, places(), run).unwrap()] {
        let error = output.sum_all().and_then(|sum| sum.backward()).unwrap_err().to_string();
        assert!(error.contains("leave the chain"), "{error}");
    }
    // Without an input that takes part there is nothing for candle to hand a gradient to, and it collects those of the parameters.
    let output = ops::chain(&input.as_detached_tensor(), places(), without_composed).unwrap();
    assert_eq!(values(backward(&output).get(&bias).unwrap()), values(gradients.get(&bias).unwrap()));
    assert!(deposits.iter().all(|deposit| deposit.take().is_none()));
}

/// Those of one sample after the other sum up to that of the batch.
#[test]
fn gradients_of_samples_are_those_of_batches_of_one() {
    let gradient_of = |weight: &Var, output: Tensor, direction: &Tensor| {
        let gradients = output.mul(direction).and_then(|product| product.sum_all()?.backward()).unwrap();
        gradients.get(weight.as_tensor()).unwrap().clone()
    };
    for shape @ [n, .., stride, padding] in convolution_shapes().into_iter().chain([[3, 9, 8, 8, 8, 3, 1, 1], [2, 150, 160, 4, 4, 3, 1, 1]])
    {
        let convolution = Convolution { stride, padding };
        let [input, weight, _] = convolution_arguments(shape);
        let weight = Var::from_tensor(&weight).unwrap();
        let direction = random("direction", ops::conv2d(&input, &weight, None, convolution).unwrap().dims());
        let each = ops::conv2d_per_sample_weight_gradients(&input, &direction, weight.dims4().unwrap(), convolution).unwrap();
        for sample in 0..n {
            let (input, direction) = (input.narrow(0, sample, 1).unwrap(), direction.narrow(0, sample, 1).unwrap());
            let alone = gradient_of(&weight, ops::conv2d(&input, &weight, None, convolution).unwrap(), &direction);
            let scale = values(&alone).iter().fold(1.0_f64, |largest, value| largest.max(value.abs()));
            assert_same(&format!("{shape:?}"), &(each.get(sample).unwrap() / scale).unwrap(), &(alone / scale).unwrap());
        }
    }
    for shape in [&[4, 5][..], &[4, 3, 5]] {
        let (input, weight) = (random("input", shape), Var::from_tensor(&random("weight", &[2, 5])).unwrap());
        let direction = random("direction", ops::linear(&input, &weight, None).unwrap().dims());
        let each = ops::linear_per_sample_weight_gradients(&input, &direction).unwrap();
        let sums = ops::per_sample_sums(&direction).unwrap();
        for sample in 0..4 {
            let (input, direction) = (input.narrow(0, sample, 1).unwrap(), direction.narrow(0, sample, 1).unwrap());
            assert_same(
                "linear",
                &each.get(sample).unwrap(),
                &gradient_of(&weight, ops::linear(&input, &weight, None).unwrap(), &direction),
            );
            assert_same("sums", &sums.get(sample).unwrap(), &direction.reshape(((), 2)).unwrap().sum(0).unwrap());
        }
    }
}

#[test]
fn losses_say_what_does_not_fit() {
    let logits = random("logits", &[4, 3]);
    let message = |loss: Result<Tensor>| loss.unwrap_err().to_string();
    let weighting = |smoothing, classes, samples| Weighting { smoothing, classes, samples };
    let labels = Targets::Labels(&[0, 1, 2, 0]);
    assert!(message(ops::weighted_cross_entropy(&logits, labels, weighting(1.5, None, None))).contains("smoothing"));
    assert!(message(ops::weighted_cross_entropy(&logits, labels, weighting(0.0, Some(&[1.0]), None))).contains("1 weights of classes"));
    assert!(message(ops::weighted_cross_entropy(&logits, Targets::Labels(&[3; 4]), weighting(0.1, None, None))).contains("out of range"));
    assert!(message(ops::kl_divergence(&logits, &logits, 0.0)).contains("temperature"));
    assert!(message(ops::squared_error(&logits, &logits.t().unwrap())).contains("no mean squared error"));
    // Plain labels are the plain loss, bit for bit.
    let plain = ops::weighted_cross_entropy(&logits, labels, Weighting::default()).unwrap();
    assert_eq!(values(&plain), values(&ops::cross_entropy(&logits, &[0, 1, 2, 0]).unwrap()));
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
    assert!(largest < 1e-11, "{what}: {largest}");
}

/// Results and gradients of both functions.
fn assert_agree(
    what: &str,
    arguments: &[Tensor],
    ours: impl Fn(&[Tensor]) -> Result<Tensor>,
    theirs: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let variables: Vec<Var> = arguments.iter().map(|argument| Var::from_tensor(argument).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let (ours, theirs) = (ours(&tensors).unwrap(), theirs(&tensors).unwrap());
    assert_same(what, &ours, &theirs);
    let direction = random("direction", ours.dims());
    let backward = |output: &Tensor| output.mul(&direction).and_then(|product| product.sum_all()?.backward()).unwrap();
    let (ours, theirs) = (backward(&ours), backward(&theirs));
    for (position, tensor) in tensors.iter().enumerate() {
        let zeros = tensor.zeros_like().unwrap();
        assert_same(&format!("{what}, gradient {position}"), ours.get(tensor).unwrap(), theirs.get(tensor).unwrap_or(&zeros));
    }
}

/// Result, and the gradients of input and weight, of images [N, H, W, C], by the definition, in f64.
fn defined(
    [n, c, o, h, w, kernel, _, padding]: [usize; 8],
    input: &[f64],
    weight: &[f64],
    bias: &[f64],
    direction: &[f64],
) -> [Vec<f64>; 3] {
    let (rows, columns) = (h + 2 * padding + 1 - kernel, w + 2 * padding + 1 - kernel);
    // With the taps first, so that channels lie side by side: [K, K, O, C].
    let at = |index: usize, tap: usize| index * kernel * kernel + tap;
    let taps: Vec<Vec<f64>> = (0..kernel * kernel).map(|tap| (0..o * c).map(|index| weight[at(index, tap)]).collect()).collect();
    let (mut result, mut of_input) = (vec![0.0; n * rows * columns * o], vec![0.0; input.len()]);
    let mut of_taps = vec![vec![0.0; o * c]; kernel * kernel];
    for place in 0..n * rows * columns {
        let (image, row, column) = (place / (rows * columns), place / columns % rows, place % columns);
        let (result, direction) = (&mut result[place * o..][..o], &direction[place * o..][..o]);
        result.copy_from_slice(bias);
        for tap in 0..kernel * kernel {
            let (y, x) = ((row + tap / kernel).wrapping_sub(padding), (column + tap % kernel).wrapping_sub(padding));
            if y >= h || x >= w {
                continue;
            }
            let pixel = ((image * h + y) * w + x) * c;
            let (pixel, of_pixel) = (&input[pixel..pixel + c], &mut of_input[pixel..pixel + c]);
            for output in 0..o {
                let (weight, of_weight) = (&taps[tap][output * c..][..c], &mut of_taps[tap][output * c..][..c]);
                let mut sum = 0.0;
                for channel in 0..c {
                    sum += pixel[channel] * weight[channel];
                    of_pixel[channel] += direction[output] * weight[channel];
                    of_weight[channel] += direction[output] * pixel[channel];
                }
                result[output] += sum;
            }
        }
    }
    let mut of_weight = vec![0.0; weight.len()];
    for (tap, values) in of_taps.iter().enumerate() {
        values.iter().enumerate().for_each(|(index, value)| of_weight[at(index, tap)] = *value);
    }
    [result, of_input, of_weight]
}

/// Winograd's algorithm with tiles of both sizes, by groups, by value of the tile and by bands of one large image; unfolding by groups and by bands.
#[test]
fn convolutions_agree_with_the_definition() {
    let shapes = [
        [3, 24, 33, 8, 8, 3, 1, 1],
        [3, 40, 19, 7, 5, 3, 1, 1],
        [5, 3, 8, 9, 7, 3, 1, 1],
        // With weights larger than the cache.
        [4, 160, 150, 8, 8, 3, 1, 1],
        [4, 230, 240, 6, 5, 3, 1, 1],
        // With images that are worked on in bands.
        [1, 8, 9, 348, 344, 3, 1, 1],
        [1, 9, 8, 350, 346, 3, 1, 0],
        [1, 3, 4, 410, 400, 3, 1, 1],
    ];
    let mut wrong = Vec::new();
    for shape @ [.., stride, padding] in shapes {
        let [n, c, o, h, w, kernel, ..] = shape;
        let of_f32 = |tensor: Tensor| tensor.to_dtype(DType::F32).and_then(|tensor| tensor.to_dtype(DType::F64)).unwrap();
        let arguments = convolution_arguments([n, c, o, h, w, kernel, stride, padding]).map(of_f32);
        let direction = of_f32(random("direction", &[n, h + 2 * padding + 1 - kernel, w + 2 * padding + 1 - kernel, o]));
        let expected = defined(shape, &values(&arguments[0]), &values(&arguments[1]), &values(&arguments[2]), &values(&direction));
        for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 4e-6)] {
            let [input, weight, bias] = arguments.each_ref().map(|tensor| Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap());
            let output = ops::conv2d(&input, &weight, bias.as_tensor(), Convolution { stride, padding }).unwrap();
            let product = output.mul(&direction.to_dtype(dtype).unwrap()).and_then(|product| product.sum_all()).unwrap();
            let gradients = product.backward().unwrap();
            let found = [&output, gradients.get(&input).unwrap(), gradients.get(&weight).unwrap()];
            for (what, (found, expected)) in ["result", "input", "weight"].iter().zip(found.iter().zip(&expected)) {
                let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
                let found = values(&found.to_dtype(DType::F64).unwrap());
                let off = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f64::max);
                if off.is_nan() || off > tolerance * largest {
                    wrong.push(format!("{shape:?} {dtype:?} {what}: {:e}", off / largest));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// However a batch is cut into groups: a large weight takes hundreds of images at a time, and these in groups of a few.
#[test]
fn a_convolution_of_many_images_is_that_of_fewer_ones() {
    const IMAGES: usize = 280;
    for ([channels, outputs, side], cut) in [([104, 112, 8], 270), ([9, 10, 8], 3), ([3, 5, 6], 100)] {
        let [input, weight, bias] = convolution_arguments([IMAGES, channels, outputs, side, side, 3, 1, 1]);
        let direction = random("direction", &[IMAGES, side, side, outputs]);
        let results = |from: usize, count: usize| {
            let [input, weight] = [&input.narrow(0, from, count).unwrap(), &weight].map(|tensor| Var::from_tensor(tensor).unwrap());
            let output = ops::conv2d(&input, &weight, &bias, Convolution { stride: 1, padding: 1 }).unwrap();
            let loss = output.mul(&direction.narrow(0, from, count).unwrap()).and_then(|product| product.sum_all()).unwrap();
            let gradients = loss.backward().unwrap();
            [output, gradients.get(&input).unwrap().clone(), gradients.get(&weight).unwrap().clone()].map(|tensor| values(&tensor))
        };
        let [whole, first, second] = [results(0, IMAGES), results(0, cut), results(cut, IMAGES - cut)];
        for place in [0, 1] {
            assert!(whole[place] == [&first[place][..], &second[place]].concat(), "{channels} channels, result {place}");
        }
        let sum = first[2].iter().zip(&second[2]).map(|(first, second)| first + second);
        let largest = whole[2].iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        assert!(whole[2].iter().zip(sum).all(|(whole, sum)| (whole - sum).abs() <= 1e-11 * largest), "{channels} channels, the weight");
    }
}

/// What other devices run instead.
#[test]
fn operations_agree_with_those_composed_of_candles() {
    let wide = [
        [2, 9, 17, 8, 8, 3, 1, 1],
        [3, 16, 8, 7, 5, 3, 1, 1],
        [1, 8, 8, 6, 6, 3, 1, 0],
        // With weights larger than the cache.
        [6, 104, 112, 8, 8, 3, 1, 1],
        [5, 165, 157, 6, 5, 3, 1, 1],
    ];
    for shape @ [.., stride, padding] in convolution_shapes().into_iter().chain(wide) {
        let convolution = Convolution { stride, padding };
        assert_agree(
            &format!("conv2d {shape:?}"),
            &convolution_arguments(shape),
            |values| ops::conv2d(&values[0], &values[1], &values[2], convolution),
            |values| composed::conv2d(&values[0], &values[1], &values[2], convolution),
        );
    }
    for normalisation in [Normalisation::Batch, FIXED] {
        assert_agree(
            "conv_block",
            &block_arguments(2),
            |values| block(values, BLOCK, normalisation),
            |values| Ok(composed::conv_block(&values[0], &values[1], [&values[2], &values[3], &values[4]], BLOCK, normalisation)?.0),
        );
    }
    // By value of the tile.
    let [input, weight, bias] = convolution_arguments([6, 104, 112, 8, 8, 3, 1, 1]);
    assert_agree(
        "conv_block with a weight larger than the cache",
        &[input, weight, bias, random("scale", &[112]), random("shift", &[112])],
        |values| block(values, BLOCK, Normalisation::Batch),
        |values| Ok(composed::conv_block(&values[0], &values[1], [&values[2], &values[3], &values[4]], BLOCK, Normalisation::Batch)?.0),
    );
    let [padding_0, padding_2] = [0, 2].map(|padding| Block { convolution: Convolution { stride: 1, padding }, ..BLOCK });
    let runs = [([2, 6, 7, 2], [3, 2]), ([101, 8, 6, 3], [9, 17]), ([1, 6, 6, 9], [8, 16]), ([3, 7, 9, 1], [4, 3]), ([2, 9, 6, 4], [5, 2])];
    for (shape, outputs) in runs {
        for first in [BLOCK, Block { pool: false, ..BLOCK }, Block { rectify: false, ..BLOCK }, padding_0, padding_2] {
            let (input, blocks) = run_of_blocks(shape, outputs, first);
            assert_agree(
                &format!("frozen_blocks {shape:?} {first:?}"),
                &[input],
                |values| ops::frozen_blocks(&values[0], &blocks),
                |values| composed::frozen_blocks(&values[0], &blocks),
            );
        }
    }
    for pooling in POOLINGS {
        let input = [random("input", &[2, 5, 4, 2])];
        assert_agree(
            "max_pool2d",
            &input,
            |values| ops::max_pool2d(&values[0], pooling),
            |values| composed::max_pool2d(&values[0], pooling),
        );
        assert_agree(
            "avg_pool2d",
            &input,
            |values| ops::avg_pool2d(&values[0], pooling),
            |values| composed::avg_pool2d(&values[0], pooling),
        );
    }
    let heads = ["queries", "keys", "values"].map(|name| random(name, &[2, 2, 7, 5]));
    assert_agree(
        "attention",
        &heads,
        |values| ops::attention(&values[0], &values[1], &values[2]),
        |values| composed::attention(&values[0], &values[1], &values[2]),
    );
    let rows = [random("input", &[3, 20]), random("scale", &[20]), random("shift", &[20])];
    assert_agree(
        "layer_norm",
        &rows,
        |values| ops::layer_norm(&values[0], &values[1], &values[2], 1e-6),
        |values| composed::layer_norm(&values[0], &values[1], &values[2], 1e-6),
    );
    let layer = [random("input", &[7, 5]), random("weight", &[3, 5]), random("bias", &[3])];
    assert_agree(
        "linear",
        &layer,
        |values| ops::linear(&values[0], &values[1], &values[2]),
        |values| composed::linear(&values[0], &values[1], &values[2]),
    );
    let logits = [random("logits", &[7, 5])];
    let labels = [0, 4, 2, 1, 0, 3, 3];
    assert_agree("relu", &logits, |values| ops::relu(&values[0]), |values| composed::relu(&values[0]));
    assert_agree(
        "cross_entropy",
        &logits,
        |values| ops::cross_entropy(&values[0], &labels),
        |values| composed::cross_entropy(&values[0], &labels),
    );
}
