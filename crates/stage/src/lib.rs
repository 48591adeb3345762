//! The contract of a stage: parameters, inputs, outputs, progress, clock, checkpoints, command line.
//!
//! A stage crate implements [`Method`] once per file and lists the methods in its binary:
//!
//! ```ignore
//! fn main() -> std::process::ExitCode {
//!     dcu_stage::main("dcu-train", &[entry::<methods::fit::Fit>(), entry::<methods::offline::Offline>()])
//! }
//! ```
//!
//! The declaration drives the command line, the check of the pipeline file, `cargo xtask list` and the JSON schema. This crate holds
//! the only clock that a stage sees.

mod checkpoint;
mod command;
mod context;
mod failure;
mod memory;
mod method;
mod progress;

pub use checkpoint::{Checkpoints, Snapshot};
pub use command::{is_looking, main};
pub use context::Context;
pub use failure::{Failure, Rejected};
pub use memory::keep_freed_memory;
pub use method::{Entry, External, Input, Method, Output, entry};
pub use progress::Progress;
