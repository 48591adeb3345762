//! One file a method.

pub(crate) mod evaluate;
pub(crate) mod predict;
pub(crate) mod single_samples;
