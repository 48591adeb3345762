//! The runner: from a pipeline file to a graph of stage processes, with a store that knows what is still right.
//!
//! It links no stage crate. What stages can do it learns from their binaries, and they meet only through artifacts (docs/contracts.md).

mod bench;
mod catalogue;
mod cli;
mod diagnostic;
mod fingerprint;
mod metrics;
mod pipeline;
mod plan;
mod process;
mod programs;
mod reasons;
mod regress;
mod run;
mod session;
mod show;
mod store;
mod table;
mod times;
mod tokens;
mod yaml;

use std::process::ExitCode;

use clap::Parser as _;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    match cli::CommandLine::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  caused by: "));
            ExitCode::FAILURE
        }
    }
}
