//! `cargo xtask regress`: compares the numbers of a pipeline with accepted ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use dcu_artifact::{Digest, Role, role_of};
use serde::{Deserialize, Serialize};

use crate::metrics::{self, Row};
use crate::session::{Known, Session};
use crate::yaml;

/// Seeds behind a tolerance, at the least.
const FEWEST_SEEDS: usize = 5;
/// A tolerance is never narrower than this: the rounding of another CPU turns single samples.
const NARROWEST: f64 = 0.005;
/// Two-sided 99 % quantiles of Student's t for 4 to 9 degrees of freedom; beyond, the last is on the safe side. 99, as many numbers are compared
/// at once.
const T_QUANTILES: [f64; 6] = [4.604, 4.032, 3.707, 3.499, 3.355, 3.250];

/// Accepted results, as they lie under `pipelines/baselines/`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    version: u32,
    pipeline: String,
    /// The CPU features behind the numbers: with the same, results must be equal; with others, within the tolerances.
    cpu: String,
    /// Content digests of the datasets, by instance.
    data: BTreeMap<String, Digest>,
    /// Numbers by instance.
    metrics: BTreeMap<String, BTreeMap<String, f64>>,
    /// By how much a number may differ on another CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tolerances: Option<Tolerances>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tolerances {
    /// The seeds that they come from.
    seeds: Vec<u64>,
    /// By how much two runs of different seeds differ in 99 % of cases, by instance without its seed.
    metrics: BTreeMap<String, BTreeMap<String, f64>>,
}

/// Where the baseline of a pipeline lies: beside it, under `baselines/`.
fn path(session: &Session) -> PathBuf {
    session.plan.pipeline.folder().join("baselines").join(format!("{}.yaml", session.pipeline_name()))
}

fn read(path: &Path) -> anyhow::Result<Option<Baseline>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let document = yaml::Document::parse(path, &text).map_err(crate::diagnostic::Diagnostics::from)?;
    let baseline: Baseline = serde_json::from_value(document.value).with_context(|| format!("`{}` is no baseline", path.display()))?;
    ensure!(baseline.version == 1, "`{}` has the version {}; this release reads version 1", path.display(), baseline.version);
    Ok(Some(baseline))
}

fn datasets(session: &Session, known: &Known) -> BTreeMap<String, Digest> {
    let named = session.plan.instances.iter().zip(known).filter_map(|(instance, stored)| Some((instance, stored.as_ref()?)));
    let outputs = named
        .flat_map(|(instance, stored)| stored.record.outputs.iter().map(move |(name, made)| (format!("{}.{name}", instance.name), made)));
    outputs.filter(|(_, made)| role_of(&made.schema) == Some(Role::Data)).map(|(name, made)| (name, made.digest.clone())).collect()
}

/// The CPU features behind the numbers: those of every run that the evaluations rest on, not of the machine that compares them.
fn processors(session: &Session, known: &Known) -> BTreeSet<String> {
    let judging = (0..known.len())
        .filter(|&index| session.plan.instances[index].outputs.iter().any(|output| role_of(&output.schema) == Some(Role::Scores)));
    let needed: BTreeSet<usize> = judging.flat_map(|index| session.plan.ancestors(index).into_iter().chain([index])).collect();
    needed.into_iter().filter_map(|index| Some(known[index].as_ref()?.record.cpu.clone())).collect()
}

fn by_instance(rows: &[Row]) -> BTreeMap<String, BTreeMap<String, f64>> {
    rows.iter().map(|row| (row.instance.clone(), row.scalars.clone())).collect()
}

/// Accepts the present numbers. Tolerances are kept, or made anew where the pipeline has enough seeds of its own.
pub(crate) fn update(session: &Session) -> anyhow::Result<()> {
    ensure!(
        session.device.unusual().is_none(),
        "the accepted numbers are those of the CPU\n  help: leave `--device {}` out",
        session.device
    );
    let (rows, known) = metrics::rows(session)?;
    let path = path(session);
    let seeds = &session.plan.pipeline.seeds;
    let kept = read(&path)?.and_then(|baseline| baseline.tolerances);
    let tolerances = if seeds.len() >= FEWEST_SEEDS { Some(Tolerances { seeds: seeds.clone(), metrics: spread(&rows) }) } else { kept };
    let baseline = Baseline {
        version: 1,
        pipeline: session.pipeline_name().to_owned(),
        cpu: only_processor(processors(session, &known))?,
        data: datasets(session, &known),
        metrics: by_instance(&rows),
        tolerances,
    };
    write(&path, &baseline)?;
    println!("accepted {} rows in {}", rows.len(), path.display());
    Ok(())
}

/// Accepted numbers come from one kind of CPU, which is what they must be equal on.
fn only_processor(found: BTreeSet<String>) -> anyhow::Result<String> {
    let names = found.iter().cloned().collect::<Vec<_>>().join(" and ");
    ensure!(
        found.len() == 1,
        "the results come from CPUs with different features ({names}), so that they cannot be accepted as one\n  help: make them all on this machine: `cargo xtask run --force`"
    );
    Ok(names)
}

/// Takes tolerances from the present numbers, which need enough seeds, and leaves the accepted numbers as they are.
pub(crate) fn update_tolerances(session: &Session) -> anyhow::Result<()> {
    let seeds = &session.plan.pipeline.seeds;
    ensure!(
        seeds.len() >= FEWEST_SEEDS,
        "tolerances need {FEWEST_SEEDS} seeds, not {}; add `--set seeds=[1,2,3,4,5]`, here and to `run`",
        seeds.len()
    );
    let (rows, _) = metrics::rows(session)?;
    let path = path(session);
    let mut baseline =
        read(&path)?.with_context(|| format!("there is no baseline `{}` yet; accept one first with `--update`", path.display()))?;
    baseline.tolerances = Some(Tolerances { seeds: seeds.clone(), metrics: spread(&rows) });
    write(&path, &baseline)?;
    println!("took tolerances from {} seeds into {}", seeds.len(), path.display());
    Ok(())
}

fn write(path: &Path, baseline: &Baseline) -> anyhow::Result<()> {
    let text = format!("# Accepted results; written by `cargo xtask regress --update`.\n{}", yaml::to_text(baseline)?);
    if let Some(folder) = path.parent() {
        crate::store::create_folder(folder)?;
    }
    Ok(dcu_artifact::replace_file(path, text.as_bytes())?)
}

fn without_seed(instance: &str) -> &str {
    instance.rsplit_once('#').map_or(instance, |(name, _)| name)
}

/// By how much two runs of different seeds differ in 99 % of cases, by instance without its seed.
fn spread(rows: &[Row]) -> BTreeMap<String, BTreeMap<String, f64>> {
    let mut values: BTreeMap<String, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for row in rows {
        let of_instance = values.entry(without_seed(&row.instance).to_owned()).or_default();
        row.scalars.iter().for_each(|(name, value)| of_instance.entry(name.clone()).or_default().push(*value));
    }
    let half_width = |values: Vec<f64>| {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        let quantile = T_QUANTILES[values.len().clamp(FEWEST_SEEDS, FEWEST_SEEDS + T_QUANTILES.len() - 1) - FEWEST_SEEDS];
        let exact = quantile * (2.0 * variance).sqrt();
        ((exact * 1e4).ceil() / 1e4).max(NARROWEST)
    };
    // A number that fewer seeds have gets no tolerance: how far it moves is not known.
    let enough = |(_, values): &(String, Vec<f64>)| values.len() >= FEWEST_SEEDS;
    let of_instance =
        |metrics: BTreeMap<String, Vec<f64>>| metrics.into_iter().filter(enough).map(|(name, values)| (name, half_width(values))).collect();
    values.into_iter().map(|(instance, metrics)| (instance, of_instance(metrics))).collect()
}

/// Compares, prints each difference, and fails if there is one.
pub(crate) fn compare(session: &Session) -> anyhow::Result<()> {
    let path = path(session);
    let baseline = read(&path)?.with_context(|| {
        format!(
            "there is no baseline `{}`; run the pipeline and accept its numbers with `cargo xtask regress {} --update`",
            path.display(),
            session.plan.pipeline.document.file.display()
        )
    })?;
    let (rows, known) = metrics::rows(session)?;
    let verdict = judge(&baseline, &datasets(session, &known), &by_instance(&rows), &processors(session, &known))?;
    let rule = if verdict.exact {
        "equal, as they come from a CPU with the same features"
    } else {
        "within tolerances, as they come from another CPU"
    };
    verdict.notes.iter().for_each(|note| println!("  {note}"));
    if verdict.failures.is_empty() {
        println!("{} numbers of {} rows are as accepted: {rule}", verdict.compared, baseline.metrics.len());
        return Ok(());
    }
    verdict.failures.iter().for_each(|failure| println!("  {failure}"));
    bail!(
        "{} of {} numbers are not as accepted in `{}` (must be {rule})\n  help: if the change is meant, accept it with `cargo xtask regress {} --update`",
        verdict.failures.len(),
        verdict.compared,
        path.display(),
        session.plan.pipeline.document.file.display()
    );
}

#[derive(Debug, Default)]
struct Verdict {
    exact: bool,
    compared: usize,
    failures: Vec<String>,
    notes: Vec<String>,
}

fn judge(
    baseline: &Baseline,
    data: &BTreeMap<String, Digest>,
    now: &BTreeMap<String, BTreeMap<String, f64>>,
    cpus: &BTreeSet<String>,
) -> anyhow::Result<Verdict> {
    for (name, digest) in &baseline.data {
        match data.get(name) {
            Some(found) if found == digest => {}
            Some(found) => bail!("not comparable: `{name}` is other data ({} where {} was accepted)", found.short(), digest.short()),
            None => bail!("not comparable: there is no dataset `{name}`, which the accepted numbers come from"),
        }
    }
    let mut verdict = Verdict { exact: cpus.iter().all(|cpu| *cpu == baseline.cpu), ..Verdict::default() };
    if !verdict.exact && baseline.tolerances.is_none() {
        bail!(
            "not comparable: the accepted numbers come from another CPU ({}; the present ones from {}), and the baseline states no tolerances",
            baseline.cpu,
            cpus.iter().cloned().collect::<Vec<_>>().join(" and ")
        );
    }
    for (instance, metrics) in &baseline.metrics {
        for (name, accepted) in metrics {
            verdict.compared += 1;
            let Some(value) = now.get(instance).and_then(|metrics| metrics.get(name)) else {
                verdict.failures.push(format!("{instance} {name}: missing, was {accepted}"));
                continue;
            };
            let tolerance = match (&baseline.tolerances, verdict.exact) {
                (_, true) => Some(0.0),
                (tolerances, false) => tolerances.as_ref().and_then(|all| all.metrics.get(without_seed(instance))?.get(name).copied()),
            };
            match tolerance {
                None => {
                    verdict.failures.push(format!("{instance} {name}: {value} where {accepted} was accepted, and no tolerance is stated"))
                }
                Some(tolerance) if (value - accepted).abs() > tolerance => {
                    verdict.failures.push(format!("{instance} {name}: {value} where {accepted} was accepted (allowed: ± {tolerance})"));
                }
                Some(_) => {}
            }
        }
    }
    for (instance, metrics) in now {
        let accepted = baseline.metrics.get(instance);
        for name in metrics.keys().filter(|name| !accepted.is_some_and(|accepted| accepted.contains_key(*name))) {
            verdict.notes.push(format!("{instance} {name}: new, not compared"));
        }
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cpus: &[&str]) -> BTreeSet<String> {
        cpus.iter().map(|&cpu| cpu.to_owned()).collect()
    }

    #[test]
    fn results_of_two_kinds_of_cpu_are_not_accepted_as_one() {
        assert_eq!(only_processor(of(&["here"])).unwrap(), "here");
        assert!(only_processor(of(&["here", "there"])).unwrap_err().to_string().contains("here and there"));
    }

    type Numbers = BTreeMap<String, BTreeMap<String, f64>>;

    fn numbers(accuracy: f64) -> Numbers {
        BTreeMap::from([("evaluate#1".to_owned(), BTreeMap::from([("test_accuracy".to_owned(), accuracy)]))])
    }

    fn digest(digit: &str) -> Digest {
        Digest::try_from(digit.repeat(64)).unwrap()
    }

    fn baseline() -> Baseline {
        let tolerances = Tolerances {
            seeds: vec![1, 2, 3, 4, 5],
            metrics: BTreeMap::from([("evaluate".into(), BTreeMap::from([("test_accuracy".into(), 0.02)]))]),
        };
        let data = BTreeMap::from([("data.train".to_owned(), digest("a"))]);
        Baseline { version: 1, pipeline: "test".into(), cpu: "here".into(), data, metrics: numbers(0.9), tolerances: Some(tolerances) }
    }

    #[test]
    fn the_same_cpu_allows_no_difference_and_another_one_the_tolerance() {
        let baseline = baseline();
        let failures = |accuracy: f64, cpu: &[&str]| judge(&baseline, &baseline.data, &numbers(accuracy), &of(cpu)).unwrap().failures.len();
        assert_eq!(failures(0.9, &["here"]), 0);
        assert_eq!(failures(0.9 + 1e-12, &["here"]), 1);
        assert_eq!(failures(0.915, &["there"]), 0);
        assert_eq!(failures(0.93, &["there"]), 1);
        // One result that was made elsewhere is enough to move the last bits of what rests on it.
        assert_eq!(failures(0.915, &["here", "there"]), 0);
    }

    #[test]
    fn a_missing_number_fails_and_a_new_one_is_told() {
        let baseline = baseline();
        assert_eq!(judge(&baseline, &baseline.data, &Numbers::new(), &of(&["here"])).unwrap().failures.len(), 1);
        let mut more = numbers(0.9);
        more.get_mut("evaluate#1").unwrap().insert("new".into(), 1.0);
        let verdict = judge(&baseline, &baseline.data, &more, &of(&["here"])).unwrap();
        assert_eq!((verdict.failures.len(), verdict.notes.len()), (0, 1));
    }

    #[test]
    fn other_data_is_not_comparable() {
        let baseline = baseline();
        let other = BTreeMap::from([("data.train".to_owned(), digest("b"))]);
        assert!(judge(&baseline, &other, &numbers(0.9), &of(&["here"])).unwrap_err().to_string().contains("not comparable"));
        let without = Baseline { tolerances: None, ..baseline.clone() };
        assert!(judge(&without, &baseline.data, &numbers(0.9), &of(&["there"])).unwrap_err().to_string().contains("another CPU"));
    }

    #[test]
    fn a_digest_that_is_none_is_refused_when_the_file_is_read() {
        let path = std::env::temp_dir().join(format!("dcu-baseline-{}.yaml", std::process::id()));
        write(&path, &baseline()).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().data, baseline().data);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(&"a".repeat(64), "ä")).unwrap();
        let error = read(&path).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert!(format!("{error:#}").contains("`ä` is no digest of 64 hexadecimal digits"), "{error:#}");
    }

    #[test]
    fn the_seed_is_what_follows_the_last_mark() {
        assert_eq!(without_seed("evaluate@a#b#42"), "evaluate@a#b");
        assert_eq!(without_seed("evaluate"), "evaluate");
    }

    #[test]
    fn a_tolerance_is_how_far_two_seeds_are_apart() {
        let row = |seed: u64, accuracy: f64| Row {
            seed: Some(seed),
            method: "m".into(),
            stage: "evaluate".into(),
            instance: format!("evaluate#{seed}"),
            coordinates: serde_json::Map::new(),
            scalars: BTreeMap::from([("a".to_owned(), accuracy), ("b".to_owned(), 0.5)]),
            absent: BTreeMap::new(),
            unlearn_seconds: 0.0,
            request_seconds: 0.0,
        };
        let rows: Vec<Row> = [0.1, 0.2, 0.3, 0.4, 0.5].iter().zip(1..).map(|(&accuracy, seed)| row(seed, accuracy)).collect();
        let spread = spread(&rows);
        // 4.604 · 0.15811 · sqrt(2)
        assert!((spread["evaluate"]["a"] - 1.0295).abs() < 1e-4, "{spread:?}");
        assert_eq!(spread["evaluate"]["b"], NARROWEST);
    }
}
