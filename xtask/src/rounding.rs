//! Whether two artifacts say the same but for how the CPUs that computed them round: names, counts, samples and words to the letter, numbers within what sums in f32 explain.

use std::collections::BTreeMap;
use std::fmt::Display;

use dcu_artifact::{Array, Metrics, Predictions};

use crate::diagnostic::cut;

/// How far numbers of the size of 1 may be apart, and how far others, as a share of their size. A sum of some thousands of products in f32 is off by 1e-5 of its terms, and a deep network has
/// some dozens of these behind one another.
const ROUNDING: f64 = 1e-3;
/// How far shares and probabilities may be apart where no count says how much a sample is.
const SHARE: f64 = 0.005;
/// So many samples may be on the other side of a decision: one that stood between both.
const SAMPLES: f64 = 1.5;
/// Scores that are shares of samples, and the count in the facts that says of how many.
const COUNTED: [(&str, &str); 7] = [
    ("retain_accuracy", "retain"),
    ("forget_accuracy", "forget"),
    ("forget_original_accuracy", "forget"),
    ("earlier_accuracy", "earlier"),
    ("test_accuracy", "test"),
    ("test_forgotten_accuracy", "test_forgotten"),
    ("mia_accuracy", "attack_pairs"),
];
/// What an array of accuracies by class is called after the name of its accuracy, and its unit.
const PER_CLASS: (&str, &str) = ("_per_class", "class, fraction");

/// What is allowed, in words.
pub(crate) const WORDS: &str = "shares within one and a half samples of their count, or 0.005 where none is stated; other numbers within 0.001 and a thousandth of their size; all else to the letter";

/// Which numbers of one pair of artifacts may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// None: both were computed on CPUs of one kind.
    Alike,
    /// Those that are sums, by what the sums explain.
    Other,
}

/// What two artifacts of scores do not agree on.
pub(crate) fn scores_apart(before: &Metrics, now: &Metrics, rounding: Rounding) -> Vec<String> {
    let mut lines = Vec::new();
    let facts = |metrics: &Metrics| metrics.facts.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
    let words = |metrics: &Metrics| {
        let definitions = metrics.definitions.iter();
        definitions.map(|(name, own)| (name.clone(), format!("{} [{}]", own.definition, own.unit))).collect()
    };
    to_the_letter("the fact", &facts(before), &facts(now), &mut lines);
    to_the_letter("the definition of", &words(before), &words(now), &mut lines);
    to_the_letter("the reason why there is no", &before.absent, &now.absent, &mut lines);
    for (name, own, again) in pairs("", &before.ids, &now.ids, &mut lines) {
        lines.extend((own != again).then(|| format!("the samples `{name}` are others")));
    }
    let one_sample = |name: &str| {
        let (_, count) = COUNTED.iter().find(|(score, _)| *score == name)?;
        Some(SAMPLES / now.facts.get("counts")?.get(count)?.as_u64().filter(|count| *count > 0)? as f64)
    };
    let unit = |name: &str| now.definitions.get(name).map_or("", |definition| definition.unit.as_str());
    for (name, own, again) in pairs("", &before.scalars, &now.scalars, &mut lines) {
        let most = match (rounding, unit(name)) {
            (Rounding::Alike, _) => 0.0,
            (Rounding::Other, "fraction" | "probability") => one_sample(name).unwrap_or(SHARE),
            (Rounding::Other, _) => rounded(*again),
        };
        if (again - own).abs() > most {
            lines.push(format!("`{name}` is {own} in the artifact, and comes out as {again}"));
        }
    }
    for (name, own, again) in pairs("", &before.arrays, &now.arrays, &mut lines) {
        let sample = name.strip_suffix(PER_CLASS.0).and_then(one_sample).filter(|_| unit(name) == PER_CLASS.1);
        let is_close = match (rounding, sample) {
            (Rounding::Alike, _) => own == again,
            (Rounding::Other, Some(sample)) => classes_are_close(own, again, sample),
            (Rounding::Other, None) => are_close(own, again, |value| *value),
        };
        lines.extend((!is_close).then(|| format!("the array `{name}` comes out otherwise")));
    }
    lines
}

/// What two artifacts of predictions do not agree on.
pub(crate) fn predictions_apart(before: &Predictions, now: &Predictions, rounding: Rounding) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, own, again) in [("ids", &before.ids, &now.ids), ("test_ids", &before.test_ids, &now.test_ids)] {
        lines.extend((own != again).then(|| format!("the samples `{name}` are others")));
    }
    for (name, own, again) in [("logits", &before.logits, &now.logits), ("test_logits", &before.test_logits, &now.test_logits)] {
        let is_close = if rounding == Rounding::Alike { own == again } else { are_close(own, again, |value| f64::from(*value)) };
        lines.extend((!is_close).then(|| format!("the array `{name}` comes out otherwise")));
    }
    lines
}

/// How far a number of this size may be off.
fn rounded(value: f64) -> f64 {
    ROUNDING * (1.0 + value.abs())
}

fn are_close<T>(own: &Array<T>, again: &Array<T>, value: impl Fn(&T) -> f64) -> bool {
    let is_close = |(own, again): (&T, &T)| (value(own) - value(again)).abs() <= rounded(value(again));
    own.shape == again.shape && own.data.iter().zip(&again.data).all(is_close)
}

/// Classes with their accuracies, [classes, 2]: one accuracy may be off by one sample, which is no more of all samples than `sample` says.
fn classes_are_close(own: &Array<f64>, again: &Array<f64>, sample: f64) -> bool {
    let rows = || own.data.chunks_exact(2).zip(again.data.chunks_exact(2));
    let off: Vec<(f64, f64)> = rows().filter(|(own, again)| own[1] != again[1]).map(|(own, again)| (own[1], again[1])).collect();
    // A class of n samples has n-ths; of how many it has, these alone tell.
    let is_one_sample = |&(own, again): &(f64, f64)| {
        let samples = (1.0 / (own - again).abs()).round();
        let is_whole = |value: f64| (value - value.round()).abs() < 1e-6;
        samples * sample <= SAMPLES && is_whole(samples * again) && (samples * (own - again).abs() - 1.0).abs() < 1e-6
    };
    own.shape == again.shape && rows().all(|(own, again)| own[0] == again[0]) && off.len() <= 1 && off.iter().all(is_one_sample)
}

/// What both have, by name; a name that only one of them has is told.
fn pairs<'a, T>(
    what: &str,
    before: &'a BTreeMap<String, T>,
    now: &'a BTreeMap<String, T>,
    lines: &mut Vec<String>,
) -> Vec<(&'a str, &'a T, &'a T)> {
    lines.extend(before.keys().filter(|name| !now.contains_key(*name)).map(|name| format!("{what}`{name}` does not come out at all")));
    lines.extend(now.keys().filter(|name| !before.contains_key(*name)).map(|name| format!("{what}`{name}` is missing in the artifact")));
    before.iter().filter_map(|(name, own)| Some((name.as_str(), own, now.get(name)?))).collect()
}

fn to_the_letter<T: Display + PartialEq>(what: &str, before: &BTreeMap<String, T>, now: &BTreeMap<String, T>, lines: &mut Vec<String>) {
    for (name, own, again) in pairs(&format!("{what} "), before, now, lines) {
        if own != again {
            let [own, again] = [own, again].map(|text| cut(&text.to_string()));
            lines.push(format!("{what} `{name}` is {own} in the artifact, and comes out as {again}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Of 60 forgotten samples and 5,000 retained ones.
    fn metrics() -> Metrics {
        let mut metrics = Metrics::default();
        metrics.facts.insert("counts".into(), json!({ "retain": 5000, "forget": 60 }));
        metrics.scalar("retain_accuracy", 0.9, "fraction", "share");
        metrics.scalar("forget_accuracy", 0.5, "fraction", "share");
        metrics.scalar("klom_median", 2.0, "nat", "divergence");
        metrics.array("forget_losses", Array::vector(vec![0.5, 20.0]), "nat", "losses");
        metrics.array("forget_accuracy_per_class", Array::new(vec![2, 2], vec![1.0, 0.4, 7.0, 0.6]), "class, fraction", "by class");
        metrics.ids.insert("forget_ids".into(), vec![1, 2]);
        metrics.absent.insert("mia_accuracy".into(), "7 pairs are too few".into());
        metrics
    }

    /// How many lines there are after a change of what was recorded.
    #[track_caller]
    fn told(rounding: Rounding, change: impl FnOnce(&mut Metrics)) -> usize {
        let mut before = metrics();
        change(&mut before);
        scores_apart(&before, &metrics(), rounding).len()
    }

    #[test]
    fn on_a_cpu_of_the_same_kind_every_bit_counts() {
        assert_eq!(told(Rounding::Alike, |_| {}), 0);
        assert_eq!(told(Rounding::Alike, |metrics| *metrics.scalars.get_mut("klom_median").unwrap() += 1e-12), 1);
        assert_eq!(told(Rounding::Alike, |metrics| metrics.arrays.get_mut("forget_losses").unwrap().data[0] += 1e-12), 1);
        let lines = scores_apart(&Metrics::default(), &metrics(), Rounding::Alike);
        assert!(lines.iter().any(|line| line == "`retain_accuracy` is missing in the artifact"), "{lines:?}");
    }

    #[test]
    fn on_another_cpu_a_share_may_be_off_by_a_sample_of_its_count() {
        let off = |name: &str, by: f64| told(Rounding::Other, |metrics| *metrics.scalars.get_mut(name).unwrap() += by);
        assert_eq!((off("forget_accuracy", 1.0 / 60.0), off("forget_accuracy", 2.0 / 60.0)), (0, 1));
        assert_eq!((off("retain_accuracy", 1.0 / 5000.0), off("retain_accuracy", 0.005)), (0, 1));
        assert_eq!((off("klom_median", 1e-4), off("klom_median", 0.1)), (0, 1));
    }

    #[test]
    fn on_another_cpu_one_class_may_be_off_by_one_sample() {
        let off = |place: usize, by: f64| {
            told(Rounding::Other, |metrics| metrics.arrays.get_mut("forget_accuracy_per_class").unwrap().data[place] += by)
        };
        assert_eq!((off(1, 0.1), off(1, -0.2), off(3, 1.0 / 30.0)), (0, 0, 0));
        // No sample of five, of 15 or of 60 makes up so much; a class has no other number.
        assert_eq!((off(1, 0.37), off(1, 0.4), off(1, 1e-4), off(0, 1.0)), (1, 1, 1, 1));
        let both = told(Rounding::Other, |metrics| {
            let array = metrics.arrays.get_mut("forget_accuracy_per_class").unwrap();
            array.data[1] += 0.1;
            array.data[3] += 0.1;
        });
        assert_eq!(both, 1);
    }

    #[test]
    fn on_another_cpu_all_that_does_not_round_is_compared_to_the_letter() {
        let told = |change: fn(&mut Metrics)| told(Rounding::Other, change);
        assert_eq!(told(|metrics| drop(metrics.facts.insert("counts".into(), json!({ "retain": 5000, "forget": 600 })))), 1);
        assert_eq!(told(|metrics| drop(metrics.facts.insert("more".into(), json!(1)))), 1);
        assert_eq!(told(|metrics| metrics.definitions.get_mut("klom_median").unwrap().definition.push('x')), 1);
        assert_eq!(told(|metrics| metrics.definitions.get_mut("forget_accuracy").unwrap().unit = "nat".into()), 1);
        assert_eq!(told(|metrics| metrics.ids.get_mut("forget_ids").unwrap()[1] = 3), 1);
        assert_eq!(told(|metrics| drop(metrics.absent.remove("mia_accuracy"))), 1);
        assert_eq!(told(|metrics| metrics.arrays.get_mut("forget_losses").unwrap().data[1] = 20.1), 1);
        assert_eq!(told(|metrics| metrics.arrays.get_mut("forget_losses").unwrap().data[1] = 20.001), 0);
        assert_eq!(told(|metrics| drop(metrics.arrays.remove("forget_losses"))), 1);
    }

    #[test]
    fn predictions_may_be_off_by_rounding_but_not_of_other_samples() {
        let logits = |value: f32| Array::new(vec![1, 2], vec![value, -8.0]);
        let predictions =
            |id: u64, value: f32| Predictions { ids: vec![id], logits: logits(value), test_ids: vec![9], test_logits: logits(0.0) };
        let told = |before: Predictions, rounding| predictions_apart(&before, &predictions(1, 4.0), rounding).len();
        assert_eq!((told(predictions(1, 4.0), Rounding::Alike), told(predictions(1, 4.0001), Rounding::Alike)), (0, 1));
        assert_eq!((told(predictions(1, 4.0001), Rounding::Other), told(predictions(1, 4.1), Rounding::Other)), (0, 1));
        assert_eq!(told(predictions(2, 4.0), Rounding::Other), 1);
    }
}
