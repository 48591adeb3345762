//! What `zoo.py` kept, and what both sides compute instead of keeping it. The formulas are written down there.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use dcu_artifact::{Array, Tensor as Stored};
use dcu_nn::{Architecture, Device, Network, Place, Result, Tensor};
use safetensors::SafeTensors;
use serde::de::DeserializeOwned;

/// Names and shapes of a state dict.
pub(crate) type State = Vec<(String, Vec<usize>)>;

/// `zoo.safetensors`.
pub(crate) struct Golden {
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Golden {
    pub(crate) fn open() -> Self {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
        let bytes = std::fs::read(Path::new(&package).join("tests/golden/zoo.safetensors")).expect("the golden file is there");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
        let metadata = header.metadata().clone().expect("metadata");
        Self { tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).expect("tensors"), metadata }
    }

    /// An entry of the metadata.
    pub(crate) fn facts<T: DeserializeOwned>(&self, key: &str) -> T {
        serde_json::from_str(&self.metadata[key]).expect("of this form")
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f64> {
        flat(self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}")))
    }
}

pub(crate) fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(candle_core::DType::F64).and_then(|tensor| tensor.flatten_all()?.to_vec1()).expect("numbers")
}

fn numbers(name: &str) -> impl Iterator<Item = u64> + use<> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    (1_u64..).map(move |index| {
        let z = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// Numbers from -1 to 1.
pub(crate) fn units(name: &str, count: usize) -> Vec<f64> {
    numbers(name).take(count).map(|z| (z >> 40) as f64 / f64::from(1 << 23) - 1.0).collect()
}

fn weights(case: &str, name: &str, shape: &[usize]) -> Stored {
    if name.ends_with(".num_batches_tracked") {
        return Stored::I64(Array::new(shape.to_vec(), vec![3]));
    }
    let bound = (6.0 / shape.iter().skip(1).product::<usize>() as f64).sqrt();
    let value = |u: f64| match name.rsplit('.').next() {
        Some("running_mean") => u / 5.0,
        Some("running_var") => 1.0 + u / 2.0,
        Some("weight") if shape.len() == 1 => 1.0 + u / 4.0,
        Some("bias" | "cls_token" | "pos_embed") => u / 10.0,
        _ => u * bound,
    };
    let values = units(&format!("{case}/{name}"), shape.iter().product());
    Stored::F32(Array::new(shape.to_vec(), values.into_iter().map(|u| value(u) as f32).collect()))
}

/// The state dict of a case.
pub(crate) fn state_of(case: &str, state: &State) -> BTreeMap<String, Stored> {
    state.iter().map(|(name, shape)| (name.clone(), weights(case, name, shape))).collect()
}

pub(crate) fn network(case: &str, architecture: &Architecture, state: &State, place: &Place) -> Result<Network> {
    Network::at(place.clone(), architecture, &state_of(case, state))
}

/// Images and labels of a case.
pub(crate) fn samples(case: &str, draw: usize, count: usize, architecture: &Architecture) -> (Tensor, Vec<u32>) {
    let [channels, height, width] = architecture.input;
    let values = units(&format!("{case}/images/{draw}"), count * channels * height * width);
    let images = Tensor::from_vec(values, (count, channels, height, width), &Device::Cpu).expect("as many as needed");
    let labels = numbers(&format!("{case}/labels")).take(count).map(|z| ((z >> 33) % architecture.classes as u64) as u32);
    (images, labels.collect())
}

/// The largest difference.
pub(crate) fn apart(what: &str, found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "{what}");
    let differences = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    // What is not a number is as far apart as can be.
    differences.fold(0.0, |largest, difference| {
        if difference <= largest {
            largest
        } else if difference.is_nan() {
            f64::INFINITY
        } else {
            difference
        }
    })
}
