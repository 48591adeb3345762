//! Every operation against finite differences in f64, and against the same composed of candle's own.

use candle_core::{DType, Device, Result, Tensor, Var};
use dcu_nn::ops::{self, Block, Convolution, FrozenBlock, Normalisation, Pooling, composed};
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
            let output = ops::conv2d(&input, &weight, &bias, Convolution { stride, padding }).unwrap();
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
