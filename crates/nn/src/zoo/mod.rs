//! The networks, a file each: from the facts of an [`Architecture`] to the steps of its graph. How to add one: `docs/architecture.md`.

mod autoencoder;
mod cnn;
mod convnet;
mod mlp;
mod patches;
mod resnet;
mod vgg;
mod vit;
mod weak_cnn;

use crate::architecture::{Architecture, Family};
use crate::graph::{Builder, Operation};
use crate::ops::Pooling;

/// The network of an architecture whose sizes are checked as far as they mean the same for all.
pub(crate) fn builder(architecture: &Architecture) -> Result<Builder, String> {
    match architecture.family {
        Family::Mlp => mlp::build(architecture),
        Family::Cnn => cnn::build(architecture),
        Family::WeakCnn => weak_cnn::build(architecture),
        Family::Resnet18 => resnet::build(architecture),
        Family::Vgg16 | Family::Vgg16Bn => vgg::build(architecture),
        Family::VitTiny => vit::build(architecture),
        Family::Convnet3 => convnet::build(architecture),
        Family::ConvAutoencoder => autoencoder::build(architecture),
        Family::ConvClassifier => autoencoder::build_classifier(architecture),
        Family::Patches => patches::build(architecture),
    }
}

/// A convolution of 3 x 3 that keeps the size of the image.
fn convolution(outputs: usize, stride: usize, bias: bool) -> Operation {
    Operation::Convolution { outputs, kernel: 3, stride, padding: 1, bias }
}

/// Windows of 2 x 2, side by side.
const HALVES: Pooling = Pooling { size: 2, stride: 2, padding: 0 };

/// Refuses images that cannot be halved as often as that.
fn check_halving(architecture: &Architecture, times: usize) -> Result<(), String> {
    let smallest = 1_usize.checked_shl(times as u32).unwrap_or(usize::MAX);
    let [_, height, width] = architecture.input;
    if height < smallest || width < smallest {
        return Err(format!(
            "{times} blocks that each halve the image need {smallest} x {smallest} pixels at least, not {height} x {width}; \
             resize or pad the images, or give fewer `widths`"
        ));
    }
    Ok(())
}

/// The size of the hidden fully connected layer.
fn hidden(architecture: &Architecture) -> Result<usize, String> {
    match architecture.hidden {
        0 => Err("the hidden layer of this network cannot be empty; give `hidden` or leave it out".into()),
        hidden => Ok(hidden),
    }
}

/// What to blame where `widths` are the only sizes.
fn widths(_: &str) -> &'static str {
    "`widths`"
}
