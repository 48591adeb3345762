//! Differentiable operations on top of candle's `CustomOp` traits, for the CPU in f32 and f64, and in [`composed`] the same made of candle's own, for
//! any device. Who calls decides which; only the losses decide themselves. Images are channels last, [N, H, W, C], so that all channels of a pixel are
//! worked on together; tokens are [N, T, D].
//!
//! Why not candle's own, as of 0.11.1: `max_pool2d` gives 1/k² of the true gradient, `relu` has the gradient 1 at 0, dropout
//! cannot be seeded, the backward pass of `conv2d` runs an order of magnitude slower than its forward pass, and every backward pass
//! computes gradients that nobody asked for. Each operation here is checked by finite differences and against vectors made
//! with PyTorch. A gradient is computed only for an argument that takes part in differentiation.

mod activation;
mod attention;
mod batch_norm;
mod block;
mod chain;
pub mod composed;
mod convolution;
mod frozen;
mod group_norm;
mod layout;
mod linear;
mod loss;
mod norm;
mod perceptron;
mod pool;
mod storage;
mod types;
mod weight;

pub use activation::{add, add_relu, dropout, gelu, relu, sigmoid};
pub use attention::{attention, attention_of_tokens};
pub use batch_norm::batch_norm;
pub use block::conv_block;
pub use chain::chain;
pub use convolution::{conv_transpose2d, conv2d, conv2d_per_sample_weight_gradients};
pub use frozen::frozen_blocks;
pub use group_norm::{group_norm, instance_block};
pub use layout::{channels_first, channels_last};
pub use linear::{linear, linear_per_sample_weight_gradients, per_sample_sums};
pub use loss::{cross_entropy, cross_entropy_per_sample, kl_divergence, soft_cross_entropy, squared_error, weighted_cross_entropy};
pub use norm::layer_norm;
pub use perceptron::linear_gelu_linear;
pub use pool::{adaptive_avg_pool2d, avg_pool2d, max_pool2d};
pub(crate) use storage::with_values;
pub use types::{
    BATCH_NORM_EPSILON, Block, Convolution, FrozenBlock, InstanceBlock, Normalisation, Pooling, Statistics, Targets, Weighting,
};
pub use weight::{Deposit, Weight};
