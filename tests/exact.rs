//! What `exact` and `sisa` promise: the model that training without the forgotten samples gives, and a report that says so only where it is true.

use dcu_artifact::{Array, Metrics, Model, Statistics, Tensor};
use dcu_tests::{Project, row};

/// Digits of which some ones and sevens carry each other's label; a dictionary from held-out images beside a network that was trained on the digits.
const PIPELINE: &str = "\
version: 1
name: exact
seeds: [1]
stages:
  data:       { uses: data/load, with: { per_class: 30 } }
  poisoned:   { uses: data/poison, in: { dataset: data.train }, with: { classes: [1, 7], ratio: 0.2 } }
  holdout:    { uses: data/holdout, in: { train: data.train, test: data.test }, with: { ipc: 5, validation_per_class: 5 } }
  dictionary: { uses: train/patches, in: { test: data.test, holdout: holdout }, with: { atoms: 20, patch: 5 } }
  base:       { uses: train/fit, in: { dataset: poisoned }, with: { model: mlp, widths: [16, 8], epochs: 3, batch: 32 } }
  statistics:
    uses: condense/statistics
    in: { dataset: poisoned, model: dictionary, test: data.test, holdout: holdout }
    label: original
  exposed:    { uses: attack/leave-one-out, in: { model: statistics.model, dataset: poisoned, statistics: statistics.statistics } }
  request:    { uses: data/request, in: { dataset: poisoned, holdout: holdout }, with: { scenario: poisoned } }
  exact:      { uses: unlearn/exact, in: { model: statistics.model, dataset: poisoned, request: request, statistics: statistics.statistics } }
  retrain:    { uses: unlearn/retrain, in: { model: statistics.model, dataset: poisoned, request: request } }
  anew:       { uses: condense/statistics, in: { dataset: poisoned, model: dictionary, request: request, test: data.test, holdout: holdout } }
  evaluate:
    matrix: { of: [statistics.model, exact, retrain] }
    uses: attack/evaluate
    in: { model: \"${of}\", dataset: poisoned, test: data.test, holdout: holdout, request: request }
  report:     { uses: report/table, in: { metrics: [evaluate] }, gather: seeds }
";

fn weights(project: &Project, stage: &str, more: &[&str]) -> Array<f32> {
    let (model, _) = dcu_artifact::read::<Model>(&project.artifact(stage, more)).unwrap();
    match &model.tensors["head.weight"] {
        Tensor::F32(array) => array.clone(),
        other => panic!("{other:?}"),
    }
}

/// The largest difference, as a share of the largest weight.
fn difference(one: &Array<f32>, other: &Array<f32>) -> f32 {
    let largest = one.data.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    one.data.iter().zip(&other.data).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max) / largest
}

#[test]
fn a_request_is_served_by_identity_and_the_report_says_what_is_left() {
    let project = Project::new(PIPELINE);
    project.xtask("run", &[]).success();
    let [original, exact, retrain] = ["statistics#1.model", "exact#1", "retrain#1"].map(|stage| weights(&project, stage, &[]));
    // The solutions agree in ten digits and more, the weights in all that f32 has.
    assert!(difference(&retrain, &exact) < 2e-7 && difference(&retrain, &original) > 1e-2);
    let rows = project.metrics(&[]);
    for score in ["retain_accuracy", "forget_accuracy", "test_accuracy", "mia_accuracy"] {
        assert_eq!(row(&rows, "exact")[score], row(&rows, "retrain")[score], "{score}");
    }
    let report = std::fs::read_to_string(project.artifact("report.table", &[])).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(report.contains("Nothing that it rests on learned with the forgotten data, but for the one number `lambda`"), "{report}");

    let (exposed, _) = dcu_artifact::read::<Metrics>(&project.artifact("exposed#1", &[])).unwrap();
    assert_eq!((exposed.arrays["leave_one_out_logits"].shape.as_slice(), exposed.ids["samples"].len()), (&[300, 10][..], 300));
    assert!(exposed.scalars["leave_one_out_accuracy"] < exposed.scalars["training_accuracy"]);
}

#[test]
fn corrected_labels_and_later_requests_go_through_the_same_sums() {
    let project = Project::new(PIPELINE);
    let settings = ["--only", "exact", "--only", "request", "--set", "exact.instead=relabel"];
    project
        .xtask("run", &["--only", "statistics", "--only", "data", "--only", "poisoned", "--only", "holdout", "--only", "dictionary"])
        .success();
    project.xtask("run", &settings).success();
    let relabelled = weights(&project, "exact#1", &settings[4..]);
    project.xtask("run", &["--only", "exact"]).success();
    assert!(difference(&weights(&project, "exact#1", &[]), &relabelled) > 1e-3);

    let later = format!(
        "{PIPELINE}  later:      {{ uses: data/request, in: {{ dataset: poisoned, holdout: holdout, previous: request }}, with: {{ scenario: class, classes: [4] }} }}\n"
    );
    let project = Project::new(&later.replace("request: request", "request: later"));
    let stages = ["data", "poisoned", "holdout", "dictionary", "request", "later", "statistics", "exact", "retrain"];
    project.xtask("run", &stages.map(|stage| ["--only", stage]).concat()).success();
    assert!(difference(&weights(&project, "retrain#1", &[]), &weights(&project, "exact#1", &[])) < 2e-7);
}

#[test]
fn a_trunk_that_was_trained_on_the_data_says_so_and_one_of_other_sums_is_refused() {
    let project = Project::new(&PIPELINE.replace("model: dictionary", "model: base"));
    project.xtask("run", &[]).success();
    let report = std::fs::read_to_string(project.artifact("report.table", &[])).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(report.contains("It still rests on what base learned with the forgotten data"), "{report}");
    let facts = |name: &str| dcu_artifact::read::<Statistics>(&project.artifact(name, &[])).unwrap().0.facts;
    assert!(facts("statistics#1.statistics").trunk_saw_training_data);

    let error = project.xtask("run", &["--set", "exact.in.statistics=anew.statistics"]).failure();
    assert!(error.contains("the sums are over"), "{error}");
    let error = project.xtask("run", &["--set", "exact.in.model=retrain"]).failure();
    assert!(error.contains("another trunk"), "{error}");
}

/// Digits in three shards of two slices each; what is retained trained on anew beside what goes on from the shards.
const SHARDED: &str = "\
version: 1
name: sharded
seeds: [1]
stages:
  data:      { uses: data/load, with: { per_class: 20 } }
  holdout:   { uses: data/holdout, in: { train: data.train, test: data.test }, with: { ipc: 5 } }
  sisa:      { uses: train/sisa, in: { dataset: data.train }, with: { shards: 3, slices: 2, model: cnn, widths: [4, 6], hidden: 8, epochs: 6, batch: 16 } }
  one:       { uses: data/request, in: { dataset: data.train, holdout: holdout }, with: { scenario: random, ratio: 0.01 } }
  request:   { uses: data/request, in: { dataset: data.train, holdout: holdout, previous: one } }
  first:     { uses: unlearn/sisa, in: { model: sisa.model, dataset: data.train, request: one, shards: sisa.shards } }
  unlearned: { uses: unlearn/sisa, in: { model: sisa.model, dataset: data.train, request: request, shards: sisa.shards } }
  first-anew:
    uses: train/sisa
    in: { dataset: data.train, request: one }
    with: { shards: 3, slices: 2, model: cnn, widths: [4, 6], hidden: 8, epochs: 6, batch: 16 }
  anew:
    uses: train/sisa
    in: { dataset: data.train, request: request }
    with: { shards: 3, slices: 2, model: cnn, widths: [4, 6], hidden: 8, epochs: 6, batch: 16 }
  evaluate:
    matrix: { of: [sisa.model, unlearned, anew.model] }
    uses: attack/evaluate
    in: { model: \"${of}\", dataset: data.train, test: data.test, holdout: holdout, request: request }
  report:    { uses: report/table, in: { metrics: [evaluate] }, gather: seeds }
";

#[test]
fn shards_that_go_on_from_before_a_request_are_those_of_training_without_it() {
    let project = Project::new(SHARDED);
    project.xtask("run", &[]).success();
    let model = |stage: &str| dcu_artifact::read::<Model>(&project.artifact(stage, &[])).unwrap().0;
    // The second request holds the first one too.
    assert_eq!(model("first#1"), model("first-anew#1.model"));
    assert_eq!(model("unlearned#1"), model("anew#1.model"));
    assert!(model("sisa#1.model") != model("first#1") && model("first#1") != model("unlearned#1"));
    let report = std::fs::read_to_string(project.artifact("report.table", &[])).unwrap();
    assert!(!report.contains("still rests on"), "{report}");

    // What is trained as a whole is one network to all other methods.
    project.xtask("run", &["--set", "unlearned.uses=unlearn/finetune"]).success();
    let error = project.xtask("run", &["--set", "unlearned.in.model=first"]).failure();
    assert!(error.contains("not the one that these shards make together"), "{error}");
}
