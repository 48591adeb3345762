//! The second binary of the training stages.

use std::process::ExitCode;

fn main() -> ExitCode {
    dcu_stage::main("dcu-pretrained", &dcu_pretrained::methods())
}
