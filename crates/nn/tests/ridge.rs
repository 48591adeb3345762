//! A last layer in closed form: taking samples back is training anew without them.

use dcu_artifact::{Array, Dataset, DatasetFacts, Model, Normalisation, Statistics};
use dcu_nn::recipe::Recipe;
use dcu_nn::ridge::{self, Solution, Trunk};
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Family, Network, Samples, evaluate, model};

const CLASSES: usize = 5;
const LAMBDA: f64 = 0.3;

/// 300 images whose brightness and pattern say something of their class; a tenth of the labels is wrong.
fn dataset() -> Dataset {
    let mut stream = Streams::new(7, "test").stream("images");
    let (mut pixels, mut labels, mut original) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..300_u32 {
        let class = row % CLASSES as u32;
        pixels.extend((0..3 * 100).map(|place| ((place as u32 * (class + 1) * 13 % 97) + stream.below(120) as u32) as u8));
        original.push(class);
        labels.push(if row % 10 == 3 { (class + 1) % CLASSES as u32 } else { class });
    }
    Dataset {
        images: Array::new(vec![300, 3, 10, 10], pixels),
        labels,
        original_labels: Some(original),
        ids: (0..300).map(|row| 1000 + row * 7).collect(),
        facts: DatasetFacts {
            source: "test".into(),
            class_names: (0..CLASSES).map(|class| class.to_string()).collect(),
            normalisation: Normalisation { mean: vec![0.4, 0.5, 0.3], std: vec![0.25; 3] },
            names: None,
        },
    }
}

fn model_of(dataset: &Dataset, architecture: &Architecture) -> Model {
    let network = Network::initialised(architecture, &Streams::new(3, "test")).unwrap();
    model::to_artifact(&network, &Recipe::default(), dataset).unwrap()
}

/// More features than samples.
fn patches() -> Architecture {
    Architecture { widths: vec![60], patch: Some(4), ..Architecture::of_family(Family::Patches, [3, 10, 10], CLASSES) }
}

fn anew(trunk: &Trunk, dataset: &Dataset, ids: &[u64]) -> Statistics {
    trunk.statistics(dataset, &Samples::of_ids(dataset, ids).unwrap(), ids.to_vec(), LAMBDA).unwrap()
}

/// The largest difference, as a share of the largest weight.
fn difference(one: &Solution, other: &Solution) -> f64 {
    let largest = one.weights.iter().fold(0.0_f64, |largest, weight| largest.max(weight.abs()));
    let apart = one.weights.iter().zip(&other.weights).map(|(one, other)| (one - other).abs());
    apart.fold(0.0, f64::max) / largest
}

#[test]
fn taking_samples_back_is_training_anew_without_them() {
    let dataset = dataset();
    let architecture = patches();
    let trunk = Trunk::new(&model_of(&dataset, &architecture), false).unwrap();
    let all = anew(&trunk, &dataset, &dataset.ids);
    let original = ridge::solve(&all, LAMBDA).unwrap();
    let of = |wanted: &dyn Fn(usize) -> bool| -> Vec<u64> { (0..300).filter(|&row| wanted(row)).map(|row| dataset.ids[row]).collect() };
    let order = Streams::new(1, "test").stream("request").permutation(300);
    let random: Vec<u64> = order[..30].iter().map(|&row| dataset.ids[row]).collect();
    let later: Vec<u64> = order[30..90].iter().map(|&row| dataset.ids[row]).collect();
    for (name, requests) in [
        ("random", vec![random.clone()]),
        ("class", vec![of(&|row| dataset.labels[row] == 2)]),
        ("one sample", vec![vec![random[4]]]),
        ("all but a few", vec![of(&|row| row % 10 != 0)]),
        ("cumulative", vec![random, later]),
    ] {
        let mut sums = all.clone();
        requests.iter().for_each(|ids| trunk.take_back(&dataset, ids, &mut sums).unwrap());
        let gone = requests.concat();
        let expected = anew(&trunk, &dataset, &of(&|row| !gone.contains(&dataset.ids[row])));
        assert_eq!((&sums.ids, &sums.labels, &sums.facts), (&expected.ids, &expected.labels, &expected.facts));
        let [found, expected] = [&sums, &expected].map(|sums| ridge::solve(sums, LAMBDA).unwrap());
        let apart = difference(&expected, &found);
        assert!(apart < 1e-10, "{name}: {apart:e}");
        assert!(difference(&original, &found) > 1e-4, "{name}: the request changes something");
        // What is written keeps the rules of its schema.
        assert!(<Statistics as dcu_artifact::Payload>::from_content(dcu_artifact::Payload::to_content(&sums)).is_ok());
    }
}

#[test]
fn counting_samples_under_corrected_labels_is_training_anew_with_them() {
    let dataset = dataset();
    let trunk = Trunk::new(&model_of(&dataset, &patches()), false).unwrap();
    let original = dataset.original_labels.clone().unwrap();
    let wrong: Vec<usize> = (0..300).filter(|&row| dataset.labels[row] != original[row]).collect();
    let ids = |rows: &[usize]| -> Vec<u64> { rows.iter().map(|&row| dataset.ids[row]).collect() };
    let mut sums = anew(&trunk, &dataset, &dataset.ids);
    trunk.relabel(&dataset, &ids(&wrong[..12]), &mut sums).unwrap();
    let mut corrected = dataset.clone();
    wrong[..12].iter().for_each(|&row| corrected.labels[row] = original[row]);
    let expected = anew(&trunk, &corrected, &corrected.ids);
    assert_eq!(sums.labels, expected.labels);
    let solve = |sums: &Statistics| ridge::solve(sums, LAMBDA).unwrap();
    assert!(difference(&solve(&expected), &solve(&sums)) < 1e-10);

    // Some are corrected, and others taken back.
    trunk.take_back(&dataset, &ids(&wrong[12..]), &mut sums).unwrap();
    let kept: Vec<u64> = corrected.ids.iter().copied().filter(|id| !ids(&wrong[12..]).contains(id)).collect();
    assert!(difference(&solve(&anew(&trunk, &corrected, &kept)), &solve(&sums)) < 1e-10);
    // What is counted under another label than the dataset has is not taken back by it.
    let error = trunk.take_back(&dataset, &ids(&wrong[..1]), &mut sums).unwrap_err().to_string();
    assert!(error.contains("was counted under"), "{error}");
}

#[test]
fn leaving_one_out_in_closed_form_is_training_without_it() {
    let dataset = dataset();
    let trunk = Trunk::new(&model_of(&dataset, &patches()), false).unwrap();
    let solution = ridge::solve(&anew(&trunk, &dataset, &dataset.ids), LAMBDA).unwrap();
    trunk
        .for_each_block(&Samples::of_whole_dataset(&dataset), |features, labels| {
            let found = solution.leave_one_out(features, labels);
            let size = features.len() / labels.len();
            for row in [0, 13, 299] {
                let others: Vec<u64> = dataset.ids.iter().copied().filter(|&id| id != dataset.ids[row]).collect();
                let expected = ridge::solve(&anew(&trunk, &dataset, &others), LAMBDA)?.predict(&features[row * size..][..size]);
                let said = &found.without[row * CLASSES..][..CLASSES];
                assert!(said.iter().zip(&expected).all(|(said, expected)| (said - expected).abs() < 1e-9), "{said:?} {expected:?}");
                assert!(found.with[row * CLASSES..][..CLASSES].iter().zip(&expected).any(|(with, without)| (with - without).abs() > 1e-3));
                assert!(found.leverages[row] > 1.0 / 300.0 && found.leverages[row] < 1.0);
            }
            Ok(())
        })
        .unwrap();
}

/// The solution is the minimum: the gradient of the penalised squared error is 0 there, for the bias without a penalty.
#[test]
fn a_solution_is_the_minimum_and_the_network_says_what_it_says() {
    let dataset = dataset();
    for architecture in [patches(), Architecture { widths: vec![20, 12], ..Architecture::of_family(Family::Mlp, [3, 10, 10], CLASSES) }] {
        let base = model_of(&dataset, &architecture);
        let trunk = Trunk::new(&base, false).unwrap();
        let solution = ridge::solve(&anew(&trunk, &dataset, &dataset.ids), LAMBDA).unwrap();
        let samples = Samples::of_whole_dataset(&dataset);
        let with_head = trunk.with_head(&base, &solution).unwrap();
        let logits = evaluate::judge(&model::to_network(&with_head).unwrap(), &samples).unwrap().logits;
        trunk
            .for_each_block(&samples, |features, labels| {
                let said = solution.predict(features);
                let size = features.len() / labels.len();
                assert!(said.iter().zip(&logits.data).all(|(said, logit)| (said - f64::from(*logit)).abs() < 1e-4));
                for (feature, class) in [(0, 0), (0, 4), (1, 2), (size - 1, 1)] {
                    let gradient: f64 = (0..labels.len())
                        .map(|row| {
                            (said[row * CLASSES + class] - f64::from(u8::from(labels[row] as usize == class)))
                                * features[row * size + feature]
                        })
                        .sum();
                    let penalty = if feature == 0 { 0.0 } else { LAMBDA * solution.weights[feature * CLASSES + class] };
                    assert!((gradient + penalty).abs() < 1e-9, "{feature}, {class}: {gradient} {penalty}");
                }
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn sums_of_another_trunk_and_samples_that_are_not_in_them_are_refused() {
    let dataset = dataset();
    let [trunk, other] = [60, 59].map(|atoms| {
        let architecture = Architecture { widths: vec![atoms], ..patches() };
        Trunk::new(&model_of(&dataset, &architecture), false).unwrap()
    });
    let sums = anew(&trunk, &dataset, &dataset.ids[10..]);
    let refused = |trunk: &Trunk, ids: &[u64]| trunk.take_back(&dataset, ids, &mut sums.clone()).unwrap_err().to_string();
    assert!(refused(&other, &dataset.ids[20..30]).contains("another trunk"));
    assert!(refused(&trunk, &dataset.ids[5..15]).contains("train:1035 is not in the sums"));
    assert!(refused(&trunk, &[1]).contains("train:1 is not in the dataset"));
    let unpoisoned = Dataset { original_labels: None, ..dataset.clone() };
    let error = trunk.relabel(&unpoisoned, &dataset.ids[20..21], &mut sums.clone()).unwrap_err().to_string();
    assert!(error.contains("no other labels"), "{error}");
}

/// Only what was learned from other data, or says so of itself, never saw the training set.
#[test]
fn a_trunk_that_is_trained_on_has_seen_the_training_set() {
    let dataset = dataset();
    let mut base = model_of(&dataset, &Architecture { widths: vec![20, 12], ..Architecture::of_family(Family::Mlp, [3, 10, 10], CLASSES) });
    assert!(Trunk::new(&base, false).unwrap().saw_training_data());
    assert!(!Trunk::new(&base, true).unwrap().saw_training_data());
    base.facts.unseen = true;
    let trunk = Trunk::new(&base, false).unwrap();
    let solution = ridge::solve(&anew(&trunk, &dataset, &dataset.ids), LAMBDA).unwrap();
    let solved = trunk.with_head(&base, &solution).unwrap();
    assert!(!Trunk::new(&solved, false).unwrap().saw_training_data());
    let same = model::with_facts_of(&model::to_network(&solved).unwrap(), &solved).unwrap();
    assert!(!Trunk::new(&same, false).unwrap().saw_training_data());
    let fresh = Network::initialised(&model::architecture(&base).unwrap(), &Streams::new(9, "test")).unwrap();
    let moved = model::with_facts_of(&fresh, &solved).unwrap();
    assert!(Trunk::new(&moved, false).unwrap().saw_training_data());
}

#[test]
fn the_bytes_do_not_depend_on_the_threads() {
    let dataset = dataset();
    let base = model_of(&dataset, &patches());
    let solve = |threads: usize| {
        let solved = || {
            let trunk = Trunk::new(&base, false).unwrap();
            let sums = anew(&trunk, &dataset, &dataset.ids);
            let weights = ridge::solve(&sums, LAMBDA).unwrap().weights;
            (sums, weights)
        };
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(solved)
    };
    assert!(solve(1) == solve(3));
}
