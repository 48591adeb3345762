//! `report/table`: one row a method, with intervals, distance to retraining, passes, seconds and the break-even number of requests; and in words what they say.

use std::collections::BTreeMap;

use dcu_artifact::Metrics;
use dcu_stage::{Context, Input, Method, Output, Rejected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::audits::{Audit, Said, Tell};
use crate::lineage::{COUNTS, Costs, Counts, Phases};
use crate::report::{Read, Report, seconds, shown};
use crate::rows::{APART, BreakEven, PHASES, Row, SCORES, Score};
use crate::statistics::Estimate;
use crate::table::{Column, TextTable, wrapped};
use crate::verdict::verdict;

pub(crate) struct Table;

/// Of the JSON (docs/contracts.md).
const SCHEMA: &str = "report/1";

/// There is nothing to choose.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {}

impl Method for Table {
    const NAME: &'static str = "table";
    const VERSION: u32 = 4;
    const SUMMARY: &'static str =
        "A table of all methods: scores with intervals, distance to retraining, passes, seconds, break-even, and a verdict in words";
    const USES_SEED: bool = false;
    const INPUTS: &'static [Input] = &[
        Input::many::<Metrics>("metrics"),
        // What `attack/audit` found.
        Input { optional: true, ..Input::many::<Metrics>("audits") },
    ];
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
        let read = Read::new(context)?;
        let judged = read.judged()?;
        let report = read.report(&judged)?;
        context.write_file("table", "file/txt", report.text().as_bytes())?;
        context.write_file("markdown", "file/md", report.markdown().as_bytes())?;
        context.write_file("csv", "file/csv", report.csv().as_bytes())?;
        context.write_file("json", "file/json", format!("{:#}\n", report.json()).as_bytes())
    }
}

impl Report<'_> {
    /// What each method did: its scores.
    fn score_columns(&self) -> Vec<Column> {
        let of = |score: Score| {
            let cell = |row: &Row<'_>| row.scores.get(score.name).map_or("-".into(), |estimate| shown(*estimate, 100.0));
            self.column(score.heading, cell)
        };
        self.scores().into_iter().map(of).collect()
    }

    /// How far that is from retraining, and what it cost.
    fn cost_columns(&self) -> Vec<Column> {
        vec![
            self.column("distance", |row| row.distance.as_ref().map_or("-".into(), |estimate| shown(*estimate, 1.0))),
            self.column("null", |row| row.null.map_or("-".into(), |null| shown(null, 1.0))),
            self.column("passes", |row| row.shown_passes().unwrap_or_else(|| "-".into())),
            self.column("once s", |row| seconds(row.phases.once())),
            self.column("each s", |row| seconds(row.phases.each_request())),
            self.column("break-even", |row| row.shown_break_even().unwrap_or_else(|| "-".into())),
        ]
    }

    fn column(&self, heading: &str, cell: impl Fn(&Row<'_>) -> String) -> Column {
        std::iter::once(heading.to_owned()).chain(self.rows.iter().map(cell)).collect()
    }

    fn methods(&self) -> Column {
        self.column("method", |row| row.name())
    }

    /// What single samples tell over many models, each score with its interval and, in parentheses, its floor.
    fn audit_columns(&self) -> Vec<Column> {
        let of = |tell: Tell| {
            let cell = |audit: &Audit<'_>| {
                audit.found(tell).map_or("-".into(), |found| {
                    let [value, low, high, floor] = found.shown(tell);
                    let p = if found.probability < 0.001 { "< 0.001".to_owned() } else { format!("{:.3}", found.probability) };
                    format!("{value}\n[{low}, {high}]\n({floor}) p {p}")
                })
            };
            std::iter::once(tell.heading.to_owned()).chain(self.audits.0.iter().map(cell)).collect()
        };
        self.audits.tells().into_iter().map(of).collect()
    }

    fn audited(&self) -> Column {
        std::iter::once("method".to_owned()).chain(self.audits.0.iter().map(|audit| audit.method.clone())).collect()
    }

    fn text(&self) -> String {
        let paragraphs = |texts: Vec<String>| texts.iter().map(|text| wrapped(text) + "\n").collect::<String>();
        let verdicts = self.verdicts();
        let gap = if verdicts.is_empty() { "" } else { "\n" };
        let tables: Vec<String> = [self.score_columns(), self.cost_columns()]
            .into_iter()
            .flat_map(|columns| TextTable::fitting(self.methods(), columns))
            .map(|table| table.to_text())
            .collect();
        let evidence = if self.audits.0.is_empty() {
            String::new()
        } else {
            let tables = TextTable::fitting(self.audited(), self.audit_columns());
            let tables: Vec<String> = tables.iter().map(TextTable::to_text).collect();
            format!("\n{}\n{}\n{}", tables.join("\n"), paragraphs(self.audits.words()), paragraphs(self.audits.notes()))
        };
        format!("{}\n{}{gap}{}{evidence}", tables.join("\n"), paragraphs(verdicts), paragraphs(self.notes()))
    }

    fn markdown(&self) -> String {
        let list = |title: &str, texts: Vec<String>| {
            let lines: String = texts.iter().map(|text| format!("- {text}\n")).collect();
            if lines.is_empty() { lines } else { format!("\n## {title}\n\n{lines}") }
        };
        let columns = [vec![self.methods()], self.score_columns(), self.cost_columns()].concat();
        let table = TextTable::of_columns(columns).to_markdown();
        let evidence = if self.audits.0.is_empty() {
            String::new()
        } else {
            let table = TextTable::of_columns([vec![self.audited()], self.audit_columns()].concat()).to_markdown();
            let texts = [self.audits.words(), self.audits.notes()].concat();
            format!("\n## Single samples\n\n{table}\n{}", texts.iter().map(|text| format!("- {text}\n")).collect::<String>())
        };
        format!("# {}\n\n{table}{}{evidence}{}", self.lineage.pipeline, list("Verdict", self.verdicts()), list("Notes", self.notes()))
    }

    /// One line a row, numbers only; a missing one is empty.
    fn csv(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:?}"));
        let scores: Vec<Score> = SCORES.into_iter().chain(APART).collect();
        let ends = |name: &str| [name.to_owned(), format!("{name}_low"), format!("{name}_high")];
        let mut heading = ["pipeline", "data", "method", "coordinates", "seeds"].map(str::to_owned).to_vec();
        heading.extend(scores.iter().flat_map(|score| ends(score.name)));
        heading.extend(ends("distance_to_retraining"));
        heading.push("null_distance".to_owned());
        heading.extend(PHASES.map(|(name, _)| name.to_owned()));
        heading.extend(["once_seconds", "each_request_seconds", "break_even_requests"].map(str::to_owned));
        heading.extend(["once", "each_request"].into_iter().flat_map(|when| COUNTS.map(|(name, _)| format!("{when}_{name}"))));
        heading.extend(["changed", "passes_of_retraining"].map(str::to_owned));
        let data = self.lineage.dataset_digests().into_iter().collect::<Vec<_>>().join(" ");
        let three = |estimate: Option<&Estimate>| {
            let interval = estimate.and_then(|estimate| estimate.interval);
            [estimate.map(|estimate| estimate.mean), interval.map(|(low, _)| low), interval.map(|(_, high)| high)].map(number)
        };
        let rows = self.rows.iter().map(|row| {
            let coordinates: Vec<String> = row.coordinates.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let seeds: Vec<String> = row.runs.iter().filter_map(|run| run.model.seed).map(|seed| seed.to_string()).collect();
            let mut cells =
                vec![self.lineage.pipeline.clone(), data.clone(), row.method.to_owned(), coordinates.join(" "), seeds.join(" ")];
            cells.extend(scores.iter().flat_map(|score| three(row.scores.get(score.name))));
            cells.extend(three(row.distance.as_ref().ok()));
            cells.push(number(row.null.map(|null| null.mean)));
            cells.extend(PHASES.map(|(_, pick)| number(Some(pick(row.phases)))));
            cells.extend([row.phases.once(), row.phases.each_request()].map(|seconds| number(Some(seconds))));
            cells.push(number(row.break_even.map(|requests| match requests {
                BreakEven::Requests(requests) => requests,
                BreakEven::Never => f64::INFINITY,
            })));
            let counts = |counts: Option<Counts>| (0..COUNTS.len()).map(move |which| number(counts.map(|counts| counts[which])));
            cells.extend(counts(row.costs.once).chain(counts(row.costs.each_request)));
            cells.extend([row.costs.changed, row.passes].map(number));
            cells
        });
        TextTable { heading, rows: rows.collect() }.to_csv()
    }

    fn json(&self) -> Value {
        let number = |estimate: &Estimate| {
            let ends = estimate.interval;
            json!({ "mean": estimate.mean, "low": ends.map(|(low, _)| low), "high": ends.map(|(_, high)| high) })
        };
        let rows = self.rows.iter().map(|row| {
            let runs = row.runs.iter().map(|run| {
                json!({ "seed": run.model.seed, "instance": run.model.instance, "scores": run.metrics.scalars, "absent": run.metrics.absent,
                        "seconds": seconds_of(run.phases), "cost": cost_of(run.costs) })
            });
            let verdict = Some(row).filter(|row| row.is_contender()).and_then(|row| verdict(self.lineage, row));
            json!({
                "method": row.method,
                "coordinates": row.coordinates.iter().map(|(key, value)| (*key, value)).collect::<BTreeMap<_, _>>(),
                "scores": row.scores.iter().map(|(score, estimate)| (*score, number(estimate))).collect::<BTreeMap<_, _>>(),
                "distance_to_retraining": row.distance.as_ref().ok().map(number),
                "no_distance_because": row.distance.as_ref().err(),
                "null_distance": row.null.as_ref().map(number),
                "distance_beyond_null": row.excess.as_ref().map(number),
                "seconds": seconds_of(row.phases),
                "cost": cost_of(row.costs),
                "passes_of_retraining": row.passes,
                "break_even_requests": match row.break_even {
                    Some(BreakEven::Requests(requests)) => json!(requests),
                    Some(BreakEven::Never) => json!("never"),
                    None => Value::Null,
                },
                "still_rests_on": self.lineage.learned_before_the_request(row.runs[0].model, row.runs[0].metrics),
                "verdict": verdict,
                "runs": runs.collect::<Vec<_>>(),
            })
        });
        let definitions: BTreeMap<_, _> = self.judged.iter().flat_map(|judged| &judged.metrics.definitions).collect();
        let told = self.audits.told();
        let audits = self.audits.0.iter().map(|audit| {
            let said = told.iter().find(|(other, ..)| other.instance == audit.instance).map(|(.., said)| match said {
                Said::Told => "told",
                Said::NotTold => "not told",
                Said::Undecided => "undecided",
            });
            json!({ "method": audit.method, "instance": audit.instance, "by_single_samples": said, "counts": audit.metrics.facts.get("counts"), "scores": audit.metrics.scalars, "absent": audit.metrics.absent })
        });
        let audits: Vec<Value> = audits.collect();
        let definitions_of_audits = self.audits.0.iter().flat_map(|audit| &audit.metrics.definitions);
        let definitions: BTreeMap<_, _> = definitions.into_iter().chain(definitions_of_audits).collect();
        // What the numbers are about: whoever has only this file must be able to tell it from that of other settings.
        let origin = self.lineage.instances.iter().map(|instance| {
            let outputs: BTreeMap<_, _> = instance.outputs.iter().map(|(name, output)| (name, &output.digest)).collect();
            json!({ "instance": instance.instance, "uses": instance.uses, "version": instance.version, "seed": instance.seed,
                    "parameters": instance.parameters, "inputs": instance.inputs, "outputs": outputs })
        });
        json!({
            "schema": SCHEMA, "origin": origin.collect::<Vec<_>>(), "audits": audits, "audit_words": self.audits.words(),
            "pipeline": self.lineage.pipeline, "seeds": self.seeds(), "data": self.lineage.dataset_digests(),
            "methods": rows.collect::<Vec<_>>(), "definitions": definitions, "notes": self.notes(),
        })
    }
}

/// Each phase, and what is paid once and for each request.
fn seconds_of(phases: Phases) -> BTreeMap<&'static str, f64> {
    let sums = [("once_seconds", phases.once()), ("each_request_seconds", phases.each_request())];
    PHASES.iter().map(|(name, pick)| (*name, pick(phases))).chain(sums).collect()
}

/// What was computed once and for each request, where it is known, and the share of parameters that changed.
fn cost_of(costs: Costs) -> Value {
    let counts = |counts: Counts| COUNTS.iter().zip(counts).map(|((name, _), count)| (*name, count)).collect::<BTreeMap<_, _>>();
    json!({ "once": costs.once.map(counts), "each_request": costs.each_request.map(counts), "changed": costs.changed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::judged;
    use crate::rows::tests::{Case, evaluated};
    use crate::table::LINE;

    const CASES: [Case; 4] = [
        Case("original", 1, &[], [1.0, 1.0, 0.9, 0.9]),
        Case("modular", 1, &[], [0.9, 0.2, 0.8, 0.6]),
        Case("retrain", 1, &[], [1.0, 0.0, 0.9, 0.5]),
        Case("null", 1, &[], [1.0, 0.0, 0.9, 0.54]),
    ];

    struct Shown {
        text: String,
        markdown: String,
        csv: String,
        json: Value,
    }

    fn report(cases: &[Case], more: impl Fn(&Case, &mut Metrics)) -> Shown {
        let (lineage, metrics) = evaluated(cases, more);
        let judged = judged(&lineage, &metrics).unwrap();
        let report = Report::new(&lineage, &judged, Vec::new());
        Shown { text: report.text(), markdown: report.markdown(), csv: report.csv(), json: report.json() }
    }

    #[test]
    fn an_interval_that_is_not_symmetric_is_shown_by_its_ends() {
        assert_eq!(shown(crate::statistics::share(0.0, 60.0), 100.0), "0.0\n[0.0, 6.0]");
        assert_eq!(shown(crate::statistics::over_seeds(&[0.1, 0.2, 0.3]).unwrap(), 100.0), "20.0 ± 24.8");
        let markdown = report(&CASES, |_, _| {}).markdown;
        assert!(markdown.contains(" 0.0 [0.0, 6.0] |"), "{markdown}");
        let text = report(&CASES, |_, _| {}).text;
        assert!(text.lines().all(|line| line.chars().count() <= LINE), "{text}");
    }

    #[test]
    fn every_form_has_all_that_makes_a_number_comparable() {
        let Shown { text, markdown, csv, json } = report(&CASES, |_, _| {});
        for shown in [&text, &markdown] {
            for expected in [
                "retain %",
                "distance",
                "null",
                "passes",
                " 10.0 %",
                " 100 %",
                " 100 %",
                "once s",
                "each s",
                "break-even",
                "Pipeline `test`, seeds 1, data dddddddddddd.",
            ] {
                assert!(shown.contains(expected), "`{expected}` is not in:\n{shown}");
            }
        }
        let cells = |line: usize| csv.lines().nth(line).unwrap().split(',').map(str::to_owned).collect::<Vec<_>>();
        let value = |line: usize, name: &str| cells(line)[cells(0).iter().position(|heading| heading == name).unwrap()].clone();
        assert_eq!(["pipeline", "data", "method", "seeds"].map(|name| value(2, name)), ["test", "dddddddddddd", "modular", "1"]);
        assert_eq!(["forget_accuracy", "once_seconds", "each_request_seconds"].map(|name| value(2, name)), ["0.2", "4.0", "1.5"]);
        assert_eq!(["once_backward", "each_request_operations", "changed"].map(|name| value(2, name)), ["40.0", "1000.0", "0.5"]);
        assert_eq!(["each_request_steps", "changed", "passes_of_retraining"].map(|name| value(1, name)), ["0.0", "", ""]);
        let expected =
            [("distance_to_retraining", 12.5), ("null_distance", 1.0), ("break_even_requests", 4.0 / 9.0), ("passes_of_retraining", 0.1)];
        for (name, expected) in expected {
            assert!((value(2, name).parse::<f64>().unwrap() - expected).abs() < 1e-9, "{name}: {}", value(2, name));
        }
        assert!(
            value(2, "forget_accuracy_low").parse::<f64>().unwrap() < 0.2 && value(2, "forget_accuracy_high").parse::<f64>().unwrap() > 0.2
        );
        assert_eq!((&json["pipeline"], &json["data"][0], &json["seeds"][0]), (&json!("test"), &json!("dddddddddddd"), &json!(1)));
        let modular = &json["methods"][1];
        assert!(modular["scores"]["forget_accuracy"]["low"].as_f64().unwrap() < 0.2);
        assert!((modular["null_distance"]["mean"].as_f64().unwrap() - 1.0).abs() < 1e-9);
        assert_eq!((&modular["passes_of_retraining"], &modular["cost"]["changed"]), (&json!(0.1), &json!(0.5)));
        let once = json!({ "forward": 120.0, "backward": 40.0, "steps": 4.0, "operations": 4000.0 });
        assert_eq!((&modular["cost"]["once"], &modular["runs"][0]["cost"]["once"]), (&once, &once));
        assert_eq!(modular["still_rests_on"], json!(["base", "offline"]));
        assert!(modular["verdict"].as_str().unwrap().starts_with("modular: "));
        assert!(json["methods"][0]["verdict"].is_null() && json["methods"][2]["verdict"].is_null());
        assert!(
            text.replace("\n  ", " ").contains("\nmodular: still gives the forgotten samples their label in 20 %, retraining in 0 %."),
            "{text}"
        );
    }

    #[test]
    fn a_missing_distance_has_its_reason_and_reasons_are_not_repeated() {
        let attackless = |_: &Case, metrics: &mut Metrics| {
            metrics.scalars.remove("mia_accuracy");
            metrics.absent.insert("mia_accuracy".into(), "1 pair is too few".into());
        };
        let text = report(&CASES, attackless).text;
        assert_eq!(text.matches("No mia_accuracy: 1 pair is too few.").count(), 1, "{text}");
        assert_eq!(text.matches("No distance: it needs mia_accuracy, which is not there.").count(), 1, "{text}");
        assert!(!text.contains("modular: No") && !text.contains("by chance alone"), "{text}");
        let one = |case: &Case, metrics: &mut Metrics| {
            if case.0 == "modular" {
                attackless(case, metrics);
            }
        };
        let text = report(&CASES, one).text;
        assert!(text.contains("No mia_accuracy: 1 pair is too few (modular)."), "{text}");
    }

    #[test]
    fn the_null_is_explained_only_where_there_is_one() {
        assert!(report(&CASES, |_, _| {}).text.contains("the row `null`"));
        let without = report(&CASES[..3], |_, _| {}).text;
        assert!(!without.contains("`null`") && !without.contains("null:"), "{without}");
        assert!(report(&CASES[..2], |_, _| {}).text.contains("No distance: there is no row `retrain` to measure it from."));
    }

    #[test]
    fn what_so_few_samples_can_say_is_said() {
        let text = report(&CASES, |_, _| {}).text;
        assert!(text.replace("\n  ", " ").contains("With 60 pairs it varies by about ± 12 points by chance alone."), "{text}");
    }

    #[test]
    fn forgotten_classes_and_earlier_requests_are_shown_apart() {
        let more = |_: &Case, metrics: &mut Metrics| {
            metrics.scalar("test_forgotten_accuracy", 0.25, "fraction", "a share");
            metrics.scalar("earlier_accuracy", 0.5, "fraction", "a share");
            metrics.facts.insert("forgotten_classes".into(), json!([1]));
        };
        let text = report(&CASES, more).text.replace("\n  ", " ");
        for expected in ["test forgotten %", "earlier %", "no sample is retained (`b`)", "25.0", "50.0"] {
            assert!(text.contains(expected), "`{expected}` is not in:\n{text}");
        }
        assert!(!report(&CASES, |_, _| {}).text.contains("forgotten %"));
    }
}
