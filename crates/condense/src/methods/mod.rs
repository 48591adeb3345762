//! One file a method.

pub(crate) mod blend;
pub(crate) mod cluster;
pub(crate) mod coreset;
pub(crate) mod crops;
pub(crate) mod dm;
pub(crate) mod fdm;
pub(crate) mod gm;
pub(crate) mod idm;
pub(crate) mod inversion;
pub(crate) mod mtt;
pub(crate) mod reduce;
pub(crate) mod statistics;
