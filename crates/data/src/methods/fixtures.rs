//! Small datasets for the tests of the methods.

use dcu_artifact::{Array, Dataset, DatasetFacts, Normalisation, Part, SampleId};

/// One pixel a sample, ids of the training part.
pub(crate) fn dataset(labels: &[u32]) -> Dataset {
    of_part(labels, Part::Train)
}

/// One pixel a sample, ids of the given part.
pub(crate) fn of_part(labels: &[u32], part: Part) -> Dataset {
    let classes = labels.iter().max().map_or(0, |largest| largest + 1);
    Dataset {
        images: Array::new(vec![labels.len(), 1, 1, 1], (0..labels.len()).map(|row| row as u8).collect()),
        labels: labels.to_vec(),
        original_labels: None,
        ids: (0..labels.len() as u32).map(|row| SampleId::new(part, row).0).collect(),
        facts: DatasetFacts {
            source: "test".into(),
            class_names: (0..classes).map(|class| class.to_string()).collect(),
            normalisation: Normalisation { mean: vec![0.0], std: vec![1.0] },
            names: None,
        },
    }
}
