//! ResNet-18 (He et al., arXiv 1512.03385) under torchvision's names. The beginning ends with `layer2`, the intermediate with `layer3`; features are the
//! means of the last channels.

use super::{convolution, widths};
use crate::architecture::{Architecture, Stem};
use crate::graph::{Builder, Operation, Scheme};
use crate::ops::Pooling;

pub(super) fn build(architecture: &Architecture) -> Result<Builder, String> {
    let mut network = Builder::new(architecture.input, Scheme::Resnet, widths);
    let first = architecture.widths[0];
    let is_large = architecture.stem == Some(Stem::Imagenet);
    let stem = if is_large {
        Operation::Convolution { outputs: first, kernel: 7, stride: 2, padding: 3, bias: false }
    } else {
        convolution(first, 1, false)
    };
    network.then("conv1", stem)?;
    network.then("bn1", Operation::BatchNorm)?;
    network.then("relu", Operation::Relu)?;
    if is_large {
        network.then("maxpool", Operation::MaxPool(Pooling { size: 3, stride: 2, padding: 1 }))?;
    }
    for (layer, &outputs) in architecture.widths.iter().enumerate() {
        for block in 0..2 {
            let stride = if layer > 0 && block == 0 { 2 } else { 1 };
            residual(&mut network, &format!("layer{}.{block}", layer + 1), outputs, stride)?;
        }
        match layer {
            1 => network.end_beginning(),
            2 => network.end_intermediate(),
            _ => {}
        }
    }
    network.then("avgpool", Operation::AdaptiveAveragePool { rows: 1, columns: 1 })?;
    network.then("flatten", Operation::Flatten)?;
    network.mark_features();
    // torchvision leaves it as PyTorch starts it, as the scheme does.
    network.then("fc", Operation::Linear { outputs: architecture.classes })?;
    Ok(network)
}

/// Two convolutions beside the identity, or beside a convolution of 1 x 1 where size or channels change.
fn residual(network: &mut Builder, name: &str, outputs: usize, stride: usize) -> Result<(), String> {
    let input = network.last();
    let is_same = stride == 1 && network.shape()[0] == outputs;
    network.then(format!("{name}.conv1"), convolution(outputs, stride, false))?;
    network.then(format!("{name}.bn1"), Operation::BatchNorm)?;
    network.then(format!("{name}.relu1"), Operation::Relu)?;
    network.then(format!("{name}.conv2"), convolution(outputs, 1, false))?;
    let result = network.then(format!("{name}.bn2"), Operation::BatchNorm)?;
    let beside = if is_same {
        input
    } else {
        let narrow = Operation::Convolution { outputs, kernel: 1, stride, padding: 0, bias: false };
        network.step(format!("{name}.downsample.0"), narrow, vec![input])?;
        network.then(format!("{name}.downsample.1"), Operation::BatchNorm)?
    };
    network.step(format!("{name}.add"), Operation::Add, vec![result, beside])?;
    network.then(format!("{name}.relu2"), Operation::Relu)?;
    Ok(())
}
