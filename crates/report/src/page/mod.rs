//! One page that can be handed on: all that the tables say, and what they cannot show. It loads nothing, and the same inputs give the same bytes.

mod axis;
mod classes;
mod costs;
mod definitions;
mod evidence;
mod images;
mod losses;
mod plot;
mod seeds;
mod table;
mod trade_off;

use dcu_artifact::{Request, Retain};
use maud::{DOCTYPE, Markup, PreEscaped, html};

pub(crate) use self::plot::shortened;
pub(crate) use self::table::count;
use self::table::{Cell, Column, table};
use crate::report::{Report, shown};
use crate::summary::summary;
use crate::verdict::verdict;

/// A part of the page under a heading.
struct Section {
    id: &'static str,
    title: &'static str,
    body: Markup,
}

const STYLE: &str = include_str!("style.css");
/// Sorts and copies tables; without it they are as readable.
const SCRIPT: &str = include_str!("script.js");
/// Nothing is loaded, wherever the page lies.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// The page.
///
/// # Errors
/// When an image cannot be encoded.
pub(crate) fn page(report: &Report<'_>, requests: &[Request], sets: &[Retain]) -> anyhow::Result<String> {
    let sections: Vec<Section> = [
        Some(methods(report)),
        words(report),
        trade_off::section(report),
        losses::histograms(report),
        losses::curves(report),
        evidence::section(report),
        classes::section(report),
        seeds::section(report),
        images::section(report, sets)?,
        costs::section(report),
        Some(origin(report)),
        Some(definitions::section(report)),
        Some(definitions::limits(report)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let title = format!("Unlearning report: {}", report.lineage.pipeline);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#verdict" { "To the verdict" }
                header { h1 { (title) } p { (prose(&report.origin())) } }
                nav aria-label="Contents" {
                    ul {
                        li { a href="#verdict" { "Request and verdict" } }
                        @for section in &sections { li { a href={ "#" (section.id) } { (section.title) } } }
                    }
                }
                main {
                    section #verdict aria-labelledby="verdict-title" {
                        h2 #verdict-title { "Request and verdict" }
                        div.verdict { @for (title, text) in summary(report, requests) { p { strong { (title) ":" } " " (prose(&text)) } } }
                    }
                    @for section in &sections {
                        section id=(section.id) aria-labelledby={ (section.id) "-title" } {
                            h2 id={ (section.id) "-title" } { (section.title) }
                            (section.body)
                        }
                    }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

fn methods(report: &Report<'_>) -> Section {
    let scores = report.scores();
    let mut columns = vec![Column::plain("no.")];
    columns.extend(scores.iter().map(|score| Column::linked(score.heading, score.name)));
    columns.extend([
        Column::linked("distance, points", "distance"),
        Column::linked("null, points", "null"),
        Column::linked("passes, %", "passes"),
        Column::linked("once s", "once"),
        Column::linked("each s", "each"),
        Column::linked("break-even, requests", "break-even"),
    ]);
    let lines = report.rows.iter().enumerate().map(|(place, row)| {
        let mut cells = vec![Cell::number(Some((place + 1) as f64), 0)];
        cells.extend(scores.iter().map(|score| estimated(row.scores.get(score.name).copied(), 100.0)));
        cells.push(estimated(row.distance.as_ref().ok().copied(), 1.0));
        cells.push(estimated(row.null, 1.0));
        cells.push(Cell::number(row.passes.map(|passes| 100.0 * passes), 1));
        cells.push(Cell::number(Some(row.phases.once()).filter(|seconds| *seconds > 0.0), 1));
        cells.push(Cell::number(Some(row.phases.each_request()).filter(|seconds| *seconds > 0.0), 1));
        cells.push(costs::requests(row));
        (row.name(), cells)
    });
    let body = html! {
        (table("scores", "All models: scores with 95 % intervals, distance to retraining, cost", "method", &columns, lines.collect()))
        p { "Headings lead to the definitions. " (report.intervals()) }
        @let missing = report.missing();
        @if !missing.is_empty() { ul { @for reason in missing { li { (prose(&reason)) } } } }
    };
    Section { id: "methods", title: "Methods", body }
}

/// An estimate in this unit with its interval beneath.
fn estimated(estimate: Option<crate::statistics::Estimate>, unit: f64) -> Cell {
    let Some(estimate) = estimate.filter(|estimate| estimate.mean.is_finite()) else { return Cell::number(None, 1) };
    let text = shown(estimate, unit);
    let below = text.split_once(['\n', ' ']).map(|(_, interval)| interval.to_owned());
    Cell { below, ..Cell::number(Some(unit * estimate.mean), 1) }
}

/// What the numbers say of each method.
fn words(report: &Report<'_>) -> Option<Section> {
    let contenders = report.rows.iter().filter(|row| row.is_contender());
    let verdicts: Vec<(String, String)> = contenders.filter_map(|row| Some((row.name(), verdict(report.lineage, row)?))).collect();
    let body = html! {
        ul.words {
            @for (name, text) in &verdicts { li { strong { (name) } (prose(text.strip_prefix(name).unwrap_or(text))) } }
        }
    };
    (!verdicts.is_empty()).then_some(Section { id: "words", title: "Each method in words", body })
}

/// Every stage behind the report, with what it made.
fn origin(report: &Report<'_>) -> Section {
    let columns = ["method", "version", "seed", "from", "output", "content (BLAKE3)", "s"].map(Column::plain);
    let mut lines = Vec::new();
    for instance in &report.lineage.instances {
        let mut from: Vec<&str> = Vec::new();
        for name in instance.inputs.values().flatten() {
            if !from.contains(&name.as_str()) {
                from.push(name);
            }
        }
        for (name, output) in &instance.outputs {
            lines.push((
                instance.instance.clone(),
                vec![
                    Cell::code(instance.uses.clone()),
                    Cell::number(instance.version.map(f64::from), 0),
                    Cell {
                        text: instance.seed.map_or_else(|| "–".to_owned(), |seed| seed.to_string()),
                        value: instance.seed.map(|seed| seed as f64),
                        ..Cell::default()
                    },
                    Cell::text(listed(&from, 6)),
                    Cell::text(format!("{name} ({})", output.schema)),
                    Cell::code(output.digest.clone()),
                    Cell::number(Some(instance.seconds.total), 1),
                ],
            ));
        }
    }
    let body = html! {
        p {
            "Every artifact that this report rests on. The digest is of its content, and does not depend on where or when it was made: the same digest is the same content. Two runs with the same data, "
            "parameters, seeds and code have the same digests. Made by the method report/html, version " (crate::methods::html::VERSION) ", of dcu-report " (env!("CARGO_PKG_VERSION")) "."
        }
        (table("lineage", "Lineage", "stage", &columns, lines))
    };
    Section { id: "origin", title: "Where it comes from", body }
}

/// A text in which what stands between backticks is code, and no line begins with a unit.
fn prose(text: &str) -> Markup {
    let text = text.replace(" %", "\u{a0}%");
    html! {
        @for (place, part) in text.split('`').enumerate() {
            @if place % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Names, of which so many are listed at most.
fn listed(names: &[impl AsRef<str>], most: usize) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    if names.len() <= most {
        crate::verdict::listed(&names)
    } else {
        format!("{} and {} more", names[..most].join(", "), names.len() - most)
    }
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{Array, Metrics, RequestFacts};
    use serde_json::json;

    use super::*;
    use crate::rows::judged;
    use crate::rows::tests::{Case, evaluated};

    /// Per-sample losses, ids and classes as `attack/evaluate` writes them.
    fn detailed(case: &Case, metrics: &mut Metrics) {
        let shift = if case.0 == "retrain" { 1.0 } else { 0.1 };
        for (set, count) in [("retain", 50), ("forget", 20), ("test", 30)] {
            let losses: Vec<f64> = (0..count).map(|sample| shift * 0.01 * f64::from(sample * sample)).collect();
            metrics.array(&format!("{set}_losses"), Array::vector(losses), "nat", "cross-entropy");
            metrics.ids.insert(format!("{set}_ids"), (0..count as u64).collect());
            let classes = if set == "forget" { vec![1.0, case.3[1]] } else { vec![0.0, 0.9, 1.0, 0.8] };
            metrics.array(
                &format!("{set}_accuracy_per_class"),
                Array::new(vec![classes.len() / 2, 2], classes),
                "class, fraction",
                "of each class",
            );
        }
        metrics.array("nonmember_losses", Array::vector((0..20).map(f64::from).collect()), "nat", "cross-entropy");
        metrics.ids.insert("member_ids".into(), (0..20).collect());
    }

    fn of(cases: &[Case], more: impl Fn(&Case, &mut Metrics)) -> String {
        let (lineage, metrics) = evaluated(cases, more);
        let judged = judged(&lineage, &metrics).unwrap();
        let facts = RequestFacts { scenario: "poisoned".into(), classes: Vec::new(), cumulative: false };
        let request = Request { forget: (0..60).collect(), retain: (60..3000).collect(), earlier: Vec::new(), facts };
        let page = page(&Report::new(&lineage, &judged, Vec::new()), &[request], &[]).unwrap();
        check(&page);
        page
    }

    /// Elements that HTML does not close.
    const VOID: [&str; 2] = ["meta", "img"];

    /// Well-formed, without what is loaded from elsewhere, and every link, label and name leads to one element.
    fn check(page: &str) {
        let mut closed = String::new();
        for (place, part) in page.split('<').enumerate() {
            let is_void = VOID.iter().any(|name| part.starts_with(&format!("{name} ")));
            let start = if place == 0 { "" } else { "<" };
            closed += &format!("{start}{}", if is_void { part.replacen('>', "/>", 1) } else { part.to_owned() });
        }
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let tree = roxmltree::Document::parse_with_options(&closed, options).unwrap_or_else(|error| panic!("{error}\n{closed}"));
        let ids: Vec<&str> = tree.descendants().filter_map(|node| node.attribute("id")).collect();
        let mut unique = ids.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), ids.len(), "an id is given twice");
        for node in tree.descendants() {
            if let Some(target) = node.attribute("href") {
                assert!(target.starts_with('#') && ids.contains(&&target[1..]), "{target}");
            }
            for name in node.attribute("aria-labelledby").into_iter().flat_map(str::split_whitespace) {
                assert!(ids.contains(&name), "{name}");
            }
            for attribute in node.attributes() {
                let numbers = ["x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "d", "width", "height", "data-value"];
                assert!(!numbers.contains(&attribute.name()) || !attribute.value().contains(['N', 'i']), "{attribute:?}");
            }
        }
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("url(") && !page.contains("@import"));
        assert!(!page.contains("NaN") && !page.contains("inf<"));
    }

    const CASES: [Case; 4] = [
        Case("original", 1, &[], [1.0, 1.0, 0.9, 0.9]),
        Case("modular", 1, &[], [0.9, 0.2, 0.8, 0.6]),
        Case("retrain", 1, &[], [1.0, 0.0, 0.9, 0.5]),
        Case("null", 1, &[], [1.0, 0.0, 0.9, 0.54]),
    ];

    #[test]
    fn it_has_every_part_and_the_same_bytes_again() {
        let page = of(&CASES, detailed);
        for id in ["verdict", "methods", "words", "trade-off", "losses", "curves", "classes", "costs", "origin", "definitions", "limits"] {
            assert!(page.contains(&format!("<section id=\"{id}\"")), "no `{id}`");
        }
        assert!(!page.contains("<section id=\"seeds\""), "one seed has no gaps by seed");
        for place in 0..CASES.len() {
            assert!(page.contains(&format!("id=\"losses-{place}-title\"")) && page.contains(&format!("id=\"roc-{place}-title\"")));
        }
        assert!(page.contains("<td class=\"number\" data-value=\"20\">20.0 <span class=\"below\">[11.8, 31.8]</span></td>"), "{page}");
        assert_eq!(of(&CASES, detailed), page);
    }

    #[test]
    fn audits_have_a_table_words_and_curves() {
        let (_, metrics) = evaluated(&CASES, detailed);
        let cases = [("match", 0.57, 0.005), ("<b>", 0.5, 0.6), ("original", 0.9, 0.005)];
        let (timings, audited) = crate::audits::tests::audited(&cases);
        let mut lineage = evaluated(&CASES, detailed).0;
        lineage.instances.extend(crate::lineage::Lineage::parse(timings).unwrap().instances);
        let judged = judged(&lineage, &metrics).unwrap();
        let audits = crate::audits::audits(&lineage, &audited).unwrap();
        let page = page(&Report::new(&lineage, &judged, audits), &[], &[]).unwrap();
        check(&page);
        for expected in [
            "<section id=\"evidence\"",
            "57.0 <span class=\"below\">[56.0, 58.0], floor 50.0, p 0.005</span>",
            "id=\"evidence-0-0-title\"",
            "tells match from retraining",
        ] {
            assert!(page.contains(expected), "no `{expected}` in {page}");
        }
        assert!(!page.contains("<b>"));
    }

    #[test]
    fn what_a_user_names_is_text_and_nothing_else() {
        const NAME: &str = "<script>alert(1)</script>\"' & <b onclick=\"x\">";
        let long: &'static str = Box::leak("very-long-".repeat(30).into_boxed_str());
        let cases = [
            Case(NAME, 1, &[("<i>", "\"><img src=x>")], [0.9, 0.2, 0.8, 0.6]),
            Case(long, 1, &[], [0.9, 0.2, 0.8, 0.6]),
            Case("retrain", 1, &[], [1.0, 0.0, 0.9, 0.5]),
        ];
        let page = of(&cases, |case, metrics| {
            detailed(case, metrics);
            metrics.facts.insert("class_names".into(), json!(["</table>", "<svg onload=x>"]));
            metrics.absent.insert("<u>".into(), "a < b & c".into());
        });
        for raw in ["<script>alert", "<b ", "<img", "</table>\"", "<svg onload", "<u>", "<i>"] {
            assert!(!page.contains(raw), "`{raw}` is there as it was given");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("&lt;svg onload=x&gt;") && page.contains(long));
    }

    #[test]
    fn what_is_missing_leaves_no_hole() {
        // No retraining, no scores but one, losses that are no numbers.
        let bare = of(&CASES[1..2], |_, metrics| {
            metrics.scalars.clear();
            metrics.scalar("forget_accuracy", f64::NAN, "fraction", "a share");
            metrics.array("forget_losses", Array::vector(vec![f64::NAN, f64::INFINITY]), "nat", "cross-entropy");
        });
        assert!(bare.contains("There was no retraining to measure it against.") && bare.contains(">–</td>"), "{bare}");
        assert!(!bare.contains("<section id=\"losses\"") && !bare.contains("<section id=\"trade-off\""));
        // Without retraining, what is still recognised stands in for the distance.
        let alone = of(&CASES[..2], detailed);
        assert!(alone.contains("Forgotten samples still given their label, against cost") && alone.contains("There is no retraining here"));
        let retrained = of(&CASES[2..3], detailed);
        assert!(retrained.contains("no method of forgetting was applied") && !retrained.contains("<section id=\"words\""));
    }

    #[test]
    fn forgotten_classes_are_marked_and_the_rest_is_counted_apart() {
        let page = of(&CASES, |case, metrics| {
            detailed(case, metrics);
            metrics.facts.insert("forgotten_classes".into(), json!([1]));
            metrics.scalar("test_forgotten_accuracy", 0.25, "fraction", "a share of what is gone");
        });
        for expected in ["b (forgotten)", "test forgotten %", "a share of what is gone", "Of a class that was forgotten whole"] {
            assert!(page.contains(expected), "`{expected}` is not there");
        }
    }

    #[test]
    fn several_seeds_have_gaps_and_forty_methods_fit() {
        let names: Vec<&'static str> = (0..40).map(|which| &*Box::leak(format!("method {which}").into_boxed_str())).collect();
        let mut cases = Vec::new();
        for seed in 1..=3 {
            cases.extend(names.iter().enumerate().map(|(which, name)| Case(name, seed, &[], [0.9, 0.01 * which as f64, 0.8, 0.6])));
            cases.push(Case("retrain", seed, &[], [1.0, 0.0, 0.9, 0.5]));
        }
        let page = of(&cases, |case, metrics| {
            detailed(case, metrics);
            for set in ["retain", "forget", "test", "nonmember"] {
                let losses = (0..2000).map(|sample| f64::from(sample * 7919 % 2003) / 200.0).collect();
                metrics.array(&format!("{set}_losses"), Array::vector(losses), "nat", "cross-entropy");
            }
            metrics.ids.insert("forget_ids".into(), (0..2000).collect());
            metrics.ids.insert("member_ids".into(), (0..2000).collect());
        });
        assert!(page.len() < 2_000_000, "{} bytes", page.len());
        assert!(
            page.contains("<section id=\"seeds\"") && names.iter().all(|name| page.contains(&format!("<th scope=\"row\">{name}</th>")))
        );
        assert!(page.contains("numbers are those of the table"));
    }
}
