//! Where images come from: one module a source. A source gives encoded images; decoding comes later, for those that are kept.

pub(crate) mod cifar_binary;
pub mod embedded;
pub(crate) mod folder;
pub(crate) mod idx;

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use dcu_artifact::{Normalisation, digest_file};
use dcu_stage::{External, Failure};

use crate::images::Cell;

/// Samples of one part of a source, in the source's own order.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// The images.
    pub cells: Vec<Cell>,
    /// Class of each sample, as the source says it.
    pub labels: Vec<i64>,
    /// Name of each sample, where the source has unique ones.
    pub names: Option<Vec<String>>,
    /// The file that each run of rows comes from: first row, and name.
    pub files: Vec<(usize, String)>,
}

impl Part {
    /// Where a row comes from, for an error.
    #[must_use]
    pub fn place(&self, row: usize) -> String {
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
pub struct Contents {
    /// A short name, without folders.
    pub name: String,
    /// The source's training part.
    pub train: Part,
    /// The source's own test part.
    pub test: Option<Part>,
    /// The names of the classes, where the source tells.
    pub class_names: Option<Vec<String>>,
    /// The normalisation that everybody uses for it, where it is a well-known one.
    pub normalisation: Option<Normalisation>,
    /// What the user should know: files that were left out, and the like.
    pub notes: Vec<String>,
}

/// The part that a file or folder belongs to, by the hub's convention for names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// To train on.
    Train,
    /// To choose by. It serves as the test part where there is no other.
    Validation,
    /// To test on.
    Test,
}

impl Share {
    /// By the first whole word of a name that says it: `train-00000-of-00002`, but not `latest`.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        name.to_lowercase().split(|letter: char| !letter.is_alphabetic()).find_map(Self::of_word)
    }

    fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "train" | "training" => Self::Train,
            "validation" | "valid" | "val" | "dev" => Self::Validation,
            "test" | "testing" | "eval" | "evaluation" => Self::Test,
            _ => return None,
        })
    }
}

/// The usual means and deviations of CIFAR-10.
#[must_use]
pub fn cifar10_normalisation() -> Normalisation {
    Normalisation { mean: vec![0.4914, 0.4822, 0.4465], std: vec![0.2023, 0.1994, 0.2010] }
}

/// The classes of CIFAR-10, in order.
pub const CIFAR10_CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Files as externals, named by what follows `root`.
///
/// # Errors
/// When one cannot be read.
pub fn externals(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<External>> {
    files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(root).ok().filter(|rest| !rest.as_os_str().is_empty());
            let name = name.or_else(|| file.file_name().map(Path::new)).unwrap_or(file).to_string_lossy().replace('\\', "/");
            Ok(External { name, digest: Some(digest_file(file)?) })
        })
        .collect()
}

/// All files below a folder, sorted by path. A folder that links lead to several times is read once, so that links in a circle end.
///
/// # Errors
/// When a folder cannot be read.
pub fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut seen) = (Vec::new(), HashSet::new());
    // Real folders come before links, so that a folder is found under its own name.
    let (mut open, mut linked) = (vec![folder.to_owned()], BTreeSet::new());
    while let Some(next) = open.pop().or_else(|| linked.pop_first()) {
        let canonical = next.canonicalize().map_err(|error| missing(&next, &error))?;
        if !seen.insert(canonical) {
            continue;
        }
        let entries = std::fs::read_dir(&next).map_err(|error| missing(&next, &error))?;
        for entry in entries {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            match (hidden, path.is_dir()) {
                (true, _) => {}
                (false, true) if path.is_symlink() => {
                    linked.insert(path);
                }
                (false, true) => open.push(path),
                (false, false) => files.push(path),
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What to say of a path that cannot be read.
#[must_use]
pub fn missing(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot read `{}`: {error}", path.display()), "check `path`; in a pipeline file it is relative to that file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_named_by_a_whole_word() {
        let cases = [
            ("train-00000-of-00001.parquet", Some(Share::Train)),
            ("train-latest.parquet", Some(Share::Train)),
            ("latest.parquet", None),
            ("my_test_2.parquet", Some(Share::Test)),
            ("Validation.parquet", Some(Share::Validation)),
            ("val", Some(Share::Validation)),
            ("trainer", None),
            ("contest", None),
            ("0000.parquet", None),
        ];
        for (name, share) in cases {
            assert_eq!(Share::of_name(name), share, "{name}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn links_in_a_circle_end_and_duplicate_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("b/c")).unwrap();
        std::fs::write(folder.path().join("b/c/1.png"), "").unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("b/c/up")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("b"), folder.path().join("a")).unwrap();
        assert_eq!(files_below(folder.path()).unwrap(), [folder.path().join("b/c/1.png")]);
    }
}
