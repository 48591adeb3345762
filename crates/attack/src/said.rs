//! What a model says of samples, as attacks look at it.

use dcu_artifact::Array;

/// What a model says of one sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Said {
    /// `ln(p / (1 - p))` of its label's probability p, which is not rounded where p is near 1.
    pub(crate) margin: f64,
    /// Of its label.
    pub(crate) probability: f64,
    /// Of all classes' probabilities, in nats.
    pub(crate) entropy: f64,
    /// The largest probability.
    pub(crate) confidence: f64,
    /// The class with the largest.
    pub(crate) class: u32,
}

impl Said {
    fn new(logits: &[f32], label: usize) -> Self {
        let all = logits.iter().map(|&logit| f64::from(logit));
        let largest = all.clone().fold(f64::NEG_INFINITY, f64::max);
        let sum = all.clone().map(|logit| (logit - largest).exp()).sum::<f64>();
        let logarithms = all.map(|logit| logit - largest - sum.ln());
        let entropy = -logarithms.clone().map(|logarithm| logarithm.exp() * logarithm).sum::<f64>();
        let class = logits.iter().position(|&logit| f64::from(logit) == largest).unwrap_or(0);
        let probability = logarithms.clone().nth(label).unwrap_or(f64::NEG_INFINITY).exp();
        Self { margin: margin(logits, label), probability, entropy, confidence: 1.0 / sum, class: class as u32 }
    }

    /// Of the samples in these rows.
    pub(crate) fn of_rows(logits: &Array<f32>, rows: &[usize], labels: &[u32]) -> Vec<Self> {
        rows.iter().zip(labels).map(|(&row, &label)| Self::new(logits.row(row), label as usize)).collect()
    }

    /// The cross-entropy, in nats.
    pub(crate) fn loss(&self) -> f64 {
        // ln(1 + exp(-margin)), without overflow.
        (-self.margin).max(0.0) + (-self.margin.abs()).exp().ln_1p()
    }
}

/// The label's logit less the logarithm of the sum of the others' exponentials.
fn margin(logits: &[f32], label: usize) -> f64 {
    let others = || logits.iter().enumerate().filter(|(class, _)| *class != label).map(|(_, &logit)| f64::from(logit));
    let largest = others().fold(f64::NEG_INFINITY, f64::max);
    f64::from(logits[label]) - largest - others().map(|logit| (logit - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_margin_is_the_logit_of_the_labels_probability() {
        let logits = [1.0_f32, 3.0, -2.0];
        let probabilities: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let share = probabilities[1] / probabilities.iter().sum::<f64>();
        let said = Said::new(&logits, 1);
        assert!((said.margin - (share / (1.0 - share)).ln()).abs() < 1e-12 && (said.loss() + share.ln()).abs() < 1e-12);
        assert!((said.probability - share).abs() < 1e-12 && (said.confidence - share).abs() < 1e-12 && said.class == 1);
        // scipy.stats.entropy of the softmax.
        assert!((said.entropy - 0.399_343_3).abs() < 1e-6, "{}", said.entropy);
        // Where a probability rounds to 1, and to 0.
        assert!((margin(&[900.0, 0.0], 0) - 900.0).abs() < 1e-12);
        let lost = Said::new(&[900.0, 0.0], 1);
        assert_eq!((lost.loss(), lost.probability, lost.entropy), (900.0, 0.0, 0.0));
    }
}
