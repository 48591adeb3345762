//! The binary of the unlearning stages.

use std::process::ExitCode;

fn main() -> ExitCode {
    dcu_stage::main("dcu-unlearn", &dcu_unlearn::methods())
}
