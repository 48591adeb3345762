//! The binary of the evaluation stages.

use std::process::ExitCode;

use dcu_nn::tally;
use dcu_stage::Meter;

fn main() -> ExitCode {
    dcu_stage::main("dcu-attack", &dcu_attack::methods(), Some(Meter { read: tally::read, set: tally::set }))
}
