//! `holdout/1`: which held-out samples serve which purpose. Knows nothing of any request.

use serde::{Deserialize, Serialize};

use super::{Payload, check_disjoint, check_unique, close, open, vector};
use crate::Content;

/// Disjoint roles of samples, by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdout {
    /// What models are trained on; no other role may touch it.
    pub train: Vec<u64>,
    /// The remembrance set S, on which the final part is anchored.
    pub remembrance: Vec<u64>,
    /// Unseen data that a method may use; may be empty.
    pub validation: Vec<u64>,
    /// What only the evaluation sees.
    pub test: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct NoFacts {}

impl Holdout {
    /// # Errors
    /// Names a sample that has two roles.
    pub fn check(&self) -> Result<(), String> {
        let roles = [("train", &self.train), ("remembrance", &self.remembrance), ("validation", &self.validation), ("test", &self.test)];
        for (position, (name, ids)) in roles.iter().enumerate() {
            check_unique(name, ids)?;
            for (other_name, other) in &roles[position + 1..] {
                check_disjoint(name, ids, other_name, other)?;
            }
        }
        Ok(())
    }
}

impl Payload for Holdout {
    const SCHEMA: &'static str = "holdout/1";

    fn to_content(&self) -> Content {
        let tensors = [
            ("train", vector(&self.train)),
            ("remembrance", vector(&self.remembrance)),
            ("validation", vector(&self.validation)),
            ("test", vector(&self.test)),
        ];
        close(Self::SCHEMA, &NoFacts {}, tensors)
    }

    fn from_content(content: Content) -> Result<Self, String> {
        let (NoFacts {}, mut fields) = open(content)?;
        let holdout = Self {
            train: fields.vector("train", None)?,
            remembrance: fields.vector("remembrance", None)?,
            validation: fields.vector("validation", None)?,
            test: fields.vector("test", None)?,
        };
        fields.end()?;
        holdout.check()?;
        Ok(holdout)
    }
}
