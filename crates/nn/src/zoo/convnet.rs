//! ConvNet-3, the standard network of dataset condensation (Zhao et al., arXiv 2006.05929): instance normalisation and average pooling. The first block is the
//! beginning, the others the intermediate.

use super::{HALVES, check_halving, convolution, widths};
use crate::architecture::Architecture;
use crate::graph::{Builder, Operation, Scheme};

pub(super) fn build(architecture: &Architecture) -> Result<Builder, String> {
    check_halving(architecture, architecture.widths.len())?;
    let mut network = Builder::new(architecture.input, Scheme::Pytorch, widths);
    for (block, &outputs) in architecture.widths.iter().enumerate() {
        let steps = [convolution(outputs, 1, true), Operation::InstanceNorm, Operation::Relu, Operation::AveragePool(HALVES)];
        for (offset, operation) in steps.into_iter().enumerate() {
            network.then(format!("features.{}", 4 * block + offset), operation)?;
        }
        if block == 0 {
            network.end_beginning();
        }
    }
    network.then("flatten", Operation::Flatten)?;
    network.end_intermediate();
    network.mark_features();
    network.then("classifier", Operation::Linear { outputs: architecture.classes })?;
    Ok(network)
}
