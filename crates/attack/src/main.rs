//! The binary of the evaluation stages.

use std::process::ExitCode;

fn main() -> ExitCode {
    dcu_stage::main("dcu-attack", &dcu_attack::methods())
}
