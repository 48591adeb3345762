//! `cifar-binary`: the official binary files of CIFAR-10, `data_batch_*.bin` and `test_batch.bin`, or of CIFAR-100, `train.bin` and `test.bin`: one label
//! or two, and 3 x 32 x 32 bytes a sample.

use std::path::{Path, PathBuf};

use dcu_stage::{External, Failure};

use super::{CIFAR10_CLASSES, Contents, Part, cifar10_normalisation, externals, files_below, missing};
use crate::images::Cell;

const SHAPE: [usize; 3] = [3, 32, 32];
const PIXELS: usize = 3 * 32 * 32;

/// Which files, and which of their labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// CIFAR-10.
    Ten,
    /// CIFAR-100, by its superclasses.
    Coarse,
    /// CIFAR-100.
    Fine,
}

impl Kind {
    /// How the names of the files begin, of the training and of the test part.
    fn starts(self) -> [&'static str; 2] {
        match self {
            Self::Ten => ["data_batch", "test_batch"],
            Self::Coarse | Self::Fine => ["train", "test"],
        }
    }

    /// The labels of a sample, and which of them is read.
    fn labels(self) -> (usize, usize) {
        match self {
            Self::Ten => (1, 0),
            Self::Coarse => (2, 0),
            Self::Fine => (2, 1),
        }
    }

    /// The file of the names of the classes, where they are read from one.
    fn names(self) -> Option<&'static str> {
        match self {
            Self::Ten => None,
            Self::Coarse => Some("coarse_label_names.txt"),
            Self::Fine => Some("fine_label_names.txt"),
        }
    }
}

struct Files {
    train: Vec<PathBuf>,
    test: Vec<PathBuf>,
    names: Option<PathBuf>,
}

fn find(folder: &Path, kind: Kind) -> anyhow::Result<Files> {
    let files = files_below(folder)?;
    let name = |file: &PathBuf| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let starting = |start: &str| -> Vec<PathBuf> {
        files.iter().filter(|file| name(file).starts_with(start) && name(file).ends_with(".bin")).cloned().collect()
    };
    let [train, test] = kind.starts().map(starting);
    if train.is_empty() {
        let (wanted, archive) = match kind {
            Kind::Ten => ("data_batch_*.bin", "cifar-10-batches-bin"),
            Kind::Coarse | Kind::Fine => ("train.bin", "cifar-100-binary"),
        };
        let message = format!("there is no `{wanted}` in `{}`", folder.display());
        return Err(Failure::new(message, format!("name the folder that the official archive unpacks to (`{archive}`)")).into());
    }
    let names = kind.names().and_then(|wanted| files.iter().find(|file| name(file) == wanted).cloned());
    Ok(Files { train, test, names })
}

/// The outside files that reading would read.
pub(crate) fn outside(folder: &Path, kind: Kind) -> anyhow::Result<Vec<External>> {
    let Files { train, test, names } = find(folder, kind)?;
    externals(folder, &[train, test, names.into_iter().collect()].concat())
}

/// Reads the folder.
pub(crate) fn read(folder: &Path, kind: Kind) -> anyhow::Result<Contents> {
    let Files { train, test, names } = find(folder, kind)?;
    let names = match names {
        Some(file) => Some(lines(&file)?),
        None => (kind == Kind::Ten).then(|| CIFAR10_CLASSES.map(str::to_owned).to_vec()),
    };
    Ok(Contents {
        name: "cifar-binary".into(),
        train: read_part(&train, kind)?,
        test: if test.is_empty() { None } else { Some(read_part(&test, kind)?) },
        class_names: names,
        normalisation: (kind == Kind::Ten).then(cifar10_normalisation),
        notes: Vec::new(),
    })
}

/// The lines of a text that are not empty.
fn lines(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(file).map_err(|error| missing(file, &error))?;
    Ok(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

fn read_part(files: &[PathBuf], kind: Kind) -> anyhow::Result<Part> {
    let (labels, label) = kind.labels();
    let record = labels + PIXELS;
    let mut part = Part::default();
    for file in files {
        let bytes = std::fs::read(file).map_err(|error| missing(file, &error))?;
        if bytes.is_empty() || bytes.len() % record != 0 {
            let message = format!("`{}` has {} bytes, which is no multiple of {record}", file.display(), bytes.len());
            return Err(Failure::new(message, "download the archive again; it was cut short").into());
        }
        part.files.push((part.labels.len(), file.file_name().unwrap_or_default().to_string_lossy().into_owned()));
        for sample in bytes.chunks_exact(record) {
            part.labels.push(i64::from(sample[label]));
            part.cells.push(Cell::Planes(sample[labels..].to_vec(), SHAPE));
        }
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_label_of_cifar_100_is_read_with_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let records = |labels: &[[u8; 2]]| labels.iter().flat_map(|pair| [&pair[..], &[7; 3072]].concat()).collect::<Vec<u8>>();
        std::fs::write(folder.path().join("train.bin"), records(&[[1, 9], [0, 3]])).unwrap();
        std::fs::write(folder.path().join("test.bin"), records(&[[0, 2]])).unwrap();
        std::fs::write(folder.path().join("coarse_label_names.txt"), "fish\nflowers\n\n").unwrap();
        let fine = read(folder.path(), Kind::Fine).unwrap();
        assert_eq!((fine.train.labels, fine.test.unwrap().labels, fine.class_names), (vec![9, 3], vec![2], None));
        let coarse = read(folder.path(), Kind::Coarse).unwrap();
        assert_eq!((coarse.train.labels, coarse.class_names), (vec![1, 0], Some(vec!["fish".into(), "flowers".into()])));
        assert!(matches!(&coarse.train.cells[1], Cell::Planes(pixels, SHAPE) if pixels == &[7; 3072]));
        assert_eq!((outside(folder.path(), Kind::Fine).unwrap().len(), outside(folder.path(), Kind::Coarse).unwrap().len()), (2, 3));
        assert!(read(folder.path(), Kind::Ten).unwrap_err().to_string().contains("there is no `data_batch_*.bin`"));
    }
}
