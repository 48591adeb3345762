//! The binary of the training stages.

use std::process::ExitCode;

fn main() -> ExitCode {
    dcu_stage::main("dcu-train", &dcu_train::methods())
}
