//! `cifar-binary`: the official binary files of CIFAR-10, `data_batch_*.bin` and `test_batch.bin`: a label and 3 x 32 x 32 bytes a sample.

use std::path::{Path, PathBuf};

use dcu_stage::{External, Failure};

use super::{CIFAR10_CLASSES, Contents, Part, cifar10_normalisation, externals, files_below, missing};
use crate::images::Cell;

const SHAPE: [usize; 3] = [3, 32, 32];
const RECORD: usize = 1 + 3 * 32 * 32;

fn find(folder: &Path) -> anyhow::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let named = |file: &PathBuf, start: &str| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(start) && name.ends_with(".bin")
    };
    let files = files_below(folder)?;
    let train: Vec<PathBuf> = files.iter().filter(|file| named(file, "data_batch")).cloned().collect();
    let test = files.iter().filter(|file| named(file, "test_batch")).cloned().collect();
    if train.is_empty() {
        let message = format!("there is no `data_batch_*.bin` in `{}`", folder.display());
        return Err(Failure::new(message, "name the folder that the official archive unpacks to (`cifar-10-batches-bin`)").into());
    }
    Ok((train, test))
}

/// The outside files that reading would read.
pub(crate) fn outside(folder: &Path) -> anyhow::Result<Vec<External>> {
    let (train, test) = find(folder)?;
    externals(folder, &[train, test].concat())
}

/// Reads the folder.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Contents> {
    let (train, test) = find(folder)?;
    Ok(Contents {
        name: "cifar-binary".into(),
        train: read_part(&train)?,
        test: if test.is_empty() { None } else { Some(read_part(&test)?) },
        class_names: Some(CIFAR10_CLASSES.map(str::to_owned).to_vec()),
        normalisation: Some(cifar10_normalisation()),
        notes: Vec::new(),
    })
}

fn read_part(files: &[PathBuf]) -> anyhow::Result<Part> {
    let mut part = Part::default();
    for file in files {
        let bytes = std::fs::read(file).map_err(|error| missing(file, &error))?;
        if bytes.is_empty() || bytes.len() % RECORD != 0 {
            let message = format!("`{}` has {} bytes, which is no multiple of {RECORD}", file.display(), bytes.len());
            return Err(Failure::new(message, "download the archive again; it was cut short").into());
        }
        part.files.push((part.labels.len(), file.file_name().unwrap_or_default().to_string_lossy().into_owned()));
        for record in bytes.chunks_exact(RECORD) {
            part.labels.push(i64::from(record[0]));
            part.cells.push(Cell::Planes(record[1..].to_vec(), SHAPE));
        }
    }
    Ok(part)
}
