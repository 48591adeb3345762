//! The second binary of the data stages.

use std::process::ExitCode;

fn main() -> ExitCode {
    dcu_stage::main("dcu-tables", &dcu_tables::methods(), None)
}
