//! What many models say of single samples: the audits as a table, in words, and as curves.

use maud::{Markup, html};

use super::axis::Scale;
use super::plot::{Frame, Name, plot};
use super::table::{Cell, Column, number, table};
use super::{Section, prose};
use crate::audits::{Audit, Found, Tell};
use crate::report::Report;

/// The arrays of curves, and what an attack goes by.
const CURVES: [(&str, &str); 2] =
    [("likelihood_ratio_roc", "the likelihood ratio, all models together"), ("rmia_roc", "RMIA, mean over models")];

pub(crate) fn section(report: &Report<'_>) -> Option<Section> {
    let audits = &report.audits;
    if audits.0.is_empty() {
        return None;
    }
    let tells = audits.tells();
    let columns: Vec<Column> = tells.iter().map(|tell| Column::linked(tell.heading, tell.name)).collect();
    let lines = audits.0.iter().map(|audit| {
        let cells = tells.iter().map(|tell| audit.found(*tell).map_or_else(|| Cell::number(None, 1), |found| cell(*tell, found)));
        (audit.method.clone(), cells.collect())
    });
    let body = html! {
        p {
            "Where many models were trained, each sample has a distribution of what they say of it, and an attacker who knows the method can ask whether a model is more like those that unlearned the "
            "sample or like those that never saw it. Below each number are its 95 % interval, its floor (what it is where there is nothing to find), and the probability p of so much by chance, before any correction."
        }
        ul.words { @for words in audits.words() { li { (prose(&words)) } } }
        (table("evidence-table", "Scores of many models beside many retrained ones", "method", &columns, lines.collect()))
        ul { @for note in audits.notes() { li { (prose(&note)) } } }
        @for (which, (array, by)) in CURVES.into_iter().enumerate() { (curves(&audits.0, which, array, by)) }
    };
    Some(Section { id: "evidence", title: "Single samples, over many models", body })
}

fn cell(tell: Tell, found: Found) -> Cell {
    let [_, low, high, floor] = found.shown(tell);
    let below = format!("[{low}, {high}], floor {floor}, p {}", probability(found.probability));
    Cell { below: Some(below), ..Cell::number(Some(tell.unit() * found.estimate.mean), tell.decimals()) }
}

/// Smaller ones are not known any better: they rest on the shape of a distribution.
fn probability(value: f64) -> String {
    if value < 0.001 { "< 0.001".to_owned() } else { number(value) }
}

/// A curve of each method, on logarithmic axes.
fn curves(audits: &[Audit<'_>], which: usize, array: &str, by: &str) -> Markup {
    let points = |audit: &Audit<'_>| -> Vec<(f64, f64)> {
        let data = audit.metrics.arrays.get(array).map(|array| array.data.as_slice()).unwrap_or_default();
        data.chunks_exact(2).map(|pair| (pair[0], pair[1])).filter(|(rate, _)| *rate > 0.0).collect()
    };
    let shown: Vec<(&str, Vec<(f64, f64)>)> =
        audits.iter().map(|audit| (audit.method.as_str(), points(audit))).filter(|(_, points)| points.len() > 1).collect();
    let low = shown.iter().flat_map(|(_, points)| points).map(|(rate, _)| *rate).fold(1.0, f64::min);
    let low = low.min(0.1);
    let scale = Scale::Log { low, high: 1.0 };
    let frame = Frame { width: 340.0, height: 240.0, room: [44.0, 12.0, 22.0, 36.0], x: scale, y: scale };
    html! {
        @if !shown.is_empty() {
            h3 { "True positives over false positives, by " (by) }
            div.plots {
                @for (place, (name, points)) in shown.iter().enumerate() {
                    @let first = points.first().map_or(String::new(), |(rate, found)| format!("{:.1} % are found at {} % false positives", 100.0 * found, number(100.0 * rate)));
                    @let body = html! {
                        (frame.axes(Name::percent("false positive rate, %"), Name::percent("true positive rate, %")))
                        path.chance d=(frame.path([(low, low), (1.0, 1.0)])) {}
                        path.line.forget d=(frame.path(points.iter().copied())) {}
                    };
                    figure {
                        figcaption { (name) }
                        (plot(&format!("evidence-{which}-{place}"), (frame.width, frame.height), &format!("ROC curve of {name}, by {by}"), &first, &body))
                    }
                }
            }
        }
    }
}
