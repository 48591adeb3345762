//! From tensors to trained networks.
pub mod rng;
