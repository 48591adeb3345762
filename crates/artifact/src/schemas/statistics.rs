//! `statistics/1`: sums over samples from which a linear head is solved for, and from which any sample can be taken back. Their size does not depend on how
//! many samples there are, but for the list of these.

use serde::{Deserialize, Serialize};

use super::{Normalisation, Payload, check_class_names, check_labels, check_unique, close, open, vector};
use crate::{Array, Content, Tensor};

/// Sums of products of features. A feature vector is written with a constant 1 before its D features.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// The sum of x xᵀ over the samples, f64 [D + 1, D + 1]; its first value is the number of samples.
    pub gram: Array<f64>,
    /// The sum of x yᵀ, where y is 1 for a sample's class and 0 for the others, f64 [D + 1, K]; its first row is the number of samples of each class.
    pub moments: Array<f64>,
    /// The samples, [N].
    pub ids: Vec<u64>,
    /// The class that each was counted with, [N].
    pub labels: Vec<u32>,
    /// What is not a tensor.
    pub facts: StatisticsFacts,
}

/// The facts of sums over samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatisticsFacts {
    /// What is added to the diagonal of the sums, but for the constant's, when they are solved.
    pub lambda: f64,
    /// The digest of what gives the features: architecture, normalisation, and all weights but the last layer's.
    pub trunk: String,
    /// Whether weights of the trunk were learned from the training set, so that taking a sample back leaves its trace there.
    pub trunk_saw_training_data: bool,
    /// The name of each class.
    pub class_names: Vec<String>,
    /// How pixels became the input of the trunk.
    pub normalisation: Normalisation,
}

impl Statistics {
    /// The number of features, D.
    #[must_use]
    pub fn features(&self) -> usize {
        self.gram.rows() - 1
    }
}

impl Payload for Statistics {
    const SCHEMA: &'static str = "statistics/1";

    fn to_content(&self) -> Content {
        let tensors = [
            ("gram", Tensor::F64(self.gram.clone())),
            ("moments", Tensor::F64(self.moments.clone())),
            ("ids", vector(&self.ids)),
            ("labels", vector(&self.labels)),
        ];
        close(Self::SCHEMA, &self.facts, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, mut fields) = open::<StatisticsFacts>(content)?;
        let (gram, moments) = (fields.take::<f64>("gram", 2)?, fields.take::<f64>("moments", 2)?);
        let ids = fields.vector::<u64>("ids", None)?;
        let labels = fields.vector("labels", Some(ids.len()))?;
        fields.end()?;
        let (size, classes) = (gram.rows(), facts.class_names.len());
        check_class_names(&facts.class_names)?;
        facts.normalisation.check(facts.normalisation.mean.len())?;
        check_labels(&labels, classes)?;
        check_unique("ids", &ids)?;
        if size < 2 || gram.shape[1] != size || moments.shape != [size, classes] {
            return Err(format!("`gram` is {:?} and `moments` {:?}, for {classes} classes", gram.shape, moments.shape));
        }
        for (name, values) in [("gram", &gram.data), ("moments", &moments.data)] {
            if let Some(position) = values.iter().position(|value| !value.is_finite()) {
                return Err(format!("tensor `{name}` holds {} at position {position}", values[position]));
            }
        }
        for row in 0..size {
            let differing = (0..row).find(|&column| gram.data[row * size + column] != gram.data[column * size + row]);
            if let Some(column) = differing {
                return Err(format!("`gram` is not symmetric: it differs at {row}, {column}"));
            }
        }
        let mut counts = vec![0.0; classes];
        labels.iter().for_each(|&label| counts[label as usize] += 1.0);
        if gram.data[0] != ids.len() as f64 || moments.row(0) != counts {
            return Err(format!(
                "`gram` and `moments` are sums over {} samples, {:?} of each class, but the ids are {}, {counts:?} of each",
                gram.data[0],
                moments.row(0),
                ids.len()
            ));
        }
        if !(facts.lambda > 0.0 && facts.lambda.is_finite()) {
            return Err(format!("the fact `lambda` is {}; it is a positive number", facts.lambda));
        }
        Ok(Self { gram, moments, ids, labels, facts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics() -> Statistics {
        // Three samples of two features: (1, 2) and (0, 3) of class 0, (4, 1) of class 1.
        Statistics {
            gram: Array::new(vec![3, 3], vec![3.0, 5.0, 6.0, 5.0, 17.0, 6.0, 6.0, 6.0, 14.0]),
            moments: Array::new(vec![3, 2], vec![2.0, 1.0, 1.0, 4.0, 5.0, 1.0]),
            ids: vec![4, 9, 2],
            labels: vec![0, 0, 1],
            facts: StatisticsFacts {
                lambda: 0.5,
                trunk: "digest".into(),
                trunk_saw_training_data: false,
                class_names: vec!["a".into(), "b".into()],
                normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
            },
        }
    }

    #[test]
    fn sums_that_contradict_themselves_are_refused() {
        assert_eq!(Statistics::from_content(statistics().to_content()).unwrap(), statistics());
        let refused = |change: fn(&mut Statistics)| {
            let mut changed = statistics();
            change(&mut changed);
            Statistics::from_content(changed.to_content()).unwrap_err()
        };
        for (change, expected) in [
            ((|sums| sums.gram.data[5] = 6.5) as fn(&mut Statistics), "not symmetric: it differs at 2, 1"),
            (|sums| sums.gram.data[4] = f64::NAN, "`gram` holds NaN at position 4"),
            (|sums| sums.gram.shape = vec![1, 9], "`gram` is [1, 9]"),
            (|sums| sums.moments.shape = vec![2, 3], "`moments` [2, 3]"),
            (|sums| sums.ids[1] = 4, "appears twice"),
            (|sums| sums.labels[0] = 1, "[2.0, 1.0] of each class, but the ids are 3, [1.0, 2.0]"),
            (|sums| sums.labels[0] = 2, "label 2 in row 0 is out of range"),
            (|sums| sums.labels.truncate(2), "`labels` has 2 values, but needs 3"),
            (|sums| sums.facts.lambda = 0.0, "`lambda` is 0"),
        ] {
            let error = refused(change);
            assert!(error.contains(expected), "`{expected}` is not in: {error}");
        }
    }
}
