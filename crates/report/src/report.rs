//! What every form of the report shares: the rows, and what a reader must know to use the numbers.

use std::collections::{BTreeMap, BTreeSet};

use dcu_artifact::{Digest, Metrics};
use dcu_stage::{Context, Failure};
use serde_json::Value;

use crate::audits::{Audit, Audits, audits};
use crate::lineage::Lineage;
use crate::rows::{APART, ATTACK, EARLIER, FORGOTTEN_CLASSES, Judged, NULL, REFERENCE, Row, SCORES, Score, judged, rows};
use crate::statistics::{Estimate, attack_noise};
use crate::verdict::verdict;

/// The rows of a report, and where they come from.
pub(crate) struct Report<'a> {
    pub(crate) lineage: &'a Lineage,
    pub(crate) judged: &'a [Judged<'a>],
    pub(crate) rows: Vec<Row<'a>>,
    pub(crate) audits: Audits<'a>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(lineage: &'a Lineage, judged: &'a [Judged<'a>], audits: Vec<Audit<'a>>) -> Self {
        Self { lineage, judged, rows: rows(judged), audits: Audits(audits) }
    }

    pub(crate) fn seeds(&self) -> BTreeSet<u64> {
        self.judged.iter().filter_map(|judged| judged.model.seed).collect()
    }

    /// The scores of the table: those that some row has beside those that all should have.
    pub(crate) fn scores(&self) -> Vec<Score> {
        let is_there = |score: &Score| self.rows.iter().any(|row| row.scores.contains_key(score.name));
        SCORES.into_iter().chain(APART.into_iter().filter(is_there)).collect()
    }

    pub(crate) fn verdicts(&self) -> Vec<String> {
        self.rows.iter().filter(|row| row.is_contender()).filter_map(|row| verdict(self.lineage, row)).collect()
    }

    /// What a reader must know to use the numbers.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = vec![self.origin(), self.intervals()];
        let mut distance = format!("distance: mean absolute difference, in points, of the four scores to the mean of `{REFERENCE}`");
        if self.rows.iter().any(|row| row.null.is_some()) {
            let there = self.rows.iter().any(|row| row.method == NULL);
            distance += "; null: that of a second retraining";
            distance +=
                if there { ", the row `null`, which shows how much of it is chance" } else { ", which shows how much of it is chance" };
        }
        notes.push(distance + ".");
        notes.extend(self.yardstick());
        notes.push(self.attack());
        if self.rows.iter().any(|row| row.passes.is_some()) {
            notes.push(format!(
                "passes: samples backward for each request, as a share of those of `{REFERENCE}`: counted where networks compute, and the same on any machine. CSV and \
                 JSON also have samples forward, gradient steps and floating point operations, once and for each request, and the share of parameters that changed."
            ));
        }
        if self.rows.iter().any(|row| row.phases.once() > 0.0) {
            notes.push(
                "once: what does not depend on the request, but for data and the original model. each: what does. break-even: once / (what retraining costs for a \
                 request - what the method does), the requests after which the former has paid for itself."
                    .to_owned(),
            );
        }
        notes.extend(self.apart());
        notes.extend(self.missing());
        notes
    }

    pub(crate) fn origin(&self) -> String {
        let seeds = self.seeds().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let data = self.lineage.dataset_digests().into_iter().collect::<Vec<_>>().join(", ");
        let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
        format!("Pipeline `{}`, seeds {}, data {}.", self.lineage.pipeline, or_none(seeds), or_none(data))
    }

    /// That what everything is measured against is no plain training anew.
    pub(crate) fn yardstick(&self) -> Option<String> {
        let of = |label: &str| self.judged.iter().find(|judged| judged.method == label).map(|judged| judged.model);
        let odd = [REFERENCE, NULL].into_iter().filter_map(|label| Some((label, of(label)?.is_not_plain_retraining()?)));
        let odd: Vec<String> =
            odd.map(|(label, why)| format!("The row `{label}` is no plain training anew on all that is retained: {why}.")).collect();
        (!odd.is_empty()).then(|| odd.join(" "))
    }

    pub(crate) fn intervals(&self) -> String {
        let single = self.rows.iter().any(|row| row.runs.len() == 1);
        let several = self.rows.iter().any(|row| row.runs.len() > 1);
        let binomial = "in brackets is the 95 % binomial interval over the samples; it says nothing of how training varies.";
        match (single, several) {
            (true, true) => {
                format!("Values with ± are means over the seeds with the 95 % t interval. Those of one seed alone have none: {binomial}")
            }
            (_, true) => "Each value is the mean over the seeds ± the 95 % t interval.".to_owned(),
            _ => format!("One seed: {binomial}"),
        }
    }

    /// What the attack is, and what so many samples can say.
    pub(crate) fn attack(&self) -> String {
        let what = "attack: accuracy of telling forget samples from unseen ones of the same classes by their loss; 50 is chance";
        let pairs: BTreeSet<u64> =
            self.rows.iter().filter(|row| row.scores.contains_key(ATTACK.name)).filter_map(|row| row.count(ATTACK.count)).collect();
        let (Some(&fewest), Some(&most)) = (pairs.first(), pairs.last()) else { return format!("{what}.") };
        let counted = if fewest == most { format!("{fewest} pairs") } else { format!("{fewest} to {most} pairs") };
        let noise = 100.0 * attack_noise(fewest);
        format!("{what}. With {counted} it varies by about ± {noise:.0} points by chance alone.")
    }

    /// What is counted apart: classes of which nothing is left, and samples that earlier requests forgot.
    pub(crate) fn apart(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let has = |score: Score| self.rows.iter().any(|row| row.scores.contains_key(score.name));
        if has(FORGOTTEN_CLASSES) {
            let of = |metrics: &Metrics| {
                let names = metrics.facts.get("class_names").cloned().unwrap_or_default();
                let classes = metrics.facts.get("forgotten_classes").and_then(Value::as_array).cloned().unwrap_or_default();
                let named = |class: &Value| names[class.as_u64()? as usize].as_str().map(|name| format!("`{name}`"));
                classes.iter().filter_map(named).collect::<Vec<_>>()
            };
            let classes: BTreeSet<String> = self.judged.iter().flat_map(|judged| of(judged.metrics)).collect();
            let listed = classes.into_iter().collect::<Vec<_>>().join(", ");
            notes.push(format!(
                "{}: accuracy on test samples of classes of which no sample is retained ({listed}); test % and the distance leave them out.",
                FORGOTTEN_CLASSES.heading
            ));
        }
        if has(EARLIER) {
            notes.push(format!(
                "{}: share of the samples that earlier requests forgot that the model still gives their label.",
                EARLIER.heading
            ));
        }
        notes
    }

    /// Why numbers are missing, each reason once, with the rows that it is about.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
        for row in &self.rows {
            let absent: BTreeMap<&String, &String> = row.runs.iter().flat_map(|run| &run.metrics.absent).collect();
            let scores = absent.into_iter().map(|(score, reason)| format!("No {score}: {reason}"));
            let distance = row.distance.as_ref().err().map(|reason| format!("No distance: {reason}"));
            for reason in scores.chain(distance) {
                match reasons.iter_mut().find(|(known, _)| *known == reason) {
                    Some((_, names)) => names.push(row.name()),
                    None => reasons.push((reason, vec![row.name()])),
                }
            }
        }
        let whom = |names: Vec<String>| if names.len() == self.rows.len() { String::new() } else { format!(" ({})", names.join("; ")) };
        reasons.into_iter().map(|(reason, names)| format!("{reason}{}.", whom(names))).collect()
    }
}

/// What every form of the report reads: judged models, audits, and the runner's timings.
pub(crate) struct Read {
    metrics: Vec<(Metrics, Digest)>,
    audited: Vec<(Metrics, Digest)>,
    lineage: Lineage,
}

impl Read {
    /// The inputs `metrics` and `audits`, and the timings.
    pub(crate) fn new(context: &mut Context) -> anyhow::Result<Self> {
        Ok(Self { metrics: context.read_many("metrics")?, audited: context.read_many("audits")?, lineage: lineage(context)? })
    }

    pub(crate) fn judged(&self) -> anyhow::Result<Vec<Judged<'_>>> {
        judged(&self.lineage, &self.metrics)
    }

    pub(crate) fn report<'a>(&'a self, judged: &'a [Judged<'a>]) -> anyhow::Result<Report<'a>> {
        Ok(Report::new(&self.lineage, judged, audits(&self.lineage, &self.audited)?))
    }
}

/// The runner's timings, without which nobody knows which model each result judges.
fn lineage(context: &Context) -> anyhow::Result<Lineage> {
    let timings = context.timings()?.ok_or_else(|| {
        Failure::new(
            "the report needs to know which model each result judges",
            "run it through `cargo xtask run`, or give `--timings FILE`",
        )
    })?;
    Lineage::parse(timings)
}

/// A value with its interval: `mean ± half` over seeds, over samples the ends below the mean.
pub(crate) fn shown(estimate: Estimate, unit: f64) -> String {
    let Estimate { mean, interval, is_over_seeds } = estimate.times(unit);
    match interval {
        None => format!("{mean:.1}"),
        Some((low, high)) if is_over_seeds => format!("{mean:.1} ± {:.1}", 0.5 * (high - low)),
        Some((low, high)) => format!("{mean:.1}\n[{low:.1}, {high:.1}]"),
    }
}

pub(crate) fn seconds(value: f64) -> String {
    if value > 0.0 { format!("{value:.1}") } else { "-".into() }
}
