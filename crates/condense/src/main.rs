//! The binary of the condensation stages.

use std::process::ExitCode;

fn main() -> ExitCode {
    dcu_stage::main("dcu-condense", &dcu_condense::methods())
}
