//! Signed gaps to the retraining of the same seed.

use maud::{Markup, html};

use super::Section;
use super::axis::Scale;
use super::plot::{Frame, Name, Px, plot, shortened};
use super::table::{Cell, Column, table};
use crate::report::Report;
use crate::rows::{NULL, REFERENCE, Row, SCORES, Score};
use crate::statistics::over_seeds;

pub(crate) fn section(report: &Report<'_>) -> Option<Section> {
    let seeds: Vec<u64> = report.seeds().into_iter().collect();
    let rows: Vec<&Row<'_>> =
        report.rows.iter().filter(|row| row.method != REFERENCE && (row.is_contender() || row.method == NULL)).collect();
    let is_paired = rows.iter().any(|row| SCORES.iter().any(|score| row.gaps(*score).len() > 1));
    if !is_paired {
        return None;
    }
    let mut columns: Vec<Column> = seeds.iter().map(|seed| Column::plain(&format!("seed {seed}"))).collect();
    columns.push(Column::linked("mean", "gap"));
    let lines = rows.iter().flat_map(|row| SCORES.iter().map(|score| (*row, *score))).map(|(row, score)| {
        let gaps = row.gaps(score);
        let of_seed = |seed: &u64| gaps.iter().find(|(own, _)| own == seed).map(|(_, gap)| *gap);
        let mut cells: Vec<Cell> = seeds.iter().map(|seed| Cell::number(of_seed(seed), 1)).collect();
        let mean = over_seeds(&gaps.iter().map(|(_, gap)| *gap).collect::<Vec<_>>());
        let below = mean.and_then(|mean| mean.interval).map(|(low, high)| format!("± {:.1}", 0.5 * (high - low)));
        cells.push(Cell { below, ..Cell::number(mean.map(|mean| mean.mean), 1) });
        (format!("{}, {}", row.name(), score.heading.trim_end_matches(" %")), cells)
    });
    let body = html! {
        p {
            "Each score of a model less that of the retraining with the same seed, in points. Dots are seeds, the bar is the mean with its \
                95 % t interval: one that holds 0 may be no difference."
        }
        div.plots.wide { @for score in SCORES { (figure(&rows, score)) } }
        (table("gaps", "Gaps to retraining by seed, points", "method and score", &columns, lines.collect()))
    };
    Some(Section { id: "seeds", title: "Gaps by seed", body })
}

fn figure(rows: &[&Row<'_>], score: Score) -> Markup {
    let all: Vec<(String, Vec<f64>)> =
        rows.iter().map(|row| (row.name(), row.gaps(score).into_iter().map(|(_, gap)| gap).collect())).collect();
    let interval = |gaps: &[f64]| over_seeds(gaps).map(|mean| (mean.mean, mean.interval.unwrap_or((mean.mean, mean.mean))));
    let ends =
        all.iter().flat_map(|(_, gaps)| gaps.iter().copied().chain(interval(gaps).into_iter().flat_map(|(_, (low, high))| [low, high])));
    let x = Scale::linear(ends.chain([0.0]));
    let height = 50.0 + 22.0 * all.len() as f64;
    let frame = Frame { width: 400.0, height, room: [124.0, 16.0, 10.0, 36.0], x, y: Scale::linear([0.0, 1.0]) };
    let title = format!("Gaps in {}", score.heading.trim_end_matches(" %"));
    let told = all.iter().filter_map(|(name, gaps)| {
        let (mean, (low, high)) = interval(gaps)?;
        Some(format!("{name}: {mean:.1} points, from {low:.1} to {high:.1}"))
    });
    let described = format!("{}.", told.collect::<Vec<_>>().join("; "));
    let body = html! {
        (frame.x_axis(Name::of("gap to retraining, points")))
        line.reference x1=(Px(frame.x(0.0))) x2=(Px(frame.x(0.0))) y1=(Px(frame.top())) y2=(Px(frame.bottom())) {}
        @for (place, (name, gaps)) in all.iter().enumerate() {
            @let y = frame.top() + 22.0 * (place as f64 + 0.5);
            text.label x=(Px(frame.left() - 6.0)) y=(Px(y + 4.0)) text-anchor="end" { (shortened(name, 17)) }
            @if let Some((mean, (low, high))) = interval(gaps) {
                g.point.method {
                    title { (name) ": " (format!("{mean:.1}")) " points" }
                    line.bar x1=(Px(frame.x(low))) x2=(Px(frame.x(high))) y1=(Px(y)) y2=(Px(y)) {}
                    line.mean x1=(Px(frame.x(mean))) x2=(Px(frame.x(mean))) y1=(Px(y - 6.0)) y2=(Px(y + 6.0)) {}
                    @for gap in gaps { circle cx=(Px(frame.x(*gap))) cy=(Px(y)) r="2.5" {} }
                }
            }
        }
    };
    html! {
        figure {
            figcaption { (title) }
            (plot(&format!("gaps-{}", score.name), (frame.width, frame.height), &title, &described, &body))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::{Case, evaluated};
    use crate::rows::{judged, rows};

    #[test]
    fn a_gap_is_to_the_retraining_of_the_same_seed() {
        let cases = [
            Case("modular", 1, &[], [0.9, 0.4, 0.8, 0.6]),
            Case("modular", 2, &[], [0.9, 0.3, 0.8, 0.6]),
            Case("modular", 3, &[], [0.9, 0.3, 0.8, 0.6]),
            Case("retrain", 2, &[], [1.0, 0.1, 0.9, 0.5]),
            Case("retrain", 1, &[], [1.0, 0.5, 0.9, 0.5]),
        ];
        let (lineage, metrics) = evaluated(&cases, |_, _| {});
        let judged = judged(&lineage, &metrics).unwrap();
        let rows = rows(&judged);
        let found: Vec<(u64, f64)> = rows[0].gaps(SCORES[1]).into_iter().map(|(seed, gap)| (seed, gap.round())).collect();
        assert_eq!(found, [(1, -10.0), (2, 20.0)]);
    }
}
