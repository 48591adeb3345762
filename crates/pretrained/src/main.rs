//! The second binary of the training stages.

use std::process::ExitCode;

use dcu_nn::tally;
use dcu_stage::Meter;

fn main() -> ExitCode {
    dcu_stage::main("dcu-pretrained", &dcu_pretrained::methods(), Some(Meter { read: tally::read, set: tally::set }))
}
