//! What a schema means to whoever runs a pipeline without knowing the stages.

use super::{Dataset, Metrics, Payload, Request};

/// The part that an artifact plays in an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What an experiment is made with: results of other data cannot be compared.
    Data,
    /// What is asked of a trained system: all that depends on it is paid again for each request, all else once.
    Request,
    /// What an experiment is made for: named numbers.
    Scores,
}

/// The role of the artifacts of a schema, where it has one.
#[must_use]
pub fn role_of(schema: &str) -> Option<Role> {
    match schema {
        Dataset::SCHEMA => Some(Role::Data),
        Request::SCHEMA => Some(Role::Request),
        Metrics::SCHEMA => Some(Role::Scores),
        _ => None,
    }
}
