//! The vision transformer (Dosovitskiy et al., arXiv 2010.11929) under timm's names, by default ViT-tiny with patches of 4 x 4. The beginning are the
//! patches and two blocks, the final takes the class token; features are the class token.

use super::widths;
use crate::architecture::Architecture;
use crate::graph::{Builder, Operation, Scheme};

const EPSILON: f64 = 1e-6;
/// Hidden values of a block's fully connected layers for each value of a token.
const RATIO: usize = 4;
/// Blocks of the beginning.
const BEGINNING: usize = 2;
const MOST_DEPTH: usize = 256;

pub(super) fn build(architecture: &Architecture) -> Result<Builder, String> {
    let (width, patch) = (architecture.widths[0], architecture.patch.unwrap_or(0));
    let (depth, heads) = (architecture.depth.unwrap_or(0), architecture.heads.unwrap_or(0));
    let [_, height, columns] = architecture.input;
    if patch == 0 || !height.is_multiple_of(patch) || !columns.is_multiple_of(patch) {
        return Err(format!(
            "patches of {patch} x {patch} do not tile images of {height} x {columns}; change `patch`, or resize the images"
        ));
    }
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("{heads} heads do not divide a width of {width}; change `heads` or `widths`"));
    }
    if !(1..=MOST_DEPTH).contains(&depth) {
        return Err(format!("a depth of {depth} is not possible; give a `depth` from 1 to {MOST_DEPTH}"));
    }
    let too_wide = || format!("a width of {width} is too large; give smaller `widths`");
    let (tripled, wide) = (width.checked_mul(3).ok_or_else(too_wide)?, width.checked_mul(RATIO).ok_or_else(too_wide)?);
    let norm = Operation::LayerNorm { epsilon: EPSILON };
    let mut network = Builder::new(architecture.input, Scheme::Vit, widths);
    network.then("patch_embed.proj", Operation::Convolution { outputs: width, kernel: patch, stride: patch, padding: 0, bias: true })?;
    network.then("tokens", Operation::Tokens)?;
    for block in 0..depth {
        if block == BEGINNING.min(depth - 1) {
            network.end_beginning();
        }
        let name = |layer: &str| format!("blocks.{block}.{layer}");
        let input = network.last();
        network.then(name("norm1"), norm)?;
        network.then(name("attn.qkv"), Operation::Linear { outputs: tripled })?;
        network.then(name("attn.heads"), Operation::Attention { heads })?;
        let attended = network.then(name("attn.proj"), Operation::Linear { outputs: width })?;
        let between = network.step(name("add1"), Operation::Add, vec![input, attended])?;
        network.then(name("norm2"), norm)?;
        network.then(name("mlp.fc1"), Operation::Linear { outputs: wide })?;
        network.then(name("mlp.act"), Operation::Gelu)?;
        let result = network.then(name("mlp.fc2"), Operation::Linear { outputs: width })?;
        network.step(name("add2"), Operation::Add, vec![between, result])?;
    }
    network.then("norm", norm)?;
    network.end_intermediate();
    network.then("token", Operation::FirstToken)?;
    network.mark_features();
    network.then("head", Operation::Linear { outputs: architecture.classes })?;
    Ok(network)
}
