//! Scales of axes: where a value goes, and where the ticks stand.

/// A scale from data to the part of an axis, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    Linear {
        low: f64,
        high: f64,
        step: f64,
    },
    /// Both ends are positive.
    Log {
        low: f64,
        high: f64,
    },
}

/// Factors of a power of ten that divide a linear axis.
const STEPS: [f64; 4] = [1.0, 2.0, 5.0, 10.0];

impl Scale {
    /// A linear scale over all of the values, its ends on ticks.
    pub(crate) fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values).unwrap_or((0.0, 1.0));
        let width = if high > low { high - low } else { low.abs().max(1.0) };
        let power = 10_f64.powf((width / 5.0).log10().floor());
        let step = STEPS.map(|factor| factor * power).into_iter().find(|step| width / step <= 5.0 + 1e-9).unwrap_or(10.0 * power);
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        Self::Linear { low: first * step, high: last.max(first + 1.0) * step, step }
    }

    /// A logarithmic scale over all positive values, with a little room at both ends.
    pub(crate) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = range(values.into_iter().filter(|value| *value > 0.0)).unwrap_or((0.1, 1.0));
        Self::Log { low: low / 1.4, high: high * 1.4 }
    }

    /// The part of the axis at which a value stands; what is beyond an end stands at it.
    pub(crate) fn at(self, value: f64) -> f64 {
        let part = match self {
            Self::Linear { low, high, .. } => (value - low) / (high - low),
            Self::Log { low, high } => (value.max(low) / low).ln() / (high / low).ln(),
        };
        part.clamp(0.0, 1.0)
    }

    /// Values with a tick: multiples of the step, or powers of ten, where these are few with their doubles and fives between.
    pub(crate) fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear { low, high, step } => {
                (0..=((high - low) / step).round() as i32).map(|tick| low + f64::from(tick) * step).collect()
            }
            Self::Log { low, high } => {
                let between = |factors: &[f64]| {
                    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
                    let all = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
                    all.filter(|tick| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(tick)).collect::<Vec<f64>>()
                };
                let (fine, powers) = (between(&[1.0, 2.0, 5.0]), between(&[1.0]));
                if fine.len() <= 6 { fine } else { powers.iter().copied().step_by(powers.len().div_ceil(6)).collect() }
            }
        }
    }
}

/// A tick's value in as many digits as it needs.
pub(crate) fn tick(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1e5 || magnitude > 0.0 && magnitude < 0.999e-3 {
        return format!("{value:.0e}");
    }
    let digits = (0..6).find(|&digits| (magnitude * 10_f64.powi(digits) - (magnitude * 10_f64.powi(digits)).round()).abs() < 1e-6);
    let text = format!("{:.*}", digits.unwrap_or(6) as usize, magnitude);
    if value < 0.0 && text.chars().any(|digit| ('1'..='9').contains(&digit)) { format!("−{text}") } else { text }
}

/// The least and the largest of the finite values.
pub(crate) fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .into_iter()
        .filter(|value| value.is_finite())
        .fold(None, |range: Option<(f64, f64)>, value| Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<String> {
        scale.ticks().into_iter().map(tick).collect()
    }

    #[test]
    fn a_linear_axis_ends_on_round_ticks() {
        assert_eq!(labels(Scale::linear([0.7, 39.4])), ["0", "10", "20", "30", "40"]);
        assert_eq!(labels(Scale::linear([-3.0, 1.2])), ["−3", "−2", "−1", "0", "1", "2"]);
        assert_eq!(labels(Scale::linear([0.89, 0.94])), ["0.89", "0.9", "0.91", "0.92", "0.93", "0.94"]);
        assert_eq!(labels(Scale::linear([f64::NAN, 5.0, 5.0])), ["5", "6"]);
        assert_eq!(labels(Scale::linear([])).first().unwrap(), "0");
        let scale = Scale::linear([0.0, 10.0]);
        assert_eq!([-1.0, 0.0, 2.5, 10.0, 11.0].map(|value| scale.at(value)), [0.0, 0.0, 0.25, 1.0, 1.0]);
    }

    #[test]
    fn a_logarithmic_axis_has_ticks_at_powers_of_ten() {
        assert_eq!(labels(Scale::Log { low: 1e-3, high: 1.0 }), ["0.001", "0.01", "0.1", "1"]);
        assert_eq!(labels(Scale::Log { low: 1e-6, high: 100.0 }), ["1e-6", "1e-4", "0.01", "1", "100"]);
        assert_eq!(labels(Scale::Log { low: 0.08, high: 1.3 }), ["0.1", "0.2", "0.5", "1"]);
        assert_eq!(labels(Scale::Log { low: 1e-6, high: 1e-4 })[0], "1e-6");
        let scale = Scale::Log { low: 0.01, high: 1.0 };
        assert!((scale.at(0.1) - 0.5).abs() < 1e-12 && scale.at(0.0) == 0.0 && scale.at(5.0) == 1.0);
        assert!(matches!(Scale::log([0.0, 0.5, 2.0]), Scale::Log { low, high } if low < 0.5 && high > 2.0));
    }
}
