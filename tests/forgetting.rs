//! What the method promises of its parts: no forgotten sample behind the reduced set, frozen parts untouched, classes really forgotten.

use std::collections::BTreeSet;
use std::path::Path;

use dcu_artifact::{Buckets, Condensed, Dataset, Model, Payload, Request, Retain, Tensor};
use dcu_tests::{Finished, Project, SMALL, program, row};

fn read<P: Payload>(path: &Path) -> P {
    dcu_artifact::read(path).unwrap().0
}

/// A small CNN, whose buffers could move, instead of the MLP.
fn small_cnn() -> String {
    SMALL.replace("model: mlp, widths: [16, 8]", "model: cnn, widths: [4, 4, 8, 8], hidden: 16")
}

#[test]
fn no_forgotten_sample_is_behind_the_reduced_set() {
    let project = Project::new(SMALL);
    project.xtask("run", &["--set", "request.ratio=0.05"]).success();
    let artifact = |name: &str| project.artifact(name, &["--set", "request.ratio=0.05"]);
    let request: Request = read(&artifact("request#1"));
    let buckets: Buckets = read(&artifact("buckets#1"));
    let condensed: Condensed = read(&artifact("condensed#1"));
    let reduced: Retain = read(&artifact("reduced#1"));
    let forgotten: BTreeSet<u64> = request.forget.iter().copied().collect();
    assert!(!reduced.ids.is_empty() && !reduced.condensed_buckets.is_empty(), "both kinds of rows are there");
    assert!(reduced.ids.iter().all(|id| !forgotten.contains(id)));
    let members = buckets.members();
    for &bucket in &reduced.condensed_buckets {
        assert!(members[bucket as usize].iter().all(|&row| !forgotten.contains(&buckets.ids[row])));
        let position = condensed.bucket.iter().position(|&other| other == bucket).unwrap();
        assert!(condensed.members[position].ids.iter().all(|id| !forgotten.contains(id)));
    }
    // Every retained sample is behind the set, by itself or through its bucket.
    let free: usize = reduced.condensed_buckets.iter().map(|&bucket| members[bucket as usize].len()).sum();
    assert_eq!(free + reduced.ids.len(), request.retain.len());
}

#[test]
fn the_pixels_of_forgotten_samples_do_not_reach_the_reduced_set() {
    let project = Project::new(&small_cnn());
    let setting = ["--set", "request.ratio=0.05"];
    project.xtask("run", &setting).success();
    let artifact = |name: &str| project.artifact(name, &setting);
    let request: Request = read(&artifact("request#1"));
    let (mut dataset, header) = dcu_artifact::read::<Dataset>(&artifact("data.train")).unwrap();
    let width = dataset.images.row_len();
    for row in dataset.rows_of(&request.forget).unwrap() {
        dataset.images.data[row * width..(row + 1) * width].iter_mut().for_each(|pixel| *pixel = 255 - *pixel / 2);
    }
    let perturbed = project.path("perturbed.safetensors");
    dcu_artifact::write(&perturbed, &dataset, &header.provenance).unwrap();

    // The model and the buckets are held fixed; the condensation and the reduction see the other pixels.
    let stage = |method: &str, inputs: &[(&str, &Path)], output: (&str, &str), parameters: &str| {
        let path = project.path(output.1);
        let parameters_file = project.path("parameters.yaml");
        std::fs::write(&parameters_file, parameters).unwrap();
        let mut command = program("dcu-condense");
        command.arg(method).arg("--params").arg(parameters_file);
        command.args(inputs.iter().flat_map(|(name, path)| ["--in".to_owned(), format!("{name}={}", path.display())]));
        Finished::of(command.arg("--out").arg(format!("{}={}", output.0, path.display()))).success();
        path
    };
    let (offline, buckets, asked) = (artifact("offline#1"), artifact("buckets#1"), artifact("request#1"));
    let inputs: [(&str, &Path); 3] = [("dataset", &perturbed), ("model", &offline), ("buckets", &buckets)];
    let condensed = stage("fdm", &inputs, ("condensed", "condensed.safetensors"), "{ steps: 5 }");
    let inputs: [(&str, &Path); 4] = [("dataset", &perturbed), ("request", &asked), ("buckets", &buckets), ("condensed", &condensed)];
    let reduced = stage("reduce", &inputs, ("retain", "reduced.safetensors"), "{}");

    assert_ne!(
        read::<Condensed>(&condensed).images,
        read::<Condensed>(&artifact("condensed#1")).images,
        "the pixels should have mattered so far"
    );
    let (left, right) = (read::<Retain>(&reduced).to_content().tensors, read::<Retain>(&artifact("reduced#1")).to_content().tensors);
    assert!(left.keys().eq(right.keys()));
    for (name, tensor) in &left {
        assert!(tensor.to_bytes() == right[name].to_bytes(), "`{name}` depends on the forgotten pixels");
    }
}

/// The tensors whose values differ, by layer.
fn moved(before: &Model, after: &Model) -> BTreeSet<String> {
    assert!(before.tensors.keys().eq(after.tensors.keys()));
    let differs = |name: &&String| before.tensors[*name].to_bytes() != after.tensors[*name].to_bytes();
    before.tensors.keys().filter(differs).cloned().collect()
}

/// All tensors of a small CNN's parts: blocks of two layers each in beginning and intermediate.
fn part(model: &Model, layers: &[&str]) -> BTreeSet<String> {
    let within = |name: &&String| layers.iter().any(|layer| name.starts_with(layer));
    model.tensors.keys().filter(within).cloned().collect()
}

const BEGINNING: [&str; 4] = ["features.0.", "features.1.", "features.4.", "features.5."];
const INTERMEDIATE: [&str; 4] = ["features.8.", "features.9.", "features.12.", "features.13."];
const FINAL: [&str; 1] = ["classifier."];

#[test]
fn frozen_parts_are_bit_identical_buffers_included() {
    let project = Project::new(&small_cnn());
    let model = |name: &str, settings: &[&str]| read::<Model>(&project.artifact(name, settings));
    project.xtask("run", &[]).success();
    let (base, offline, modular) = (model("base#1", &[]), model("offline#1", &[]), model("modular#1", &[]));
    assert_eq!(base.tensors.values().filter(|tensor| matches!(tensor, Tensor::I64(_))).count(), 4, "there are counters to watch");

    // Offline, the beginning is frozen.
    let changed = moved(&base, &offline);
    assert!(changed.is_disjoint(&part(&base, &BEGINNING)), "{changed:?}");
    assert!(part(&base, &FINAL).is_subset(&changed) && !changed.is_disjoint(&part(&base, &INTERMEDIATE)), "{changed:?}");

    // In the overture, the intermediate.
    let settings = ["--set", "modular.intermediate_epochs=0"];
    project.xtask("run", &settings).success();
    let overture = model("modular#1", &settings);
    let changed = moved(&offline, &overture);
    assert!(changed.is_disjoint(&part(&base, &INTERMEDIATE)), "{changed:?}");
    assert!(!changed.is_disjoint(&part(&base, &BEGINNING)) && !changed.is_disjoint(&part(&base, &FINAL)), "{changed:?}");

    // After it, all else; the overture is the same in both runs.
    let changed = moved(&overture, &modular);
    assert!(changed.is_subset(&part(&base, &INTERMEDIATE)) && !changed.is_empty(), "{changed:?}");
}

#[test]
fn a_forgotten_class_is_forgotten() {
    let pipeline = SMALL
        .replace("per_class: 20", "per_class: 60")
        .replace("widths: [16, 8], epochs: 5, batch: 32", "widths: [64, 32], epochs: 30, batch: 64")
        .replace("overture: 2", "overture: 30")
        .replace(
            "in: { dataset: data.train, holdout: holdout } }",
            "in: { dataset: data.train, holdout: holdout }, with: { scenario: class, classes: [3] } }",
        );
    let project = Project::new(&pipeline);
    project.xtask("run", &[]).success();
    let rows = project.metrics(&[]);
    let score = |method: &str, name: &str| row(&rows, method)[name].as_f64().unwrap_or_else(|| panic!("{method} has no {name}"));
    assert!(score("original", "forget_accuracy") > 0.95);
    assert_eq!(score("retrain", "forget_accuracy"), 0.0);
    assert!(score("modular", "forget_accuracy") < 0.2, "{}", score("modular", "forget_accuracy"));
    assert!(score("modular", "test_forgotten_accuracy") < 0.2);
    assert!(score("modular", "test_accuracy") > 0.7 && score("retrain", "test_accuracy") > 0.8);

    // Taught by all classes' anchors, as published, it is not.
    let published = ["--set", "modular.anchors=all-classes"];
    project.xtask("run", &published).success();
    let rows = project.metrics(&published);
    assert!(row(&rows, "modular")["forget_accuracy"].as_f64().unwrap() > score("modular", "forget_accuracy") + 0.2);
}

#[test]
fn a_deletion_request_names_samples_and_adds_to_an_earlier_one() {
    let more = "  second:    { uses: data/request, in: { dataset: data.train, previous: request }, with: { scenario: ids, file: more.csv } }\n  reduced:";
    let pipeline = SMALL.replace("  reduced:", more).replace("request: request", "request: second");
    let project = Project::new(&pipeline);
    std::fs::write(project.path("more.csv"), "id\ntrain:0\n").unwrap();
    let drawn: Dataset = {
        project.xtask("run", &["--only", "data"]).success();
        read(&project.artifact("data.train", &[]))
    };
    let name = |row: usize| dcu_artifact::SampleId(drawn.ids[row]).to_string();
    std::fs::write(project.path("first.csv"), format!("reason,id\nasked,{}\nasked,{}\n", name(17), name(3))).unwrap();
    std::fs::write(project.path("more.csv"), format!("id\n{}\n", name(40))).unwrap();
    let settings = ["--set", "request.scenario=ids", "--set", &format!("request.file={}", project.path("first.csv").display())];
    project.xtask("run", &settings).success();
    let first: Request = read(&project.artifact("request#1", &settings));
    assert_eq!(first.forget, [drawn.ids[3], drawn.ids[17]]);
    assert!(!first.facts.cumulative);
    let second: Request = read(&project.artifact("second#1", &settings));
    assert_eq!(
        (second.forget.as_slice(), second.earlier.as_slice(), second.facts.cumulative),
        ([drawn.ids[40]].as_slice(), first.forget.as_slice(), true)
    );
    let reduced: Retain = read(&project.artifact("reduced#1", &settings));
    let buckets: Buckets = read(&project.artifact("buckets#1", &settings));
    let gone = [drawn.ids[3], drawn.ids[17], drawn.ids[40]];
    let members = buckets.members();
    for &bucket in &reduced.condensed_buckets {
        assert!(members[bucket as usize].iter().all(|&row| !gone.contains(&buckets.ids[row])), "an earlier forgotten sample came back");
    }
    assert!(reduced.ids.iter().all(|id| !gone.contains(id)));

    // What was forgotten earlier is scored as well.
    let rows = project.metrics(&settings);
    assert!(rows.iter().all(|row| row["earlier_accuracy"].is_f64() && row["forget_accuracy"].is_f64()), "{rows:?}");
}

#[test]
fn a_class_that_goes_by_its_ids_is_counted_apart_like_one_that_goes_by_name() {
    let project = Project::new(SMALL);
    let by_name = ["--set", "request.scenario=class", "--set", "request.classes=[3]"];
    project.xtask("run", &by_name).success();
    let drawn: Dataset = read(&project.artifact("data.train", &by_name));
    let ids = (0..drawn.len()).filter(|&row| drawn.labels[row] == 3).map(|row| format!("{}\n", dcu_artifact::SampleId(drawn.ids[row])));
    let file = project.path("class.csv");
    std::fs::write(&file, format!("id\n{}", ids.collect::<String>())).unwrap();
    let by_ids = ["--set", "request.scenario=ids", "--set", &format!("request.file={}", file.display())];
    let run = project.xtask("run", &by_ids).success();
    assert!(run.stdout.contains("test forgotten %"), "{}", run.stdout);
    let (named, listed) = (project.metrics(&by_name), project.metrics(&by_ids));
    for name in ["forget_accuracy", "test_accuracy", "test_forgotten_accuracy"] {
        let score = |rows: &[serde_json::Value]| row(rows, "retrain")[name].as_f64().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(score(&named), score(&listed), "{name}");
    }
}

#[test]
fn one_setting_swaps_the_unlearning_method_and_what_it_does_not_read_costs_nothing() {
    let project = Project::new(&SMALL.replace("    with: { overture: 2 }\n", ""));
    project.xtask("run", &[]).success();
    for method in ["finetune", "retrain"] {
        let setting = ["--set", &format!("modular.uses=unlearn/{method}")];
        let run = project.xtask("run", &setting).success();
        assert!(run.ran().contains(&"modular#1") && run.ran().contains(&"report"), "{}", run.stderr);
    }
    project.xtask("run", &["--set", "retrain.uses=unlearn/scrub", "--only", "retrain"]).success();
    // Holdout and test set are there for recipes that choose by validation samples.
    let inputs = |instance: &str| {
        let header = dcu_artifact::Header::read(&project.artifact(instance, &[])).unwrap();
        header.provenance.inputs.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(inputs("retrain#1"), ["dataset", "holdout", "model", "request", "test"]);
    assert_eq!(inputs("modular#1"), ["dataset", "holdout", "model", "request", "retain", "test"]);
    // A wire that is not read leaves no trace, but still has a schema.
    let ascent = ["--set", "modular.uses=unlearn/gradient-ascent"];
    project.xtask("run", &ascent).success();
    let header = dcu_artifact::Header::read(&project.artifact("modular#1", &ascent)).unwrap();
    assert_eq!(header.provenance.inputs.into_keys().collect::<Vec<_>>(), ["dataset", "model", "request"]);
    let wrong = ["--set", "modular.uses=unlearn/gradient-ascent", "--set", "modular.in.retain=buckets"];
    let error = project.xtask("run", &wrong).failure();
    assert!(error.contains("this input needs retain/1, but `buckets` gives buckets/1"), "{error}");
}

#[test]
fn the_points_of_a_matrix_are_rows_of_their_own() {
    let one = "  request:   { uses: data/request, in: { dataset: data.train, holdout: holdout } }\n";
    assert!(SMALL.contains(one));
    let two = "  request:   { matrix: { ratio: [0.1, 0.3] }, uses: data/request, in: { dataset: data.train, holdout: holdout }, with: { ratio: \"${ratio}\" } }\n";
    let project = Project::new(&SMALL.replace(one, two));
    let run = project.xtask("run", &["--set", "seeds=[1,2]"]).success();
    for expected in ["\nmodular, ratio 0.1 ", "\nmodular, ratio 0.3 ", "\nretrain, ratio 0.1 ", "\noriginal, ratio 0.3 "] {
        assert!(run.stdout.contains(expected), "`{expected}` is not in:\n{}", run.stdout);
    }
}
