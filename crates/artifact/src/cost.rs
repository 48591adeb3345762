//! What a stage computed, whatever the machine.

use serde::{Deserialize, Serialize};

/// Counts of what networks computed (`dcu_nn::tally` says what each means), and what they came to. They go to the run record and the report, never into an
/// artifact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Samples forward.
    pub forward: u64,
    /// Samples backward.
    pub backward: u64,
    /// Gradient steps.
    pub steps: u64,
    /// Floating point operations.
    pub operations: u64,
    /// The share of a model's parameters that the stage changed, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<f64>,
}
