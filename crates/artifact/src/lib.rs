//! The one file format through which stages talk: a versioned safetensors envelope.
//!
//! An artifact is a safetensors file whose `__metadata__` holds one key with canonical JSON: schema, facts, provenance,
//! content digest and a seal over all of these. Reading checks everything before a value is handed out; writing is atomic.
//! The content digest covers schema, facts and tensors but not provenance, so two stages that arrive at the same content
//! by different ways are equal to whatever lies downstream.
//!
//! Beside it stands [`Cost`], which programs tell one another and no artifact holds.

mod array;
mod canonical;
mod cost;
mod envelope;
mod error;
mod schemas;
mod write;

pub use array::{Array, Element, Tensor};
pub use canonical::{Digest, canonical_json, digest_bytes, digest_file, digest_json};
pub use cost::Cost;
pub use envelope::{Content, Header, Producer, Provenance, TensorInfo, adopt, read, verify};
pub use error::{Error, Result};
pub use schemas::{
    Buckets, Condensed, CondensedFacts, Dataset, DatasetFacts, Definition, Ensemble, EnsembleFacts, Holdout, Members, Metrics, Model,
    ModelFacts, Normalisation, OpenFacts, Part, Payload, Predictions, Reach, Request, RequestFacts, Retain, RetainFacts, RidgeHead, Role,
    SampleId, Shards, ShardsFacts, Shown, Statistics, StatisticsFacts, Weights, WeightsFacts, WeightsKind, known_schemas, role_of,
    schema_is_known,
};
pub use write::{replace_file, replace_file_by_way_of, write};
