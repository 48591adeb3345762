//! The paper's weak CNN, after LeNet-5: a convolution with its pooling is the beginning, another the intermediate, the fully connected layers the final.

use super::{HALVES, widths};
use crate::architecture::Architecture;
use crate::graph::{Builder, Operation, Scheme};

pub(super) fn build(architecture: &Architecture) -> Result<Builder, String> {
    let mut network = Builder::new(architecture.input, Scheme::Pytorch, widths);
    for (index, &outputs) in architecture.widths[..2].iter().enumerate() {
        let layer = index + 1;
        network.then(format!("conv{layer}"), Operation::Convolution { outputs, kernel: 5, stride: 1, padding: 0, bias: true })?;
        network.then(format!("relu{layer}"), Operation::Relu)?;
        network.then(format!("pool{layer}"), Operation::MaxPool(HALVES))?;
        if index == 0 {
            network.end_beginning();
        }
    }
    network.then("flatten", Operation::Flatten)?;
    network.end_intermediate();
    network.mark_features();
    for (index, &outputs) in architecture.widths[2..].iter().enumerate() {
        network.then(format!("fc{}", index + 1), Operation::Linear { outputs })?;
        network.then(format!("relu{}", index + 3), Operation::Relu)?;
    }
    network.then("fc3", Operation::Linear { outputs: architecture.classes })?;
    Ok(network)
}
