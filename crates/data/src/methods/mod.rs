//! One file a method.

#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod holdout;
pub(crate) mod load;
pub(crate) mod poison;
pub(crate) mod request;
