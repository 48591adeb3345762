//! Errors that a user can act on.

/// A parameter that a method refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejected {
    /// The parameter to blame, where it is a single one.
    pub parameter: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
    /// What the user can do, where the message does not say it.
    pub remedy: Option<String>,
}

impl Rejected {
    /// Blames `parameter`.
    pub fn parameter(parameter: &str, message: impl Into<String>) -> Self {
        Self { parameter: Some(parameter.to_owned()), message: message.into(), remedy: None }
    }

    /// Blames `parameter` for an error that using it met.
    #[must_use]
    pub fn because(parameter: &str, error: &anyhow::Error) -> Self {
        Self { parameter: Some(parameter.to_owned()), message: format!("{error:#}"), remedy: remedy_of(error) }
    }

    /// Refuses unless `fits`.
    ///
    /// # Errors
    /// When `fits` is false.
    pub fn unless(fits: bool, parameter: &str, message: impl Into<String>) -> Result<(), Self> {
        if fits { Ok(()) } else { Err(Self::parameter(parameter, message)) }
    }
}

/// An expected failure of a run, with what the user can do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong.
    pub message: String,
    /// What the user can do.
    pub remedy: String,
}

impl Failure {
    /// A failure with its remedy.
    pub fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

/// The remedy that the innermost knowing error of a chain gives.
pub(crate) fn remedy_of(error: &anyhow::Error) -> Option<String> {
    error.chain().rev().find_map(|cause| {
        let failure = cause.downcast_ref::<Failure>().map(|failure| failure.remedy.clone());
        let failure = failure.or_else(|| cause.downcast_ref::<Rejected>()?.remedy.clone());
        failure.or_else(|| cause.downcast_ref::<dcu_artifact::Error>().map(dcu_artifact::Error::remedy))
    })
}
