//! The binary of the unlearning stages.

use std::process::ExitCode;

use dcu_nn::tally;
use dcu_stage::Meter;

fn main() -> ExitCode {
    dcu_stage::main("dcu-unlearn", &dcu_unlearn::methods(), Some(Meter { read: tally::read, set: tally::set }))
}
