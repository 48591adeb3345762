//! The runner: from a pipeline file to a graph of stage processes, with a store that knows what is still right.
//!
//! It links no stage crate. What stages can do it learns from their binaries, and they meet only through artifacts (docs/contracts.md).

#[macro_use]
mod output;

mod bench;
mod catalogue;
mod cli;
mod device;
mod diagnostic;
mod export;
mod files;
mod fingerprint;
mod group;
mod metrics;
mod names;
mod pipeline;
mod plan;
mod process;
mod programs;
mod reasons;
mod regress;
mod results;
mod rounding;
mod run;
mod session;
mod show;
mod signals;
mod store;
mod supervise;
mod table;
mod times;
mod tokens;
mod verify;
mod yaml;

use std::process::ExitCode;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let failure = cli::CommandLine::read().execute().err();
    if let Err(error) = output::finish() {
        eprintln!("error: stdout cannot be written to: {error}\n  help: what was done is kept; the same command prints it again");
        if failure.is_none() {
            return ExitCode::FAILURE;
        }
    }
    let Some(error) = failure else { return ExitCode::SUCCESS };
    if let Some(stopped) = error.downcast_ref::<signals::Stopped>() {
        eprintln!("{stopped}");
        return ExitCode::from(stopped.exit_code());
    }
    eprintln!("error: {}", error.chain().map(ToString::to_string).collect::<Vec<_>>().join("\n  caused by: "));
    ExitCode::FAILURE
}
