//! From tensors to trained networks: operations, networks as graphs, a zoo of them, losses, optimisers, seeded random numbers.
//!
//! Tensors and automatic differentiation are candle's; the operations in [`ops`] replace those of candle's that are wrong, unseeded or
//! slow in the backward pass (see there). Everything gives the same bytes for any number of threads: work is cut into pieces whose
//! size does not depend on the threads, and partial sums are added in a fixed order.

pub mod architecture;
pub mod augment;
pub mod average;
pub mod cholesky;
pub mod derivatives;
pub mod evaluate;
mod fuse;
mod gradients;
pub mod graph;
pub mod matrix;
pub mod model;
pub mod network;
pub mod ops;
pub mod optimiser;
mod orthogonal;
mod parallel;
pub mod place;
pub mod recipe;
pub mod ridge;
pub mod rng;
pub mod samples;
pub mod sisa;
mod special;
pub mod tally;
pub mod train;
mod vector;
mod zoo;

pub use architecture::{Architecture, Family, Part, Stem};
pub use candle_core::{DType, Device, Error, Result, Tensor, Var};
pub use gradients::Gradients;
pub use graph::Graph;
pub use network::{Mode, Modes, Network, Trainable};
pub use place::Place;
pub use samples::Samples;
