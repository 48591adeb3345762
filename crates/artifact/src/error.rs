//! What can be wrong with an artifact, each with the place, the cause and the remedy.

use std::path::{Path, PathBuf};

/// The result of reading or writing an artifact.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an artifact could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was being done: `read`, `write`, ...
        action: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The bytes are not a complete artifact.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file concerned.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The file is a safetensors file, but not an artifact of this project.
    #[error("`{}` is no artifact: {reason}", path.display())]
    NotAnArtifact {
        /// The file concerned.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The artifact holds something else than the caller needs.
    #[error("`{}` holds `{found}`, but `{expected}` is needed here", path.display())]
    WrongSchema {
        /// The file concerned.
        path: PathBuf,
        /// The schema that is needed.
        expected: String,
        /// The schema in the file.
        found: String,
    },
    /// The artifact was written by a later release.
    #[error("`{}` holds `{found}`, newer than the `{known}` that this release reads", path.display())]
    NewerVersion {
        /// The file concerned.
        path: PathBuf,
        /// The schema in the file.
        found: String,
        /// The newest version of the schema that can be read.
        known: String,
    },
    /// The content breaks a rule of its schema.
    #[error("`{}` breaks the rules of `{schema}`: {reason}", path.display())]
    Invalid {
        /// The file concerned; empty while an artifact is being made.
        path: PathBuf,
        /// The schema whose rule is broken.
        schema: String,
        /// The rule and the offending value.
        reason: String,
    },
}

impl Error {
    /// What the user can do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some space, or name another store with `--store`".into()
            }
            Self::Io { action: "write", .. } => "check that the folder exists and can be written to".into(),
            Self::Io { .. } => "check the path".into(),
            Self::Damaged { .. } => "if it lies in the store, delete it and run the pipeline again: its stage runs anew".into(),
            Self::NotAnArtifact { .. } => {
                "give a file that a stage of this project wrote; weights from PyTorch enter through `train/import`".into()
            }
            Self::WrongSchema { .. } => "connect an output of the needed schema to this input".into(),
            Self::NewerVersion { .. } => "update this program, or run the stage that makes the file again with this release".into(),
            Self::Invalid { .. } => {
                "run the stage that makes it again; if an outside program wrote it, see the table of schemas in docs/artifacts.md".into()
            }
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }
}
