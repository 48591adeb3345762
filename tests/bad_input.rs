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
    refused("in: { model: offline, dataset", "in: { modell: offline, dataset", &["has no input `modell`", "did you mean `model`?"]);
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

/// One program from outside: what becomes of a pipeline shows in a moment.
const OUTSIDE: &str = "\
version: 1
name: outside
seeds: [1]
stages:
  note: { command: [sh, write.sh], code: [write.sh], out: { text: file/txt } }
";

/// Writes its parameters to its only output.
const WRITE: &str = r#"
while [ $# -gt 0 ]; do
    case "$1" in
        --params) parameters=$2 ;;
        --out) output=${2#*=} ;;
    esac
    shift
done
cat "$parameters" > "$output"
"#;

fn outside(old: &str, new: &str) -> Project {
    assert!(OUTSIDE.contains(old), "`{old}` is not in the pipeline");
    let project = Project::new(&OUTSIDE.replacen(old, new, 1));
    std::fs::write(project.path("write.sh"), WRITE).unwrap();
    project
}

#[test]
fn names_that_would_reach_elsewhere_are_refused() {
    let refused = |old: &str, new: &str, expected: &[&str]| {
        let project = outside(old, new);
        let error = project.xtask("run", &[]).failure();
        for part in expected.iter().chain(&["pipeline.yaml:", "help: "]) {
            assert!(error.contains(part), "`{part}` is not in:\n{error}");
        }
        let left: Vec<_> = std::fs::read_dir(project.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 2, "something was written: {left:?}");
    };
    let output = "{ text: file/txt }";
    refused(output, "{ \"../../../x\": file/txt }", &["letters, digits, `-` and `_`"]);
    refused(output, "{ /tmp/x: file/txt }", &["letters, digits, `-` and `_`"]);
    refused(output, "{ text: file/txt, Text: file/csv }", &["only in capitals"]);
    refused("note:", "\"a#1\":", &["`a#1` cannot be the name of this stage", "pipeline.yaml:5:3"]);
    refused("note:", &format!("{}:", "n".repeat(300)), &["300 characters, but may have 64"]);
    refused("name: outside", "name: ../up", &["`../up` cannot be the name of this pipeline"]);
    for schema in ["file/", "file/.", "file/json/../x"] {
        let error = outside(output, &format!("{{ text: {schema} }}")).xtask("run", &[]).failure();
        assert!(error.contains("1 to 16 letters and digits") && error.contains("pipeline.yaml:5:"), "{error}");
    }
}

#[test]
fn any_matrix_value_runs() {
    let long = "x".repeat(300);
    let matrix =
        format!("matrix: {{ repo: [uoft-cs/cifar10, \"a#1@b\", {long}] }}, with: {{ repo: \"${{repo}}\", as_is: \"$${{repo}}\" }}");
    let project = outside("command:", &format!("{matrix}, command:"));
    let run = project.xtask("run", &[]).success();
    let ran = run.ran();
    assert_eq!(ran[..2], ["note@uoft-cs%2Fcifar10#1", "note@a%231%40b#1"], "{}", run.stderr);
    assert!(ran[2].len() < 64 && ran[2].starts_with("note@xxx"), "{}", run.stderr);
    assert!(run.stdout.contains(r#"{"repo":"uoft-cs/cifar10","as_is":"${repo}"}"#), "{}", run.stdout);
    assert_eq!(project.xtask("run", &[]).success().ran(), Vec::<&str>::new());
    assert!(project.store().join("reports/outside/note@uoft-cs%2Fcifar10#1.txt").is_file());
}

#[test]
fn a_name_of_many_values_does_not_fail_after_the_work() {
    let keys: String = (0..10).map(|key| format!("k{key}: [{}], ", "v".repeat(40))).collect();
    let project = outside("command:", &format!("matrix: {{ {keys} }}, command:"));
    assert!(project.xtask("run", &[]).success().ran()[0].len() > 400);
    assert_eq!(project.xtask("run", &[]).success().ran(), Vec::<&str>::new());
    let run = project.xtask("run", &["--set", "note.more=1"]).success();
    assert!(run.stderr.contains("`more`"), "it does not know what it had last: {}", run.stderr);
}

#[test]
fn code_and_schemas_take_matrix_values() {
    let project = outside("[write.sh]", "[\"${script}\"], matrix: { script: [write.sh], kind: [txt] }");
    let text = std::fs::read_to_string(project.pipeline()).unwrap();
    std::fs::write(project.pipeline(), text.replace("file/txt", "\"file/${kind}\"")).unwrap();
    assert_eq!(project.xtask("run", &[]).success().ran(), ["note@write.sh@txt#1"]);
    std::fs::write(project.path("write.sh"), format!("{WRITE}# more\n")).unwrap();
    let run = project.xtask("run", &[]).success();
    assert!(run.ran().len() == 1 && run.stderr.contains("code of write.sh"), "{}", run.stderr);
}

#[test]
fn what_is_no_pipeline_file_is_told_apart() {
    let project = outside("name:", "name:");
    let refused = |path: &Path, expected: &[&str]| {
        let error = Finished::of(program("xtask").arg("run").arg(path)).failure();
        for part in expected {
            assert!(error.contains(part), "`{part}` is not in:\n{error}");
        }
        assert!(error.len() < 3000, "{} bytes", error.len());
    };
    let wrong = |bytes: &[u8], expected: &[&str]| {
        let path = project.path("wrong.yaml");
        std::fs::write(&path, bytes).unwrap();
        refused(&path, expected);
    };
    let utf16: Vec<u8> = std::iter::once(0xfeff).chain(OUTSIDE.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    wrong(&utf16, &["UTF-16", "help: save it with the encoding UTF-8"]);
    wrong(b"version: 1\nname: caf\xe9\n", &["line 2", "help: save it with the encoding UTF-8"]);
    wrong(" ".repeat((1 << 20) + 1).as_bytes(), &["longer than 1048576 bytes"]);
    wrong(format!("a: {}", "[".repeat(100_000)).as_bytes(), &["deeper than 64 levels", "wrong.yaml:1:"]);
    wrong(format!("{OUTSIDE}{}: 1\n", "k".repeat(1000)).as_bytes(), &["unknown key `kkk", "wrong.yaml:6:1"]);
    let long = OUTSIDE.replace("version: 1", &format!("version: {}", "v".repeat(500_000)));
    wrong(long.as_bytes(), &["version 1, not \"vvv", "wrong.yaml:1:10"]);
    let keys: String = (0..100_000).map(|key| format!("k{key}: 1\n")).collect();
    wrong(format!("{OUTSIDE}{keys}").as_bytes(), &["unknown key `k0`", "... and 99980 more"]);
    wrong(format!("{OUTSIDE}seed: 18446744073709551616\n").as_bytes(), &["between", "18446744073709551615", "wrong.yaml:6:7"]);
    refused(&project.path(""), &["it is a folder, not a file"]);
    #[cfg(unix)]
    {
        assert!(std::process::Command::new("mkfifo").arg(project.path("pipe")).status().unwrap().success());
        refused(&project.path("pipe"), &["it is a pipe (FIFO), not a file"]);
        let error = Finished::of(program("xtask").arg("inspect").arg(project.path("pipe"))).failure();
        assert!(error.contains("it is a pipe (FIFO), not a file"), "{error}");
    }

    // A byte-order mark is none of these, and moves no column.
    let marked = outside("version:", "\u{feff}version:");
    marked.xtask("run", &[]).success();
    std::fs::write(marked.pipeline(), "\u{feff}version: 2\nname: a\nstages: { a: { uses: train/fit } }\n").unwrap();
    assert!(marked.xtask("run", &[]).failure().contains("pipeline.yaml:1:10"));
}

#[test]
fn a_plan_that_is_too_large_is_refused_before_it_is_made() {
    let project = outside("name:", "name:");
    let refused = |setting: &str, expected: &str| {
        let error = project.xtask("run", &["--set", setting]).failure();
        assert!(error.contains(expected) && error.contains("--> --set "), "`{expected}` is not in:\n{error}");
    };
    let list = |count: usize| format!("[{}]", (0..count).map(|number| number.to_string()).collect::<Vec<_>>().join(","));
    refused(&format!("seeds={}", list(10_001)), "at most 10000");
    refused(&format!("note.matrix.k={}", list(10_001)), "this matrix makes 10001 instances; a pipeline has at most 10000");
    refused("seeds=[-1]", "from 0 to 18446744073709551615");
    refused("note.seed=-1", "from 0 to 18446744073709551615");
    refused("note.seed=18446744073709551616", "18446744073709551615");
    refused(&format!("note.x={}", "[".repeat(50_000)), "deeper than 64 levels");
    let graph = project.xtask("graph", &["--set", &format!("note.matrix.k={}", list(10_000))]).success();
    assert!(graph.stdout.contains("10000"), "{}", graph.stdout);
}

#[test]
fn every_part_of_a_stage_can_be_set() {
    let project = Project::new(SMALL);
    let needs = |settings: &[&str]| {
        let more: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let stdout = project.xtask("graph", &more).success().stdout;
        stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert!(needs(&["retrain.in.model=offline"]).contains(&"retrain unlearn/retrain 1 data holdout offline request".to_owned()));
    assert!(needs(&["evaluate.matrix.of=[base, retrain]"]).contains(&"report report/table 1 evaluate".to_owned()));
    assert!(needs(&["evaluate.matrix.of=[base, retrain]"]).iter().any(|line| line.starts_with("evaluate attack/evaluate 2 ")));
    assert!(needs(&["report.in.metrics=[evaluate]", "seeds=[1, 2]"]).contains(&"report report/table 1 evaluate".to_owned()));
    let refused = |setting: &str, expected: &[&str]| {
        let error = project.xtask("run", &["--set", setting]).failure();
        for part in expected.iter().copied().chain([format!("--> --set {setting}").as_str()]) {
            assert!(error.contains(part), "`{part}` is not in:\n{error}");
        }
    };
    refused("retrain.in.modle=base", &["`retrain` has no input `modle`", "did you mean `model`?"]);
    refused("retrain.in.model=bose", &["there is no stage `bose`", "did you mean `base`?"]);
    refused("retrain.in.model=data.train", &["needs model/1, but `data.train` gives dataset/1"]);
    refused("report.in.metrics=[evaluate, evaluaet]", &["there is no stage `evaluaet`", "did you mean `evaluate`?"]);
    refused("base.lable=x", &["`fit` has no parameter `lable`", "did you mean `label`?"]);
    refused("base.label=a/b", &["cannot be the name of this label"]);
    refused("base.in=data", &["name an input"]);
    refused("evaluate.gather=all", &["`gather` can only be `seeds`"]);
    refused("base.widths.0=4", &["set `widths` whole"]);
    refused("base.epochs=0", &["parameter `epochs`"]);
}

#[test]
fn only_what_is_asked_for_needs_its_outside_files() {
    let old = "uses: train/fit, in: { dataset: data.train }, with: { model: mlp,";
    assert!(SMALL.contains(old));
    let project =
        Project::new(&SMALL.replace(old, "uses: train/import, in: { dataset: data.train }, with: { path: later.safetensors, model: mlp,"));
    assert_eq!(project.xtask("run", &["--only", "data", "--only", "holdout"]).success().ran(), ["data", "holdout"]);
    project.xtask("status", &[]).success();
    let all = project.xtask("inspect", &[]).success().stdout;
    assert!(all.contains("base  is not up to date") && all.contains("later.safetensors"), "{all}");
    for more in [&[][..], &["--only", "base"], &["--only", "report"], &["--from", "modular"]] {
        let error = project.xtask("run", more).failure();
        assert!(error.contains("later.safetensors") && error.contains("pipeline.yaml:7:"), "{more:?}: {error}");
    }
    // A parameter that is wrong is wrong for all.
    let error = project.xtask("run", &["--only", "data", "--set", "base.batch=0"]).failure();
    assert!(error.contains("parameter `batch`"), "{error}");
}

#[test]
fn a_command_that_is_mistyped_is_guessed() {
    let finished = Finished::of(program("xtask").arg("rnu"));
    assert!(finished.code == Some(2) && finished.stderr.contains("a similar subcommand exists: 'run'"), "{}", finished.stderr);
}

#[test]
fn results_are_found_by_pipeline_stage_and_output() {
    let project = Project::new(SMALL);
    project.xtask("run", &["--only", "data", "--only", "holdout"]).success();
    let inspect = |more: &[&str]| project.xtask("inspect", more);
    let all = inspect(&[]).success().stdout;
    assert!(
        all.contains("data  train (dataset/1") && all.contains("holdout  holdout (") && all.contains("base#1  is not up to date"),
        "{all}"
    );
    let one = inspect(&["data.train", "--json"]).success().stdout;
    assert!(one.contains("train.safetensors") || one.contains("\"output\": \"train\""), "{one}");
    assert!(!one.contains("\"output\": \"test\""), "{one}");
    assert!(inspect(&["data.trian"]).failure().contains("did you mean `train`?"));
    assert!(inspect(&["base"]).failure().contains("`base#1` is not up to date"));

    let refused = |name: &str, bytes: &[u8], expected: &str| {
        std::fs::write(project.path(name), bytes).unwrap();
        let error = Finished::of(program("xtask").arg("inspect").arg(project.path(name))).failure();
        assert!(error.contains(expected) && error.contains(name), "`{expected}` is not in:\n{error}");
    };
    refused("a.png", b"\x89PNG\r\n\x1a\n", "it seems to be a PNG image");
    refused("a.csv", b"id\ntrain:1\n", "it seems to be plain text");
    refused("a.pt", b"PK\x03\x04........", "a ZIP archive; weights that PyTorch has written enter through `train/import`");
    refused("a.safetensors", b"", "is damaged");
    let error = Finished::of(program("xtask").arg("inspect").arg(project.path(""))).failure();
    assert!(error.contains("it is a folder, not a file"), "{error}");
}

#[test]
fn the_numbers_of_metrics_are_shown_with_what_they_mean() {
    let project = Project::new(SMALL);
    project.xtask("run", &["--set", "evaluate.matrix.of=[base]"]).success();
    let path = project.artifact("evaluate", &["--set", "evaluate.matrix.of=[base]"]);
    let shown = Finished::of(program("xtask").arg("inspect").arg(&path)).success().stdout;
    let metrics = dcu_artifact::Metrics::read(&path).unwrap();
    for (name, value) in &metrics.scalars {
        let line = shown
            .lines()
            .find(|line| line.trim_start().starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("no `{name}`:\n{shown}"));
        let known = &metrics.definitions[name];
        assert!(line.contains(&value.to_string()) && line.contains(&known.unit) && line.ends_with(known.definition.trim_end()), "{line}");
    }
    let (name, array) = metrics.arrays.iter().next().unwrap();
    assert!(shown.lines().any(|line| line.contains(name) && line.contains(&format!("{:?}", array.shape))), "{shown}");
    let json = Finished::of(program("xtask").arg("inspect").arg(&path).arg("--json")).success().stdout;
    assert!(json.contains("\"scalars\": {") && json.contains("\"test_accuracy\": "), "{json}");
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
    let drafts = std::fs::read_dir(project.store().join("v2/drafts")).expect("stages were run");
    assert_eq!(drafts.count(), 0, "a draft was left behind");
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
        for part in expected.iter().chain(&["--> --set request.file="]) {
            assert!(error.contains(part), "`{part}` is not in:\n{error}");
        }
    };
    refused("id\ntrain:4294967\n", &["names an unknown id: `train:4294967`", "ids.csv"]);
    refused("id\nnonsense\n", &["`nonsense` is no sample id", "ids.csv"]);
    refused("name\nx\n", &["`id`", "ids.csv"]);
    refused("id\n", &["names no sample"]);
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
    fails_at("base", &["base.model=cnn", "base.widths=[4,4,4,4,4,4]"], &["64 x 64 pixels at least, not 32 x 32"]);
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
