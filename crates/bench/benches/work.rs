//! The work of the stages, on made-up data of the paper's shapes. Each benchmark says how many floating-point operations or bytes its
//! result needs at least, so that its time can be set against the floor that `floor/…` measures in the same run.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use dcu_artifact::{Array, Normalisation};
use dcu_attack::logistic;
use dcu_condense::{kmeans, matching::Matching};
use dcu_data::images::{Cell, Shape as ImageShape, decode};
use dcu_nn::graph::Step;
use dcu_nn::matrix::{Matrix, product};
use dcu_nn::ops::{self, Convolution};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Device, Family, Mode, Network, Part, Samples, Tensor, Trainable, Var, evaluate, network};
use rayon::prelude::*;

const BATCH: usize = 256;
const IMAGE: [usize; 3] = [3, 32, 32];
const CLASSES: usize = 10;
/// Rows and columns of a large matrix.
const SIDE: usize = 1536;

fn main() {
    dcu_stage::keep_freed_memory();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    floors(&mut criterion);
    products(&mut criterion);
    training(&mut criterion);
    plain_candle(&mut criterion);
    features(&mut criterion);
    convolutions(&mut criterion);
    condensation(&mut criterion);
    attack(&mut criterion);
    decoding(&mut criterion);
    criterion.final_summary();
}

fn streams() -> Streams {
    Streams::new(1, "bench")
}

fn normals(purpose: &str, count: usize) -> Vec<f32> {
    let mut stream = streams().stream(purpose);
    (0..count).map(|_| stream.normal()).collect()
}

fn samples(count: usize) -> Samples {
    let shape = [&[count], IMAGE.as_slice()].concat();
    let labels = (0..count).map(|row| (row % CLASSES) as u32).collect();
    Samples::of_values(Array::new(shape, normals("images", count * IMAGE.iter().product::<usize>())), labels).expect("as many labels")
}

/// The same as bytes, as a dataset has them.
fn images(count: usize) -> Samples {
    let (shape, pixels) = ([&[count], IMAGE.as_slice()].concat(), count * IMAGE.iter().product::<usize>());
    let bytes = normals("images", pixels).into_iter().map(|value| (128.0 + 50.0 * value) as u8).collect();
    let normalisation = Normalisation { mean: vec![0.5; IMAGE[0]], std: vec![0.2; IMAGE[0]] };
    Samples::of_pixels(Array::new(shape, bytes), &normalisation, vec![0; count]).expect("as many labels")
}

fn published(family: Family) -> Network {
    Network::initialised(&Architecture::of_family(family, IMAGE, CLASSES), &streams()).expect("the published network")
}

/// Multiplications and additions of one image's way to the features, or to the logits, counted once forward, by the definition of the steps.
fn operations(family: Family, to_features: bool) -> u64 {
    let graph = Architecture::of_family(family, IMAGE, CLASSES).graph().expect("the published network");
    let end = if to_features { graph.features() } else { graph.steps().len() };
    graph.steps()[..end].iter().map(Step::operations).sum()
}

/// Adds a benchmark, whose work is set up only where it is asked for.
fn one<W: FnMut()>(criterion: &mut Criterion, name: &str, throughput: Option<Throughput>, mut set_up: impl FnMut() -> W) {
    let (group, name) = name.split_once('/').expect("GROUP/NAME");
    let mut group = criterion.benchmark_group(group);
    group.sampling_mode(SamplingMode::Flat);
    if let Some(throughput) = throughput {
        group.throughput(throughput);
    }
    let mut work = None;
    group.bench_function(name, |bencher| bencher.iter(work.get_or_insert_with(&mut set_up)));
    group.finish();
}

/// What the machine can do at best: a large matrix product, by candle, and a large copy.
fn floors(criterion: &mut Criterion) {
    one(criterion, "floor/product", Some(Throughput::Elements(2 * (SIDE as u64).pow(3))), || {
        let [left, right] = ["left", "right"]
            .map(|name| Tensor::from_vec(normals(name, SIDE * SIDE), (SIDE, SIDE), &Device::Cpu).expect("a square matrix"));
        move || drop(black_box(left.matmul(&right).expect("a product")))
    });
    one(criterion, "floor/copy", Some(Throughput::Bytes(8 << 25)), || {
        let (source, mut target) = (vec![1.0_f32; 1 << 25], vec![0.0_f32; 1 << 25]);
        move || {
            target.par_chunks_mut(1 << 16).zip(source.par_chunks(1 << 16)).for_each(|(target, source)| target.copy_from_slice(source));
            black_box(&target);
        }
    });
}

/// One step of Adam on a batch.
fn training(criterion: &mut Criterion) {
    for (name, family, batch) in [
        ("train-step/cnn", Family::Cnn, BATCH),
        ("train-step/mlp", Family::Mlp, BATCH),
        ("train-step/resnet18", Family::Resnet18, 128),
        ("train-step/vgg16-bn", Family::Vgg16Bn, 128),
        ("train-step/convnet3", Family::Convnet3, 128),
        ("train-step/vit-tiny", Family::VitTiny, 64),
    ] {
        // Backward twice as much as forward; the gradient of the images is not asked for.
        let throughput = Throughput::Elements(3 * batch as u64 * operations(family, false));
        one(criterion, name, Some(throughput), || {
            let (samples, mut network) = (samples(batch), published(family));
            let trainable = Trainable::all(network.graph());
            let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
            let rows: Vec<usize> = (0..batch).collect();
            let mut step = 0;
            move || {
                let (images, labels) = samples.batch(&rows).expect("a batch");
                let mut dropout = streams().indexed("dropout", step);
                step += 1;
                let logits = network.forward(&images, &Part::ALL, network::all(Mode::TRAIN), &trainable, &mut dropout).expect("forward");
                let loss = ops::cross_entropy(&logits, &labels).expect("loss");
                let gradients = network.backward(&loss, &trainable).expect("backward");
                optimiser.step(&network.parameters(&trainable), &gradients, 1e-3).expect("step");
            }
        });
    }
}

/// The training step of the CNN with the layers of `candle-nn`, as one would write it without operations of our own. (Its maximum pooling has a
/// wrong gradient, which takes as long as a right one.)
fn plain_candle(criterion: &mut Criterion) {
    use candle_nn::{Module as _, ModuleT as _, Optimizer as _};
    let throughput = Throughput::Elements(3 * BATCH as u64 * operations(Family::Cnn, false));
    one(criterion, "train-step/cnn-of-candle-nn", Some(throughput), || {
        let (images, labels) = samples(BATCH).batch(&(0..BATCH).collect::<Vec<_>>()).expect("a batch");
        let labels = Tensor::new(labels, &Device::Cpu).expect("labels");
        let variables = candle_nn::VarMap::new();
        let root = candle_nn::VarBuilder::from_varmap(&variables, images.dtype(), &Device::Cpu);
        let window = candle_nn::Conv2dConfig { padding: 1, ..Default::default() };
        let widths = [3, 32, 64, 128, 256];
        let blocks: Vec<_> = (0..4)
            .map(|block| {
                let (inputs, outputs) = (widths[block], widths[block + 1]);
                let convolution = candle_nn::conv2d(inputs, outputs, 3, window, root.pp(format!("convolution{block}"))).expect("a layer");
                let normalisation = candle_nn::batch_norm(outputs, 1e-5, root.pp(format!("normalisation{block}"))).expect("a layer");
                (convolution, normalisation)
            })
            .collect();
        let hidden = candle_nn::linear(1024, 1024, root.pp("hidden")).expect("a layer");
        let last = candle_nn::linear(1024, CLASSES, root.pp("last")).expect("a layer");
        let rates = candle_nn::ParamsAdamW { lr: 1e-3, weight_decay: 0.0, ..Default::default() };
        let mut optimiser = candle_nn::AdamW::new(variables.all_vars(), rates).expect("an optimiser");
        move || {
            let features = blocks.iter().try_fold(images.clone(), |value, (convolution, normalisation)| {
                normalisation.forward_t(&convolution.forward(&value)?, true)?.relu()?.max_pool2d(2)
            });
            let hidden = features.and_then(|features| hidden.forward(&features.flatten_from(1)?)?.relu()).expect("forward");
            let logits = candle_nn::ops::dropout(&hidden, 0.5).and_then(|hidden| last.forward(&hidden)).expect("forward");
            let loss = candle_nn::loss::cross_entropy(&logits, &labels).expect("loss");
            optimiser.backward_step(&loss).expect("a step");
        }
    });
}

/// A matrix product of our own, of the floor's size.
fn products(criterion: &mut Criterion) {
    one(criterion, "ops/product", Some(Throughput::Elements(2 * (SIDE as u64).pow(3))), || {
        let (left, right) = (normals("left", SIDE * SIDE), normals("right", SIDE * SIDE));
        move || drop(black_box(product(Matrix::new(&left, SIDE, SIDE), Matrix::new(&right, SIDE, SIDE))))
    });
}

/// Features of 1024 images, as clustering takes them.
fn features(criterion: &mut Criterion) {
    const COUNT: usize = 1024;
    let throughput = Throughput::Elements(COUNT as u64 * operations(Family::Cnn, true));
    one(criterion, "features/cnn", Some(throughput), || {
        let (network, samples) = (published(Family::Cnn), samples(COUNT));
        move || drop(black_box(evaluate::features(&network, &samples).expect("features")))
    });
}

#[derive(Clone, Copy)]
struct Shape {
    inputs: usize,
    outputs: usize,
    side: usize,
    stride: usize,
}

impl Shape {
    const IMAGES: usize = BATCH;

    const fn new(inputs: usize, outputs: usize, side: usize, stride: usize) -> Self {
        Self { inputs, outputs, side, stride }
    }

    fn operations(&self) -> usize {
        2 * 9 * self.inputs * self.outputs * (self.side / self.stride).pow(2) * Self::IMAGES
    }

    fn arguments(&self) -> [Var; 3] {
        let dims = [&[Self::IMAGES, self.side, self.side, self.inputs][..], &[self.outputs, self.inputs, 3, 3], &[self.outputs]];
        dims.map(|dims| {
            let values: Vec<f32> = normals("arguments", dims.iter().product()).into_iter().map(|value| 0.05 * value).collect();
            Var::from_vec(values, dims, &Device::Cpu).expect("a variable")
        })
    }
}

const RESNET18: &[Shape] = &[Shape::new(64, 64, 32, 1), Shape::new(64, 128, 32, 2), Shape::new(256, 256, 8, 1), Shape::new(512, 512, 4, 1)];
const VGG16: &[Shape] = &[
    Shape::new(64, 64, 32, 1),
    Shape::new(128, 128, 16, 1),
    Shape::new(256, 256, 8, 1),
    Shape::new(512, 512, 4, 1),
    Shape::new(512, 512, 2, 1),
];

/// Forward and backward through convolutions of the shapes of larger networks on 32 x 32 images.
fn convolutions(criterion: &mut Criterion) {
    for (name, shapes) in [("conv/resnet18", RESNET18), ("conv/vgg16", VGG16)] {
        let throughput = Throughput::Elements(3 * shapes.iter().map(Shape::operations).sum::<usize>() as u64);
        one(criterion, name, Some(throughput), || {
            let arguments: Vec<_> = shapes.iter().map(|shape| (shape.arguments(), shape.stride)).collect();
            move || {
                for ([input, weight, bias], stride) in &arguments {
                    let output = ops::conv2d(input, weight.as_tensor(), bias.as_tensor(), Convolution { stride: *stride, padding: 1 })
                        .expect("forward");
                    black_box(output.sum_all().and_then(|sum| sum.backward()).expect("backward"));
                }
            }
        });
    }
}

/// Clustering of one class, and one step of condensation of 500 buckets.
fn condensation(criterion: &mut Criterion) {
    one(criterion, "condense/kmeans", None, || {
        let points = points();
        move || drop(black_box(kmeans::cluster(&points, 450, &mut streams().stream("start"))))
    });
    const BUCKETS: usize = 500;
    const SIZE: usize = 10;
    // Forward, and the gradient of the images only.
    let throughput = Throughput::Elements(2 * BUCKETS as u64 * operations(Family::Cnn, true));
    let network = published(Family::Cnn);
    one(criterion, "condense/matching-step", Some(throughput), || {
        let mut matching = Matching::new(&network, &images(BUCKETS * SIZE), &[SIZE; BUCKETS]).expect("buckets");
        move || {
            black_box(matching.step(1e-3).expect("a step"));
        }
    });
}

/// Points around 600 centres, rectified as features are; left in a file for the peer where `DCU_BENCH_POINTS` names one.
fn points() -> Array<f32> {
    const POINTS: usize = 4500;
    const DIMENSION: usize = 1024;
    let (centres, noise) = (normals("centres", 600 * DIMENSION), normals("noise", POINTS * DIMENSION));
    let centre = |index: usize| centres[(index / DIMENSION * 7919 % 600) * DIMENSION + index % DIMENSION];
    let points: Vec<f32> = noise.iter().enumerate().map(|(index, noise)| (centre(index) + 0.8 * noise).max(0.0)).collect();
    if let Some(path) = std::env::var_os("DCU_BENCH_POINTS") {
        let bytes: Vec<u8> = points.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(&path, bytes).expect("the file for the peer can be written");
    }
    Array::new(vec![POINTS, DIMENSION], points)
}

/// The membership attack on as many losses as a tenth of CIFAR-10 has.
fn attack(criterion: &mut Criterion) {
    one(criterion, "attack/membership", None, || {
        let losses = |purpose: &str, shift: f32| {
            normals(purpose, 4500).into_iter().map(|value| f64::from((0.7 * value + shift).exp())).collect::<Vec<f64>>()
        };
        let (members, others) = (losses("members", -0.3), losses("others", 0.0));
        move || {
            black_box(logistic::split_accuracy(&members, &others, &streams()));
        }
    });
}

/// From JPEG to bytes, for as many images as a tenth of CIFAR-10 has; left in a file for the peer where `DCU_BENCH_IMAGES` names one, each
/// behind its length.
fn decoding(criterion: &mut Criterion) {
    one(criterion, "data/decode", None, || {
        let mut stream = streams().stream("pixels");
        let cells: Vec<Cell> = (0..5000)
            .map(|_| {
                let (tint, slope) = (stream.uniform(), stream.uniform());
                let image = image::RgbImage::from_fn(32, 32, |x, y| {
                    let noise = 40.0 * stream.uniform();
                    image::Rgb([x, y, 31 - x].map(|place| (180.0 * tint + slope * place as f32 + noise) as u8))
                });
                let mut bytes = Vec::new();
                image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Jpeg).expect("an image can be encoded");
                Cell::Encoded(bytes)
            })
            .collect();
        if let Some(path) = std::env::var_os("DCU_BENCH_IMAGES") {
            let files = cells.iter().flat_map(|cell| match cell {
                Cell::Encoded(bytes) => [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat(),
                _ => unreachable!("all are encoded"),
            });
            std::fs::write(&path, files.collect::<Vec<u8>>()).expect("the file for the peer can be written");
        }
        let shape = ImageShape { channels: None, resize: None, pad: 0 };
        move || drop(black_box(decode(&cells, shape, |row| row.to_string()).expect("images")))
    });
}
