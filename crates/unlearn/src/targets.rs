//! What there is to learn of samples, as probabilities.

use dcu_artifact::Array;

/// All of the probability on one class, [K].
pub(crate) fn one_hot(label: u32, classes: usize) -> impl Iterator<Item = f32> {
    (0..classes).map(move |class| f32::from(u8::from(class == label as usize)))
}

/// The softmax of each row of logits, [N, K], without the classes that are masked.
pub(crate) fn probabilities(logits: &Array<f32>, masked: &[u32]) -> Array<f32> {
    let mut result = Vec::with_capacity(logits.data.len());
    for row in 0..logits.rows() {
        let allowed = |class: usize| !masked.contains(&(class as u32));
        let values = logits.row(row);
        let largest =
            values.iter().enumerate().filter(|(class, _)| allowed(*class)).map(|(_, &value)| value).fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f64> =
            values.iter().enumerate().map(|(class, &value)| if allowed(class) { f64::from(value - largest).exp() } else { 0.0 }).collect();
        let sum: f64 = shares.iter().sum();
        result.extend(shares.into_iter().map(|share| (share / sum) as f32));
    }
    Array::new(logits.shape.clone(), result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_class_has_no_share_and_the_others_all() {
        let logits = Array::new(vec![2, 3], vec![0.0, 3.0_f32.ln(), 100.0, 5.0, 5.0, 5.0]);
        let found = probabilities(&logits, &[2]);
        for (found, expected) in found.data.iter().zip([0.25, 0.75, 0.0, 0.5, 0.5, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
