//! The binary of the condensation stages.

use std::process::ExitCode;

use dcu_nn::tally;
use dcu_stage::Meter;

fn main() -> ExitCode {
    dcu_stage::main("dcu-condense", &dcu_condense::methods(), Some(Meter { read: tally::read, set: tally::set }))
}
