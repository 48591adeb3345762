//! VGG-16 (Simonyan and Zisserman, arXiv 1409.1556) under torchvision's names, with batch normalisation or without. The beginning are the first four
//! convolutions with their pooling; the intermediate ends with the bare ninth convolution, as published (arXiv 2402.00195), or with its normalisation, whose
//! rectification is the first step of the final. Features are the flattened result of the last pooling.

use super::{HALVES, check_halving, convolution, hidden};
use crate::architecture::{Architecture, Family, Stem};
use crate::graph::{Builder, Operation, Scheme};

/// Convolutions of each stage.
const STAGES: [usize; 5] = [2, 2, 3, 3, 3];
/// The convolutions that end the beginning and the intermediate.
const CUTS: [usize; 2] = [4, 9];

pub(super) fn build(architecture: &Architecture) -> Result<Builder, String> {
    let blame = |name: &str| match name {
        "classifier.0" | "classifier.3" | "classifier.6" => "`hidden`",
        _ => "`widths`",
    };
    check_halving(architecture, STAGES.len())?;
    let has_norms = architecture.family == Family::Vgg16Bn;
    let mut network = Builder::new(architecture.input, Scheme::Vgg, blame);
    let (mut index, mut convolutions) = (0, 0);
    let mut next = |network: &mut Builder, operation| {
        index += 1;
        network.then(format!("features.{}", index - 1), operation)
    };
    for (&outputs, count) in architecture.widths.iter().zip(STAGES) {
        for _ in 0..count {
            next(&mut network, convolution(outputs, 1, true))?;
            convolutions += 1;
            if has_norms {
                next(&mut network, Operation::BatchNorm)?;
            }
            if convolutions == CUTS[1] {
                network.end_intermediate();
            }
            next(&mut network, Operation::Relu)?;
        }
        next(&mut network, Operation::MaxPool(HALVES))?;
        if convolutions == CUTS[0] {
            network.end_beginning();
        }
    }
    if architecture.stem == Some(Stem::Imagenet) {
        network.then("avgpool", Operation::AdaptiveAveragePool { rows: 7, columns: 7 })?;
    }
    network.then("flatten", Operation::Flatten)?;
    network.mark_features();
    let hidden = hidden(architecture)?;
    for (place, outputs) in [(0, hidden), (3, hidden)] {
        network.then(format!("classifier.{place}"), Operation::Linear { outputs })?;
        network.then(format!("classifier.{}", place + 1), Operation::Relu)?;
        network.then(format!("classifier.{}", place + 2), Operation::Dropout(architecture.dropout))?;
    }
    network.then("classifier.6", Operation::Linear { outputs: architecture.classes })?;
    Ok(network)
}
