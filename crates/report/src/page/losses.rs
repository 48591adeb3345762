//! The losses of single samples: how they are spread, and what an attack that looks at nothing else makes of them.

use std::collections::BTreeMap;

use maud::html;

use super::Section;
use super::axis::Scale;
use super::plot::{Frame, Name, plot};
use super::table::{Cell, Column, number, table};
use crate::report::Report;
use crate::rows::{Judged, REFERENCE, Row};

/// Bins of a histogram.
const BINS: usize = 30;
/// Losses below the first of these count in the first bin, those above the last in the last.
const SMALLEST: f64 = 1e-6;
const LARGEST: f64 = 1e2;

/// Bins of equal width in the logarithm, the same for all histograms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bins {
    low: f64,
    high: f64,
}

impl Bins {
    /// From a power of ten to a power of ten, over all of the losses.
    fn over(losses: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for loss in losses.filter(|loss| loss.is_finite() && *loss > 0.0) {
            (low, high) = (low.min(loss), high.max(loss));
        }
        let power = |value: f64| value.clamp(SMALLEST, LARGEST).log10();
        let (low, high) = (power(low).floor(), power(high).ceil());
        Self { low: 10_f64.powf(low), high: 10_f64.powf(high.max(low + 1.0)) }
    }

    fn scale(self) -> Scale {
        Scale::Log { low: self.low, high: self.high }
    }

    fn edge(self, bin: usize) -> f64 {
        self.low * (self.high / self.low).powf(bin as f64 / BINS as f64)
    }

    /// The share of the losses in each bin; what is no number is left out.
    fn shares(self, losses: &[f64]) -> [f64; BINS] {
        let mut shares = [0.0; BINS];
        let finite: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
        for loss in &finite {
            shares[((self.scale().at(*loss) * BINS as f64) as usize).min(BINS - 1)] += 1.0 / finite.len() as f64;
        }
        shares
    }
}

/// The sets whose losses are shown, and how their lines look beside their colours.
const SETS: [&str; 3] = ["forget", "test", "retain"];

/// The losses of a set over all runs of a row.
fn losses(row: &Row<'_>, set: &str) -> Vec<f64> {
    let arrays = row.runs.iter().filter_map(|run| run.metrics.arrays.get(&format!("{set}_losses")));
    arrays.flat_map(|array| array.data.iter().copied()).collect()
}

/// What an attack by a threshold on the loss finds, threshold by threshold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Roc {
    /// False and true positive rates, both ascending, from (0, 0) to (1, 1).
    points: Vec<(f64, f64)>,
    /// The area below them: how often a member has the lower loss of two.
    area: f64,
    others: usize,
}

impl Roc {
    /// A sample counts as a member where its loss is at most the threshold.
    fn of(members: &[f64], others: &[f64]) -> Option<Self> {
        let finite = |losses: &[f64], member: bool| {
            losses.iter().copied().filter(|loss| loss.is_finite()).map(|loss| (loss, member)).collect::<Vec<_>>()
        };
        let (members, others) = (finite(members, true), finite(others, false));
        if members.is_empty() || others.is_empty() {
            return None;
        }
        let counts = (members.len() as f64, others.len() as f64);
        let mut all = [members, others.clone()].concat();
        all.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (mut points, mut area, mut found, mut wrong) = (vec![(0.0, 0.0)], 0.0, 0.0, 0.0);
        for equal in all.chunk_by(|one, other| one.0 == other.0) {
            let hits = equal.iter().filter(|(_, member)| *member).count() as f64;
            let (last_wrong, last_found) = (wrong, found);
            (found, wrong) = (found + hits, wrong + equal.len() as f64 - hits);
            area += (wrong - last_wrong) / counts.1 * f64::midpoint(found, last_found) / counts.0;
            points.push((wrong / counts.1, found / counts.0));
        }
        Some(Self { points, area, others: others.len() })
    }

    /// Of the attack on each run of a row on its pairs of a forget sample and an unseen one: at each false positive rate the mean of the true ones. Losses of different models are
    /// not under one threshold.
    fn of_row(row: &Row<'_>) -> Option<Self> {
        let of_run = |run: &&Judged<'_>| {
            let (arrays, ids) = (&run.metrics.arrays, &run.metrics.ids);
            let by_id: BTreeMap<&u64, f64> = ids.get("forget_ids")?.iter().zip(arrays.get("forget_losses")?.data.iter().copied()).collect();
            let members: Vec<f64> = ids.get("member_ids")?.iter().filter_map(|id| by_id.get(id).copied()).collect();
            Self::of(&members, &arrays.get("nonmember_losses")?.data)
        };
        Self::mean(row.runs.iter().map(of_run).collect::<Option<Vec<_>>>()?)
    }

    fn mean(curves: Vec<Self>) -> Option<Self> {
        if curves.len() < 2 {
            return curves.into_iter().next();
        }
        let mut rates: Vec<f64> = curves.iter().flat_map(|curve| curve.points.iter().map(|(wrong, _)| *wrong)).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let count = curves.len() as f64;
        let mut places = vec![0; curves.len()];
        let mut points = vec![(0.0, 0.0)];
        for rate in rates {
            let mut found = 0.0;
            for (curve, place) in curves.iter().zip(&mut places) {
                while curve.points.get(*place + 1).is_some_and(|(wrong, _)| *wrong <= rate) {
                    *place += 1;
                }
                found += curve.points[*place].1 / count;
            }
            points.push((rate, found));
        }
        let area = curves.iter().map(|curve| curve.area).sum::<f64>() / count;
        Some(Self { points, area, others: curves.iter().map(|curve| curve.others).min()? })
    }

    /// The largest true positive rate at this false positive rate or a lower one; nothing where there are too few samples for such a rate.
    fn found_at(&self, rate: f64) -> Option<f64> {
        let resolved = rate * self.others as f64 >= 1.0 - 1e-9;
        resolved.then(|| self.points.iter().rev().find(|(wrong, _)| *wrong <= rate + 1e-12).map_or(0.0, |(_, found)| *found))
    }

    /// The corners of the curve that are a pixel or more apart on logarithmic axes.
    fn corners(&self, frame: &Frame) -> Vec<(f64, f64)> {
        let mut corners: Vec<(f64, f64)> = Vec::new();
        for (place, &point) in self.points.iter().enumerate() {
            let far = |last: &(f64, f64)| (frame.x(point.0) - frame.x(last.0)).abs() + (frame.y(point.1) - frame.y(last.1)).abs() >= 1.0;
            if place + 1 == self.points.len() || corners.last().is_none_or(far) {
                if let Some(&(_, height)) = corners.last() {
                    corners.push((point.0, height));
                }
                corners.push(point);
            }
        }
        corners
    }
}

pub(crate) fn histograms(report: &Report<'_>) -> Option<Section> {
    let shown: Vec<(String, [Vec<f64>; 3])> = report.rows.iter().map(|row| (row.name(), SETS.map(|set| losses(row, set)))).collect();
    let all = || shown.iter().flat_map(|(_, sets)| sets).flatten().copied();
    all().find(|loss| loss.is_finite())?;
    let bins = Bins::over(all());
    let shares: Vec<[[f64; BINS]; 3]> = shown.iter().map(|(_, sets)| sets.each_ref().map(|losses| bins.shares(losses))).collect();
    let highest = shares.iter().flatten().flatten().copied().fold(0.0, f64::max);
    let frame = Frame { width: 340.0, height: 200.0, room: [38.0, 12.0, 22.0, 36.0], x: bins.scale(), y: Scale::linear([0.0, highest]) };
    let figures = shown.iter().zip(&shares).enumerate().map(|(place, ((name, sets), shares))| {
        let told = SETS.iter().zip(sets).map(|(set, losses)| match median(losses) {
            Some(median) => format!("the median loss of {} {set} samples is {} nat", losses.len(), number(median)),
            None => format!("there are no losses of {set} samples"),
        });
        let described = format!("How the losses are spread: {}.", told.collect::<Vec<_>>().join(", "));
        let body = html! {
            (frame.axes(Name::of("loss, nat (logarithmic)"), Name::percent("share of the set, %")))
            @for ((set, shares), losses) in SETS.iter().zip(shares).zip(sets) {
                @if !losses.is_empty() {
                    path class={ "line " (set) } d=(outline(&frame, bins, shares)) {}
                }
            }
        };
        html! {
            figure {
                figcaption { (name) }
                (plot(&format!("losses-{place}"), (frame.width, frame.height), &format!("Losses of {name}"), &described, &body))
            }
        }
    });
    let body = html! {
        p {
            "The loss is the cross-entropy of a sample under its label: the lower, the surer the model is of it. A model that has forgotten treats the samples that it was asked to "
            "forget as it treats samples that it never saw, so that " span.key.forget { "forget" } " lies on " span.key.test { "test" } " and not on " span.key.retain { "retain" }
            ". All plots have the same axes and bins; losses beyond an end count in the bin at that end. Where there are several seeds, their samples are pooled."
        }
        div.plots { @for figure in figures { (figure) } }
    };
    Some(Section { id: "losses", title: "Losses of single samples", body })
}

/// The outline of a histogram.
fn outline(frame: &Frame, bins: Bins, shares: &[f64; BINS]) -> String {
    let start = std::iter::once((bins.edge(0), 0.0));
    let tops = shares.iter().enumerate().flat_map(|(bin, &share)| [(bins.edge(bin), share), (bins.edge(bin + 1), share)]);
    frame.path(start.chain(tops).chain([(bins.edge(BINS), 0.0)]))
}

fn median(losses: &[f64]) -> Option<f64> {
    let mut finite: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
    finite.sort_by(f64::total_cmp);
    let middle = finite.len() / 2;
    match finite.len() {
        0 => None,
        count if count % 2 == 1 => Some(finite[middle]),
        _ => Some(f64::midpoint(finite[middle - 1], finite[middle])),
    }
}

/// False positive rates at which the table says what the attack finds.
const RATES: [f64; 3] = [0.1, 0.01, 0.001];

pub(crate) fn curves(report: &Report<'_>) -> Option<Section> {
    let shown: Vec<(&Row<'_>, Roc)> = report.rows.iter().filter_map(|row| Some((row, Roc::of_row(row)?))).collect();
    let others = shown.iter().map(|(_, roc)| roc.others).max()?;
    let low = 10_f64.powf((1.0 / others as f64).log10().floor()).max(1e-5);
    let scale = Scale::Log { low, high: 1.0 };
    let frame = Frame { width: 340.0, height: 240.0, room: [44.0, 12.0, 22.0, 36.0], x: scale, y: scale };
    let reference = shown.iter().find(|(row, _)| row.method == REFERENCE).map(|(_, roc)| roc.corners(&frame));
    let figures = shown.iter().enumerate().map(|(place, (row, roc))| {
        let name = row.name();
        let at = RATES.iter().filter_map(|&rate| Some(format!("{:.1} % at a false positive rate of {} %", 100.0 * roc.found_at(rate)?, number(100.0 * rate))));
        let found = at.collect::<Vec<_>>().join(", ");
        let described = format!("The area below the curve is {:.3}; 0.5 is chance. True positive rates: {found}.", roc.area);
        let body = html! {
            (frame.axes(Name::percent("false positive rate, %"), Name::percent("true positive rate, %")))
            path.chance d=(frame.path([(low, low), (1.0, 1.0)])) {}
            @if let Some(reference) = &reference { path.line.retrained d=(frame.path(reference.iter().copied())) {} }
            path.line.forget d=(frame.path(roc.corners(&frame))) {}
        };
        html! {
            figure {
                figcaption { (name) }
                (plot(&format!("roc-{place}"), (frame.width, frame.height), &format!("ROC curve of the attack on {name}"), &described, &body))
            }
        }
    });
    let rates: Vec<f64> = RATES.into_iter().filter(|rate| shown.iter().any(|(_, roc)| roc.found_at(*rate).is_some())).collect();
    let mut columns = vec![Column::linked("area below the curve", "roc-area")];
    columns.extend(rates.iter().map(|rate| Column::linked(&format!("found at {} % false alarms, %", number(100.0 * rate)), "roc-found")));
    let rows = shown.iter().map(|(row, roc)| {
        let mut cells = vec![Cell::number(Some(roc.area), 3)];
        cells.extend(rates.iter().map(|rate| Cell::number(roc.found_at(*rate).map(|found| 100.0 * found), 1)));
        (row.name(), cells)
    });
    let body = html! {
        p {
            "An attacker who says \u{201c}the model was trained on this sample\u{201d} wherever its loss is low enough finds so many of the forgotten samples (true positives) at the price of "
            "so many unseen ones (false positives), for every threshold. Both axes are logarithmic, since an attack that is sure of a few samples is one already. "
            span.key.forget { "the method" } @if reference.is_some() { ", " span.key.retrained { "retraining" } } ", " span.key.chance { "chance" }
            ". With " (others) " unseen samples no rate below " (number(100.0 / others as f64)) " % can be told from none. Where there are several seeds, each has a curve of its own, and this is their mean."
        }
        (table("roc", "The attack by loss, in numbers", "method", &columns, rows.collect()))
        div.plots { @for figure in figures { (figure) } }
    };
    Some(Section { id: "curves", title: "The attack, threshold by threshold", body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_go_to_the_bin_of_their_logarithm() {
        let bins = Bins::over([0.001, 0.02, 9.0, f64::NAN, 0.0].into_iter());
        assert!((bins.low - 1e-3).abs() < 1e-12 && (bins.high - 10.0).abs() < 1e-9, "{bins:?}");
        // Four decades in thirty bins: 0.02 is 1.3 decades from the left, the ninth or tenth bin.
        let shares = bins.shares(&[0.0, 1e-9, 0.02, 50.0, f64::NAN]);
        let mut expected = [0.0; BINS];
        (expected[0], expected[9], expected[BINS - 1]) = (0.5, 0.25, 0.25);
        assert_eq!(shares, expected);
        assert!((bins.edge(0) - bins.low).abs() < 1e-12 && (bins.edge(BINS) - bins.high).abs() < 1e-9);
        assert_eq!(bins.shares(&[]), [0.0; BINS]);
        assert_eq!(Bins::over(std::iter::empty()), Bins { low: 1e2, high: 1e3 });
        assert_eq!((median(&[3.0, 1.0, f64::NAN, 2.0]), median(&[1.0, 2.0]), median(&[])), (Some(2.0), Some(1.5), None));
    }

    #[test]
    fn the_curve_agrees_with_a_worked_example() {
        // Thresholds 1, 2, 3, 4, 5: members at 1, 2, 4; others at 2, 3, 4, 5.
        let roc = Roc::of(&[4.0, 1.0, 2.0, f64::NAN], &[5.0, 2.0, 3.0, 4.0]).unwrap();
        let third = 1.0 / 3.0;
        let expected = [(0.0, 0.0), (0.0, third), (0.25, 2.0 * third), (0.5, 2.0 * third), (0.75, 1.0), (1.0, 1.0)];
        assert_eq!(roc.points.len(), expected.len());
        for (found, expected) in roc.points.iter().zip(expected) {
            assert!((found.0 - expected.0).abs() < 1e-12 && (found.1 - expected.1).abs() < 1e-12, "{:?}", roc.points);
        }
        // Of twelve pairs the member is lower in 4 + 3 + 1, and equal in 2: 9 of 12.
        assert!((roc.area - 0.75).abs() < 1e-12, "{}", roc.area);
        assert_eq!(roc.found_at(0.25).map(|found| (3.0 * found).round()), Some(2.0));
        assert_eq!((roc.found_at(0.5).map(|found| (3.0 * found).round()), roc.found_at(0.1)), (Some(2.0), None));
        assert!(Roc::of(&[], &[1.0]).is_none() && Roc::of(&[f64::NAN], &[1.0]).is_none());
        // Two curves: everything is found at once by one, by the other at the first and the second other half each.
        let mean = Roc::mean(vec![Roc::of(&[0.0, 0.0], &[1.0, 2.0]).unwrap(), Roc::of(&[1.5, 2.5], &[1.0, 2.0]).unwrap()]).unwrap();
        assert_eq!((mean.points, mean.area, mean.others), (vec![(0.0, 0.0), (0.0, 0.5), (0.5, 0.75), (1.0, 1.0)], 0.625, 2));
    }
}
