//! The binary of the data stages.

use std::process::ExitCode;

fn main() -> ExitCode {
    dcu_stage::main("dcu-data", &dcu_data::methods(), None)
}
