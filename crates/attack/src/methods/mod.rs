//! One file a method.

pub(crate) mod audit;
pub(crate) mod evaluate;
pub(crate) mod leave_one_out;
pub(crate) mod predict;
