//! Stages as processes: started with their inputs, shown while they run, and their outputs examined.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dcu_artifact::Cost;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::Value;

use crate::plan::Task;
use crate::session::{Known, Session};
use crate::signals::Stopped;
use crate::store::{Draft, Key, Made, Profile, Seconds};
use crate::supervise::{Heard, StageFailure, supervise};

/// How stages are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Threads of each stage; as many as the machine has, where none are given.
    pub(crate) threads: Option<usize>,
    /// Go on from no checkpoint.
    pub(crate) anew: bool,
}

/// What a finished process has left.
pub(crate) struct Finished {
    pub(crate) outputs: BTreeMap<String, Made>,
    pub(crate) seconds: Seconds,
    /// What it says that it computed.
    pub(crate) cost: Option<Cost>,
    pub(crate) profile: Profile,
    /// As many threads as the stage says that it had.
    pub(crate) threads: Option<usize>,
}

#[derive(Deserialize)]
struct Report {
    /// Of all processes that made the result.
    seconds: Parts,
    /// Of those before this one.
    #[serde(default)]
    earlier: Parts,
    #[serde(default)]
    cost: Option<Cost>,
    peak_memory: Option<u64>,
    #[serde(default)]
    threads: Option<usize>,
}

#[derive(Default, Deserialize)]
struct Parts {
    load: f64,
    compute: f64,
    write: f64,
}

/// Runs an instance; its outputs lie in the draft afterwards.
pub(crate) fn run(session: &Session, index: usize, known: &Known, draft: &Draft, key: &Key, options: Options) -> anyhow::Result<Finished> {
    let instance = &session.plan.instances[index];
    let mut command = command(session, index, draft, options)?;
    for (name, sources) in &instance.inputs {
        for source in sources {
            let stored = known[source.instance].as_ref().context("an input was not made")?;
            command.arg("--in").arg(named(name, &stored.path(&source.output)));
        }
    }
    for output in &instance.outputs {
        command.arg("--out").arg(named(&output.name, &draft.output(&output.name, &output.schema)));
    }
    let is_method = matches!(instance.task, Task::Method { .. });
    let checkpoints = session.store.checkpoints(key);
    if options.anew {
        session.store.remove_checkpoints(key);
    }
    if is_method {
        command.arg("--checkpoint").arg(&checkpoints);
    }
    if let Some(timings) = session.timings(index, known) {
        command.arg("--timings").arg(draft.write_scratch("timings.json", &timings)?);
    }
    let begin = Instant::now();
    let mut screen = Screen::new(&instance.name);
    let ended = supervise(&mut command, instance.timeout, &mut |heard| screen.show(heard));
    screen.bar.finish_and_clear();
    let ended = ended.map_err(|error| tidy(error, &instance.name, &checkpoints))?;
    let this = begin.elapsed().as_secs_f64();
    let mut phases = ended.phases;
    let (seconds, cost, peak_memory, threads) = match serde_json::from_slice(&ended.stdout) {
        Ok(Report { seconds: Parts { load, compute, write }, earlier, cost, peak_memory, threads }) => {
            let worked = earlier.compute + earlier.write;
            if worked > 0.0 {
                phases.insert(0, ("before it was resumed".into(), worked));
            }
            (Seconds { load, compute, write, total: this + earlier.load + worked }, cost, peak_memory, threads)
        }
        Err(_) => (Seconds { compute: this, total: this, ..Seconds::default() }, None, None, None),
    };
    let parts = session.parts(index, known).ok().context("its inputs are known")?;
    let provenance = session.provenance(index, &parts);
    let mut outputs = BTreeMap::new();
    for output in &instance.outputs {
        let made = session.store.take_in(draft, &output.name, &output.schema, &provenance, !is_method).map_err(|error| {
            if error.is::<StageFailure>() { error } else { error.context(format!("its output `{}` cannot be used", output.name)) }
        })?;
        outputs.insert(output.name.clone(), made);
    }
    Ok(Finished { outputs, seconds, cost, profile: Profile { phases, peak_memory }, threads })
}

/// The command with all that does not depend on inputs and outputs.
fn command(session: &Session, index: usize, draft: &Draft, options: Options) -> anyhow::Result<Command> {
    let instance = &session.plan.instances[index];
    let mut command = match &instance.task {
        Task::Method { crate_name, method, .. } => {
            let mut command = Command::new(session.catalogue.program(crate_name)?);
            command.arg(method).args(["--progress", "json"]);
            if let Some(device) = session.device_of(index) {
                command.arg("--device").arg(device);
            }
            if let Some(threads) = options.threads {
                command.arg("--threads").arg(threads.to_string());
            }
            command
        }
        Task::Command { command: words, folder, .. } => {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).current_dir(folder);
            command
        }
    };
    command.arg("--params").arg(draft.write_scratch("parameters.json", &instance.parameters)?);
    if let Some(seed) = instance.seed {
        command.arg("--seed").arg(seed.to_string());
    }
    Ok(command)
}

/// `NAME=PATH`, for any path.
fn named(name: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(format!("{name}="));
    argument.push(path);
    argument
}

/// Adds the checkpoint that an interrupted stage has left to what is kept, and removes what it was just writing there.
fn tidy(mut error: anyhow::Error, instance: &str, checkpoints: &Path) -> anyhow::Error {
    let has_checkpoint = checkpoints.join("checkpoint.safetensors").is_file();
    for entry in std::fs::read_dir(checkpoints).into_iter().flatten().flatten() {
        if !has_checkpoint || entry.file_name().to_string_lossy().starts_with(".partial-") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    if !has_checkpoint {
        let _ = std::fs::remove_dir(checkpoints);
    }
    if let Some(stopped) = error.downcast_mut::<Stopped>() {
        stopped.checkpoint = has_checkpoint.then(|| instance.to_owned());
    }
    error
}

/// What the user sees of a running stage: a line that moves on a terminal; elsewhere its start, its notes and its own lines.
struct Screen<'a> {
    name: &'a str,
    bar: ProgressBar,
    /// When something that passes was last printed.
    printed: Option<Instant>,
}

impl<'a> Screen<'a> {
    /// How often what passes is printed where there is no terminal.
    const PAUSE: Duration = Duration::from_secs(10);

    fn new(name: &'a str) -> Self {
        let bar = ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("{spinner} {elapsed:>4} {prefix} {msg}").expect("the template is right"));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        if bar.is_hidden() {
            eprintln!("  start   {name}");
        }
        Self { name, bar, printed: None }
    }

    fn show(&mut self, heard: Heard<'_>) {
        let name = self.name;
        match heard {
            Heard::Doing(text) => self.bar.set_message(text.to_owned()),
            Heard::Passing(line) if self.bar.is_hidden() => {
                if self.printed.is_none_or(|last| last.elapsed() > Self::PAUSE) {
                    self.printed = Some(Instant::now());
                    eprintln!("  {name}: {line}");
                }
            }
            Heard::Passing(line) => self.bar.set_message(line.to_owned()),
            Heard::Note(text) => self.bar.suspend(|| eprintln!("  note: {name}: {text}")),
            Heard::Line(line) => self.bar.suspend(|| eprintln!("  {name}: {line}")),
        }
    }
}

impl Draft {
    /// Writes a file that only this run reads.
    fn write_scratch(&self, name: &str, value: &Value) -> anyhow::Result<std::path::PathBuf> {
        let path = self.scratch()?.join(name);
        std::fs::write(&path, value.to_string()).with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_stage_keeps_its_checkpoint_and_nothing_half_written() {
        let folder = std::env::temp_dir().join(format!("dcu-tidy-{}", std::process::id()));
        let stopped = || anyhow::Error::from(Stopped { signal: 2, finished: 0, checkpoint: None });
        let tidied = |files: &[&str]| {
            std::fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|name| std::fs::write(folder.join(name), "").unwrap());
            let kept = tidy(stopped(), "base#1", &folder).downcast::<Stopped>().unwrap().checkpoint;
            let mut left: Vec<String> =
                std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
            left.sort();
            (kept, left)
        };
        assert_eq!(tidied(&[".partial-x"]), (None, Vec::new()));
        assert!(!folder.exists());
        let (kept, left) = tidied(&[".partial-x", "checkpoint.safetensors", "clock.json"]);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!((kept.as_deref(), left), (Some("base#1"), vec!["checkpoint.safetensors".to_owned(), "clock.json".to_owned()]));
        // Without a folder there is nothing to do.
        assert_eq!(tidy(stopped(), "base#1", &folder).downcast::<Stopped>().unwrap().checkpoint, None);
    }
}
