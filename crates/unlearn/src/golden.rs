//! Each method against PyTorch (`tests/golden/generate.py`, which writes the same rules down again in f64), on networks small enough to be read.

use std::cell::RefCell;
use std::collections::BTreeMap;

use dcu_artifact::{Array, Dataset, DatasetFacts, Holdout, Normalisation, Request, RequestFacts, Tensor as Stored};
use dcu_nn::recipe::Recipe;
use dcu_nn::rng::Streams;
use dcu_nn::{Architecture, Gradients, Network, Tensor, Trainable, model};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::frame::{Task, Unlearn};
use crate::methods::{
    accelerated, amnesiac, bad_teacher, boundary_shrink, distillation, fisher, gradient_ascent, influence, jit, lfssd, neggrad, ntk, prune,
    random_label, salun, scrub, silver_linings, sparse, ssd, woodfisher,
};
use crate::{algebra, course};

/// How far a number may be from PyTorch's.
const TOLERANCE: f64 = 1e-4;

struct Golden {
    tensors: BTreeMap<String, Stored>,
    cases: BTreeMap<String, Architecture>,
    parameters: BTreeMap<String, Value>,
    drawn: BTreeMap<String, Value>,
}

impl Golden {
    fn open() -> Self {
        let bytes = include_bytes!("../tests/golden/methods.safetensors");
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let facts = header.metadata().clone().unwrap();
        let file = SafeTensors::deserialize(bytes).unwrap();
        let tensor = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
            (name.to_owned(), Stored::from_bytes(view.dtype(), view.shape().to_vec(), view.data()).unwrap())
        };
        Self {
            tensors: file.iter().map(tensor).collect(),
            cases: serde_json::from_str(&facts["cases"]).unwrap(),
            parameters: serde_json::from_str(&facts["parameters"]).unwrap(),
            drawn: serde_json::from_str(&facts["drawn"]).unwrap(),
        }
    }

    fn whole(&self, name: &str) -> Vec<u64> {
        let Stored::I64(array) = &self.tensors[name] else { panic!("`{name}` holds whole numbers") };
        array.data.iter().map(|&value| value as u64).collect()
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        let Stored::F64(array) = &self.tensors[name] else { panic!("`{name}` holds numbers") };
        array.data.clone()
    }

    /// The random numbers that a method was given.
    fn given(&self, name: &str) -> Vec<f64> {
        self.numbers(&format!("{name}.given"))
    }

    /// The request of a case.
    fn task(&self, name: &str) -> Task {
        let case = name.split('.').next().unwrap();
        let dataset = self.dataset(case);
        let prefix = format!("{case}.state.");
        let state = self.tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone())));
        let network = Network::from_tensors(&self.cases[case], &state.collect()).unwrap();
        let model = model::to_artifact(&network, &Recipe::default(), &dataset).unwrap();
        let [forget, retain] = ["forget", "retain"].map(|part| self.whole(&format!("{case}.{part}")));
        let facts = RequestFacts { scenario: "ids".into(), classes: vec![], cumulative: false };
        let request = Request { forget, retain, earlier: vec![], facts };
        let mut task = Task::new(model, dataset, request, None, Streams::new(1, "golden")).unwrap();
        task.test = Some(self.dataset(&format!("{case}.unseen")));
        let validation = self.whole(&format!("{case}.validation"));
        task.holdout = Some(Holdout { train: vec![], remembrance: vec![], validation, test: vec![] });
        task
    }

    /// Samples that have the numbers of their rows as ids.
    fn dataset(&self, part: &str) -> Dataset {
        let Stored::U8(images) = &self.tensors[&format!("{part}.images")] else { panic!("images are bytes") };
        let labels = |name: &str| self.whole(&format!("{part}.{name}")).into_iter().map(|label| label as u32).collect();
        let channels = images.shape[1];
        let facts = DatasetFacts {
            source: "golden".into(),
            class_names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            normalisation: Normalisation { mean: vec![0.5; channels], std: vec![0.25; channels] },
            names: None,
        };
        let original = self.tensors.contains_key(&format!("{part}.original_labels"));
        Dataset {
            images: images.clone(),
            labels: labels("labels"),
            original_labels: original.then(|| labels("original_labels")),
            ids: (0..images.rows() as u64).collect(),
            facts,
        }
    }

    /// Holds what is drawn to what PyTorch was given.
    fn given_what_is(&self, name: &str, drawn: &Value) {
        assert_eq!(self.drawn.get(name), Some(drawn), "PyTorch got other draws; put these into generate.py: \"{name}\": {drawn},");
    }

    fn checked<M: Unlearn>(&self, name: &str) -> M::Checked {
        M::check(serde_json::from_value(self.parameters[name].clone()).unwrap()).map_err(|error| format!("{error:?}")).unwrap()
    }

    /// Holds a network to what PyTorch made of the same one.
    fn compare(&self, name: &str, network: &Network) {
        self.compare_within(TOLERANCE, &[], name, network);
    }

    /// The same, within a tolerance, without these tensors.
    fn compare_within(&self, tolerance: f64, without: &[&str], name: &str, network: &Network) {
        let (mut expected, mut worst) = (self.numbers(name).into_iter(), (0.0, String::new()));
        for (tensor, values) in floating(network) {
            for (place, value) in values.into_iter().enumerate() {
                let apart = (f64::from(value) - expected.next().unwrap()).abs();
                if !without.contains(&tensor.as_str()) && (apart.is_nan() || apart > worst.0) {
                    worst = (apart, format!("{tensor} at {place}"));
                }
            }
        }
        assert_eq!(expected.count(), 0, "{name}");
        println!("{name}: {:.1e} at most, {}", worst.0, worst.1);
        assert!(worst.0 <= tolerance, "{name} is {:.1e} from PyTorch's, {}", worst.0, worst.1);
    }

    /// Holds a method that draws nothing that matters to all its vectors.
    fn hold<M: Unlearn>(&self, names: &[&str]) {
        for name in names {
            let mut task = self.task(name);
            let network = M::unlearn(&self.checked::<M>(name), &mut task).unwrap();
            self.compare(name, &network);
        }
    }
}

/// Parameters and buffers, sorted by name.
fn floating(network: &Network) -> impl Iterator<Item = (String, Vec<f32>)> {
    network.to_tensors().unwrap().into_iter().filter_map(|(name, tensor)| match tensor {
        Stored::F32(array) => Some((name, array.data)),
        _ => None,
    })
}

/// Numbers as tensors of the shape of a network's parameters, sorted by name.
fn shaped(network: &Network, numbers: &[f64]) -> Gradients {
    let values = algebra::values(network, &Trainable::all(network.graph())).unwrap();
    let mut start = 0;
    let of_parameter = |(name, tensor): (&str, &Tensor)| {
        let own: Vec<f32> = numbers[start..][..tensor.elem_count()].iter().map(|&value| value as f32).collect();
        start += own.len();
        (name.to_owned(), Tensor::from_vec(own, tensor.dims(), tensor.device()).unwrap())
    };
    let shaped = values.iter().map(of_parameter).collect();
    assert_eq!(start, numbers.len());
    shaped
}

#[test]
fn methods_that_draw_nothing_are_those_of_pytorch() {
    let golden = Golden::open();
    golden.hold::<ssd::Ssd>(&["mlp.ssd", "cnn.ssd", "convnet.ssd"]);
    golden.hold::<lfssd::LossFreeSsd>(&["mlp.lfssd", "convnet.lfssd"]);
    golden.hold::<ntk::Ntk>(&["mlp.ntk.head", "mlp.ntk.all", "cnn.ntk.all"]);
    golden.hold::<influence::Influence>(&[
        "mlp.influence.first",
        "mlp.influence.first.head",
        "mlp.influence.second",
        "mlp.influence.second.head",
        "cnn.influence.second",
    ]);
    golden.hold::<scrub::Scrub>(&["mlp.scrub", "cnn.scrub"]);
    golden.hold::<gradient_ascent::GradientAscent>(&["mlp.gradient-ascent", "cnn.gradient-ascent"]);
    golden.hold::<neggrad::NegGrad>(&["mlp.neggrad", "cnn.neggrad"]);
    golden.hold::<sparse::Sparse>(&["mlp.sparse", "cnn.sparse"]);
    golden.hold::<distillation::Distillation>(&["mlp.distillation"]);
    golden.hold::<prune::Prune>(&["mlp.prune"]);
    golden.hold::<boundary_shrink::BoundaryShrink>(&["mlp.boundary-shrink"]);
}

#[test]
fn random_labels_are_those_of_pytorch() {
    let golden = Golden::open();
    let labels = |name: &str| -> Vec<Vec<u32>> {
        let given = golden.whole(&format!("{name}.given"));
        given.chunks(golden.task(name).forget.len()).map(|labels| labels.iter().map(|&label| label as u32).collect()).collect()
    };
    for name in ["mlp.random-label", "cnn.random-label"] {
        let (parameters, labels) = (golden.checked::<random_label::RandomLabel>(name), labels(name));
        let network = random_label::relabel_as(&parameters, &mut golden.task(name), None, |epoch| labels[epoch].clone()).unwrap();
        golden.compare(name, &network);
    }
    for name in ["mlp.salun", "cnn.salun"] {
        let (parameters, labels, mut task) = (golden.checked::<salun::SalUn>(name), labels(name), golden.task(name));
        let mask = salun::salient(parameters.saliency, &task).unwrap();
        let network = random_label::relabel_as(&parameters.relabelling(), &mut task, Some(mask), |epoch| labels[epoch].clone()).unwrap();
        golden.compare(name, &network);
    }
}

#[test]
fn fisher_is_that_of_pytorch() {
    let golden = Golden::open();
    for name in ["mlp.fisher", "cnn.fisher"] {
        let (parameters, task) = (golden.checked::<fisher::Fisher>(name), golden.task(name));
        let mut network = task.original().unwrap();
        let rows: Vec<usize> = (0..task.retain.len()).collect();
        let information = fisher::information(&network, &task.retain, &rows).unwrap();
        let noise = shaped(&network, &golden.given(name));
        fisher::perturb(&mut network, &information, &noise, &parameters, &[]).unwrap();
        golden.compare(name, &network);
    }
}

#[test]
fn jit_is_that_of_pytorch() {
    let golden = Golden::open();
    for name in ["mlp.jit", "mlp.jit.accumulated", "cnn.jit"] {
        let (parameters, task) = (golden.checked::<jit::Jit>(name), golden.task(name));
        let mut network = task.original().unwrap();
        let rows: Vec<usize> = (0..task.forget.len()).collect();
        let noise = RefCell::new(golden.given(name).into_iter());
        let draw = |_: usize, images: &Tensor| {
            let values = noise.borrow_mut().by_ref().take(images.elem_count()).map(|value| value as f32).collect();
            Tensor::from_vec(values, images.dims(), images.device())
        };
        jit::smooth(&mut network, &task.forget, &rows, &parameters, draw).unwrap();
        golden.compare(name, &network);
    }
}

#[test]
fn woodfisher_is_that_of_pytorch() {
    let golden = Golden::open();
    let name = "mlp.woodfisher";
    let order: Vec<usize> = golden.whole(&format!("{name}.given")).into_iter().map(|row| row as usize).collect();
    let network = woodfisher::moved(&golden.checked::<woodfisher::WoodFisher>(name), &golden.task(name), &order).unwrap();
    golden.compare(name, &network);
}

/// In train mode batch normalisation takes the bias before it out again, so that its slope is rounding, of which Adam makes steps; they end in running averages.
const WITHOUT_SLOPE: [&str; 4] = ["features.0.bias", "features.1.running_mean", "features.4.bias", "features.5.running_mean"];

/// The batches of each epoch, as passes over forget and retain samples draw them.
fn batches(task: &Task, purpose: &str, (epochs, share, size): (usize, f64, usize)) -> Vec<Vec<Vec<usize>>> {
    let (forget, retain) = (task.forget.len(), task.retain.len());
    let of_epoch = |epoch: usize| {
        let drawn = course::drawn(&task.streams, "draw", epoch, retain, share).into_iter().map(|row| forget + row);
        in_batches(task, purpose, epoch, &(0..forget).chain(drawn).collect::<Vec<_>>(), size)
    };
    (0..epochs).map(of_epoch).collect()
}

fn in_batches(task: &Task, purpose: &str, epoch: usize, rows: &[usize], size: usize) -> Vec<Vec<usize>> {
    let rows = course::shuffled(&task.streams, purpose, epoch, rows);
    course::batches(&rows, size).into_iter().map(<[usize]>::to_vec).collect()
}

#[test]
fn bad_teacher_is_that_of_pytorch() {
    let golden = Golden::open();
    for name in ["mlp.bad-teacher", "cnn.bad-teacher"] {
        let (parameters, mut task) = (golden.checked::<bad_teacher::BadTeacher>(name), golden.task(name));
        let drawn = batches(&task, "bad teacher", (parameters.epochs, parameters.share, parameters.batch));
        golden.given_what_is(name, &json!({ "batches": drawn }));
        let (mut weights, mut state) = (golden.given(name).into_iter(), task.original().unwrap().to_tensors().unwrap());
        for tensor in state.values_mut() {
            if let Stored::F32(array) = tensor {
                array.data.iter_mut().for_each(|value| *value = weights.next().unwrap() as f32);
            }
        }
        let bad = Network::from_tensors(&golden.cases[name.split('.').next().unwrap()], &state).unwrap();
        let network = bad_teacher::taught_by(&bad, &parameters, &mut task).unwrap();
        golden.compare_within(TOLERANCE, &WITHOUT_SLOPE, name, &network);
    }
}

#[test]
fn amnesiac_is_that_of_pytorch() {
    let golden = Golden::open();
    for name in ["mlp.amnesiac", "cnn.amnesiac"] {
        let (parameters, mut task) = (golden.checked::<amnesiac::Amnesiac>(name), golden.task(name));
        let targets = amnesiac::wrong_labels(&task).unwrap();
        let labels = task.forget.clone().with_targets(targets).unwrap().labels().to_vec();
        let drawn = batches(&task, "amnesiac", (parameters.epochs, parameters.share, parameters.batch));
        golden.given_what_is(name, &json!({ "labels": labels, "batches": drawn }));
        golden.compare_within(TOLERANCE, &WITHOUT_SLOPE, name, &amnesiac::Amnesiac::unlearn(&parameters, &mut task).unwrap());
    }
}

#[test]
fn accelerated_methods_are_those_of_pytorch() {
    let golden = Golden::open();
    for name in [
        "mlp.accelerated.finetune",
        "mlp.accelerated.sparse",
        "mlp.accelerated.scrub",
        "mlp.accelerated.pooled",
        "cnn.accelerated.finetune",
    ] {
        let (parameters, mut task) = (golden.checked::<accelerated::Accelerated>(name), golden.task(name));
        let (unseen, retain) = (task.unseen("test").unwrap(), task.retain.len());
        let beside = (accelerated::BESIDE * parameters.batch).min(task.forget.len());
        let of_epoch = |epoch: usize| {
            let mut stream = task.streams.indexed("groups", epoch as u64);
            let all: Vec<usize> = (0..task.forget.len()).collect();
            let max = in_batches(&task, "max", epoch, &all, parameters.batch);
            let max = if parameters.variant == accelerated::Variant::Scrub { max } else { vec![] };
            let rows = in_batches(&task, "accelerated", epoch, &course::drawn(&task.streams, "draw", epoch, retain, 1.0), parameters.batch);
            let steps = rows.into_iter().map(|rows| {
                let [own, other] = accelerated::groups(&mut stream, &task.forget, &unseen, beside);
                json!([rows, own, other])
            });
            json!({ "max": max, "steps": steps.collect::<Vec<_>>() })
        };
        let drawn = json!({ "epochs": (0..parameters.epochs).map(of_epoch).collect::<Vec<_>>() });
        golden.given_what_is(name, &drawn);
        let network = accelerated::Accelerated::unlearn(&parameters, &mut task).unwrap();
        // The divergence of retain samples counts little.
        golden.compare_within(TOLERANCE / 10.0, &[], name, &network);
    }
}

#[test]
fn silver_linings_is_that_of_pytorch() {
    let golden = Golden::open();
    for name in ["mlp.silver-linings", "cnn.silver-linings"] {
        let given = golden.given(name);
        let (level, weights) = given.split_last().unwrap();
        let attacker = silver_linings::Attacker::of(&weights.iter().map(|&value| value as f32).collect::<Vec<_>>()).unwrap();
        let parameters = golden.checked::<silver_linings::SilverLinings>(name);
        golden.compare(name, &silver_linings::taught(&parameters, &mut golden.task(name), &attacker, *level).unwrap());
    }
}

/// What each method must do, whatever the data.
mod ladder {
    use super::*;
    use crate::methods::{boundary_expand, random_k, top_k};

    fn unlearned<M: Unlearn>(case: &str, parameters: Value) -> Network {
        let checked = M::check(serde_json::from_value(parameters).unwrap()).map_err(|error| format!("{error:?}")).unwrap();
        M::unlearn(&checked, &mut Golden::open().task(case)).unwrap()
    }

    fn original(case: &str) -> Network {
        Golden::open().task(case).original().unwrap()
    }

    #[test]
    fn with_a_full_mask_salun_is_random_label() {
        let settings = json!({ "epochs": 3, "share": 0.8, "batch": 2 });
        let mut masked = settings.clone();
        masked["saliency"] = json!(1.0);
        for case in ["mlp", "cnn", "convnet"] {
            let (plain, salient) =
                (unlearned::<random_label::RandomLabel>(case, settings.clone()), unlearned::<salun::SalUn>(case, masked.clone()));
            assert_eq!(plain.to_tensors().unwrap(), salient.to_tensors().unwrap(), "{case}");
        }
    }

    #[test]
    fn what_changes_nothing_changes_nothing() {
        for case in ["mlp", "cnn", "convnet"] {
            let before = original(case).to_tensors().unwrap();
            let networks = [
                ("ssd", unlearned::<ssd::Ssd>(case, json!({ "alpha": 1e30 }))),
                ("lfssd", unlearned::<lfssd::LossFreeSsd>(case, json!({ "alpha": 1e30 }))),
                ("jit", unlearned::<jit::Jit>(case, json!({ "lr": 0.0 }))),
                ("fisher", unlearned::<fisher::Fisher>(case, json!({ "alpha": 0.0 }))),
                ("top-k", unlearned::<top_k::TopK>(case, json!({ "selected": 0.0, "epochs": 0 }))),
                ("random-k", unlearned::<random_k::RandomK>(case, json!({ "strength": 0.0, "epochs": 0 }))),
            ];
            for (method, network) in networks {
                assert_eq!(network.to_tensors().unwrap(), before, "{method} on {case}");
            }
        }
    }

    #[test]
    fn what_does_not_train_leaves_the_buffers_alone_and_moves_parameters() {
        let networks = [
            ("ssd", unlearned::<ssd::Ssd>("cnn", json!({ "alpha": 1.1 }))),
            ("lfssd", unlearned::<lfssd::LossFreeSsd>("cnn", json!({ "alpha": 1.1 }))),
            ("jit", unlearned::<jit::Jit>("cnn", json!({ "lr": 0.1 }))),
            ("fisher", unlearned::<fisher::Fisher>("cnn", json!({}))),
            ("ntk", unlearned::<ntk::Ntk>("cnn", json!({ "parameters": "all" }))),
            ("influence", unlearned::<influence::Influence>("cnn", json!({ "order": "first", "parameters": "all" }))),
            ("woodfisher", unlearned::<woodfisher::WoodFisher>("cnn", json!({}))),
            ("top-k", unlearned::<top_k::TopK>("cnn", json!({ "epochs": 0, "selected": 0.5 }))),
            ("random-k", unlearned::<random_k::RandomK>("cnn", json!({ "epochs": 0, "selected": 0.5 }))),
            ("prune", unlearned::<prune::Prune>("cnn", json!({ "epochs": 1, "density": 0.5, "modes": "published" }))),
        ];
        let before = original("cnn").to_tensors().unwrap();
        let is_buffer = |name: &str| name.contains("running") || name.contains("num_batches");
        for (method, network) in networks {
            let after = network.to_tensors().unwrap();
            let changed: Vec<&String> = after.keys().filter(|name| after[*name] != before[*name]).collect();
            assert!(!changed.is_empty(), "{method}");
            assert!(changed.iter().all(|name| !is_buffer(name)), "{method}: {changed:?}");
        }
    }

    #[test]
    fn noise_goes_to_the_selected_weights_alone_and_so_does_their_repair() {
        let count = |network: &Network| -> (usize, usize) {
            let pairs: Vec<bool> = floating(&original("mlp"))
                .zip(floating(network))
                .flat_map(|((_, before), (_, after))| {
                    before.into_iter().zip(after).map(|(before, after)| before != after).collect::<Vec<_>>()
                })
                .collect();
            (pairs.iter().filter(|changed| **changed).count(), pairs.len())
        };
        for epochs in [0, 3] {
            let settings = json!({ "selected": 0.25, "only_selected": true, "epochs": epochs });
            let (changed, all) = count(&unlearned::<top_k::TopK>("mlp", settings.clone()));
            assert_eq!(changed, (0.25 * all as f64).round() as usize);
            let (changed, _) = count(&unlearned::<random_k::RandomK>("mlp", settings));
            assert!(changed > all / 8 && changed < all / 2, "{changed} of {all}");
        }
    }

    #[test]
    fn what_is_pruned_stays_pruned() {
        for score in ["magnitude", "synflow"] {
            let network = unlearned::<prune::Prune>("cnn", json!({ "score": score, "density": 0.3, "epochs": 3, "lr": 0.05 }));
            let (mut zeros, mut all) = (0, 0);
            for (name, values) in floating(&network) {
                // Those of convolutions and linear layers.
                if name.ends_with("weight") && !["features.1.", "features.5."].iter().any(|norm| name.starts_with(norm)) {
                    zeros += values.iter().filter(|value| **value == 0.0).count();
                    all += values.len();
                }
            }
            assert_eq!(zeros, all - (0.3 * all as f64).round() as usize, "{score}");
        }
    }

    #[test]
    fn the_additional_class_is_taken_out_again() {
        let before = original("convnet");
        let network = unlearned::<boundary_expand::BoundaryExpand>("convnet", json!({ "lr": 0.05 }));
        assert_eq!(network.architecture(), before.architecture());
        let shapes = |network: &Network| {
            network.to_tensors().unwrap().into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect::<Vec<_>>()
        };
        assert_eq!(shapes(&network), shapes(&before));
        // Away from the classes that there are.
        let task = Golden::open().task("convnet");
        let own = |network: &Network| -> f64 {
            let judged = dcu_nn::evaluate::judge(network, &task.forget).unwrap();
            task.forget.labels().iter().enumerate().map(|(row, &label)| f64::from(judged.logits.row(row)[label as usize])).sum()
        };
        assert!(own(&network) < own(&before) - 0.1, "{} {}", own(&network), own(&before));
    }

    #[test]
    fn the_rows_of_a_class_that_is_gone_become_noise() {
        let task = Golden::open().task("mlp");
        let parameters = fisher::Fisher::check(serde_json::from_value(json!({ "alpha": 0.0, "clear_classes": true })).unwrap());
        let parameters = parameters.map_err(|error| format!("{error:?}")).unwrap();
        let mut network = task.original().unwrap();
        let information = fisher::information(&network, &task.retain, &[0, 1]).unwrap();
        let ones = information.map(|_, tensor| tensor.ones_like()).unwrap();
        let before: BTreeMap<String, Vec<f32>> = floating(&network).collect();
        fisher::perturb(&mut network, &information, &ones, &parameters, &[1]).unwrap();
        let after: BTreeMap<String, Vec<f32>> = floating(&network).collect();
        let deviation = 1e-3_f32.sqrt();
        for (place, (before, after)) in before["linear3.weight"].iter().zip(&after["linear3.weight"]).enumerate() {
            let expected = if place / 4 == 1 { deviation } else { *before };
            assert!((after - expected).abs() < 1e-6, "{place}: {after} {expected}");
        }
        assert_eq!(before["linear1.weight"], after["linear1.weight"]);
    }

    #[test]
    fn a_system_that_is_too_large_is_refused_with_what_would_do() {
        let mut task = Golden::open().task("mlp");
        let rows: Vec<usize> = (0..2000).map(|row| row % task.retain.len()).collect();
        let values = Array::new([&[2000], task.retain.shape()].concat(), task.retain.values(&rows));
        task.retain = dcu_nn::Samples::of_values(values, vec![0; 2000]).unwrap();
        let parameters = ntk::Ntk::check(serde_json::from_value(json!({ "parameters": "all" })).unwrap());
        let error = ntk::Ntk::unlearn(&parameters.map_err(|error| format!("{error:?}")).unwrap(), &mut task).unwrap_err();
        assert!(error.to_string().contains("2003 samples of 3 classes make a system of 6009 equations"), "{error}");
    }

    /// A convex head, trained to its minimum: taking samples back is training without them.
    #[test]
    fn influence_on_the_last_layer_comes_near_to_retraining_it() {
        let mut task = Golden::open().task("mlp");
        let (forget, retain) = (task.forget.clone(), task.retain.clone());
        let together = dcu_nn::Samples::joined(&[&retain, &retain, &retain, &retain, &retain, &retain, &forget]).unwrap();
        let damping = 0.05;
        let fitted = |network: &Network, samples: &dcu_nn::Samples, damping: f64| -> Vec<f64> {
            // Newton's method on the mean loss with weight decay.
            let mut network = network.duplicate().unwrap();
            for _ in 0..20 {
                let head = crate::head::Head::read(&network, samples).unwrap();
                let (count, said) = (samples.len() as f64, head.probabilities());
                let gradient = head.split(head.gradient(&samples.probabilities(3))).unwrap().scaled(1.0 / count).unwrap();
                let own = Trainable::which(network.graph(), |_, slot| gradient.get(&slot.name).is_some());
                let values = algebra::values(&network, &own).unwrap().map(|_, tensor| tensor.to_dtype(dcu_nn::DType::F64)).unwrap();
                let slope = gradient.plus(damping, &values).unwrap();
                let product = |direction: &Gradients| {
                    let image = head.curvature(&said, &head.joined(direction)?);
                    head.split(image).map_err(dcu_nn::Error::wrap)?.scaled(1.0 / count)
                };
                let solved = dcu_nn::derivatives::conjugate_gradients(product, &slope, damping, 1e-10, 100).unwrap();
                algebra::shift(&mut network, -1.0, &solved.solution).unwrap();
            }
            floating(&network).filter(|(name, _)| name.starts_with("linear3")).flat_map(|(_, values)| values).map(f64::from).collect()
        };
        let start = task.original().unwrap();
        // The weight decay of the sum stays.
        let of_fewer = damping * together.len() as f64 / (together.len() - forget.len()) as f64;
        let (with, without) = (fitted(&start, &together, damping), fitted(&start, &retain, of_fewer));
        let mut at_minimum = start.duplicate().unwrap();
        let bias = Tensor::new(&with[..3], &dcu_nn::Device::Cpu).unwrap();
        let weight = Tensor::from_vec(with[3..].to_vec(), (3, 4), &dcu_nn::Device::Cpu).unwrap();
        at_minimum.set(&[("linear3.bias".to_owned(), bias), ("linear3.weight".to_owned(), weight)].into_iter().collect()).unwrap();
        task.model = model::to_artifact(&at_minimum, &Recipe::default(), &task.dataset).unwrap();
        task.retain = dcu_nn::Samples::joined(&[&retain, &retain, &retain, &retain, &retain, &retain]).unwrap();
        let parameters = influence::Influence::check(serde_json::from_value(json!({ "damping": damping })).unwrap());
        let found = influence::Influence::unlearn(&parameters.map_err(|error| format!("{error:?}")).unwrap(), &mut task).unwrap();
        let found: Vec<f64> =
            floating(&found).filter(|(name, _)| name.starts_with("linear3")).flat_map(|(_, values)| values).map(f64::from).collect();
        let apart = |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(left, right)| (left - right).powi(2)).sum::<f64>().sqrt();
        let (before, after) = (apart(&with, &without), apart(&found, &without));
        println!("distance from retraining: {before:.4} before, {after:.4} after");
        assert!(after < 0.25 * before, "{after} {before}");
    }
}
