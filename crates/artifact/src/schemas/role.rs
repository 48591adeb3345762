//! What a schema means to whoever runs a pipeline without knowing the stages.

use super::{Dataset, Holdout, Metrics, Payload, Predictions, Request, Retain};

/// The part that an artifact plays in an experiment. What has one follows from its inputs without training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What an experiment is made with: results of other data cannot be compared.
    Data,
    /// What is asked of a trained system: all that depends on it is paid again for each request, all else once.
    Request,
    /// Which samples are set aside, or stand for others.
    Choice,
    /// What a model says of samples.
    Answers,
    /// What an experiment is made for: named numbers.
    Scores,
}

/// The role of the artifacts of a schema, where it has one: not of models and of what is learned on the way to them.
#[must_use]
pub fn role_of(schema: &str) -> Option<Role> {
    match schema {
        Dataset::SCHEMA => Some(Role::Data),
        Request::SCHEMA => Some(Role::Request),
        Holdout::SCHEMA | Retain::SCHEMA => Some(Role::Choice),
        Predictions::SCHEMA => Some(Role::Answers),
        Metrics::SCHEMA => Some(Role::Scores),
        _ => None,
    }
}
