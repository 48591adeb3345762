//! From tensors to trained networks: operations, layers, the two networks of the paper, losses, optimisers, seeded random numbers.
//!
//! Tensors and automatic differentiation are candle's; the operations in [`ops`] replace those of candle's that are wrong, unseeded or
//! slow in the backward pass (see there). Everything gives the same bytes for any number of threads: work is cut into pieces whose
//! size does not depend on the threads, and partial sums are added in a fixed order.

pub mod architecture;
pub mod evaluate;
pub mod matrix;
pub mod model;
pub mod network;
pub mod ops;
pub mod optimiser;
mod parallel;
pub mod rng;
pub mod samples;
mod special;
pub mod train;
mod vector;

pub use architecture::{Architecture, Family, Part};
pub use candle_core::{Device, Error, Result, Tensor, Var};
pub use network::{Mode, Modes, Network};
pub use samples::Samples;
