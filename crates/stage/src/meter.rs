//! How a stage's program tells what its networks computed, of which this crate knows nothing.

use dcu_artifact::Cost;

/// The tally of a program whose methods use networks.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    /// What was counted so far.
    pub read: fn() -> Cost,
    /// Sets the tally to what was counted up to a checkpoint, from which a run goes on: what this process computed before it found the checkpoint is counted there
    /// already.
    pub set: fn(Cost),
}
