//! One file a method.

pub(crate) mod evaluate;
pub(crate) mod leave_one_out;
