//! Stages as processes: started, listened to, and their outputs examined.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use dcu_artifact::{Producer, Provenance};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::Value;

use crate::plan::Task;
use crate::session::{Known, Session};
use crate::store::{Draft, Key, Made, Phases, Profile, Seconds, Store};

/// How stages are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Threads of each stage; as many as the machine has, where none are given.
    pub(crate) threads: Option<usize>,
}

/// What a finished process has left.
pub(crate) struct Finished {
    pub(crate) outputs: BTreeMap<String, Made>,
    pub(crate) seconds: Seconds,
    pub(crate) profile: Profile,
}

/// A stage said why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StageFailure {
    pub(crate) message: String,
    pub(crate) remedy: Option<String>,
}

/// An event of a stage (docs/contracts.md).
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event {
    Phase { name: String },
    Progress { name: String, done: u64, total: u64 },
    Note { text: String },
    Error { message: String, causes: Vec<String>, remedy: Option<String> },
}

#[derive(Deserialize)]
struct Report {
    seconds: Parts,
    peak_memory: Option<u64>,
}

#[derive(Deserialize)]
struct Parts {
    load: f64,
    compute: f64,
    write: f64,
}

/// Runs an instance; its outputs lie in the draft afterwards.
pub(crate) fn run(session: &Session, index: usize, known: &Known, draft: &Draft, key: &Key, options: Options) -> anyhow::Result<Finished> {
    let instance = &session.plan.instances[index];
    let files: BTreeMap<&String, String> =
        instance.outputs.iter().map(|output| (&output.name, file_name(&output.name, &output.schema))).collect();
    let mut command = command(session, index, draft, options)?;
    for (name, sources) in &instance.inputs {
        for source in sources {
            let stored = known[source.instance].as_ref().context("an input was not made")?;
            command.arg("--in").arg(format!("{name}={}", stored.path(&source.output).display()));
        }
    }
    for (name, file) in &files {
        command.arg("--out").arg(format!("{name}={}", draft.path(file).display()));
    }
    let is_method = matches!(instance.task, Task::Method { .. });
    if is_method {
        command.arg("--checkpoint").arg(session.store.checkpoints(key));
    }
    if let Some(timings) = session.timings(index, known) {
        command.arg("--timings").arg(draft.write_scratch("timings.json", &timings)?);
    }
    let begin = Instant::now();
    let (stdout, phases) = supervise(&mut command, &instance.name)?;
    let total = begin.elapsed().as_secs_f64();
    let (seconds, peak_memory) = match serde_json::from_slice(&stdout) {
        Ok(Report { seconds: Parts { load, compute, write }, peak_memory }) => (Seconds { load, compute, write, total }, peak_memory),
        Err(_) => (Seconds { compute: total, total, ..Seconds::default() }, None),
    };
    let parts = session.parts(index, known).ok().context("its inputs are known")?;
    let outside = (!is_method).then(|| Provenance {
        producer: Producer { crate_name: "outside".into(), method: instance.stage.clone(), version: 0 },
        parameters: parts.parameters.clone(),
        seed: parts.seed,
        inputs: parts.inputs.clone(),
        externals: parts.code.files.clone(),
    });
    let mut outputs = BTreeMap::new();
    for output in &instance.outputs {
        let file = &files[&output.name];
        let made = Store::examine(draft, file, &output.schema, outside.as_ref())
            .with_context(|| format!("its output `{}` cannot be used", output.name))?;
        outputs.insert(output.name.clone(), made);
    }
    Ok(Finished { outputs, seconds, profile: Profile { phases, peak_memory } })
}

fn file_name(output: &str, schema: &str) -> String {
    format!("{output}.{}", schema.strip_prefix("file/").unwrap_or("safetensors"))
}

/// The command with all that does not depend on inputs and outputs.
fn command(session: &Session, index: usize, draft: &Draft, options: Options) -> anyhow::Result<Command> {
    let instance = &session.plan.instances[index];
    let mut command = match &instance.task {
        Task::Method { crate_name, method, .. } => {
            let mut command = Command::new(session.catalogue.program(crate_name)?);
            command.arg(method).args(["--progress", "json"]);
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

/// Seconds between the phases that a stage announces.
#[derive(Default)]
struct Stopwatch {
    phases: Phases,
    running: Option<(usize, Instant)>,
}

impl Stopwatch {
    fn begin(&mut self, phase: &str) {
        self.stop();
        let place = self.phases.iter().position(|(name, _)| name == phase).unwrap_or_else(|| {
            self.phases.push((phase.to_owned(), 0.0));
            self.phases.len() - 1
        });
        self.running = Some((place, Instant::now()));
    }

    fn stop(&mut self) {
        if let Some((place, begin)) = self.running.take() {
            self.phases[place].1 += begin.elapsed().as_secs_f64();
        }
    }
}

/// Starts a process, shows what it reports, and returns what it printed and how long its phases took.
fn supervise(command: &mut Command, name: &str) -> anyhow::Result<(Vec<u8>, Phases)> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{program}`"))?;
    let mut stdout = child.stdout.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {elapsed:>4} {prefix} {msg}").expect("the template is right"));
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    let (mut failure, mut stopwatch) = (None, Stopwatch::default());
    for line in BufReader::new(child.stderr.take().expect("piped")).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        match serde_json::from_str::<Event>(&line) {
            Ok(Event::Phase { name }) => {
                stopwatch.begin(&name);
                bar.set_message(name);
            }
            Ok(Event::Progress { name, done, total }) => bar.set_message(format!("{name} {done}/{total}")),
            Ok(Event::Note { text }) => bar.suspend(|| eprintln!("  note: {name}: {text}")),
            Ok(Event::Error { message, causes, remedy }) => {
                let message = std::iter::once(message).chain(causes).collect::<Vec<_>>().join("\n  caused by: ");
                failure = Some(StageFailure { message, remedy });
            }
            Err(_) if line.trim().is_empty() => {}
            Err(_) => bar.suspend(|| eprintln!("  {name}: {line}")),
        }
    }
    let status = child.wait()?;
    stopwatch.stop();
    bar.finish_and_clear();
    let stdout = reader.join().expect("reading does not panic")?;
    match failure {
        Some(failure) => Err(failure.into()),
        None if status.success() => Ok((stdout, stopwatch.phases)),
        None => bail!("`{program}` ended with {status}"),
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
    fn the_events_of_the_contract_are_understood() {
        let read = |text: &str| serde_json::from_str::<Event>(text).unwrap();
        assert_eq!(read(r#"{"event":"phase","name":"offline"}"#), Event::Phase { name: "offline".into() });
        assert_eq!(
            read(r#"{"event":"progress","name":"epochs","done":3,"total":10}"#),
            Event::Progress { name: "epochs".into(), done: 3, total: 10 }
        );
        let error = read(r#"{"event":"error","message":"a","causes":["b"],"remedy":null}"#);
        assert_eq!(error, Event::Error { message: "a".into(), causes: vec!["b".into()], remedy: None });
    }

    #[test]
    fn the_phases_of_a_program_are_timed() {
        let script = r#"say() { echo "{\"event\":\"phase\",\"name\":\"$1\"}" >&2; }; say a; sleep 0.1; say b; say a; sleep 0.1"#;
        let (_, phases) = supervise(Command::new("sh").args(["-c", script]), "test").unwrap();
        let names: Vec<&str> = phases.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(phases[0].1 >= 0.2 && phases[1].1 < phases[0].1, "{phases:?}");
    }

    #[test]
    fn a_failing_program_is_told_with_its_own_words() {
        let script = r#"echo '{"event":"error","message":"no","causes":["because"],"remedy":"do"}' >&2; exit 1"#;
        let error = supervise(Command::new("sh").args(["-c", script]), "test").unwrap_err();
        let failure = error.downcast_ref::<StageFailure>().unwrap();
        assert_eq!((failure.message.as_str(), failure.remedy.as_deref()), ("no\n  caused by: because", Some("do")));
        let error = supervise(Command::new("sh").args(["-c", "exit 3"]), "test").unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }
}
