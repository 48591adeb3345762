//! The cache: what changes runs again, what does not is taken from the store, and no damage goes unnoticed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use dcu_tests::{Finished, Project, SMALL, artifacts, program, row};

#[test]
fn a_changed_parameter_runs_its_stage_and_what_depends_on_its_content() {
    let project = Project::new(SMALL);
    let all = project.xtask("run", &[]).success().ran().len();
    assert_eq!(all, 14);

    // In an MLP nothing depends on the mode, so the offline model comes out the same, and the work is cut off there. The report shows what
    // it cost this time.
    let run = project.xtask("run", &["--set", "offline.modes=published"]).success();
    assert_eq!(run.ran(), ["offline#1", "report"], "{}", run.stderr);
    assert!(run.stderr.contains(r#"(`modes` "corrected" -> "published")"#), "{}", run.stderr);

    let status = project.xtask("status", &["--set", "modular.overture=3"]).success().stdout;
    assert!(
        status.contains("stale: `overture` 2 -> 3")
            && status.contains("waits for modular#1")
            && status.contains("11 of 14 stages are cached"),
        "{status}"
    );
    let run = project.xtask("run", &["--set", "modular.overture=3"]).success();
    assert_eq!(run.ran(), ["modular#1", "evaluate@modular#1", "report"], "{}", run.stderr);

    // Both results are kept.
    assert_eq!(project.xtask("run", &[]).success().ran(), Vec::<&str>::new());

    // A new seed leaves the data alone.
    let run = project.xtask("run", &["--set", "seeds=[2]"]).success();
    assert_eq!(run.cached(), ["data", "holdout"]);
    let run = project.xtask("run", &["--set", "seeds=[1, 2]"]).success();
    assert_eq!(run.ran(), ["report"], "{}", run.stderr);
    assert!(run.stdout.contains("seeds 1, 2"), "{}", run.stdout);
}

#[test]
fn what_to_run_can_be_chosen() {
    let project = Project::new(SMALL);
    let error = project.xtask("run", &["--only", "base"]).failure();
    assert!(
        error.contains("`base#1` needs `data`, which is not up to date") && !project.store().join("v2/results/train-fit").exists(),
        "{error}"
    );
    let run = project.xtask("run", &["--dry-run"]).success();
    assert!(run.stdout.contains("would run up to 14 of 14") && !project.store().join("v2/results/data-load").exists(), "{}", run.stdout);
    let run = project.xtask("run", &["--only", "data", "--only", "base"]).success();
    assert_eq!(run.ran(), ["data", "base#1"]);
    project.xtask("run", &[]).success();
    let run = project.xtask("run", &["--from", "modular", "--force"]).success();
    assert_eq!(run.ran(), ["modular#1", "evaluate@modular#1", "report"]);
    assert!(!run.stderr.contains("came out different"), "{}", run.stderr);
    let error = project.xtask("run", &["--only", "modulr"]).failure();
    assert!(error.contains("did you mean `modular`?"), "{error}");
}

#[test]
fn damage_in_the_store_is_found_and_mended() {
    let project = Project::new(SMALL);
    project.xtask("run", &[]).success();
    let before = artifacts(&project.store());

    let model = project.artifact("base#1", &[]);
    let bytes = std::fs::read(&model).unwrap();
    std::fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let status = project.xtask("status", &[]).success().stdout;
    assert!(status.contains("stale: its output `model` cannot be used") && status.contains("is damaged"), "{status}");
    let error = Finished::of(program("xtask").arg("inspect").arg(&model)).failure();
    assert!(
        error.contains("is damaged") && error.contains("help: if it lies in the store, delete it and run the pipeline again"),
        "{error}"
    );
    assert_eq!(project.xtask("run", &[]).success().ran(), ["base#1", "report"]);

    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&model, &flipped).unwrap();
    assert_eq!(project.xtask("run", &[]).success().ran(), ["base#1", "report"]);

    std::fs::remove_file(&model).unwrap();
    assert_eq!(project.xtask("run", &[]).success().ran(), ["base#1", "report"]);
    assert!(artifacts(&project.store()) == before, "the mended store is not as it was");

    // Under the old size and time only reading whole finds it: when it is asked for, or when the stage that needs it stumbles.
    let time = std::fs::metadata(&model).unwrap().modified().unwrap();
    let damage_quietly = || {
        std::fs::write(&model, &flipped).unwrap();
        std::fs::File::options().write(true).open(&model).unwrap().set_modified(time).unwrap();
    };
    damage_quietly();
    assert_eq!(project.xtask("run", &[]).success().ran(), Vec::<&str>::new());
    let run = project.xtask("run", &["--verify"]).success();
    assert!(run.ran().contains(&"base#1") && run.stderr.contains("its output `model` cannot be used"), "{}", run.stderr);
    let time = std::fs::metadata(&model).unwrap().modified().unwrap();
    std::fs::write(&model, &flipped).unwrap();
    std::fs::File::options().write(true).open(&model).unwrap().set_modified(time).unwrap();
    let run = project.xtask("run", &["--set", "buckets.k=3"]).success();
    assert!(run.stderr.contains("`model` of `base#1` cannot be used") && run.stderr.contains("it is made again"), "{}", run.stderr);
    assert!(run.ran().starts_with(&["base#1", "buckets#1"]), "{}", run.stderr);
    assert!(std::fs::read(&model).unwrap() == bytes);

    // So are reports.
    assert_eq!(project.xtask("run", &[]).success().ran(), ["report"]);
    let report = project.artifact("report.table", &[]);
    let (text, time) = (std::fs::read(&report).unwrap(), std::fs::metadata(&report).unwrap().modified().unwrap());
    std::fs::write(&report, vec![b'x'; text.len()]).unwrap();
    std::fs::File::options().write(true).open(&report).unwrap().set_modified(time).unwrap();
    assert_eq!(project.xtask("run", &["--verify"]).success().ran(), ["report"]);
    assert_eq!(std::fs::read(&report).unwrap().len(), text.len());

    // A stage that meets a damaged input on its own says so.
    std::fs::write(&model, &flipped).unwrap();
    let data = project.artifact("data.train", &[]);
    let named = |name: &str, path: &std::path::Path| format!("{name}={}", path.display());
    let error = Finished::of(
        program("dcu-condense")
            .args(["cluster", "--seed", "1", "--in", &named("dataset", &data), "--in", &named("model", &model)])
            .args(["--out", &named("buckets", &project.path("buckets.safetensors"))]),
    )
    .failure();
    assert!(error.contains("cannot use the input `model`") && error.contains("is damaged: its content has the digest"), "{error}");
    assert!(!project.path("buckets.safetensors").exists());
}

#[test]
fn a_store_that_cannot_be_written_to_still_gives_its_results() {
    let project = Project::new(SMALL);
    project.xtask("run", &[]).success();
    // Files where folders must be, which stops even the superuser.
    for folder in ["v2/locks", "v2/drafts", "v2/temporary", "v2/pipelines", "reports"] {
        let path = project.store().join(folder);
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, "").unwrap();
    }
    let run = project.xtask("run", &[]).success();
    assert_eq!(run.cached().len(), 14, "{}", run.stderr);
    assert!(run.stdout.contains("retrain") && run.stderr.contains("note: the report is not laid out"), "{}", run.stderr);
    project.xtask("status", &[]).success();
    project.xtask("metrics", &[]).success();
    let error = project.xtask("run", &["--set", "modular.overture=3"]).failure();
    assert!(error.contains("v2/locks"), "{error}");
}

#[test]
fn two_runs_at_once_share_the_work() {
    let project = Project::new(SMALL);
    let start = || project.command("run", &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let both = [start(), start()].map(|child| {
        let output = child.wait_with_output().unwrap();
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
        .success()
    });
    for run in &both {
        assert_eq!(run.ran().len() + run.cached().len(), 14);
    }
    assert_eq!(both[0].ran().len() + both[1].ran().len(), 14, "each result is made once:\n{}\n{}", both[0].stderr, both[1].stderr);
}

/// Kills a stage after its first checkpoint, starts it again, and compares with a run in one go.
#[track_caller]
fn goes_on_after_a_kill(project: &Project, program_name: &str, arguments: &[String], output: &str) {
    let start = |file: &str| {
        let mut command = program(program_name);
        command.args(arguments).args(["--progress", "none", "--out"]).arg(format!("{output}={}", project.path(file).display()));
        command
    };
    Finished::of(&mut start("whole.safetensors")).success();

    let checkpoints = project.path("checkpoints");
    let resumable = || {
        let mut command = start("resumed.safetensors");
        command.arg("--checkpoint").arg(&checkpoints).args(["--checkpoint-seconds", "0"]);
        command
    };
    let mut child = resumable().stdout(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    while !checkpoints.join("checkpoint.safetensors").exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint was written");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!project.path("resumed.safetensors").exists(), "it was killed too late to show anything");
    Finished::of(&mut resumable()).success();
    assert!(std::fs::read(project.path("whole.safetensors")).unwrap() == std::fs::read(project.path("resumed.safetensors")).unwrap());
}

/// The arguments of a stage that runs by hand, its inputs taken from the store.
fn by_hand(project: &Project, method: &str, parameters: &str, inputs: &[(&str, &str)]) -> Vec<String> {
    let file = project.path("parameters.yaml");
    std::fs::write(&file, parameters).unwrap();
    let inputs =
        inputs.iter().flat_map(|(name, artifact)| ["--in".to_owned(), format!("{name}={}", project.artifact(artifact, &[]).display())]);
    [method, "--params", &file.display().to_string()].map(str::to_owned).into_iter().chain(inputs).collect()
}

#[test]
fn killed_stages_go_on_where_they_were_and_end_with_the_same_bytes() {
    let folds = "  folds:     { uses: train/ensemble, in: { dataset: data.train, model: base } }\n  request: ";
    let project = Project::new(&SMALL.replace("  request: ", folds));
    project.xtask("run", &[]).success();
    let seeded = |mut arguments: Vec<String>| {
        arguments.extend(["--seed".to_owned(), "3".to_owned()]);
        arguments
    };
    let parameters = "{ model: cnn, widths: [4, 4, 4, 4], hidden: 8, epochs: 40, batch: 16 }";
    let fit = by_hand(&project, "fit", parameters, &[("dataset", "data.train")]);
    goes_on_after_a_kill(&project, "dcu-train", &seeded(fit), "model");

    let clear = || {
        std::fs::remove_dir_all(project.path("checkpoints")).unwrap();
        std::fs::remove_file(project.path("resumed.safetensors")).unwrap();
    };
    clear();
    let ensemble = by_hand(&project, "ensemble", "{ models: 80 }", &[("dataset", "data.train"), ("model", "base#1")]);
    goes_on_after_a_kill(&project, "dcu-train", &seeded(ensemble), "ensemble");

    clear();
    let inputs = [("model", "base#1"), ("dataset", "data.train"), ("request", "request#1"), ("ensemble", "folds#1")];
    let matched = by_hand(&project, "match", "{ budget: 100 }", &inputs);
    goes_on_after_a_kill(&project, "dcu-unlearn", &seeded(matched), "model");

    clear();
    let inputs = [
        ("model", "offline#1"),
        ("dataset", "data.train"),
        ("request", "request#1"),
        ("retain", "reduced#1"),
        ("test", "data.test"),
        ("holdout", "holdout"),
    ];
    let modular = by_hand(&project, "modular", "{ overture: 300, final_rest: 0.5 }", &inputs);
    goes_on_after_a_kill(&project, "dcu-unlearn", &seeded(modular), "model");
}

#[test]
fn regress_accepts_the_same_and_refuses_what_moved() {
    let project = Project::new(SMALL);
    let error = project.xtask("regress", &[]).failure();
    assert!(error.contains("there is no baseline"), "{error}");
    project.xtask("run", &[]).success();
    project.xtask("regress", &["--update"]).success();
    let baseline = project.path("baselines/small.yaml");
    let accepted = std::fs::read_to_string(&baseline).unwrap();
    assert!(!accepted.contains("seconds"), "{accepted}");
    let stdout = project.xtask("regress", &[]).success().stdout;
    assert!(stdout.contains("are as accepted: equal"), "{stdout}");

    let exact = row(&project.metrics(&[]), "retrain")["test_accuracy"].as_f64().unwrap();
    let moved = accepted.replace(&format!("test_accuracy: {exact}"), &format!("test_accuracy: {}", exact + 0.001));
    assert_ne!(moved, accepted);
    std::fs::write(&baseline, moved).unwrap();
    let finished = project.xtask("regress", &[]);
    assert!(finished.stdout.contains("test_accuracy: ") && finished.stdout.contains("was accepted"), "{}", finished.stdout);
    assert!(finished.failure().contains("accept it with"));

    // Numbers of another model, of other data, and numbers that are not there.
    std::fs::write(&baseline, &accepted).unwrap();
    let finished = project.xtask("regress", &["--set", "modular.overture=3"]);
    assert!(finished.failure().contains("is not up to date"));
    let other_data = ["--set", "data.per_class=19"];
    project.xtask("run", &other_data).success();
    assert!(project.xtask("regress", &other_data).failure().contains("not comparable"));
    let fewer = SMALL.replace("[base, modular, retrain]", "[base, modular]");
    std::fs::write(project.pipeline(), fewer).unwrap();
    project.xtask("run", &[]).success();
    let finished = project.xtask("regress", &[]);
    assert!(finished.stdout.contains("evaluate@retrain#1 test_accuracy: missing"), "{}", finished.stdout);
    finished.failure();
}

#[test]
fn metrics_come_in_every_format() {
    let project = Project::new(SMALL);
    assert!(project.xtask("metrics", &[]).failure().contains("is not up to date (never ran here)"));
    project.xtask("run", &[]).success();
    let csv = project.xtask("metrics", &["--format", "csv"]).success().stdout;
    let mut lines = csv.lines();
    let heading: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert!(["method", "seed", "mia_accuracy", "unlearn_seconds"].iter().all(|name| heading.contains(name)), "{csv}");
    assert!(lines.all(|line| line.split(',').count() == heading.len()), "{csv}");
    let markdown = project.xtask("metrics", &["--format", "md"]).success().stdout;
    assert_eq!(markdown.lines().count(), 5, "{markdown}");
    assert!(markdown.lines().nth(1).unwrap().starts_with("| --- |"), "{markdown}");
}

#[test]
fn what_results_cost_comes_by_stage_and_across_a_coordinate() {
    let project = Project::new(
        &SMALL
            .replace("uses: data/load, with: { per_class: 20 }", "matrix: { n: [10, 20] }, uses: data/load, with: { per_class: \"${n}\" }"),
    );
    assert!(project.xtask("times", &[]).failure().contains("nothing of the pipeline `small` is up to date"));
    project.xtask("run", &["--only", "data", "--only", "holdout"]).success();
    let finished = project.xtask("times", &["--format", "json"]).success();
    assert!(finished.stderr.contains("are not up to date, and left out"), "{}", finished.stderr);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&finished.stdout).unwrap();
    let instances: Vec<&str> = rows.iter().map(|row| row["instance"].as_str().unwrap()).collect();
    assert_eq!(instances, ["data@10", "data@20", "holdout@10", "holdout@20"]);
    assert!(rows.iter().all(|row| row["seconds"]["total"].as_f64().unwrap() > 0.0 && row["peak_memory"].as_u64().unwrap() > 1 << 20));
    let table = project.xtask("times", &["--across", "n", "--format", "csv"]).success().stdout;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines[0], ["stage", "n=10", "n=20"]);
    assert_eq!([lines[1][0], lines[2][0]], ["data", "holdout"]);
    assert_eq!(lines[2][2], format!("{:.2}", rows[3]["seconds"]["total"].as_f64().unwrap()));
    assert!(project.xtask("times", &["--across", "k"]).failure().contains("those of this pipeline: [\"n\"]"));
}

#[test]
fn graphs_lists_and_artifacts_can_be_looked_at() {
    let project = Project::new(SMALL);
    let graph = project.xtask("graph", &[]).success().stdout;
    assert!(
        graph.lines().any(|line| line.split_whitespace().eq(["retrain", "unlearn/retrain", "1", "data", "holdout", "base", "request"])),
        "{graph}"
    );
    let mermaid = project.xtask("graph", &["--format", "mermaid"]).success().stdout;
    assert!(mermaid.contains("s_base --> s_offline"), "{mermaid}");
    let list = Finished::of(program("xtask").args(["list", "condense/cluster"])).success().stdout;
    assert!(list.contains("k = 450") && list.contains("model: model/1"), "{list}");
    let all = Finished::of(program("xtask").arg("list")).success().stdout;
    assert!(all.contains("data/load") && !all.contains("tables/load"), "{all}");
    assert!(Finished::of(program("xtask").args(["list", "condense/clutser"])).failure().contains("did you mean `condense/cluster`?"));
    project.xtask("run", &["--only", "data"]).success();
    let shown = Finished::of(program("xtask").arg("inspect").arg(project.artifact("data.train", &[]))).success().stdout;
    assert!(shown.contains("schema    dataset/1") && shown.contains("[200, 1, 32, 32]"), "{shown}");
}

#[test]
fn a_wrong_list_of_samples_is_told_before_anything_is_trained() {
    let project = Project::new(SMALL);
    std::fs::write(project.path("ids.csv"), "id\ntrain:4000000\n").unwrap();
    let file = format!("request.file={}", project.path("ids.csv").display());
    let run = project.xtask("run", &["--set", "request.scenario=ids", "--set", &file]);
    assert_eq!(run.ran(), ["data", "holdout"], "{}", run.stderr);
    assert!(run.failure().contains("an unknown id: `train:4000000`"));
}
