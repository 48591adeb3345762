//! One file a method.

pub(crate) mod evaluate;
pub(crate) mod leave_one_out;
pub(crate) mod predict;
pub(crate) mod single_samples;
