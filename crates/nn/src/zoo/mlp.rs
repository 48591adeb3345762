//! The paper's fully connected network (arXiv 2402.00195): the first hidden layer is the beginning, the others the intermediate, the output layer the final.

use crate::architecture::Architecture;
use crate::graph::{Builder, Operation, Scheme};

pub(super) fn build(architecture: &Architecture) -> Result<Builder, String> {
    let mut network = Builder::new(architecture.input, Scheme::Pytorch, |_| "`widths`, or smaller images");
    network.then("flatten", Operation::Flatten)?;
    for (index, &outputs) in architecture.widths.iter().enumerate() {
        network.then(format!("linear{}", index + 1), Operation::Linear { outputs })?;
        network.then(format!("relu{}", index + 1), Operation::Relu)?;
        if index == 0 {
            network.end_beginning();
        }
    }
    network.end_intermediate();
    network.mark_features();
    network.then(format!("linear{}", architecture.widths.len() + 1), Operation::Linear { outputs: architecture.classes })?;
    Ok(network)
}
