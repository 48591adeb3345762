//! Whom the membership attack compares: forget samples with unseen samples of the same classes.

use std::collections::BTreeMap;

use dcu_artifact::Dataset;
use dcu_nn::rng::Streams;

/// Fewer pairs than this give no score worth the name.
pub(crate) const FEWEST_PAIRS: usize = 20;

/// As many members as non-members with the same histogram of (class before poisoning, class).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Rows of the training set.
    pub(crate) members: Vec<usize>,
    /// Rows of the test set.
    pub(crate) others: Vec<usize>,
    /// The label under which each non-member's loss is taken: its own, or for swapped labels the same swap applied to it.
    pub(crate) other_labels: Vec<u32>,
}

impl Comparison {
    /// Draws from `forget` and `unseen` without replacement. Where a class has too few unseen samples, fewer of its members take part.
    pub(crate) fn draw(dataset: &Dataset, forget: &[usize], test: &Dataset, unseen: &[usize], streams: &Streams) -> Self {
        let mut groups: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
        for &row in forget {
            let label = dataset.labels[row];
            let original = dataset.original_labels.as_ref().map_or(label, |labels| labels[row]);
            groups.entry((original, label)).or_default().push(row);
        }
        let mut available: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for &row in unseen {
            available.entry(test.labels[row]).or_default().push(row);
        }
        for (class, rows) in &mut available {
            streams.indexed("non-members", u64::from(*class)).shuffle(rows);
        }
        let mut comparison = Self { members: Vec::new(), others: Vec::new(), other_labels: Vec::new() };
        for (group, ((original, label), mut rows)) in groups.into_iter().enumerate() {
            let pool = available.entry(original).or_default();
            let count = rows.len().min(pool.len());
            if count < rows.len() {
                streams.indexed("members", group as u64).shuffle(&mut rows);
            }
            comparison.members.extend(&rows[..count]);
            comparison.others.extend(pool.drain(..count));
            comparison.other_labels.extend(std::iter::repeat_n(label, count));
        }
        comparison
    }
}

#[cfg(test)]
mod tests {
    use dcu_artifact::{Array, DatasetFacts, Normalisation};

    use super::*;

    fn dataset(labels: Vec<u32>, original: Option<Vec<u32>>) -> Dataset {
        let count = labels.len();
        Dataset {
            images: Array::new(vec![count, 1, 1, 1], vec![0; count]),
            labels,
            original_labels: original,
            ids: (0..count as u64).collect(),
            facts: DatasetFacts {
                source: "test".into(),
                class_names: (0..3).map(|class| class.to_string()).collect(),
                normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
                names: None,
            },
        }
    }

    #[test]
    fn both_sides_have_the_same_histogram_of_classes() {
        let train = dataset(vec![0, 0, 1, 1, 1, 2], None);
        let test = dataset(vec![0, 0, 0, 1, 2, 2], None);
        let comparison = Comparison::draw(&train, &[0, 1, 2, 3, 5], &test, &[0, 1, 2, 3, 4, 5], &Streams::new(0, "test"));
        let classes = |rows: &[usize], set: &Dataset| rows.iter().map(|&row| set.labels[row]).collect::<Vec<_>>();
        assert_eq!(classes(&comparison.members, &train), vec![0, 0, 1, 2]);
        assert_eq!(classes(&comparison.others, &test), vec![0, 0, 1, 2]);
        assert_eq!(comparison.other_labels, vec![0, 0, 1, 2]);
    }

    #[test]
    fn swapped_members_meet_unseen_samples_with_the_same_swap() {
        let train = dataset(vec![1, 0, 1], Some(vec![0, 1, 1]));
        let test = dataset(vec![0, 1, 1, 2], None);
        let comparison = Comparison::draw(&train, &[0, 1], &test, &[0, 1, 2, 3], &Streams::new(0, "test"));
        assert_eq!(comparison.members, vec![0, 1]);
        let originals: Vec<u32> = comparison.others.iter().map(|&row| test.labels[row]).collect();
        assert_eq!((originals, comparison.other_labels), (vec![0, 1], vec![1, 0]));
    }

    #[test]
    fn no_unseen_sample_is_used_twice() {
        let train = dataset(vec![1, 1, 0, 0], Some(vec![0, 0, 0, 0]));
        let test = dataset(vec![0, 0, 0], None);
        let comparison = Comparison::draw(&train, &[0, 1, 2, 3], &test, &[0, 1, 2], &Streams::new(0, "test"));
        let distinct: std::collections::BTreeSet<_> = comparison.others.iter().collect();
        assert_eq!((distinct.len(), comparison.members.len()), (3, 3));
    }
}
