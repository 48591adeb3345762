//! The binary of the reporting stages.

use std::process::ExitCode;

fn main() -> ExitCode {
    dcu_stage::main("dcu-report", &dcu_report::methods(), None)
}
