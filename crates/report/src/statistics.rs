//! Means with intervals.

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the last is on the safe side.
const T_QUANTILES: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
    2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
const NORMAL_QUANTILE: f64 = 1.960;

/// A mean, and where its true value lies with 95 % confidence, as far as the data can tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) mean: f64,
    pub(crate) interval: Option<(f64, f64)>,
    /// Whether the interval is over seeds (symmetric), or over the samples of one.
    pub(crate) is_over_seeds: bool,
}

impl Estimate {
    /// Of a single value, of which nothing is known how it varies.
    pub(crate) fn alone(mean: f64) -> Self {
        Self { mean, interval: None, is_over_seeds: false }
    }

    /// In another unit.
    pub(crate) fn times(self, unit: f64) -> Self {
        Self { mean: unit * self.mean, interval: self.interval.map(|(low, high)| (unit * low, unit * high)), ..self }
    }

    /// Its interval, or itself where there is none.
    pub(crate) fn ends(self) -> (f64, f64) {
        self.interval.unwrap_or((self.mean, self.mean))
    }
}

/// The mean over seeds with its t interval; without an interval for a single value.
pub(crate) fn over_seeds(values: &[f64]) -> Option<Estimate> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    match values.len() {
        0 => None,
        1 => Some(Estimate::alone(mean)),
        several => {
            let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt();
            let half = T_QUANTILES[(several - 2).min(T_QUANTILES.len() - 1)] * deviation / count.sqrt();
            Some(Estimate { mean, interval: Some((mean - half, mean + half)), is_over_seeds: true })
        }
    }
}

/// A share of `count` samples with Wilson's binomial interval.
pub(crate) fn share(mean: f64, count: f64) -> Estimate {
    let z2 = NORMAL_QUANTILE * NORMAL_QUANTILE;
    let centre = (mean + z2 / (2.0 * count)) / (1.0 + z2 / count);
    let half = NORMAL_QUANTILE / (1.0 + z2 / count) * (mean * (1.0 - mean) / count + z2 / (4.0 * count * count)).sqrt();
    Estimate { mean, interval: Some(((centre - half).max(0.0), (centre + half).min(1.0))), is_over_seeds: false }
}

/// The mean of a share over seeds, each of so many samples. Where all seeds agree, that says less than it seems to: the interval is then that of the samples of one.
pub(crate) fn share_over_seeds(values: &[f64], count: Option<f64>) -> Option<Estimate> {
    let estimate = over_seeds(values)?;
    let agree = values.iter().all(|value| *value == values[0]);
    Some(match count {
        Some(count) if agree && count > 0.0 => share(estimate.mean, count),
        _ => estimate,
    })
}

/// How many independent samples say as much as the attack's: its ten test sets of a tenth each are drawn anew, so that a sample is tested
/// Binomial(10, 0.1) times, and the variance of the accuracy is E[times²] = 1.9 times that of each sample once.
pub(crate) fn attack_samples(pairs: u64) -> f64 {
    2.0 * pairs.max(1) as f64 / 1.9
}

/// By how much the accuracy of an attack on as many members as non-members varies by chance alone, in 95 % of cases, where there is nothing to be
/// told.
pub(crate) fn attack_noise(pairs: u64) -> f64 {
    NORMAL_QUANTILE * (0.25 / attack_samples(pairs)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_t_interval_agrees_with_a_worked_example() {
        let estimate = over_seeds(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let (low, high) = estimate.interval.unwrap();
        assert!((estimate.mean - 3.0).abs() < 1e-12 && (high - 4.963).abs() < 1e-3 && (low - 1.037).abs() < 1e-3, "{low} {high}");
    }

    #[test]
    fn the_binomial_interval_agrees_with_a_worked_example() {
        let (low, high) = share(0.9, 100.0).interval.unwrap();
        assert!((low - 0.8256).abs() < 1e-3 && (high - 0.9448).abs() < 1e-3, "{low} {high}");
        assert!(share(1.0, 50.0).interval.unwrap().0 < 1.0);
        // Rounding takes no end beyond 0 or 1.
        assert!((1..5000).all(
            |count| share(0.0, f64::from(count)).interval.unwrap().0 >= 0.0 && share(1.0, f64::from(count)).interval.unwrap().1 <= 1.0
        ));
    }

    #[test]
    fn the_chance_of_an_attack_shrinks_with_the_root_of_its_pairs() {
        assert!((attack_noise(60) - 0.1233).abs() < 1e-3 && (attack_noise(6000) - 0.01233).abs() < 1e-4);
    }

    #[test]
    fn seeds_that_agree_are_no_certainty() {
        assert_eq!(share_over_seeds(&[0.0, 0.0], Some(20.0)), Some(share(0.0, 20.0)));
        assert_eq!(share_over_seeds(&[0.3], Some(20.0)), Some(share(0.3, 20.0)));
        assert_eq!(share_over_seeds(&[0.0, 0.1], Some(20.0)), over_seeds(&[0.0, 0.1]));
    }

    #[test]
    fn one_value_has_no_interval_over_seeds() {
        assert_eq!(over_seeds(&[0.5]).unwrap().interval, None);
        assert_eq!(over_seeds(&[]), None);
    }
}
