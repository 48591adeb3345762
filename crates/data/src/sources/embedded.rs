//! `embedded`: 10,000 real digits that are part of this crate, so that a first run needs no network (data/NOTICE says where they are from). Each
//! part is one grey PNG file of 28 x 28 digits one above the other, and a text of their labels.

use anyhow::Context as _;
use dcu_artifact::Normalisation;

use super::{Contents, Part};
use crate::images::Cell;

/// Height and width of a digit.
const SIDE: usize = 28;

/// The usual mean and deviation of MNIST.
fn normalisation() -> Normalisation {
    Normalisation { mean: vec![0.1307], std: vec![0.3081] }
}

/// Reads the digits: 8,000 to train on, 2,000 to test on, 28 x 28 grey.
///
/// # Errors
/// Only where the program itself is damaged.
pub fn read() -> anyhow::Result<Contents> {
    Ok(Contents {
        name: "mnist10k".into(),
        train: part(include_bytes!("../../data/train.png"), include_str!("../../data/train.txt"))?,
        test: Some(part(include_bytes!("../../data/test.png"), include_str!("../../data/test.txt"))?),
        class_names: Some((0..10).map(|digit| digit.to_string()).collect()),
        normalisation: Some(normalisation()),
        notes: Vec::new(),
    })
}

fn part(png: &[u8], labels: &str) -> anyhow::Result<Part> {
    let pixels = image::load_from_memory(png).context("the digits of this program are damaged")?.into_luma8().into_raw();
    let cells = pixels.chunks_exact(SIDE * SIDE).map(|digit| Cell::Planes(digit.to_vec(), [1, SIDE, SIDE]));
    let labels = labels.trim_end().bytes().map(|label| i64::from(label - b'0'));
    Ok(Part { cells: cells.collect(), labels: labels.collect(), names: None, files: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digit_has_its_label() {
        let contents = read().unwrap();
        for (part, count) in [(&contents.train, 8000), (contents.test.as_ref().unwrap(), 2000)] {
            assert_eq!((part.cells.len(), part.labels.len()), (count, count));
            assert!((0..10).all(|digit| part.labels.iter().filter(|&&label| label == digit).count() > count / 20));
        }
    }
}
