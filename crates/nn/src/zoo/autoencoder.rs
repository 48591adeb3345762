//! The paper's "condensed model" (arXiv 2402.00195): the encoder is the beginning, the decoder the intermediate, and a classifier of the decoded image the
//! final. Features are the code. The classifier is a network of its own as well. The paper's side classifier of the code, which takes part in pre-training
//! alone, is left out: see [`crate::recipe::Recipe::reconstruction`].

use super::{HALVES, check_halving, convolution, hidden};
use crate::architecture::Architecture;
use crate::graph::{Builder, Operation, Scheme};

/// Rows and columns of the encoder's kernels, their distance and padding.
const KERNEL: (usize, usize, usize) = (4, 2, 1);

fn blame(name: &str) -> &'static str {
    if name.contains("classifier.0") || name.contains("classifier.3") { "`hidden`" } else { "`widths`" }
}

pub(super) fn build(architecture: &Architecture) -> Result<Builder, String> {
    let ((kernel, stride, padding), [channels, ..]) = (KERNEL, architecture.input);
    check_halving(architecture, 3)?;
    let mut network = Builder::new(architecture.input, Scheme::Pytorch, blame);
    let (code, classifier) = architecture.widths.split_at(3);
    for (index, &outputs) in code.iter().enumerate() {
        network.then(format!("encoder.{}", 2 * index), Operation::Convolution { outputs, kernel, stride, padding, bias: true })?;
        network.then(format!("encoder.{}", 2 * index + 1), Operation::Relu)?;
    }
    network.end_beginning();
    network.mark_features();
    for (index, outputs) in [code[1], code[0], channels].into_iter().enumerate() {
        network.then(format!("decoder.{}", 2 * index), Operation::TransposedConvolution { outputs, kernel, stride, padding })?;
        let activation = if index < 2 { Operation::Relu } else { Operation::Sigmoid };
        network.then(format!("decoder.{}", 2 * index + 1), activation)?;
    }
    network.end_intermediate();
    network.mark_reconstruction();
    classify(&mut network, "classifier.", classifier, architecture)?;
    Ok(network)
}

/// The classifier alone: its first block is the beginning, the others the intermediate, the fully connected layers the final.
pub(super) fn build_classifier(architecture: &Architecture) -> Result<Builder, String> {
    let mut network = Builder::new(architecture.input, Scheme::Pytorch, blame);
    let cuts = classify(&mut network, "", &architecture.widths, architecture)?;
    network.cut_at(cuts);
    Ok(network)
}

/// Adds the classifier's steps. Returns where its first block ends, and where the fully connected layers begin.
fn classify(network: &mut Builder, prefix: &str, widths: &[usize], architecture: &Architecture) -> Result<[usize; 2], String> {
    check_halving(architecture, widths.len())?;
    let mut cuts = [0; 2];
    for (block, &outputs) in widths.iter().enumerate() {
        let steps = [convolution(outputs, 1, true), Operation::Relu, Operation::MaxPool(HALVES)];
        for (offset, operation) in steps.into_iter().enumerate() {
            network.then(format!("{prefix}features.{}", 3 * block + offset), operation)?;
        }
        if block == 0 {
            cuts[0] = network.last();
        }
    }
    cuts[1] = network.then(format!("{prefix}flatten"), Operation::Flatten)?;
    network.then(format!("{prefix}classifier.0"), Operation::Linear { outputs: hidden(architecture)? })?;
    network.then(format!("{prefix}classifier.1"), Operation::Relu)?;
    network.then(format!("{prefix}classifier.2"), Operation::Dropout(architecture.dropout))?;
    network.then(format!("{prefix}classifier.3"), Operation::Linear { outputs: architecture.classes })?;
    Ok(cuts)
}
