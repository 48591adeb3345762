//! From the steps of a graph to the kernels that compute them: steps in a row that one kernel does faster become one piece.
//!
//! A piece never reaches over the border of a part, of the features or of a decoder, and what lies within it is used by nothing else.

use std::ops::Range;

use crate::architecture::Part;
use crate::graph::{Graph, Operation, Value};
use crate::ops::{Block, Convolution, Pooling};

/// What a piece is computed by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kernel {
    /// Convolution and batch normalisation, and what follows: [`crate::ops::conv_block`].
    Block(Block),
    /// Convolution, rectification and perhaps pooling, without normalisation.
    Rectified(Block),
    /// Instance normalisation, rectification and perhaps the mean of each 2 x 2 window.
    InstanceBlock {
        /// Whether means are taken.
        pool: bool,
    },
    /// Two fully connected layers with a GELU between them.
    Perceptron,
    /// A sum and its rectification.
    AddRelu,
    /// One step.
    Step,
}

/// Steps in a row that are computed together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub(crate) kernel: Kernel,
    pub(crate) steps: Range<usize>,
}

const HALVES: Pooling = Pooling { size: 2, stride: 2, padding: 0 };

/// The pieces of a network, in order.
pub(crate) fn fuse(graph: &Graph) -> Vec<Piece> {
    let parts = [Part::Beginning, Part::Intermediate].map(|part| graph.range(part).end);
    let borders: Vec<Value> = parts.into_iter().chain([graph.features()]).chain(graph.reconstruction()).collect();
    let (mut pieces, mut start) = (Vec::new(), 0);
    while start < graph.steps().len() {
        let longest = (start..graph.steps().len()).find(|&step| {
            let end = step + 1;
            end == graph.steps().len() || borders.contains(&end) || graph.uses(end) != 1 || graph.steps()[end].inputs != [end]
        });
        let operations: Vec<Operation> = graph.steps()[start..=longest.unwrap_or(start)].iter().map(|step| step.operation).collect();
        let (kernel, count) = longest_kernel(&operations);
        pieces.push(Piece { kernel, steps: start..start + count });
        start += count;
    }
    pieces
}

/// The kernel that does most of the first of these operations, and how many.
fn longest_kernel(operations: &[Operation]) -> (Kernel, usize) {
    let rest = |skipped: usize| operations.get(skipped..).unwrap_or(&[]);
    let rectify_and_pool = |skipped: usize| match rest(skipped) {
        [Operation::Relu, Operation::MaxPool(HALVES), ..] => (true, true),
        [Operation::Relu, ..] => (true, false),
        [Operation::MaxPool(HALVES), ..] => (false, true),
        _ => (false, false),
    };
    match *operations {
        [Operation::Convolution { stride, padding, .. }, Operation::BatchNorm, ..] => {
            let (rectify, pool) = rectify_and_pool(2);
            let block = Block { convolution: Convolution { stride, padding }, rectify, pool };
            (Kernel::Block(block), 2 + usize::from(rectify) + usize::from(pool))
        }
        [Operation::Convolution { stride, padding, .. }, Operation::Relu, ..] => {
            let (rectify, pool) = rectify_and_pool(1);
            let block = Block { convolution: Convolution { stride, padding }, rectify, pool };
            (Kernel::Rectified(block), 1 + usize::from(rectify) + usize::from(pool))
        }
        [Operation::InstanceNorm, Operation::Relu, Operation::AveragePool(HALVES), ..] => (Kernel::InstanceBlock { pool: true }, 3),
        [Operation::InstanceNorm, Operation::Relu, ..] => (Kernel::InstanceBlock { pool: false }, 2),
        [Operation::Linear { .. }, Operation::Gelu, Operation::Linear { .. }, ..] => (Kernel::Perceptron, 3),
        [Operation::Add, Operation::Relu, ..] => (Kernel::AddRelu, 2),
        _ => (Kernel::Step, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Architecture, Family};

    fn kernels(family: Family, cut: Option<[&str; 2]>) -> Vec<(Kernel, usize)> {
        let cut = cut.map(|names| names.map(str::to_owned));
        let graph = Architecture { cut, ..Architecture::of_family(family, [3, 32, 32], 10) }.graph().unwrap();
        let pieces = fuse(&graph);
        assert!(pieces.iter().flat_map(|piece| piece.steps.clone()).eq(0..graph.steps().len()), "each step once, in order");
        pieces.into_iter().map(|piece| (piece.kernel, piece.steps.len())).collect()
    }

    #[test]
    fn blocks_are_found() {
        let block = Kernel::Block(Block { convolution: Convolution { stride: 1, padding: 1 }, rectify: true, pool: true });
        let single = (Kernel::Step, 1);
        assert_eq!(kernels(Family::Cnn, None), [[(block, 4); 4].as_slice(), &[single; 5]].concat());
        let found = kernels(Family::Resnet18, None);
        let count = |kernel: fn(&Kernel) -> bool| found.iter().filter(|(found, _)| kernel(found)).count();
        assert_eq!(count(|kernel| matches!(kernel, Kernel::Block(_))), 20);
        assert_eq!(count(|kernel| matches!(kernel, Kernel::AddRelu)), 8);
        assert_eq!(count(|kernel| matches!(kernel, Kernel::Step)), 3);
        assert_eq!(kernels(Family::Convnet3, None)[1], (Kernel::InstanceBlock { pool: true }, 3));
        let found = kernels(Family::VitTiny, None);
        assert!(found.iter().all(|found| [single, (Kernel::Perceptron, 3)].contains(found)));
        assert_eq!(found.iter().filter(|found| **found != single).count(), 12);
    }

    #[test]
    fn a_piece_does_not_reach_over_a_border() {
        let found = kernels(Family::Cnn, Some(["features.1", "features.6"]));
        assert_eq!(found[..2], [(Kernel::Step, 1), (Kernel::Step, 1)]);
        let cut_short = Block { convolution: Convolution { stride: 1, padding: 1 }, rectify: false, pool: false };
        assert!(found.contains(&(Kernel::Block(cut_short), 2)));
        // The ninth convolution of VGG-16 ends the intermediate, bare.
        assert!(kernels(Family::Vgg16, None).windows(2).any(|pair| pair == [(Kernel::Step, 1), (Kernel::Step, 1)]));
    }
}
