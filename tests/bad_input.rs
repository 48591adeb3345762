//! Bad input: exit code 1, the place, the cause and the remedy, and nothing half-written.

use std::path::Path;

use dcu_tests::{Finished, Project, SMALL, program};

/// Everything in the store that a person could take for a result.
fn results(store: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![store.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                open.push(path);
            } else if !path.to_string_lossy().contains("/locks/") {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

/// Runs `SMALL` after an edit; all of `expected` must be in the error, and nothing in the store.
#[track_caller]
fn refused(old: &str, new: &str, expected: &[&str]) {
    assert!(SMALL.contains(old), "`{old}` is not in the pipeline");
    let project = Project::new(&SMALL.replacen(old, new, 1));
    let error = project.xtask("run", &[]).failure();
    for part in expected {
        assert!(error.contains(part), "`{part}` is not in:\n{error}");
    }
    assert_eq!(results(&project.store()), Vec::<String>::new());
}

/// The line of `SMALL` that holds a text, from 1, and the column of the text, from 1.
fn place(text: &str) -> String {
    let (number, line) = SMALL.lines().enumerate().find(|(_, line)| line.contains(text)).unwrap();
    format!("pipeline.yaml:{}:{}", number + 1, line.find(text).unwrap() + 1)
}

#[test]
fn mistakes_in_a_pipeline_are_found_before_anything_runs() {
    refused("epochs: 5", "epohcs: 5", &["`fit` has no parameter `epohcs`", "did you mean `epochs`?", &place("epochs: 5")]);
    refused("label: original", "lable: original", &["unknown key `lable`", "did you mean `label`?", &place("label: original")]);
    refused("seeds: [1]", "seed: [1]", &["unknown key `seed`", "did you mean `seeds`?", "pipeline.yaml:3:1"]);
    refused("epochs: 5", "epochs: many", &["`base`: parameter `epochs`: invalid type: string \"many\"", &place("5, batch")]);
    refused("epochs: 5", "epochs: 0", &["parameter `epochs`"]);
    refused("model: mlp", "model: mpl", &["unknown variant `mpl`", "`mlp`"]);
    refused("train/fit", "train/fti", &["there is no method `train/fti`", "did you mean `train/fit`?", &place("train/fit")]);
    refused(
        "model: offline, buckets",
        "model: ofline, buckets",
        &["there is no stage `ofline`", "did you mean `offline`?", &place("offline, buckets")],
    );
    refused(
        "dataset: data.train, model: base }, with: { k",
        "dataset: data.trian, model: base }, with: { k",
        &["`data` has no output `trian`"],
    );
    refused(
        "dataset: data.train, model: base }, with: { k",
        "dataset: data, model: base }, with: { k",
        &["`data` has several outputs", "`data.train`"],
    );
    refused("model: base }, with: { k: 4 }", "model: holdout }, with: { k: 4 }", &["needs model/1, but `holdout` gives holdout/1"]);
    refused("in: { train: data.train, test: data.test }", "in: { train: data.train }", &["`holdout` needs the input `test` (dataset/1)"]);
    refused("model: offline, reduced: reduced", "modell: offline, reduced: reduced", &["has no input `modell`", "did you mean `model`?"]);
    refused("[base, modular, retrain]", "[base, moduler]", &["there is no stage `moduler`"]);
    refused("\"${of}\"", "\"${off}\"", &["`off` is no key of this stage's matrix"]);
    refused("{ per_class: 20 }", "{ source: parquet, path: nowhere }", &["nowhere", "pipeline.yaml:5:64", "help: "]);
    refused("version: 1", "version: 9", &["version 1, not 9", "pipeline.yaml:1:10"]);
    refused("stages:", "stages: [", &["this is no YAML", "pipeline.yaml:"]);
}

#[test]
fn a_cycle_is_named() {
    let cyclic = "in: { dataset: data.train, model: modular }, with: { iterations: 1 }";
    let project = Project::new(
        &SMALL.replace("in: { dataset: data.train, test: data.test, holdout: holdout, model: base }, with: { iterations: 1 }", cyclic),
    );
    let error = project.xtask("run", &[]).failure();
    assert!(error.contains("stages wait for each other in a cycle: ") && error.contains("offline needs modular"), "{error}");
}

#[test]
fn mistakes_on_the_command_line_are_found() {
    let project = Project::new(SMALL);
    let refused = |more: &[&str], expected: &str| {
        let error = project.xtask("run", more).failure();
        assert!(error.contains(expected), "`{expected}` is not in:\n{error}");
    };
    refused(&["--set", "requst.ratio=0.2"], "did you mean `request`?");
    refused(&["--set", "request.ratoi=0.2"], "--> --set request.ratoi=0.2");
    refused(&["--set", "request.ratio=2"], "--> --set request.ratio=2");
    refused(&["--set", "request"], "write `--set STAGE.PARAMETER=VALUE`");
    let error = Finished::of(program("xtask").args(["run", "pipelines/quickstrat.yaml"])).failure();
    assert!(
        error.contains("cannot read `pipelines/quickstrat.yaml`") && error.contains("did you mean `pipelines/quickstart.yaml`?"),
        "{error}"
    );
}

/// Runs `SMALL` with settings; it must fail at `stage` with all of `expected`, and leave no record of that stage.
#[track_caller]
fn fails_at(stage: &str, settings: &[&str], expected: &[&str]) {
    let project = Project::new(SMALL);
    let more: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let finished = project.xtask("run", &more);
    assert!(!finished.ran().iter().any(|name| name.starts_with(stage)), "{}", finished.stderr);
    let error = finished.failure();
    for part in expected {
        assert!(error.contains(part), "`{part}` is not in:\n{error}");
    }
    assert!(error.contains("pipeline.yaml:"), "no place in:\n{error}");
    let left = std::fs::read_dir(project.store().join("v1/drafts")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "a draft was left behind");
}

#[test]
fn impossible_requests_are_refused() {
    fails_at("request", &["request.ratio=0.001"], &["the forget set", "empty"]);
    fails_at("request", &["request.scenario=class", "request.classes=[0,1,2,3,4,5,6,7,8,9]"], &["everything"]);
    fails_at("request", &["request.scenario=class", "request.classes=[77]"], &["77"]);
    fails_at("request", &["request.scenario=poisoned"], &["swapped"]);
    fails_at("buckets", &["buckets.k=21"], &["21", "20"]);
}

#[test]
fn an_unknown_id_in_a_deletion_request_is_refused() {
    let project = Project::new(SMALL);
    let file = project.path("ids.csv");
    let refused = |text: &str, expected: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let setting = format!("request.file={}", file.display());
        let error = project.xtask("run", &["--set", "request.scenario=ids", "--set", &setting]).failure();
        for part in expected {
            assert!(error.contains(part), "`{part}` is not in:\n{error}");
        }
    };
    refused("id\ntrain:4294967\n", &["names an unknown id: `train:4294967`", "ids.csv"]);
    refused("id\nnonsense\n", &["`nonsense` is no sample id", "ids.csv"]);
    refused("name\nx\n", &["`id`", "ids.csv"]);
    refused("id\n", &["empty"]);
    std::fs::remove_file(&file).unwrap();
    let setting = format!("request.file={}", file.display());
    let error = project.xtask("run", &["--set", "request.scenario=ids", "--set", &setting]).failure();
    assert!(error.contains("ids.csv") && error.contains("--> --set request.file"), "{error}");
}

#[test]
fn broken_images_and_labels_are_refused() {
    let project = Project::new(SMALL);
    let folder = project.path("images");
    for class in ["cat", "dog"] {
        std::fs::create_dir_all(folder.join(class)).unwrap();
        std::fs::write(folder.join(class).join("a.png"), b"this is no image").unwrap();
    }
    let path = format!("data.path={}", folder.display());
    let error = project.xtask("run", &["--set", "data.source=folder", "--set", &path, "--set", "data.per_class=null"]).failure();
    assert!(error.contains("cannot be decoded") && error.contains("cat/a.png"), "{error}");

    let binary = project.path("binary");
    std::fs::create_dir_all(&binary).unwrap();
    let row = |label: u8| [&[label][..], &[0; 3072]].concat();
    std::fs::write(binary.join("data_batch_1.bin"), [row(3), row(200)].concat()).unwrap();
    std::fs::write(binary.join("test_batch.bin"), row(1)).unwrap();
    let path = format!("data.path={}", binary.display());
    let error = project.xtask("run", &["--set", "data.source=cifar-binary", "--set", &path, "--set", "data.per_class=null"]).failure();
    assert!(error.contains("label 200") && error.contains("row 1") && error.contains("data_batch_1.bin"), "{error}");
    assert_eq!(results(&project.store()), Vec::<String>::new());
}

#[test]
fn an_impossible_network_is_refused_with_the_reason() {
    fails_at("base", &["base.model=cnn", "base.widths=[4,4,4,4,4,4]"], &["32"]);
}

/// A file size limit makes writes fail in the middle, as a full disk does, for root too.
#[cfg(unix)]
#[test]
fn a_store_that_fills_up_is_told_and_left_whole() {
    let project = Project::new(SMALL);
    let limited = |blocks: u32| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let mut command = std::process::Command::new("sh");
        command.current_dir(dcu_tests::workspace()).args(["-c", &script, "sh"]);
        command.arg(dcu_tests::programs().join("dcu-data")).arg("load").arg("--seed").arg("1");
        for output in ["train", "test"] {
            command.arg("--out").arg(format!("{output}={}", project.path(&format!("{output}.safetensors")).display()));
        }
        Finished::of(&mut command)
    };
    let error = limited(64).failure();
    assert!(error.contains("cannot write") && error.contains("train.safetensors") && error.contains("help: "), "{error}");
    let left: Vec<_> = std::fs::read_dir(project.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["pipeline.yaml"], "something was left behind");
    limited(1 << 20).success();
}

#[cfg(target_os = "linux")]
#[test]
fn a_store_that_cannot_be_written_to_is_told() {
    let project = Project::new(SMALL);
    let run = |store: &str| Finished::of(program("xtask").arg("run").arg(project.pipeline()).args(["--store", store])).failure();
    let error = run("/proc/store");
    assert!(error.contains("cannot create `/proc/store"), "{error}");
    std::fs::write(project.path("file"), "").unwrap();
    let error = run(&project.path("file").display().to_string());
    assert!(error.contains("cannot create `"), "{error}");
}
