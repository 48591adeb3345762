//! Attacks on one model: from what it says of a sample, how likely it was trained on it. Those of older papers look at the model alone; the two that see single samples compare with
//! models that never saw them.

use crate::said::Said;
use crate::statistics::{mean, variance};

/// Scores of samples, larger for members.
pub(crate) type Scores = Vec<f64>;

/// How much easier than its worst a sample is for models that saw it: `a` of the offline rule for CIFAR-10 (Zarifzadeh et al., arXiv 2312.03262).
const EASIER: f64 = 0.3;
/// Where probabilities end, so that their ratios are numbers.
const LEAST: f64 = 1e-30;
/// With so many models a sample's deviation is its own; with fewer that of all samples of its side (members, or others) together serves (after Carlini et al., arXiv 2112.03570).
const ENOUGH: usize = 64;
/// What no deviation is below.
const NARROWEST: f64 = 1e-6;

/// An attack that needs nothing but the model.
pub(crate) fn alone(said: &[Said], score: fn(&Said) -> f64) -> Scores {
    said.iter().map(score).collect()
}

/// What models say of samples that none of them was trained on: the reference of an attack, [samples] each with one value a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Strangers {
    /// Mean probability of each sample's label.
    probabilities: Vec<f64>,
    /// Mean and variance of each sample's margin.
    margins: Vec<(f64, f64)>,
    models: usize,
}

impl Strangers {
    /// Of models [M][samples].
    pub(crate) fn new(models: &[&[Said]]) -> Self {
        let samples = models.first().map_or(0, |said| said.len());
        let of = |sample: usize, value: fn(&Said) -> f64| models.iter().map(|said| value(&said[sample])).collect::<Vec<f64>>();
        Self {
            probabilities: (0..samples).map(|sample| mean(&of(sample, |said| said.probability))).collect(),
            margins: (0..samples).map(|sample| of(sample, |said| said.margin)).map(|values| (mean(&values), variance(&values))).collect(),
            models: models.len(),
        }
    }

    /// By how many deviations a sample's margin is above that of the strangers (offline LiRA).
    pub(crate) fn likelihood(&self, said: &[Said]) -> Scores {
        let pooled = mean(&self.margins.iter().map(|(_, variance)| *variance).collect::<Vec<_>>());
        let score = |(said, &(mean, own)): (&Said, &(f64, f64))| {
            let variance = if self.models < ENOUGH { pooled } else { own };
            (said.margin - mean) / variance.sqrt().max(NARROWEST)
        };
        said.iter().zip(&self.margins).map(score).collect()
    }

    /// How much more probable the model finds each sample's label than strangers do, who would find it a little more probable had they seen it.
    pub(crate) fn ratios(&self, said: &[Said]) -> Vec<f64> {
        let ratio = |(said, &stranger): (&Said, &f64)| {
            let usual = 0.5 * ((1.0 + EASIER) * stranger + 1.0 - EASIER);
            said.probability.max(LEAST) / usual.max(LEAST)
        };
        said.iter().zip(&self.probabilities).map(ratio).collect()
    }
}

/// RMIA, offline: the share of a population of other samples whose ratio is not above a sample's own, ratios as [`Strangers::ratios`] has them.
pub(crate) fn relative(ratios: &[f64], population: &[f64]) -> Scores {
    let mut sorted = population.to_vec();
    sorted.sort_by(f64::total_cmp);
    ratios.iter().map(|ratio| sorted.partition_point(|other| other <= ratio) as f64 / sorted.len() as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(margin: f64) -> Said {
        Said { margin, probability: 1.0 / (1.0 + (-margin).exp()), entropy: 0.0, confidence: 0.5, class: 0 }
    }

    fn all(margins: &[f64]) -> Vec<Said> {
        margins.iter().map(|&margin| said(margin)).collect()
    }

    #[test]
    fn the_relative_attack_is_the_published_rule() {
        let (one, two) = (all(&[0.0, 1.0, -2.0]), all(&[1.0, 0.0, -1.0]));
        let strangers = Strangers::new(&[&one, &two]);
        let model = all(&[2.0, 0.0, 3.0]);
        let probability = |margin: f64| 1.0 / (1.0 + f64::exp(-margin));
        // As the privacy meter computes them: p / (((1 + a) * p_out + (1 - a)) / 2).
        let expected = [
            probability(2.0) / ((1.3 * 0.5 * (0.5 + probability(1.0)) + 0.7) / 2.0),
            0.5 / ((1.3 * 0.5 * (0.5 + probability(1.0)) + 0.7) / 2.0),
            probability(3.0) / ((1.3 * 0.5 * (probability(-2.0) + probability(-1.0)) + 0.7) / 2.0),
        ];
        let ratios = strangers.ratios(&model);
        assert!(ratios.iter().zip(expected).all(|(own, expected)| (own - expected).abs() < 1e-12), "{ratios:?} {expected:?}");
        assert_eq!(relative(&ratios, &[0.1, expected[1], 1.0, 5.0]), [0.75, 0.5, 0.75]);
    }

    #[test]
    fn likelihoods_are_in_deviations_of_strangers() {
        let (one, two) = (all(&[0.0, 1.0]), all(&[2.0, 5.0]));
        let strangers = Strangers::new(&[&one, &two]);
        // Means 1 and 3, pooled variance (2 + 8) / 2.
        let scores = strangers.likelihood(&all(&[1.0 + 5.0_f64.sqrt(), 3.0]));
        assert!((scores[0] - 1.0).abs() < 1e-12 && scores[1] == 0.0, "{scores:?}");
    }
}
