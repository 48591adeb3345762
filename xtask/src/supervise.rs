//! A process under supervision: it is listened to, bounded in time, stopped with the runner, and nothing that it started outlives it.

use std::collections::VecDeque;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Deserialize;

use crate::group::Group;
use crate::signals;
use crate::store::Phases;

/// How long a process that was asked to end may take.
const GRACE: Duration = Duration::from_secs(5);
/// How long what a finished process has left behind may still speak.
const DRAIN: Duration = Duration::from_millis(300);
/// How often the runner looks at signals and the clock.
const PAUSE: Duration = Duration::from_millis(50);
/// How much of a line is kept.
const LINE: usize = 1 << 16;
/// How much of stdout is kept, from its end.
const TAIL: usize = 1 << 20;

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

/// What a process says while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    /// What it is doing now.
    Doing(&'a str),
    /// A line that the next one overwrites, such as another tool's progress.
    Passing(&'a str),
    /// Something the user should know.
    Note(&'a str),
    /// A line that is meant for people.
    Line(&'a str),
}

/// What a process has left that ended well.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The end of what it printed.
    pub(crate) stdout: Vec<u8>,
    pub(crate) phases: Phases,
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

/// Cuts what comes into lines. A carriage return lets the next line overwrite this one, as progress bars do.
#[derive(Default)]
struct Lines {
    kept: Vec<u8>,
    left_out: usize,
    /// The last byte was a carriage return.
    returned: bool,
    /// The line overwrites another.
    overwrites: bool,
}

/// A line, and whether another has taken or may take its place.
type Hear<'a> = &'a mut dyn FnMut(&str, bool);

impl Lines {
    fn feed(&mut self, bytes: &[u8], hear: Hear<'_>) {
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let (text, end) = match piece {
                [text @ .., end @ (b'\n' | b'\r')] => (text, Some(*end)),
                text => (text, None),
            };
            if std::mem::take(&mut self.returned) && !(text.is_empty() && end == Some(b'\n')) {
                self.say(true, hear);
                self.begin(true);
            }
            let room = text.len().min(LINE - self.kept.len());
            self.kept.extend_from_slice(&text[..room]);
            self.left_out += text.len() - room;
            match end {
                Some(b'\n') => self.finish(hear),
                Some(_) => self.returned = true,
                None => {}
            }
        }
        if self.returned || self.overwrites {
            self.say(true, hear);
        }
    }

    /// What was not followed by the end of a line is one too.
    fn finish(&mut self, hear: Hear<'_>) {
        self.say(false, hear);
        self.begin(false);
        self.returned = false;
    }

    fn begin(&mut self, overwrites: bool) {
        self.kept.clear();
        (self.left_out, self.overwrites) = (0, overwrites);
    }

    fn say(&self, passing: bool, hear: Hear<'_>) {
        let text = String::from_utf8_lossy(&self.kept);
        match (text.trim().is_empty(), self.left_out) {
            (true, _) => {}
            (false, 0) => hear(&text, passing),
            (false, left_out) => hear(&format!("{text} ... ({left_out} more bytes)"), passing),
        }
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

/// Sends what comes through a pipe, and nothing at its end.
fn listen(mut pipe: impl Read + Send + 'static, stream: Stream, sender: SyncSender<(Stream, Vec<u8>)>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 14];
        loop {
            let read = match pipe.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.unwrap_or(0),
            };
            if sender.send((stream, buffer[..read].to_vec())).is_err() || read == 0 {
                return;
            }
        }
    });
}

/// Why a process is made to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Stopped,
    Timeout,
}

/// Runs a command to its end, or to `timeout`, or until the runner is asked to stop.
pub(crate) fn supervise(command: &mut Command, timeout: Option<Duration>, hear: &mut dyn FnMut(Heard<'_>)) -> anyhow::Result<Ended> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut group = Group::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let begin = Instant::now();
    let (sender, receiver) = sync_channel(16);
    listen(group.child().stdout.take().expect("piped"), Stream::Stdout, sender.clone());
    listen(group.child().stderr.take().expect("piped"), Stream::Stderr, sender);
    let (mut failure, mut stopwatch) = (None, Stopwatch::default());
    let mut hear = |line: &str, passing: bool| {
        if passing {
            return hear(Heard::Passing(line));
        }
        match serde_json::from_str::<Event>(line) {
            Ok(Event::Phase { name }) => {
                stopwatch.begin(&name);
                hear(Heard::Doing(&name));
            }
            Ok(Event::Progress { name, done, total }) => hear(Heard::Doing(&format!("{name} {done}/{total}"))),
            Ok(Event::Note { text }) => hear(Heard::Note(&text)),
            Ok(Event::Error { message, causes, remedy }) => {
                let message = std::iter::once(message).chain(causes).collect::<Vec<_>>().join("\n  caused by: ");
                failure = Some(StageFailure { message, remedy });
            }
            Err(_) => hear(Heard::Line(line)),
        }
    };
    let (mut lines, mut stdout) = (Lines::default(), VecDeque::new());
    let mut open = 2;
    let mut asked: Option<(Why, Instant)> = None;
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let status = loop {
        match receiver.recv_timeout(PAUSE) {
            Ok((_, bytes)) if bytes.is_empty() => open -= 1,
            Ok((Stream::Stderr, bytes)) => lines.feed(&bytes, &mut hear),
            Ok((Stream::Stdout, bytes)) => {
                stdout.extend(bytes);
                stdout.drain(..stdout.len().saturating_sub(TAIL));
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Both streams are at their end, and so is the process, as a rule.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(2)),
        }
        if ended.is_none() {
            ended = group.child().try_wait()?.map(|status| (status, Instant::now()));
        }
        match (ended, asked) {
            (Some((status, _)), _) if open == 0 => break status,
            // Something that it has started keeps its streams open: first what is in the group is killed, then it is left to itself.
            (Some((status, since)), _) if since.elapsed() > 2 * DRAIN => break status,
            (Some((_, since)), _) if since.elapsed() > DRAIN => group.kill(),
            (Some(_), _) => {}
            (None, Some((_, since))) if since.elapsed() > GRACE => group.kill(),
            (None, Some(_)) => {}
            (None, None) => {
                let is_late = timeout.is_some_and(|timeout| begin.elapsed() > timeout);
                if let Some(why) = signals::stopped().then_some(Why::Stopped).or(is_late.then_some(Why::Timeout)) {
                    asked = Some((why, Instant::now()));
                    group.ask_to_end();
                }
            }
        }
    };
    group.kill();
    lines.finish(&mut hear);
    stopwatch.stop();
    match (asked, timeout, failure) {
        (Some((Why::Stopped, _)), ..) => {
            signals::check()?;
            unreachable!("it was stopped by a signal")
        }
        (Some((Why::Timeout, _)), Some(timeout), _) => Err(StageFailure {
            message: format!("it was ended after its `timeout` of {} s", timeout.as_secs_f64()),
            remedy: Some("give it longer with `timeout: SECONDS`, or find out what it waits for".into()),
        }
        .into()),
        (_, _, Some(failure)) => Err(failure.into()),
        _ if status.success() => Ok(Ended { stdout: stdout.into(), phases: stopwatch.phases }),
        _ => bail!("`{program}` ended with {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn quietly(script: &str) -> anyhow::Result<Ended> {
        supervise(&mut sh(script), None, &mut |_| {})
    }

    /// All that was heard of a script, each with its second.
    fn heard(script: &str) -> Vec<(f64, String)> {
        let (begin, mut heard) = (Instant::now(), Vec::new());
        supervise(&mut sh(script), None, &mut |what| heard.push((begin.elapsed().as_secs_f64(), format!("{what:?}")))).unwrap();
        heard
    }

    fn cut(chunks: &[&str]) -> Vec<(String, bool)> {
        let (mut lines, mut cut) = (Lines::default(), Vec::new());
        let mut hear = |line: &str, passing: bool| cut.push((line.to_owned(), passing));
        chunks.iter().for_each(|chunk| lines.feed(chunk.as_bytes(), &mut hear));
        lines.finish(&mut hear);
        cut
    }

    #[cfg(target_os = "linux")]
    fn is_alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    #[cfg(target_os = "linux")]
    fn ends(pid: &str) -> bool {
        (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            !is_alive(pid)
        })
    }

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
        let phases = quietly(script).unwrap().phases;
        let names: Vec<&str> = phases.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(phases[0].1 >= 0.2 && phases[1].1 < phases[0].1, "{phases:?}");
    }

    #[test]
    fn a_failing_program_is_told_with_its_own_words() {
        let error = quietly(r#"echo '{"event":"error","message":"no","causes":["because"],"remedy":"do"}' >&2; exit 1"#).unwrap_err();
        let failure = error.downcast_ref::<StageFailure>().unwrap();
        assert_eq!((failure.message.as_str(), failure.remedy.as_deref()), ("no\n  caused by: because", Some("do")));
        let error = quietly("exit 3").unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        let error = supervise(&mut Command::new("/no/such/program"), None, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("cannot start `/no/such/program`"), "{error}");
    }

    #[test]
    fn lines_end_with_a_newline_and_are_overwritten_after_a_carriage_return() {
        let told = |chunks: &[&str]| cut(chunks).into_iter().filter(|(_, passing)| !passing).map(|(line, _)| line).collect::<Vec<_>>();
        assert_eq!(told(&["a\nb", "c\n\n", "d"]), ["a", "bc", "d"]);
        assert_eq!(told(&["a\r\nb\r", "\nc"]), ["a", "b", "c"]);
        assert_eq!(told(&["10%\r20%\r", "100%\ndone\n"]), ["100%", "done"]);
        let passing = |chunks: &[&str]| cut(chunks).into_iter().filter(|(_, passing)| *passing).map(|(line, _)| line).collect::<Vec<_>>();
        // Progress comes before or after its carriage return.
        assert_eq!(passing(&["10%\r", "20%\r"]), ["10%", "10%", "20%"]);
        assert_eq!(passing(&["\r10%", "\r20%"]), ["10%", "10%", "20%"]);
        assert_eq!(passing(&["a\r\nb\n"]), Vec::<String>::new());
    }

    #[test]
    fn progress_with_carriage_returns_is_heard_as_it_comes() {
        let heard = heard(r"printf '10%%\r' >&2; sleep 0.5; printf '20%%\r' >&2; sleep 0.5; printf 'all\n' >&2");
        let at = |text: &str| heard.iter().find(|(_, what)| what.contains(text)).unwrap_or_else(|| panic!("no {text} in {heard:?}"));
        assert!(at("Passing(\"10%\")").0 < 0.45 && at("Passing(\"20%\")").0 < 0.95, "{heard:?}");
        assert_eq!(at("all").1, "Line(\"all\")");
    }

    #[test]
    fn endless_lines_and_output_are_not_kept() {
        let script = "head -c 50000000 /dev/zero | tr '\\0' x >&2; echo >&2; head -c 50000000 /dev/zero | tr '\\0' y; echo end";
        let mut longest = 0;
        let ended = supervise(&mut sh(script), None, &mut |what| {
            if let Heard::Line(line) = what {
                longest = longest.max(line.len());
                assert!(line.ends_with("more bytes)"));
            }
        })
        .unwrap();
        assert!((LINE..LINE + 100).contains(&longest), "{longest}");
        assert!(ended.stdout.len() == TAIL && ended.stdout.ends_with(b"yyyend\n"));
    }

    #[test]
    fn a_grandchild_that_keeps_the_streams_open_does_not_hold_the_runner_and_is_killed() {
        let begin = Instant::now();
        let ended = quietly("sleep 60 & echo $!").unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let grandchild = String::from_utf8(ended.stdout).unwrap();
        #[cfg(target_os = "linux")]
        assert!(ends(grandchild.trim()), "{grandchild} lives");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_daemon_does_not_hold_the_runner() {
        let begin = Instant::now();
        let ended = quietly("setsid sleep 60 & echo $!").unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let daemon: libc::pid_t = String::from_utf8(ended.stdout).unwrap().trim().parse().unwrap();
        // SAFETY: a signal to what this test has started.
        unsafe { libc::kill(daemon, libc::SIGKILL) };
    }

    #[test]
    fn a_program_ends_at_its_timeout_even_if_it_does_not_want_to() {
        let begin = Instant::now();
        let late = |script: &str| supervise(&mut sh(script), Some(Duration::from_millis(300)), &mut |_| {}).unwrap_err().to_string();
        assert_eq!(late("sleep 60"), "it was ended after its `timeout` of 0.3 s");
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
        assert_eq!(late("trap '' TERM; while true; do sleep 1; done"), "it was ended after its `timeout` of 0.3 s");
        assert!(begin.elapsed() < GRACE + Duration::from_secs(5), "{:?}", begin.elapsed());
        quietly("sleep 0.1").unwrap();
    }

    /// The runner here is this test, started a second time, which starts a group and is killed.
    #[test]
    #[cfg(target_os = "linux")]
    fn everything_dies_with_the_runner() {
        use std::io::BufRead as _;

        const PART: &str = "DCU_TEST_RUNNER";
        if std::env::var_os(PART).is_some() {
            let script = r#"sleep 60 & echo "pids $$ $!" >&2; wait"#;
            let _ = supervise(&mut sh(script), None, &mut |what| std::eprintln!("{what:?}"));
            return;
        }
        let mut runner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "supervise::tests::everything_dies_with_the_runner", "--nocapture"])
            .env(PART, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(runner.stderr.take().unwrap()).lines();
        let line = lines.find_map(|line| Some(line.ok()?.split_once("pids ")?.1.trim_end_matches("\")").to_owned())).unwrap();
        let pids: Vec<&str> = line.split(' ').collect();
        assert!(pids.len() == 2 && pids.iter().all(|pid| is_alive(pid)), "{line}");
        runner.kill().unwrap();
        runner.wait().unwrap();
        assert!(pids.iter().all(|pid| ends(pid)), "{line}: not all are dead");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_group_that_is_dropped_is_dead() {
        let mut group = Group::start(sh("sleep 60 & echo $!; wait").stdout(Stdio::piped())).unwrap();
        let mut line = [0; 16];
        let length = group.child().stdout.take().unwrap().read(&mut line).unwrap();
        let (child, grandchild) = (group.child().id().to_string(), String::from_utf8_lossy(&line[..length]).trim().to_owned());
        assert!(is_alive(&child) && is_alive(&grandchild));
        drop(group);
        assert!(ends(&child) && ends(&grandchild));
    }
}
