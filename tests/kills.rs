//! Runs that are killed at any moment, alone and two at once, and runs on a full disk: the next run ends with the same bytes and the same costs, and nothing is left behind.
//!
//! `DCU_KILLS` is the number of kills (12), `DCU_KILLS_SEED` repeats a series.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dcu_tests::{Project, Running, processes, send, within};

/// A stage with checkpoints, and one from outside that writes its output in pieces and has a helper, whose death it does not pass over.
const PIPELINE: &str = "\
version: 1
name: kills
seeds: [1]
stages:
  data:    { uses: data/load, with: { per_class: 5 } }
  holdout: { uses: data/holdout, in: { train: data.train, test: data.test }, with: { ipc: 2 } }
  base:    { uses: train/fit, in: { dataset: data.train }, with: { model: mlp, widths: [16, 8], epochs: 15, batch: 2 } }
  outside: { command: [sh, outside.sh], code: [outside.sh], in: { model: base }, out: { text: file/txt } }
  request: { uses: data/request, in: { dataset: data.train, holdout: holdout } }
  retrain: { uses: unlearn/retrain, in: { dataset: data.train, model: base, request: request } }
";

const SCRIPT: &str = "\
set -e
for argument; do
  case $argument in
    text=*) out=${argument#text=} ;;
    model=*) model=${argument#model=} ;;
  esac
done
for line in 1 2 3 4; do
  (sleep 0.05; echo $line >> \"$out\") &
  wait $!
done
cksum < \"$model\" >> \"$out\"
";

const LIMIT: Duration = Duration::from_secs(120);
/// Epochs of the runs that share a store.
const VARIANTS: [usize; 3] = [15, 16, 17];

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Numbers that look like random ones.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % end
    }

    fn share(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }
}

fn project() -> Project {
    let project = Project::new(PIPELINE);
    std::fs::write(project.path("outside.sh"), SCRIPT).unwrap();
    project
}

fn run(project: &Project, epochs: usize, more: &[&str]) -> Command {
    let setting = format!("base.epochs={epochs}");
    let mut command = project.command("run", &[&["--set", setting.as_str()], more].concat());
    command.env("DCU_CHECKPOINT_SECONDS", "0");
    command
}

/// All results of a store, and of each record what was computed.
fn files(store: &Path) -> Files {
    let mut found = Files::new();
    let mut open = vec![store.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "reports" {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "safetensors" || extension == "txt") {
                found.insert(path.strip_prefix(store).unwrap().to_owned(), std::fs::read(&path).unwrap());
            } else if folder.parent().is_some_and(|parent| parent.ends_with("results")) {
                let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                found.insert(path.strip_prefix(store).unwrap().to_owned(), record["cost"].to_string().into_bytes());
            }
        }
    }
    found
}

/// What an interrupted run may leave and a finished one may not.
fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let is_left = folder.ends_with("drafts") || folder.ends_with("checkpoints") || name.to_string_lossy().ends_with(".old");
        match is_left {
            true => found.push(path),
            false if path.is_dir() => found.extend(leftovers(&path)),
            false => {}
        }
    }
    found
}

/// What unbroken runs make, and the time that one takes.
fn references() -> (Vec<Files>, Duration) {
    let mut time = Duration::ZERO;
    let files = VARIANTS.map(|epochs| {
        let project = project();
        let begin = Instant::now();
        let finished = Running::start(&mut run(&project, epochs, &[]), &project.store()).finish(LIMIT);
        time = begin.elapsed();
        assert_eq!(finished.success().ran().len(), 6);
        let files = files(&project.store());
        assert!(files.len() >= 13, "{:?}", files.keys());
        files
    });
    (files.into(), time)
}

fn assert_finishes(project: &Project, variant: usize, references: &[Files], round: &str) {
    let finished = Running::start(&mut run(project, VARIANTS[variant], &[]), &project.store()).finish(LIMIT);
    assert_eq!(finished.code, Some(0), "{round}: {}", finished.stderr);
    let files = files(&project.store());
    for (path, bytes) in &references[variant] {
        let same = files.get(path).map(|found| found == bytes);
        assert_eq!(same, Some(true), "{round}: {} differs from that of an unbroken run", path.display());
    }
    for (path, bytes) in &files {
        assert!(references.iter().any(|known| known.get(path) == Some(bytes)), "{round}: {} is in no unbroken run", path.display());
    }
    assert_eq!(leftovers(&project.store()), Vec::<PathBuf>::new(), "{round}");
}

fn assert_all_dead(project: &Project, round: &str) {
    let dead = within(Duration::from_secs(3), || processes(&project.store()).is_empty().then_some(()));
    assert!(dead.is_some(), "{round}: still running: {:?}", processes(&project.store()));
}

#[test]
fn a_run_that_is_killed_at_any_moment_is_finished_by_the_next_one() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = number("DCU_KILLS_SEED").unwrap_or(now.into());
    println!("DCU_KILLS_SEED={seed}");
    let mut random = Random(seed.wrapping_mul(2) + 1);
    let (references, time) = references();
    let mut project = project();
    for round in 0..number("DCU_KILLS").unwrap_or(12) {
        if random.below(2) == 0 {
            project = self::project();
        }
        let (variant, runners) = (random.below(VARIANTS.len()), if round % 4 == 3 { 2 } else { 1 });
        let forced: &[&str] = if runners == 1 && random.below(4) == 0 { &["--force"] } else { &[] };
        let start = |_| Running::start(&mut run(&project, VARIANTS[variant], forced), &project.store());
        let mut running: Vec<Running> = (0..runners).map(start).collect();
        let delay = time.mul_f64(1.1 * random.share());
        std::thread::sleep(delay);
        let victim = running.swap_remove(0);
        let what = ["runner", "stage", "TERM", "INT"][random.below(4)];
        let round = format!("round {round} of seed {seed}, {what} after {delay:?}, variant {variant}, {runners} runners {forced:?}");
        println!("{round}");
        match what {
            "runner" => send(victim.pid(), libc::SIGKILL),
            "TERM" => send(victim.pid(), libc::SIGTERM),
            "INT" => send(victim.pid(), libc::SIGINT),
            _ => {
                let is_stage = |line: &str| line.contains("--params") || line.contains("sleep 0.05");
                let stages: Vec<u32> = processes(&project.store()).iter().filter(|(_, line)| is_stage(line)).map(|(pid, _)| *pid).collect();
                if !stages.is_empty() {
                    send(stages[random.below(stages.len())], libc::SIGKILL);
                }
            }
        }
        let finished = victim.finish(LIMIT);
        assert!(!finished.stderr.contains("panicked"), "{round}: {}", finished.stderr);
        match (what, finished.code) {
            // It was done before, or the signal came before there was anything to clean up.
            (_, Some(0)) | ("runner" | "TERM" | "INT", None) | ("stage", Some(1)) => {}
            ("TERM", Some(143)) | ("INT", Some(130)) => {
                assert!(finished.stderr.lines().last().unwrap().starts_with("stopped: "), "{round}: {}", finished.stderr);
            }
            (_, code) => panic!("{round}: exit code {code:?}: {}", finished.stderr),
        }
        // The other runner takes over what the first has left.
        for other in running {
            let finished = other.finish(LIMIT);
            assert!(finished.code == Some(0) || (what == "stage" && finished.code == Some(1)), "{round}: {}", finished.stderr);
        }
        assert_all_dead(&project, &round);
        assert_finishes(&project, variant, &references, &round);
    }
}

/// A small file system at a folder, unmounted again when it is dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: PathBuf, options: &str) -> Option<Self> {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&folder).output().ok()?.status;
        status.success().then_some(Self(folder))
    }

    fn resize(&self, size: usize) {
        let status = Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_space() {
    let (references, _) = references();
    let size: usize = references[0].values().map(Vec::len).sum();
    for percent in [5, 40, 80, 100] {
        let project = project();
        std::fs::create_dir(project.store()).unwrap();
        let Some(disk) = Disk::mount(project.store(), &format!("size={}", size * percent / 100)) else {
            println!("skipped: no file system can be mounted here");
            return;
        };
        let round = format!("{percent} % of {size} bytes");
        let finished = Running::start(&mut run(&project, VARIANTS[0], &[]), &project.store()).finish(LIMIT);
        assert_all_dead(&project, &round);
        let error = finished.failure();
        assert!(error.contains("No space left on device") && !error.contains("panicked"), "{round}: {error}");
        disk.resize(100 * size);
        assert_finishes(&project, 0, &references, &round);
    }
}
