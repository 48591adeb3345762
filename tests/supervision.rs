//! A run that is stopped, whose stage hangs, or whose output goes nowhere.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dcu_tests::{Finished, Project, Running, processes, program, send, within};

const PIPELINE: &str = "\
version: 1
name: small
seeds: [1]
stages:
  data:    { uses: data/load, with: { per_class: 5 } }
  base:    { uses: train/fit, in: { dataset: data.train }, with: { model: mlp, widths: [16, 8], epochs: 2, batch: 32 } }
  outside: { command: [sh, outside.sh], code: [outside.sh], in: { model: base }, out: { text: file/txt } }
";

const LIMIT: Duration = Duration::from_secs(60);

/// A project whose outside stage runs these lines, with `$out` as the file to write.
fn project(lines: &str) -> Project {
    let project = Project::new(PIPELINE);
    let script = format!("for argument; do case $argument in text=*) out=${{argument#text=}};; esac; done\n{lines}\n");
    std::fs::write(project.path("outside.sh"), script).unwrap();
    project
}

fn drafts(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name() == "drafts" {
            found.extend(std::fs::read_dir(entry.path()).unwrap().flatten().map(|draft| draft.path().display().to_string()));
        } else if entry.path().is_dir() {
            found.extend(drafts(&entry.path()));
        }
    }
    found
}

fn file_below(folder: &Path, name: &str) -> bool {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name() == name || (entry.path().is_dir() && file_below(&entry.path(), name)))
}

/// Starts a run and waits until one of its processes has `part` in its command line.
fn run_until(project: &Project, part: &str) -> Running {
    let running = Running::start(&mut project.command("run", &[]), &project.store());
    let found = within(LIMIT, || processes(&project.store()).into_iter().find(|(_, line)| line.contains(part)));
    assert!(found.is_some(), "no process with `{part}`");
    running
}

#[track_caller]
fn assert_all_dead(project: &Project) {
    let left = within(Duration::from_secs(3), || processes(&project.store()).is_empty().then_some(()));
    assert!(left.is_some(), "still running: {:?}", processes(&project.store()));
}

#[test]
fn a_run_that_is_stopped_ends_its_stages_and_says_what_is_kept() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130), (libc::SIGHUP, 129)] {
        let project = project("sleep 1234 & sleep 2345");
        let running = run_until(&project, "sleep 2345");
        send(running.pid(), signal);
        let finished = running.finish(Duration::from_secs(60));
        assert_eq!(finished.code, Some(code), "{}", finished.stderr);
        let last = finished.stderr.lines().last().unwrap();
        assert_eq!(last, "stopped: 2 finished results are kept; the same command goes on from there", "{}", finished.stderr);
        assert_all_dead(&project);
        assert_eq!(drafts(&project.store()), Vec::<String>::new());
    }
}

#[test]
fn a_second_interrupt_ends_a_stubborn_run_at_once() {
    let project = project("trap '' TERM INT; while true; do sleep 3456; done");
    let running = run_until(&project, "sleep 3456");
    send(running.pid(), libc::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    send(running.pid(), libc::SIGINT);
    let finished = running.finish(Duration::from_secs(2));
    assert_eq!(finished.code, Some(130), "{}", finished.stderr);
    assert_all_dead(&project);
    // What the killed run has left is no obstacle.
    std::fs::write(project.path("outside.sh"), "for argument; do :; done; echo done > \"${argument#text=}\"").unwrap();
    assert_eq!(project.xtask("run", &[]).success().ran(), ["outside#1"]);
}

#[test]
fn all_that_a_stage_has_started_dies_with_the_runner() {
    let project = project("sh -c 'sleep 4567 & wait' & sleep 5678");
    let running = run_until(&project, "sleep 4567");
    send(running.pid(), libc::SIGKILL);
    running.finish(Duration::from_secs(2));
    assert_all_dead(&project);
}

#[test]
fn a_stage_that_leaves_something_running_is_finished() {
    let project = project("sleep 6789 & echo done > \"$out\"");
    let finished = Running::start(&mut project.command("run", &[]), &project.store()).finish(LIMIT);
    assert_eq!(finished.success().ran().len(), 3);
    assert_all_dead(&project);
}

#[test]
fn a_stage_that_hangs_is_ended_at_its_timeout_which_is_not_part_of_the_key() {
    let project = project("test \"$HANG\" && sleep 7890; echo done > \"$out\"");
    let mut command = project.command("run", &["--set", "outside.timeout=0.5"]);
    let finished = Running::start(command.env("HANG", "1"), &project.store()).finish(LIMIT);
    assert_all_dead(&project);
    let error = finished.failure();
    assert!(error.contains("it was ended after its `timeout` of 0.5 s") && error.contains("pipeline.yaml:7:"), "{error}");
    project.xtask("run", &[]).success();
    assert_eq!(project.xtask("run", &["--set", "outside.timeout=7"]).success().ran(), Vec::<&str>::new());
    let error = project.xtask("run", &["--set", "outside.timeout=soon"]).failure();
    assert!(error.contains("`timeout` is a number of seconds above 0"), "{error}");
}

#[test]
fn only_plain_files_are_outputs() {
    for (lines, reason) in [
        ("mkfifo \"$out\"", "what it has written as its output `text` is no plain file"),
        ("ln -s /dev/zero \"$out\"", "what it has written as its output `text` is no plain file"),
        ("true", "it ended without writing its output `text`"),
    ] {
        let project = project(lines);
        let error = Running::start(&mut project.command("run", &[]), &project.store()).finish(LIMIT).failure();
        assert!(error.contains(reason) && error.contains("--out text=PATH"), "{error}");
    }

    // A pipe in the place of a result is no result.
    let project = project("echo done > \"$out\"");
    project.xtask("run", &[]).success();
    let model = project.artifact("base#1", &[]);
    std::fs::remove_file(&model).unwrap();
    assert!(Command::new("mkfifo").arg(&model).status().unwrap().success());
    let status = Running::start(&mut project.command("status", &[]), &project.store()).finish(LIMIT).success();
    assert!(status.stdout.lines().any(|line| line.contains("base#1") && line.contains("stale")), "{}", status.stdout);
    assert_eq!(project.xtask("run", &[]).success().ran(), ["base#1"]);
}

#[test]
fn each_stage_is_announced_when_it_starts() {
    let project = project("printf '50%%\\r' >&2; echo done > \"$out\"");
    let finished = project.xtask("run", &[]).success();
    let marks = |name: &str| {
        let place = |mark: &str| finished.stderr.lines().position(|line| line.starts_with(&format!("  {mark}{name}"))).unwrap();
        place("start   ") < place("ran     ")
    };
    assert!(["data", "base", "outside"].into_iter().all(marks), "{}", finished.stderr);
    assert!(finished.stderr.contains(": 50%\n"), "{}", finished.stderr);
    assert!(!project.xtask("run", &[]).success().stderr.contains("start   "));
}

/// A pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let mut reader = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
    let pipe = reader.stdin.take().unwrap();
    reader.wait().unwrap();
    pipe.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_run_goes_on_where_its_output_cannot_go() {
    let finish = |command: &mut Command| {
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    };
    for (output, reason) in [(full as fn() -> Stdio, "No space left on device"), (closed_pipe, "Broken pipe")] {
        let project = project("echo result > \"$out\"");
        let finished = finish(project.command("run", &[]).stdout(output()).stderr(Stdio::piped()));
        assert_eq!(finished.ran().len(), 3, "{}", finished.stderr);
        let error = finished.failure();
        assert!(error.contains(&format!("error: stdout cannot be written to: {reason}")), "{error}");
        assert_eq!(project.xtask("run", &[]).success().ran(), Vec::<&str>::new());

        let project = self::project("echo result > \"$out\"");
        finish(project.command("run", &[]).stdout(Stdio::piped()).stderr(output())).success();
        assert_eq!(project.xtask("run", &[]).success().ran(), Vec::<&str>::new());
    }
}

#[test]
fn what_is_only_shown_may_be_read_in_part() {
    let list = |output: Stdio| Command::stderr(program("xtask").arg("list").stdout(output), Stdio::piped()).output().unwrap();
    let part = list(closed_pipe());
    assert_eq!((part.status.code(), String::from_utf8_lossy(&part.stderr).as_ref()), (Some(0), ""));
    let lost = list(full());
    assert!(lost.status.code() == Some(1) && String::from_utf8_lossy(&lost.stderr).contains("No space left on device"), "{lost:?}");

    let describe = |output: Stdio| Command::stderr(program("dcu-train").arg("describe").stdout(output), Stdio::piped()).output().unwrap();
    for (output, reason) in [(full(), "No space left on device"), (closed_pipe(), "Broken pipe")] {
        let lost = describe(output);
        let error = String::from_utf8_lossy(&lost.stderr);
        assert_eq!(lost.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: the result cannot be written to stdout") && error.contains(reason), "{error}");
    }
    let deaf = Command::stderr(program("dcu-train").args(["fit", "--seed", "1"]), full()).output().unwrap();
    assert_eq!(deaf.status.code(), Some(1), "an error that nobody can read is still an error");
}

#[test]
fn folders_may_have_names_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt as _;

    let project = project("echo result > \"$out\"");
    let store = project.path("").join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    let mut run = program("xtask");
    run.arg("run").arg(project.pipeline()).arg("--store").arg(&store);
    assert_eq!(Finished::of(&mut run).success().ran().len(), 3);
    assert!(store.is_dir() && Finished::of(&mut run).success().ran().is_empty());
}

/// A run whose stage with checkpoints was interrupted when it had one.
fn interrupted(signal: i32) -> (Project, Finished) {
    let project = Project::new(&PIPELINE.replace("epochs: 2", "epochs: 12000"));
    std::fs::write(project.path("outside.sh"), "for argument; do :; done; echo done > \"${argument#text=}\"").unwrap();
    let mut command = project.command("run", &[]);
    let running = Running::start(command.env("DCU_CHECKPOINT_SECONDS", "1"), &project.store());
    within(LIMIT, || file_below(&project.store(), "clock.json").then_some(())).expect("a checkpoint within a minute");
    send(running.pid(), signal);
    let finished = running.finish(Duration::from_secs(60));
    assert_all_dead(&project);
    (project, finished)
}

#[test]
fn a_resumed_stage_counts_the_seconds_before_it_was_stopped() {
    let (project, finished) = interrupted(libc::SIGINT);
    assert_eq!(finished.code, Some(130), "{}", finished.stderr);
    let last = finished.stderr.lines().last().unwrap();
    assert_eq!(last, "stopped: 1 finished result is kept; the checkpoint of `base#1` is kept; the same command goes on from there");
    let resumed = project.xtask("run", &["--profile"]).success();
    assert_eq!(resumed.ran(), ["base#1", "outside#1"], "{}", resumed.stderr);
    let line = resumed.stderr.lines().find(|line| line.contains("before it was resumed")).unwrap_or_else(|| panic!("{}", resumed.stderr));
    let before: f64 = line.split_whitespace().rev().nth(3).unwrap().parse().unwrap();
    let rows = project.xtask("times", &["--format", "json"]).success().stdout;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
    let seconds = &rows.iter().find(|row| row["instance"] == "base#1").unwrap()["seconds"];
    assert!(
        before >= 0.9 && seconds["total"].as_f64().unwrap() > before && seconds["compute"].as_f64().unwrap() >= before - 0.1,
        "{rows:?}"
    );
    // The artifact knows nothing of it.
    let whole = Project::new(&std::fs::read_to_string(project.pipeline()).unwrap());
    std::fs::copy(project.path("outside.sh"), whole.path("outside.sh")).unwrap();
    whole.xtask("run", &[]).success();
    let bytes = |project: &Project| std::fs::read(project.artifact("base#1", &[])).unwrap();
    assert!(bytes(&project) == bytes(&whole));
}

#[test]
fn a_forced_run_does_not_go_on_from_a_checkpoint() {
    let (project, _) = interrupted(libc::SIGKILL);
    let forced = project.xtask("run", &["--profile", "--force"]).success();
    assert!(forced.ran().contains(&"base#1") && !forced.stderr.contains("before it was resumed"), "{}", forced.stderr);
}
