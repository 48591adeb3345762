//! The work of the stages, on made-up data of the paper's shapes. Each benchmark says how many floating-point operations or bytes its
//! result needs at least, so that its time can be set against the floor that `floor/…` measures in the same run.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, SamplingMode, Throughput};
use dcu_artifact::Array;
use dcu_attack::logistic;
use dcu_condense::{kmeans, matching::Matching};
use dcu_nn::matrix::{Matrix, product};
use dcu_nn::ops::{self, Convolution};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Device, Family, Mode, Network, Part, Samples, Tensor, evaluate, network};
use rayon::prelude::*;

const BATCH: usize = 256;
const IMAGE: [usize; 3] = [3, 32, 32];
const CLASSES: usize = 10;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    floors(&mut criterion);
    training(&mut criterion);
    features(&mut criterion);
    convolutions(&mut criterion);
    condensation(&mut criterion);
    attack(&mut criterion);
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

fn paper(family: Family) -> Network {
    Network::initialised(&Architecture::of_paper(family, IMAGE, CLASSES), &streams()).expect("the paper's network")
}

/// Multiplications and additions of one image's way through some parts, counted once forward.
fn operations(family: Family, parts: &[Part]) -> u64 {
    use dcu_nn::architecture::Layer;
    let layers = Architecture::of_paper(family, IMAGE, CLASSES).layers().expect("the paper's network");
    let (mut positions, mut total) = (IMAGE[1] * IMAGE[2], 0);
    for part in Part::ALL {
        for layer in &layers[part as usize] {
            let operations = match layer {
                Layer::Convolution { inputs, outputs, .. } => 2 * 9 * inputs * outputs * positions,
                Layer::Linear { inputs, outputs, .. } => 2 * inputs * outputs,
                Layer::MaxPool => {
                    positions /= 4;
                    0
                }
                _ => 0,
            };
            total += if parts.contains(&part) { operations as u64 } else { 0 };
        }
    }
    total
}

fn one(criterion: &mut Criterion, name: &str, throughput: Option<Throughput>, mut work: impl FnMut()) {
    let (group, name) = name.split_once('/').expect("GROUP/NAME");
    let mut group = criterion.benchmark_group(group);
    group.sampling_mode(SamplingMode::Flat);
    if let Some(throughput) = throughput {
        group.throughput(throughput);
    }
    group.bench_function(name, |bencher| bencher.iter(&mut work));
    group.finish();
}

/// What the machine can do at best: a large matrix product and a large copy.
fn floors(criterion: &mut Criterion) {
    const SIDE: usize = 1536;
    let (left, right) = (normals("left", SIDE * SIDE), normals("right", SIDE * SIDE));
    one(criterion, "floor/product", Some(Throughput::Elements(2 * (SIDE as u64).pow(3))), || {
        black_box(product(Matrix::new(&left, SIDE, SIDE), Matrix::new(&right, SIDE, SIDE)));
    });
    let source = vec![1.0_f32; 1 << 25];
    let mut target = vec![0.0_f32; 1 << 25];
    one(criterion, "floor/copy", Some(Throughput::Bytes(8 << 25)), || {
        target.par_chunks_mut(1 << 16).zip(source.par_chunks(1 << 16)).for_each(|(target, source)| target.copy_from_slice(source));
        black_box(&target);
    });
}

/// One step of Adam on a batch.
fn training(criterion: &mut Criterion) {
    let samples = samples(BATCH);
    let rows: Vec<usize> = (0..BATCH).collect();
    for (name, family) in [("train-step/cnn", Family::Cnn), ("train-step/mlp", Family::Mlp)] {
        let mut network = paper(family);
        let mut optimiser = Optimiser::new(Rule::Adam { weight_decay: 0.0 });
        let mut step = 0;
        // Backward twice as much as forward; the gradient of the images is not asked for.
        let throughput = Throughput::Elements(3 * BATCH as u64 * operations(family, &Part::ALL));
        one(criterion, name, Some(throughput), || {
            let (images, labels) = samples.batch(&rows).expect("a batch");
            let mut dropout = streams().indexed("dropout", step);
            step += 1;
            let logits = network.forward(&images, &Part::ALL, network::all(Mode::TRAIN), &Part::ALL, &mut dropout).expect("forward");
            let loss = ops::cross_entropy(&logits, &labels).expect("loss");
            optimiser.step(&network.parameters(&Part::ALL), &loss.backward().expect("backward"), 1e-3).expect("step");
        });
    }
}

/// Features of 1024 images, as clustering takes them.
fn features(criterion: &mut Criterion) {
    const COUNT: usize = 1024;
    let (network, samples) = (paper(Family::Cnn), samples(COUNT));
    let throughput = Throughput::Elements(COUNT as u64 * operations(Family::Cnn, &[Part::Beginning, Part::Intermediate]));
    one(criterion, "features/cnn", Some(throughput), || {
        black_box(evaluate::features(&network, &samples).expect("features"));
    });
}

struct Shape {
    inputs: usize,
    outputs: usize,
    side: usize,
    stride: usize,
}

/// Forward and backward through convolutions of the shapes of larger networks on 32 x 32 images, 32 at a time.
fn convolutions(criterion: &mut Criterion) {
    const IMAGES: usize = 32;
    let shape = |inputs, outputs, side, stride| Shape { inputs, outputs, side, stride };
    let networks = [
        ("conv/resnet18", vec![shape(64, 64, 32, 1), shape(64, 128, 32, 2), shape(256, 256, 8, 1), shape(512, 512, 4, 1)]),
        (
            "conv/vgg16",
            vec![shape(64, 64, 32, 1), shape(128, 128, 16, 1), shape(256, 256, 8, 1), shape(512, 512, 4, 1), shape(512, 512, 2, 1)],
        ),
    ];
    for (name, shapes) in networks {
        let operations = |shape: &Shape| 2 * 9 * shape.inputs * shape.outputs * (shape.side / shape.stride).pow(2) * IMAGES;
        let throughput = Throughput::Elements(3 * shapes.iter().map(operations).sum::<usize>() as u64);
        let tensor = |purpose: &str, dims: &[usize]| {
            let values = normals(purpose, dims.iter().product());
            let values = values.into_iter().map(|value| value * 0.05).collect::<Vec<_>>();
            dcu_nn::Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).expect("a tensor")).expect("a variable")
        };
        let arguments: Vec<_> = shapes
            .iter()
            .map(|shape| {
                let input = tensor("input", &[IMAGES, shape.inputs, shape.side, shape.side]);
                (input, tensor("weight", &[shape.outputs, shape.inputs, 3, 3]), tensor("bias", &[shape.outputs]), shape.stride)
            })
            .collect();
        one(criterion, name, Some(throughput), || {
            for (input, weight, bias, stride) in &arguments {
                let output = ops::conv2d(input, weight, bias, Convolution { stride: *stride, padding: 1 }).expect("forward");
                black_box(output.sum_all().and_then(|sum| sum.backward()).expect("backward"));
            }
        });
    }
}

/// Clustering of one class, and one step of condensation of 500 buckets.
fn condensation(criterion: &mut Criterion) {
    let points = Array::new(vec![POINTS, DIMENSION], points());
    one(criterion, "condense/kmeans", None, || {
        black_box(kmeans::cluster(&points, 450, &mut streams().stream("start")));
    });
    const BUCKETS: usize = 500;
    const SIZE: usize = 10;
    let (network, samples) = (paper(Family::Cnn), samples(BUCKETS * SIZE));
    // Forward, and the gradient of the images only.
    let throughput = Throughput::Elements(2 * BUCKETS as u64 * operations(Family::Cnn, &[Part::Beginning, Part::Intermediate]));
    let mut group = criterion.benchmark_group("condense");
    group.sampling_mode(SamplingMode::Flat).throughput(throughput);
    group.bench_function("matching-step", |bencher| {
        bencher.iter_batched_ref(
            || Matching::new(&network, &samples, &[SIZE; BUCKETS]).expect("buckets"),
            |matching| black_box(matching.step(1e-3).expect("a step")),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

const POINTS: usize = 4500;
const DIMENSION: usize = 1024;

/// Points around 600 centres, rectified as features are; left in a file for the peer where `DCU_BENCH_POINTS` names one.
fn points() -> Vec<f32> {
    let (centres, noise) = (normals("centres", 600 * DIMENSION), normals("noise", POINTS * DIMENSION));
    let centre = |index: usize| centres[(index / DIMENSION * 7919 % 600) * DIMENSION + index % DIMENSION];
    let points: Vec<f32> = noise.iter().enumerate().map(|(index, noise)| (centre(index) + 0.8 * noise).max(0.0)).collect();
    if let Some(path) = std::env::var_os("DCU_BENCH_POINTS") {
        let bytes: Vec<u8> = points.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(&path, bytes).expect("the file for the peer can be written");
    }
    points
}

/// The membership attack on as many losses as a tenth of CIFAR-10 has.
fn attack(criterion: &mut Criterion) {
    let losses = |purpose: &str, shift: f32| {
        normals(purpose, 4500).into_iter().map(|value| f64::from((0.7 * value + shift).exp())).collect::<Vec<f64>>()
    };
    let (members, others) = (losses("members", -0.3), losses("others", 0.0));
    one(criterion, "attack/membership", None, || {
        black_box(logistic::split_accuracy(&members, &others, &streams()));
    });
}
