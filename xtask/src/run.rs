//! `cargo xtask run`: brings the results of a pipeline up to date.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::names::file_name;
use crate::plan::Instance;
use crate::process::{self, Options, StageFailure};
use crate::reasons::{Reason, in_one_line};
use crate::session::{Known, Session, State};
use crate::store::{Record, Seconds, Stored, cpu_features, create_folder};

/// What to run, and how.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// Only these stages.
    pub(crate) only: Vec<String>,
    /// These stages and all that depend on them.
    pub(crate) from: Vec<String>,
    pub(crate) force: bool,
    pub(crate) dry: bool,
    pub(crate) threads: Option<usize>,
    /// Show where the time of each stage went.
    pub(crate) profile: bool,
}

/// Runs what is stale, in order, and stops at the first failure. What was finished until then is kept.
pub(crate) fn run(session: &Session, request: &Request) -> anyhow::Result<()> {
    let begin = Instant::now();
    let selected = selection(session, request)?;
    session.plan.refuse(&selected)?;
    if request.dry {
        return dry_run(session, &selected, request.force);
    }
    let mut known: Known = vec![None; session.plan.instances.len()];
    let (mut ran, mut cached) = (0, 0);
    for (index, instance) in session.plan.instances.iter().enumerate() {
        let state = session.state(index, &known);
        if !selected.contains(&index) {
            if let State::Cached(stored) = state {
                known[index] = Some(*stored);
            }
            continue;
        }
        if let State::Waits(missing) = &state {
            let names: Vec<&str> = missing.iter().map(|&index| session.plan.instances[index].name.as_str()).collect();
            let message = format!("`{}` needs `{}`, which is not up to date and was not asked for", instance.name, names.join("`, `"));
            let help = Some("run without `--only` and `--from`, or name it too".into());
            return Err(Diagnostics::from(Diagnostic { place: None, message, help }).into());
        }
        let (stored, reasons) = bring_up_to_date(session, index, &known, state, request)?;
        match reasons {
            None => {
                cached += 1;
                eprintln!("  cached  {}", instance.name);
            }
            Some(reasons) => {
                ran += 1;
                eprintln!("  ran     {}  in {:.1} s  ({})", instance.name, stored.record.seconds.total, in_one_line(&reasons));
            }
        }
        if request.profile {
            profile_lines(&stored.record).iter().for_each(|line| eprintln!("{line}"));
        }
        session.store.remember(session.pipeline_name(), &instance.name, &stored.record.parts)?;
        known[index] = Some(stored);
    }
    let reports = show_reports(session, &known, &selected)?;
    if let Some(folder) = reports {
        println!("reports: {}", folder.display());
    }
    let left = session.plan.instances.len() - selected.len();
    let left = if left > 0 { format!(", {left} not asked for") } else { String::new() };
    println!("ran {ran} of {} stages ({cached} cached{left}) in {:.1} s", session.plan.instances.len(), begin.elapsed().as_secs_f64());
    Ok(())
}

/// Where the time of one run went, and its memory.
fn profile_lines(record: &Record) -> Vec<String> {
    let Seconds { load, total, .. } = record.seconds;
    let phases = record.profile.phases.iter().map(|(name, seconds)| (name.as_str(), *seconds));
    let mut parts: Vec<(&str, f64)> = [("load", load)].into_iter().chain(phases).collect();
    let rest = total - parts.iter().map(|(_, seconds)| seconds).sum::<f64>();
    parts.push(("rest", rest.max(0.0)));
    let shown = parts.iter().filter(|(_, seconds)| *seconds >= 0.005);
    let mut lines: Vec<String> =
        shown.map(|(name, seconds)| format!("            {name:<22} {seconds:>9.2} s  {:>3.0} %", 100.0 * seconds / total)).collect();
    if let Some(peak) = record.profile.peak_gibibytes() {
        lines.push(format!("            {:<22} {peak:>9.2} GiB", "peak memory"));
    }
    lines
}

fn selection(session: &Session, request: &Request) -> anyhow::Result<Vec<usize>> {
    let select = |names: &[String]| {
        names.iter().map(|name| session.plan.select(name)).collect::<anyhow::Result<Vec<_>>>().map(|found| found.concat())
    };
    Ok(match (request.only.as_slice(), request.from.as_slice()) {
        ([], []) => (0..session.plan.instances.len()).collect(),
        (only, []) => select(only)?,
        (_, from) => session.plan.downstream(&select(from)?),
    })
}

fn dry_run(session: &Session, selected: &[usize], force: bool) -> anyhow::Result<()> {
    let (states, _) = session.states();
    let mut would_run = 0;
    for &index in selected {
        let forced = force && matches!(states[index], State::Cached(_));
        let line = if forced { "would run (forced)".into() } else { describe(session, &states[index]) };
        would_run += usize::from(forced || !matches!(states[index], State::Cached(_)));
        println!("  {}  {line}", session.plan.instances[index].name);
    }
    println!(
        "would run up to {would_run} of {} stages; what waits is cached after all if its inputs come out as before",
        session.plan.instances.len()
    );
    Ok(())
}

/// `cargo xtask status`: where every instance stands.
pub(crate) fn status(session: &Session) {
    let (states, _) = session.states();
    let width = session.plan.instances.iter().map(|instance| instance.name.chars().count()).max().unwrap_or(0);
    for (instance, state) in session.plan.instances.iter().zip(&states) {
        println!("  {:width$}  {}", instance.name, describe(session, state));
    }
    let cached = states.iter().filter(|state| matches!(state, State::Cached(_))).count();
    println!("{cached} of {} stages are cached", states.len());
}

fn describe(session: &Session, state: &State) -> String {
    match state {
        State::Cached(stored) => format!("cached, took {:.1} s", stored.record.seconds.total),
        State::Stale(reasons) => format!("stale: {}", in_one_line(reasons)),
        State::Waits(missing) => {
            let names: Vec<&str> = missing.iter().map(|&index| session.plan.instances[index].name.as_str()).collect();
            format!("waits for {}", names.join(", "))
        }
    }
}

/// The result of an instance, and the reasons if it had to run.
fn bring_up_to_date(
    session: &Session,
    index: usize,
    known: &Known,
    state: State,
    request: &Request,
) -> anyhow::Result<(Stored, Option<Vec<Reason>>)> {
    let reasons = match state {
        State::Cached(stored) if !request.force => return Ok((*stored, None)),
        State::Cached(_) => vec![Reason::Forced],
        State::Stale(reasons) => reasons,
        State::Waits(_) => unreachable!("an instance runs after what it needs"),
    };
    let parts = session.parts(index, known).expect("its inputs are known");
    let key = parts.key();
    let lock = session.store.lock(&key)?;
    // Another run may have made it while this one waited for the lock.
    let before = match session.state(index, known) {
        State::Cached(stored) if !request.force => return Ok((*stored, None)),
        State::Cached(stored) => Some(stored.record),
        _ => None,
    };
    let draft = session.store.draft(&key, &lock)?;
    let instance = &session.plan.instances[index];
    let finished = process::run(session, index, known, &draft, &key, Options { threads: request.threads })
        .map_err(|error| explain(session, instance, error))?;
    if let Some(before) = before {
        let differs = |name: &&String| {
            before.outputs[*name].digest != finished.outputs[*name].digest && !before.outputs[*name].schema.starts_with("file/")
        };
        if let Some(output) = finished.outputs.keys().find(differs) {
            eprintln!(
                "  note: {}: `{output}` came out different from last time, though nothing that should matter has changed",
                instance.name
            );
        }
    }
    let threads = request.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let record = Record {
        key,
        parts,
        outputs: finished.outputs,
        seconds: finished.seconds,
        profile: finished.profile,
        cpu: cpu_features(),
        threads,
    };
    let stored = session.store.publish(&session.task_folder(index), draft, record)?;
    Ok((stored, Some(reasons)))
}

fn explain(session: &Session, instance: &Instance, error: anyhow::Error) -> anyhow::Error {
    let (message, help) = match error.downcast_ref::<StageFailure>() {
        Some(failure) => (failure.message.clone(), failure.remedy.clone()),
        None => {
            let remedy = error.chain().find_map(|cause| cause.downcast_ref::<dcu_artifact::Error>()).map(dcu_artifact::Error::remedy);
            (error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  caused by: "), remedy)
        }
    };
    let place = Some(session.plan.place_of_failure(instance, &message));
    Diagnostics::from(Diagnostic { place, message: format!("`{}` failed: {message}", instance.name), help }).into()
}

/// Lays the files of reports out for people and prints the tables.
fn show_reports(session: &Session, known: &Known, selected: &[usize]) -> anyhow::Result<Option<PathBuf>> {
    let mut shown = None;
    for &index in selected {
        let instance = &session.plan.instances[index];
        let Some(stored) = &known[index] else { continue };
        let folder = session.store.reports(session.pipeline_name());
        for (name, made) in &stored.record.outputs {
            let Some(extension) = made.schema.strip_prefix("file/") else { continue };
            let alone = stored.record.outputs.values().filter(|other| other.schema == made.schema).count() == 1;
            let name = file_name(&if alone { instance.name.clone() } else { format!("{}-{name}", instance.name) });
            create_folder(&folder)?;
            let path = stored.folder.join(&made.file);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            dcu_artifact::replace_file(&folder.join(format!("{name}.{extension}")), &bytes)?;
            if extension == "txt" {
                println!("{}", String::from_utf8_lossy(&bytes));
            }
            shown = Some(folder.clone());
        }
    }
    Ok(shown)
}
