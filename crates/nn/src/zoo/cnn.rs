//! The paper's CNN (arXiv 2402.00195), `features.*` and `classifier.*` as in an `nn.Sequential` each: the first half of the blocks is the beginning, the
//! others the intermediate, the fully connected layers the final.

use super::{HALVES, check_halving, convolution, hidden};
use crate::architecture::Architecture;
use crate::graph::{Builder, Operation, Scheme};

pub(super) fn build(architecture: &Architecture) -> Result<Builder, String> {
    let blame = |name: &str| match name {
        "classifier.0" => "`hidden`, or more `widths`, which halve the image",
        "classifier.3" => "`hidden`",
        _ => "`widths`",
    };
    let blocks = architecture.widths.len();
    check_halving(architecture, blocks)?;
    let mut network = Builder::new(architecture.input, Scheme::Pytorch, blame);
    for (block, &outputs) in architecture.widths.iter().enumerate() {
        let steps = [convolution(outputs, 1, true), Operation::BatchNorm, Operation::Relu, Operation::MaxPool(HALVES)];
        for (offset, operation) in steps.into_iter().enumerate() {
            network.then(format!("features.{}", 4 * block + offset), operation)?;
        }
        if block + 1 == blocks / 2 {
            network.end_beginning();
        }
    }
    network.then("flatten", Operation::Flatten)?;
    network.end_intermediate();
    network.mark_features();
    network.then("classifier.0", Operation::Linear { outputs: hidden(architecture)? })?;
    network.then("classifier.1", Operation::Relu)?;
    network.then("classifier.2", Operation::Dropout(architecture.dropout))?;
    network.then("classifier.3", Operation::Linear { outputs: architecture.classes })?;
    Ok(network)
}
