//! A linear head on features that no training moves: responses to a dictionary of patches, rectified on both sides and averaged over quadrants (Coates and
//! Ng, ICML workshop 2011; Thiry et al., arXiv 2101.07528). The dictionary is the beginning, what becomes of its responses the intermediate.

use super::widths;
use crate::architecture::Architecture;
use crate::graph::{Builder, Operation, Scheme};

pub(super) fn build(architecture: &Architecture) -> Result<Builder, String> {
    let (outputs, kernel) = (architecture.widths[0], architecture.patch.unwrap_or(0));
    let mut network = Builder::new(architecture.input, Scheme::Pytorch, widths);
    network.then("dictionary", Operation::Dictionary { outputs, kernel })?;
    network.end_beginning();
    network.then("sides", Operation::BothSides)?;
    network.then("quadrants", Operation::AdaptiveAveragePool { rows: 2, columns: 2 })?;
    network.then("flatten", Operation::Flatten)?;
    network.end_intermediate();
    network.mark_features();
    network.then("head", Operation::Linear { outputs: architecture.classes })?;
    Ok(network)
}
