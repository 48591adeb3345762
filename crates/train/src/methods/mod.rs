//! One file a method.

pub(crate) mod ensemble;
pub(crate) mod fit;
pub(crate) mod import;
pub(crate) mod offline;
pub(crate) mod patches;
pub(crate) mod sisa;
