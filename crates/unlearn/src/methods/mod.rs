//! One file a method.

pub(crate) mod accelerated;
pub(crate) mod amnesiac;
pub(crate) mod bad_teacher;
pub(crate) mod datamodel;
pub(crate) mod distillation;
pub(crate) mod finetune;
pub(crate) mod gradient_ascent;
pub(crate) mod importance;
pub(crate) mod modular;
pub(crate) mod neggrad;
pub(crate) mod oracle;
pub(crate) mod random_label;
pub(crate) mod retrain;
pub(crate) mod salun;
pub(crate) mod scrub;
pub(crate) mod sparse;
pub(crate) mod ssd;
