//! How well a score tells members from others: area under the curve, and true positives where false alarms are rare.

/// The true positive rate over the false positive rate, as the threshold on a score falls.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Roc {
    /// (false, true) positives at each threshold, counts; the first is (0, 0), the last all.
    corners: Vec<(usize, usize)>,
}

impl Roc {
    /// Of scores that are larger for members, of which neither list is empty.
    pub(crate) fn new(members: &[f64], others: &[f64]) -> Self {
        let mut scores: Vec<(f64, bool)> =
            members.iter().map(|&score| (score, true)).chain(others.iter().map(|&score| (score, false))).collect();
        scores.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        let mut corners = vec![(0, 0)];
        let (mut wrong, mut right) = (0, 0);
        for (place, &(score, is_member)) in scores.iter().enumerate() {
            if is_member {
                right += 1;
            } else {
                wrong += 1;
            }
            // Equal scores are on the same side of every threshold.
            if scores.get(place + 1).is_none_or(|(next, _)| *next != score) {
                corners.push((wrong, right));
            }
        }
        Self { corners }
    }

    fn counts(&self) -> (f64, f64) {
        let &(others, members) = self.corners.last().expect("there is one");
        (others as f64, members as f64)
    }

    /// The area under the curve: how often a member has the larger score than another, ties half.
    pub(crate) fn area(&self) -> f64 {
        let (others, members) = self.counts();
        let trapezium = |pair: &[(usize, usize)]| (pair[1].0 - pair[0].0) as f64 * (pair[0].1 + pair[1].1) as f64 / 2.0;
        self.corners.windows(2).map(trapezium).sum::<f64>() / (others * members)
    }

    /// The largest true positive rate at a false positive rate up to this; nothing where so few others cannot show such a rate.
    pub(crate) fn at(&self, false_positives: f64) -> Option<f64> {
        let (others, members) = self.counts();
        let most = false_positives * others * (1.0 + 1e-12);
        (most >= 1.0).then(|| {
            let right = self.corners.iter().filter(|(wrong, _)| *wrong as f64 <= most).map(|(_, right)| *right).max();
            right.unwrap_or(0) as f64 / members
        })
    }

    /// By how much the area varies by chance, where labels say nothing about scores: 95 % of cases (Mann and Whitney 1947).
    pub(crate) fn noise(members: usize, others: usize) -> f64 {
        let (members, others) = (members as f64, others as f64);
        1.96 * ((members + others + 1.0) / (12.0 * members * others)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_and_rates_are_scikit_learns() {
        // sklearn.metrics.roc_auc_score and roc_curve of these.
        let members = [0.9, 0.8, 0.8, 0.35, 0.1];
        let others = [0.8, 0.4, 0.3, 0.2, 0.1, 0.05];
        let roc = Roc::new(&members, &others);
        assert!((roc.area() - 0.75).abs() < 1e-12, "{}", roc.area());
        assert_eq!(roc.at(1.0 / 6.0), Some(0.6));
        assert_eq!(roc.at(0.5), Some(0.8));
        assert_eq!(roc.at(0.1), None);
        assert_eq!(roc.at(1.0), Some(1.0));
    }

    #[test]
    fn what_is_alike_is_at_chance() {
        assert_eq!(Roc::new(&[1.0; 4], &[1.0; 9]).area(), 0.5);
        assert_eq!(Roc::new(&[1.0; 4], &[0.0; 9]).area(), 1.0);
        // scipy.stats.mannwhitneyu's standard deviation of U for 50 and 80, over 4000.
        assert!((Roc::noise(50, 80) / 1.96 - 0.052_241_4).abs() < 1e-6, "{}", Roc::noise(50, 80) / 1.96);
    }
}
