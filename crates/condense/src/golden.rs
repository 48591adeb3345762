//! Condensations against PyTorch and NumPy (`tests/golden/generate.py`, which writes the same rules down again in f64, or without rounding).

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use dcu_artifact::{Array, Buckets, Dataset, DatasetFacts, Normalisation, Tensor as Stored};
use dcu_nn::optimiser::{Optimiser, Rule};
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Network, Samples};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::methods::{blend, coreset, dm, gm, idm, mtt};
use crate::synthetic::{Canvas, Siamese};

/// How far a number may be from PyTorch's.
const TOLERANCE: f64 = 1e-5;

struct Golden {
    tensors: BTreeMap<String, Stored>,
    facts: std::collections::HashMap<String, String>,
}

/// What a step of `dm` is given: a network, real samples of each bucket, and a change.
type Step = (usize, Vec<Vec<usize>>, Vec<Value>);

#[derive(Deserialize)]
struct Matching {
    steps: Vec<Step>,
    lr: f64,
    each: usize,
    tiles: usize,
}

/// What `idm` is given: the same, with how much the cross-entropy counts in each step.
#[derive(Deserialize)]
struct Improved {
    steps: Vec<(Step, f64)>,
    lr: f64,
    each: usize,
    tiles: usize,
}

#[derive(Deserialize)]
struct Slope {
    bucket: usize,
    rows: Vec<usize>,
    change: Vec<Value>,
    each: usize,
    tiles: usize,
}

impl Golden {
    fn open() -> Self {
        let bytes = include_bytes!("../tests/golden/condensations.safetensors");
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let file = SafeTensors::deserialize(bytes).unwrap();
        let tensor = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
            (name.to_owned(), Stored::from_bytes(view.dtype(), view.shape().to_vec(), view.data()).unwrap())
        };
        Self { tensors: file.iter().map(tensor).collect(), facts: header.metadata().clone().unwrap() }
    }

    fn fact<T: DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_str(&self.facts[name]).unwrap()
    }

    fn settings<T: DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_value(self.fact::<BTreeMap<String, Value>>("settings")[name].clone()).unwrap()
    }

    fn whole(&self, name: &str) -> Vec<usize> {
        let Stored::I64(array) = &self.tensors[name] else { panic!("`{name}` holds whole numbers") };
        array.data.iter().map(|&value| value as usize).collect()
    }

    fn numbers(&self, name: &str) -> &Array<f32> {
        let Stored::F32(array) = &self.tensors[name] else { panic!("`{name}` holds numbers") };
        array
    }

    fn data(&self) -> (Dataset, Buckets) {
        let Stored::U8(images) = &self.tensors["images"] else { panic!("images are bytes") };
        let class: Vec<u32> = self.fact("class");
        let bucket: Vec<u32> = self.whole("bucket").into_iter().map(|bucket| bucket as u32).collect();
        let labels = bucket.iter().map(|&bucket| class[bucket as usize]).collect();
        let dataset = dataset(images.clone(), labels);
        let centroids = Array::new(vec![class.len(), 1], vec![0.0; class.len()]);
        let buckets = Buckets { ids: dataset.ids.clone(), bucket, class, centroids, k: 2 };
        (dataset, buckets)
    }

    fn network(&self, number: usize) -> Network {
        let prefix = format!("network.{number}.");
        let state = self.tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone())));
        Network::from_tensors(&self.fact::<Architecture>("architecture"), &state.collect()).unwrap()
    }

    /// A canvas with the images that PyTorch began with.
    fn canvas(&self, name: &str, each: usize, tiles: usize) -> Canvas {
        let (dataset, buckets) = self.data();
        let canvas = Canvas::drawn(&dataset, &buckets, each, tiles, &Streams::new(1, "golden")).unwrap();
        let start = self.numbers(&format!("{name}.start"));
        canvas.pixels().set(&Tensor::from_slice(&start.data, start.shape.as_slice(), &Device::Cpu).unwrap()).unwrap();
        canvas
    }

    /// Holds numbers to PyTorch's, in units of the largest of them.
    fn compare(&self, name: &str, found: &[f32]) {
        let expected = &self.numbers(name).data;
        assert_eq!(found.len(), expected.len(), "{name}");
        let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(f64::from(value.abs())));
        let apart = found.iter().zip(expected).map(|(found, expected)| f64::from((found - expected).abs()) / largest);
        let worst = apart.fold(0.0, |worst: f64, apart| if apart.is_nan() || apart > worst { apart } else { worst });
        println!("{name}: {worst:.1e} at most");
        assert!(worst <= TOLERANCE, "{name} is {worst:.1e} from PyTorch's");
    }
}

fn dataset(images: Array<u8>, labels: Vec<u32>) -> Dataset {
    let facts = DatasetFacts {
        source: "golden".into(),
        class_names: vec!["a".into(), "b".into()],
        normalisation: Normalisation { mean: vec![0.5; 3], std: vec![0.25; 3] },
        names: None,
    };
    Dataset { ids: (0..labels.len() as u64).collect(), images, labels, original_labels: None, facts }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A change by its name and its numbers.
fn change(of: &[Value]) -> Siamese {
    let number = |place: usize| of[place].as_f64().unwrap();
    match of[0].as_str().unwrap() {
        "none" => Siamese::None,
        "flip" => Siamese::Flip,
        "shift" => Siamese::Shift([1, 2].map(|place| of[place].as_i64().unwrap())),
        "cutout" => Siamese::Cutout([1, 2].map(|place| of[place].as_u64().unwrap() as usize)),
        "colour" => Siamese::Colour { brightness: number(1), saturation: number(2), contrast: number(3) },
        other => panic!("no change is called {other}"),
    }
}

#[test]
fn blend_is_that_of_pytorch() {
    let golden = Golden::open();
    let (dataset, buckets) = golden.data();
    let settings: Value = golden.settings("blend");
    let (steps, rate) = (settings["steps"].as_u64().unwrap() as usize, settings["lr"].as_f64().unwrap());
    let (images, shares) = blend::blend(&golden.network(0), &dataset, &buckets.members(), steps, rate).unwrap();
    golden.compare("blend", &images);
    golden.compare("blend.shares", &shares);
}

#[test]
fn changes_are_those_of_pytorch() {
    let golden = Golden::open();
    let images = Samples::of_dataset(&golden.data().0, &[0, 1]).batch(&[0, 1]).unwrap().0;
    for (number, of) in golden.fact::<Vec<Vec<Value>>>("changes").iter().enumerate() {
        golden.compare(&format!("change.{number}"), &flat(&change(of).apply(&images).unwrap()));
    }
}

#[test]
fn distribution_matching_is_that_of_pytorch() {
    let golden = Golden::open();
    let samples = Samples::of_whole_dataset(&golden.data().0);
    for name in ["dm", "dm.changed", "dm.tiles"] {
        let Matching { steps, lr, each, tiles } = golden.settings(name);
        let mut canvas = golden.canvas(name, each, tiles);
        for (number, real, of) in &steps {
            dm::matched(&mut canvas, &golden.network(*number), &samples, real, change(of), lr).unwrap();
        }
        golden.compare(name, &flat(canvas.pixels()));
    }
}

#[test]
fn improved_distribution_matching_is_that_of_pytorch() {
    let golden = Golden::open();
    let samples = Samples::of_whole_dataset(&golden.data().0);
    let Improved { steps, lr, each, tiles } = golden.settings("idm");
    let mut canvas = golden.canvas("idm", each, tiles);
    for ((number, real, of), ce) in &steps {
        idm::matched(&mut canvas, &golden.network(*number), &samples, real, change(of), (lr, *ce)).unwrap();
    }
    golden.compare("idm", &flat(canvas.pixels()));
}

#[test]
fn the_slope_of_gradient_matching_is_that_of_pytorch() {
    let golden = Golden::open();
    let samples = Samples::of_whole_dataset(&golden.data().0);
    for name in ["gm", "gm.changed"] {
        let Slope { bucket, rows, change: of, each, tiles } = golden.settings(name);
        let canvas = golden.canvas(name, each, tiles);
        let (images, labels) = samples.batch(&rows).unwrap();
        let (slope, distance) = gm::matched(&golden.network(1), &canvas, bucket, (&images, &labels), change(&of)).unwrap();
        golden.compare(&format!("{name}.distance"), &[distance as f32]);
        golden.compare(name, &flat(&slope));
    }
}

#[test]
fn what_the_network_of_gradient_matching_learns_is_that_of_pytorch() {
    let golden = Golden::open();
    let (canvas, network, settings) = (golden.canvas("gm.learn", 1, 1), golden.network(2), golden.settings::<Value>("gm.learn"));
    let parameters = serde_json::from_value(json!({ "inner": settings["epochs"], "network_lr": settings["lr"] })).unwrap();
    gm::learn(&network, &canvas, &parameters, &mut Optimiser::new(Rule::Sgd { momentum: 0.5, weight_decay: 0.0 })).unwrap();
    let after = network.to_tensors().unwrap().into_values().flat_map(|tensor| match tensor {
        Stored::F32(array) => array.data,
        _ => vec![],
    });
    golden.compare("gm.learn", &after.collect::<Vec<_>>());
}

#[test]
fn the_slope_through_a_students_steps_is_that_of_pytorch() {
    let golden = Golden::open();
    let settings: Value = golden.settings("mtt");
    let whole = |name: &str| settings[name].as_u64().unwrap() as usize;
    let [from, to] = ["begin", "end"].map(|end| crate::synthetic::weights(&golden.network(whole(end))).unwrap());
    let steps = (whole("steps"), settings["rate"].as_f64().unwrap());
    let (slope, distance) = mtt::matched(&golden.network(2), &golden.canvas("mtt", 1, 1), &from, &to, steps).unwrap();
    golden.compare("mtt.distance", &[distance as f32]);
    golden.compare("mtt", &flat(&slope));
}

#[test]
fn coresets_are_those_found_by_trying_all() {
    let golden = Golden::open();
    let labels: Vec<u32> = golden.whole("grid.labels").into_iter().map(|label| label as u32).collect();
    let dataset = dataset(Array::new(vec![labels.len(), 3, 1, 1], vec![0; 3 * labels.len()]), labels);
    let Stored::I64(grid) = &golden.tensors["grid.features"] else { panic!("features on a grid are whole numbers") };
    let features = Array::new(grid.shape.clone(), grid.data.iter().map(|&value| value as f32).collect());
    for rule in ["herding", "k-centre"] {
        let parameters = serde_json::from_value(json!({ "rule": rule, "per_class": golden.fact::<usize>("per_class") })).unwrap();
        let chosen =
            coreset::choose(&parameters, &dataset, &golden.whole("grid.rows"), Some(&features), None, &Streams::new(1, "golden")).unwrap();
        assert_eq!(chosen.iter().map(|&(row, _)| row).collect::<Vec<_>>(), golden.whole(&format!("grid.{rule}")), "{rule}");
        assert!(chosen.iter().all(|&(_, weight)| weight == 1.0));
    }
}
