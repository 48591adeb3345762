//! One file a method.

pub(crate) mod evaluate;
