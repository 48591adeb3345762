//! `cargo xtask run`: brings the results of a pipeline up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, bail};
use dcu_artifact::{Role, role_of};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::names::file_name;
use crate::plan::{Instance, Source, Task};
use crate::process::{self, Options};
use crate::reasons::{Reason, in_one_line};
use crate::session::{Known, Session, State};
use crate::signals::{self, Stopped};
use crate::store::{Made, Parts, Record, Seconds, Stored};
use crate::supervise::StageFailure;

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

/// How often a stage is started again after an input of it turned out to be damaged and was made anew.
const MOST_REPAIRS: usize = 3;

/// Runs what is stale, in order, and stops at the first failure. What was finished until then is kept.
pub(crate) fn run(session: &Session, request: &Request) -> anyhow::Result<()> {
    let begin = Instant::now();
    let selected = selection(session, request)?;
    session.plan.refuse(&selected)?;
    if request.dry {
        return dry_run(session, &selected, request.force);
    }
    signals::install();
    crate::output::must_arrive();
    session.store.sweep();
    let order = order(session);
    let mut known: Known = vec![None; session.plan.instances.len()];
    let (mut ran, mut cached) = (BTreeSet::new(), BTreeSet::new());
    let (mut position, mut repairs) = (0, 0);
    while let Some(&index) = order.get(position) {
        position += 1;
        let instance = &session.plan.instances[index];
        let stopped_here = |error: anyhow::Error| signals::with_finished(error, ran.len() + cached.len());
        signals::check().map_err(|stopped| stopped_here(stopped.into()))?;
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
        let (stored, reasons) = match bring_up_to_date(session, index, &known, state, request, ran.contains(&index)) {
            Ok(done) => done,
            Err(Failed { error, .. }) if error.is::<Stopped>() => return Err(stopped_here(error)),
            Err(Failed { error, may_be_damage: false }) => return Err(error),
            Err(Failed { error, .. }) => {
                let damaged = forget_damaged_inputs(session, index, &known);
                repairs += 1;
                let makers_are_selected = damaged.iter().all(|maker| selected.contains(maker));
                let Some(first) =
                    order.iter().position(|index| damaged.contains(index)).filter(|_| makers_are_selected && repairs <= MOST_REPAIRS)
                else {
                    return Err(error);
                };
                position = first;
                order[first..].iter().for_each(|&later| known[later] = None);
                continue;
            }
        };
        match reasons {
            None if ran.contains(&index) => {}
            None => {
                if cached.insert(index) {
                    eprintln!("  cached  {}", instance.name);
                }
            }
            Some(reasons) => {
                cached.remove(&index);
                ran.insert(index);
                eprintln!("  ran     {}  in {:.1} s  ({})", instance.name, stored.record.seconds.total, in_one_line(&reasons));
            }
        }
        if request.profile {
            profile_lines(&stored.record).iter().for_each(|line| eprintln!("{line}"));
        }
        // Only tells later what has changed; a store that cannot be written to is good enough to read results from.
        let _ = session.store.remember(session.pipeline_name(), &instance.name, &stored.record.parts);
        known[index] = Some(stored);
    }
    let Reports { folder, pages } = show_reports(session, &known, &selected)?;
    if let Some(folder) = folder {
        println!("reports: {}", folder.display());
    }
    pages.iter().for_each(|page| println!("page: {}", page.display()));
    let left = session.plan.instances.len() - selected.len();
    let left = if left > 0 { format!(", {left} not asked for") } else { String::new() };
    println!(
        "ran {} of {} stages ({} cached{left}) in {:.1} s",
        ran.len(),
        session.plan.instances.len(),
        cached.len(),
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The order in which instances run. What reads outside files or draws up a request comes as early as it can, with all that it needs: what is
/// wrong in what the user wrote is told before hours of work, not after.
fn order(session: &Session) -> Vec<usize> {
    let instances = &session.plan.instances;
    let is_written_by_the_user = |instance: &Instance| {
        let asks = instance.outputs.iter().any(|output| role_of(&output.schema) == Some(Role::Request));
        asks || !instance.checked.externals.is_empty()
    };
    let mut early = BTreeSet::new();
    for index in (0..instances.len()).filter(|&index| is_written_by_the_user(&instances[index])) {
        early.extend(session.plan.ancestors(index));
        early.insert(index);
    }
    let late = (0..instances.len()).filter(|index| !early.contains(index));
    early.iter().copied().chain(late).collect()
}

/// The instances that made an input of `index` which turns out to be damaged; what is known of them is removed, so that they run again.
fn forget_damaged_inputs(session: &Session, index: usize, known: &Known) -> BTreeSet<usize> {
    let instance = &session.plan.instances[index];
    let mut damaged = BTreeSet::new();
    for source in instance.inputs.iter().flat_map(|(_, sources)| sources) {
        let Some(stored) = &known[source.instance] else { continue };
        if let Err(reason) = stored.check(&source.output) {
            let name = &session.plan.instances[source.instance].name;
            eprintln!("  note: `{}` of `{name}` {reason}; it is made again", source.output);
            session.store.forget(&session.task_folder(source.instance), stored, &source.output);
            damaged.insert(source.instance);
        }
    }
    damaged
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

/// How many stages are named at most for which another waits.
const NAMES: usize = 6;

fn describe(session: &Session, state: &State) -> String {
    match state {
        State::Cached(stored) => format!("cached, took {:.1} s", stored.record.seconds.total),
        State::Stale(reasons) => format!("stale: {}", in_one_line(reasons)),
        State::Waits(missing) => {
            let names: Vec<&str> = missing.iter().map(|&index| session.plan.instances[index].name.as_str()).collect();
            match names.as_slice() {
                names if names.len() > NAMES => format!("waits for {} and {} more", names[..NAMES - 1].join(", "), names.len() - NAMES + 1),
                names => format!("waits for {}", names.join(", ")),
            }
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
    has_run: bool,
) -> Result<(Stored, Option<Vec<Reason>>), Failed> {
    let force = request.force && !has_run;
    let reasons = match state {
        State::Cached(stored) if !force => {
            session.store.remove_needless_checkpoints(&stored.record.key);
            return Ok((*stored, None));
        }
        State::Cached(_) => vec![Reason::Forced],
        State::Stale(reasons) => reasons,
        State::Waits(_) => unreachable!("an instance runs after what it needs"),
    };
    let instance = &session.plan.instances[index];
    let parts = session.parts(index, known).expect("its inputs are known");
    let key = parts.key();
    let lock = session.store.lock(&key, |is_first| {
        if is_first {
            eprintln!("  waits   {}  (another run is making it)", instance.name);
        }
        Ok(signals::check()?)
    })?;
    // Another run may have made it while this one waited for the lock.
    let before = match session.state(index, known) {
        State::Cached(stored) if !force => return Ok((*stored, None)),
        State::Cached(stored) => Some(stored.record),
        _ => None,
    };
    let draft = session.store.draft(&key, &lock)?;
    let is_outside = matches!(instance.task, Task::Command { .. });
    if is_outside {
        check_inputs_before(session, instance, known)?;
        check_code(session, index, &parts).map_err(|error| explain(session, instance, error))?;
    }
    let finished = process::run(session, index, known, &draft, &key, Options { threads: request.threads, anew: force })
        .map_err(|error| explain(session, instance, error))?;
    if is_outside && let Err(error) = check_outside_after(session, index, known, &parts) {
        return Err(Failed { error: explain(session, instance, error), may_be_damage: false });
    }
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
    let record = Record {
        key,
        cpu: parts.computed_on(),
        parts,
        outputs: finished.outputs,
        seconds: finished.seconds,
        cost: finished.cost,
        profile: finished.profile,
        threads: finished.threads,
    };
    let stored = session.store.publish(&session.task_folder(index), draft, record)?;
    Ok((stored, Some(reasons)))
}

/// Why a stage that ran has no result.
struct Failed {
    error: anyhow::Error,
    /// Whether it may be that its inputs were damaged before.
    may_be_damage: bool,
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self { error, may_be_damage: true }
    }
}

/// A program from outside gets inputs that are whole.
fn check_inputs_before(session: &Session, instance: &Instance, known: &Known) -> anyhow::Result<()> {
    match changed_input(instance, known)? {
        Some((name, source)) => bail!("its input `{name}` (`{}`) is damaged", session.plan.instances[source.instance].name),
        None => Ok(()),
    }
}

/// A program from outside may have written to what it was to read, and what it runs may have been edited meanwhile. Then its result is not taken, and
/// what it damaged is made again in the next run.
fn check_outside_after(session: &Session, index: usize, known: &Known, parts: &Parts) -> anyhow::Result<()> {
    let instance = &session.plan.instances[index];
    if let Some((name, source)) = changed_input(instance, known)? {
        let stored = known[source.instance].as_ref().context("an input was not made")?;
        session.store.forget(&session.task_folder(source.instance), stored, &source.output);
        return Err(StageFailure {
            message: format!("its command has changed its input `{name}`, which other stages read too; its result is not taken"),
            remedy: Some("let the command copy what it wants to change; the input is made again in the next run".into()),
        }
        .into());
    }
    check_code(session, index, parts)
}

/// The files of an outside stage are still those that the key was made of.
fn check_code(session: &Session, index: usize, parts: &Parts) -> anyhow::Result<()> {
    let changed = session.code_of_outside(index)?.is_some_and(|code| code != parts.code);
    if changed {
        return Err(StageFailure {
            message: "a file that its command runs or reads has changed since this run began; its result is not taken".into(),
            remedy: Some("run again".into()),
        }
        .into());
    }
    Ok(())
}

/// The first input whose file has not the bytes any more that it was written with.
fn changed_input<'a>(instance: &'a Instance, known: &Known) -> anyhow::Result<Option<(&'a str, &'a Source)>> {
    for (name, source) in instance.inputs.iter().flat_map(|(name, sources)| sources.iter().map(move |source| (name, source))) {
        let stored = known[source.instance].as_ref().context("an input was not made")?;
        if stored.check(&source.output).is_err() {
            return Ok(Some((name, source)));
        }
    }
    Ok(None)
}

fn explain(session: &Session, instance: &Instance, error: anyhow::Error) -> anyhow::Error {
    if error.is::<Stopped>() {
        return error;
    }
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

/// How the file of an output is called in the folder of reports, if it is one for people.
pub(crate) fn report_name(instance: &str, output: &str, made: &Made, outputs: &BTreeMap<String, Made>) -> Option<String> {
    let extension = made.schema.strip_prefix("file/")?;
    let alone = outputs.values().filter(|other| other.schema == made.schema).count() == 1;
    let name = if alone { instance.to_owned() } else { format!("{instance}-{output}") };
    Some(format!("{}.{extension}", file_name(&name)))
}

/// Where the files of reports were laid out, and the pages among them.
#[derive(Default)]
struct Reports {
    folder: Option<PathBuf>,
    pages: Vec<PathBuf>,
}

/// Lays the files of reports out for people and prints the tables.
fn show_reports(session: &Session, known: &Known, selected: &[usize]) -> anyhow::Result<Reports> {
    let folder = session.store.reports(session.pipeline_name());
    let mut reports = Reports::default();
    for &index in selected {
        let instance = &session.plan.instances[index];
        let Some(stored) = &known[index] else { continue };
        for (output, made) in &stored.record.outputs {
            let Some(name) = report_name(&instance.name, output, made, &stored.record.outputs) else { continue };
            let path = stored.path(output);
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            if made.schema == "file/txt" {
                println!("{}", String::from_utf8_lossy(&bytes));
            }
            let target = folder.join(name);
            match session.store.put(&target, &bytes) {
                Ok(()) => {
                    reports.folder = Some(folder.clone());
                    reports.pages.extend((made.schema == "file/html").then_some(target));
                }
                Err(error) => eprintln!("  note: the report is not laid out: {error:#}"),
            }
        }
    }
    Ok(reports)
}
