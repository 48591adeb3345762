//! `embedded`: 10,000 real digits that are part of this crate, so that a first run needs no network (data/README.md says where they are from).

use super::{Contents, mnist_normalisation, parquet};

const TRAIN: &[u8] = include_bytes!("../../data/train.parquet");
const TEST: &[u8] = include_bytes!("../../data/test.parquet");

/// Reads the digits: 8,000 to train on, 2,000 to test on, 28 x 28 grey.
pub(crate) fn read() -> anyhow::Result<Contents> {
    let (mut train, _) = parquet::read_bytes(TRAIN.to_vec(), "train.parquet")?;
    let (mut test, _) = parquet::read_bytes(TEST.to_vec(), "test.parquet")?;
    (train.names, test.names) = (None, None);
    Ok(Contents {
        name: "mnist10k".into(),
        train,
        test: Some(test),
        class_names: Some((0..10).map(|digit| digit.to_string()).collect()),
        normalisation: Some(mnist_normalisation()),
    })
}
