//! `report/table`: one row a method, with intervals, distance to retraining, seconds of each phase and the break-even number of requests.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use dcu_artifact::{Digest, Metrics};
use dcu_stage::{Context, Failure, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lineage::{Instance, Lineage, Phases};
use crate::statistics::{Estimate, over_seeds, share};
use crate::table::{TextTable, wrapped};

/// The scores whose differences make up the distance to retraining, and the counts behind their binomial intervals.
const SCORES: [(&str, &str); 4] =
    [("retain_accuracy", "retain"), ("forget_accuracy", "forget"), ("test_accuracy", "test"), ("mia_accuracy", "attack_pairs")];
/// The label of the retrained model, which everything is measured against.
const REFERENCE: &str = "retrain";

pub(crate) struct Table;

/// There is nothing to choose.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {}

impl Method for Table {
    const NAME: &'static str = "table";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "A table of all methods: scores with intervals, distance to retraining, seconds, break-even";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[Input::many::<Metrics>("metrics")];
    const OUTPUTS: &'static [Output] = &[
        Output::file("table", "file/txt"),
        Output::file("markdown", "file/md"),
        Output::file("csv", "file/csv"),
        Output::file("json", "file/json"),
    ];
    const TIMINGS: bool = true;

    type Parameters = Parameters;
    type Checked = Parameters;

    fn check(parameters: Parameters) -> Result<Parameters, Rejected> {
        Ok(parameters)
    }

    fn run(_: &Parameters, context: &mut Context) -> anyhow::Result<()> {
        let metrics = context.read_many::<Metrics>("metrics")?;
        let timings = context.timings()?.ok_or_else(|| {
            Failure::new(
                "the report needs to know which model each result judges",
                "run it through `cargo xtask run`, or give `--timings FILE`",
            )
        })?;
        let lineage = Lineage::parse(timings)?;
        let report = Report::new(&lineage, &metrics)?;
        context.write_file("table", "file/txt", report.text().as_bytes())?;
        context.write_file("markdown", "file/md", report.markdown().as_bytes())?;
        context.write_file("csv", "file/csv", report.csv().as_bytes())?;
        context.write_file("json", "file/json", format!("{:#}\n", report.json()).as_bytes())
    }
}

/// One model of one seed, judged.
struct Judged<'a> {
    method: &'a str,
    model: &'a Instance,
    metrics: &'a Metrics,
    phases: Phases,
}

/// One method over its seeds.
struct Row<'a> {
    method: &'a str,
    runs: Vec<&'a Judged<'a>>,
    scores: BTreeMap<&'static str, Estimate>,
    distance: Option<Estimate>,
    phases: Phases,
    break_even: Option<BreakEven>,
}

#[derive(Clone, Copy)]
enum BreakEven {
    Requests(f64),
    Never,
}

struct Report<'a> {
    lineage: &'a Lineage,
    judged: Vec<Judged<'a>>,
}

impl<'a> Report<'a> {
    fn new(lineage: &'a Lineage, metrics: &'a [(Metrics, Digest)]) -> anyhow::Result<Self> {
        let digests: BTreeSet<String> = metrics.iter().map(|(_, digest)| digest.to_string()).collect();
        let by_digest: BTreeMap<&str, &Metrics> = metrics.iter().map(|(metrics, digest)| (digest.as_str(), metrics)).collect();
        let found: Vec<(&Instance, String)> =
            lineage.evaluations(&digests).map(|(instance, digest)| (instance, digest.to_owned())).collect();
        let mut judged = Vec::new();
        for (evaluation, digest) in found {
            let model = lineage
                .judged(evaluation)
                .with_context(|| format!("`{}` judges a model that the timings do not name", evaluation.instance))?;
            judged.push(Judged { method: &model.label, model, metrics: by_digest[digest.as_str()], phases: lineage.phases(model) });
        }
        Ok(Self { lineage, judged })
    }

    fn methods(&self) -> Vec<&'a str> {
        let mut methods = Vec::new();
        self.judged.iter().for_each(|judged| {
            if !methods.contains(&judged.method) {
                methods.push(judged.method);
            }
        });
        methods
    }

    fn runs(&self, method: &str) -> Vec<&Judged<'a>> {
        self.judged.iter().filter(|judged| judged.method == method).collect()
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let reference = self.mean_reference();
        let retraining = mean(self.runs(REFERENCE).iter().map(|run| run.phases.unlearn));
        self.methods()
            .into_iter()
            .map(|method| {
                let runs = self.runs(method);
                let phases = mean_phases(&runs);
                let scores = SCORES.into_iter().filter_map(|(score, count)| Some((score, estimate(&runs, score, count)?))).collect();
                let distances: Vec<f64> = runs.iter().filter_map(|run| distance(run.metrics, reference.as_ref()?)).collect();
                Row { method, scores, distance: over_seeds(&distances), phases, break_even: break_even(phases, retraining), runs }
            })
            .collect()
    }

    /// The mean score of the retrained models; `None` where a score is missing.
    fn mean_reference(&self) -> Option<[f64; 4]> {
        let runs = self.runs(REFERENCE);
        let scores: Vec<f64> =
            SCORES.iter().filter_map(|(score, _)| mean(runs.iter().filter_map(|run| run.metrics.scalars.get(*score).copied()))).collect();
        scores.try_into().ok()
    }

    fn seeds(&self) -> BTreeSet<u64> {
        self.judged.iter().filter_map(|judged| judged.model.seed).collect()
    }

    fn text_table(&self) -> TextTable {
        let heading = ["method", "retain %", "forget %", "test %", "attack %", "distance", "once s", "request s", "break-even"];
        let rows = self.rows().into_iter().map(|row| {
            let mut cells = vec![row.method.to_owned()];
            cells.extend(SCORES.iter().map(|(score, _)| row.scores.get(score).map_or("-".into(), |estimate| percent(*estimate))));
            cells.push(row.distance.map_or("-".into(), points));
            cells.push(seconds(row.phases.once()));
            cells.push(seconds(row.phases.each_request()));
            cells.push(match row.break_even {
                Some(BreakEven::Requests(requests)) => format!("{requests:.1}"),
                Some(BreakEven::Never) => "never".into(),
                None => "-".into(),
            });
            cells
        });
        TextTable { heading: heading.map(str::to_owned).to_vec(), rows: rows.collect() }
    }

    /// What a reader must know to use the numbers.
    fn notes(&self) -> Vec<String> {
        let seeds = self.seeds();
        let listed = |values: &[String]| if values.is_empty() { "none".to_owned() } else { values.join(", ") };
        let mut notes = vec![
            format!(
                "Pipeline `{}`, seeds {}, data {}.",
                self.lineage.pipeline,
                listed(&seeds.iter().map(ToString::to_string).collect::<Vec<_>>()),
                listed(&self.lineage.dataset_digests().into_iter().map(str::to_owned).collect::<Vec<_>>())
            ),
            if seeds.len() > 1 {
                "Each value is the mean over the seeds ± the 95 % t interval.".to_owned()
            } else {
                "One seed: ± is the 95 % binomial interval over the samples; it says nothing of how training varies.".to_owned()
            },
            format!(
                "distance: mean absolute difference, in points, of the four scores to the mean of `{REFERENCE}`; the row `null`, a second retraining, shows \
                 how much of it is chance. attack: accuracy of telling forget samples from unseen ones of the same classes by their loss; 50 is chance."
            ),
            "once: clustering, offline phase and condensation. request: request, reduced set and unlearning. break-even: requests after which the former has \
             paid for itself against retraining."
                .to_owned(),
        ];
        for row in self.rows() {
            let model = row.runs[0].model;
            let learned = self.lineage.learned_before_the_request(model);
            if model.forgets() && row.phases.once() > 0.0 {
                notes.push(format!("{}: still rests on what {} learned with the forgotten data.", row.method, learned.join(", ")));
            }
            for (score, reason) in row.runs.iter().flat_map(|run| &run.metrics.absent).collect::<BTreeMap<_, _>>() {
                notes.push(format!("{}: no {score}: {reason}.", row.method));
            }
        }
        if self.lineage.instances.iter().any(|instance| instance.trusted_code) {
            notes.push("Some results were made by earlier code that the user chose to trust (`--trust-code`).".to_owned());
        }
        notes
    }

    fn text(&self) -> String {
        let notes: Vec<String> = self.notes().iter().map(|note| wrapped(note)).collect();
        format!("{}\n{}\n", self.text_table().to_text(), notes.join("\n"))
    }

    fn markdown(&self) -> String {
        let notes: Vec<String> = self.notes().iter().map(|note| format!("- {note}")).collect();
        format!("# {}\n\n{}\n{}\n", self.lineage.pipeline, self.text_table().to_markdown(), notes.join("\n"))
    }

    /// One line a method, numbers only; a missing one is empty.
    fn csv(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:?}"));
        let mut heading = vec!["method".to_owned(), "seeds".to_owned()];
        heading.extend(SCORES.iter().flat_map(|(score, _)| [(*score).to_owned(), format!("{score}_low"), format!("{score}_high")]));
        heading.push("distance_to_retraining".to_owned());
        heading.extend(PHASES.map(|(name, _)| name.to_owned()));
        heading.push("break_even_requests".to_owned());
        let rows = self.rows().into_iter().map(|row| {
            let mut cells = vec![row.method.to_owned(), row.runs.len().to_string()];
            for (score, _) in SCORES {
                let estimate = row.scores.get(score);
                let interval = estimate.and_then(|estimate| estimate.interval);
                cells.extend([
                    number(estimate.map(|estimate| estimate.mean)),
                    number(interval.map(|(low, _)| low)),
                    number(interval.map(|(_, high)| high)),
                ]);
            }
            cells.push(number(row.distance.map(|distance| distance.mean)));
            cells.extend(PHASES.map(|(_, pick)| number(Some(pick(row.phases)))));
            cells.push(number(row.break_even.map(|requests| match requests {
                BreakEven::Requests(requests) => requests,
                BreakEven::Never => f64::INFINITY,
            })));
            cells
        });
        TextTable { heading, rows: rows.collect() }.to_csv()
    }

    fn json(&self) -> Value {
        let number = |estimate: &Estimate| json!({ "mean": estimate.mean, "interval": estimate.interval });
        let rows = self.rows().into_iter().map(|row| {
            let runs = row.runs.iter().map(|run| {
                json!({ "seed": run.model.seed, "instance": run.model.instance, "scores": run.metrics.scalars, "absent": run.metrics.absent,
                        "seconds": phase_values(run.phases) })
            });
            json!({
                "method": row.method,
                "scores": row.scores.iter().map(|(score, estimate)| (*score, number(estimate))).collect::<BTreeMap<_, _>>(),
                "distance_to_retraining": row.distance.as_ref().map(number),
                "seconds": phase_values(row.phases),
                "break_even_requests": match row.break_even {
                    Some(BreakEven::Requests(requests)) => json!(requests),
                    Some(BreakEven::Never) => json!("never"),
                    None => Value::Null,
                },
                "runs": runs.collect::<Vec<_>>(),
            })
        });
        let definitions: BTreeMap<_, _> = self.judged.iter().flat_map(|judged| &judged.metrics.definitions).collect();
        json!({
            "pipeline": self.lineage.pipeline, "seeds": self.seeds(), "data": self.lineage.dataset_digests(),
            "methods": rows.collect::<Vec<_>>(), "definitions": definitions, "notes": self.notes(),
        })
    }
}

type PickPhase = fn(Phases) -> f64;

const PHASES: [(&str, PickPhase); 6] = [
    ("cluster_seconds", |phases| phases.cluster),
    ("offline_seconds", |phases| phases.offline),
    ("condense_seconds", |phases| phases.condense),
    ("request_seconds", |phases| phases.request),
    ("reduce_seconds", |phases| phases.reduce),
    ("unlearn_seconds", |phases| phases.unlearn),
];

fn phase_values(phases: Phases) -> BTreeMap<&'static str, f64> {
    PHASES.iter().map(|(name, pick)| (*name, pick(phases))).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    over_seeds(&values.collect::<Vec<_>>()).map(|estimate| estimate.mean)
}

fn mean_phases(runs: &[&Judged<'_>]) -> Phases {
    let average = |pick: PickPhase| mean(runs.iter().map(|run| pick(run.phases))).unwrap_or(0.0);
    let [cluster, offline, condense, request, reduce, unlearn] = PHASES.map(|(_, pick)| average(pick));
    Phases { cluster, offline, condense, request, reduce, unlearn }
}

/// Over several seeds the t interval; over one the binomial interval.
fn estimate(runs: &[&Judged<'_>], score: &str, count: &str) -> Option<Estimate> {
    let values: Vec<f64> = runs.iter().filter_map(|run| run.metrics.scalars.get(score).copied()).collect();
    let estimate = over_seeds(&values)?;
    let samples = runs[0].metrics.facts.get("counts").and_then(|counts| counts[count].as_f64());
    // The attack judges members and as many non-members.
    let samples = samples.map(|samples| if count == "attack_pairs" { 2.0 * samples } else { samples });
    match (estimate.interval, samples) {
        (None, Some(samples)) if samples > 0.0 => Some(share(estimate.mean, samples)),
        _ => Some(estimate),
    }
}

/// In points.
fn distance(metrics: &Metrics, reference: &[f64; 4]) -> Option<f64> {
    let differences: Option<Vec<f64>> =
        SCORES.iter().zip(reference).map(|((score, _), reference)| Some((metrics.scalars.get(*score)? - reference).abs())).collect();
    mean(differences?.into_iter()).map(|fraction| 100.0 * fraction)
}

/// How many requests it takes until what is paid once has paid for itself; `None` for a method that pays nothing once.
fn break_even(phases: Phases, retraining: Option<f64>) -> Option<BreakEven> {
    let saved = retraining? - phases.each_request();
    (phases.once() > 0.0 && phases.unlearn > 0.0)
        .then(|| if saved > 0.0 { BreakEven::Requests(phases.once() / saved) } else { BreakEven::Never })
}

fn percent(estimate: Estimate) -> String {
    let half = estimate.interval.map(|(low, high)| 50.0 * (high - low));
    half.map_or_else(|| format!("{:.1}", 100.0 * estimate.mean), |half| format!("{:.1} ± {half:.1}", 100.0 * estimate.mean))
}

fn points(estimate: Estimate) -> String {
    match estimate.interval {
        Some((low, high)) => format!("{:.1} ± {:.1}", estimate.mean, 0.5 * (high - low)),
        None => format!("{:.1}", estimate.mean),
    }
}

fn seconds(value: f64) -> String {
    if value > 0.0 { format!("{value:.1}") } else { "-".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn break_even_follows_its_definition() {
        let phases = Phases { cluster: 1.0, offline: 2.0, condense: 3.0, request: 0.5, reduce: 0.5, unlearn: 1.0 };
        assert!(matches!(break_even(phases, Some(5.0)), Some(BreakEven::Requests(requests)) if (requests - 2.0).abs() < 1e-12));
        assert!(matches!(break_even(phases, Some(2.0)), Some(BreakEven::Never)));
        assert!(break_even(Phases { unlearn: 1.0, ..Phases::default() }, Some(5.0)).is_none());
    }

    #[test]
    fn the_distance_is_the_mean_difference_in_points() {
        let mut metrics = Metrics::default();
        for (score, value) in SCORES.iter().zip([0.9, 0.5, 0.4, 0.6]) {
            metrics.scalar(score.0, value, "fraction", "");
        }
        assert!((distance(&metrics, &[1.0, 0.5, 0.5, 0.5]).unwrap() - 7.5).abs() < 1e-9);
        metrics.scalars.remove("mia_accuracy");
        assert_eq!(distance(&metrics, &[1.0, 0.5, 0.5, 0.5]), None);
    }
}
