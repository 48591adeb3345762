//! What README.md tells a user to type works.

use std::path::Path;
use std::process::Command;

use dcu_tests::{Finished, Project, SMALL, program, programs, row, workspace};
use serde_json::Value;

/// A `cargo` that knows one subcommand, `xtask`, and keeps its results in a store of this test. What would take hours or needs the hub is
/// planned and checked whole, but not run.
const CARGO: &str = r#"#!/bin/sh
[ "$1" = xtask ] || exit 0
shift
command=$1
case " $* " in
  *" bench "*) exec "$XTASK" bench --help ;;
  *" pipelines/quickstart.yaml "*) ;;
  *" run pipelines/"*" data.source="*) set -- "$@" --dry-run ;;
  *" run pipelines/"*) set -- "$@" --dry-run --set data.source=parquet --set data.path=FOLDER ;;
esac
case $command in
  run | status | metrics | times | regress | verify | results | graph | export) set -- "$@" --store store ;;
  inspect) case $2 in *.yaml) set -- "$@" --store store ;; esac ;;
  list) ;;
  *) echo "the test does not know whether \`$command\` reads a store" >&2; exit 1 ;;
esac
exec "$XTASK" "$@"
"#;

fn readme() -> String {
    std::fs::read_to_string(workspace().join("README.md")).unwrap()
}

/// The lines of README's code blocks, continued ones joined.
fn code_lines() -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in readme().lines().filter_map(|line| line.strip_prefix("    ")) {
        match lines.last_mut().filter(|last| last.ends_with('\\')) {
            Some(last) => {
                last.pop();
                last.push_str(line.trim_start());
            }
            None => lines.push(line.to_owned()),
        }
    }
    lines
}

/// A folder as a user has it: the pipelines, some files of his own, and a shell whose `cargo` is [`CARGO`].
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        let pipelines = desk.folder.path().join("pipelines");
        std::fs::create_dir_all(pipelines.join("baselines")).unwrap();
        for folder in ["pipelines", "pipelines/baselines"] {
            for entry in std::fs::read_dir(workspace().join(folder)).unwrap().flatten().filter(|entry| entry.path().is_file()) {
                std::fs::copy(entry.path(), desk.folder.path().join(folder).join(entry.file_name())).unwrap();
            }
        }
        desk.write("bin/cargo", CARGO);
        #[cfg(unix)]
        std::fs::set_permissions(
            desk.folder.path().join("bin/cargo"),
            <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755),
        )
        .unwrap();
        desk.write("deletions.csv", "id\ntrain:0\n");
        desk.write("pick.py", "");
        let [private, public] = dcu_tests::KEYS;
        desk.write("private.pem", private);
        desk.write("public.pem", public);
        desk.write("weights.pth", "");
        desk.write("FOLDER/data_batch_1.bin", &"\0".repeat(3073));
        desk.write("FOLDER/train-images-idx3-ubyte", "");
        desk.write("FOLDER/train-labels-idx1-ubyte", "");
        let digits = workspace().join("crates/tables/data");
        for name in ["train.parquet", "test.parquet"] {
            std::fs::create_dir_all(desk.folder.path().join("FOLDER")).unwrap();
            std::fs::copy(digits.join(name), desk.folder.path().join("FOLDER").join(name)).unwrap();
        }
        desk
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn type_in(&self, line: &str) -> Finished {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", self.folder.path().join("bin").display());
        Finished::of(
            Command::new("sh")
                .args(["-c", line])
                .current_dir(self.folder.path())
                .env("PATH", path)
                .env("XTASK", programs().join("xtask"))
                .env("CARGO_MANIFEST_DIR", workspace().join("xtask"))
                .env("CARGO", std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
        )
    }
}

#[test]
fn every_command_works_as_written() {
    let desk = Desk::new();
    let commands: Vec<String> = code_lines().into_iter().filter(|line| line.starts_with("cargo xtask ")).collect();
    assert!(commands.len() > 10, "README names few commands: {commands:?}");
    for command in &commands {
        let finished = desk.type_in(command);
        assert_eq!(finished.code, Some(0), "`{command}` failed:\n{}\n{}", finished.stdout, finished.stderr);
        if command.contains(" bench") {
            let flags: Vec<&str> = command.split_whitespace().filter(|word| word.starts_with("--")).collect();
            assert!(flags.iter().all(|flag| finished.stdout.contains(flag)), "`{command}` has flags that do not exist");
        }
    }
}

#[test]
fn every_setting_works_as_written() {
    let desk = Desk::new();
    let settings: Vec<String> = code_lines().into_iter().filter(|line| line.starts_with("--set ")).collect();
    assert!(settings.len() >= 4, "README names few settings: {settings:?}");
    for setting in &settings {
        let line = setting.replace("path=FILE", "path=FOLDER/train.parquet");
        let flags = line.split("  ").next().unwrap();
        desk.type_in(&format!("HF_HOME=nowhere cargo xtask run pipelines/quickstart.yaml {flags} --dry-run")).success();
    }
}

#[test]
fn every_line_of_a_pipeline_works_as_written() {
    let desk = Desk::new();
    let stages: Vec<String> =
        code_lines().into_iter().filter(|line| line.contains(": { uses: ") || line.contains(": { command: ")).collect();
    assert!(stages.len() >= 2, "README shows few stages: {stages:?}");
    for stage in &stages {
        let name = stage.split(':').next().unwrap().trim();
        let (shown, own) = (format!("  {}", stage.trim()), SMALL.lines().find(|line| line.starts_with(&format!("  {name}:"))));
        // In the place of a stage of its name, or beside the others.
        let pipeline = own.map_or_else(|| format!("{SMALL}{shown}\n"), |own| SMALL.replace(own, &shown));
        desk.write("pipeline.yaml", &pipeline);
        desk.type_in("cargo xtask run pipeline.yaml --dry-run").success();
    }
}

#[test]
fn one_setting_swaps_any_unlearning_method_for_any_other() {
    let methods: Value = serde_json::from_str(&Finished::of(program("xtask").args(["list", "--json"])).success().stdout).unwrap();
    // What is prepared for them before any request takes no request, and `exact` and `sisa` need sums or shards that go with a model of their own.
    let wires = ["model", "dataset", "request", "retain", "test", "holdout", "ensemble"];
    let unlearns = |method: &Value| {
        let inputs = method["inputs"].as_array().unwrap();
        let is_there = |input: &Value| input["optional"] == true || wires.contains(&input["name"].as_str().unwrap());
        inputs.iter().any(|input| input["name"] == "request") && inputs.iter().all(is_there)
    };
    let methods = methods.as_object().unwrap().iter().filter(|(_, method)| unlearns(method));
    let methods: Vec<&str> = methods.filter_map(|(name, _)| name.strip_prefix("unlearn/")).collect();
    assert!(methods.len() >= 20);
    // As README's pipelines have it: no parameter of one method is in the way of another.
    let small = SMALL.replace("    with: { overture: 2 }\n", "").replace("retain: reduced,", "retain: reduced, ensemble: folds,");
    // `accelerated` compares with unseen samples.
    let small = small.replace("{ ipc: 5 }", "{ ipc: 5, validation_per_class: 5 }");
    let folds = "  folds:     { uses: train/ensemble, in: { dataset: data.train, model: base } }\n  request: ";
    let project = Project::new(&small.replace("  request: ", folds));
    for method in methods {
        let swap = format!("modular.uses=unlearn/{method}");
        project.xtask("run", &["--set", &swap]).success();
        let rows = project.metrics(&["--set", &swap]);
        assert!(row(&rows, method)["test_accuracy"].is_number(), "{swap}");
    }
}

/// Figures of tables are checked where they are made (`regress`); here only that README's first table is the one that quickstart prints.
#[test]
fn the_first_table_is_of_the_accepted_results() {
    let accepted = std::fs::read_to_string(workspace().join("pipelines/baselines/quickstart.yaml")).unwrap();
    let percent = |instance: &str, name: &str| {
        let block = accepted.split(&format!("  {instance}:\n")).nth(1).unwrap_or_else(|| panic!("no {instance}"));
        let line = block.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}: "))).unwrap();
        format!("{:.1}", 100.0 * line.parse::<f64>().unwrap())
    };
    let text = readme();
    for (method, instance) in [
        ("original", "evaluate@base#42"),
        ("modular", "evaluate@modular#42"),
        ("match", "evaluate@match#42"),
        ("finetune", "evaluate@baseline@finetune#42"),
        ("retrain", "evaluate@baseline@retrain#42"),
        ("null", "evaluate@null#42"),
    ] {
        let line = text.lines().find(|line| line.starts_with(&format!("| {method} "))).unwrap_or_else(|| panic!("no line of {method}"));
        for name in ["retain_accuracy", "forget_accuracy", "test_accuracy", "mia_accuracy"] {
            let value = percent(instance, name);
            assert!(
                line.contains(&format!(" {value} ")) || line.contains(&format!(" {value} [")),
                "{method} {name} is {value}, not as in {line}"
            );
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for (position, _) in readme().match_indices("](") {
        let text = &readme()[position + 2..];
        let target = text.split(')').next().unwrap();
        assert!(target.starts_with("https://") || Path::new(&workspace().join(target)).exists(), "README links to `{target}`");
    }
}
