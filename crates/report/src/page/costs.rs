//! What each method cost, phase by phase, and when it has paid for itself.

use maud::{Markup, html};

use super::Section;
use super::axis::Scale;
use super::plot::{Frame, Name, Px, plot, shortened};
use super::table::{Cell, Column, count, number, table};
use crate::lineage::{COUNTS, Counts};
use crate::report::Report;
use crate::rows::{BreakEven, PHASES, REFERENCE, Row};

pub(crate) fn section(report: &Report<'_>) -> Option<Section> {
    let rows: Vec<&Row<'_>> = report.rows.iter().filter(|row| row.runs[0].model.forgets()).collect();
    if rows.is_empty() {
        return None;
    }
    let figures: Vec<Markup> = [bars(&rows), break_even(&rows)].into_iter().flatten().collect();
    let body = html! {
        p {
            "Seconds are of the machine that this was run on; passes and operations were counted where networks compute, and are the same \
                on any. What is paid once does not depend on the request: "
            "it is repaid, if at all, by requests that cost less than retraining."
        }
        div.plots.wide { @for figure in figures { (figure) } }
        (seconds(&rows))
        (work(&rows))
    };
    Some(Section { id: "costs", title: "Time and work", body })
}

fn seconds(rows: &[&Row<'_>]) -> Markup {
    let phases: Vec<_> = PHASES.iter().filter(|(_, pick)| rows.iter().any(|row| pick(row.phases) > 0.0)).collect();
    let mut columns: Vec<Column> =
        phases.iter().map(|(name, _)| Column::linked(&format!("{} s", name.trim_end_matches("_seconds")), "phases")).collect();
    columns.extend([
        Column::linked("once s", "once"),
        Column::linked("each s", "each"),
        Column::linked("break-even, requests", "break-even"),
    ]);
    let lines = rows.iter().map(|row| {
        let mut cells: Vec<Cell> =
            phases.iter().map(|(_, pick)| Cell::number(Some(pick(row.phases)).filter(|seconds| *seconds > 0.0), 1)).collect();
        cells.push(Cell::number(Some(row.phases.once()).filter(|seconds| *seconds > 0.0), 1));
        cells.push(Cell::number(Some(row.phases.each_request()), 1));
        cells.push(requests(row));
        (row.name(), cells)
    });
    table("seconds", "Seconds by phase", "method", &columns, lines.collect())
}

/// The break-even as a cell; what never pays is sorted behind all others.
pub(crate) fn requests(row: &Row<'_>) -> Cell {
    match row.break_even {
        Some(BreakEven::Never) => Cell { text: "never".to_owned(), value: Some(1e12), ..Cell::default() },
        Some(BreakEven::Requests(requests)) => Cell::number(Some(requests), 1),
        None => Cell::number(None, 1),
    }
}

fn work(rows: &[&Row<'_>]) -> Markup {
    const UNITS: [(&str, f64); 4] =
        [("samples forward", 1.0), ("samples backward", 1.0), ("gradient steps", 1.0), ("billion operations", 1e9)];
    let mut columns = Vec::new();
    for when in ["once", "each request"] {
        columns.extend(
            COUNTS.iter().zip(UNITS).map(|((name, _), (unit, _))| Column::linked(&format!("{unit}, {when}"), &format!("count-{name}"))),
        );
    }
    columns.extend([Column::linked("passes, % of retraining's", "passes"), Column::linked("parameters changed, %", "changed")]);
    let lines = rows.iter().map(|row| {
        let counts = |counts: Option<Counts>| {
            UNITS.iter().enumerate().map(move |(which, (_, unit))| {
                let value = counts.map(|counts| counts[which] / unit);
                let text =
                    value.map_or_else(|| "–".to_owned(), |value| if *unit > 1.0 { number(value) } else { count(value.round() as u64) });
                Cell { text, value, ..Cell::default() }
            })
        };
        let mut cells: Vec<Cell> = counts(row.costs.once).chain(counts(row.costs.each_request)).collect();
        cells.push(Cell::number(row.passes.map(|passes| 100.0 * passes), 1));
        cells.push(Cell::number(row.costs.changed.map(|share| 100.0 * share), 2));
        (row.name(), cells)
    });
    table("work", "Work, counted", "method", &columns, lines.collect())
}

/// Seconds of each method, once and for a request, as bars.
fn bars(rows: &[&Row<'_>]) -> Option<Markup> {
    let most = rows.iter().map(|row| row.phases.once() + row.phases.each_request()).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let height = 50.0 + 20.0 * rows.len() as f64;
    let frame =
        Frame { width: 400.0, height, room: [124.0, 16.0, 10.0, 36.0], x: Scale::linear([0.0, most]), y: Scale::linear([0.0, 1.0]) };
    let told =
        rows.iter().map(|row| format!("{}: {:.1} s once, {:.1} s a request", row.name(), row.phases.once(), row.phases.each_request()));
    let described = format!("{}.", told.collect::<Vec<_>>().join("; "));
    let body = html! {
        (frame.x_axis(Name::of("seconds")))
        @for (place, row) in rows.iter().enumerate() {
            @let top = frame.top() + 20.0 * place as f64 + 4.0;
            @let (once, each) = (row.phases.once(), row.phases.each_request());
            text.label x=(Px(frame.left() - 6.0)) y=(Px(top + 10.0)) text-anchor="end" { (shortened(&row.name(), 17)) }
            g {
                title { (row.name()) ": " (number(once)) " s once, " (number(each)) " s a request" }
                rect.once x=(Px(frame.x(0.0))) y=(Px(top)) width=(Px(frame.x(once) - frame.x(0.0))) height="12" {}
                rect.each x=(Px(frame.x(once))) y=(Px(top)) width=(Px(frame.x(once + each) - frame.x(once))) height="12" {}
            }
        }
    };
    Some(html! {
        figure {
            figcaption { "Seconds " span.key.once { "once" } " and " span.key.each { "for a request" } }
            (plot("bars", (frame.width, frame.height), "Seconds once and for a request", &described, &body))
        }
    })
}

/// Lines that are drawn at most.
const LINES: usize = 6;

/// What a number of requests cost in all, for what is paid for once and what retrains each time.
fn break_even(rows: &[&Row<'_>]) -> Option<Markup> {
    let retraining = rows.iter().find(|row| row.method == REFERENCE)?.phases.each_request();
    let paying = || rows.iter().filter(|row| row.phases.once() > 0.0 && row.is_contender());
    // What never pays for itself is drawn only where nothing else is: it would press the rest to the ground.
    let (never, some): (Vec<&&Row<'_>>, Vec<&&Row<'_>>) = paying().partition(|row| row.break_even == Some(BreakEven::Never));
    let (paying, left_out) = if some.is_empty() { (never, Vec::new()) } else { (some, never) };
    let paying: Vec<&&Row<'_>> = paying.into_iter().take(LINES).collect();
    let last = paying.iter().filter_map(|row| match row.break_even {
        Some(BreakEven::Requests(requests)) => Some(requests),
        _ => None,
    });
    let last = (2.0 * last.fold(0.0, f64::max)).clamp(5.0, 1000.0).ceil();
    if paying.is_empty() || retraining <= 0.0 {
        return None;
    }
    let total = |row: &Row<'_>, requests: f64| row.phases.once() + requests * row.phases.each_request();
    let most = paying.iter().map(|row| total(row, last)).fold(retraining * last, f64::max);
    let x = Scale::linear([0.0, last]);
    let Scale::Linear { high: end, .. } = x else { unreachable!("it was made linear") };
    let most = most * end / last;
    let frame = Frame { width: 400.0, height: 260.0, room: [44.0, 112.0, 24.0, 36.0], x, y: Scale::linear([0.0, most]) };
    // Names stand at the ends of their lines, moved apart where these meet.
    let mut names: Vec<(f64, String, usize)> =
        paying.iter().enumerate().map(|(place, row)| (frame.y(total(row, end)), row.name(), place)).collect();
    names.push((frame.y(retraining * end), "retraining".to_owned(), usize::MAX));
    names.sort_by(|one, other| one.0.total_cmp(&other.0));
    for place in 1..names.len() {
        names[place].0 = names[place].0.max(names[place - 1].0 + 13.0);
    }
    let beyond = names.last().map_or(0.0, |(y, ..)| (y - frame.bottom()).max(0.0));
    let told = paying.iter().map(|row| {
        let when = match row.break_even {
            Some(BreakEven::Requests(requests)) => format!("has paid for itself after {requests:.1} requests"),
            _ => "never pays for itself".to_owned(),
        };
        format!("{} {when}", row.name())
    });
    let described = format!("Seconds in all against the number of requests: {}.", told.collect::<Vec<_>>().join("; "));
    let body = html! {
        (frame.axes(Name::of("requests"), Name::of("seconds in all")))
        path.line.retrained d=(frame.path([(0.0, 0.0), (end, retraining * end)])) {}
        @for (place, row) in paying.iter().enumerate() {
            path class={ "line series-" (place) } d=(frame.path([(0.0, row.phases.once()), (end, total(row, end))])) {}
        }
        @for (y, name, place) in &names {
            text class={ "label" @if *place < LINES { " series-" (place) } } x=(Px(frame.right() + 5.0)) y=(Px(y - beyond + 4.0)) { (shortened(name, 14)) }
        }
    };
    Some(html! {
        figure {
            figcaption {
                "Seconds in all, against the number of requests"
                @if !left_out.is_empty() { " (never pays for itself: \
                    " (super::listed(&left_out.iter().map(|row| row.name()).collect::<Vec<_>>(), LINES)) ")" }
            }
            (plot("break-even", (frame.width, frame.height), "When a method has paid for itself", &described, &body))
        }
    })
}
