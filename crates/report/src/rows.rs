//! From judged models to rows: what is pooled, what it is measured against, and what it cost.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use dcu_artifact::{Digest, Metrics};

use crate::lineage::{BACKWARD, Costs, Counts, Instance, Lineage, Phases};
use crate::statistics::{Estimate, attack_samples, over_seeds, share_over_seeds};

/// A score in the table, and the count in the metrics' facts behind its binomial interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Score {
    pub(crate) name: &'static str,
    pub(crate) count: &'static str,
    pub(crate) heading: &'static str,
}

/// The scores whose differences make up the distance to retraining.
pub(crate) const SCORES: [Score; 4] = [
    Score { name: "retain_accuracy", count: "retain", heading: "retain %" },
    FORGET,
    Score { name: "test_accuracy", count: "test", heading: "test %" },
    ATTACK,
];
pub(crate) const FORGET: Score = Score { name: "forget_accuracy", count: "forget", heading: "forget %" };
pub(crate) const ATTACK: Score = Score { name: "mia_accuracy", count: "attack_pairs", heading: "attack %" };
/// Scores that only some requests have, and that no distance counts.
pub(crate) const APART: [Score; 2] = [EARLIER, FORGOTTEN_CLASSES];
pub(crate) const EARLIER: Score = Score { name: "earlier_accuracy", count: "earlier", heading: "earlier %" };
pub(crate) const FORGOTTEN_CLASSES: Score = Score { name: "test_forgotten_accuracy", count: "test_forgotten", heading: "test forgotten %" };

/// The label of the retrained model, which everything is measured against.
pub(crate) const REFERENCE: &str = "retrain";
/// The label of a second retraining.
pub(crate) const NULL: &str = "null";

/// One model of one seed, judged.
#[derive(Debug)]
pub(crate) struct Judged<'a> {
    pub(crate) method: &'a str,
    pub(crate) model: &'a Instance,
    pub(crate) metrics: &'a Metrics,
    pub(crate) phases: Phases,
    pub(crate) costs: Costs,
    evaluation: &'a Instance,
}

/// One method at one point of the matrices, over its seeds.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) method: &'a str,
    /// What tells this row from others of the same method: key and value of a matrix.
    pub(crate) coordinates: Vec<(&'a str, String)>,
    pub(crate) runs: Vec<&'a Judged<'a>>,
    pub(crate) scores: BTreeMap<&'static str, Estimate>,
    /// In points, or why there is none.
    pub(crate) distance: Result<Estimate, String>,
    /// The distance of a second retraining under the same circumstances.
    pub(crate) null: Option<Estimate>,
    /// By how much its distance is more than that of a second retraining with the same seed; nothing where fewer than two seeds have both.
    pub(crate) excess: Option<Estimate>,
    /// The scores of retraining under the same circumstances.
    pub(crate) reference: BTreeMap<&'static str, Estimate>,
    /// The retrainings under the same circumstances.
    pub(crate) references: Vec<&'a Judged<'a>>,
    /// Seconds that retraining costs for a request.
    pub(crate) retraining: Option<f64>,
    pub(crate) phases: Phases,
    pub(crate) break_even: Option<BreakEven>,
    pub(crate) costs: Costs,
    /// Samples backward for each request, as a share of retraining's; nothing for a model that has forgotten nothing, and where it is not known.
    pub(crate) passes: Option<f64>,
}

/// After how many requests what is paid once has paid for itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum BreakEven {
    Requests(f64),
    Never,
}

impl Row<'_> {
    /// The method with its coordinates.
    pub(crate) fn name(&self) -> String {
        let coordinates: String = self.coordinates.iter().map(|(key, value)| format!(", {key} {value}")).collect();
        format!("{}{coordinates}", self.method)
    }

    /// Its passes in percent, to three digits or more.
    pub(crate) fn shown_passes(&self) -> Option<String> {
        let percent = 100.0 * self.passes?;
        Some(if percent < 99.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") })
    }

    /// After how many requests it has paid for itself; nothing where it pays nothing once.
    pub(crate) fn shown_break_even(&self) -> Option<String> {
        Some(match self.break_even? {
            BreakEven::Requests(requests) => format!("{requests:.1}"),
            BreakEven::Never => "never".to_owned(),
        })
    }

    /// Whether this is a method of forgetting that is to be judged by retraining.
    pub(crate) fn is_contender(&self) -> bool {
        self.method != REFERENCE && self.method != NULL && self.runs[0].model.forgets()
    }

    /// In points: the score of each run less that of the retraining with its seed.
    pub(crate) fn gaps(&self, score: Score) -> Vec<(u64, f64)> {
        let gap = |run: &&Judged<'_>| {
            let seed = run.model.seed?;
            let reference = self.references.iter().find(|reference| reference.model.seed == Some(seed))?;
            let value = |of: &Judged<'_>| of.metrics.scalars.get(score.name).copied();
            Some((seed, 100.0 * (value(run)? - value(reference)?))).filter(|(_, gap)| gap.is_finite())
        };
        self.runs.iter().filter_map(gap).collect()
    }

    /// The size of a set in the metrics' facts.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        count(self.runs[0].metrics, name)
    }
}

/// Follows every metrics artifact to the model that it judges.
///
/// # Errors
/// When the timings do not name that model.
pub(crate) fn judged<'a>(lineage: &'a Lineage, metrics: &'a [(Metrics, Digest)]) -> anyhow::Result<Vec<Judged<'a>>> {
    let by_digest: BTreeMap<&str, &Metrics> = metrics.iter().map(|(metrics, digest)| (digest.as_str(), metrics)).collect();
    let judge = |(evaluation, metrics)| {
        let evaluation: &Instance = evaluation;
        let model =
            lineage.judged(evaluation).with_context(|| format!("`{}` judges a model that the timings do not name", evaluation.instance))?;
        Ok(Judged { method: &model.label, model, metrics, phases: lineage.phases(model), costs: lineage.costs(model), evaluation })
    };
    lineage.evaluations(&by_digest).map(judge).collect()
}

/// The rows, in the order of the pipeline. Only seeds are pooled: a method at two points of a matrix is two rows.
pub(crate) fn rows<'a>(judged: &'a [Judged<'a>]) -> Vec<Row<'a>> {
    let mut groups: Vec<Vec<&Judged<'_>>> = Vec::new();
    for run in judged {
        let same = |group: &&mut Vec<&Judged<'_>>| {
            (group[0].method, &group[0].evaluation.coordinates) == (run.method, &run.evaluation.coordinates)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups.into_iter().map(|runs| row(judged, runs)).collect()
}

fn row<'a>(judged: &'a [Judged<'a>], runs: Vec<&'a Judged<'a>>) -> Row<'a> {
    let (first, phases) = (runs[0], mean_phases(&runs));
    let references = alike(judged, REFERENCE, first);
    let distances_of = |runs: &[&Judged<'_>]| distances(runs, &references);
    let (own, nulls) = (distances_of(&runs), distances_of(&alike(judged, NULL, first)));
    let retraining = mean(references.iter().map(|run| run.phases.each_request()));
    let costs = mean_costs(&runs);
    let backward = |costs: Costs| costs.each_request.map(|counts| counts[BACKWARD]);
    let of_retraining = backward(mean_costs(&references)).filter(|backward| *backward > 0.0);
    let passes = backward(costs).filter(|_| first.model.forgets()).zip(of_retraining).map(|(own, reference)| own / reference);
    Row {
        method: first.method,
        coordinates: varying(judged, first.method).into_iter().filter_map(|key| Some((key, value(first, key)?))).collect(),
        scores: estimates(&runs),
        null: nulls.as_ref().ok().and_then(|nulls| mean_of(nulls)),
        excess: own.as_ref().ok().zip(nulls.as_ref().ok()).and_then(|(own, nulls)| excess(own, nulls)),
        reference: estimates(&references),
        references,
        break_even: break_even(phases, retraining),
        distance: own.and_then(|own| mean_of(&own).ok_or_else(|| "there is nothing to measure".to_owned())),
        retraining,
        phases,
        costs,
        passes,
        runs,
    }
}

fn value(run: &Judged<'_>, key: &str) -> Option<String> {
    let value = run.evaluation.coordinates.get(key)?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// The keys of matrices in which the runs of a method differ. Those that only choose the method are not among them.
fn varying<'a>(judged: &'a [Judged<'a>], method: &str) -> Vec<&'a str> {
    let runs = || judged.iter().filter(|run| run.method == method);
    let keys: BTreeSet<&str> = runs().flat_map(|run| run.evaluation.coordinates.keys()).map(String::as_str).collect();
    keys.into_iter().filter(|key| runs().map(|run| value(run, key)).collect::<BTreeSet<_>>().len() > 1).collect()
}

/// The runs of `method` that agree with `run` in whatever matrix both go through.
fn alike<'a>(judged: &'a [Judged<'a>], method: &str, run: &Judged<'_>) -> Vec<&'a Judged<'a>> {
    let keys = varying(judged, method);
    let agrees = |other: &&Judged<'_>| keys.iter().all(|key| value(run, key).is_none_or(|own| value(other, key) == Some(own)));
    judged.iter().filter(|other| other.method == method).filter(agrees).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    over_seeds(&values.collect::<Vec<_>>()).map(|estimate| estimate.mean)
}

fn mean_phases(runs: &[&Judged<'_>]) -> Phases {
    let average = |pick: PickPhase| mean(runs.iter().map(|run| pick(run.phases))).unwrap_or(0.0);
    let [cluster, offline, condense, prepare, request, reduce, unlearn] = PHASES.map(|(_, pick)| average(pick));
    Phases { cluster, offline, condense, prepare, request, reduce, unlearn }
}

/// Means of what all of the runs know of.
fn mean_costs(runs: &[&Judged<'_>]) -> Costs {
    let counts = |pick: fn(&Costs) -> Option<Counts>| {
        let each = runs.iter().map(|run| pick(&run.costs)).collect::<Option<Vec<_>>>().filter(|each| !each.is_empty())?;
        Some(std::array::from_fn(|which| each.iter().map(|counts| counts[which]).sum::<f64>() / each.len() as f64))
    };
    let changed = runs.iter().map(|run| run.costs.changed).collect::<Option<Vec<f64>>>();
    Costs {
        once: counts(|costs| costs.once),
        each_request: counts(|costs| costs.each_request),
        changed: changed.and_then(|shares| mean(shares.into_iter())),
    }
}

pub(crate) type PickPhase = fn(Phases) -> f64;

pub(crate) const PHASES: [(&str, PickPhase); 7] = [
    ("cluster_seconds", |phases| phases.cluster),
    ("offline_seconds", |phases| phases.offline),
    ("condense_seconds", |phases| phases.condense),
    ("prepare_seconds", |phases| phases.prepare),
    ("request_seconds", |phases| phases.request),
    ("reduce_seconds", |phases| phases.reduce),
    ("unlearn_seconds", |phases| phases.unlearn),
];

fn count(metrics: &Metrics, name: &str) -> Option<u64> {
    metrics.facts.get("counts")?.get(name)?.as_u64()
}

fn estimates(runs: &[&Judged<'_>]) -> BTreeMap<&'static str, Estimate> {
    SCORES.into_iter().chain(APART).filter_map(|score| Some((score.name, estimate(runs, score)?))).collect()
}

/// Over several seeds the t interval; over one the binomial interval.
fn estimate(runs: &[&Judged<'_>], score: Score) -> Option<Estimate> {
    let scored = runs.iter().filter_map(|run| Some((*run, *run.metrics.scalars.get(score.name)?)));
    let (scored, values): (Vec<&Judged<'_>>, Vec<f64>) = scored.unzip();
    let counts: Option<Vec<u64>> = scored.iter().map(|run| count(run.metrics, score.count)).collect();
    let samples = counts.and_then(|counts| counts.into_iter().min());
    share_over_seeds(&values, samples.map(|samples| if score == ATTACK { attack_samples(samples) } else { samples as f64 }))
}

/// The distance of a run, with its seed.
type OfSeed = (Option<u64>, f64);

/// The mean absolute difference of the scores of each run to their means over `references`, in points.
fn distances(runs: &[&Judged<'_>], references: &[&Judged<'_>]) -> Result<Vec<OfSeed>, String> {
    if references.is_empty() {
        return Err(format!("there is no row `{REFERENCE}` to measure it from"));
    }
    let score = |run: &Judged<'_>, score: Score| {
        run.metrics.scalars.get(score.name).copied().ok_or_else(|| format!("it needs {}, which is not there", score.name))
    };
    let means = SCORES.map(|which| {
        let values = references.iter().map(|run| score(run, which)).collect::<Result<Vec<f64>, String>>()?;
        over_seeds(&values).map(|estimate| estimate.mean).ok_or_else(|| "there is nothing to measure".to_owned())
    });
    let of_run = |run: &&Judged<'_>| -> Result<OfSeed, String> {
        let mut total = 0.0;
        for (which, mean) in SCORES.into_iter().zip(&means) {
            total += (score(run, which)? - mean.clone()?).abs();
        }
        Ok((run.model.seed, 100.0 * total / SCORES.len() as f64))
    };
    runs.iter().map(of_run).collect()
}

fn mean_of(distances: &[OfSeed]) -> Option<Estimate> {
    over_seeds(&distances.iter().map(|(_, distance)| *distance).collect::<Vec<_>>())
}

/// Pair by pair, of two seeds or more.
fn excess(own: &[OfSeed], nulls: &[OfSeed]) -> Option<Estimate> {
    let of_seed = |seed: Option<u64>| nulls.iter().find(|(other, _)| seed.is_some() && *other == seed).map(|(_, distance)| *distance);
    let pairs: Vec<f64> = own.iter().filter_map(|&(seed, distance)| Some(distance - of_seed(seed)?)).collect();
    over_seeds(&pairs).filter(|estimate| estimate.interval.is_some())
}

/// `None` for a method that pays nothing once.
fn break_even(phases: Phases, retraining: Option<f64>) -> Option<BreakEven> {
    let saved = retraining? - phases.each_request();
    (phases.once() > 0.0 && phases.unlearn > 0.0)
        .then(|| if saved > 0.0 { BreakEven::Requests(phases.once() / saved) } else { BreakEven::Never })
}

#[cfg(test)]
pub(crate) mod tests {
    use dcu_artifact::Cost;
    use serde_json::{Value, json};

    use super::*;

    /// What the fixtures say of one evaluated model: its label, seed, matrix point, and scores (retain, forget, test, attack).
    pub(crate) struct Case(
        pub(crate) &'static str,
        pub(crate) u64,
        pub(crate) &'static [(&'static str, &'static str)],
        pub(crate) [f64; 4],
    );

    /// Timings and metrics as the runner would hand them over. `modular` and `offline` carry the costs of the paper's phases.
    pub(crate) fn evaluated(cases: &[Case], more: impl Fn(&Case, &mut Metrics)) -> (Lineage, Vec<(Metrics, Digest)>) {
        let mut instances = Vec::new();
        let mut add = |stage: &str,
                       name: &str,
                       uses: &str,
                       label: &str,
                       seed: Option<u64>,
                       seconds: f64,
                       coordinates: Value,
                       inputs: Value,
                       outputs: Value| {
            // Ten samples backward a second, but for the data.
            let samples = if uses.starts_with("data/") { 0 } else { (10.0 * seconds) as u64 };
            let mut cost = json!({ "forward": 3 * samples, "backward": samples, "steps": samples / 10, "operations": 100 * samples });
            if label == "modular" {
                cost["changed"] = json!(0.5);
            }
            instances
                .push(json!({ "stage": stage, "instance": name, "uses": uses, "label": label, "seed": seed, "coordinates": coordinates,
                                   "seconds": { "total": seconds }, "cost": cost, "inputs": inputs, "outputs": outputs }));
        };
        let none = || json!({});
        let model = || json!({ "model": { "schema": "model/1", "digest": "f".repeat(64) } });
        let data = json!({ "train": { "schema": "dataset/1", "digest": "d".repeat(64) } });
        add("data", "data", "data/load", "load", None, 9.0, none(), none(), data);
        add("base", "base", "train/fit", "original", None, 30.0, none(), json!({ "dataset": ["data"] }), model());
        add("offline", "offline", "train/offline", "offline", None, 4.0, none(), json!({ "dataset": ["data"], "model": ["base"] }), none());
        let request = json!({ "request": { "schema": "request/1", "digest": "e".repeat(64) } });
        add("request", "request", "data/request", "request", None, 0.5, none(), json!({ "dataset": ["data"] }), request);
        let mut metrics = Vec::new();
        for (position, case) in cases.iter().enumerate() {
            let Case(label, seed, point, values) = case;
            let coordinates: Value =
                point.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect::<serde_json::Map<_, _>>().into();
            let (uses, seconds, inputs) = match *label {
                "original" => ("train/fit", 30.0, json!({ "dataset": ["data"] })),
                "retrain" | "null" => ("unlearn/retrain", 10.0, json!({ "model": ["base"], "request": ["request"] })),
                "finetune" => ("unlearn/finetune", 2.0, json!({ "model": ["base"], "request": ["request"] })),
                _ => ("unlearn/modular", 1.0, json!({ "model": ["offline"], "request": ["request"] })),
            };
            let name = format!("{label}-{position}#{seed}");
            add(label, &name, uses, label, Some(*seed), seconds, coordinates.clone(), inputs, none());
            let mut judged = Metrics::default();
            for (score, value) in SCORES.iter().zip(values) {
                judged.scalar(score.name, *value, "fraction", "a share");
            }
            judged.facts.insert("counts".into(), json!({ "retain": 1000, "forget": 60, "test": 500, "attack_pairs": 60 }));
            judged.facts.insert("class_names".into(), json!(["a", "b"]));
            more(case, &mut judged);
            let digest = dcu_artifact::digest_bytes(name.as_bytes());
            let mut evaluation = coordinates;
            evaluation["of"] = json!(label);
            let outputs = json!({ "metrics": { "schema": "metrics/1", "digest": digest } });
            add(
                "evaluate",
                &format!("evaluate-{position}"),
                "attack/evaluate",
                "evaluate",
                Some(*seed),
                0.1,
                evaluation,
                json!({ "model": [name] }),
                outputs,
            );
            metrics.push((judged, digest));
        }
        (Lineage::parse(json!({ "pipeline": "test", "instances": instances })).unwrap(), metrics)
    }

    const RETRAINED: [f64; 4] = [1.0, 0.0, 0.9, 0.5];

    #[test]
    fn only_seeds_are_pooled() {
        let cases = [
            Case("modular", 1, &[("ratio", "0.1")], [1.0, 0.1, 0.9, 0.5]),
            Case("modular", 2, &[("ratio", "0.1")], [1.0, 0.3, 0.9, 0.5]),
            Case("modular", 1, &[("ratio", "0.2")], [1.0, 0.9, 0.9, 0.5]),
            Case("retrain", 1, &[("ratio", "0.1"), ("method", "retrain")], RETRAINED),
            Case("retrain", 1, &[("ratio", "0.2"), ("method", "retrain")], [1.0, 0.5, 0.9, 0.5]),
            Case("finetune", 1, &[("ratio", "0.1"), ("method", "finetune")], [1.0, 0.2, 0.9, 0.5]),
            Case("original", 1, &[], [1.0, 1.0, 0.9, 0.5]),
        ];
        let (lineage, metrics) = evaluated(&cases, |_, _| {});
        let judged = judged(&lineage, &metrics).unwrap();
        let rows = rows(&judged);
        let names: Vec<String> = rows.iter().map(Row::name).collect();
        assert_eq!(names, ["modular, ratio 0.1", "modular, ratio 0.2", "retrain, ratio 0.1", "retrain, ratio 0.2", "finetune", "original"]);
        assert_eq!(rows[0].runs.len(), 2);
        assert!((rows[0].scores["forget_accuracy"].mean - 0.2).abs() < 1e-12);
        // Each is measured from the retraining at its own point; what goes through no matrix, from their mean.
        let distances: Vec<f64> = rows.iter().map(|row| row.distance.as_ref().unwrap().mean).collect();
        for (found, expected) in distances.iter().zip([5.0, 10.0, 0.0, 0.0, 5.0, 18.75]) {
            assert!((found - expected).abs() < 1e-9, "{distances:?}");
        }
    }

    #[test]
    fn a_run_without_a_score_takes_no_part_in_it() {
        let cases = [Case("modular", 1, &[], RETRAINED), Case("modular", 2, &[], [0.9, 0.1, 0.9, 0.6]), Case("retrain", 1, &[], RETRAINED)];
        let (lineage, metrics) = evaluated(&cases, |case, metrics| {
            if case.0 == "modular" && case.1 == 1 {
                metrics.scalars.remove("mia_accuracy");
                metrics.facts["counts"]["attack_pairs"] = json!(3);
            }
        });
        let judged = judged(&lineage, &metrics).unwrap();
        assert_eq!(rows(&judged)[0].scores["mia_accuracy"], crate::statistics::share(0.6, attack_samples(60)));
    }

    #[test]
    fn distances_are_compared_with_those_of_the_null_by_seed() {
        let case = |label: &'static str, seed: u64, forget: f64| Case(label, seed, &[], [1.0, forget, 0.9, 0.5]);
        let cases = [("modular", [0.2, 0.5, 0.8]), ("null", [0.1, 0.4, 0.7]), ("retrain", [0.0, 0.0, 0.0])];
        let cases: Vec<Case> =
            cases.into_iter().flat_map(|(label, values)| (1..).zip(values).map(move |(seed, forget)| case(label, seed, forget))).collect();
        let (lineage, metrics) = evaluated(&cases, |_, _| {});
        let judged = judged(&lineage, &metrics).unwrap();
        let rows = rows(&judged);
        let (excess, null) = (rows[0].excess.unwrap(), rows[0].null.unwrap());
        // By pairs 2.5 points each, though both vary by 15.
        assert!((excess.mean - 2.5).abs() < 1e-9 && (excess.ends().0 - 2.5).abs() < 1e-6, "{excess:?}");
        assert!((null.mean - 10.0).abs() < 1e-9 && null.ends().1 - null.ends().0 > 10.0, "{null:?}");
        assert!(rows[1].excess.unwrap().mean.abs() < 1e-9);
    }

    #[test]
    fn two_stages_of_one_label_are_two_rows() {
        let (mut lineage, metrics) = evaluated(&[Case("modular", 1, &[], RETRAINED), Case("modular", 1, &[], RETRAINED)], |_, _| {});
        for (instance, of) in lineage.instances.iter_mut().filter(|instance| instance.stage == "evaluate").zip(["first", "second"]) {
            instance.coordinates.insert("of".into(), json!(of));
        }
        let judged = judged(&lineage, &metrics).unwrap();
        assert_eq!(rows(&judged).iter().map(Row::name).collect::<Vec<_>>(), ["modular, of first", "modular, of second"]);
    }

    #[test]
    fn the_distance_is_the_mean_difference_in_points_or_has_a_reason() {
        let of = |cases: &[Case], more: &dyn Fn(&Case, &mut Metrics)| {
            let (lineage, metrics) = evaluated(cases, more);
            let judged = judged(&lineage, &metrics).unwrap();
            rows(&judged).into_iter().next().unwrap().distance.map(|estimate| estimate.mean)
        };
        let modular = || Case("modular", 1, &[], [0.9, 0.5, 0.4, 0.6]);
        let retrain = || Case("retrain", 1, &[], [1.0, 0.5, 0.5, 0.5]);
        assert!((of(&[modular(), retrain()], &|_, _| {}).unwrap() - 7.5).abs() < 1e-9);
        assert!(of(&[modular()], &|_, _| {}).unwrap_err().contains("no row `retrain`"));
        let attackless = |_: &Case, metrics: &mut Metrics| {
            metrics.scalars.remove("mia_accuracy");
        };
        assert_eq!(of(&[modular(), retrain()], &attackless).unwrap_err(), "it needs mia_accuracy, which is not there");
    }

    #[test]
    fn break_even_follows_its_definition() {
        let phases = Phases { cluster: 1.0, offline: 2.0, condense: 3.0, request: 0.5, reduce: 0.5, unlearn: 1.0, ..Phases::default() };
        assert!(matches!(break_even(phases, Some(5.0)), Some(BreakEven::Requests(requests)) if (requests - 2.0).abs() < 1e-12));
        assert!(matches!(break_even(phases, Some(2.0)), Some(BreakEven::Never)));
        assert!(break_even(Phases { unlearn: 1.0, ..Phases::default() }, Some(5.0)).is_none());
    }

    #[test]
    fn what_every_request_costs_is_compared_with_what_retraining_costs_for_one() {
        let (lineage, metrics) = evaluated(&[Case("modular", 1, &[], RETRAINED), Case("retrain", 1, &[], RETRAINED)], |_, _| {});
        let judged = judged(&lineage, &metrics).unwrap();
        let rows = rows(&judged);
        assert_eq!((rows[0].phases.once(), rows[0].phases.each_request(), rows[0].retraining), (4.0, 1.5, Some(10.5)));
        assert!(matches!(rows[0].break_even, Some(BreakEven::Requests(requests)) if (requests - 4.0 / 9.0).abs() < 1e-12));
    }

    #[test]
    fn passes_are_a_share_of_those_of_the_retraining_at_the_same_point() {
        let at = |ratio: &'static str| -> &'static [(&'static str, &'static str)] {
            if ratio == "0.1" { &[("ratio", "0.1")] } else { &[("ratio", "0.2")] }
        };
        let cases = [
            Case("modular", 1, at("0.1"), RETRAINED),
            Case("modular", 2, at("0.1"), RETRAINED),
            Case("modular", 1, at("0.2"), RETRAINED),
            Case("retrain", 1, at("0.1"), RETRAINED),
            Case("retrain", 1, at("0.2"), RETRAINED),
            Case("original", 1, &[], RETRAINED),
        ];
        let (mut lineage, metrics) = evaluated(&cases, |_, _| {});
        let cost = |lineage: &mut Lineage, name: &str, change: &dyn Fn(&mut Option<Cost>)| {
            change(&mut lineage.instances.iter_mut().find(|instance| instance.instance == name).unwrap().cost);
        };
        let double = |cost: &mut Option<Cost>| cost.as_mut().unwrap().backward *= 2;
        cost(&mut lineage, "modular-1#2", &double);
        cost(&mut lineage, "retrain-4#1", &double);
        let shown = |lineage: &Lineage| {
            let judged = judged(lineage, &metrics).unwrap();
            rows(&judged).iter().map(|row| row.passes).collect::<Vec<_>>()
        };
        // 10 and 20 samples of 100, 10 of 200; nobody asked the original to forget.
        assert_eq!(shown(&lineage), [Some(0.15), Some(0.05), Some(1.0), Some(1.0), None]);
        cost(&mut lineage, "modular-1#2", &|cost| *cost = None);
        assert_eq!(shown(&lineage)[..2], [None, Some(0.05)]);
        cost(&mut lineage, "retrain-4#1", &|cost| cost.as_mut().unwrap().backward = 0);
        assert_eq!(shown(&lineage)[1..4], [None, Some(1.0), None]);
    }
}
