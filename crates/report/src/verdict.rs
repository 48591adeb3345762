//! What the numbers say of a method, in words: whether it forgot as retraining does, what it costs, and what it leaves behind.

use crate::lineage::{Lineage, trunk_is_unseen};
use crate::rows::{ATTACK, BreakEven, EARLIER, FORGET, FORGOTTEN_CLASSES, Judged, Row, Score};
use crate::statistics::{Estimate, attack_noise, over_seeds};

/// Differences up to this many points are none.
const MARGIN: f64 = 2.0;
/// A share of the parameters up to this is next to none.
const FEW: f64 = 1e-3;

/// How a score stands to that of retraining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    Above,
    Below,
    /// The whole interval of the difference is within the margin.
    Alike,
    /// There is a difference, which may be within the margin or larger.
    Near,
    /// The difference may be none, or larger than the margin.
    NotToBeTold,
}

/// How a score stands to that of retraining; nothing where one of the two is missing.
pub(crate) fn beside(row: &Row<'_>, score: Score) -> Option<Beside> {
    let difference = difference(row, score)?;
    let (low, high) = difference.ends();
    Some(match difference.mean {
        above if above > MARGIN && low > 0.0 => Beside::Above,
        below if below < -MARGIN && high < 0.0 => Beside::Below,
        _ if low >= -MARGIN && high <= MARGIN => Beside::Alike,
        _ if low > 0.0 || high < 0.0 => Beside::Near,
        _ => Beside::NotToBeTold,
    })
}

/// The score less that of retraining, in points. Where two seeds or more have both and they do not all agree, by pairs; otherwise by the intervals of both.
pub(crate) fn difference(row: &Row<'_>, score: Score) -> Option<Estimate> {
    let (own, reference) = both(row, score)?;
    let gaps: Vec<f64> = row.gaps(score).into_iter().map(|(_, gap)| gap).collect();
    let paired = over_seeds(&gaps).filter(|_| gaps.len() > 1 && gaps.iter().any(|gap| *gap != gaps[0]));
    Some(paired.unwrap_or_else(|| apart(own, reference).times(100.0)))
}

/// A difference of two values with its 95 % interval, from those of both: the distances of their ends added as squares (Newcombe 1998, method 10; for
/// means, Donner and Zou 2012). Without intervals the difference is taken as it is.
fn apart(own: Estimate, reference: Estimate) -> Estimate {
    let ((own_low, own_high), (low, high)) = (own.ends(), reference.ends());
    let mean = own.mean - reference.mean;
    let interval = (mean - (own.mean - own_low).hypot(high - reference.mean), mean + (own_high - own.mean).hypot(reference.mean - low));
    Estimate { mean, interval: Some(interval), is_over_seeds: false }
}

/// The accuracy of the attack less that on retraining, in points, and by how much it may be off by chance.
pub(crate) fn attack_difference(row: &Row<'_>) -> Option<(f64, f64)> {
    let difference = difference(row, ATTACK)?;
    if row.gaps(ATTACK).len() > 1 {
        let (low, high) = difference.ends();
        return Some((difference.mean, 0.5 * (high - low)));
    }
    let noise = std::f64::consts::SQRT_2 * attack_noise(row.count(ATTACK.count)?);
    Some((difference.mean, 100.0 * noise))
}

/// The verdict on a method, beginning with its name. Without a retraining there is only what it leaves behind to speak of.
pub(crate) fn verdict(lineage: &Lineage, row: &Row<'_>) -> Option<String> {
    let sentences = [forgetting(row), remaining(row), distance(row), attack(row), cost(row), changed(row), left_behind(lineage, row)];
    let sentences: Vec<String> = sentences.into_iter().flatten().collect();
    (!sentences.is_empty()).then(|| format!("{}: {}.", row.name(), sentences.join(". ")))
}

/// Its own estimate and that of retraining.
pub(crate) fn both(row: &Row<'_>, score: Score) -> Option<(Estimate, Estimate)> {
    Some((*row.scores.get(score.name)?, *row.reference.get(score.name)?))
}

fn percent(estimate: Estimate) -> String {
    format!("{:.0} %", 100.0 * estimate.mean)
}

fn forgetting(row: &Row<'_>) -> Option<String> {
    let (own, reference) = both(row, FORGET)?;
    let (ours, theirs) = (percent(own), percent(reference));
    Some(match beside(row, FORGET)? {
        Beside::Above => format!("still gives the forgotten samples their label in {ours}, retraining in {theirs}"),
        Beside::Below => {
            format!(
                "gives the forgotten samples their label in {ours}, less often than retraining ({theirs}), which gives them away as well"
            )
        }
        Beside::Alike => format!("gives the forgotten samples their label as often as retraining ({ours} and {theirs})"),
        told @ (Beside::Near | Beside::NotToBeTold) => {
            let (low, high) = difference(row, FORGET)?.ends();
            let what = if told == Beside::Near {
                format!("between {low:.1} and {high:.1} points, which may be more than {MARGIN:.0}")
            } else {
                format!("between {low:.0} and {high:.0} points, which may be none")
            };
            format!("gives the forgotten samples their label in {ours}, retraining in {theirs}: a difference {what}")
        }
    })
}

/// What earlier requests forgot, and unseen samples of forgotten classes, where more is left of them than by retraining.
fn remaining(row: &Row<'_>) -> Option<String> {
    let of = |score: Score, whom: &str| {
        let (own, reference) = both(row, score)?;
        let said = || format!("still names {whom} in {}, retraining in {}", percent(own), percent(reference));
        (beside(row, score) == Some(Beside::Above)).then(said)
    };
    let found = [of(EARLIER, "what earlier requests forgot"), of(FORGOTTEN_CLASSES, "unseen samples of forgotten classes")];
    let found: Vec<String> = found.into_iter().flatten().collect();
    (!found.is_empty()).then(|| format!("It {}", found.join(" and ")))
}

fn distance(row: &Row<'_>) -> Option<String> {
    let own = row.distance.as_ref().ok()?.mean;
    let away = format!("It is {own:.1} points away from retraining");
    Some(match (row.null, row.excess) {
        (None, _) => format!("{away}; without a second one nothing says how much of that is chance"),
        (Some(null), None) => format!("{away}, a second retraining {:.1}; each is one draw, which does not say which is nearer", null.mean),
        (Some(null), Some(excess)) => match excess.ends() {
            (low, _) if low > 0.0 => format!("{away}, further than a second retraining ({:.1})", null.mean),
            (_, high) if high < 0.0 => format!("{away}, nearer than a second retraining ({:.1})", null.mean),
            (low, high) => {
                format!(
                    "{away}, a second retraining {:.1}: a difference between {low:.1} and {high:.1} points, which may be none",
                    null.mean
                )
            }
        },
    })
}

fn attack(row: &Row<'_>) -> Option<String> {
    let (own, reference) = both(row, ATTACK)?;
    let (difference, noise) = attack_difference(row)?;
    let (ours, theirs, pairs) = (percent(own), percent(reference), row.count(ATTACK.count)?);
    let seeds = row.gaps(ATTACK).len();
    let basis = if seeds > 1 { format!("{pairs} pairs and {seeds} seeds") } else { format!("{pairs} pairs") };
    Some(if difference.abs() <= noise {
        format!("The attack on {basis} cannot tell it from retraining ({ours} and {theirs}; up to {noise:.0} points may be chance)")
    } else {
        let how = if difference > 0.0 { "more" } else { "less" };
        format!(
            "The attack finds its forgotten samples {how} often than those of retraining ({ours} and {theirs}; with {basis} up to {noise:.0} points may be chance)"
        )
    })
}

fn cost(row: &Row<'_>) -> Option<String> {
    let (once, each, retraining) = (row.phases.once(), row.phases.each_request(), row.retraining?);
    let passes = row.shown_passes().map_or(String::new(), |passes| format!(" (with {passes} of retraining's samples backward)"));
    let beside = format!("{each:.1} s a request{passes}, retraining {retraining:.1} s");
    Some(match row.break_even {
        None => format!("It costs {beside}"),
        Some(BreakEven::Never) => format!("It costs {once:.1} s once and {beside}: it never pays for itself"),
        Some(BreakEven::Requests(requests)) => {
            let requests = requests.ceil().max(1.0);
            let counted = if requests > 1.0 { format!("{requests:.0} requests") } else { "the first request".to_owned() };
            format!("It costs {once:.1} s once and {beside}: it has paid for itself after {counted}")
        }
    })
}

/// That a method left nearly everything as it was.
fn changed(row: &Row<'_>) -> Option<String> {
    let share = row.costs.changed.filter(|share| *share <= FEW)?;
    Some(if share > 0.0 { format!("It changed {:.2} % of the parameters", 100.0 * share) } else { "It changed no parameter".to_owned() })
}

fn left_behind(lineage: &Lineage, row: &Row<'_>) -> Option<String> {
    let Judged { model, metrics, .. } = row.runs[0];
    if model.solves() && trunk_is_unseen(metrics) {
        return Some("Nothing that it rests on learned with the forgotten data, but for the one number `lambda`".to_owned());
    }
    let learned = lineage.learned_before_the_request(model, metrics);
    (!learned.is_empty()).then(|| format!("It still rests on what {} learned with the forgotten data", listed(&learned)))
}

/// Names with commas and an "and".
pub(crate) fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::{Case, evaluated};
    use crate::rows::{judged, rows};
    use crate::statistics::share;

    const NULL: Case = Case("null", 1, &[], [1.0, 0.0, 0.9, 0.52]);

    fn of(case: Case, others: impl IntoIterator<Item = Case>) -> String {
        let cases: Vec<Case> = [case].into_iter().chain(others).collect();
        let (lineage, metrics) = evaluated(&cases, |_, _| {});
        let judged = judged(&lineage, &metrics).unwrap();
        verdict(&lineage, &rows(&judged)[0]).unwrap()
    }

    fn retrain(seed: u64) -> Case {
        Case("retrain", seed, &[], [1.0, 0.0, 0.9, 0.5])
    }

    #[test]
    fn a_class_that_is_still_named_is_remarked_on() {
        // As on scikit-learn's digits: 83 ± 15 % over five seeds, where retraining has 0.
        let values = [0.68, 0.98, 0.83, 0.75, 0.91];
        let seeds = |values: [f64; 5], label: &'static str| {
            values.into_iter().zip(1..).map(move |(forget, seed)| Case(label, seed, &[], [0.9, forget, 0.8, 0.6]))
        };
        let mut cases: Vec<Case> = seeds(values, "modular").chain(seeds([0.0; 5], "retrain")).collect();
        let first = cases.remove(0);
        let text = of(first, cases);
        assert!(text.starts_with("modular: still gives the forgotten samples their label in 83 %, retraining in 0 %."), "{text}");
    }

    #[test]
    fn the_interval_of_a_difference_agrees_with_a_worked_example() {
        // 56 of 70 against 48 of 80 (Newcombe 1998, table II, method 10).
        let (low, high) = apart(share(56.0 / 70.0, 70.0), share(48.0 / 80.0, 80.0)).ends();
        assert!((low - 0.0524).abs() < 1e-4 && (high - 0.3339).abs() < 1e-4, "{low} {high}");
    }

    #[test]
    fn a_large_difference_is_not_called_none_because_it_may_be_chance() {
        let seeds = |values: [f64; 3], label: &'static str| {
            values.into_iter().zip(1..).map(move |(forget, seed)| Case(label, seed, &[], [0.9, forget, 0.8, 0.6]))
        };
        let text = |values: [f64; 3]| {
            let mut cases: Vec<Case> = seeds(values, "modular").chain(seeds([0.55, 0.57, 0.59], "retrain")).collect();
            let first = cases.remove(0);
            of(first, cases)
        };
        let (wide, narrow) = (text([0.60, 0.75, 0.90]), text([0.70, 0.75, 0.80]));
        assert!(wide.contains("label in 75 %, retraining in 57 %: a difference between -14 and 50 points, which may be none"), "{wide}");
        assert!(narrow.contains("still gives the forgotten samples their label in 75 %, retraining in 57 %"), "{narrow}");
    }

    #[test]
    fn a_method_like_retraining_is_said_to_be_like_it() {
        let text = of(Case("modular", 1, &[], [1.0, 0.01, 0.9, 0.52]), [retrain(1), NULL]);
        assert!(text.contains("in 1 %, retraining in 0 %: a difference between"), "{text}");
        assert!(text.contains("0.8 points away from retraining, a second retraining 0.5; each is one draw"), "{text}");
        assert!(
            text.contains("The attack on 60 pairs cannot tell it from retraining (52 % and 50 %; up to 17 points may be chance)"),
            "{text}"
        );
        let text = of(Case("modular", 1, &[], [1.0, 0.0, 0.9, 0.7]), [retrain(1)]);
        assert!(text.contains("more often than those of retraining (70 % and 50 %"), "{text}");
        assert!(text.contains("without a second one nothing says how much of that is chance"), "{text}");
    }

    #[test]
    fn a_difference_that_is_there_is_not_called_none() {
        let cases = |label: &'static str, values: [f64; 4]| {
            (1..).zip(values).map(move |(seed, forget)| Case(label, seed, &[], [0.9, forget, 0.8, 0.6]))
        };
        let mut all: Vec<Case> = cases("modular", [0.71, 0.72, 0.715, 0.725]).collect();
        let first = all.remove(0);
        let text = of(first, all.into_iter().chain(cases("retrain", [0.70; 4])));
        assert!(text.contains("a difference between 0.7 and 2.8 points, which may be more than 2"), "{text}");
    }

    #[test]
    fn over_seeds_pairs_decide_and_one_seed_ranks_nothing() {
        // Retraining from 50 to 90 %, the method 5 to 6 points above it each time.
        let own = [0.55, 0.66, 0.75, 0.86, 0.95];
        let cases = |label: &'static str, values: [f64; 5]| {
            (1..).zip(values).map(move |(seed, forget)| Case(label, seed, &[], [0.9, forget, 0.8, 0.5 + 0.01 * seed as f64]))
        };
        let text = |own: [f64; 5]| {
            let mut all: Vec<Case> = cases("modular", own).collect();
            let first = all.remove(0);
            let nulls = cases("null", [0.5, 0.6, 0.7, 0.8, 0.9]);
            of(first, all.into_iter().chain(cases("retrain", [0.5, 0.6, 0.7, 0.8, 0.9])).chain(nulls))
        };
        let found = text(own);
        assert!(found.contains("still gives the forgotten samples their label in 75 %, retraining in 70 %"), "{found}");
        assert!(found.contains("The attack on 60 pairs and 5 seeds cannot tell it from retraining"), "{found}");
        assert!(found.contains("which may be none. The attack"), "{found}");
        let far = text([0.1; 5]);
        assert!(far.contains("further than a second retraining ("), "{far}");
    }

    #[test]
    fn forgetting_more_than_retraining_is_remarked_on() {
        let text = of(Case("modular", 1, &[], [1.0, 0.1, 0.9, 0.5]), [Case("retrain", 1, &[], [1.0, 0.9, 0.9, 0.5])]);
        assert!(text.contains("in 10 %, less often than retraining (90 %)"), "{text}");
    }

    #[test]
    fn cost_and_remains_are_named() {
        let text = of(Case("modular", 1, &[], [1.0, 0.0, 0.9, 0.5]), [retrain(1)]);
        assert!(
            text.contains(
                "It costs 4.0 s once and 1.5 s a request (with 10.0 % of retraining's samples backward), retraining 10.5 s: it has paid for itself after the first request."
            ),
            "{text}"
        );
        assert!(text.ends_with("It still rests on what base and offline learned with the forgotten data."), "{text}");
        let text = of(Case("finetune", 1, &[], [1.0, 0.0, 0.9, 0.5]), [retrain(1)]);
        assert!(text.contains("It costs 2.5 s a request (with 20.0 % of retraining's samples backward), retraining 10.5 s."), "{text}");
        assert!(text.ends_with("It still rests on what base learned with the forgotten data."), "{text}");
        assert_eq!(
            of(Case("modular", 1, &[], [1.0; 4]), []),
            "modular: It still rests on what base and offline learned with the forgotten data."
        );
    }

    #[test]
    fn a_method_that_changed_next_to_nothing_is_said_to_have() {
        let (mut lineage, metrics) = evaluated(&[Case("modular", 1, &[], [1.0, 0.0, 0.9, 0.5]), retrain(1)], |_, _| {});
        let mut text = |share: f64| {
            let modular = lineage.instances.iter_mut().find(|instance| instance.label == "modular").unwrap();
            modular.cost.as_mut().unwrap().changed = Some(share);
            let judged = judged(&lineage, &metrics).unwrap();
            verdict(&lineage, &rows(&judged)[0]).unwrap()
        };
        assert!(!text(0.01).contains("It changed"));
        assert!(text(0.0004).contains("It changed 0.04 % of the parameters."));
        assert!(text(0.0).contains("It changed no parameter."));
    }

    #[test]
    fn earlier_requests_and_forgotten_classes_are_remarked_on_where_more_is_left_of_them() {
        let cases = [Case("modular", 1, &[], [1.0, 0.0, 0.9, 0.5]), retrain(1)];
        let (lineage, metrics) = evaluated(&cases, |case, metrics| {
            let left = if case.0 == "modular" { 0.9 } else { 0.1 };
            metrics.scalar("earlier_accuracy", left, "fraction", "a share");
            metrics.scalar("test_forgotten_accuracy", left, "fraction", "a share");
        });
        let judged = judged(&lineage, &metrics).unwrap();
        let text = verdict(&lineage, &rows(&judged)[0]).unwrap();
        let expected = "It still names what earlier requests forgot in 90 %, retraining in 10 % and still names unseen samples of forgotten classes in 90 %, retraining in 10 %";
        assert!(text.contains(expected), "{text}");
    }
}
