//! What forgetting costs: each method as a point, its distance to retraining and its accuracy against the passes or seconds that a request takes.

use maud::{Markup, html};

use super::axis::Scale;
use super::plot::{Frame, Name, Px, place_labels, plot, shortened};
use super::table::number;
use super::{Section, listed};
use crate::report::Report;
use crate::rows::{NULL, REFERENCE, Row, SCORES, Score};
use crate::statistics::Estimate;

/// What is paid for a request.
struct Cost {
    name: &'static str,
    unit: f64,
    of: fn(&Row<'_>) -> Option<f64>,
}

const PASSES: Cost = Cost { name: "samples backward a request, % of retraining's (logarithmic)", unit: 100.0, of: |row| row.passes };
const SECONDS: Cost = Cost {
    name: "seconds a request (logarithmic)",
    unit: 1.0,
    of: |row| Some(row.phases.each_request()).filter(|_| row.runs[0].model.forgets()),
};

/// What is set against it.
struct Measure {
    id: &'static str,
    title: String,
    axis: &'static str,
    of: fn(&Row<'_>) -> Option<Estimate>,
    /// In the unit of the axis.
    unit: f64,
    /// A line that says how far chance goes, or where retraining is, and what it is called.
    line: Option<(f64, String)>,
}

const TEST: Score = SCORES[2];

pub(crate) fn section(report: &Report<'_>) -> Option<Section> {
    let cost = if report.rows.iter().any(|row| row.is_contender() && (PASSES.of)(row).is_some()) { PASSES } else { SECONDS };
    let figures: Vec<Markup> =
        [forgetting(report), utility(report)].into_iter().filter_map(|measure| figure(report, &measure, &cost)).collect();
    if figures.is_empty() {
        return None;
    }
    let left_out: Vec<String> =
        report.rows.iter().filter(|row| row.runs[0].model.forgets() && (cost.of)(row).is_none()).map(Row::name).collect();
    let body = html! {
        p {
            "Down and to the left is better in the first plot: as near to retraining as chance allows, for little. In the second, up and to \
                the left is. Models that were not asked to forget, and methods that pay nothing of this kind, stand on "
            "the left, at \u{201c}none\u{201d}. Bars are 95 % intervals. " span.key.mark.method { "method" } ", \
                " span.key.mark.retraining { "retraining" } ", " span.key.mark.other { "other model" } "."
        }
        div.plots.wide { @for figure in figures { (figure) } }
        @if !left_out.is_empty() { p { "What " (listed(&left_out, 8)) " cost is not known in this unit." } }
    };
    Some(Section { id: "trade-off", title: "Forgetting, accuracy and cost", body })
}

/// The distance to retraining, or without one what is still recognised.
fn forgetting(report: &Report<'_>) -> Measure {
    if report.rows.iter().any(|row| row.distance.is_ok()) {
        let nulls: Vec<f64> = report.rows.iter().filter_map(|row| row.null).map(|null| null.mean).collect();
        let alike = nulls.iter().all(|null| (null - nulls[0]).abs() < 1e-9);
        let line = nulls.first().filter(|_| alike).map(|null| (*null, format!("second retraining: {null:.1}")));
        return Measure {
            id: "distance",
            title: "Distance to retraining against cost".to_owned(),
            axis: "distance to retraining, points",
            of: |row| row.distance.as_ref().ok().copied(),
            unit: 1.0,
            line,
        };
    }
    Measure {
        id: "forget",
        title: "Forgotten samples still given their label, against cost".to_owned(),
        axis: "forget, %",
        of: |row| row.scores.get(SCORES[1].name).copied(),
        unit: 100.0,
        line: None,
    }
}

fn utility(report: &Report<'_>) -> Measure {
    let retrained = report.rows.iter().find(|row| row.method == REFERENCE).and_then(|row| row.scores.get(TEST.name));
    Measure {
        id: "utility",
        title: "Accuracy on test samples against cost".to_owned(),
        axis: "test accuracy, %",
        of: |row| row.scores.get(TEST.name).copied(),
        unit: 100.0,
        line: retrained.map(|estimate| (100.0 * estimate.mean, format!("retraining: {:.1}", 100.0 * estimate.mean))),
    }
}

struct Point {
    name: String,
    kind: &'static str,
    cost: Option<f64>,
    estimate: Estimate,
}

const SIZE: (f64, f64) = (400.0, 310.0);
/// Room for what costs nothing, left of the axis of costs.
const FREE: f64 = 54.0;

fn figure(report: &Report<'_>, measure: &Measure, cost: &Cost) -> Option<Markup> {
    let points = report.rows.iter().filter_map(|row| {
        let estimate = (measure.of)(row)?.times(measure.unit);
        let paid = (cost.of)(row).filter(|paid| paid.is_finite());
        let kind = match row.method {
            REFERENCE | NULL => "retraining",
            _ if row.is_contender() => "method",
            _ => "other",
        };
        // What was asked to forget stands at its cost or not at all.
        let cost = paid.filter(|paid| *paid > 0.0);
        (estimate.mean.is_finite() && paid.is_some() == row.runs[0].model.forgets()).then(|| Point {
            name: row.name(),
            kind,
            cost,
            estimate,
        })
    });
    let points: Vec<Point> = points.collect();
    if points.is_empty() {
        return None;
    }
    let ends = points.iter().flat_map(|point| {
        let (low, high) = point.estimate.ends();
        [low, high, point.estimate.mean]
    });
    let zero = Some(0.0).filter(|_| measure.unit == 1.0);
    let y = Scale::linear(ends.chain(measure.line.iter().map(|(value, _)| *value)).chain(zero));
    let x = Scale::log(points.iter().filter_map(|point| point.cost).chain(Some(1.0).filter(|_| cost.unit == 100.0)));
    let frame = Frame { width: SIZE.0, height: SIZE.1, room: [44.0 + FREE, 16.0, 24.0, 38.0], x, y };
    let axis_left = frame.left() - FREE;
    let left = |cost: Option<f64>| cost.map_or(axis_left + 0.4 * FREE, |cost| frame.x(cost));
    let places: Vec<(f64, f64)> = points.iter().map(|point| (left(point.cost), frame.y(point.estimate.mean))).collect();
    let bounds = [axis_left + 2.0, frame.top() - 8.0, frame.right() + 12.0, frame.bottom() + 4.0];
    let names: Vec<String> = points.iter().map(|point| shortened(&point.name, 20)).collect();
    let mut labels = (names.clone(), place_labels(&places, &names, bounds));
    if labels.1.iter().any(Option::is_none) {
        let number = |name: &String| {
            report.rows.iter().position(|row| row.name() == *name).map_or_else(String::new, |place| (place + 1).to_string())
        };
        let numbers: Vec<String> = points.iter().map(|point| number(&point.name)).collect();
        labels = (numbers.clone(), place_labels(&places, &numbers, bounds));
    }
    let told = points.iter().map(|point| {
        let paid = point.cost.map_or_else(|| "nothing".to_owned(), |paid| number(cost.unit * paid));
        format!("{}: {} at {paid}", point.name, number(point.estimate.mean))
    });
    let described = format!("{} ({}): {}.", measure.title, cost.name, told.collect::<Vec<_>>().join("; "));
    let body = html! {
        @for value in frame.y.ticks() {
            line.grid x1=(Px(axis_left)) x2=(Px(frame.right())) y1=(Px(frame.y(value))) y2=(Px(frame.y(value))) {}
            text.tick x=(Px(axis_left - 5.0)) y=(Px(frame.y(value) + 3.5)) text-anchor="end" { (super::axis::tick(value)) }
        }
        text.name x="2" y="11" { (measure.axis) }
        (frame.x_axis(Name { text: cost.name, unit: cost.unit }))
        text.tick x=(Px(axis_left + 0.4 * FREE)) y=(Px(frame.bottom() + 14.0)) text-anchor="middle" { "none" }
        @if let Some((value, _)) = &measure.line {
            line.reference x1=(Px(axis_left)) x2=(Px(frame.right())) y1=(Px(frame.y(*value))) y2=(Px(frame.y(*value))) {}
        }
        @for (point, (x, y)) in points.iter().zip(&places) {
            g class={ "point " (point.kind) } {
                title { (point.name) ": " (number(point.estimate.mean)) }
                @if let Some((low, high)) = point.estimate.interval {
                    line.bar x1=(Px(*x)) x2=(Px(*x)) y1=(Px(frame.y(low))) y2=(Px(frame.y(high))) {}
                }
                @match point.kind {
                    "retraining" => rect x=(Px(x - 4.0)) y=(Px(y - 4.0)) width="8" height="8" {},
                    _ => circle cx=(Px(*x)) cy=(Px(*y)) r="4.5" {},
                }
            }
        }
        @for (label, place) in labels.0.iter().zip(&labels.1) {
            @if let Some((x, y)) = place { text.label x=(Px(*x)) y=(Px(*y)) { (label) } }
        }
    };
    let is_numbered = labels.0 != names;
    Some(html! {
        figure {
            figcaption {
                (measure.title)
                @if let Some((_, name)) = &measure.line { " (line: " (name) ")" }
                @if is_numbered { "; numbers are those of the table" }
            }
            (plot(&format!("trade-off-{}", measure.id), SIZE, &measure.title, &described, &body))
        }
    })
}
