//! The contract of a stage: parameters, inputs, outputs, progress, clock, checkpoints, command line.
//!
//! A stage crate implements [`Method`] once per file and lists the methods in its binary:
//!
//! ```ignore
//! fn main() -> std::process::ExitCode {
//!     let meter = Meter { read: tally::read, set: tally::set };
//!     dcu_stage::main("dcu-train", &[entry::<methods::fit::Fit>(), entry::<methods::offline::Offline>()], Some(meter))
//! }
//! ```
//!
//! The declaration drives the command line, the check of the pipeline file, `cargo xtask list` and the JSON schema. This crate holds
//! the only clock that a stage sees.

mod checkpoint;
mod clock;
mod command;
mod context;
mod failure;
mod look;
mod memory;
mod meter;
mod method;
mod progress;

pub use checkpoint::{Checkpoints, Snapshot};
pub use command::main;
pub use context::Context;
pub use failure::{Failure, Rejected};
pub use look::is_looking;
pub use memory::keep_freed_memory;
pub use meter::Meter;
pub use method::{ChooseDevice, Entry, External, Input, Method, Output, entry};
pub use progress::Progress;
