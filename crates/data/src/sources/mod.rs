//! Where images come from: one module a source. A source gives encoded images; decoding comes later, for those that are kept.

pub(crate) mod cifar_binary;
pub(crate) mod embedded;
pub(crate) mod folder;
pub(crate) mod hub;
pub(crate) mod parquet;

use std::path::{Path, PathBuf};

use dcu_artifact::{Digest, Normalisation, digest_file};
use dcu_stage::{External, Failure};

use crate::images::Cell;

/// Samples of one part of a source, in the source's own order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    pub(crate) cells: Vec<Cell>,
    /// Class of each sample, as the source says it.
    pub(crate) labels: Vec<i64>,
    /// Name of each sample, where the source has unique ones.
    pub(crate) names: Option<Vec<String>>,
    /// The file that each run of rows comes from: first row, and name.
    pub(crate) files: Vec<(usize, String)>,
}

impl Part {
    /// Where a row comes from, for an error.
    pub(crate) fn place(&self, row: usize) -> String {
        if let Some(names) = &self.names {
            return format!("`{}`", names[row]);
        }
        match self.files.iter().rev().find(|(first, _)| *first <= row) {
            Some((first, file)) => format!("in row {} of `{file}`", row - first),
            None => format!("in row {row}"),
        }
    }
}

/// All that a source holds.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    /// A short name, without folders.
    pub(crate) name: String,
    pub(crate) train: Part,
    /// The source's own test part.
    pub(crate) test: Option<Part>,
    /// The names of the classes, where the source tells.
    pub(crate) class_names: Option<Vec<String>>,
    /// The normalisation that everybody uses for it, where it is a well-known one.
    pub(crate) normalisation: Option<Normalisation>,
}

/// The usual means and deviations of CIFAR-10.
pub(crate) fn cifar10_normalisation() -> Normalisation {
    Normalisation { mean: vec![0.4914, 0.4822, 0.4465], std: vec![0.2023, 0.1994, 0.2010] }
}

/// The usual mean and deviation of MNIST.
pub(crate) fn mnist_normalisation() -> Normalisation {
    Normalisation { mean: vec![0.1307], std: vec![0.3081] }
}

pub(crate) const CIFAR10_CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Files as externals, named by what follows `root`.
pub(crate) fn externals(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<External>> {
    files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(root).ok().filter(|rest| !rest.as_os_str().is_empty());
            let name = name.or_else(|| file.file_name().map(Path::new)).unwrap_or(file).to_string_lossy().replace('\\', "/");
            let digest: Digest = digest_file(file)?;
            Ok(External { name, digest: Some(digest) })
        })
        .collect()
}

/// All files below a folder, sorted by path.
pub(crate) fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        let entries = std::fs::read_dir(&next).map_err(|error| missing(&next, &error))?;
        for entry in entries {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            match (hidden, path.is_dir()) {
                (true, _) => {}
                (false, true) => open.push(path),
                (false, false) => files.push(path),
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What to say of a path that cannot be read.
pub(crate) fn missing(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot read `{}`: {error}", path.display()), "check `path`; in a pipeline file it is relative to that file")
}
