//! `shards/1`: what a sharded training had at the end of each slice, from which it goes on where samples are taken out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Payload, check_finite_f32, check_unique, vector};
use crate::{Content, Tensor};

/// The networks of all shards, each as it was behind each of its slices.
#[derive(Debug, Clone, PartialEq)]
pub struct Shards {
    /// The samples that they were trained on.
    pub ids: Vec<u64>,
    /// Parameters and buffers, as `shard0.slice1.NAME` what the network of shard 0 had when it had learned from slices 0 and 1.
    pub checkpoints: BTreeMap<String, Tensor>,
    /// What is not a tensor.
    pub facts: ShardsFacts,
}

/// The facts of a sharded training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardsFacts {
    /// How many networks there are, each with samples of its own.
    pub shards: usize,
    /// In how many parts each of them takes up its samples.
    pub slices: usize,
    /// What all random numbers, shards and slices of the samples among them, come from.
    pub seed: u64,
    /// The network of one shard.
    pub architecture: Value,
    /// How a network is trained.
    pub recipe: Value,
}

impl ShardsFacts {
    /// What the names of a checkpoint's tensors begin with.
    #[must_use]
    pub fn prefix(shard: usize, slice: usize) -> String {
        format!("shard{shard}.slice{slice}.")
    }
}

impl Payload for Shards {
    const SCHEMA: &'static str = "shards/1";

    fn to_content(&self) -> Content {
        let mut tensors = self.checkpoints.clone();
        tensors.insert("ids".to_owned(), vector(&self.ids));
        Content { schema: Self::SCHEMA.to_owned(), facts: serde_json::to_value(&self.facts).expect("facts are plain data"), tensors }
    }

    fn from_content(mut content: Content) -> Result<Self, String> {
        let facts: ShardsFacts = serde_json::from_value(content.facts).map_err(|error| format!("the facts do not parse: {error}"))?;
        let ids = match content.tensors.remove("ids") {
            Some(Tensor::U64(array)) if array.shape.len() == 1 => array.data,
            _ => return Err("tensor `ids` is missing, or not u64 of one dimension".into()),
        };
        check_unique("ids", &ids)?;
        if facts.shards == 0 || facts.slices == 0 {
            return Err(format!("there are {} shards of {} slices; there is one of each at least", facts.shards, facts.slices));
        }
        let mut left = content.tensors.len();
        for (shard, slice) in (0..facts.shards).flat_map(|shard| (0..facts.slices).map(move |slice| (shard, slice))) {
            let prefix = ShardsFacts::prefix(shard, slice);
            let own = content.tensors.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix)).count();
            if own == 0 {
                return Err(format!("there is no tensor `{prefix}...`, for {} shards of {} slices", facts.shards, facts.slices));
            }
            left -= own;
        }
        if left > 0 {
            return Err(format!("{left} tensors are of no shard and slice, for {} shards of {} slices", facts.shards, facts.slices));
        }
        for (name, tensor) in &content.tensors {
            match tensor {
                Tensor::F32(array) => check_finite_f32(name, &array.data)?,
                Tensor::I64(_) => {}
                other => return Err(format!("tensor `{name}` has the type {:?}, but needs F32 or I64", other.dtype())),
            }
        }
        Ok(Self { ids, checkpoints: content.tensors, facts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Array;

    fn shards() -> Shards {
        let names = ["shard0.slice0.w", "shard0.slice1.w", "shard1.slice0.w", "shard1.slice1.w", "shard1.slice1.n"];
        let tensor =
            |name: &str| if name.ends_with('n') { Tensor::I64(Array::new(vec![], vec![3])) } else { Tensor::F32(Array::vector(vec![1.0])) };
        Shards {
            ids: vec![4, 9, 2],
            checkpoints: names.into_iter().map(|name| (name.to_owned(), tensor(name))).collect(),
            facts: ShardsFacts { shards: 2, slices: 2, seed: 1, architecture: Value::Null, recipe: Value::Null },
        }
    }

    #[test]
    fn checkpoints_that_are_missing_or_of_nothing_are_refused() {
        assert_eq!(Shards::from_content(shards().to_content()).unwrap(), shards());
        let refused = |change: fn(&mut Shards)| {
            let mut changed = shards();
            change(&mut changed);
            Shards::from_content(changed.to_content()).unwrap_err()
        };
        for (change, expected) in [
            ((|shards| drop(shards.checkpoints.remove("shard0.slice1.w"))) as fn(&mut Shards), "no tensor `shard0.slice1....`"),
            (|shards| shards.facts.slices = 1, "3 tensors are of no shard and slice"),
            (|shards| shards.facts.shards = 3, "no tensor `shard2.slice0....`"),
            (|shards| shards.facts.shards = 0, "one of each at least"),
            (|shards| shards.ids[1] = 4, "appears twice"),
            (|shards| drop(shards.checkpoints.insert("shard1.slice1.w".into(), Tensor::F32(Array::vector(vec![f32::NAN])))), "holds NaN"),
            (|shards| drop(shards.checkpoints.insert("shard1.slice1.w".into(), Tensor::U8(Array::vector(vec![1])))), "needs F32 or I64"),
        ] {
            let error = refused(change);
            assert!(error.contains(expected), "`{expected}` is not in: {error}");
        }
    }
}
