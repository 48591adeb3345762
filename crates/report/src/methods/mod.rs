//! One file a method.

pub(crate) mod html;
pub(crate) mod table;
