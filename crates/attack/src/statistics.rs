//! Tests, intervals and the correction for many comparisons.

use dcu_nn::rng::Streams;
use rayon::prelude::*;
use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// How often models are dealt anew to both sides.
const DEALS: u64 = 999;

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of a sample, with one degree of freedom less than values; 0 for a single one.
pub(crate) fn variance(values: &[f64]) -> f64 {
    let centre = mean(values);
    values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / (values.len().max(2) - 1) as f64
}

/// Between the two nearest values, as NumPy's default.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

/// A mean with its standard error and the degrees of freedom of that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mean {
    pub(crate) value: f64,
    error: f64,
    freedom: f64,
}

impl Mean {
    /// Of two values or more.
    pub(crate) fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        Self { value: mean(values), error: (variance(values) / count).sqrt(), freedom: count - 1.0 }
    }

    /// Of `own` less that of `other`: by pairs where there are as many of both, otherwise by Welch's rule.
    pub(crate) fn of_difference(own: &[f64], other: &[f64]) -> Self {
        if own.len() == other.len() {
            return Self::of(&own.iter().zip(other).map(|(own, other)| own - other).collect::<Vec<_>>());
        }
        Self::welch(own, other)
    }

    /// The difference of two means whose variances need not be the same (Welch 1947).
    fn welch(own: &[f64], other: &[f64]) -> Self {
        let part = |values: &[f64]| variance(values) / values.len() as f64;
        let (one, two) = (part(own), part(other));
        let freedom = (one + two).powi(2) / (one * one / (own.len() - 1) as f64 + two * two / (other.len() - 1) as f64);
        Self { value: mean(own) - mean(other), error: (one + two).sqrt(), freedom: if freedom.is_nan() { 1.0 } else { freedom } }
    }

    fn student(self) -> StudentsT {
        StudentsT::new(0.0, 1.0, self.freedom).expect("there are degrees of freedom")
    }

    /// Whether the values that it is of do not vary: what it would be with others is not known then.
    pub(crate) fn is_rigid(self) -> bool {
        self.error == 0.0
    }

    /// Its 95 % interval.
    pub(crate) fn interval(self) -> (f64, f64) {
        let half = self.student().inverse_cdf(0.975) * self.error;
        (self.value - half, self.value + half)
    }

    /// How likely so large a mean is, or a larger one, where it is `bound` in truth.
    fn above(self, bound: f64) -> f64 {
        if self.error > 0.0 { self.student().sf((self.value - bound) / self.error) } else { f64::from(u8::from(self.value <= bound)) }
    }

    /// The larger of the two one-sided probabilities that what lies outside of ± `margin` looks as much like inside (TOST, Schuirmann 1987): small where it is equivalent to none.
    pub(crate) fn equivalence(self, margin: f64) -> f64 {
        let below = Self { value: -self.value, ..self };
        self.above(-margin).max(below.above(-margin))
    }

    /// How likely a mean so far from 0 is, on either side, where it is 0 in truth.
    fn other_than_none(self) -> f64 {
        let size = Self { value: self.value.abs(), ..self };
        (2.0 * size.above(0.0)).min(1.0)
    }
}

/// How likely so different means are where there is no difference: Welch's test, two-sided.
pub(crate) fn welch_test(own: &[f64], other: &[f64]) -> f64 {
    Mean::welch(own, other).other_than_none()
}

/// Which of many hypotheses fall, so that of those a share of `rate` at most falls wrongly (Benjamini and Hochberg 1995).
pub(crate) fn discoveries(probabilities: &[f64], rate: f64) -> Vec<bool> {
    let mut sorted = probabilities.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    let last = sorted.iter().enumerate().rev().find(|(rank, value)| **value <= rate * (rank + 1) as f64 / count);
    let threshold = last.map_or(f64::NEG_INFINITY, |(_, value)| *value);
    probabilities.iter().map(|value| *value <= threshold).collect()
}

/// A statistic of two groups of models, which is larger the less alike they are, beside what it is where they are one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tested {
    pub(crate) value: f64,
    /// Its 95 % interval, by leaving out one model after the other, or one pair where there are as many of both (jackknife).
    pub(crate) interval: (f64, f64),
    /// Its mean where all models are dealt anew to two groups of the same sizes, at random.
    pub(crate) floor: f64,
    /// The share of those deals that have as large a value, itself counted with them.
    pub(crate) probability: f64,
}

impl Tested {
    /// `statistic` takes the models of one group and of the other, numbers below `own + other`; there are three of each at least.
    pub(crate) fn new(own: usize, other: usize, streams: &Streams, statistic: impl Fn(&[usize], &[usize]) -> f64 + Sync) -> Self {
        let models: Vec<usize> = (0..own + other).collect();
        let value = statistic(&models[..own], &models[own..]);
        let without = |left_out: &[usize]| {
            let of = |group: &[usize]| group.iter().copied().filter(|model| !left_out.contains(model)).collect::<Vec<_>>();
            statistic(&of(&models[..own]), &of(&models[own..]))
        };
        let spread = |values: &[f64]| variance(values) * (values.len() - 1).pow(2) as f64 / values.len() as f64;
        let squared = if own == other {
            // Pair by pair: a statistic of groups of one size can be another where the sizes differ.
            spread(&(0..own).into_par_iter().map(|pair| without(&[pair, own + pair])).collect::<Vec<f64>>())
        } else {
            let each: Vec<f64> = models.par_iter().map(|&model| without(&[model])).collect();
            spread(&each[..own]) + spread(&each[own..])
        };
        let half = 1.96 * squared.sqrt();
        let dealt = |deal: u64| {
            let dealt = streams.indexed("deal", deal).permutation(own + other);
            statistic(&dealt[..own], &dealt[own..])
        };
        let dealt: Vec<f64> = (0..DEALS).into_par_iter().map(dealt).collect();
        // What is equal but for the order of its sums is equal.
        let least = value - 1e-12 * value.abs();
        let as_large = dealt.iter().filter(|dealt| **dealt >= least).count();
        Self {
            value,
            interval: (value - half, value + half),
            floor: mean(&dealt),
            probability: (1 + as_large) as f64 / (1 + dealt.len()) as f64,
        }
    }
}

/// The least probability that dealing so many models can show: that of the deals that are the groups themselves, or of all deals that are tried.
pub(crate) fn least_probability(own: usize, other: usize) -> f64 {
    let ways = (0..own).map(|place| (own + other - place) as f64 / (own - place) as f64).product::<f64>();
    let same = if own == other { 2.0 } else { 1.0 };
    (same / ways).max(1.0 / (1 + DEALS) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn welchs_test_and_both_one_sided_tests_are_scipys() {
        let (own, other) = ([1.0, 2.5, 3.1, 4.7], [2.0, 2.2, 5.9, 6.1, 7.3]);
        // scipy.stats.ttest_ind(own, other, equal_var=False)
        assert!((welch_test(&own, &other) - 0.203_256_6).abs() < 1e-6, "{}", welch_test(&own, &other));
        // scipy.stats.ttest_1samp of these against -1 and 1, one-sided; the interval of its result.
        let mean = Mean::of(&[0.1, -0.4, 0.6, 0.3, -0.2]);
        assert!((mean.equivalence(1.0) - 0.003_276_3).abs() < 1e-6, "{}", mean.equivalence(1.0));
        let (low, high) = mean.interval();
        assert!((low + 0.411_99).abs() < 1e-4 && (high - 0.571_99).abs() < 1e-3, "{low} {high}");
    }

    #[test]
    fn where_nothing_varies_a_test_knows() {
        assert_eq!(welch_test(&[1.0; 3], &[1.0; 4]), 1.0);
        assert_eq!(welch_test(&[1.0; 3], &[2.0; 4]), 0.0);
        assert_eq!((Mean::of(&[0.5; 3]).equivalence(1.0), Mean::of(&[1.5; 3]).equivalence(1.0)), (0.0, 1.0));
    }

    #[test]
    fn equivalence_is_claimed_wrongly_as_seldom_as_it_says() {
        // A gap of exactly the margin, 8 seeds: claimed in 5 % of cases.
        let claimed = (0..4000).filter(|&trial| {
            let mut stream = Streams::new(trial, "test").stream("gaps");
            let gaps: Vec<f64> = (0..8).map(|_| 2.0 + f64::from(stream.normal())).collect();
            Mean::of(&gaps).equivalence(2.0) < 0.05
        });
        let share = claimed.count() as f64 / 4000.0;
        assert!((share - 0.05).abs() < 0.012, "{share}");
    }

    #[test]
    fn discoveries_are_those_of_the_rule() {
        // scipy.stats.false_discovery_control(p) <= 0.05
        let found = discoveries(&[0.01, 0.04, 0.03, 0.005, 0.6, 0.2, 0.012, 0.9], 0.05);
        assert_eq!(found, [true, false, false, true, false, false, true, false]);
        assert_eq!(discoveries(&[0.6, 0.9], 0.05), [false, false]);
    }

    #[test]
    fn so_few_models_can_show_so_little() {
        assert!((least_probability(4, 4) - 2.0 / 70.0).abs() < 1e-12 && (least_probability(3, 4) - 1.0 / 35.0).abs() < 1e-12);
        assert_eq!(least_probability(16, 16), 0.001);
    }

    #[test]
    fn percentiles_are_numpys() {
        assert!((percentile(&[4.0, 1.0, 3.0, 2.0], 0.95) - 3.85).abs() < 1e-12);
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
    }

    #[test]
    fn a_difference_of_models_is_found_and_none_is_not() {
        let value = |model: usize| f64::from(Streams::new(model as u64, "test").stream("model").normal());
        let streams = Streams::new(1, "test");
        let difference = |shift: f64| {
            let of = |models: &[usize]| {
                mean(&models.iter().map(|&model| value(model) + if model < 12 { shift } else { 0.0 }).collect::<Vec<_>>())
            };
            Tested::new(12, 12, &streams, |own, other| (of(own) - of(other)).abs())
        };
        let (none, large) = (difference(0.0), difference(3.0));
        assert!(none.probability > 0.05 && large.probability < 0.01, "{none:?} {large:?}");
        assert!(large.interval.0 > large.floor, "{large:?}");
    }
}
