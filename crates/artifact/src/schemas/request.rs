//! `request/1`: what is to be forgotten, and what stays.

use serde::{Deserialize, Serialize};

use super::{Payload, check_disjoint, check_unique, close, open, vector};
use crate::Content;

/// A deletion request: a partition of the training set, by id.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// To be forgotten now.
    pub forget: Vec<u64>,
    /// To be kept.
    pub retain: Vec<u64>,
    /// Forgotten by earlier requests; neither in `forget` nor in `retain`.
    pub earlier: Vec<u64>,
    /// What is not a tensor.
    pub facts: RequestFacts,
}

/// The facts of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFacts {
    /// How the forget set was chosen: `random`, `class`, `partial`, `ids`, `poisoned`.
    pub scenario: String,
    /// The classes that are forgotten whole.
    pub classes: Vec<u32>,
    /// Whether it adds to earlier requests (`previous:`) or stands alone, as an independent what-if.
    pub cumulative: bool,
}

impl Payload for Request {
    const SCHEMA: &'static str = "request/1";

    fn to_content(&self) -> Content {
        close(
            Self::SCHEMA,
            &self.facts,
            [("forget", vector(&self.forget)), ("retain", vector(&self.retain)), ("earlier", vector(&self.earlier))],
        )
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (facts, mut fields) = open(content)?;
        let request = Self {
            forget: fields.vector("forget", None)?,
            retain: fields.vector("retain", None)?,
            earlier: fields.vector("earlier", None)?,
            facts,
        };
        fields.end()?;
        for (name, ids) in [("forget", &request.forget), ("retain", &request.retain), ("earlier", &request.earlier)] {
            check_unique(name, ids)?;
        }
        check_disjoint("forget", &request.forget, "retain", &request.retain)?;
        check_disjoint("forget", &request.forget, "earlier", &request.earlier)?;
        check_disjoint("retain", &request.retain, "earlier", &request.earlier)?;
        if request.forget.is_empty() {
            return Err("the forget set is empty".into());
        }
        if request.retain.is_empty() {
            return Err("the forget set is everything: nothing is left to retain".into());
        }
        Ok(request)
    }
}
