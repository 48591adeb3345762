//! Gradients of samples, their squares, products with the Hessian and systems of it against PyTorch in f64 (golden/zoo.py).

mod golden;

use std::collections::BTreeMap;

use candle_core::DType;
use dcu_nn::derivatives::{Curvature, conjugate_gradients, per_sample, sum_of_squares};
use dcu_nn::{Architecture, Gradients, Mode, Network, Part, Place, Result, Tensor, Trainable, network, ops};
use golden::{Golden, State, apart, flat, samples, units};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    architecture: Architecture,
    state: State,
    samples: usize,
    damping: Option<f64>,
}

fn cases(golden: &Golden) -> BTreeMap<String, Case> {
    golden.facts("derivatives")
}

struct Set {
    network: Network,
    images: Tensor,
    labels: Vec<u32>,
    trainable: Trainable,
}

fn set(name: &str, case: &Case, dtype: DType) -> Set {
    let network = golden::network(name, &case.architecture, &case.state, &Place { dtype, ..Place::default() }).unwrap();
    let (images, labels) = samples(name, 0, case.samples, &case.architecture);
    Set { trainable: Trainable::all(network.graph()), network, images, labels }
}

fn loss_of(labels: &[u32]) -> impl Fn(&Tensor, &[usize]) -> Result<Tensor> + Sync {
    |logits, rows| ops::cross_entropy(logits, &rows.iter().map(|&row| labels[row]).collect::<Vec<_>>())
}

fn direction(name: &str, network: &Network, trainable: &Trainable) -> Gradients {
    let parameters = network.parameters(trainable).into_iter();
    let of_parameter = |(parameter, values): (&str, &dcu_nn::Var)| {
        let numbers = units(&format!("{name}/direction/{parameter}"), values.elem_count());
        (parameter.to_owned(), Tensor::from_vec(numbers, values.dims(), values.device()).unwrap())
    };
    parameters.map(of_parameter).collect()
}

/// Differences of the largest magnitude of what is expected of any parameter.
fn check(golden: &Golden, what: &str, name: &str, found: &Gradients, tolerance: f64) {
    let expected: BTreeMap<&str, Vec<f64>> = found.iter().map(|(key, _)| (key, golden.values(&format!("{name}.{what}.{key}")))).collect();
    let largest = expected.values().flatten().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    let far = found.iter().map(|(key, tensor)| (apart(key, &flat(tensor), &expected[key]) / largest, key));
    let (far, parameter) = far.max_by(|left, right| left.0.total_cmp(&right.0)).expect("parameters");
    println!("{what} of {name}: {far:.1e} by {parameter}");
    assert!(far <= tolerance, "{what} of {name}: {far:.1e} by {parameter}");
}

#[test]
fn gradients_of_samples_and_sums_of_their_squares() {
    let golden = Golden::open();
    for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 1e-4)] {
        for (name, case) in cases(&golden) {
            let Set { network, images, labels, trainable } = set(&name, &case, dtype);
            let (loss, modes) = (loss_of(&labels), network::all(Mode::EVAL));
            check(&golden, "samples", &name, &per_sample(&network, &images, &loss, &trainable, modes).unwrap(), tolerance);
            check(&golden, "squares", &name, &sum_of_squares(&network, &images, &loss, &trainable, modes).unwrap(), tolerance);
        }
    }
}

#[test]
fn gradients_and_products_with_the_hessian() {
    let golden = Golden::open();
    for (name, case) in cases(&golden) {
        let Set { network, images, labels, trainable } = set(&name, &case, DType::F64);
        let loss = loss_of(&labels);
        let mut curvature = Curvature::new(&network, &images, &loss, &trainable, network::all(Mode::EVAL)).unwrap();
        let before = curvature.gradient().unwrap();
        check(&golden, "gradient", &name, &before, 1e-11);
        let along = direction(&name, &network, &trainable);
        check(&golden, "hessian", &name, &curvature.product(&along).unwrap(), 1e-6);
        // The weights are back where they were, and those of the network never left.
        assert_eq!(curvature.gradient().unwrap().plus(-1.0, &before).unwrap().norm().unwrap(), 0.0);
        assert_eq!(curvature.product(&along.scaled(0.0).unwrap()).unwrap().norm().unwrap(), 0.0);
        let logits = network.evaluate(&images, &Part::ALL).unwrap();
        let mean = flat(&loss(&logits, &(0..case.samples).collect::<Vec<_>>()).unwrap());
        assert!(apart(&name, &mean, &golden.values(&format!("{name}.loss"))) < 1e-11);
    }
}

#[test]
fn conjugate_gradients_solve_a_damped_system() {
    let golden = Golden::open();
    for (name, case) in cases(&golden) {
        let Some(damping) = case.damping else { continue };
        let Set { network, images, labels, trainable } = set(&name, &case, DType::F64);
        let loss = loss_of(&labels);
        let mut curvature = Curvature::new(&network, &images, &loss, &trainable, network::all(Mode::EVAL)).unwrap();
        let right = direction(&name, &network, &trainable);
        let found = conjugate_gradients(|along| curvature.product(along), &right, damping, 1e-8, 200).unwrap();
        println!("{} steps leave {:.1e}", found.steps, found.residual);
        assert!(found.residual <= 1e-8 && found.steps < 100);
        check(&golden, "solution", &name, &found.solution, 1e-6);
        // Fewer steps are a worse solution, and a matrix that is not positive definite is told of.
        let few = conjugate_gradients(|along| curvature.product(along), &right, damping, 1e-8, 2).unwrap();
        assert!(few.steps == 2 && few.residual > found.residual);
        let error = conjugate_gradients(|along| along.scaled(-1.0), &right, 0.5, 1e-8, 10).unwrap_err().to_string();
        assert!(error.contains("greater damping than 0.5"), "{error}");
        let nothing = conjugate_gradients(|along| curvature.product(along), &right.scaled(0.0).unwrap(), damping, 1e-8, 10).unwrap();
        assert_eq!((nothing.steps, nothing.solution.norm().unwrap()), (0, 0.0));
    }
}

#[test]
fn statistics_of_the_batch_are_refused() {
    let golden = Golden::open();
    let mut cases = cases(&golden);
    let Set { network, images, labels, trainable } = set("small_cnn", &cases.remove("small_cnn").unwrap(), DType::F64);
    let loss = loss_of(&labels);
    let modes = network::only(Part::Intermediate, Mode::TRAIN);
    for error in [
        per_sample(&network, &images, &loss, &trainable, modes).unwrap_err(),
        sum_of_squares(&network, &images, &loss, &trainable, modes).unwrap_err(),
        Curvature::new(&network, &images, &loss, &trainable, modes).map(drop).unwrap_err(),
    ] {
        assert!(error.to_string().contains("Intermediate part takes statistics of the batch"), "{error}");
    }
    let none = images.narrow(0, 0, 0).unwrap();
    assert!(per_sample(&network, &none, &loss, &trainable, network::all(Mode::EVAL)).unwrap_err().to_string().contains("no samples"));
    // A network without batch normalisation or dropout has nothing to refuse.
    let Set { network, images, labels, trainable } = set("small_mlp", &cases.remove("small_mlp").unwrap(), DType::F64);
    assert!(per_sample(&network, &images, &loss_of(&labels), &trainable, network::all(Mode::TRAIN)).is_ok());
}
