//! One file a method.

pub(crate) mod cluster;
pub(crate) mod fdm;
pub(crate) mod reduce;
pub(crate) mod statistics;
