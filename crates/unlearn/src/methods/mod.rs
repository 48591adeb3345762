//! One file a method.

pub(crate) mod finetune;
pub(crate) mod modular;
pub(crate) mod retrain;
